"""Augmentation of whole batches on the device: uint8 in, uint8 out, no loop over images.

Every random choice comes from the generator that is handed in, so that a batch is a function of its seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augment:
    """What is done to training images.

    Args:
        flip: mirror half of the images.
        crop_padding: pad by so many black pixels on each side and crop back at a random place.
        random_resized_crop: smallest share of the area that a random crop keeps before it is resized, or None.
        cutout: side of a black square at a random place, in pixels; 0 for none.
    """

    flip: bool = False
    crop_padding: int = 0
    random_resized_crop: float | None = None
    cutout: int = 0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a batch of uint8 images (B, C, H, W)."""
        if self.random_resized_crop is not None:
            images = resized_crop(images, self.random_resized_crop, generator)
        if self.crop_padding:
            images = shifted_crop(images, self.crop_padding, generator)
        if self.flip:
            images = mirrored(images, generator)
        if self.cutout:
            images = with_holes(images, self.cutout, generator)
        return images


def shifted_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Shift every image by its own offset in [-padding, padding]^2; what comes in is black."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (padding,) * 4)
    offsets = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2p+1, 2p+1, H, W), a view
    rows, columns = offsets.to(images.device, non_blocking=True)
    return windows[torch.arange(count, device=images.device), :, rows, columns]


def mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image with probability one half."""
    flips = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flips.to(images.device, non_blocking=True).view(-1, 1, 1, 1), images.flip(3), images)


def with_holes(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Black out a square of ``side`` pixels, clipped at the border, centred anywhere in the image."""
    count, _, height, width = images.shape
    centre = torch.rand(2, count, 1, generator=generator)
    rows = (torch.arange(height) - (centre[0] * height).floor() + side // 2).to(images.device, non_blocking=True)
    columns = (torch.arange(width) - (centre[1] * width).floor() + side // 2).to(images.device, non_blocking=True)
    inside = ((rows >= 0) & (rows < side)).unsqueeze(2) & ((columns >= 0) & (columns < side)).unsqueeze(1)
    return images.masked_fill(inside.unsqueeze(1), 0)


def crop_box(count: int, smallest: float, generator: torch.Generator) -> Tensor:
    """Random boxes as width, height (shares of the sides) and centre x, y (-1 to 1 over the image), (4, count).

    Their area is at least ``smallest`` of the image (less where a side had to be clipped), their aspect ratio, relative to
    the image's, between 3/4 and 4/3.
    """
    draws = torch.rand(4, count, generator=generator)
    area = smallest + (1 - smallest) * draws[0]
    aspect = torch.exp((2 * draws[1] - 1) * torch.log(torch.tensor(4 / 3)))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    return torch.stack([width, height, (2 * draws[2] - 1) * (1 - width), (2 * draws[3] - 1) * (1 - height)])


def resized_crop(images: Tensor, smallest: float, generator: torch.Generator) -> Tensor:
    """Crop a random box and resize it bilinearly to the full size, in one call for all images."""
    width, height, x, y = crop_box(len(images), smallest, generator)
    zero = torch.zeros_like(width)
    affine = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = functional.affine_grid(affine.to(images.device, non_blocking=True), list(images.shape), align_corners=False)
    resized = functional.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    return resized.round_().clamp_(0, 255).to(torch.uint8)
