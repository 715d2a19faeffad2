"""torchvision and timm are optional, and a torchvision whose compiled operators do not load is still of use."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from espalier.errors import EspalierError
from espalier.tasks import vision


@pytest.fixture
def _afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guarded imports run again, with all modules put back afterwards."""
    for name in ("torchvision", "timm"):
        monkeypatch.setattr(vision, name, getattr(vision, name).__wrapped__)


def test_both_import() -> None:
    assert isinstance(vision.torchvision(), ModuleType)
    assert vision.torchvision().__name__ == "torchvision"
    assert vision.timm().__name__ == "timm"


def test_box_suppression_works_with_or_without_compiled_operators() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 5]])
    kept = vision.torchvision().ops.nms(boxes, torch.tensor([0.5, 0.9, 0.7, 0.1]), 0.5)
    assert kept.tolist() == [1, 2, 3]


def test_a_long_chain_of_boxes_drops_every_second() -> None:
    low = torch.arange(200.0)[:, None] * 4
    boxes = torch.cat([low, torch.zeros_like(low), low + 10, torch.ones_like(low)], 1)  # each overlaps its neighbours
    assert vision.keep_best_boxes(boxes, torch.linspace(1, 0, 200), 0.3).tolist() == list(range(0, 200, 2))


def test_own_box_suppression_against_a_slow_one() -> None:
    torch.manual_seed(3)
    corner = torch.rand(60, 2)
    boxes, scores = torch.cat([corner, corner + 0.1 + 0.4 * torch.rand(60, 2)], 1), torch.rand(60)

    def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
        sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
        return float(sides.prod() / (sum(areas) - sides.prod()))

    kept: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        if all(overlap(boxes[index], boxes[other]) <= 0.4 for other in kept):
            kept.append(index)
    assert vision.keep_best_boxes(boxes, scores, 0.4).tolist() == kept
    assert 5 < len(kept) < 60


@pytest.mark.usefixtures("_afresh")
@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_a_missing_module_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # makes `import` raise ImportError
    with pytest.raises(EspalierError, match=r"pip install 'espalier\[vision\]'"):
        getattr(vision, name)()


@pytest.mark.usefixtures("_afresh")
def test_a_module_that_breaks_on_import_is_an_espalier_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('built for another torch')")
    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EspalierError, match="another torch"):
        vision.timm()
