"""Which images make which batch: a function of (seed, epoch, batch index) and of nothing else.

An epoch can so be entered at any batch, and every process knows its part of every batch without asking the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PRIME = 1_000_003


def generator_for(*numbers: int) -> torch.Generator:
    """A generator whose stream depends on all numbers and on their order."""
    seed = 0
    for number in numbers:
        seed = (seed * PRIME + number + 1) % (2**63 - 25)
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Plan:
    """The batches of one split.

    Args:
        images: images in the split.
        batch_size: images a batch, of this process.
        training: shuffled anew each epoch, without a last batch that is not full. Else: natural order, every image once.
        seed: seed of order and augmentation.
        rank: this process, of ``world``; together they take ``world * batch_size`` images a batch.
        world: number of processes.

    Example:
        >>> [Plan(10, 2, training=False, rank=rank, world=2).span(2) for rank in (0, 1)]
        [(8, 9), (9, 10)]
    """

    images: int
    batch_size: int
    training: bool
    seed: int = 0
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        # Every process has the same number of batches, none of them empty: fewer images than processes at the end go
        # to the batch before.
        full, rest = divmod(self.images, self.batch_size * self.world)
        return full + int(not self.training and rest >= self.world)

    def order(self, epoch: int) -> Tensor:
        """Indices of all images (images,), on the CPU, in the order of one epoch."""
        if not self.training:
            return torch.arange(self.images)
        return torch.randperm(self.images, generator=generator_for(self.seed, epoch))

    def span(self, index: int) -> tuple[int, int]:
        """Where in the order this process's part of a batch begins and ends."""
        step = self.batch_size * self.world
        first = index * step
        last = first + step if self.training or index < len(self) - 1 else self.images
        return tuple(first + (last - first) * rank // self.world for rank in (self.rank, self.rank + 1))  # type: ignore[return-value]

    def generator(self, epoch: int, index: int) -> torch.Generator:
        """The random numbers of one batch of this process."""
        return generator_for(self.seed, epoch, index, self.rank)
