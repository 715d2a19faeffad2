"""`espalier table RUNS --rows method --cols sparsity,epochs`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from espalier.errors import EspalierError

if TYPE_CHECKING:
    from espalier.records import Run
    from espalier.records.paper import Paper
    from espalier.records.reaching import Reached

FORMATS = {"markdown": ".md", "csv": ".csv", "latex": ".tex", "html": ".html"}
KEYS_HELP = "Keys separated by commas: method, target, sparsity, epochs, seed, model, data, or any of a recipe."


def table(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold run folders.")],
    rows: Annotated[str | None, typer.Option(help=f"{KEYS_HELP} Default: what varies.")] = None,
    cols: Annotated[str | None, typer.Option(help="As --rows, across.")] = None,
    value: Annotated[str | None, typer.Option(help="test_acc, val_acc, test_loss, sparsity, keep_macs, seconds ...")] = None,
    at_epoch: Annotated[
        int | None, typer.Option(min=1, help="val_acc (or --value) at the end of this epoch, of all runs that have reached it.")
    ] = None,
    where: Annotated[list[str] | None, typer.Option(help="KEY=VALUE[,VALUE]: only these runs; may be given again.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Also differences from this row, by seed: agp, or KEY=VALUE.")] = None,
    at_accuracy: Annotated[float | None, typer.Option(help="Also the least budget, the most compression for it.")] = None,
    paper: Annotated[Path | None, typer.Option(help="A grid file with published numbers; default: as the sweep had.")] = None,
    format: Annotated[str | None, typer.Option(help="markdown, csv, latex or html; default: by --out, else markdown.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default: the terminal.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Also write accuracy against costs as SVG files into this folder.")] = None,
) -> None:
    """Arrange finished runs: mean, spread and number of seeds, paired tests, published numbers beside."""
    from espalier.records import read_runs
    from espalier.records.pivot import pivot
    from espalier.report import pivots, sheets

    kind = _format(format, out)
    if at_accuracy is not None and not 0 < at_accuracy <= 1:
        raise EspalierError(f"--at-accuracy is a share, 0.9 for 90 %; got {at_accuracy:g}.")
    kept = _chosen(read_runs(runs), where or [])
    if at_epoch is not None:
        kept, value = _moment(kept, at_epoch, value, at_accuracy, plots)
    made = pivot(kept, _keys(rows), _keys(cols), value=value or "test_acc")
    known, title = _paper(paper, runs)
    there = pivots.published(made, known)
    found = None if baseline is None else made.against(made.read_baseline(baseline))
    if kind == "csv":
        text = pivots.to_csv(made, there, found) if at_accuracy is None else pivots.reached_csv(*_reached(kept, at_accuracy))
    else:
        pages = [pivots.value_sheet(made, there, epoch=at_epoch)]
        if found is not None and baseline is not None:
            pages.append(pivots.paired_sheet(made, found, baseline))
        if at_accuracy is not None:
            pages += pivots.reached_sheets(*_reached(kept, at_accuracy), at_accuracy)
        if kind == "html":
            text = sheets.to_html(title, pages, _drawings(kept) if at_epoch is None else [])
        else:
            text = (sheets.to_markdown if kind == "markdown" else sheets.to_latex)(title, pages)
    _hand_over(text, out)
    if plots is not None:
        typer.echo(f"{_save_plots(kept, plots)} plots written to {plots}")


def _format(given: str | None, out: Path | None) -> str:
    by_end = {end: name for name, end in FORMATS.items()}
    if given is None:
        if out is not None and out.suffix not in by_end:
            raise EspalierError(f"Which format has {out.name!r}? Give --format, or a name that ends in {', '.join(by_end)}.")
        return "markdown" if out is None else by_end[out.suffix]
    if given not in FORMATS:
        raise EspalierError(f"A table is written as {', '.join(FORMATS)}, not {given!r}.")
    return given


def _keys(text: str | None) -> list[str]:
    return [] if text is None else [key for key in text.split(",") if key.strip()]


def _chosen(runs: Sequence[Run], where: Sequence[str]) -> list[Run]:
    """The runs with the given settings.

    Raises:
        EspalierError: a condition is not understood, or leaves nothing.
    """
    from espalier.recipes.recipe import split_override
    from espalier.records.settings import matches, resolve_keys

    kept = list(runs)
    for text in where:
        key, _, values = text.partition("=")
        split_override(text)  # says what is wrong with its form
        (name,) = resolve_keys([key], {one for run in runs for one in run.settings})
        wanted = [split_override(f"{key}={value}")[1] for value in values.split(",")]
        kept = [run for run in kept if matches(run, {name: wanted})]
        if not kept:
            raise EspalierError(f"No run has {text}: look at what there is with --rows {key}.")
    return kept


def _moment(
    runs: Sequence[Run], epoch: int, value: str | None, accuracy: float | None, plots: Path | None
) -> tuple[list[Run], str]:
    """The runs as they stood at the end of an epoch, and the value to show."""
    from espalier.records.moments import AT_EPOCH, at_epoch

    if value not in (None, *AT_EPOCH):
        raise EspalierError(f"--at-epoch knows {', '.join(AT_EPOCH)}, not {value}: the rest is only known of the last epoch.")
    if accuracy is not None or plots is not None:
        raise EspalierError("--at-accuracy and --plots go by finished runs: leave --at-epoch out.")
    return at_epoch(runs, epoch), value or AT_EPOCH[0]


def _paper(given: Path | None, runs: Sequence[Path]) -> tuple[Paper, str]:
    """Published numbers and a title: of the grid file, or of the sweeps whose folders these are."""
    from espalier.records.paper import Paper, join, read_paper
    from espalier.records.reading import SWEEP

    sweeps: list[dict[str, Any]] = []
    if given is not None:
        from espalier.recipes.recipe import read_yaml

        sweeps = [read_yaml(given, "grid file", "'recipe' and 'paper'", "give the path of a YAML file.")]
        if not sweeps[0].get("paper"):
            raise EspalierError(f"{str(given)!r} has no section 'paper'.")
    else:
        for path in (folder / SWEEP for folder in runs):
            if path.is_file():
                sweeps.append(_read_sweep(path))
    papers = [read_paper(sweep.get("paper") or None, str(given or "sweep.json")) for sweep in sweeps]
    title = "; ".join(" ".join(str(sweep["claim"]).split()) for sweep in sweeps if sweep.get("claim"))
    return (join(papers) if papers else Paper()), title or "Runs"


def _read_sweep(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EspalierError(f"{str(path)!r} cannot be read ({error}): delete it, or run the sweep again.") from None
    return content if isinstance(content, dict) else {}


def _reached(runs: Sequence[Run], accuracy: float) -> tuple[list[Reached], list[Reached]]:
    from espalier.records.reaching import least_budget, most_compression
    from espalier.records.summary import summarise

    rows = summarise(runs)
    return least_budget(rows, accuracy), most_compression(rows, accuracy)


def _drawings(runs: Sequence[Run]) -> list[str]:
    from espalier.report.fronts import front_charts
    from espalier.report.svg import draw

    return [draw(chart) for _, chart in front_charts(runs)]


def _save_plots(runs: Sequence[Run], folder: Path) -> int:
    from espalier.recipes.training.runs import write_atomically
    from espalier.report.fronts import front_charts, standalone

    charts = front_charts(runs)
    _make(folder)
    for name, chart in charts:
        write_atomically(folder / f"{name}.svg", standalone(chart).encode())
    return len(charts)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EspalierError(f"The folder {str(folder)!r} cannot be made ({error.strerror}).") from None


def _hand_over(text: str, out: Path | None) -> None:
    if out is None:
        typer.echo(text.rstrip("\n"))
        return
    from espalier.recipes.training.runs import write_atomically

    _make(out.parent)
    write_atomically(out, text.encode())
    typer.echo(f"written to {out}")
