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

    def of(self, groups: Array, channels: Array) -> Mask:
        """Which indices of a dimension are left: those of which every (group, channel) is kept; both (n, k), padded by -1."""
        group = np.minimum(groups, self._count)
        place = np.where(self._is_cut[group], self._start[group] + channels, -1)
        stays: Mask = self._stays[place]
        every: Mask = stays[:, 0] if stays.shape[1] == 1 else np.logical_and.reduce(stays, axis=1)
        return every
