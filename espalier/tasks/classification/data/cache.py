"""Decoded images are kept in a file, so that a second run does not decode them again.

The file lies under ``$ESPALIER_CACHE`` (default ``~/.cache/espalier``) and is named by a hash of everything that it depends
on. It is a plain ``.npz`` without pickle; an unreadable or foreign one is decoded anew. A full disk only costs the cache.
Old files are not removed: the folder may be emptied at any time.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from espalier.atomic import replacing
from espalier.tasks.classification.data.source import Arrays

FORMAT = 1


def cache_folder() -> Path:
    """``$ESPALIER_CACHE``, or ``~/.cache/espalier``."""
    return Path(os.environ.get("ESPALIER_CACHE") or "~/.cache/espalier").expanduser()


def cached(key: str, label: str, make: Callable[[], Arrays]) -> Arrays:
    """What ``make`` returns, from the cache if it holds it under ``key``.

    Args:
        key: text of everything that the arrays depend on.
        label: begins the file's name, for people who look into the folder.
        make: decodes images, uint8 (N, C, H, W), and labels, int64 (N,).
    """
    digest = hashlib.sha256(f"{FORMAT}|{key}".encode()).hexdigest()[:20]
    place = cache_folder() / f"{label}-{digest}.npz"
    found = _read(place)
    if found is None:
        with one_at_a_time(place.with_suffix(".lock")):  # of several processes, one decodes and the others read
            found = _read(place)
            if found is None:
                found = make()
                _keep(place, found)
    return found


def _read(place: Path) -> Arrays | None:
    try:
        with np.load(place, allow_pickle=False) as held:
            images, labels = torch.from_numpy(held["images"]), torch.from_numpy(held["labels"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None
    whole = images.dim() == 4 and images.dtype == torch.uint8 and labels.dtype == torch.int64
    return (images, labels) if whole and labels.shape == images.shape[:1] else None


def _keep(place: Path, arrays: Arrays) -> None:
    with suppress(OSError), replacing(place) as file:
        np.savez(file, images=arrays[0].numpy(), labels=arrays[1].numpy())


@contextmanager
def one_at_a_time(place: Path) -> Iterator[None]:
    """Holds a lock file; where files cannot be locked, it goes on without."""
    try:
        import fcntl

        place.parent.mkdir(parents=True, exist_ok=True)
        file = open(place, "w")  # noqa: SIM115 - closed below
    except (ImportError, OSError):
        yield
        return
    with file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file gives the lock back
