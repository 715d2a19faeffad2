"""A small chart drawer: lines, bands, error bars and markers as plain SVG, coloured by CSS classes only.

Colours live in `plot.css`, so that one drawing serves light, dark and paper. Every series has a colour, a marker and a
dash of its own: any one of them is enough to tell the lines apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

WIDTH = 400.0
_TOP, _RIGHT, _BOTTOM, _LEFT = 8.0, 14.0, 42.0, 42.0
_PLOT_HEIGHT = 210.0
_LEGEND_LINE = 19.0
SLOTS = 9


@dataclass(frozen=True)
class Point:
    """One value, with the ends of its bar or band, and words for the tooltip."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one label. `band` shows the spread as an area instead of bars; `dodge` moves all points by pixels."""

    label: str
    slot: int
    points: tuple[Point, ...]
    band: bool = False
    marks: bool = True
    line: bool = True
    dodge: float = 0.0


@dataclass(frozen=True)
class Rule:
    """A line across the plotting area at one place of the x axis, in the colour of a series, with words for the tooltip."""

    x: float
    slot: int
    note: str = ""


@dataclass(frozen=True)
class Axis:
    """Range, ticks (position, text) and name of an axis. `log` spaces positions by their ratio."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    name: str
    log: bool = False

    def share(self, value: float) -> float:
        """Place of `value` along the axis, 0 at its low and 1 at its high end."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)


@dataclass(frozen=True)
class Chart:
    """All that a drawing shows. `height` is that of the plotting area, in pixels of a 400 pixel wide drawing."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    height: float = _PLOT_HEIGHT
    left: float = _LEFT
    rules: tuple[Rule, ...] = ()


def linear_axis(low: float, high: float, name: str, *, ticks: int = 5, scale: float = 1.0) -> Axis:
    """An axis with round ticks inside its range.

    Args:
        low: lower end.
        high: upper end; a range of no width is widened.
        name: words, with the unit.
        ticks: about how many.
        scale: factor on the written numbers, 100 for percent.

    Example:
        >>> [text for _, text in linear_axis(0.0, 1.0, "sparsity (%)", scale=100).ticks]
        ['0', '20', '40', '60', '80', '100']
    """
    if high - low < 1e-9:
        low, high = low - 0.5 / scale, high + 0.5 / scale
    raw = (high - low) * scale / ticks
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.ceil(low * scale / step - 1e-6), math.floor(high * scale / step + 1e-6)
    return Axis(low, high, tuple((k * step / scale, f"{k * step:.6g}") for k in range(first, last + 1)), name)


def with_tick(axis: Axis, value: float, scale: float = 1.0) -> Axis:
    """The axis with one more tick; those too close to it give way.

    Example:
        >>> [text for _, text in with_tick(linear_axis(0.0, 1.0, "", scale=100), 0.95, 100).ticks]
        ['0', '20', '40', '60', '80', '95']
    """
    far = [tick for tick in axis.ticks if abs(tick[0] - value) > 0.08 * (axis.high - axis.low)]
    return replace(axis, ticks=(*far, (value, f"{value * scale:.4g}")))


def draw(chart: Chart, css: str = "") -> str:
    """The chart as one `<svg>` element.

    Args:
        chart: what to draw.
        css: style rules to put inside, for a drawing that stands alone as a file.
    """
    legend, legend_height = _legend(chart.series)
    top = _TOP + 20 + legend_height + 31
    area = _Area(chart, chart.left, top, WIDTH - chart.left - _RIGHT, chart.height)
    height = top + chart.height + _BOTTOM
    size = f'width="{1.4 * WIDTH:g}" height="{1.4 * height:g}" ' if css else ""
    names = ", ".join(series.label for series in chart.series)
    parts = [
        f'<svg class="plot" xmlns="http://www.w3.org/2000/svg" {size}viewBox="0 0 {WIDTH:g} {height:g}" role="img" '
        f'aria-label="{escape(chart.title)}: {escape(chart.y.name)} by {escape(chart.x.name)} for {escape(names)}">',
    ]
    if css:
        parts.append(f'<style>{css}</style><rect class="card" width="{WIDTH:g}" height="{height:g}" rx="8"/>')
    parts.append(_text(_TOP + 4, _TOP + 14, chart.title, "title"))
    parts.append(f'<g transform="translate(0 {_TOP + 20:g})">{legend}</g>')
    parts.append(area.frame())
    # A nested svg cuts off what leaves the plotting area, without an id that could clash with another drawing's.
    box = f"{area.left - 2:g} {area.top - 2:g} {area.width + 4:g} {area.height + 4:g}"
    x, y, width, tall = box.split()
    parts.append(f'<svg x="{x}" y="{y}" width="{width}" height="{tall}" viewBox="{box}">')
    parts += [area.rule(one) for one in chart.rules]
    parts += [area.spread(series) for series in chart.series]
    parts += [area.line(series) for series in chart.series]
    parts.append("</svg>")
    parts += [area.marks(series) for series in chart.series]
    parts.append("</svg>")
    return "\n".join(part for part in parts if part)


@dataclass(frozen=True)
class _Area:
    """The rectangle between the axes: places points in it and draws what lies there."""

    chart: Chart
    left: float
    top: float
    width: float
    height: float

    def px(self, x: float) -> float:
        return self.left + self.width * self.chart.x.share(x)

    def py(self, y: float) -> float:
        return self.top + self.height * (1 - self.chart.y.share(y))

    def frame(self) -> str:
        """Grid lines, ticks and the names of the axes."""
        bottom, right = self.top + self.height, self.left + self.width
        parts = [_text(12, self.top - 14, self.chart.y.name, "soft")]
        for value, text in self.chart.y.ticks:
            y = self.py(value)
            parts.append(f'<path class="grid" d="M{self.left:g} {y:.1f}H{right:g}"/>')
            parts.append(_text(self.left - 7, y + 4, text, "soft end"))
        for value, text in self.chart.x.ticks:
            x = self.px(value)
            parts.append(f'<path class="axis" d="M{x:.1f} {bottom:g}v4"/>')
            parts.append(_text(x, bottom + 17, text, "soft mid"))
        parts.append(f'<path class="axis" d="M{self.left:g} {bottom:g}H{right:g}"/>')
        parts.append(_text((self.left + right) / 2, bottom + 35, self.chart.x.name, "soft mid"))
        return "".join(parts)

    def spread(self, series: Series) -> str:
        """The band or the error bars of a series; nothing where no point has a spread."""
        known = [(p, p.low, p.high) for p in series.points if p.low is not None and p.high is not None]
        if not known:
            return ""
        if series.band:
            upper = [f"{self.px(p.x):.1f} {self.py(high):.1f}" for p, _, high in known]
            lower = [f"{self.px(p.x):.1f} {self.py(low):.1f}" for p, low, _ in reversed(known)]
            return f'<path class="band s{series.slot}" d="M{"L".join(upper + lower)}Z"/>'
        bars = []
        for p, low, high in known:
            x, y_low, y_high = self.px(p.x) + series.dodge, self.py(low), self.py(high)
            bars.append(f"M{x:.1f} {y_low:.1f}V{y_high:.1f}M{x - 3:.1f} {y_low:.1f}h6M{x - 3:.1f} {y_high:.1f}h6")
        return f'<path class="bar s{series.slot}" d="{"".join(bars)}"/>'

    def rule(self, one: Rule) -> str:
        """A line from bottom to top."""
        title = f"<title>{escape(one.note)}</title>" if one.note else ""
        path = f"M{self.px(one.x):.1f} {self.top:g}v{self.height:g}"
        return f'<path class="bar s{one.slot}" stroke-dasharray="2 3" d="{path}">{title}</path>'

    def line(self, series: Series) -> str:
        """The line through a series."""
        if not series.line or len(series.points) < 2:
            return ""
        path = "L".join(f"{self.px(p.x) + series.dodge:.1f} {self.py(p.y):.1f}" for p in series.points)
        return f'<path class="line s{series.slot}" d="M{path}"/>'

    def marks(self, series: Series) -> str:
        """The markers of a series inside the plotting area, each with a tooltip.

        On a dense line they would hide it: about eight are enough, at other places than the neighbours'.
        """
        if not series.marks:
            return ""
        every = max(1, len(series.points) // 8) if series.line else 1
        parts = []
        for number, p in enumerate(series.points):
            if number % every == series.slot % every and 0 <= self.chart.y.share(p.y) <= 1:
                words = f"{series.label}: {p.note}" if p.note else series.label
                parts.append(mark(series.slot, self.px(p.x) + series.dodge, self.py(p.y), words, small=not series.line))
        return "".join(parts)


_SHAPES = (
    "M-4.2 0a4.2 4.2 0 1 0 8.4 0a4.2 4.2 0 1 0 -8.4 0Z",  # disc
    "M-4.2 0a4.2 4.2 0 1 0 8.4 0a4.2 4.2 0 1 0 -8.4 0Z",
    "M-3.8 -3.8h7.6v7.6h-7.6Z",  # square
    "M0 -5L4.8 3.6H-4.8Z",  # triangle
    "M0 -5.4L5.4 0L0 5.4L-5.4 0Z",  # diamond
    "M0 5L4.8 -3.6H-4.8Z",  # triangle on its head
    "M-1.7 -5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3Z",  # plus
    "M0 -5L4.8 -1.5L3 4.1H-3L-4.8 -1.5Z",  # pentagon
    "M-5 -2.6h10v5.2h-10Z",  # bar
)


def mark(slot: int, x: float, y: float, note: str = "", *, small: bool = False) -> str:
    """The marker of a slot, with a tooltip."""
    scale = " scale(0.8)" if small else ""
    inner = f"<title>{escape(note)}</title>" if note else ""
    return (
        f'<path class="mark s{slot}" transform="translate({x:.1f} {y:.1f}){scale}" d="{_SHAPES[slot % SLOTS]}">{inner}</path>'
    )


def text_width(words: str) -> float:
    """About how wide words come out, in pixels of the drawing; generous, because phones get larger letters."""
    return sum(5.0 if c in "fijlrt.,:;-'|()[] " else 11.0 if c in "mwMW%" else 7.7 for c in words)


def shortened(words: str, width: float) -> str:
    """The words with their middle left out, if they are wider than `width`.

    Example:
        >>> shortened("train-prune-finetune (at_epoch=10)", 120)
        'train-pr…poch=10)'
    """
    kept = len(words)
    short = words
    while text_width(short) > width and kept > 2:
        kept -= 1
        short = f"{words[: kept // 2]}…{words[-(kept - kept // 2) :]}"
    return short


def _legend(series: Sequence[Series]) -> tuple[str, float]:
    """Swatches with labels, broken into lines; and their height."""
    parts, x, line = [], 12.0, 0
    for one in series:
        label = shortened(one.label, WIDTH - 90)
        width = 25 + text_width(label)
        if x > 12 and x + width > WIDTH:
            x, line = 12.0, line + 1
        y = line * _LEGEND_LINE + 12
        swatch = f'<path class="line s{one.slot}" d="M{x:g} {y:g}h20"/>' if one.line and len(one.points) > 1 else ""
        parts.append(swatch + (mark(one.slot, x + 10, y) if one.marks else "") + _text(x + 25, y + 4, label))
        x += width + 9
    return "".join(parts), (line + 1) * _LEGEND_LINE if series else 0.0


def _text(x: float, y: float, words: str, style: str = "") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'
