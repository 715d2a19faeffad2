"""Batched augmentation against the same thing done image by image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from espalier.tasks.classification.data import Augment

COUNT, SIDE = 40, 12


@pytest.fixture
def images() -> Tensor:
    """Random pixels, none of them black, so that a black border can be told from them."""
    return torch.randint(1, 256, (COUNT, 3, SIDE, SIDE), dtype=torch.uint8)


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nothing_asked_for_changes_nothing(images: Tensor) -> None:
    assert torch.equal(Augment()(images, generator()), images)


@pytest.mark.parametrize(
    "augment",
    [
        Augment(flip=True),
        Augment(crop_padding=2),
        Augment(cutout=5),
        Augment(random_resized_crop=0.5),
        Augment(True, 2, 0.5, 3),
    ],
)
def test_a_batch_is_a_function_of_the_generator(images: Tensor, augment: Augment) -> None:
    before = images.clone()
    out = augment(images, generator())
    assert out.shape == images.shape
    assert out.dtype == torch.uint8
    assert torch.equal(out, augment(images, generator()))
    assert not torch.equal(out, augment(images, generator(6)))
    assert torch.equal(images, before)


def test_flip_mirrors_about_half_of_the_images(images: Tensor) -> None:
    out = Augment(flip=True)(images, generator())
    mirrored = [torch.equal(new, old.flip(-1)) for new, old in zip(out, images, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(out, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 0.25 * COUNT < sum(mirrored) < 0.75 * COUNT


def test_crop_shifts_each_image_by_its_own_offset_over_black(images: Tensor) -> None:
    padding = 2
    out = Augment(crop_padding=padding)(images, generator())
    found = []
    for new, old in zip(out, images, strict=True):
        padded = torch.zeros(3, SIDE + 2 * padding, SIDE + 2 * padding, dtype=torch.uint8)
        padded[:, padding:-padding, padding:-padding] = old
        offsets = [
            (row, column)
            for row in range(2 * padding + 1)
            for column in range(2 * padding + 1)
            if torch.equal(padded[:, row : row + SIDE, column : column + SIDE], new)
        ]
        assert len(offsets) == 1
        found += offsets
    assert len(set(found)) > 10
    assert {row for row, _ in found} == {column for _, column in found} == set(range(2 * padding + 1))


def test_cutout_blackens_one_square_clipped_at_the_border(images: Tensor) -> None:
    side = 5
    out = Augment(cutout=side)(images, generator())
    sizes = []
    for new, old in zip(out, images, strict=True):
        hole = (new == 0).all(0)
        assert torch.equal(new[:, ~hole], old[:, ~hole])
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        assert hole.sum() == len(rows) * len(columns)  # a rectangle without gaps
        for line in (rows, columns):
            assert torch.equal(line, torch.arange(line[0], line[-1] + 1))
            assert len(line) == side or line[0] == 0 or line[-1] == SIDE - 1
        sizes.append((len(rows), len(columns)))
    assert max(sizes) == (side, side)


def test_resized_crop_shows_a_part_of_the_allowed_size() -> None:
    """On pictures whose pixels say where they are, the crop can be read off its corners."""
    side, smallest = 64, 0.3
    line = torch.linspace(0, 255, side).round().to(torch.uint8)
    picture = torch.stack([line.expand(side, side), line.view(-1, 1).expand(side, side)]).expand(COUNT, 2, side, side)
    out = Augment(random_resized_crop=smallest)(picture.contiguous(), generator()).float()
    widths = (out[:, 0, side // 2, -1] - out[:, 0, side // 2, 0]) / 255 * (side - 1) / side + 1 / side
    heights = (out[:, 1, -1, side // 2] - out[:, 1, 0, side // 2]) / 255 * (side - 1) / side + 1 / side
    assert (widths > 0.3).all()
    assert (widths * heights > smallest - 0.06).all()  # a side longer than the image is clipped, 8-bit steps round
    assert (widths * heights < 1.03).all()
    aspect = widths / heights
    assert (aspect < 4 / 3 + 0.06).all()
    assert (aspect > 3 / 4 - 0.06).all()
    assert aspect.std() > 0.05
    assert out[:, 0].amin((1, 2)).std() > 5  # not always the same corner


def test_resized_crop_of_each_image_is_its_own_bilinear_resize(images: Tensor) -> None:
    """Image by image, the same box taken by a second implementation."""
    smallest, seed = 0.4, 11
    out = Augment(random_resized_crop=smallest)(images, generator(seed))
    area, aspect, x, y = torch.rand(4, COUNT, generator=generator(seed))
    area = smallest + (1 - smallest) * area
    aspect = (4 / 3) ** (2 * aspect - 1)
    for index in range(COUNT):
        width, height = min(1.0, float((area * aspect).sqrt()[index])), min(1.0, float((area / aspect).sqrt()[index]))
        left, top = float(x[index]) * (1 - width), float(y[index]) * (1 - height)
        expected = torch.empty(3, SIDE, SIDE)
        for row in range(SIDE):
            for column in range(SIDE):
                at_row = (top + height * (row + 0.5) / SIDE) * SIDE - 0.5
                at_column = (left + width * (column + 0.5) / SIDE) * SIDE - 0.5
                expected[:, row, column] = bilinear(images[index].float(), at_row, at_column)
        assert (out[index].float() - expected).abs().max() <= 0.51


def bilinear(image: Tensor, row: float, column: float) -> Tensor:
    """The colour between the pixels; beyond the border, the border's."""
    padded = functional.pad(image.unsqueeze(0), (1, 1, 1, 1), mode="replicate").squeeze(0)
    row, column = row + 1, column + 1
    r, c = int(row), int(column)
    dr, dc = row - r, column - c
    upper = padded[:, r, c] * (1 - dc) + padded[:, r, c + 1] * dc
    lower = padded[:, r + 1, c] * (1 - dc) + padded[:, r + 1, c + 1] * dc
    return upper * (1 - dr) + lower * dr
