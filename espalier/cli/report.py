"""`espalier report RUNS`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espalier.errors import EspalierError


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold run folders.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    plots: Annotated[Path | None, typer.Option(help="Also write every plot as an SVG file into this folder.")] = None,
    table: Annotated[Path | None, typer.Option(help="Also write the table to this Markdown file.")] = None,
) -> None:
    """Write one self-contained HTML page about finished runs."""
    from espalier.recipes.training.runs import write_atomically
    from espalier.records import read_runs
    from espalier.records.summary import summarise
    from espalier.report import markdown_table, save_plots, write_report

    for folder in runs:
        if not folder.is_dir():
            raise EspalierError(f"There is no folder {str(folder)!r}.")
    if table is not None:
        write_atomically(table, markdown_table(summarise(read_runs(runs))).rstrip().encode() + b"\n")
        typer.echo(f"written to {table}")
    if plots is not None:
        typer.echo(f"{len(save_plots(runs, plots))} plots written to {plots}")
    typer.echo(f"written to {write_report(runs, out)}")
