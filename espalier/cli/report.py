"""`espalier report RUNS`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espalier.errors import EspalierError


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold run folders.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page about finished runs."""
    from espalier.report import write_report

    for folder in runs:
        if not folder.is_dir():
            raise EspalierError(f"There is no folder {str(folder)!r}.")
    typer.echo(f"written to {write_report(runs, out)}")
