"""Which channels of a group can go, given what every weight reads; and what must be done for the outputs to stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from espalier.compacting.readings import Flags, Reading
from espalier.graph.graph import ChannelGraph, Dim

Index = NDArray[np.int64]


@dataclass(eq=False)
class Part:
    """A weight that reads channels of the group: ``rows[k]`` of its contracted dimension is of channel ``channels[k]``."""

    model: int
    reading: Reading
    rows: Index
    channels: Index

    def flags(self, flags: Flags, size: int) -> Flags:
        """(g, i) of the reading -> (size,): whether any index of a channel has the flag."""
        found = np.zeros(size, dtype=bool)
        np.logical_or.at(found, self.channels, np.any(flags, axis=0)[self.rows])
        return found

    def rows_of(self, channel: int) -> Index:
        """The indices of a channel, in the same order for all channels."""
        return np.sort(self.rows[self.channels == channel])

    @property
    def needs(self) -> Flags:
        """(g, i): inputs with a constant that is not zero, read by weights that are not zero."""
        both: Flags = np.logical_and(self.reading.live, self.reading.value != 0)
        return both


@dataclass
class Verdict:
    """What becomes of the channels of a group.

    Attributes:
        remove: (size,) which go.
        into: channel -> the one that takes over the constant where it cannot be folded.
        reasons: channel -> why it stays though it carries a constant.
        parts: what reads the group.
    """

    remove: Flags
    into: dict[int, int] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)


def parts_of(graph: ChannelGraph, number: int, readings: Sequence[Sequence[Reading]]) -> list[Part]:
    """What reads a group, in all models."""
    found = []
    for model, seen in enumerate(readings):
        for reading in seen:
            label = graph.tensors[reading.weight][reading.dim]
            if isinstance(label, Dim) and (label.groups == number).any():
                rows, columns = np.nonzero(label.groups == number)
                found.append(Part(model, reading, rows, label.channels[rows, columns]))
    return found


def decide(parts: list[Part], size: int, gone: Flags) -> Verdict:
    """What of a group can go.

    Args:
        parts: what reads the group.
        size: its channels.
        gone: channels that went in an earlier round.
    """
    varying, uneven, stuck = (np.zeros(size, dtype=bool) for _ in range(3))
    verdict = Verdict(gone, parts=parts)
    for part in parts:
        reading = part.reading
        name = layer_of(reading.weight)
        varying |= part.flags(reading.live & reading.varying, size)
        here = part.flags(reading.live & reading.uneven, size)
        for channel in np.flatnonzero(here & ~uneven).tolist():
            verdict.reasons[channel] = f"its value is constant but differs from place to place where {name} reads it"
        uneven |= here
        if not reading.targets:
            stuck |= part.flags(part.needs, size)
    dead = ~varying & ~uneven & ~gone
    for channel in np.flatnonzero(varying).tolist():
        verdict.reasons.pop(channel, None)
    verdict.remove = dead & ~stuck
    _merge(verdict, np.flatnonzero(dead & stuck))
    if (verdict.remove | gone).all():
        spared = int(np.flatnonzero(verdict.remove)[0])
        verdict.remove[spared] = False
        verdict.reasons[spared] = "a group keeps at least one channel"
    return verdict


def layer_of(name: str) -> str:
    """The module of a parameter, for messages."""
    return name.rpartition(".")[0] or name


def _merge(verdict: Verdict, channels: Index) -> None:
    """Channels whose constants cannot be folded: one of them does the work of all."""
    if not len(channels):
        return
    parts = [part for part in verdict.parts if not part.reading.targets and part.needs.any()]
    heights = {channel: min(_height(part, channel) for part in parts) for channel in channels.tolist()}
    chosen = max(heights, key=heights.__getitem__)
    for channel in channels.tolist():
        if channel != chosen and all(_fits(part, channel, chosen) for part in parts):
            verdict.remove[channel] = True
            verdict.into[channel] = chosen
    moved = len(verdict.into)
    for channel in set(channels.tolist()) - verdict.into.keys():
        blocking = next(part.reading for part in parts if part.flags(part.needs, len(verdict.remove))[channel])
        verdict.reasons[channel] = f"its constant cannot be folded behind {layer_of(blocking.weight)}, {_why(blocking)}"
    if moved:
        verdict.reasons[chosen] += f"; it took over {moved} other{'s' if moved > 1 else ''}"


def _why(reading: Reading) -> str:
    return "which pads with zeros" if reading.pads else "which has no bias, nor a batch norm of its own behind it"


def _height(part: Part, channel: int) -> float:
    return float(np.abs(part.reading.value[:, part.rows_of(channel)]).min(initial=np.inf))


def _fits(part: Part, channel: int, into: int) -> bool:
    """Whether one channel is a multiple of another wherever this weight reads both."""
    mine, theirs = part.rows_of(channel), part.rows_of(into)
    if len(mine) != len(theirs):
        return False
    return not (part.needs[:, mine] & (part.reading.value[:, theirs] == 0)).any()
