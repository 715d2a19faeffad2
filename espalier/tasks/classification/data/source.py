"""Decoded data sets: uint8 tensors and labels, split and measured the same way whatever they came from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SPLIT_SEED = 20220101  # the splits are the same for every run and seed

Arrays = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Source:
    """A decoded data set: uint8 images (N, C, H, W) and int64 labels (N,) of its training and test part."""

    name: str
    class_names: tuple[str, ...]
    train: Arrays
    test: Arrays


def split_off(labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Indices of the rest and of a fixed, stratified ``share``, both in rising order.

    Every class gives round(share x its size) of its images, chosen by a permutation that never changes.
    """
    chosen = []
    for label in labels.unique().tolist():
        members = torch.nonzero(labels == label).squeeze(1)
        order = torch.randperm(len(members), generator=torch.Generator().manual_seed(SPLIT_SEED + label))
        chosen.append(members[order[: round(share * len(members))]])
    part = torch.cat(chosen).sort().values
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[part] = False
    return torch.nonzero(rest).squeeze(1), part


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel on the 0-1 scale, to 4 decimals, by exact integer sums."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].reshape(-1).cpu(), minlength=256).double()
        share = counts / counts.sum()
        mean = float((share * values).sum())
        means.append(round(mean, 4))
        stds.append(round(max(float((share * (values - mean) ** 2).sum()) ** 0.5, 1e-4), 4))
    return tuple(means), tuple(stds)
