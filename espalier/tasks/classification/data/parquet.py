"""Parquet files in the image layout of Hugging Face: a struct column of encoded bytes and a label column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espalier.errors import EspalierError
from espalier.tasks.classification.data.source import Encoded, Source, check_labels

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label", "labels")
VAL_NAMES = ("validation", "valid", "val")


def load_parquet(path: str | None, *, download: bool = False) -> Source:
    """A folder with ``train.parquet`` and ``test.parquet``; where there is no test file, ``validation.parquet`` is the test.

    Files in several pieces (``train-00000-of-00005.parquet``) are read in the order of their names.

    Raises:
        EspalierError: naming the file, column or row that is missing or broken.
    """
    if path is None:
        raise EspalierError("Parquet data needs a folder: data.path=FOLDER with train.parquet and test.parquet.")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise EspalierError(f"There is no folder {str(folder)!r}: data.path must name one with train.parquet and test.parquet.")
    train, test, val = (_find(folder, names) for names in (("train",), ("test",), VAL_NAMES))
    if not test:
        test, val = val, []
    for files, name in ((train, "train"), (test, "test")):
        if not files:
            raise EspalierError(f"There is no {name}.parquet in {str(folder)!r}: give its folder as data.path=FOLDER.")
    parts = [Rows(files) for files in (train, test, val) if files]
    names = read_class_names(train[0])
    classes = len(names) or max((int(part.labels.max()) for part in parts if len(part)), default=0) + 1
    for part in parts:
        check_labels(part, classes, part.title)
    names = names or tuple(str(label) for label in range(classes))
    return Source(folder.resolve().name, names, parts[0], parts[1], parts[2] if val else None)


def _find(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The file of one part, or its pieces, under the first of several names that exists."""
    for name in names:
        if (folder / f"{name}.parquet").is_file():
            return [folder / f"{name}.parquet"]
        pieces = sorted(folder.glob(f"{name}-*-of-*.parquet"))
        if pieces:
            return pieces
    return []


class Rows(Encoded):
    """The rows of one or several Parquet files, still encoded, in one buffer that worker processes share."""

    def __init__(self, files: list[Path]) -> None:
        stats = [file.stat() for file in files]
        key = "|".join(f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}" for file, stat in zip(files, stats, strict=True))
        pieces = [_read_file(file) for file in files]
        super().__init__(torch.cat([labels for _, _, labels in pieces]), f"parquet|{key}")
        self.files = files
        self._starts = np.cumsum([0, *(len(labels) for _, _, labels in pieces)])
        self._sizes = np.concatenate([sizes for _, sizes, _ in pieces])
        self._ends = np.cumsum(self._sizes)
        self._bytes = np.concatenate([data for data, _, _ in pieces])

    @property
    def title(self) -> str:
        """The file, or the first of several."""
        return repr(str(self.files[0]))

    def read(self, index: int) -> bytes:
        """The encoded image of a row."""
        return self._bytes[self._ends[index] - self._sizes[index] : self._ends[index]].tobytes()

    def name(self, index: int) -> str:
        """File and row, counted from 0."""
        piece = int(np.searchsorted(self._starts, index, side="right")) - 1
        return f"Row {index - int(self._starts[piece])} of {str(self.files[piece])!r}"


def _read_file(file: Path) -> tuple[Any, Any, Tensor]:
    """Bytes of all images end to end (uint8), sizes in bytes (N,), labels (N,)."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise EspalierError("Parquet files are read with pyarrow: pip install 'espalier[train]'.") from error
    try:
        schema = pq.read_schema(file)
        image_column, label_column = _column(schema, IMAGE_COLUMNS, file), _column(schema, LABEL_COLUMNS, file)
        table = pq.read_table(file, columns=[image_column, label_column])
    except (pa.ArrowException, OSError) as error:
        raise EspalierError(
            f"{str(file)!r} is not a readable Parquet file ({str(error).splitlines()[0]}): fetch it again."
        ) from error
    column = table[image_column]
    kind = column.type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0 or not _holds_bytes(pa, kind.field("bytes").type):
        raise EspalierError(f"Column {image_column} of {str(file)!r} must be a struct with the image's bytes, but is {kind}.")
    if not pa.types.is_integer(table.schema.field(label_column).type) or table[label_column].null_count:
        raise EspalierError(f"Column {label_column} of {str(file)!r} must hold a whole number in every row.")
    labels = torch.from_numpy(table[label_column].to_numpy().astype(np.int64))
    images = [value for chunk in column.chunks for value in chunk.field("bytes").to_pylist()]
    empty = next((row for row, value in enumerate(images) if not value), None)
    if empty is not None:
        raise EspalierError(f"Row {empty} of {str(file)!r} holds no image bytes: mend or remove it.")
    sizes = np.array([len(value) for value in images], dtype=np.int64)
    return np.frombuffer(b"".join(images), dtype=np.uint8), sizes, labels


def read_class_names(file: Path) -> tuple[str, ...]:
    """Names of the classes from the ``huggingface`` entry of the schema; empty if there is none."""
    import pyarrow.parquet as pq

    schema = pq.read_schema(file)
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(next(features[column] for column in LABEL_COLUMNS if column in features)["names"])
    except (KeyError, ValueError, TypeError, StopIteration):
        return ()


def _column(schema: Any, names: tuple[str, ...], file: Path) -> str:
    for name in names:
        if name in schema.names:
            return name
    raise EspalierError(f"{str(file)!r} has no column {' or '.join(names)}; it has {', '.join(schema.names) or 'none'}.")


def _holds_bytes(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
