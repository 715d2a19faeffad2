"""The held-out splits: disjoint, stratified, and the same for every seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from espalier.errors import EspalierError
from espalier.tasks.classification.data import Augment, Data, data_names
from tests.tasks.conftest import all_of, images_of

Opened = Callable[..., Data]
PLAIN = Augment()


def labels_in(data: Data, split: str) -> Counter[int]:
    return Counter(label for _, labels in all_of(getattr(data, split)) for label in labels.tolist())


def test_every_digit_is_in_exactly_one_split(opened: Opened) -> None:
    data = opened(augment=PLAIN, batch_size=1)
    shown = [images_of(all_of(getattr(data, split))) for split in ("train", "val", "test")]
    assert [len(part) for part in shown] == list(data.info.sizes.values())
    assert sum(data.info.sizes.values()) == 1797
    # scikit-learn's digits are all different from each other
    assert len(set().union(*shown)) == 1797


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5])
def test_each_class_gives_its_share(opened: Opened, fraction: float) -> None:
    data = opened(augment=PLAIN, batch_size=1, val_fraction=fraction)
    train, val = labels_in(data, "train"), labels_in(data, "val")
    for label in range(10):
        assert val[label] == round(fraction * (train[label] + val[label]))


def test_splits_do_not_depend_on_the_seed(opened: Opened) -> None:
    one, other = (opened(augment=PLAIN, batch_size=1, seed=seed) for seed in (0, 1))
    for split in ("train", "val", "test"):
        assert sorted(images_of(all_of(getattr(one, split)))) == sorted(images_of(all_of(getattr(other, split))))


def test_the_test_split_does_not_depend_on_the_validation_share(opened: Opened) -> None:
    one, other = (opened(val_fraction=fraction) for fraction in (0.1, 0.3))
    for (a, _), (b, _) in zip(all_of(one.test), all_of(other.test), strict=True):
        torch.testing.assert_close((a * one.info.std[0]) + one.info.mean[0], (b * other.info.std[0]) + other.info.mean[0])


def test_limit_shortens_the_training_part_only(opened: Opened) -> None:
    whole, short = opened(), opened(limit=100)
    assert short.info.sizes == {**whole.info.sizes, "train": 100}
    assert len(short.train) == 3
    assert opened(limit=10**6).info.sizes == whole.info.sizes


def test_mean_and_deviation_are_those_of_the_training_part(opened: Opened) -> None:
    data = opened(augment=PLAIN, batch_size=1)
    images = torch.cat([images for images, _ in data.train.epoch(0)])
    assert abs(float(images.mean())) < 1e-3
    assert abs(float(images.std()) - 1) < 1e-3


def test_a_share_that_rounds_to_nothing_is_refused(opened: Opened) -> None:
    with pytest.raises(EspalierError, match="val_fraction"):
        opened(val_fraction=0.001)


def test_an_unknown_name_is_answered_with_the_nearest(opened: Opened) -> None:
    with pytest.raises(EspalierError, match="cifar10"):
        opened("cifar-10")
    assert {"digits", "parquet", "cifar10", "cifar100", "caltech101", "folder"} <= set(data_names())
