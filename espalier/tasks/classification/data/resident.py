"""Data that stays on the device: uint8 images, cut into batches, augmented and normalised there.

The order of an epoch is one permutation drawn from (seed, epoch); the augmentation of a batch is drawn from (seed, epoch,
batch). So an epoch can be entered at any batch, and no batch waits for the host.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from espalier.tasks.classification.data.augment import Augment

PRIME = 1_000_003


def generator_for(*numbers: int) -> torch.Generator:
    """A generator whose stream depends on all numbers and on their order."""
    seed = 0
    for number in numbers:
        seed = (seed * PRIME + number + 1) % (2**63 - 25)
    return torch.Generator().manual_seed(seed)


class ResidentBatches:
    """Batches of a uint8 tensor (N, C, H, W) on the device.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        mean: per channel, 0-1 scale.
        std: per channel, 0-1 scale.
        batch_size: images a batch, of this rank.
        seed: seed of order and augmentation.
        augment: None for evaluation: natural order, last batch may be smaller.
        channels_last: memory format of the batches.
        rank: this process, of ``world``; each takes its part of every global batch.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        batch_size: int,
        seed: int = 0,
        augment: Augment | None = None,
        channels_last: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.images, self.labels = images, labels
        scale = 255.0 * torch.tensor(std, device=images.device).view(1, -1, 1, 1)
        self.shift, self.scale = torch.tensor(mean, device=images.device).view(1, -1, 1, 1) * 255.0, 1.0 / scale
        self.batch_size, self.seed, self.augment = batch_size, seed, augment
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        step = self.batch_size * self.world
        return len(self.labels) // step if self.augment is not None else -(-len(self.labels) // step)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches ``start`` to the last of one epoch."""
        order = self._order(epoch)
        step = self.batch_size * self.world
        for index in range(start, len(self)):
            first = index * step + self.rank * self.batch_size
            chosen = order[first : min(first + self.batch_size, (index + 1) * step)]
            images = self.images[chosen]
            if self.augment is not None:
                images = self.augment(images, generator_for(self.seed, epoch, index, self.rank))
            yield self._normalised(images), self.labels[chosen]

    def _order(self, epoch: int) -> Tensor:
        if self.augment is None:
            return torch.arange(len(self.labels), device=self.images.device)
        order = torch.randperm(len(self.labels), generator=generator_for(self.seed, epoch))
        return order.to(self.images.device, non_blocking=True)

    def _normalised(self, images: Tensor) -> Tensor:
        floats = images.to(torch.float32, memory_format=self.memory_format)
        return floats.sub_(self.shift).mul_(self.scale)
