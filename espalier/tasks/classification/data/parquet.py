"""Parquet files in the image layout of Hugging Face: a struct column of encoded bytes and a label column."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espalier.errors import EspalierError
from espalier.tasks.classification.data.cache import cached
from espalier.tasks.classification.data.source import Arrays, Source

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label", "labels")
TEST_NAMES = ("test", "validation", "valid", "val")


def load_parquet(path: str | None, image_size: int | None = None) -> Source:
    """Decode ``path/train.parquet`` and its test file (test, else validation) to uint8 tensors.

    Args:
        path: folder with the two files.
        image_size: side to which images are resized; None keeps them, and then all must be of one size.

    Raises:
        EspalierError: naming the file, column or row that is missing or broken.
    """
    if path is None:
        raise EspalierError("Parquet data needs a folder: data.path=FOLDER with train.parquet and test.parquet.")
    folder = Path(path).expanduser()
    train_file = _existing(folder, ("train",))
    test_file = _existing(folder, TEST_NAMES)
    train, test = (
        cached(file, f"image_size={image_size}", lambda file=file: read_images(file, image_size))
        for file in (train_file, test_file)
    )
    names = read_class_names(train_file)
    classes = int(max(train[1].max(), test[1].max())) + 1
    return Source(folder.name, names or tuple(str(label) for label in range(classes)), train, test)


def _existing(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        for candidate in (folder / f"{name}.parquet", *sorted(folder.glob(f"{name}-*.parquet"))):
            if candidate.is_file():
                return candidate
    raise EspalierError(f"There is no {names[0]}.parquet in {str(folder)!r}: give its folder as data.path=FOLDER.")


def read_images(file: Path, image_size: int | None) -> Arrays:
    """Decode one file to images and labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise EspalierError(f"{str(file)!r} is not a readable Parquet file ({str(error).splitlines()[0]}).") from error
    image_column = _column(table, IMAGE_COLUMNS, file)
    label_column = _column(table, LABEL_COLUMNS, file)
    pixels = [
        _decode(item, row, file, image_size)
        for row, item in enumerate(value for chunk in table[image_column].chunks for value in chunk.to_pylist())
    ]
    if not pixels:
        raise EspalierError(f"{str(file)!r} holds no images.")
    shapes = {image.shape for image in pixels}
    if len(shapes) > 1:
        raise EspalierError(f"The images in {str(file)!r} have {len(shapes)} sizes: give one, say data.image_size=128.")
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(table[label_column].to_numpy().astype(np.int64))
    return images, labels


def read_class_names(file: Path) -> tuple[str, ...]:
    """Names of the classes from the ``huggingface`` entry of the schema; empty if there is none."""
    import pyarrow.parquet as pq

    schema = pq.read_schema(file)
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(next(features[column] for column in LABEL_COLUMNS if column in features)["names"])
    except (KeyError, ValueError, TypeError, StopIteration):
        return ()


def _column(table: Any, names: tuple[str, ...], file: Path) -> str:
    for name in names:
        if name in table.column_names:
            return name
    raise EspalierError(f"{str(file)!r} has no column {' or '.join(names)}; it has {', '.join(table.column_names)}.")


def _decode(item: Any, row: int, file: Path, image_size: int | None) -> np.ndarray[Any, Any]:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(item["bytes"])).convert("RGB")
    except (UnidentifiedImageError, OSError, TypeError, KeyError) as error:
        raise EspalierError(f"Row {row} of {str(file)!r} is not a readable image ({error}).") from error
    if image_size is not None and image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image)
