"""A model as a row of boxes: one for each layer, as high as it has channels, in the colour and with the number of its group."""

from __future__ import annotations

from html import escape

from espalier.report.inspection import Inspection, LayerRow
from espalier.report.svg import SLOTS, WIDTH, text_width

_LEFT, _RIGHT, _TOP = 12.0, 388.0, 62.0
_TALL = 84.0  # of the widest layer
_PITCH, _BOX = 21.0, 17.0
_LINE = _TALL + 58.0
_LEAST = 1.5  # what a narrow layer still shows
_PER_LINE = int((_RIGHT - _LEFT) // _PITCH)


def draw_model(found: Inspection, css: str = "") -> str:
    """The drawing as one `<svg>` element.

    Args:
        found: what to draw.
        css: style rules to put inside, for a drawing that stands alone as a file.
    """
    lines = [found.layers[start : start + _PER_LINE] for start in range(0, len(found.layers), _PER_LINE)]
    height = _TOP + _LINE * len(lines) + 4
    size = f'width="{1.4 * WIDTH:g}" height="{1.4 * height:g}" ' if css else ""
    widest = max((layer.width for layer in found.layers), default=1)
    frozen = sum(layer.group is None for layer in found.layers)
    words = f"{len(found.layers)} layers, {len(found.groups)} groups of channels, {frozen} frozen"
    parts = [
        f'<svg class="plot" xmlns="http://www.w3.org/2000/svg" {size}viewBox="0 0 {WIDTH:g} {height:g}" role="img" '
        f'aria-label="{escape(found.model)}: {escape(words)}">',
    ]
    if css:
        parts.append(f'<style>{css}</style><rect class="card" width="{WIDTH:g}" height="{height:g}" rx="8"/>')
    parts.append(_text(_LEFT, 20, found.model, "title"))
    parts.append(_text(_LEFT, 37, words, "soft"))
    parts.append(_text(_LEFT, 53, f"height: channels, up to {widest}; number: group; grey: frozen", "soft"))
    stage = None
    for number, line in enumerate(lines):
        bottom = _TOP + _LINE * number + _TALL + 12
        parts.append(f'<path class="axis" d="M{_LEFT:g} {bottom:g}H{_LEFT + _PITCH * len(line):g}"/>')
        free = _LEFT
        for place, layer in enumerate(line):
            x = _LEFT + _PITCH * place
            parts.append(_box(layer, x, bottom, widest))
            here = layer.name.partition(".")[0]
            if here != stage and x >= free:
                parts.append(_text(x, bottom + 34, here, "soft"))
                stage, free = here, x + text_width(here) + 6
    parts.append("</svg>")
    return "\n".join(parts)


def _box(layer: LayerRow, x: float, bottom: float, widest: int) -> str:
    """The box with its tooltip, and below it the number of the group; a dash where it is frozen."""
    tall = max(_LEAST, _TALL * layer.width / widest)
    if layer.group is None:
        slot, number, words = 0, "–", f"frozen: {layer.reason}"
    else:
        slot, number = 1 + layer.group % (SLOTS - 1), str(layer.group + 1)
        words = f"group {number}, {layer.reason}"
    note = escape(f"{layer.name} ({layer.op}), {layer.width} channels, {words}")
    return (
        f'<path class="mark s{slot}" d="M{x:.1f} {bottom:.1f}v{-tall:.1f}h{_BOX:g}v{tall:.1f}Z"><title>{note}</title></path>'
        f"{_text(x + _BOX / 2, bottom + 15, number, 'soft mid')}"
    )


def _text(x: float, y: float, words: str, style: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'
