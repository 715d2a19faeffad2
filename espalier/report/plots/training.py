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
    for budget, target, members in _panels(rows, unfinished):
        series = _curves(members, slots, _accuracy_by_epoch, band=True)
        if series:
            late = [p.y for one in series for p in one.points if p.x > 0.25 * budget] or [series[0].points[-1].y]
            first = min(p.x for one in series for p in one.points)
            epochs = whole_axis(min(first, 1.0), float(budget), "epoch")
            accuracy = accuracy_axis(series, "validation accuracy (%)", late)
            charts.append(Chart(panel_title(budget, target), epochs, accuracy, tuple(series)))
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
    for budget, target, members in _panels(rows, unfinished):
        pruned = [row for row in members if row.sparsity_target]
        series = _curves(pruned, slots, _sparsity_in_force, band=False)
        if series and target not in seen:
            seen.add(target)
            progress = linear_axis(0.0, 1.0, "progress of training (%)", scale=100)
            top = max([target, *(p.y for one in series for p in one.points)])
            in_force = with_tick(linear_axis(0.0, 1.05 * top, "zeros of selected weights (%)", scale=100), target, 100)
            charts.append(Chart(panel_title(budget, target), progress, in_force, tuple(series)))
    return Plots(
        "schedules",
        "Sparsity in force",
        tuple(charts),
        "" if charts else "no run of a pruning method has recorded its sparsity yet",
    )


def _panels(rows: Sequence[Row], unfinished: Sequence[Row]) -> list[tuple[int, float, list[Row]]]:
    """(budget, sparsity, rows with the dense reference), the largest budget first.

    Unfinished runs only stand in for rows that have no finished run.
    """

    def key(row: Row) -> tuple[int, float, str]:
        return row.epochs, row.sparsity_target or 0.0, row_label(row)

    done = {key(row) for row in rows}
    everything = [*rows, *(row for row in unfinished if key(row) not in done)]
    panels = []
    for budget in distinct(row.epochs for row in everything)[::-1]:
        here = [row for row in everything if row.epochs == budget]
        dense = [row for row in here if not row.sparsity_target]
        for target in distinct(row.sparsity_target for row in here if row.sparsity_target):
            panels.append((budget, target, dense + [row for row in here if row.sparsity_target == target]))
        if len(dense) == len(here):
            panels.append((budget, 0.0, dense))
    return panels


def _curves(
    rows: Sequence[Row],
    slots: dict[str, int],
    pick: Callable[[Run, Epoch], tuple[float, str, float | None]],
    *,
    band: bool,
) -> list[Series]:
    """One line per row: mean over seeds of what `pick` takes from each epoch, where all its runs have that epoch."""
    series = []
    for row in rows:
        words: dict[float, str] = {}
        values: dict[float, list[float]] = {}
        for run in row.runs:
            for epoch in run.metrics:
                x, where, y = pick(run, epoch)
                if y is not None:
                    words[x] = where
                    values.setdefault(x, []).append(y)
        finished = row.runs[0].finished
        points = tuple(_point(x, values[x], words[x]) for x in sorted(values) if len(values[x]) == row.n or not finished)
        if points:
            label = row_label(row)
            series.append(Series(label if finished else f"{label} (unfinished)", slots[label], points, band=band))
    return series


def _point(x: float, values: Sequence[float], where: str) -> Point:
    y, std = mean(values) or 0.0, spread(values)
    return spread_point(x, y, std, f"{where}: {numbers.percent_spread(y, std)} %")


def _accuracy_by_epoch(run: Run, epoch: Epoch) -> tuple[float, str, float | None]:
    return float(epoch.epoch), f"epoch {epoch.epoch}", epoch.val_acc


def _sparsity_in_force(run: Run, epoch: Epoch) -> tuple[float, str, float | None]:
    progress = epoch.epoch / run.epochs if run.epochs else 1.0
    return round(progress, 6), f"after {100 * progress:.0f} % of training", epoch.sparsity
