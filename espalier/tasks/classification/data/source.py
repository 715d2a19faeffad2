"""What a data set hands over: its training and test part, each either decoded or still encoded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from espalier.errors import EspalierError
from espalier.tasks.classification.data.decode import decode

Arrays = tuple[Tensor, Tensor]
"""Decoded images, uint8 (N, C, H, W), and labels, int64 (N,)."""


class Encoded(ABC):
    """Images as files or bytes, decoded when they are needed.

    Args:
        labels: int64 (N,).
        key: text that changes whenever the content does; the cache of decoded images goes by it.
    """

    def __init__(self, labels: Tensor, key: str) -> None:
        self.labels, self.key = labels, key

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The bytes of one image file."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Where an image lies, for error messages: a file, or a row of a file."""

    def image(self, index: int) -> Image.Image:
        """One image, decoded, in RGB.

        Raises:
            EspalierError: naming the image that cannot be read.
        """
        return decode(self.read(index), self.name(index))


Part = Arrays | Encoded


@dataclass(frozen=True)
class Source:
    """A data set before it is cut into batches.

    Args:
        name: for tables.
        class_names: by label.
        train: the training part; the validation split is taken from it, unless the data set brings its own.
        test: the test part.
        val: the data set's own validation part, if it has one beside the test part.
        image_size: side that images are resized to unless the user gives one; None keeps their size.
    """

    name: str
    class_names: tuple[str, ...]
    train: Part
    test: Part
    val: Part | None = None
    image_size: int | None = None


def labels_of(part: Part) -> Tensor:
    """Labels of a part, int64 (N,)."""
    return part.labels if isinstance(part, Encoded) else part[1]


def check_labels(part: Encoded, classes: int, where: str) -> None:
    """Refuse a part without images, or with a label that is not in [0, classes).

    Raises:
        EspalierError: naming the first wrong one.
    """
    if len(part) == 0:
        raise EspalierError(f"{where} holds no images.")
    wrong = torch.nonzero((part.labels < 0) | (part.labels >= classes))
    if len(wrong):
        index = int(wrong[0])
        raise EspalierError(f"{part.name(index)} has the label {int(part.labels[index])}, but there are {classes} classes.")
