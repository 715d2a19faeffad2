"""Plots of methods with multipliers: how close weights come to their pruned twins, and what pruning would cost meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from espalier.records import Epoch, Run
from espalier.records.rounds import Round
from espalier.records.summary import Row, mean
from espalier.report.plots.common import Plots, accuracy_axis, decade_axis, mean_curve, panel_title, whole_axis
from espalier.report.plots.training import curves, panels
from espalier.report.svg import Axis, Chart, Point, Series, linear_axis, text_width
from espalier.report.tables import row_label

LEFT = 42.0  # room for usual numbers beside an axis, in pixels
Pick = Callable[[Run], Iterable[tuple[float, float]]]  # a run -> (epoch, value)


def has_rounds(row: Row) -> bool:
    """Whether its method moves multipliers and has told so."""
    return any(run.rounds or any(epoch.gap is not None for epoch in run.metrics) for run in row.runs)


def projected(rows: Sequence[Row], unfinished: Sequence[Row], slots: dict[str, int]) -> Plots:
    """Validation accuracy of the projected weights, with marks, beside that of the live ones; one chart per target and epochs.

    From hard pruning on there is one curve: the weights are the projected ones.
    """
    charts = []
    for members in panels(rows, unfinished):
        series = []
        for row in (row for row in members if has_rounds(row)):
            ahead = curves([row], slots, _projected_by_epoch, band=False)
            live = curves([row], slots, _live_by_epoch, band=False)
            if ahead and live:
                name = live[0].label
                series += [Series(f"{name}, live", live[0].slot, live[0].points, band=True, marks=False)]
                series += [Series(f"{name}, projected", ahead[0].slot, ahead[0].points, band=True)]
        if series:
            epochs = whole_axis(min(1.0, *(p.x for one in series for p in one.points)), float(members[-1].epochs), "epoch")
            shown = accuracy_axis(series, "validation accuracy (%)")
            charts.append(Chart(panel_title(members[-1]), epochs, shown, tuple(series)))
    missing = "" if charts else "no run has recorded the accuracy of its projected weights"
    return Plots("projected", "Accuracy of the projected weights", tuple(charts), missing)


def gaps(rows: Sequence[Row], unfinished: Sequence[Row], slots: dict[str, int]) -> Plots:
    """||W - Z|| over all layers after every round, one chart per target and epochs; of unfinished runs, after every epoch."""
    charts = []
    for members in panels(rows, unfinished):
        charts += _over_rounds(members, slots, _gaps, "distance ||W − Z||", panel_title(members[-1]), log=True)
    return Plots("gap", "Distance to the pruned twins", tuple(charts), "" if charts else "no run has recorded a round")


def layer_gaps(rows: Sequence[Row], slots: dict[str, int]) -> Plots:
    """||W - Z|| of every layer after the first, the middle and the last round; one chart per row, of the most epochs."""
    charts = []
    for goal in sorted({row.goal for row in rows}):
        members = [row for row in rows if row.goal == goal and row.runs[0].rounds]
        members = [row for row in members if row.epochs == max(other.epochs for other in members)]
        charts += [chart for row in members if (chart := _layer_chart(row, slots)) is not None]
    missing = "" if charts else "no finished run has recorded its rounds"
    return Plots("layergap", "Distance per layer", tuple(charts), missing)


def multipliers(rows: Sequence[Row], slots: dict[str, int]) -> Plots:
    """Step size, alpha, and how often each condition has held so far; a chart of each per target and epochs."""
    charts = []
    for members in panels(rows, ()):
        title = panel_title(members[-1])
        charts += _over_rounds(members, slots, _numbers("step_size"), "step size", title, log=True)
        charts += _over_rounds(members, slots, _numbers("alpha"), "alpha, the factor of the step size", title)
        for number in (0, 1):
            name = f"rounds in which condition {number + 1} held (%)"
            charts += _over_rounds(members, slots, _held(number), name, title, share=True)
    missing = "" if charts else "no finished run has recorded its rounds"
    return Plots("multipliers", "Multipliers: step size and conditions", tuple(charts), missing)


def _over_rounds(
    rows: Sequence[Row], slots: dict[str, int], pick: Pick, name: str, title: str, *, log: bool = False, share: bool = False
) -> list[Chart]:
    """The chart of a number over epochs, one line per row: the mean over its runs; none without any values."""
    series = [one for row in rows if (one := _series(row, slots, pick, positive=log)) is not None]
    if not series:
        return []
    values = [point.y for one in series for point in one.points]
    if log:
        y = decade_axis(min(values), max(values), name)
    else:
        y = linear_axis(0.0, 1.02, name, scale=100) if share else linear_axis(min(values), max(values), name)
    left = max(LEFT, 14 + max(text_width(text) for _, text in y.ticks))
    return [Chart(title, linear_axis(0.0, float(rows[-1].epochs), "epoch"), y, tuple(series), left=left)]


def _series(row: Row, slots: dict[str, int], pick: Pick, *, positive: bool) -> Series | None:
    def drawable(run: Run) -> list[tuple[float, float]]:
        return [(x, y) for x, y in pick(run) if math.isfinite(y) and (y > 0 or not positive)]

    return mean_curve(row, slots, drawable, ".4g")


def _rounds(run: Run) -> list[tuple[float, Round]]:
    """Rounds with the epochs after which they were."""
    last = run.metrics[-1] if run.metrics else None
    if last is None or not last.step or not last.epoch:
        return []
    return [(made.step * last.epoch / last.step, made) for made in run.rounds]


def _gaps(run: Run) -> list[tuple[float, float]]:
    if run.rounds:
        return [(epoch, made.gap) for epoch, made in _rounds(run)]
    return [(float(epoch.epoch), epoch.gap) for epoch in run.metrics if epoch.gap is not None]


def _numbers(name: str) -> Pick:
    def pick(run: Run) -> list[tuple[float, float]]:
        found = [(epoch, getattr(made, name)) for epoch, made in _rounds(run)]
        return [(epoch, value) for epoch, value in found if value is not None]

    return pick


def _held(number: int) -> Pick:
    """Share of the rounds so far in which a condition held."""

    def pick(run: Run) -> list[tuple[float, float]]:
        held, found = 0, []
        told = [(epoch, made.held) for epoch, made in _rounds(run) if len(made.held) > number]
        for count, (epoch, conditions) in enumerate(told, start=1):
            held += conditions[number]
            found.append((epoch, held / count))
        return found

    return pick


def _layer_chart(row: Row, slots: dict[str, int]) -> Chart | None:
    """Three moments in one chart: grey for the first, another colour than the row's for the middle."""
    runs = [run for run in row.runs if run.rounds]
    layers = [name for name in runs[0].rounds[-1].gaps if name.endswith("weight")] or list(runs[0].rounds[-1].gaps)
    place = {name: float(number) for number, name in enumerate(layers)}
    own = slots[row_label(row)] or 1
    moments = {"first": (0, 0), "middle": (own % 8 + 1, len(runs[0].rounds) // 2), "last": (own, -1)}
    if len(runs[0].rounds) < 3:
        del moments["middle"]
    series = []
    for word, (slot, number) in moments.items():
        points = tuple(_layer_points(runs, place, number))
        if points:
            series.append(Series(f"{row_label(row)}: {word} round", slot, points, line=False))
    if not series:
        return None
    found = [point.x for one in series for point in one.points]
    names = tuple((y, _shorten(name)) for name, y in place.items())
    left = 22 + max(text_width(text) for _, text in names)
    x = decade_axis(min(found), max(found), "distance ||W − Z|| of the layer")
    y = Axis(len(place) - 0.5, -0.5, names, "layer")
    return Chart(panel_title(row), x, y, tuple(series), 24 + 16.0 * len(place), left)


def _layer_points(runs: Sequence[Run], place: dict[str, float], number: int) -> Iterable[Point]:
    for name, y in place.items():
        found = [run.rounds[number].gaps.get(name, 0.0) for run in runs if -1 <= number < len(run.rounds)]
        gap = mean(value for value in found if math.isfinite(value) and value > 0)
        if gap is not None:
            yield Point(gap, y, note=f"{name}: {gap:.4g}")


def _shorten(name: str, longest: int = 16) -> str:
    """The end of a long name: it tells layers apart, its beginning seldom does."""
    name = name.removesuffix(".weight")
    return name if len(name) <= longest else "…" + name[-longest + 1 :]


def _live_by_epoch(run: Run, epoch: Epoch) -> tuple[float, str, float | None]:
    return float(epoch.epoch), f"epoch {epoch.epoch}", epoch.val_acc


def _projected_by_epoch(run: Run, epoch: Epoch) -> tuple[float, str, float | None]:
    return float(epoch.epoch), f"epoch {epoch.epoch}", epoch.val_acc_projected
