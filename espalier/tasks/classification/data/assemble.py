"""From a ``Source`` to three splits of batches: hold out, decide where the images live, measure, cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from espalier.errors import EspalierError
from espalier.tasks.classification.data.augment import Augment
from espalier.tasks.classification.data.base import Batches, Data, DataInfo
from espalier.tasks.classification.data.decode import Square
from espalier.tasks.classification.data.loader import LoaderBatches
from espalier.tasks.classification.data.plan import Plan, generator_for
from espalier.tasks.classification.data.resident import Normaliser, ResidentBatches, home_of, to_arrays
from espalier.tasks.classification.data.source import Arrays, Encoded, Part, Source, labels_of
from espalier.tasks.classification.data.splits import SPLIT_SEED, split_off
from espalier.tasks.classification.data.statistics import Statistics, channel_statistics, sampled_statistics

# Up to here decoded images stay in memory. Fixed, not measured: augmentation differs between the two ways, and a run
# must not depend on how much memory happens to be free.
RESIDENT_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Split:
    """Which images (indices, int64) of which part make a split."""

    part: Part
    indices: Tensor


@dataclass(frozen=True)
class Options:
    """How batches are made, whatever they are made of; ``open_data`` says what each field means."""

    batch_size: int
    device: torch.device
    seed: int
    val_fraction: float
    limit: int | None
    augment: Augment
    resident: bool | None
    workers: int
    image_size: int | None
    crop_pct: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    channels_last: bool
    rank: int
    world: int

    def __post_init__(self) -> None:
        for name in ("batch_size", "limit", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EspalierError(f"{name} must be at least 1; got {value}.")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise EspalierError(f"crop_pct is a share of the shorter side, above 0 and at most 1; got {self.crop_pct}.")
        if (self.mean is None) != (self.std is None):
            raise EspalierError("mean and std come together: give both, one number per channel, or leave both out.")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise EspalierError(f"std needs numbers above 0; got {list(self.std)}.")

    def statistics(self, channels: int, measure: Callable[[], Statistics]) -> Statistics:
        """Mean and standard deviation to normalise by: the given ones, or measured ones."""
        if self.mean is None or self.std is None:
            return measure()
        if not len(self.mean) == len(self.std) == channels:
            raise EspalierError(f"mean and std need one number for each of the {channels} channels of the images.")
        return self.mean, self.std

    @property
    def square(self) -> Square:
        """How images become squares."""
        return Square(self.image_size, self.crop_pct)

    def plan(self, images: int, *, training: bool) -> Plan:
        """The batches of a split of so many images."""
        return Plan(images, self.batch_size, training=training, seed=self.seed, rank=self.rank, world=self.world)


def assemble(source: Source, options: Options) -> Data:
    """Cut a data set into batches.

    Raises:
        EspalierError: if a split would be too small, or an image is broken.
    """
    options = replace(options, image_size=options.image_size or source.image_size)
    if options.crop_pct is not None and options.image_size is None:
        raise EspalierError("crop_pct needs a size for the images too, data.image_size=224.")
    splits = hold_out(source, options.val_fraction, options.limit)
    for key, split in splits.items():
        if len(split.indices) < (1 if key == "train" else options.world):  # each process evaluates at least one image
            crowd = f" for {options.world} processes" if options.world > 1 else ""
            raise EspalierError(
                f"The {key} split of {source.name} has {len(split.indices)} images, too few{crowd}: "
                "change data.val_fraction or data.limit."
            )
    parts = [split.part for split in splits.values()]
    encoded = [part for part in parts if isinstance(part, Encoded)]
    resident = fits(encoded, options.image_size) if options.resident is None else options.resident
    if not resident and len(encoded) < len(parts):
        raise EspalierError(f"{source.name} is stored decoded and always resident: leave out data.resident.")
    make = make_resident if resident else make_loaders
    info, batches = make(source, splits, options)
    return Data(info, batches["train"], batches["val"], batches["test"])


def hold_out(source: Source, val_fraction: float, limit: int | None) -> dict[str, Split]:
    """The three splits; ``limit`` shortens the training split, by a choice that never changes."""
    labels = labels_of(source.train)
    if source.val is None:
        if not 0 < val_fraction < 1:
            raise EspalierError(f"val_fraction is the share held out for validation, between 0 and 1; got {val_fraction}.")
        rest, held = split_off(labels, val_fraction)
        val = Split(source.train, held)
    else:
        rest = torch.arange(len(labels))
        val = Split(source.val, torch.arange(len(labels_of(source.val))))
    if limit is not None:
        rest = rest[torch.randperm(len(rest), generator=generator_for(SPLIT_SEED))[:limit]].sort().values
    return {
        "train": Split(source.train, rest),
        "val": val,
        "test": Split(source.test, torch.arange(len(labels_of(source.test)))),
    }


def fits(parts: list[Encoded], image_size: int | None) -> bool:
    """Whether all images together, decoded, stay under ``RESIDENT_BYTES``."""
    total = 0
    for part in {id(part): part for part in parts}.values():
        width, height = part.image(0).size if image_size is None else (image_size, image_size)
        total += len(part) * 3 * width * height
    return total <= RESIDENT_BYTES


def make_resident(source: Source, splits: dict[str, Split], options: Options) -> tuple[DataInfo, dict[str, Batches]]:
    """Batches of decoded images that stay on the device."""
    decoded: dict[int, Arrays] = {}
    held: dict[str, Arrays] = {}
    for key, split in splits.items():
        if id(split.part) not in decoded:
            decoded[id(split.part)] = to_arrays(split.part, options.square)
        images, labels = decoded[id(split.part)]
        whole = len(split.indices) == len(labels)
        held[key] = (images, labels) if whole else (images[split.indices], labels[split.indices])
    shapes = {key: tuple(images.shape[1:]) for key, (images, _) in held.items()}
    if len(set(shapes.values())) > 1:
        raise EspalierError(f"The splits of {source.name} have images of different sizes ({shapes}): give data.image_size.")
    train = held["train"][0]
    mean, std = options.statistics(train.shape[1], lambda: channel_statistics(train))
    home = home_of(sum(images.numel() for images, _ in held.values()), options.device)
    normalise = Normaliser(mean, std, options.device, options.channels_last)

    def batches(key: str) -> Batches:
        images, labels = held[key]
        training = key == "train"
        plan = options.plan(len(labels), training=training)
        return ResidentBatches(images.to(home), labels.to(home), plan, normalise, options.augment if training else None)

    return describe(source, splits, shapes["train"], mean, std), {key: batches(key) for key in splits}


def make_loaders(source: Source, splits: dict[str, Split], options: Options) -> tuple[DataInfo, dict[str, Batches]]:
    """Batches through worker processes that read and decode."""
    size = options.image_size
    if size is None:
        raise EspalierError(f"{source.name} is read through worker processes: give a size for its images, data.image_size=224.")
    part, indices = _encoded(splits["train"].part), splits["train"].indices
    mean, std = options.statistics(3, lambda: sampled_statistics(part, indices, options.square))
    normalise = Normaliser(mean, std, options.device, options.channels_last)

    def batches(key: str) -> Batches:
        split, training = splits[key], key == "train"
        plan = options.plan(len(split.indices), training=training)
        augment = options.augment if training else None
        return LoaderBatches(_encoded(split.part), split.indices, options.square, plan, normalise, augment, options.workers)

    return describe(source, splits, (3, size, size), mean, std), {key: batches(key) for key in splits}


def _encoded(part: Part) -> Encoded:
    assert isinstance(part, Encoded)  # assemble has refused the others
    return part


def describe(
    source: Source,
    splits: dict[str, Split],
    shape: tuple[int, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> DataInfo:
    """The facts, for models and tables."""
    return DataInfo(
        name=source.name,
        num_classes=len(source.class_names),
        in_channels=shape[0],
        image_size=shape[-1],
        class_names=source.class_names,
        mean=mean,
        std=std,
        sizes={key: len(split.indices) for key, split in splits.items()},
    )
