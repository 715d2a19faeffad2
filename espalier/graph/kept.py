"""Kept channels of all groups in one row, so that those of a dimension are looked up in one go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from espalier.graph.rows import Array

Mask = NDArray[np.bool_]


class Kept:
    """Which channels stay.

    Args:
        masks: one per group; None where all stay. Groups past the end, the frozen ones, stay too.
    """

    def __init__(self, masks: Sequence[Mask | None]) -> None:
        sizes = [0 if mask is None else len(mask) for mask in masks]
        self._count = len(masks)
        self._start = np.cumsum([0, *sizes])
        self._is_cut = np.array([*(mask is not None for mask in masks), False])  # the last place: padding, frozen groups
        self._stays = np.concatenate([*(mask for mask in masks if mask is not None), [True]])

    def of_each(self, dims: Sequence[tuple[Array, Array]]) -> list[Mask]:
        """``of`` for many dimensions: those of equal width are looked up together."""
        found: dict[int, Mask] = {}
        for width in {groups.shape[1] for groups, _ in dims}:
            places = [place for place, (groups, _) in enumerate(dims) if groups.shape[1] == width]
            groups, channels = (np.concatenate([dims[place][side] for place in places]) for side in (0, 1))
            ends = np.cumsum([len(dims[place][0]) for place in places]).tolist()
            alive = self.of(groups, channels)
            found.update((place, alive[start:end]) for place, start, end in zip(places, [0, *ends], ends, strict=False))
        return [found[place] for place in range(len(dims))]

    def of(self, groups: Array, channels: Array) -> Mask:
        """Which indices of a dimension are left: those of which every (group, channel) is kept; both (n, k), padded by -1."""
        group = np.minimum(groups, self._count)
        place = np.where(self._is_cut[group], self._start[group] + channels, -1)
        stays: Mask = self._stays[place]
        every: Mask = stays[:, 0] if stays.shape[1] == 1 else np.logical_and.reduce(stays, axis=1)
        return every
