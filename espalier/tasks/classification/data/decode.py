"""One image: bytes in, RGB out."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from espalier.errors import EspalierError

# What Pillow raises for files that are cut short, damaged or no images at all; bad PNG chunks are a SyntaxError.
BROKEN = (OSError, ValueError, SyntaxError, TypeError, EOFError, struct.error, Image.DecompressionBombError)


def decode(data: bytes, name: str) -> Image.Image:
    """Decode an image; grey ones and palettes become RGB.

    Args:
        data: the bytes of an image file of any format that Pillow reads.
        name: where it lies, for the error message.

    Raises:
        EspalierError: if it is not a readable image.
    """
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except BROKEN as error:
        what = "does not hold a complete image of a known format" if "BytesIO" in str(error) else str(error)
        raise EspalierError(f"{name} is not a readable image ({what}): mend or remove it.") from error


@dataclass(frozen=True)
class Square:
    """How images of any shape become squares.

    Args:
        size: side in pixels; None keeps images as they are.
        crop_pct: share of the shorter side that a square in the middle takes, and the rest is left out; None squeezes the whole
            image. 0.875 is the usual 256 pixels for the shorter side, then the central 224.

    Example:
        >>> Square(8, 0.5)(Image.new("RGB", (60, 40))).size, Square(8, 0.5).middle(60, 40)
        ((8, 8), (20.0, 10.0, 40.0, 30.0))
    """

    size: int | None
    crop_pct: float | None = None

    def __call__(self, image: Image.Image) -> Image.Image:
        if self.size is None or (self.crop_pct is None and image.size == (self.size, self.size)):
            return image
        return image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=self.middle(*image.size))

    def middle(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Left, upper, right and lower edge of what is kept, in pixels."""
        if self.crop_pct is None:
            return 0.0, 0.0, float(width), float(height)
        side = self.crop_pct * min(width, height)
        return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
