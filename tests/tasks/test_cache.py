"""Decoded images are kept: the second opening is equal and does not decode, and a bad cache file costs nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from espalier.tasks.classification.data import Data
from tests.tasks.conftest import all_of, encoded, pictures, same, write_parquet

Opened = Callable[..., Data]
SIZE = 10


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of this test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ESPALIER_CACHE", str(folder))
    return folder


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every image that Pillow opens."""
    from PIL import Image

    opened, really = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(1) or really(*args, **options))
    return opened


def equal(one: Data, other: Data) -> bool:
    return all(same(all_of(getattr(one, split)), all_of(getattr(other, split))) for split in ("train", "val", "test"))


def test_second_opening_is_equal_and_decodes_little(
    opened: Opened, parquet: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened("parquet", path=str(parquet), image_size=SIZE)
    decoded = count_decoded(monkeypatch)
    second = opened("parquet", path=str(parquet), image_size=SIZE)
    assert equal(first, second)
    assert not decoded
    assert len(list(cache.glob("*.npz"))) == 2


@pytest.mark.parametrize("damage", ["cut short", "empty", "text", "flipped", "foreign", "pickled"])
def test_a_bad_cache_file_is_decoded_anew(opened: Opened, parquet: Path, cache: Path, damage: str) -> None:
    first = opened("parquet", path=str(parquet))
    for file in cache.glob("*.npz"):
        data = file.read_bytes()
        if damage == "foreign":
            np.savez(file, images=np.zeros((3, 3)), labels=np.zeros(2))
        elif damage == "pickled":
            np.savez(file, images=np.array([{}], dtype=object), labels=np.zeros(1))
        else:
            half = len(data) // 2
            flipped = data[:half] + bytes([data[half] ^ 255]) + data[half + 1 :]
            file.write_bytes({"cut short": data[:half], "empty": b"", "text": b"hello", "flipped": flipped}[damage])
    assert equal(first, opened("parquet", path=str(parquet)))
    assert equal(first, opened("parquet", path=str(parquet)))


def test_a_changed_file_is_decoded_anew(opened: Opened, parquet: Path, cache: Path) -> None:
    first = opened("parquet", path=str(parquet))
    images, labels = pictures()
    stat = (parquet / "test.parquet").stat()
    write_parquet(parquet / "test.parquet", [encoded(255 - image) for image in images[200:]], labels[200:])
    os.utime(parquet / "test.parquet", ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    assert not same(all_of(first.test), all_of(opened("parquet", path=str(parquet)).test))


def test_sizes_do_not_share_a_cache_file(opened: Opened, parquet: Path, cache: Path) -> None:
    assert opened("parquet", path=str(parquet), image_size=8).info.image_size == 8
    assert opened("parquet", path=str(parquet), image_size=9).info.image_size == 9


def test_a_cache_that_cannot_be_written_is_done_without(
    opened: Opened, parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened("parquet", path=str(parquet))
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ESPALIER_CACHE", str(tmp_path / "file"))
    assert equal(first, opened("parquet", path=str(parquet)))


def test_nothing_unfinished_is_left_behind(opened: Opened, parquet: Path, cache: Path) -> None:
    opened("parquet", path=str(parquet))
    assert not [file for file in cache.iterdir() if "part" in file.name]
