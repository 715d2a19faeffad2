"""Data sets by name. A new one is one file with a loader and one line in ``SOURCES``."""

from __future__ import annotations

import torch

from espalier.errors import EspalierError
from espalier.tasks.classification.data.augment import Augment
from espalier.tasks.classification.data.base import Batches, Data, DataInfo
from espalier.tasks.classification.data.digits import load_digits
from espalier.tasks.classification.data.parquet import load_parquet
from espalier.tasks.classification.data.resident import ResidentBatches, generator_for
from espalier.tasks.classification.data.source import SPLIT_SEED, channel_statistics, split_off

__all__ = ["Augment", "Batches", "Data", "DataInfo", "data_names", "open_data"]


def data_names() -> list[str]:
    """Names that ``open_data`` knows."""
    return ["digits", "parquet"]


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
    channels_last: bool = False,
    download: bool = False,
    rank: int = 0,
    world: int = 1,
) -> Data:
    """Open a data set as three splits of batches; the validation split is held out of the training data."""
    if name == "digits":
        source = load_digits()
    elif name == "parquet":
        source = load_parquet(path, image_size)
    else:
        raise EspalierError(f"There is no data set {name!r}; known are {', '.join(data_names())}.")
    images, labels = source.train
    rest, val = split_off(labels, val_fraction)
    if limit is not None:
        rest = rest[torch.randperm(len(rest), generator=generator_for(SPLIT_SEED))[:limit]].sort().values
    parts = {"train": (images[rest], labels[rest]), "val": (images[val], labels[val]), "test": source.test}
    mean, std = channel_statistics(parts["train"][0])
    info = DataInfo(
        name=source.name,
        num_classes=len(source.class_names),
        in_channels=images.shape[1],
        image_size=images.shape[-1],
        class_names=source.class_names,
        mean=mean,
        std=std,
        sizes={key: len(part[1]) for key, part in parts.items()},
    )

    def batches(key: str) -> ResidentBatches:
        pictures, targets = parts[key]
        return ResidentBatches(
            pictures.to(device),
            targets.to(device),
            mean,
            std,
            batch_size=batch_size,
            seed=seed,
            augment=augment if key == "train" else None,
            channels_last=channels_last,
            rank=rank,
            world=world,
        )

    return Data(info, batches("train"), batches("val"), batches("test"))
