"""The report: run folders in, one self-contained HTML page out; and the same plots as SVG files for documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from espalier.atomic import replacing
from espalier.errors import EspalierError
from espalier.records import Run, numbers, read_runs
from espalier.records.summary import Row, summarise
from espalier.report import palette
from espalier.report.plots import KINDS, Plots, all_plots
from espalier.report.svg import draw
from espalier.report.tables import CutRow, TableRow, cut_rows, row_label, table_rows

_FIRST_CHARTS = 4  # of one kind; the rest is folded away
_LONG = 900.0  # height of a plot, in pixels, from which on it is folded away


@dataclass(frozen=True)
class _Figure:
    """The drawings of one kind of plot: those in sight, those folded away, or the reason why there are none."""

    kind: str
    title: str
    shown: tuple[str, ...]
    folded: tuple[str, ...]
    missing: str


@dataclass(frozen=True)
class _Section:
    """Everything about one model on one data set."""

    title: str
    findings: tuple[str, ...]
    table: tuple[TableRow, ...]
    cuts: tuple[CutRow, ...]
    figures: tuple[_Figure, ...]
    unfinished: tuple[str, ...]


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write one HTML page about `runs`; it needs no network, no script and no other file.

    Args:
        runs: run folders, or folders that contain some, finished or not.
        out: file to write, or a folder to write `report.html` into.

    Returns:
        Path of the page.

    Raises:
        EspalierError: no run is found, one cannot be read, or `out` cannot be written.
    """
    from jinja2 import Environment  # comes with the extra `train`

    out = out / "report.html" if out.is_dir() or not out.suffix else out
    known = read_runs(runs)
    template = files("espalier.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    html = page.render(
        title=_title(known),
        css=palette.variables() + "\n" + palette.plot_rules(),
        sections=[_section(title, members) for title, members in _by_setting(known).items()],
        finished=sum(run.finished for run in known),
        unfinished=sum(not run.finished for run in known),
        single=all(row.n == 1 for row in summarise(known)),
        machines=_machines(known),
        settings=_common_settings(known),
    )
    _write(out, html)
    return out


def save_plots(runs: Sequence[Path], folder: Path, kinds: Sequence[str] = KINDS) -> list[Path]:
    """Write every plot of `runs` as an SVG file of its own, readable on light and on dark pages.

    Args:
        runs: run folders, or folders that contain some.
        folder: where to; files are named `<kind>.svg`, or `<kind>-<n>.svg` where a kind has several charts, after
            model and data where there is more than one setting.
        kinds: which plots, of "sparsity", "budget", "training", "schedules" and "layers", for methods with multipliers
            "projected", "gap", "layergap" and "multipliers", and for methods that cut "tradeoff", "stability", "macs",
            "speed", "norms" and "widths".

    Returns:
        The files, plots without data left out.

    Raises:
        EspalierError: an unknown kind, no run, or a file that cannot be written.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise EspalierError(f"There is no plot {kind!r}; there are {', '.join(KINDS)}.")
    css = palette.standalone_rules()
    settings = _by_setting(read_runs(runs))
    written = []
    for title, members in settings.items():
        prefix = _slug(title) + "-" if len(settings) > 1 else ""
        for plots in (plots for plots in _plots(members) if plots.kind in kinds):
            for number, chart in enumerate(plots.charts, start=1):
                end = f"-{number}" if len(plots.charts) > 1 else ""
                path = folder / f"{prefix}{plots.kind}{end}.svg"
                _write(path, draw(chart, css) + "\n")
                written.append(path)
    return written


def _by_setting(runs: Iterable[Run]) -> dict[str, list[Run]]:
    settings: dict[str, list[Run]] = {}
    for run in runs:
        settings.setdefault(f"{run.model} on {run.data}", []).append(run)
    return dict(sorted(settings.items()))


def _plots(runs: Sequence[Run]) -> list[Plots]:
    return all_plots(summarise(runs), summarise(runs, finished=False))


def _section(title: str, runs: Sequence[Run]) -> _Section:
    rows = summarise(runs)
    masks, cuts = any(row.sparsity_target for row in rows), any(row.budget for row in rows)
    return _Section(
        title=title,
        findings=tuple(_findings(rows)),
        table=tuple(line for line in table_rows(rows) if not line.row.budget) if masks or not cuts else (),
        cuts=tuple(cut_rows(rows)) if cuts else (),
        figures=tuple(_figure(plots) for plots in _plots(runs)),
        unfinished=tuple(_state(run) for run in runs if not run.finished),
    )


def _figure(plots: Plots) -> _Figure:
    shown: list[str] = []
    folded: list[str] = []
    for chart in plots.charts:
        (shown if len(shown) < _FIRST_CHARTS and chart.height < _LONG else folded).append(draw(chart))
    return _Figure(plots.kind, plots.title, tuple(shown), tuple(folded), plots.missing)


def _findings(rows: Sequence[Row]) -> Iterable[str]:
    """One sentence per target and budget: who is ahead, how far from dense, and who cannot be told from it."""
    table = table_rows(rows)
    for best in (line for line in table if line.best and line.row.acc_mean is not None):
        row = best.row
        bar = (row.acc_mean or 0.0) - (row.acc_std or 0.0)
        near = [
            row_label(other)
            for other in rows
            if (other.goal, other.epochs) == (row.goal, row.epochs)
            and row.acc_std is not None
            and row_label(other) != row_label(row)
            and (other.acc_mean or 0.0) >= bar
        ]
        against = "" if best.against_dense == numbers.NOTHING else f", {best.against_dense} points against dense"
        close = f"; {' and '.join(near)} within one standard deviation of it" if near else ""
        close = close if row.n > 1 else "; one run, so no spread is known"
        yield f"{row.aim}, {best.budget}: {best.method} is ahead with {best.accuracy} %{against}{close}."


def _state(run: Run) -> str:
    done = run.metrics[-1].epoch if run.metrics else 0
    words = [run.method, f"seed {run.seed}", f"{done} of {numbers.epochs(run.epochs)} done"]
    if run.sparsity_target:
        words.insert(1, f"{numbers.target(run.sparsity_target)} zeros")
    if run.budget:
        words.insert(1, numbers.budget(dict(run.budget)))
    state = ", ".join(words)
    return f"{state}; it stopped with: {run.failure}" if run.failure else state


def _title(runs: Sequence[Run]) -> str:
    models, data = {run.model for run in runs}, {run.data for run in runs}
    first = models.pop() if len(models) == 1 else f"{len(models)} models"
    return f"{first} on {data.pop() if len(data) == 1 else f'{len(data)} data sets'}"


def _machines(runs: Iterable[Run]) -> list[str]:
    """The machines and versions on which finished runs were made, in words."""
    words: dict[str, None] = {}
    for run in runs:
        machine, versions = run.machine, run.versions
        if machine:
            said = [str(machine.get("cpu", "")), f"device {machine.get('device', 'unknown')}"]
            said.append(f"{machine.get('threads', '?')} of {machine.get('cores', '?')} threads")
            said += [f"{name} {version}" for name, version in versions.items()]
            words[", ".join(part for part in said if part)] = None
    return list(words)


def _common_settings(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The settings that all runs share, for the record."""
    first = runs[0].settings
    shared = {key: value for key, value in first.items() if all(run.settings.get(key, ...) == value for run in runs)}
    return [(key, "none" if value is None else str(value)) for key, value in shared.items()]


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() or c in "-_." else " " for c in text).split())


def _write(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise EspalierError(f"{str(path)!r} cannot be written ({error.strerror}); choose another place.") from None
