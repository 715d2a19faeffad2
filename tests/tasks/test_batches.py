"""What the training engine relies on, for every way in which batches are made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from espalier.errors import EspalierError
from espalier.tasks.classification.data import Augment, Data
from tests.helpers.host import no_reads
from tests.tasks.conftest import all_of, images_of, same

Opened = Callable[..., Data]


@pytest.fixture(params=["digits", "parquet", "parquet through the loader", "files", "files, two workers"])
def make(request: pytest.FixtureRequest, opened: Opened) -> Opened:
    """Opens data of each kind: ``make(**options)``."""
    kind = request.param
    if kind == "digits":
        return opened
    name, fixture = ("parquet", "parquet") if kind.startswith("parquet") else ("folder", "image_folder")
    common = {
        "path": str(request.getfixturevalue(fixture)),
        "resident": kind == "parquet",
        "image_size": 16,
        "val_fraction": 0.2,
        "workers": 2 if "two" in kind else 0,
        "batch_size": 4,
    }
    return lambda **options: opened(name, **{**common, **options})


def test_batches_are_normalised_floats_and_labels(make: Opened) -> None:
    data = make()
    info = data.info
    for images, labels in data.train.epoch(0):
        assert images.shape == (len(labels), info.in_channels, info.image_size, info.image_size)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert ((labels >= 0) & (labels < info.num_classes)).all()
    assert len(info.class_names) == info.num_classes
    assert len(info.mean) == len(info.std) == info.in_channels


def test_an_epoch_has_full_training_batches_and_all_test_images(make: Opened) -> None:
    data = make()
    train, test = all_of(data.train), all_of(data.test)
    assert len(train) == len(data.train)
    assert len(test) == len(data.test)
    assert len({len(labels) for _, labels in train}) == 1
    assert sum(len(labels) for _, labels in test) == data.info.sizes["test"]


def test_batches_are_a_function_of_seed_and_epoch(make: Opened) -> None:
    train = make(seed=1).train
    first = all_of(train, 3)
    torch.rand(7)  # what else draws random numbers does not matter
    assert same(first, all_of(make(seed=1).train, 3))
    assert same(first, all_of(train, 3))
    assert not same(first, all_of(train, 4))
    assert not same(first, all_of(make(seed=2).train, 3))


def test_the_global_generator_is_left_alone(make: Opened) -> None:
    before = torch.get_rng_state()
    all_of(make().train)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_can_be_entered_at_any_batch(make: Opened) -> None:
    train = make().train
    whole = all_of(train, 1)
    for start in (0, 1, len(whole) - 1, len(whole)):
        assert same(all_of(train, 1, start), whole[start:])


def test_an_epoch_that_is_left_early_does_not_disturb_the_next(make: Opened) -> None:
    train = make().train
    whole = all_of(train, 1)
    next(iter(train.epoch(0)))
    assert same(all_of(train, 1), whole)


def test_two_epochs_can_be_under_way_at_once(make: Opened) -> None:
    train = make().train
    first, second = all_of(train, 0), all_of(train, 1)
    pairs = list(zip(train.epoch(0), train.epoch(1), strict=True))
    assert same([one for one, _ in pairs], first)
    assert same([other for _, other in pairs], second)


def test_evaluation_is_in_one_order_and_never_augmented(make: Opened) -> None:
    data = make(augment=Augment(flip=True, crop_padding=2, cutout=4, random_resized_crop=0.3))
    plain = make(augment=Augment())
    for batches, others in ((data.val, plain.val), (data.test, plain.test)):
        assert same(all_of(batches, 0), all_of(batches, 5))
        assert same(all_of(batches), all_of(others))


def test_augmentation_reaches_the_training_images(make: Opened) -> None:
    plain = all_of(make(augment=Augment()).train)
    for augment in (Augment(flip=True), Augment(crop_padding=2), Augment(cutout=4), Augment(random_resized_crop=0.3)):
        treated = all_of(make(augment=augment).train)
        assert not same(plain, treated)
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(plain, treated, strict=True))


def test_channels_last(make: Opened) -> None:
    images, _ = next(iter(make(channels_last=True).train.epoch(0)))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, next(iter(make().train.epoch(0)))[0])


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_a_training_epoch_without_overlap(make: Opened, world: int) -> None:
    whole = make(augment=Augment(), batch_size=2 * world)
    parts = [all_of(make(augment=Augment(), batch_size=2, rank=rank, world=world).train) for rank in range(world)]
    together = [
        (torch.cat([part[i][0] for part in parts]), torch.cat([part[i][1] for part in parts])) for i in range(len(parts[0]))
    ]
    assert {len(part) for part in parts} == {len(whole.train)}
    assert same(together, all_of(whole.train))


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 9])
def test_processes_share_evaluation_every_image_once(make: Opened, world: int, batch_size: int) -> None:
    """With equally many batches on each, none of them empty: a mean over no images is not a number."""
    whole, shares = make(), [make(batch_size=batch_size, rank=rank, world=world) for rank in range(world)]
    for split in ("val", "test"):
        parts = [all_of(getattr(data, split)) for data in shares]
        assert len({len(part) for part in parts}) == 1
        assert all(len(part) == len(getattr(data, split)) for part, data in zip(parts, shares, strict=True))
        assert all(len(labels) for part in parts for _, labels in part)
        seen = Counter(image for part in parts for image in images_of(part))
        assert seen == Counter(images_of(all_of(getattr(whole, split))))


def test_more_processes_than_images_are_refused(make: Opened) -> None:
    with pytest.raises(EspalierError, match="1000 processes"):
        make(world=1000)


def test_processes_augment_differently(make: Opened) -> None:
    augment = Augment(crop_padding=2)
    drawn = [all_of(make(augment=augment, batch_size=4, rank=rank, world=2).train) for rank in (0, 1)]
    again = [all_of(make(augment=augment, batch_size=4, rank=rank, world=2).train) for rank in (0, 1)]
    assert same(drawn[0], again[0])
    assert not same(drawn[0], drawn[1])


def test_resident_batches_are_made_without_reading_on_the_host(opened: Opened) -> None:
    everything = Augment(flip=True, crop_padding=2, random_resized_crop=0.5, cutout=2)
    batches = opened(augment=everything).train.epoch(0)
    next(batches)
    with no_reads():
        assert sum(1 for _ in batches)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_resident_batches_do_not_wait_for_the_gpu(opened: Opened) -> None:
    batches = opened(augment=Augment(flip=True, crop_padding=2), device=torch.device("cuda")).train.epoch(0)
    next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert sum(1 for _ in batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
