"""Plots over the length of training: validation accuracy, and the sparsity in force."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from espalier.records import Epoch, Run, numbers
from espalier.records.summary import Row, mean, spread
from espalier.report.plots.common import Plots, accuracy_axis, distinct, panel_title, spread_point, whole_axis
from espalier.report.svg import Chart, Point, Series, linear_axis, with_tick
from espalier.report.tables import row_label


def over_training(rows: Sequence[Row], unfinished: Sequence[Row], slots: dict[str, int]) -> Plots:
    """Validation accuracy by epoch, one chart per budget and sparsity."""
    charts = []
    for members in panels(rows, unfinished):
        budget = members[-1].epochs
        series = curves(members, slots, _accuracy_by_epoch, band=True)
        if series:
            late = [p.y for one in series for p in one.points if p.x > 0.25 * budget] or [series[0].points[-1].y]
            first = min(p.x for one in series for p in one.points)
            epochs = whole_axis(min(first, 1.0), float(budget), "epoch")
            accuracy = accuracy_axis(series, "validation accuracy (%)", late)
            charts.append(Chart(panel_title(members[-1]), epochs, accuracy, tuple(series)))
    return Plots(
        "training",
        "Accuracy over training",
        tuple(charts),
        "" if charts else "no run has recorded a validation accuracy yet",
    )


def schedules(rows: Sequence[Row], unfinished: Sequence[Row], slots: dict[str, int]) -> Plots:
    """Sparsity in force by progress, one chart per sparsity, at the largest budget."""
    charts = []
    seen: set[float] = set()
    for members in panels(rows, unfinished):
        pruned = [row for row in members if row.sparsity_target]
        target = pruned[0].sparsity_target or 0.0 if pruned else 0.0
        series = curves(pruned, slots, _sparsity_in_force, band=False)
        if series and target not in seen:
            seen.add(target)
            progress = linear_axis(0.0, 1.0, "progress of training (%)", scale=100)
            top = max([target, *(p.y for one in series for p in one.points)])
            in_force = with_tick(linear_axis(0.0, 1.05 * top, "zeros of selected weights (%)", scale=100), target, 100)
            charts.append(Chart(panel_title(members[-1]), progress, in_force, tuple(series)))
    return Plots(
        "schedules",
        "Sparsity in force",
        tuple(charts),
        "" if charts else "no run of a pruning method has recorded its sparsity yet",
    )


def panels(rows: Sequence[Row], unfinished: Sequence[Row]) -> list[list[Row]]:
    """Rows of equal target and epochs, after the dense reference of these epochs; most epochs first.

    Unfinished runs only stand in for rows that have no finished run.
    """

    def key(row: Row) -> tuple[object, ...]:
        return row.epochs, row.goal, row_label(row)

    done = {key(row) for row in rows}
    everything = [*rows, *(row for row in unfinished if key(row) not in done)]
    found = []
    for budget in distinct(row.epochs for row in everything)[::-1]:
        here = [row for row in everything if row.epochs == budget]
        dense = [row for row in here if row.dense]
        for goal in sorted({row.goal for row in here if not row.dense}):
            found.append(dense + [row for row in here if row.goal == goal])
        if len(dense) == len(here):
            found.append(dense)
    return found


def curves(
    rows: Sequence[Row],
    slots: dict[str, int],
    pick: Callable[[Run, Epoch], tuple[float, str, float | None]],
    *,
    band: bool,
    words: Callable[[float, float | None], str] | None = None,
) -> list[Series]:
    """One line per row: mean over seeds of what `pick` takes from each epoch, where all its runs have that epoch.

    Args:
        rows: summary rows.
        slots: colour of each label.
        pick: place on the x axis, its name for the tooltip, and the value.
        band: whether to show the spread.
        words: value and spread as a text; None writes them as percent.
    """
    series = []
    for row in rows:
        names: dict[float, str] = {}
        values: dict[float, list[float]] = {}
        for run in row.runs:
            for epoch in run.metrics:
                x, where, y = pick(run, epoch)
                if y is not None:
                    names[x] = where
                    values.setdefault(x, []).append(y)
        finished = row.runs[0].finished
        points = tuple(
            _point(x, values[x], names[x], words or _percent) for x in sorted(values) if len(values[x]) == row.n or not finished
        )
        if points:
            label = row_label(row)
            series.append(Series(label if finished else f"{label} (unfinished)", slots[label], points, band=band))
    return series


def _point(x: float, values: Sequence[float], where: str, words: Callable[[float, float | None], str]) -> Point:
    y, std = mean(values) or 0.0, spread(values)
    return spread_point(x, y, std, f"{where}: {words(y, std)}")


def _percent(y: float, std: float | None) -> str:
    return f"{numbers.percent_spread(y, std)} %"


def _accuracy_by_epoch(run: Run, epoch: Epoch) -> tuple[float, str, float | None]:
    return float(epoch.epoch), f"epoch {epoch.epoch}", epoch.val_acc


def _sparsity_in_force(run: Run, epoch: Epoch) -> tuple[float, str, float | None]:
    progress = epoch.epoch / run.epochs if run.epochs else 1.0
    return round(progress, 6), f"after {100 * progress:.0f} % of training", epoch.sparsity
