"""Parquet folders: what is read, and what is said about broken ones."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from espalier.errors import EspalierError
from espalier.tasks.classification.data import Augment, Data
from tests.tasks.conftest import SIDE, all_of, encoded, images_of, pictures, pixels_of, write_parquet

Opened = Callable[..., Data]


def test_pixels_labels_and_names_are_those_of_the_file(opened: Opened, parquet: Path) -> None:
    data = opened("parquet", path=str(parquet))
    images, labels = pictures()
    assert (pixels_of(data.test, data.info).numpy() == images[200:]).all()
    assert torch.cat([part for _, part in data.test.epoch(0)]).tolist() == labels[200:].tolist()
    assert data.info.class_names[3] == "digit 3"
    assert (data.info.num_classes, data.info.in_channels, data.info.image_size) == (10, 3, SIDE)
    assert data.info.name == parquet.name
    assert data.info.sizes["train"] + data.info.sizes["val"] == 200


def test_grey_and_jpeg_images_become_rgb(opened: Opened, parquet: Path) -> None:
    images, labels = pictures()
    rows = [encoded(image[..., 0], "jpeg") for image in images[:50]]
    write_parquet(parquet / "test.parquet", rows, labels[:50])
    data = opened("parquet", path=str(parquet))
    expected = np.stack([np.asarray(Image.open(io.BytesIO(row)).convert("RGB")) for row in rows])
    assert (pixels_of(data.test, data.info).numpy() == expected).all()


def test_other_column_names_large_binaries_and_no_class_names(opened: Opened, parquet: Path) -> None:
    images, labels = pictures()
    for split, part in (("train", slice(0, 200)), ("test", slice(200, 300))):
        table = pa.table(
            {
                "fine_label": labels[part].astype(np.int32),
                "image": pa.array(
                    [{"bytes": encoded(image)} for image in images[part]], pa.struct([("bytes", pa.large_binary())])
                ),
            }
        )
        pq.write_table(table, parquet / f"{split}.parquet", row_group_size=32)
    data = opened("parquet", path=str(parquet))
    assert data.info.class_names == tuple("0123456789")
    assert (pixels_of(data.test, data.info).numpy() == images[200:]).all()


def test_validation_stands_in_for_a_missing_test_file(opened: Opened, parquet: Path) -> None:
    before = all_of(opened("parquet", path=str(parquet)).test)
    (parquet / "test.parquet").rename(parquet / "validation.parquet")
    data = opened("parquet", path=str(parquet))
    assert images_of(all_of(data.test)) == images_of(before)
    assert data.info.sizes["val"] + data.info.sizes["train"] == 200


def test_a_file_in_pieces_is_one_split(opened: Opened, parquet: Path) -> None:
    whole = opened("parquet", path=str(parquet), augment=Augment())
    images, labels = pictures()
    (parquet / "train.parquet").unlink()
    for piece, part in enumerate((slice(0, 90), slice(90, 200))):
        name = f"train-{piece:05}-of-00002.parquet"
        write_parquet(parquet / name, [encoded(image) for image in images[part]], labels[part])
    pieces = opened("parquet", path=str(parquet), augment=Augment())
    assert pieces.info == whole.info
    assert images_of(all_of(pieces.train)) == images_of(all_of(whole.train))


def test_images_are_resized_on_request(opened: Opened, parquet: Path) -> None:
    images, labels = pictures()
    rows = [encoded(np.asarray(Image.fromarray(image).resize((9 + row % 4, 14)))) for row, image in enumerate(images[:100])]
    write_parquet(parquet / "test.parquet", rows, labels[:100])
    data = opened("parquet", path=str(parquet), image_size=16)
    assert data.info.image_size == 16
    expected = Image.open(io.BytesIO(rows[7])).resize((16, 16), Image.Resampling.BILINEAR)
    assert (pixels_of(data.test, data.info)[7].numpy() == np.asarray(expected)).all()
    with pytest.raises(EspalierError, match="image_size"):
        opened("parquet", path=str(parquet))


def rewritten(parquet: Path, **options: Any) -> None:
    """train.parquet with something wrong in it."""
    images, labels = pictures()
    rows = options.pop("rows", [encoded(image) for image in images[:200]])
    write_parquet(parquet / "train.parquet", rows, options.pop("labels", labels[:200]), **options)


def no_folder(parquet: Path) -> None:
    for file in parquet.iterdir():
        file.unlink()
    parquet.rmdir()


def no_test_file(parquet: Path) -> None:
    (parquet / "test.parquet").unlink()


def cut_short(parquet: Path) -> None:
    data = (parquet / "train.parquet").read_bytes()
    (parquet / "train.parquet").write_bytes(data[: len(data) // 2])


def not_parquet(parquet: Path) -> None:
    (parquet / "train.parquet").write_text("label,img\n")


def with_row(parquet: Path, row: bytes) -> None:
    images, _ = pictures()
    rows = [encoded(image) for image in images[:200]]
    rows[17] = row
    rewritten(parquet, rows=rows)


def bad_label(parquet: Path) -> None:
    labels = pictures()[1][:200].copy()
    labels[5] = 12
    rewritten(parquet, labels=labels)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_folder, ["data.path"]),
        (no_test_file, ["test.parquet"]),
        (cut_short, ["train.parquet", "not a readable Parquet file"]),
        (not_parquet, ["train.parquet", "not a readable Parquet file"]),
        (lambda parquet: rewritten(parquet, image="picture"), ["train.parquet", "img or image", "picture"]),
        (lambda parquet: rewritten(parquet, label="class"), ["train.parquet", "label", "class"]),
        (lambda parquet: with_row(parquet, b"no image"), ["Row 17", "train.parquet", "not a readable image"]),
        (lambda parquet: with_row(parquet, b""), ["Row 17", "train.parquet"]),
        (lambda parquet: with_row(parquet, encoded(pictures()[0][17])[:90]), ["Row 17", "not a readable image"]),
        (lambda parquet: with_row(parquet, encoded(pictures()[0][17][:9])), ["size"]),
        (bad_label, ["label", "12"]),
        (lambda parquet: rewritten(parquet, labels=[str(number) for number in range(200)]), ["label", "whole number"]),
        (lambda parquet: rewritten(parquet, labels=[None, *range(199)]), ["label", "whole number"]),
        (lambda parquet: rewritten(parquet, rows=[], labels=np.array([], dtype=np.int64)), ["train.parquet"]),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    opened: Opened, parquet: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    damage(parquet)
    with pytest.raises(EspalierError) as caught:
        opened("parquet", path=str(parquet))
    message = str(caught.value)
    assert "\n" not in message
    assert " at 0x" not in message
    for word in words:
        assert word in message


def test_a_path_is_needed(opened: Opened) -> None:
    with pytest.raises(EspalierError, match=r"data\.path"):
        opened("parquet")
