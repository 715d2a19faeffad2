"""Plots of methods that cut channels: when the selection settled, what was left where, and what it made cheaper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from espalier.records import Epoch, Run
from espalier.records.norms import took_nothing
from espalier.records.summary import Row, mean
from espalier.report.plots.common import Plots, mean_curve, panel_title, whole_axis
from espalier.report.plots.training import curves, panels
from espalier.report.svg import Axis, Chart, Point, Rule, Series, linear_axis, text_width
from espalier.report.tables import row_label


def stability(rows: Sequence[Row], unfinished: Sequence[Row], slots: dict[str, int]) -> Plots:
    """The indicator's score by epoch, with a line at every cut; one chart per target and epochs."""
    charts = []
    for members in panels(rows, unfinished):
        cutting = [row for row in members if row.budget]
        series = [one for row in cutting if (one := _score_curve(row, slots)) is not None]
        rules = [rule for row in cutting for rule in _cut_rules(row, slots)]
        if not series:
            continue
        end = max([point.x for one in series for point in one.points] + [rule.x for rule in rules])
        x = linear_axis(0.0, max(end, 1.0), "epoch (dotted: cut)")
        y = linear_axis(0.0, 1.02, "stability of the selected channels")
        charts.append(Chart(panel_title(members[-1]), x, y, tuple(series), rules=tuple(rules)))
    missing = "" if charts else "no run has recorded looks at its sub-network by an indicator"
    return Plots("stability", "Stability and cut", tuple(charts), missing)


def macs_left(rows: Sequence[Row], unfinished: Sequence[Row], slots: dict[str, int]) -> Plots:
    """Share of the MACs by epoch, with a line at every cut; one chart per target and epochs."""
    charts = []
    for members in panels(rows, unfinished):
        cutting = [row for row in members if row.budget]
        series = _without_spread(curves(cutting, slots, _macs, band=False))
        if series:
            x = whole_axis(0.0, float(members[-1].epochs), "epoch (dotted: cut)")
            y = linear_axis(0.0, 1.05, "MACs left (%)", scale=100)
            rules = tuple(rule for row in cutting for rule in _cut_rules(row, slots))
            charts.append(Chart(panel_title(members[-1]), x, y, tuple(series), rules=rules))
    missing = "" if charts else "no run has recorded the MACs that are left"
    return Plots("macs", "MACs over training", tuple(charts), missing)


def step_time(rows: Sequence[Row], unfinished: Sequence[Row], slots: dict[str, int]) -> Plots:
    """Time per batch by epoch beside dense; one chart per target and epochs."""
    charts = []
    for members in panels(rows, unfinished):
        if not any(row.budget for row in members):
            continue
        series = _without_spread(curves(members, slots, _milliseconds, band=False, words=_milliseconds_in_words))
        if series:
            highest = max(point.y for one in series for point in one.points)
            x = whole_axis(0.0, float(members[-1].epochs), "epoch")
            y = linear_axis(0.0, 1.1 * highest, "time per batch (ms)")
            charts.append(Chart(panel_title(members[-1]), x, y, tuple(series)))
    missing = "" if charts else "no run has recorded how fast it was and how large its batches are"
    return Plots("speed", "Time per batch over training", tuple(charts), missing)


def widths(rows: Sequence[Row], slots: dict[str, int]) -> Plots:
    """Channels of every group, dense against pruned, on a scale of ratios; one chart per target, at the most epochs."""
    charts = []
    for goal in sorted({row.goal for row in rows if row.budget}):
        members = [row for row in rows if row.goal == goal and row.shrunk]
        members = [row for row in members if row.epochs == max(other.epochs for other in members)]
        if members:
            charts.append(_width_chart(members, slots))
    missing = "" if charts else "no finished run has recorded the widths of its layers"
    return Plots("widths", "Channels per layer", tuple(charts), missing)


def _width_chart(rows: Sequence[Row], slots: dict[str, int]) -> Chart:
    dense = {name: before for name, (before, _) in rows[0].shrunk[0].widths.items()}
    place = {name: float(number) for number, name in enumerate(dense)}
    before = tuple(Point(float(dense[name]), y, note=f"{name}: {dense[name]} channels") for name, y in place.items())
    series = [Series("before", 0, before, line=False)]
    for number, row in enumerate(rows):
        shift = 0.7 * ((number + 0.5) / len(rows) - 0.5)
        series.append(Series(row_label(row), slots[row_label(row)], tuple(_width_points(row, place, shift)), line=False))
    names = tuple((y, _shorten(name)) for name, y in place.items())
    lowest = min(point.x for one in series for point in one.points)
    left = 22 + max(text_width(text) for _, text in names)
    height = 24 + len(place) * (10.0 + 5.0 * len(rows))
    x = _ratio_axis(max(1.0, lowest), max(2.0, *dense.values()), "channels")
    return Chart(panel_title(rows[0]), x, Axis(len(place) - 0.5, -0.5, names, "layer"), tuple(series), height, left)


def _width_points(row: Row, place: dict[str, float], shift: float) -> list[Point]:
    points = []
    for name, y in place.items():
        found = [shrunk.widths[name] for shrunk in row.shrunk if name in shrunk.widths]
        now = mean(float(after) for _, after in found)
        if now is not None:
            points.append(Point(max(now, 1.0), y + shift, note=f"{name}: {now:.4g} of {found[0][0]} channels"))
    return points


def _without_spread(series: Sequence[Series]) -> list[Series]:
    """Seeds that cut at different epochs make bars that say nothing; the tooltips keep the numbers."""
    return [replace(one, points=tuple(replace(point, low=None, high=None) for point in one.points)) for one in series]


def _score_curve(row: Row, slots: dict[str, int]) -> Series | None:
    """Mean score over the seeds that were still looking; of unfinished runs, the newest score at the end of each epoch."""
    return mean_curve(row, slots, _scores, ".3f")


def _scores(run: Run) -> list[tuple[float, float]]:
    if run.shrunk is None:
        return [(float(epoch.epoch), epoch.stability) for epoch in run.metrics if epoch.stability is not None]
    last = run.metrics[-1] if run.metrics else None
    per_epoch = last.step / last.epoch if last is not None and last.step else None
    if not per_epoch:
        return []
    return [(step / per_epoch, score) for step, _, score in run.shrunk.checks if score is not None]


def _cut_rules(row: Row, slots: dict[str, int]) -> list[Rule]:
    label = row_label(row)
    return [
        Rule(cut.epoch, slots[label], f"{label}, seed {run.seed}: cut after epoch {cut.epoch:.3g} ({cut.reason})")
        for run in row.runs
        for number, cut in enumerate(run.shrunk.cuts if run.shrunk is not None else ())
        if not number or not took_nothing(cut.norms)
    ]


def _ratio_axis(low: float, high: float, name: str) -> Axis:
    """An axis of ratios, with powers of two as ticks, about six of them."""
    powers = [2**k for k in range(20) if low <= 2**k <= high] or [round(high)]
    ticks = powers[:: max(1, -(-len(powers) // 6))]
    return Axis(low * 0.9, high * 1.1, tuple((float(tick), str(tick)) for tick in ticks), name, log=True)


def _shorten(name: str, longest: int = 16) -> str:
    """The end of a long name: it tells layers apart, its beginning seldom does."""
    return name if len(name) <= longest else "…" + name[-longest + 1 :]


def _macs(run: Run, epoch: Epoch) -> tuple[float, str, float | None]:
    return float(epoch.epoch), f"after epoch {epoch.epoch}", epoch.keep_macs


def _milliseconds(run: Run, epoch: Epoch) -> tuple[float, str, float | None]:
    batch, rate = run.settings.get("train.batch_size"), epoch.images_per_second
    known = isinstance(batch, int | float) and bool(rate)
    return float(epoch.epoch), f"epoch {epoch.epoch}", 1e3 * float(str(batch)) / (rate or 1.0) if known else None


def _milliseconds_in_words(y: float, std: float | None) -> str:
    return f"{y:.3g} ms" + ("" if std is None else f" ± {std:.2g}")
