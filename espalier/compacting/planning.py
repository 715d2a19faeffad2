"""From a traced model to what can be removed: rounds of reading, deciding and folding on stand-ins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from espalier.compacting.deciding import decide, parts_of
from espalier.compacting.readings import Flags, Reading
from espalier.compacting.results import Kept
from espalier.compacting.standins import StandIn
from espalier.graph.graph import ChannelGraph, Dim, Group, Mask

INEXACT = "a norm, softmax or mean runs over these channels, and would change"
MULTIPLIED = "these channels are multiplied with those of another tensor"
UNSEEN = "no layer with weights reads these channels"
ELSEWHERE = "other layers or operations write to these channels too"
BRANCHES = "the model's code takes single values out of tensors (item, bool), and may do something else for other inputs"


class Plan:
    """What can be removed from a model and its followers, worked out on stand-ins.

    Args:
        graph: of the model.
        standins: of the model, and of each follower.
        call: positional and keyword arguments of one forward pass.

    Attributes:
        gone: per group, which channels are removed.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        standins: Sequence[StandIn],
        call: tuple[Sequence[Any], Mapping[str, Any]],
    ) -> None:
        self.graph, self.standins, self.call = graph, standins, call
        self.gone: list[Flags] = [np.zeros(group.size, dtype=bool) for group in graph.groups]
        self.reasons: dict[Group, dict[int, str]] = {}
        self.zero_rows: dict[Group, Flags] = {}
        self.multiplied = {number for work in graph.work if work.op in ("bmm", "baddbmm") for number in work.extents[-1].groups}

    @property
    def kept(self) -> list[Mask | None]:
        """Kept channels per group, None where all are."""
        return [None if not gone.any() else ~gone for gone in self.gone]

    def make(self, groups: Sequence[int]) -> None:
        """Remove what can go from these groups, until nothing more can."""
        rounds = 0
        while self._round(groups, first=rounds == 0):
            rounds += 1

    def _round(self, groups: Sequence[int], *, first: bool) -> bool:
        readings, unclear, branches = [], set[str](), False
        for standin in self.standins:
            found, seen = standin.read(*self.call)
            readings.append(found)
            unclear |= seen.unclear
            branches |= seen.branches
        if first:
            self._note_zero_rows(readings[0])
        verdicts = {}
        for number in groups:
            group, parts = self.graph.groups[number], parts_of(self.graph, number, readings)
            obstacle = self._obstacle(group, number, unclear) or (BRANCHES if branches else None if parts else UNSEEN)
            if obstacle is not None:
                zero = np.flatnonzero(self.zero_rows.get(group, np.zeros(0, dtype=bool))).tolist()
                self.reasons[group] = dict.fromkeys(zero, obstacle)
                continue
            verdict = decide(parts, group.size, self.gone[number])
            known = self.reasons.setdefault(group, {})
            self.reasons[group] = {**verdict.reasons, **known}
            if verdict.remove.any():
                verdicts[number] = verdict
        for place, standin in enumerate(self.standins):
            done: set[tuple[str, int]] = set()
            for verdict in verdicts.values():
                standin.fold(place, verdict, done)
        for number, verdict in verdicts.items():
            self.gone[number] |= verdict.remove
        for standin in self.standins:
            standin.zero(self.graph, self.kept)
        return bool(verdicts)

    def _obstacle(self, group: Group, number: int, unclear: set[str]) -> str | None:
        if not group.exact:
            return INEXACT
        if number in self.multiplied:
            return MULTIPLIED
        for member in group.members:
            if member.name in unclear:
                return f"{member.name} is used through a view or a computation that compact does not follow"
        return None

    def _note_zero_rows(self, readings: Sequence[Reading]) -> None:
        """Channels that some layer writes with weights that are all zero: what a user expects to go."""
        every = (*self.graph.groups, *self.graph.frozen)
        for reading in readings:
            dim, weight = 1 - reading.dim, self.standins[0].tensors[reading.weight]
            label = self.graph.tensors[reading.weight][dim]
            if not isinstance(label, Dim):
                continue
            zero = ~(weight != 0).movedim(dim, 0).flatten(1).any(1).cpu().numpy()
            for number in np.unique(label.groups[label.groups >= 0]).tolist():
                group = every[number]
                rows, columns = np.nonzero(label.groups == number)
                whole = np.ones(group.size, dtype=bool)
                np.logical_and.at(whole, label.channels[rows, columns], zero[rows])
                present = np.isin(np.arange(group.size), label.channels[rows, columns])
                self.zero_rows.setdefault(group, np.zeros(group.size, dtype=bool))
                self.zero_rows[group] |= whole & present

    def why_kept(self) -> tuple[Kept, ...]:
        """Dead channels that stay, by reason."""
        found = []
        gone = dict(zip(self.graph.groups, self.gone, strict=True))
        for group in (*self.graph.groups, *self.graph.frozen):
            why = dict(self.reasons.get(group, {}))
            for channel in np.flatnonzero(self.zero_rows.get(group, np.zeros(0, dtype=bool))).tolist():
                why.setdefault(channel, ELSEWHERE if group.reason is None else group.reason)
            by_reason: dict[str, list[int]] = {}
            for channel, reason in sorted(why.items()):
                if group not in gone or not gone[group][channel]:
                    by_reason.setdefault(reason, []).append(channel)
            found += [Kept(group.name, tuple(channels), reason) for reason, channels in by_reason.items()]
        return tuple(found)
