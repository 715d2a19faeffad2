"""CIFAR and Caltech-101 from archives that are made here: torchvision's files, a few images each."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from espalier.errors import EspalierError
from espalier.tasks.classification.data import Augment, Data
from espalier.tasks.vision import torchvision
from tests.tasks.conftest import all_of

Opened = Callable[..., Data]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to fetch something fails at once."""
    import socket

    def refuse(*_: Any) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def put(file: Path, content: dict[str, Any]) -> str:
    """Pickle as the authors of CIFAR do; returns the MD5 sum."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(content))
    return hashlib.md5(file.read_bytes()).hexdigest()


def rows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two training files of 30 images, one test file of 20."""
    kind, folder = torchvision().datasets.CIFAR10, tmp_path / "cifar-10-batches-py"
    parts = {}
    for name, count in (("data_batch_1", 30), ("data_batch_2", 30), ("test_batch", 20)):
        labels = [index % 10 for index in range(count)]
        parts[name] = put(folder / name, {"data": rows(count, len(parts)), "labels": labels})
    names = put(folder / "batches.meta", {"label_names": [f"thing {number}" for number in range(10)]})
    monkeypatch.setattr(kind, "train_list", [[name, parts[name]] for name in ("data_batch_1", "data_batch_2")])
    monkeypatch.setattr(kind, "test_list", [["test_batch", parts["test_batch"]]])
    monkeypatch.setattr(kind, "meta", {"filename": "batches.meta", "key": "label_names", "md5": names})
    return tmp_path


@pytest.fixture
def cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """200 training and 100 test images."""
    kind, folder = torchvision().datasets.CIFAR100, tmp_path / "cifar-100-python"
    train = put(folder / "train", {"data": rows(200, 0), "fine_labels": [index % 100 for index in range(200)]})
    test = put(folder / "test", {"data": rows(100, 1), "fine_labels": list(range(100))})
    names = put(folder / "meta", {"fine_label_names": [f"thing {number}" for number in range(100)]})
    monkeypatch.setattr(kind, "train_list", [["train", train]])
    monkeypatch.setattr(kind, "test_list", [["test", test]])
    monkeypatch.setattr(kind, "meta", {"filename": "meta", "key": "fine_label_names", "md5": names})
    return tmp_path


@pytest.fixture
def caltech101(tmp_path: Path) -> Path:
    """Three categories of nine images, and the background class, which is none."""
    for shade, category in enumerate(("BACKGROUND_Google", "accordion", "beaver", "crab")):
        folder = tmp_path / "caltech101" / "101_ObjectCategories" / category
        folder.mkdir(parents=True)
        for number in range(1, 10):
            Image.new("RGB", (30 + number, 20), (60 * shade, 10 * number, 0)).save(folder / f"image_{number:04}.jpg")
    return tmp_path


def test_cifar10(opened: Opened, cifar10: Path) -> None:
    data = opened("cifar10", path=str(cifar10), batch_size=10)
    assert data.info.sizes == {"train": 50, "val": 10, "test": 20}
    assert data.info.class_names[9] == "thing 9"
    images = torch.cat([images for images, _ in data.test.epoch(0)])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (data.info.mean, data.info.std))
    expected = rows(20, 2).reshape(-1, 3, 32, 32)
    assert (((images * std + mean) * 255).round().byte().numpy() == expected).all()
    assert torch.cat([labels for _, labels in data.test.epoch(0)]).tolist() == [index % 10 for index in range(20)]


def test_cifar100(opened: Opened, cifar100: Path) -> None:
    data = opened("cifar100", path=str(cifar100), val_fraction=0.5)
    assert data.info.num_classes == 100
    assert data.info.sizes == {"train": 200 - 100 * round(0.5 * 2), "val": 100 * round(0.5 * 2), "test": 100}


def test_caltech101_leaves_the_background_out(opened: Opened, caltech101: Path) -> None:
    data = opened("caltech101", path=str(caltech101), batch_size=2, val_fraction=0.2, augment=Augment())
    assert data.info.class_names == ("accordion", "beaver", "crab")
    assert data.info.image_size == 128
    assert data.info.sizes == {"train": 15, "val": 3, "test": 9}
    for split in ("val", "test"):
        counts = torch.cat([labels for _, labels in all_of(getattr(data, split))]).bincount()
        assert len(counts) == 3
        assert len(set(counts.tolist())) == 1
    assert opened("caltech101", path=str(caltech101), batch_size=2, val_fraction=0.2, image_size=24).info.image_size == 24


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "caltech101"])
def test_what_is_not_there_is_not_fetched_unasked(opened: Opened, tmp_path: Path, name: str) -> None:
    with pytest.raises(EspalierError, match="download=true") as caught:
        opened(name, path=str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cifar10", "caltech101"])
def test_a_failed_download_is_one_sentence(opened: Opened, tmp_path: Path, name: str) -> None:
    with pytest.raises(EspalierError, match="could not be fetched") as caught:
        opened(name, path=str(tmp_path / "nothing"), download=True)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_not_unpickled(opened: Opened, cifar10: Path) -> None:
    (cifar10 / "cifar-10-batches-py" / "test_batch").write_bytes(b"damaged")
    with pytest.raises(EspalierError, match="download=true"):
        opened("cifar10", path=str(cifar10))
