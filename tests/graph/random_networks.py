"""Random networks: DAGs of the steps in ``steps.py``, small enough to trace and cut hundreds of them in a test."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from tests.graph import steps, token_steps
from tests.graph.steps import Network, Step

PIXELS = 8
WIDTHS = (4, 6, 8, 9, 12, 16, 20, 24)
MOST = 48  # channels of one value: sums and concatenations of steps don't grow beyond

Value = tuple[int, int]  # channels, pixels per side
Made = tuple[Step, Value]


@dataclass(frozen=True)
class Choice:
    """One step to try: what cannot follow is left out."""

    kind: str
    one: int
    two: int


def _width(number: int, of: int = 1) -> int:
    """A width that is a multiple of ``of``."""
    return max(1, WIDTHS[number % len(WIDTHS)] // of) * of


def _groups(number: int, *widths: int) -> int:
    """A divisor of all widths, as large as a few groups and not one per channel."""
    found = [n for n in (2, 3, 4) if all(width % n == 0 and width // n > 1 for width in widths)]
    return found[number % len(found)] if found else 1


def _conv(value: Value, a: int, b: int) -> Made:
    width, side = value
    kernel, out = (1, 3)[a % 2], _width(b)
    kind = steps.NORMS[b % 5]
    norm_groups = _groups(a, out)
    return steps.Conv(width, out, kernel, 1, 1, a % 3 > 0, kind, norm_groups, tuple(steps.SMOOTH)[a % 4]), (out, side)


def _strided(value: Value, a: int, b: int) -> Made | None:
    width, side = value
    kind = "batch" if a % 2 else "none"
    return (steps.Conv(width, _width(b), 3, 2, 1, True, kind), (_width(b), side // 2)) if side % 4 == 0 else None


def _grouped(value: Value, a: int, b: int) -> Made | None:
    width, side = value
    groups = _groups(a, width)
    out = _width(b, groups)
    return (steps.Conv(width, out, 3, 1, groups, a % 2 > 0, "batch"), (out, side)) if groups > 1 else None


def _depthwise(value: Value, a: int, b: int) -> Made | None:
    width, side = value
    out = width * (1 + b % 2)
    return (steps.Conv(width, out, 3, 1, width, a % 2 > 0, ("batch", "none")[a % 2]), (out, side)) if out <= MOST else None


def _transposed(value: Value, a: int, b: int) -> Made | None:
    width, side = value
    groups = _groups(a, width) if a % 2 else 1
    out = _width(b, groups)
    made = steps.Conv(width, out, 2, 2, groups, b % 2 > 0, "batch", act="silu", transposed=True)
    return (made, (out, 2 * side)) if side < PIXELS else None


def _split_cat(value: Value, a: int, b: int) -> Made | None:
    width, side = value
    first, out = 1 + a % (width - 1), _width(b)
    return (steps.SplitCat(width, first, out), (out + width - first, side)) if out + width - first <= MOST else None


def _shuffle(value: Value, a: int, b: int) -> Made | None:
    groups = _groups(a, value[0])
    return (steps.Shuffle(groups, b % 2 > 0), value) if groups > 1 else None


def _pixel_up(value: Value, a: int, b: int) -> Made | None:
    return (steps.PixelUp(value[0], _width(b)), (_width(b), 2 * value[1])) if value[1] < PIXELS else None


def _pixel_down(value: Value, a: int, b: int) -> Made | None:
    return (steps.PixelDown(value[0], _width(b), a % 2 > 0), (_width(b), value[1] // 2)) if value[1] % 4 == 0 else None


def _padded(value: Value, a: int, b: int) -> Made | None:
    more = 2 + a % 5
    return (steps.PaddedShortcut(value[0], more), (value[0] + more, value[1] // 2)) if value[1] % 4 == 0 else None


def _pool(value: Value, a: int, b: int) -> Made:
    kind = ("average", "resized", "max", "adaptive")[a % 4 if value[1] % 4 == 0 else 0]
    return steps.Pool(kind), (value[0], value[1] // 2 if kind in ("max", "adaptive") else value[1])


def _fused_attention(value: Value, a: int, b: int) -> Made:
    spelling, each = token_steps.FusedAttention.SPELLINGS[a % 5], 2 + b % 5
    own = 2 + b % 4 if spelling == "sizes" else each
    return token_steps.FusedAttention(value[0], 1 + a % 4, each, own, spelling), value


def _attention(value: Value, a: int, b: int) -> Made:
    scale = (None, 0.3, 0.5)[a % 3]
    return token_steps.Attention(value[0], 1 + a % 4, 2 + b % 5, 2 + b % 4, scale, b % 2 > 0), value


def _torch_attention(value: Value, a: int, b: int) -> Made | None:
    groups = _groups(a, value[0])
    return (token_steps.TorchAttention(value[0], groups, b % 2 > 0), value) if groups > 1 else None


KINDS: dict[str, Callable[[Value, int, int], Made | None]] = {
    "conv": _conv,
    "strided": _strided,
    "grouped": _grouped,
    "depthwise": _depthwise,
    "transposed": _transposed,
    "residual": lambda v, a, b: (steps.Residual(v[0], _width(a)), v),
    "tied": lambda v, a, b: (steps.Tied(v[0]), v),
    "squeeze excite": lambda v, a, b: (steps.SqueezeExcite(v[0], _width(a), b % 2 > 0), v),
    "chunk gate": lambda v, a, b: (steps.ChunkGate(v[0], _width(a), _width(b), b % 2 > 0), (_width(b), v[1])),
    "split cat": _split_cat,
    "pieces": lambda v, a, b: (steps.SliceAdd(v[0], 2 + a % 3, 2 + b % 5, 2 + b % 5), v),
    "shuffle": _shuffle,
    "pixel up": _pixel_up,
    "pixel down": _pixel_down,
    "padded shortcut": _padded,
    "pool": _pool,
    "scaled": lambda v, a, b: (steps.Scaled(v[0], _width(a)), (_width(a), v[1])),
    "spatial gate": lambda v, a, b: (steps.SpatialGate(a % 2 > 0), v),
    "mlp": lambda v, a, b: (token_steps.Mlp(v[0], _width(a), b % 2 > 0, b % 4 > 1), v),
    "token mixer": lambda v, a, b: (token_steps.TokenMixer(v[0], v[1] ** 2, _width(a)), v) if v[1] <= 4 else None,
    "fused attention": _fused_attention,
    "attention": _attention,
    "torch attention": _torch_attention,
    "channel attention": lambda v, a, b: (token_steps.ChannelAttention(v[0], 1 + a % 3, 2 + b % 5), v),
}
JOINS = ("add", "mul", "cat")


def build(choices: list[Choice], stem: int = 8, classes: int = 5, flat: bool = False) -> Network:
    """A network of a stem, what can follow of the choices, and a head."""
    made: list[Step] = [steps.Conv(3, stem, 3, 1, 1, True, "batch")]
    values: list[Value] = [(3, PIXELS), (stem, PIXELS)]
    sources = ["0"]
    for choice in choices:
        if choice.kind in JOINS:
            partners = [place for place, value in enumerate(values[:-1]) if place and _joins(choice.kind, values[-1], value)]
            if not partners:
                continue
            partner = partners[choice.one % len(partners)]
            step: Step = steps.Join(choice.kind)
            value = (values[-1][0] + (values[partner][0] if choice.kind == "cat" else 0), values[-1][1])
            source = f"{len(values) - 1},{partner}"
        else:
            found = KINDS[choice.kind](values[-1], choice.one, choice.two)
            if found is None:
                continue
            (step, value), source = found, str(len(values) - 1)
        made.append(step)
        values.append(value)
        sources.append(source)
    width, side = values[-1]
    net = Network([*made, steps.Head(width, side**2, classes, flat)], [*sources, str(len(values) - 1)])
    _lively(net)
    return net


def _joins(how: str, one: Value, two: Value) -> bool:
    return one[1] == two[1] and (one[0] + two[0] <= MOST if how == "cat" else one[0] == two[0])


@torch.no_grad()
def _lively(net: Network) -> None:
    """No weight or statistic is zero or one, and values stay of size one through any depth."""
    for name, parameter in net.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 1 / math.sqrt(max(1, parameter[0].numel())))
        else:
            parameter.uniform_(0.5, 1.5) if name.endswith("weight") else parameter.uniform_(-0.5, 0.5)
    for name, buffer in net.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5) if name.endswith("var") else buffer.uniform_(-0.5, 0.5)


@dataclass(frozen=True)
class Drawn:
    """What hypothesis draws: steps, and how to cut."""

    choices: tuple[Choice, ...]
    stem: int
    flat: bool
    channels_last: bool
    seed: int

    def network(self) -> Network:
        """The network, with weights of its seed."""
        torch.manual_seed(self.seed)
        net = build(list(self.choices), self.stem, flat=self.flat)
        return net.to(memory_format=torch.channels_last) if self.channels_last else net


_choices = st.builds(Choice, st.sampled_from([*KINDS, *JOINS]), st.integers(0, 23), st.integers(0, 23))

drawn = st.builds(
    Drawn,
    st.lists(_choices, min_size=2, max_size=7).map(tuple),
    st.sampled_from(WIDTHS),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**16),
)
