"""Small data sets on disk, made of scikit-learn's digits: real pictures, no download."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from espalier.tasks.classification.data import Augment, Batches, Data, DataInfo, open_data

SIDE = 12
CPU = torch.device("cpu")


@cache
def pictures() -> tuple[np.ndarray, np.ndarray]:
    """300 digits as uint8 RGB pixels (300, 12, 12, 3), each channel another shade, and their labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.pad(bunch.images[:300] * 15, ((0, 0), (2, 2), (2, 2)))
    return np.stack([grey, 255 - grey, grey / 2], 3).astype(np.uint8), bunch.target[:300]


def encoded(pixels: np.ndarray, kind: str = "png") -> bytes:
    """An image file in memory."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_parquet(
    file: Path, rows: Iterable[bytes], labels: Any, *, image: str = "img", label: str = "label", names: int | None = 10
) -> None:
    """A Parquet file in the image layout of Hugging Face."""
    table = pa.table({image: [{"bytes": row, "path": None} for row in rows], label: labels})
    if names is not None:
        features = {label: {"_type": "ClassLabel", "names": [f"digit {number}" for number in range(names)]}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """A folder with train.parquet (200 rows) and test.parquet (100 rows)."""
    images, labels = pictures()
    rows = [encoded(image) for image in images]
    write_parquet(tmp_path / "train.parquet", rows[:200], labels[:200])
    write_parquet(tmp_path / "test.parquet", rows[200:], labels[200:])
    return tmp_path


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """train/ and val/ with three classes each; PNG files of differing sizes, 30 and 12."""
    images, labels = pictures()
    for split, count, skip in (("train", 10, 0), ("val", 4, 10)):
        for digit in range(3):
            folder = tmp_path / split / f"class {digit}"
            folder.mkdir(parents=True)
            for number, index in enumerate(np.flatnonzero(labels == digit)[skip : skip + count]):
                picture = Image.fromarray(images[index]).resize((16 + number % 3 * 8, 24))
                picture.save(folder / f"{number:02}.png")
    return tmp_path


@pytest.fixture
def opened() -> Callable[..., Data]:
    """``open_data`` with everything small, and augmentation on."""

    def opened(name: str = "digits", **options: Any) -> Data:
        settings = {"batch_size": 32, "device": CPU, "augment": Augment(flip=True, crop_padding=1), "workers": 0, **options}
        return open_data(name, **settings)

    return opened


def all_of(batches: Batches, epoch: int = 0, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    """The batches of an epoch."""
    return list(batches.epoch(epoch, start))


def same(left: list[tuple[Tensor, Tensor]], right: list[tuple[Tensor, Tensor]]) -> bool:
    """Bit for bit."""
    return len(left) == len(right) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(left, right, strict=True)
    )


def images_of(batches: list[tuple[Tensor, Tensor]]) -> list[bytes]:
    """Every image as bytes, to compare sets of them."""
    return [image.contiguous().numpy().tobytes() for images, _ in batches for image in images]


def pixels_of(batches: Batches, info: DataInfo) -> Tensor:
    """Back to uint8 (N, H, W, 3)."""
    images = torch.cat([images for images, _ in batches.epoch(0)])
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (info.mean, info.std))
    return ((images * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
