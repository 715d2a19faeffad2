"""Decoded images are kept in a file, so that a second run does not decode them again.

The file lies under ``$ESPALIER_CACHE`` (default ``~/.cache/espalier``) and is named by a hash of everything that it depends
on. It is a plain ``.npz`` without pickle; an unreadable or foreign one is decoded anew. A full disk only costs the cache.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from espalier.tasks.classification.data.source import Arrays

FORMAT = 1


def cached(file: Path, settings: str, decode: Callable[[], Arrays]) -> Arrays:
    """The images and labels of ``file`` as ``decode`` makes them, from the cache if the file has not changed."""
    stat = file.stat()
    key = f"{FORMAT}|{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{settings}"
    folder = Path(os.environ.get("ESPALIER_CACHE", "~/.cache/espalier")).expanduser()
    place = folder / f"{file.stem}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.npz"
    try:
        with np.load(place, allow_pickle=False) as held:
            return torch.from_numpy(held["images"]), torch.from_numpy(held["labels"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        images, labels = decode()
    _keep(place, images, labels)
    return images, labels


def _keep(place: Path, images: torch.Tensor, labels: torch.Tensor) -> None:
    beside = place.with_name(f"{place.stem}.{os.getpid()}.part.npz")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        np.savez(beside, images=images.numpy(), labels=labels.numpy())
        os.replace(beside, place)
    except OSError:
        beside.unlink(missing_ok=True)
