"""What ``compact`` did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from espalier.cost.costs import short

SHOWN = 8  # groups and reasons in str()


@dataclass(frozen=True)
class Kept:
    """Channels that are dead or constant, wholly or in one of their layers, and stay all the same.

    Attributes:
        group: name of their group.
        channels: their numbers in it, as before the cut.
        reason: why they stay.
    """

    group: str
    channels: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Compaction:
    """What ``compact`` removed, what that saves, and what it left.

    Attributes:
        removed: name of a group -> the channels that went, numbered as before.
        kept: dead or constant channels that stay, with reasons.
        params_before, params_after: weights of the model.
        macs_before, macs_after: multiply-accumulates of one pass with the example inputs.

    Example:
        >>> print(Compaction({"conv1": (1, 4)}, (Kept("fc", (0,), "reaches the output"),), 1000, 800, 50_000, 40_000))
        2 channels removed from 1 group: params 1.00 k -> 800, MACs 50.0 k -> 40.0 k
          conv1: 2
        kept in fc: 1 channel, reaches the output
    """

    removed: Mapping[str, tuple[int, ...]]
    kept: tuple[Kept, ...]
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int

    @property
    def channels(self) -> int:
        """How many channels were removed."""
        return sum(map(len, self.removed.values()))

    def __str__(self) -> str:
        """What went, group by group, and why the rest stays."""
        if self.removed:
            lines = [
                f"{_count(self.channels, 'channel')} removed from {_count(len(self.removed), 'group')}: "
                f"params {short(self.params_before)} -> {short(self.params_after)}, "
                f"MACs {short(self.macs_before)} -> {short(self.macs_after)}"
            ]
            lines += _first(
                [f"  {name}: {len(channels)}" for name, channels in self.removed.items()], "  ... and {} groups more"
            )
        else:
            lines = ["nothing removed: " + ("no dead channel can go" if self.kept else "the model has no dead channels")]
        kept = [f"kept in {kept.group}: {_count(len(kept.channels), 'channel')}, {kept.reason}" for kept in self.kept]
        return "\n".join(lines + _first(kept, "... and {} reasons more, see .kept"))


def _first(lines: list[str], rest: str) -> list[str]:
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], rest.format(len(lines) - SHOWN)]


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
