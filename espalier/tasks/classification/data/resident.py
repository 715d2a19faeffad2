"""Data that stays on the device: uint8 images, cut into batches, augmented and normalised there.

No image is touched on its own and no batch waits for the host.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from espalier.errors import EspalierError
from espalier.tasks.classification.data.augment import Augment
from espalier.tasks.classification.data.cache import cached
from espalier.tasks.classification.data.decode import Square
from espalier.tasks.classification.data.plan import Plan
from espalier.tasks.classification.data.source import Arrays, Encoded, Part


class Normaliser:
    """uint8 images (B, C, H, W) -> floats with mean 0 and standard deviation 1 per channel, on a device.

    Args:
        mean: per channel, 0-1 scale.
        std: per channel, 0-1 scale.
        device: where the batches are.
        channels_last: memory format of the result.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, channels_last: bool) -> None:
        self.device = device
        self.shift = torch.tensor(mean, device=device).view(1, -1, 1, 1) * 255.0
        self.scale = 1.0 / (255.0 * torch.tensor(std, device=device).view(1, -1, 1, 1))
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor) -> Tensor:
        floats = images.to(torch.float32, memory_format=self.memory_format)
        return floats.sub_(self.shift).mul_(self.scale)


class ResidentBatches:
    """Batches of a uint8 tensor (N, C, H, W).

    Args:
        images: uint8 (N, C, H, W), on the device; in host memory where they do not fit on it.
        labels: int64 (N,), where the images are.
        plan: which images make which batch.
        normalise: turns uint8 batches into floats; its device is where batches are delivered.
        augment: None for evaluation.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, plan: Plan, normalise: Normaliser, augment: Augment | None = None
    ) -> None:
        self.images, self.labels, self.plan = images, labels, plan
        self.normalise, self.augment = normalise, augment

    def __len__(self) -> int:
        return len(self.plan)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches ``start`` to the last of one epoch."""
        device = self.normalise.device
        order = self.plan.order(epoch).to(self.images.device, non_blocking=True)
        for index in range(start, len(self)):
            first, last = self.plan.span(index)
            chosen = order[first:last]
            images = self.images[chosen].to(device, non_blocking=True)
            if self.augment is not None:
                images = self.augment(images, self.plan.generator(epoch, index))
            yield self.normalise(images), self.labels[chosen].to(device, non_blocking=True)


def home_of(size: int, device: torch.device) -> torch.device:
    """Where ``size`` bytes of images stay: the device, or host memory if they would fill more than half of what is free."""
    if device.type == "cuda" and size > torch.cuda.mem_get_info(device)[0] // 2:
        return torch.device("cpu")
    return device


def to_arrays(part: Part, square: Square) -> Arrays:
    """Decode a part, or take it from the cache."""
    if isinstance(part, Encoded):
        cropped = "" if square.crop_pct is None else f"|crop_pct={square.crop_pct}"
        return cached(f"{part.key}|image_size={square.size}{cropped}", "images", lambda: decode_all(part, square))
    images, labels = part
    size = square.size
    if size is not None and (square.crop_pct is not None or images.shape[2:] != (size, size)):
        left, top, right, bottom = map(round, square.middle(images.shape[3], images.shape[2]))
        images = images[..., top:bottom, left:right]
        images = torch.cat([_resized(piece, size) for piece in torch.split(images, 1024)])
    return images, labels


def _resized(images: Tensor, size: int) -> Tensor:
    floats = functional.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return floats.round_().clamp_(0, 255).to(torch.uint8)


def decode_all(part: Encoded, square: Square) -> Arrays:
    """Decode every image of a part in threads (Pillow decodes outside Python's lock).

    Raises:
        EspalierError: naming the image that is broken, or of another size than the first where squares have none.
    """
    width, height = square(part.image(0)).size
    out = np.empty((len(part), 3, height, width), dtype=np.uint8)

    def decode_every(start: int, step: int) -> None:
        for index in range(start, len(part), step):
            image = square(part.image(index))
            if image.size != (width, height):
                raise EspalierError(
                    f"{part.name(index)} has {image.width} x {image.height} pixels, the first image {width} x {height}: "
                    "give one size for all, say data.image_size=128."
                )
            out[index] = np.asarray(image).transpose(2, 0, 1)

    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(decode_every, start, threads) for start in range(threads)]:
            done.result()
    return torch.from_numpy(out), part.labels
