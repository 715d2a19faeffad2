"""Plot of the channels at the cut: norms of those that stayed and of those that left."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.records.norms import NormHistogram
from espalier.records.shrunk import Shrunk
from espalier.records.summary import Row
from espalier.report.plots.common import Plots, panel_title
from espalier.report.svg import Axis, Chart, Point, Series, linear_axis
from espalier.report.tables import row_label

_LEAVE = 0  # the grey slot
_TICKS = 16.0  # ratio of one tick to the next


def norms(rows: Sequence[Row], slots: dict[str, int]) -> Plots:
    """Histogram of channel norms just before the cut, those that stay beside those that leave; one chart per row, most epochs.

    Counts are means over runs; of several cuts of one run the channels that leave add up, and the last says what stays.
    """
    charts = []
    for goal in sorted({row.goal for row in rows if row.budget}):
        members = [row for row in rows if row.goal == goal and row.shrunk]
        members = [row for row in members if row.epochs == max(other.epochs for other in members)]
        charts += [chart for row in members if (chart := _chart(row, slots)) is not None]
    missing = "" if charts else "no finished run has recorded the norms of its channels at the cut"
    return Plots("norms", "Norms of channels at the cut", tuple(charts), missing)


def _chart(row: Row, slots: dict[str, int]) -> Chart | None:
    found = [histogram for shrunk in row.shrunk if (histogram := _whole(shrunk)) is not None]
    found = [histogram for histogram in found if histogram.edges == found[0].edges]
    if not found:
        return None
    edges = found[0].edges
    step = edges[1] / edges[0]
    borders = (edges[0] / step, *edges, edges[-1] * step)  # the first and the last bin hold everything beyond
    stay = [sum(counts) / len(found) for counts in zip(*(histogram.kept for histogram in found), strict=True)]
    leave = [sum(counts) / len(found) for counts in zip(*(histogram.removed for histogram in found), strict=True)]
    label = row_label(row)
    series = (_steps("leave", _LEAVE, borders, leave), _steps(f"{label}: stay", slots[label] or 1, borders, stay))
    ticks = [edges[-1] / _TICKS**k for k in range(20) if edges[-1] / _TICKS**k >= borders[0]][::-1]
    if borders[0] < 1 < borders[-1]:
        ticks = sorted({*ticks, 1.0})
    x = Axis(
        borders[0], borders[-1], tuple((tick, f"{tick:.2g}") for tick in ticks), "norm, relative to those that stay", log=True
    )
    y = linear_axis(0.0, 1.1 * max(1.0, *stay, *leave), "channels")
    return Chart(panel_title(row), x, y, series)


def _whole(shrunk: Shrunk) -> NormHistogram | None:
    """All cuts of a run in one histogram."""
    found = [cut.norms for cut in shrunk.cuts if cut.norms is not None]
    if not found or any(histogram.edges != found[0].edges for histogram in found) or len(found[0].edges) < 2:
        return None
    removed = tuple(sum(counts) for counts in zip(*(histogram.removed for histogram in found), strict=True))
    return NormHistogram(found[0].edges, found[-1].kept, removed)


def _steps(label: str, slot: int, borders: Sequence[float], counts: Sequence[float]) -> Series:
    """The outline of a histogram, filled down to zero."""
    points = []
    for left, right, count in zip(borders, borders[1:], counts, strict=False):
        points += [Point(left, count, 0.0, count), Point(right, count, 0.0, count)]
    return Series(label, slot, tuple(points), band=True, marks=False)
