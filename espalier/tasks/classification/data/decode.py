"""One image: bytes in, RGB out."""

from __future__ import annotations

import io
import struct

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


def squeezed(image: Image.Image, size: int | None) -> Image.Image:
    """Resize to a square of ``size`` pixels, whatever the aspect ratio was; None keeps the image."""
    if size is None or image.size == (size, size):
        return image
    return image.resize((size, size), Image.Resampling.BILINEAR)


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
