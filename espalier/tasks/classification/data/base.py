"""What a data set is to the training engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class DataInfo:
    """Facts about a data set; mean and std are per channel, on the 0-1 scale, of the training part."""

    name: str
    num_classes: int
    in_channels: int
    image_size: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sizes: dict[str, int] = field(default_factory=dict)


class Batches(Protocol):
    """One split as batches. Order and augmentation are functions of (seed, epoch, batch index)."""

    def __len__(self) -> int:
        """Batches per epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised float images (B, C, H, W) and int64 labels (B,), from batch ``start`` on."""


@dataclass
class Data:
    """The three splits. ``test`` is for the end of a run only."""

    info: DataInfo
    train: Batches
    val: Batches
    test: Batches
