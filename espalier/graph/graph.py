"""The result of a trace: groups of channels, where they live, what they cost, which integers follow them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espalier.errors import EspalierError
from espalier.graph.extent import Extent, Work
from espalier.graph.kept import Kept
from espalier.graph.kept import Mask as Mask
from espalier.graph.rows import Array

Place = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Member:
    """One dimension of a parameter or buffer that carries channels of a group.

    Attributes:
        name: of the parameter or buffer.
        dim: the dimension.
        index: int64 tensor of the dimension's length: which channel of the group each index belongs to, -1 for none.
    """

    name: str
    dim: int
    index: Tensor


class Group:
    """Channels that can be removed independently of one another, each with every slice that goes with it.

    Groups are compared by identity and stay the same objects when the graph is cut; ``size`` and ``members`` then change.

    Attributes:
        name: where the channels are made, such as ``layer1.0.conv1`` or ``blocks.0.attn.num_heads``.
        reason: why the group cannot be cut; None if it can.
        exact: whether zeroing channels is the same as removing them; not so where a norm or softmax runs over them, or where
            code computes with their number. What code chooses by their number (``if width > 64``) is not seen.
    """

    def __init__(self, graph: ChannelGraph, name: str, size: int, reason: str | None, exact: bool) -> None:
        self.graph, self.name, self.size, self.reason, self.exact = graph, name, size, reason, exact

    @property
    def members(self) -> tuple[Member, ...]:
        """Every dimension of a parameter or buffer that carries these channels."""
        return self.graph.members_of(self)

    def __repr__(self) -> str:
        return f"Group({self.name!r}, size={self.size}" + (f", reason={self.reason!r})" if self.reason else ")")


@dataclass(eq=False)
class Dim:
    """A labelled dimension: index i goes with channel ``channels[i, k]`` of group ``groups[i, k]``, for each k; -1 pads."""

    groups: Array
    channels: Array
    _extents: dict[int, Extent] = field(default_factory=dict)
    _carried: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.groups)

    def alive(self, kept: Sequence[Mask | None] | Kept) -> Mask:
        """Which indices are left when each group keeps the given channels (None: all)."""
        return (kept if isinstance(kept, Kept) else Kept(kept)).of(self.groups, self.channels)

    def _masks(self, kept: Sequence[Mask | None]) -> list[tuple[int, Mask]]:
        """The masks of the few groups that this dimension carries."""
        if self._carried is None:
            self._carried = tuple(np.flatnonzero(np.bincount(self.groups.ravel() + 1)[1:]).tolist())  # without -1
        return [(group, mask) for group in self._carried if group < len(kept) and (mask := kept[group]) is not None]

    def cut(self, alive: Mask, kept: Sequence[Mask | None]) -> None:
        """Forget the removed indices and number the channels anew."""
        groups, channels = self.groups[alive], self.channels[alive].copy()
        for group, mask in self._masks(kept):
            hit = groups == group
            channels[hit] = (np.cumsum(mask) - 1)[channels[hit]]
        self.groups, self.channels = groups, channels
        self._extents.clear()

    def extent(self) -> Extent:
        """The length as a function of group widths."""
        if 0 not in self._extents:
            rows, counts = np.unique(np.sort(self.groups, axis=1), axis=0, return_counts=True)
            terms = tuple(
                (int(count), tuple(g for g in row if g >= 0)) for row, count in zip(rows.tolist(), counts, strict=True)
            )
            self._extents[0] = Extent(terms)
        return self._extents[0]


@dataclass(eq=False)
class Term:
    """Work of one operation, with labelled dimensions."""

    module: str
    op: str
    lengths: tuple[Dim | int, ...]


@dataclass(eq=False)
class Rescale:
    """Parameters that compute the query of an attention scaled by 1 / sqrt(width): they make good a cut of the width."""

    module: str
    names: tuple[str, ...]
    dims: tuple[int, ...]
    rows: list[Mask]  # per name, along its dimension
    width: Dim


class ChannelGraph:
    """Which channels of a model belong together; made by ``trace``, kept up to date by ``cut``.

    Attributes:
        groups: channels that can be cut, in the order in which the forward pass meets them.
        frozen: channels that cannot, with reasons.
        version: grows with every cut.
        element_size: bytes of an element of the traced weights.
        notes: what the trace could not do, in sentences.
    """

    def __init__(self) -> None:
        self.groups: tuple[Group, ...] = ()
        self.frozen: tuple[Group, ...] = ()
        self.version = 0
        self.element_size = 4
        self.notes: list[str] = []
        self.tensors: dict[str, tuple[Dim | int, ...]] = {}
        self.buffers: frozenset[str] = frozenset()
        self.attributes: dict[str, Dim] = {}
        self.rescales: list[Rescale] = []
        self._work: list[Term] = []
        self._activations: list[Term] = []
        self._cache: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"ChannelGraph({len(self.groups)} groups, {len(self.frozen)} frozen)"

    def group(self, name: str) -> Group:
        """The group of a name.

        Raises:
            EspalierError: if there is none.
        """
        for group in (*self.groups, *self.frozen):
            if group.name == name:
                return group
        raise EspalierError(
            f"The graph has no group {name!r}; it has {', '.join(group.name for group in self.groups[:8])}, ..."
        )

    # -- where groups live, what they cost ----------------------------------------------------------------------

    def members_of(self, group: Group) -> tuple[Member, ...]:
        """Every dimension of a parameter or buffer that carries channels of a group."""
        return self._cached("members", self._members).get(group, ())  # type: ignore[no-any-return]

    def _members(self) -> dict[Group, tuple[Member, ...]]:
        every = (*self.groups, *self.frozen)
        found: dict[Group, list[Member]] = {}
        for name, dims in self.tensors.items():
            for dim, label in enumerate(dims):
                if isinstance(label, Dim):
                    for number in np.unique(label.groups[label.groups >= 0]).tolist():
                        index = np.where(label.groups == number, label.channels, -1).max(1)
                        found.setdefault(every[number], []).append(Member(name, dim, torch.from_numpy(index)))
        return {group: tuple(members) for group, members in found.items()}

    @property
    def work(self) -> tuple[Work, ...]:
        """Operations that FLOP counters count."""
        return self._cached("work", lambda: tuple(map(self._as_work, self._work)))  # type: ignore[no-any-return]

    @property
    def activations(self) -> tuple[Work, ...]:
        """Results that take memory of their own."""
        return self._cached("activations", lambda: tuple(map(self._as_work, self._activations)))  # type: ignore[no-any-return]

    @property
    def weights(self) -> Mapping[str, tuple[Extent, ...]]:
        """Lengths of the dimensions of every parameter."""
        return self._cached("weights", self._weights)  # type: ignore[no-any-return]

    def _weights(self) -> dict[str, tuple[Extent, ...]]:
        return {name: tuple(map(self._extent, dims)) for name, dims in self.tensors.items() if name not in self.buffers}

    def _as_work(self, term: Term) -> Work:
        return Work(term.module, term.op, tuple(map(self._extent, term.lengths)))

    def _extent(self, length: Dim | int) -> Extent:
        if isinstance(length, int):
            return Extent.fixed(length)
        terms: dict[tuple[int, ...], int] = {}
        for count, groups in length.extent().terms:
            free = tuple(group for group in groups if group < len(self.groups))
            terms[free] = terms.get(free, 0) + count
        return Extent(tuple((count, groups) for groups, count in terms.items()))

    def _cached(self, key: str, make: Any) -> Any:
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    # -- cutting -------------------------------------------------------------------------------------------------

    def masks(self, keep: Mapping[Group, Any]) -> list[Mask | None]:
        """Checked kept channels, as one mask per group of the graph (None: all are kept).

        Raises:
            EspalierError: for groups of another graph, frozen groups, and channels that are not there.
        """
        numbers = {group: number for number, group in enumerate(self.groups)}
        kept: list[Mask | None] = [None] * len(self.groups)
        for group, channels in keep.items():
            if group not in numbers:
                reason = getattr(group, "reason", None)
                why = f"it is frozen: {reason}" if reason else "it is no group of this graph; take groups from graph.groups"
                raise EspalierError(f"The group {getattr(group, 'name', group)!r} cannot be cut: {why}.")
            mask = _mask(group, channels)
            kept[numbers[group]] = None if mask.all() else mask
        return kept

    def plan(self, kept: Sequence[Mask | None]) -> dict[Place, tuple[int, ...]]:
        """Kept indices of every dimension that becomes shorter."""
        return {place: tuple(np.flatnonzero(alive).tolist()) for place, alive in self.left(kept).items()}

    def left(self, kept: Sequence[Mask | None]) -> dict[Place, Mask]:
        """Which indices are left of every dimension that becomes shorter."""
        every = {id(label): label for dims in self.tensors.values() for label in dims if isinstance(label, Dim)}
        alive = Kept(kept).of_each([(label.groups, label.channels) for label in every.values()])
        shorter = {number: mask for number, mask in zip(every, alive, strict=True) if not mask.all()}
        return {
            (name, dim): shorter[id(label)]
            for name, dims in self.tensors.items()
            for dim, label in enumerate(dims)
            if id(label) in shorter
        }

    def integers(self, kept: Sequence[Mask | None]) -> dict[str, int]:
        """New values of the integers that modules keep, where they change."""
        every = {id(dim): dim for dim in self.attributes.values()}
        alive = Kept(kept).of_each([(dim.groups, dim.channels) for dim in every.values()])
        left = {number: int(np.count_nonzero(mask)) for number, mask in zip(every, alive, strict=True)}
        return {path: left[id(dim)] for path, dim in self.attributes.items() if left[id(dim)] != len(dim)}

    def narrow(self, kept: Sequence[Mask | None]) -> None:
        """Bring the graph up to date after a cut."""
        masks = Kept(kept)
        alive = {id(dim): dim.alive(masks) for dim in self._every_dim()}
        for rescale in self.rescales:
            rescale.rows = [
                rows[alive[id(label)]] if isinstance(label := self.tensors[name][dim], Dim) else rows
                for name, dim, rows in zip(rescale.names, rescale.dims, rescale.rows, strict=True)
            ]
        for dim in self._every_dim():
            dim.cut(alive[id(dim)], kept)
        for group, mask in zip(self.groups, kept, strict=True):
            if mask is not None:
                group.size = int(mask.sum())
        self._cache.clear()
        self.version += 1

    def _every_dim(self) -> Iterable[Dim]:
        seen: dict[int, Dim] = {}
        lengths = (length for term in (*self._work, *self._activations) for length in term.lengths)
        for tensor in (*self.tensors.values(), lengths, self.attributes.values(), [r.width for r in self.rescales]):
            for dim in tensor:
                if isinstance(dim, Dim):
                    seen.setdefault(id(dim), dim)
        return seen.values()


def _mask(group: Group, channels: Any) -> Mask:
    given = channels.detach().cpu().numpy() if isinstance(channels, Tensor) else np.asarray(channels)
    if given.dtype == bool and given.shape == (group.size,):
        mask = given.copy()
    else:
        given = given.astype(int) if given.shape == (0,) else given
        integral = given.ndim == 1 and np.issubdtype(given.dtype, np.integer)
        if not integral or (np.diff(given) <= 0).any() or not ((given >= 0) & (given < group.size)).all():
            raise EspalierError(
                f"What {group.name} keeps must be sorted, distinct channel numbers below {group.size}, or "
                f"{group.size} booleans."
            )
        mask = np.zeros(group.size, dtype=bool)
        mask[given] = True
    if not mask.any():
        raise EspalierError(f"The group {group.name} would lose all {group.size} channels; at least one must stay.")
    return mask
