"""Accuracy against what it costs, to train or to run, with the Pareto front: the results that no other one beats."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from espalier.records import numbers
from espalier.records.costs import dense_macs, pareto, row_training_macs
from espalier.records.summary import Row
from espalier.report.plots.common import Plots, accuracy_axis, distinct, spread_point
from espalier.report.svg import Axis, Chart, Point, Series, linear_axis
from espalier.report.tables import row_label

FRONT = "Pareto front"
_FRONT_SLOT = 0


def all_fronts(rows: Sequence[Row], slots: dict[str, int]) -> list[Plots]:
    """Every plot of accuracy against a cost, for the rows of one model on one data set."""
    return [against_seconds(rows, slots), against_training_macs(rows, slots), against_model_macs(rows, slots)]


def against_seconds(rows: Sequence[Row], slots: dict[str, int]) -> Plots:
    """Test accuracy by minutes of training, one chart per target with the dense model in it."""
    charts = _per_target(rows, slots, lambda row: row.seconds and row.seconds / 60, "training time (minutes)")
    return Plots("cost", "Accuracy against training time", charts, "" if charts else "needs two finished rows of one target")


def against_training_macs(rows: Sequence[Row], slots: dict[str, int]) -> Plots:
    """Test accuracy by MACs of all forward passes of the training, as a share of the most expensive one."""
    dense = dense_macs(run for row in rows for run in row.runs)
    most = max((cost for row in rows if (cost := row_training_macs(row, dense)) is not None), default=None)
    if not most:
        return Plots("cost-macs", "Accuracy against training MACs", (), "no run has recorded the MACs of this model")
    name = f"MACs of training, forward (% of {most:.3g})"
    charts = _per_target(rows, slots, lambda row: _share(row_training_macs(row, dense), most), name, scale=100)
    return Plots(
        "cost-macs", "Accuracy against training MACs", charts, "" if charts else "needs two finished rows of one target"
    )


def against_model_macs(rows: Sequence[Row], slots: dict[str, int]) -> Plots:
    """Test accuracy by the share of the MACs that is left, one chart per number of epochs."""
    charts = []
    for epochs in distinct(row.epochs for row in rows):
        members = [row for row in rows if row.epochs == epochs and (row.keep_macs is not None or row.dense)]
        if any(row.keep_macs is not None for row in members) and len(members) > 1:
            charts.append(_chart(numbers.epochs(epochs), members, slots, _left, "MACs left (%)", 100, with_dense=True))
    return Plots("front", "Accuracy against MACs", tuple(charts), "" if charts else "no run has recorded what its cut has left")


def _left(row: Row) -> float:
    return 1.0 if row.keep_macs is None else row.keep_macs


def _per_target(
    rows: Sequence[Row], slots: dict[str, int], cost: Callable[[Row], float | None], name: str, scale: float = 1.0
) -> tuple[Chart, ...]:
    charts = []
    for goal in sorted({row.goal for row in rows if not row.dense}) or [(0.0, ())]:
        members = [row for row in rows if (row.dense or row.goal == goal) and cost(row) is not None]
        if len(members) > 1:
            aim = next((row.aim for row in members if not row.dense), "dense")
            charts.append(_chart(aim, members, slots, lambda row: cost(row) or 0.0, name, scale))
    return tuple(charts)


def _chart(
    title: str,
    rows: Sequence[Row],
    slots: dict[str, int],
    cost: Callable[[Row], float],
    name: str,
    scale: float,
    *,
    with_dense: bool = False,
) -> Chart:
    """Points in the order of the rows' methods. The dense model is a reference; only where it competes is it in the front."""
    known = [row for row in rows if row.acc_mean is not None]
    rivals = [(cost(row), row.acc_mean or 0.0) for row in known if with_dense or not row.dense]
    series = [Series(FRONT, _FRONT_SLOT, tuple(Point(*rivals[number]) for number in pareto(rivals)), marks=False)]
    for label in dict.fromkeys(row_label(row) for row in sorted(known, key=lambda row: not row.dense)):
        members = [row for row in known if row_label(row) == label]
        points = [spread_point(cost(row), row.acc_mean or 0.0, row.acc_std, _note(row)) for row in members]
        series.append(Series(label, slots[label], tuple(points), line=False))
    x = _cost_axis([cost(row) for row in known], name, scale)
    return Chart(title, x, accuracy_axis(series, "test accuracy (%)"), tuple(series))


def _cost_axis(costs: Sequence[float], name: str, scale: float) -> Axis:
    """An axis by ratio where the dearest is much dearer than the cheapest."""
    low, high = min(costs), max(costs)
    if low > 0 and high / low >= 6:
        steps = [k * 10.0**power for power in range(-6, 16) for k in (1, 2, 5)]
        ticks = tuple((v / scale, f"{v:g}") for v in steps if low * scale <= v <= high * scale)
        return Axis(low / 1.15, high * 1.15, ticks, name, log=True)
    room = 0.06 * (high - low) or 0.1 * high
    return linear_axis(max(0.0, low - room), high + room, name, scale=scale)


def _note(row: Row) -> str:
    accuracy = numbers.percent_spread(row.acc_mean, row.acc_std)
    return f"{accuracy} %, {row.aim}, {numbers.epochs(row.epochs)}, {numbers.duration(row.seconds)}, n = {row.n}"


def _share(cost: float | None, most: float) -> float | None:
    return None if cost is None else cost / most
