"""Data that is too large to stay decoded: worker processes read, decode and augment it image by image.

What a worker does to an image is a function of (seed, epoch, index of the image), so neither the number of workers nor
the batch that an epoch is entered at makes a difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from espalier.errors import EspalierError
from espalier.tasks.classification.data.augment import Augment, crop_box
from espalier.tasks.classification.data.decode import Square, to_tensor
from espalier.tasks.classification.data.plan import Plan, generator_for
from espalier.tasks.classification.data.resident import Normaliser
from espalier.tasks.classification.data.source import Encoded

Ticket = tuple[int, int]
"""Epoch, and index of an image in the split."""


class LoaderBatches:
    """Batches through worker processes.

    Args:
        part: the encoded images.
        indices: those that make this split, int64 (N,).
        square: how images become squares of one size.
        plan: which images make which batch.
        normalise: turns uint8 batches into floats on the device.
        augment: None for evaluation.
        workers: processes; 0 decodes in this one.
    """

    def __init__(
        self,
        part: Encoded,
        indices: Tensor,
        square: Square,
        plan: Plan,
        normalise: Normaliser,
        augment: Augment | None = None,
        workers: int = 2,
    ) -> None:
        self.plan, self.normalise, self.workers = plan, normalise, workers
        self._images = Images(part, indices, square, augment, plan.seed)

    def __len__(self) -> int:
        return len(self.plan)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches ``start`` to the last of one epoch."""
        device = self.normalise.device
        # Workers live for one epoch: starting them is cheap beside an epoch of files, splits do not keep idle processes,
        # and an epoch that is left early ends its own.
        loader = DataLoader(
            self._images,
            batch_sampler=Tickets(self.plan, epoch, start),
            num_workers=self.workers,
            collate_fn=stack,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # a loader without one draws from the global generator
        )
        for batch in loader:
            if isinstance(batch, str):
                raise EspalierError(batch)
            images, labels = (part.to(device, non_blocking=True) for part in batch)
            yield self.normalise(images), labels


class Tickets(Sampler[list[Ticket]]):
    """The batches of one epoch from ``start`` on, as (epoch, index) of each image."""

    def __init__(self, plan: Plan, epoch: int, start: int) -> None:
        self.plan, self.epoch, self.start = plan, epoch, start

    def __len__(self) -> int:
        return max(0, len(self.plan) - self.start)

    def __iter__(self) -> Iterator[list[Ticket]]:
        order = self.plan.order(self.epoch).tolist()
        for batch in range(self.start, len(self.plan)):
            first, last = self.plan.span(batch)
            yield [(self.epoch, index) for index in order[first:last]]


class Images(Dataset[tuple[Tensor, int] | str]):
    """Decodes and augments one image; what goes wrong comes back as a sentence, since exceptions arrive as tracebacks."""

    def __init__(self, part: Encoded, indices: Tensor, square: Square, augment: Augment | None, seed: int) -> None:
        self.part, self.indices, self.square, self.augment, self.seed = part, indices, square, augment, seed

    def __getitem__(self, ticket: Ticket) -> tuple[Tensor, int] | str:
        epoch, index = ticket
        place = int(self.indices[index])
        try:
            image = self.part.image(place)
        except EspalierError as error:
            return str(error)
        if self.augment is None:
            pixels = to_tensor(self.square(image))
        else:
            pixels = augmented(image, self.square, self.augment, generator_for(self.seed, epoch, index))
        return pixels, int(self.part.labels[place])


def augmented(image: Image.Image, square: Square, augment: Augment, generator: torch.Generator) -> Tensor:
    """Augment one image of any size to uint8 (3, size, size); a random resized crop is taken from the full image."""
    if augment.random_resized_crop is not None:
        w, h, x, y = crop_box(1, augment.random_resized_crop, generator)[:, 0].tolist()
        edges = ((x + 1 - w) / 2, (y + 1 - h) / 2, (x + 1 + w) / 2, (y + 1 + h) / 2)  # shares of the sides
        left, top, right, bottom = (min(max(edge, 0.0), 1.0) * side for edge, side in zip(edges, image.size * 2, strict=True))
        size = square.size
        assert size is not None  # or images of different sizes would not make a batch
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
        augment = replace(augment, random_resized_crop=None)
    else:
        image = square(image)
    return augment(to_tensor(image).unsqueeze(0), generator).squeeze(0)


def stack(items: list[tuple[Tensor, int] | str]) -> tuple[Tensor, Tensor] | str:
    """A batch: uint8 (B, 3, H, W) and int64 (B,); or the first sentence that says what went wrong."""
    images, labels = [], []
    for item in items:
        if isinstance(item, str):
            return item
        images.append(item[0])
        labels.append(item[1])
    return torch.stack(images), torch.tensor(labels)
