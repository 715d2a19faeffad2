"""CIFAR-10, CIFAR-100 and Caltech-101 as torchvision fetches and reads them. Nothing is downloaded unless asked for.

torchvision unpickles CIFAR's files only after their MD5 sums have met the published ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from espalier.errors import EspalierError
from espalier.tasks.classification.data.cache import cache_folder, one_at_a_time
from espalier.tasks.classification.data.folder import Files, class_folders, list_images
from espalier.tasks.classification.data.source import Arrays, Source
from espalier.tasks.classification.data.splits import split_off
from espalier.tasks.vision import torchvision

BACKGROUND = "BACKGROUND_Google"  # pictures of no category


def load_cifar10(path: str | None, *, download: bool = False) -> Source:
    """CIFAR-10: 50,000 and 10,000 images of 32 x 32 in 10 classes (170 MB)."""
    return _cifar("CIFAR10", "cifar10", path, download)


def load_cifar100(path: str | None, *, download: bool = False) -> Source:
    """CIFAR-100: 50,000 and 10,000 images of 32 x 32 in 100 classes (170 MB)."""
    return _cifar("CIFAR100", "cifar100", path, download)


def load_caltech101(path: str | None, *, download: bool = False) -> Source:
    """Caltech-101: 8,677 images of about 300 x 200 in 101 unbalanced classes (140 MB), without its background class.

    It has no split of its own: a fixed, stratified third is the test part. Images are resized to 128 x 128 unless another
    size is asked for.
    """
    folder = _root(path) / "caltech101" / "101_ObjectCategories"
    if not folder.is_dir():
        _open("Caltech101", path, download)
    classes = tuple(name for name in class_folders(folder) if name != BACKGROUND)
    files, labels = list_images(folder, classes)
    rest, test = split_off(torch.tensor(labels), 1 / 3)
    train, tested = (
        Files([files[index] for index in part], [labels[index] for index in part]) for part in (rest.tolist(), test.tolist())
    )
    return Source("caltech101", classes, train, tested, image_size=128)


def _cifar(kind: str, name: str, path: str | None, download: bool) -> Source:
    train = _open(kind, path, download, train=True)
    test = _open(kind, path, download, train=False)
    return Source(name, tuple(train.classes), _arrays(train), _arrays(test))


def _arrays(held: Any) -> Arrays:
    images = torch.from_numpy(held.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(held.targets, dtype=torch.int64)


def _root(path: str | None) -> Path:
    """The user's folder, else one in the cache."""
    return cache_folder() / "data" if path is None else Path(path).expanduser()


def _open(kind: str, path: str | None, download: bool, **arguments: Any) -> Any:
    """One of torchvision's data sets."""
    datasets, root = torchvision().datasets, _root(path)
    with one_at_a_time(cache_folder() / f"{kind.lower()}.lock"):  # several processes must not fetch the same files
        try:
            return getattr(datasets, kind)(str(root), download=download, **arguments)
        except (RuntimeError, OSError) as error:
            if download:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise EspalierError(f"{kind} could not be fetched to {str(root)!r} ({reason}).") from error
            raise EspalierError(
                f"{kind} is not in {str(root)!r}, or damaged: set data.download=true to fetch it, or data.path=FOLDER."
            ) from error
