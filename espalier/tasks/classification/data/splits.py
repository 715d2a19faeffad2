"""Splits that never change: the same images are held out for every run, method and seed."""

from __future__ import annotations

import torch
from torch import Tensor

SPLIT_SEED = 20220101


def split_off(labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Indices of the rest and of a fixed, stratified ``share``, both in rising order.

    Every class gives round(share x its size) of its images, chosen by a permutation that never changes.

    Example:
        >>> rest, part = split_off(torch.tensor([0, 1, 0, 1, 0, 1, 0, 1]), 0.25)
        >>> len(rest), len(part)
        (6, 2)
    """
    chosen = [torch.zeros(0, dtype=torch.int64)]
    for label in torch.unique(labels).tolist():
        members = torch.nonzero(labels == label).squeeze(1)
        order = torch.randperm(len(members), generator=torch.Generator().manual_seed(SPLIT_SEED + label))
        chosen.append(members[order[: round(share * len(members))]])
    part = torch.cat(chosen).sort().values
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[part] = False
    return torch.nonzero(rest).squeeze(1), part
