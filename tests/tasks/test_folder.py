"""Image folders: kept decoded where they fit, else read by worker processes."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from espalier.errors import EspalierError
from espalier.tasks.classification.data import Augment, Data
from tests.tasks.conftest import all_of, pixels_of, same

Opened = Callable[..., Data]


@pytest.fixture
def opening(opened: Opened, image_folder: Path) -> Opened:
    """Opens the image folder with small batches of 16 x 16."""
    common = {"path": str(image_folder), "image_size": 16, "val_fraction": 0.2, "batch_size": 4}
    return lambda **options: opened("folder", **{**common, **options})


def test_layout_gives_classes_and_splits(opening: Opened, image_folder: Path) -> None:
    info = opening().info
    assert info.name == image_folder.name
    assert info.class_names == ("class 0", "class 1", "class 2")
    assert info.sizes == {"train": 24, "val": 6, "test": 12}
    assert (info.in_channels, info.image_size) == (3, 16)


def test_both_ways_show_the_same_images(opening: Opened) -> None:
    resident, loaded = opening(resident=True), opening(resident=False)
    assert resident.info == loaded.info
    for split in ("val", "test"):
        assert same(all_of(getattr(resident, split)), all_of(getattr(loaded, split)))
    plain = [opening(resident=resident, augment=Augment()) for resident in (True, False)]
    assert same(all_of(plain[0].train), all_of(plain[1].train))


def test_the_number_of_workers_makes_no_difference(opening: Opened) -> None:
    augment = Augment(flip=True, random_resized_crop=0.4, cutout=3)
    one, two = (opening(resident=False, augment=augment, workers=workers) for workers in (0, 2))
    for epoch in (0, 1):
        assert same(all_of(one.train, epoch), all_of(two.train, epoch))


def test_size_decides_what_stays_decoded(opening: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(opening().train) is type(opening(resident=True).train)
    assembling = importlib.import_module("espalier.tasks.classification.data.assemble")
    monkeypatch.setattr(assembling, "RESIDENT_BYTES", 1000)
    assert type(opening().train) is type(opening(resident=False).train)


def test_a_random_crop_is_taken_from_the_full_image(opening: Opened, image_folder: Path) -> None:
    """A picture much larger than the result: its crops show detail that the resized whole has lost."""
    detail = np.kron(np.indices((40, 40)).sum(0) % 2 * 255, np.ones((8, 8))).astype(np.uint8)
    for file in image_folder.rglob("*.png"):
        Image.fromarray(np.stack([detail] * 3, 2)).save(file)
    data = opening(resident=False, augment=Augment(random_resized_crop=0.01))
    cropped, whole = next(iter(data.train.epoch(0)))[0], next(iter(data.val.epoch(0)))[0]
    assert cropped.std((1, 2, 3)).mean() > 2 * whole.std((1, 2, 3)).mean()


@pytest.mark.parametrize("resident", [True, False])
def test_the_central_square_is_kept_on_request(opening: Opened, image_folder: Path, resident: bool) -> None:
    """Wide pictures with a grey square in the middle, black beside it and white above and below."""
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    picture[:, 10:50] = 255
    picture[5:35, 15:45] = 128
    for file in image_folder.rglob("*.png"):
        Image.fromarray(picture).save(file)
    whole, middle, inner = (opening(resident=resident, crop_pct=pct, augment=Augment()) for pct in (None, 1.0, 0.7))
    for split in ("train", "val", "test"):
        shown = [np.unique(pixels_of(getattr(data, split), data.info)[0].numpy()) for data in (whole, middle, inner)]
        assert 0 in shown[0]
        assert shown[1].min() >= 128
        assert shown[1].max() == 255
        assert shown[2].tolist() == [128]


@pytest.mark.parametrize(("options", "words"), [({"crop_pct": 0.0}, "shorter side"), ({"image_size": None}, "image_size=224")])
def test_a_central_square_needs_a_share_and_a_size(opening: Opened, options: dict[str, float], words: str) -> None:
    with pytest.raises(EspalierError, match=words):
        opening(**{"crop_pct": 0.875, **options})


@pytest.mark.parametrize("resident", [True, False])
def test_images_are_normalised_by_given_numbers(opening: Opened, resident: bool) -> None:
    measured, given = opening(resident=resident), opening(resident=resident, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.4))
    assert (given.info.mean, given.info.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.4))
    assert torch.equal(pixels_of(given.val, given.info), pixels_of(measured.val, measured.info))
    assert not torch.equal(next(iter(given.val.epoch(0)))[0], next(iter(measured.val.epoch(0)))[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": (0.5, 0.5, 0.5)}, "come together"),
        ({"mean": (0.5,), "std": (0.5,)}, "each of the 3 channels"),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.0, 0.5)}, "above 0"),
    ],
)
def test_numbers_to_normalise_by_must_fit(opening: Opened, options: dict[str, tuple[float, ...]], words: str) -> None:
    for resident in (True, False):
        with pytest.raises(EspalierError, match=words):
            opening(resident=resident, **options)


def test_files_of_other_kinds_and_hidden_folders_are_passed_over(opening: Opened, image_folder: Path) -> None:
    before = opening().info
    (image_folder / "train" / "class 0" / "notes.txt").write_text("no image")
    (image_folder / "train" / ".cache").mkdir()
    assert opening().info == before


def test_test_folder_comes_before_val(opening: Opened, image_folder: Path) -> None:
    shutil.copytree(image_folder / "val", image_folder / "test")
    for file in list((image_folder / "test").rglob("*.png"))[::4]:
        file.unlink()
    info = opening().info
    assert info.sizes == {"train": 30, "val": 12, "test": 9}


def test_a_broken_image_is_named(opening: Opened, image_folder: Path) -> None:
    broken = image_folder / "train" / "class 1" / "03.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(EspalierError, match=r"class 1/03\.png"):
        opening(resident=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_while_training_is_named(opening: Opened, image_folder: Path, workers: int) -> None:
    data = opening(resident=False, workers=workers)
    for broken in (image_folder / "train").rglob("*.png"):
        broken.write_bytes(b"")
    with pytest.raises(EspalierError) as caught:
        all_of(data.train)
    assert ".png" in str(caught.value)
    assert "\n" not in str(caught.value)


def no_train(folder: Path) -> None:
    shutil.rmtree(folder / "train")


def no_test(folder: Path) -> None:
    shutil.rmtree(folder / "val")


def no_classes(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()


def empty_class(folder: Path) -> None:
    shutil.rmtree(folder / "train" / "class 1")
    (folder / "train" / "class 1").mkdir()


def class_of_its_own(folder: Path) -> None:
    (folder / "val" / "class 2").rename(folder / "val" / "stranger")


@pytest.mark.parametrize(
    ("damage", "word"),
    [(no_train, "train"), (no_test, "test"), (no_classes, "train"), (empty_class, "class 1"), (class_of_its_own, "stranger")],
)
def test_what_is_missing_is_named(opening: Opened, image_folder: Path, damage: Callable[[Path], None], word: str) -> None:
    damage(image_folder)
    with pytest.raises(EspalierError, match=word):
        opening()


def test_images_of_many_sizes_need_one(opening: Opened) -> None:
    with pytest.raises(EspalierError, match="image_size"):
        opening(image_size=None)
    with pytest.raises(EspalierError, match="image_size"):
        opening(image_size=None, resident=False)


def test_a_path_is_needed(opened: Opened) -> None:
    with pytest.raises(EspalierError, match=r"data\.path"):
        opened("folder")


def test_labels_follow_the_images(opening: Opened) -> None:
    """Every training image still has the label of the folder that it lies in, however the epoch is shuffled."""
    by_label = {}
    for images, labels in opening(resident=True, augment=Augment()).train.epoch(0):
        for image, label in zip(images, labels.tolist(), strict=True):
            by_label[image.numpy().tobytes()] = label
    for images, labels in opening(resident=False, augment=Augment(), workers=2).train.epoch(1):
        for image, label in zip(images, labels.tolist(), strict=True):
            assert by_label[image.numpy().tobytes()] == label
    assert torch.tensor(list(by_label.values())).bincount().tolist() == [8, 8, 8]
