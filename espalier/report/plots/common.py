"""What the plots share: axes that suit accuracies and epochs, titles, points with a spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from espalier.records import Run, numbers
from espalier.records.summary import Row, mean
from espalier.report.svg import Axis, Chart, Point, Series, linear_axis
from espalier.report.tables import row_label

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class Plots:
    """Charts of one kind; where there are none, `missing` says why."""

    kind: str
    title: str
    charts: tuple[Chart, ...]
    missing: str = ""


def spread_point(x: float, y: float, std: float | None, note: str) -> Point:
    """A point with its bar or band: one standard deviation either way."""
    return Point(x, y, None if std is None else y - std, None if std is None else y + std, note)


def mean_curve(
    row: Row, slots: dict[str, int], values: Callable[[Run], Iterable[tuple[float, float]]], digits: str
) -> Series | None:
    """The mean over a row's runs of what each gives as (epoch, value), at every epoch that any of them has; None without any.

    `digits` is the format of the values in tooltips.
    """
    found: dict[float, list[float]] = {}
    for run in row.runs:
        for epoch, value in values(run):
            found.setdefault(round(epoch, 6), []).append(value)
    points = []
    for epoch, those in sorted(found.items()):
        y = mean(those) or 0.0
        points.append(Point(epoch, y, note=f"epoch {epoch:.3g}: {y:{digits}} (n = {len(those)})"))
    label = row_label(row)
    name = label if row.runs[0].finished else f"{label} (unfinished)"
    return Series(name, slots[label], tuple(points)) if points else None


def accuracy_axis(series: Sequence[Series], name: str, shown: Sequence[float] = ()) -> Axis:
    """An axis that shows the given accuracies well, by default all with their spread, and never leaves [0, 1]."""
    values = list(shown)
    if not values:
        values = [v for one in series for p in one.points for v in (p.low, p.y, p.high) if v is not None]
    top = max([*values, *(p.y for one in series for p in one.points)])
    room = max(0.08 * (top - min(values)), 0.004)
    return linear_axis(max(0.0, min(values) - room), min(1.0, top + room), name, scale=100)


def decade_axis(low: float, high: float, name: str) -> Axis:
    """An axis of ratios from `low` to `high`, both above 0, with round numbers as ticks, at most about six of them."""
    low, high = (low / 1.3, high * 1.3) if high < 1.3 * low else (low / 1.08, high * 1.08)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**k for k in range(first, last + 1) for digit in digits if low <= digit * 10.0**k <= high]
        if len(ticks) <= 6:
            break
    return Axis(low, high, tuple((tick, f"{tick:.4g}") for tick in ticks[:: max(1, -(-len(ticks) // 6))]), name, log=True)


def whole_axis(low: float, high: float, name: str) -> Axis:
    """An axis of whole numbers, with its first and last among the ticks."""
    step = max(1, round((high - low) / 5))
    ticks = [low, *(v for v in range(step, int(high) - step // 2, step) if v > low + step / 2), high]
    end = high if high > low else low + 1
    return Axis(low, end, tuple((float(v), f"{v:g}") for v in dict.fromkeys(ticks)), name)


def panel_title(row: Row) -> str:
    """Words for the target and the epochs of the rows of one chart, of which `row` is any that is pruned, if there is one."""
    return f"{row.aim}, {numbers.epochs(row.epochs)}"


def distinct(values: Iterable[_Number]) -> list[_Number]:
    """The different values in rising order."""
    return sorted(set(values))
