"""Channels ranked for removal in blocks: the order in which a search takes them away and gives them back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espalier.cost.form import Floats, Ints


@dataclass(frozen=True)
class Blocks:
    """Every block of channels that may go, least worthy first.

    A group's blocks are in the order in which its channels go, so the first k blocks are always a possible removal.

    Attributes:
        group: which group each block belongs to, (blocks,).
        size: channels of each block, (blocks,).
        order: for each group its channels, least worthy first.
    """

    group: Ints
    size: Ints
    order: tuple[Ints, ...]

    def removed(self, count: int, groups: int) -> Ints:
        """Channels that each group has lost when the first ``count`` blocks are gone, (groups,)."""
        return np.bincount(self.group[:count], weights=self.size[:count], minlength=groups).astype(np.int64)


def rank(scores: list[Floats], least: Ints, steps: Ints, *, together: bool) -> Blocks:
    """Cut every group's ranking into blocks, and rank the blocks of all groups.

    Args:
        scores: one (channels,) array per group.
        least: channels that each group must keep, (groups,).
        steps: widths that are multiples of these, and the full one, are allowed, (groups,).
        together: by mean score of a block over all groups; otherwise every group loses the same share.

    Of equal scores the later channel goes first, in the later group.
    """
    order: list[Ints] = []
    keys: list[Floats] = []
    sizes: list[Ints] = []
    for values, floor, step in zip(scores, least.tolist(), steps.tolist(), strict=True):
        width = len(values)
        lasting = min(width, -(-floor // step) * step)
        ends = width - np.arange((width - 1) // step * step, lasting - 1, -step)  # channels gone after each block
        size = np.diff(ends, prepend=0)
        worst_first = np.lexsort((-np.arange(width), values))
        order.append(worst_first)
        sizes.append(size)
        if together and len(ends):
            means = np.add.reduceat(values[worst_first][: ends[-1]], ends - size) / size
            keys.append(np.maximum.accumulate(means))  # rounding must not turn the order within a group
        else:
            keys.append((ends - size / 2) / width)
    group = np.repeat(np.arange(len(scores)), [len(size) for size in sizes])
    within = np.concatenate([np.arange(len(size)) for size in sizes])
    ranked = np.lexsort((within, -group, np.concatenate(keys)))
    return Blocks(group[ranked], np.concatenate(sizes)[ranked], tuple(order))
