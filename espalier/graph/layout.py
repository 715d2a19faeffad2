"""All channels of some groups in one row: sums over everything that goes with each of them, a few calls for all groups.

``scores`` does the same for one group at a time. Here one ``index_add_`` serves all of them, so that it can be done at every
step of a training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from espalier.errors import EspalierError
from espalier.graph.graph import Group, Member

Place = tuple[str, int]  # name of a parameter or buffer, one of its dimensions


@dataclass(frozen=True, eq=False)
class Places:
    """Where the channels of a layout live, for some of the parameters.

    Attributes:
        keys: the distinct places.
        members: for each member of a group that lives in them: which key.
        lengths: and how many entries it has.
        index: positions in the row, of the entries of all members one after the other; the row's length stands for "none".
        counts: of the same shape: how many values the channel has in this member.
        carriers: for each position of the row, how many members carry it.
    """

    keys: tuple[Place, ...]
    members: tuple[int, ...]
    lengths: tuple[int, ...]
    index: Tensor
    counts: Tensor
    carriers: Tensor

    def to(self, device: torch.device) -> Places:
        """The same on another device."""
        moved = (tensor.to(device) for tensor in (self.index, self.counts, self.carriers))
        return Places(self.keys, self.members, self.lengths, *moved)

    def gather(self, vectors: Sequence[Tensor], weights: Tensor | None = None) -> Tensor:
        """One vector for each key, of its dimension's length -> (row,) sums, each entry weighted."""
        entries = torch.cat([vectors[key] for key in self.members])
        if weights is not None:
            entries = entries * weights
        bins = entries.new_zeros(len(self.carriers) + 1)
        return bins.index_add_(0, self.index, entries)[:-1]

    def gather_apart(self, vectors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """As ``gather``, but every member for itself: sums and how many values they are of, both (members, row)."""
        width = len(self.carriers) + 1
        owners = [torch.full((length,), k * width) for k, length in enumerate(self.lengths)]
        index = self.index + torch.cat(owners).to(self.index.device)
        entries = torch.cat([vectors[key] for key in self.members])
        sums = entries.new_zeros(len(self.members) * width).index_add_(0, index, entries)
        counts = self.counts.new_zeros(len(self.members) * width).index_copy_(0, index, self.counts)
        return sums.view(-1, width)[:, :-1], counts.view(-1, width)[:, :-1]

    def spread(self, row: Tensor) -> dict[Place, Tensor]:
        """(row,) -> for each key a vector of its dimension's length: the sum over its members of what their channels have."""
        padded = torch.cat((row, row.new_zeros(1)))
        spread: dict[Place, Tensor] = {}
        for key, index in zip(self.members, torch.split(self.index, list(self.lengths)), strict=True):
            place = self.keys[key]
            spread[place] = padded[index] if place not in spread else spread[place] + padded[index]
        return spread


class Layout:
    """The channels of ``groups``, group after group, as positions of one row.

    Good until the graph is cut; then make a new one.

    Attributes:
        groups: the groups.
        sizes: their channels.
        total: length of the row.
    """

    def __init__(self, groups: Iterable[Group]) -> None:
        self.groups = tuple(groups)
        self.sizes = tuple(group.size for group in self.groups)
        self.total = sum(self.sizes)
        if not self.total:
            raise EspalierError("A layout needs at least one group of channels.")
        self._members: list[tuple[Group, Member, Tensor]] = []
        start = 0
        for group in self.groups:
            for member in group.members:
                self._members.append((group, member, torch.where(member.index < 0, self.total, member.index + start)))
            start += group.size

    def split(self, row: Tensor) -> dict[Group, Tensor]:
        """(total,) -> (size,) for each group."""
        return dict(zip(self.groups, torch.split(row, list(self.sizes)), strict=True))

    def join(self, parts: Mapping[Group, Tensor]) -> Tensor:
        """(size,) for each group -> (total,)."""
        return torch.cat([parts[group] for group in self.groups])

    def names(self) -> list[str]:
        """Parameters and buffers that carry the channels."""
        return list(dict.fromkeys(member.name for _, member, _ in self._members))

    def places(self, tensors: Mapping[str, Tensor], wanted: Callable[[Group, Member], bool]) -> Places:
        """Where the channels live in the tensors that are wanted.

        Args:
            tensors: parameters or buffers by name; members in others are passed over.
            wanted: whether a member of a group counts.

        Raises:
            EspalierError: if none does.
        """
        keys: dict[Place, int] = {}
        members: list[int] = []
        indices: list[Tensor] = []
        counts: list[Tensor] = []
        carriers = torch.zeros(self.total + 1)
        for group, member, index in self._members:
            if member.name not in tensors or not wanted(group, member):
                continue
            members.append(keys.setdefault((member.name, member.dim), len(keys)))
            times = torch.bincount(index, minlength=self.total + 1).float()
            others = tensors[member.name].numel() / max(len(index), 1)
            indices.append(index)
            counts.append(times[index] * others)
            carriers += times > 0
        if not members:
            raise EspalierError("None of the parameters that the scores are made of carries a channel of a group.")
        lengths = tuple(len(index) for index in indices)
        return Places(tuple(keys), tuple(members), lengths, torch.cat(indices), torch.cat(counts), carriers[:-1])
