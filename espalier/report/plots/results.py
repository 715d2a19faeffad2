"""Plots of what came out at the end: test accuracy against sparsity and against budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from espalier.records import numbers
from espalier.records.summary import Row
from espalier.report.plots.common import Plots, accuracy_axis, distinct, spread_point
from espalier.report.svg import Axis, Chart, Point, Series, linear_axis
from espalier.report.tables import row_label


def against_sparsity(rows: Sequence[Row], slots: dict[str, int]) -> Plots:
    """Test accuracy by sparsity with the dense model as a line across, one chart per budget."""
    charts = []
    for budget in distinct(row.epochs for row in rows)[::-1]:
        pruned = [row for row in rows if row.epochs == budget and row.sparsity_target]
        targets = distinct(row.sparsity_target for row in pruned if row.sparsity_target)
        if len(targets) < 2:
            continue
        margin = 0.12 * (targets[-1] - targets[0])
        x = Axis(
            targets[0] - margin,
            targets[-1] + margin,
            tuple((value, f"{100 * value:.4g}") for value in targets),
            "sparsity (% zeros of the selected weights)",
        )
        dense = [row for row in rows if row.epochs == budget and row.dense]
        series = [_levelled(one, x) for one in _by_label(dense, slots, lambda _: 0.0)]
        series += _by_label(pruned, slots, lambda row: row.sparsity_target or 0.0)
        charts.append(Chart(numbers.epochs(budget), x, accuracy_axis(series, "test accuracy (%)"), tuple(series)))
    return Plots(
        "sparsity",
        "Accuracy against sparsity",
        tuple(charts),
        "" if charts else "needs finished runs at two sparsities or more, at the same budget",
    )


def against_budget(rows: Sequence[Row], slots: dict[str, int]) -> Plots:
    """Test accuracy by epochs of training, one chart per sparsity."""
    charts = []
    for goal in sorted({row.goal for row in rows if not row.dense}):
        members = [row for row in rows if row.dense or row.goal == goal]
        budgets = distinct(row.epochs for row in members if not row.dense)
        if len(budgets) < 2:
            continue
        log = budgets[-1] >= 4 * budgets[0]
        margin = (budgets[-1] / budgets[0]) ** 0.08 if log else 1.0
        room = 0.0 if log else 0.08 * (budgets[-1] - budgets[0])
        ticks = tuple((float(budget), str(budget)) for budget in budgets)
        x = Axis(budgets[0] / margin - room, budgets[-1] * margin + room, ticks, "budget (epochs)", log)
        series = _by_label([row for row in members if row.epochs in budgets], slots, lambda row: float(row.epochs))
        y = accuracy_axis(series, "test accuracy (%)")
        aim = next(row.aim for row in members if not row.dense)
        charts.append(Chart(aim, x, y, tuple(series)))
    return Plots(
        "budget",
        "Accuracy against budget",
        tuple(charts),
        "" if charts else "needs finished runs of two budgets (epochs) or more, at the same sparsity",
    )


def against_macs(rows: Sequence[Row], slots: dict[str, int]) -> Plots:
    """Test accuracy by the share of the MACs that is left, the dense model at its right end; one chart per epochs."""
    charts = []
    for epochs in distinct(row.epochs for row in rows)[::-1]:
        cut = [row for row in rows if row.epochs == epochs and row.keep_macs is not None and row.acc_mean is not None]
        if not cut:
            continue
        dense = [row for row in rows if row.epochs == epochs and row.dense and row.acc_mean is not None]
        series = [_test_series(row_label(row), [row], slots, lambda _: 1.0) for row in dense]
        for label in dict.fromkeys(row_label(row) for row in cut):
            members = sorted((row for row in cut if row_label(row) == label), key=_left)
            series.append(_test_series(label, members, slots, _left))
        places = [_left(row) for row in cut] + [1.0] * bool(dense)
        margin = max(0.08 * (max(places) - min(places)), 0.02)
        x = linear_axis(max(0.0, min(places) - margin), max(places) + margin, "MACs left (%)", scale=100)
        charts.append(Chart(numbers.epochs(epochs), x, accuracy_axis(series, "test accuracy (%)"), tuple(series)))
    missing = "" if charts else "no finished run has recorded what its cut has left"
    return Plots("tradeoff", "Accuracy against MACs", tuple(charts), missing)


def _left(row: Row) -> float:
    return row.keep_macs if row.keep_macs is not None else 1.0


def _by_label(rows: Sequence[Row], slots: dict[str, int], where: Callable[[Row], float]) -> list[Series]:
    """Test accuracy as one series per label, side by side so that bars of one place do not hide one another."""
    labels = list(dict.fromkeys(row_label(row) for row in rows if row.acc_mean is not None))
    series = []
    for number, label in enumerate(labels):
        members = [row for row in rows if row_label(row) == label and row.acc_mean is not None]
        dodge = 5.0 * (number - (len(labels) - 1) / 2)
        series.append(_test_series(label, sorted(members, key=where), slots, where, dodge))
    return series


def _test_series(
    label: str, rows: Sequence[Row], slots: dict[str, int], where: Callable[[Row], float], dodge: float = 0.0
) -> Series:
    points = []
    for row in rows:
        y, std = row.acc_mean or 0.0, row.acc_std
        target = numbers.target(row.sparsity_target) if not row.budget else row.aim
        share = f"{target}, {numbers.epochs(row.epochs)}, n = {row.n}"
        points.append(spread_point(where(row), y, std, f"{numbers.percent_spread(y, std)} %, {share}"))
    return Series(label, slots[label], tuple(points), dodge=dodge)


def _levelled(series: Series, x: Axis) -> Series:
    """The first point of `series` drawn out to a line with a band across the whole axis."""
    point = series.points[0]
    ends = tuple(Point(place, point.y, point.low, point.high, point.note) for place in (x.low, x.high))
    return Series(series.label, series.slot, ends, band=True, marks=False)
