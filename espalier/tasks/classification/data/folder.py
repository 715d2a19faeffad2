"""Folders of image files, one folder a class: the layout of ImageNet and of torchvision's ImageFolder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from espalier.errors import EspalierError
from espalier.tasks.classification.data.source import Encoded, Source

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
VAL_NAMES = ("val", "validation", "valid")


def load_folder(path: str | None, *, download: bool = False) -> Source:
    """``path/train/CLASS/*.jpg`` and ``path/test/CLASS/*.jpg``; where there is no ``test``, ``val`` is the test.

    Raises:
        EspalierError: naming the folder that is missing, empty or of an unknown class.
    """
    if path is None:
        raise EspalierError("Data from a folder needs data.path=FOLDER with train/CLASS/IMAGE and test/CLASS/IMAGE.")
    root = Path(path).expanduser()
    train = root / "train"
    test = root / "test"
    val = next((root / name for name in VAL_NAMES if (root / name).is_dir()), None)
    if not test.is_dir() and val is not None:
        test, val = val, None
    for folder in (train, test):
        if not folder.is_dir():
            raise EspalierError(f"There is no folder {str(folder)!r}: data.path needs train/CLASS/IMAGE and test/CLASS/IMAGE.")
    classes = class_folders(train)
    if not classes:
        raise EspalierError(f"{str(train)!r} holds no folders: it needs one folder of images for each class.")
    own_val = None if val is None else scan(val, classes)
    return Source(root.resolve().name, classes, scan(train, classes, full=True), scan(test, classes), own_val)


def scan(folder: Path, classes: tuple[str, ...], *, full: bool = False) -> Files:
    """All image files of ``folder``, by class and name; ``full`` wants at least one of each class."""
    strangers = [name for name in class_folders(folder) if name not in classes]
    if strangers:
        raise EspalierError(f"The class {strangers[0]!r} is in {str(folder)!r}, but not in the training data.")
    files, labels = list_images(folder, classes)
    if full and len(set(labels)) < len(classes):
        empty = next(name for label, name in enumerate(classes) if label not in labels)
        raise EspalierError(f"{str(folder / empty)!r} holds no images: fill it or remove it.")
    return Files(files, labels)


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the folders in ``folder``, sorted, hidden ones left out."""
    return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")))


def list_images(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    """All image files in ``folder/CLASS``, sub-folders included, and the index of their class."""
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(file for file in (folder / name).rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        files += found
        labels += [label] * len(found)
    if not files:
        raise EspalierError(f"{str(folder)!r} holds no images.")
    return files, labels


class Files(Encoded):
    """Image files, read and decoded when they are needed."""

    def __init__(self, files: list[Path], labels: list[int]) -> None:
        digest = hashlib.sha256()
        for file, label in zip(files, labels, strict=True):
            stat = file.stat()
            digest.update(f"{file.absolute()}|{label}|{stat.st_size}|{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
        super().__init__(torch.tensor(labels, dtype=torch.int64), f"files|{digest.hexdigest()}")
        # One array, not a million objects: worker processes would copy each object as soon as they look at it.
        self._paths = np.array([os.fsencode(file) for file in files], dtype=np.bytes_)

    def path(self, index: int) -> Path:
        """Where an image lies."""
        return Path(os.fsdecode(self._paths[index]))

    def read(self, index: int) -> bytes:
        """The file's content."""
        try:
            return self.path(index).read_bytes()
        except OSError as error:
            raise EspalierError(f"{self.name(index)} cannot be read ({error.strerror}).") from error

    def name(self, index: int) -> str:
        """The file."""
        return repr(str(self.path(index)))
