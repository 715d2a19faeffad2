"""Data sets by name. A new one is one file with a function that returns a ``Source``, and one line in ``SOURCES``."""

from __future__ import annotations

from collections.abc import Callable

import torch

from espalier.names import unknown
from espalier.tasks.classification.data.assemble import Options, assemble
from espalier.tasks.classification.data.augment import Augment
from espalier.tasks.classification.data.base import Batches, Data, DataInfo
from espalier.tasks.classification.data.digits import load_digits
from espalier.tasks.classification.data.folder import load_folder
from espalier.tasks.classification.data.parquet import load_parquet
from espalier.tasks.classification.data.source import Source
from espalier.tasks.classification.data.torchvision_sets import load_caltech101, load_cifar10, load_cifar100

__all__ = ["Augment", "Batches", "Data", "DataInfo", "data_names", "open_data"]

# Each is called as loader(path, download=...): the folder or None, and whether files may be fetched.
SOURCES: dict[str, Callable[..., Source]] = {
    "digits": load_digits,
    "parquet": load_parquet,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "caltech101": load_caltech101,
    "folder": load_folder,
}


def data_names() -> list[str]:
    """Names that ``open_data`` knows."""
    return list(SOURCES)


def open_data(
    name: str,
    *,
    path: str | None = None,
    batch_size: int,
    device: torch.device,
    seed: int = 0,
    val_fraction: float = 0.1,
    limit: int | None = None,
    augment: Augment = Augment(),  # noqa: B008 - a frozen value
    resident: bool | None = None,
    workers: int = 2,
    image_size: int | None = None,
    crop_pct: float | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    channels_last: bool = False,
    download: bool = False,
    rank: int = 0,
    world: int = 1,
) -> Data:
    """Open a data set as three splits of batches.

    The validation split is a fixed, stratified share of the training data (unless the set brings its own), whatever the
    seed. Order and augmentation of training batches depend on (seed, epoch, batch index) only.

    Args:
        name: one of ``data_names()``.
        path: folder of the data, where the set needs one; torchvision's sets default to the cache folder.
        batch_size: images a batch, of this process.
        device: where batches are delivered.
        seed: of order and augmentation.
        val_fraction: share of the training data held out for validation, in (0, 1).
        limit: use only so many training images.
        augment: what is done to training images.
        resident: keep all images decoded on the device; False reads them through worker processes; None decides by size.
        workers: processes that read and decode, where the data is not resident.
        image_size: resize all images to a square of so many pixels a side.
        crop_pct: share of the shorter side that is kept, as a square in the middle, before that; None squeezes whole images.
            Where worker processes read the data, random resized crops are taken from the full image all the same.
        mean, std: what images are normalised by, 0 to 1, one number per channel; None measures the training images.
        channels_last: memory format of the batches.
        download: fetch what is missing.
        rank: this process, of ``world``: each gets a disjoint part of every batch.
        world: number of processes.

    Raises:
        EspalierError: an unknown name, or a file, column, row or image that is missing or broken (it is named).

    Example:
        >>> data = open_data("digits", batch_size=32, device=torch.device("cpu"))
        >>> data.info.sizes
        {'train': 1295, 'val': 143, 'test': 359}
        >>> images, labels = next(data.train.epoch(0))
        >>> images.shape, labels.dtype
        (torch.Size([32, 1, 8, 8]), torch.int64)
    """
    if name not in SOURCES:
        raise unknown("data set", name, SOURCES)
    options = Options(
        batch_size=batch_size,
        device=device,
        seed=seed,
        val_fraction=val_fraction,
        limit=limit,
        augment=augment,
        resident=resident,
        workers=workers,
        image_size=image_size,
        crop_pct=crop_pct,
        mean=mean,
        std=std,
        channels_last=channels_last,
        rank=rank,
        world=world,
    )
    return assemble(SOURCES[name](path, download=download), options)
