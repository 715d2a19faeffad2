"""The one place where torchvision and timm are imported: neither is needed, and either may fail to load.

torchvision built for CUDA does not import beside a CPU-only torch: its compiled operators cannot be loaded, and it then
gives up because the operator ``nms``, which it describes, does not exist. Models, transforms and data sets do not need
those operators, so the missing ones are declared here, and ``nms`` is written in plain torch.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

import torch
from torch import Tensor

from espalier.errors import EspalierError

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
ROUNDS = 30
_declared: list[torch.library.Library] = []  # the declarations last as long as their library is held


@functools.cache
def torchvision() -> Any:
    """The module ``torchvision``.

    Raises:
        EspalierError: it is not installed or does not fit to the installed torch.
    """
    try:
        return _import("torchvision")
    except ImportError as error:
        raise _missing("torchvision", error) from error
    except RuntimeError:
        pass  # the compiled operators are missing: once more with our own
    try:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _declare_operators()
        module = _import("torchvision")
        boxes = _import("torchvision.ops.boxes")
    except (ImportError, RuntimeError) as error:
        raise _missing("torchvision", error) from error
    if hasattr(boxes, "_assert_has_ops"):  # would refuse to call nms without the compiled library
        boxes._assert_has_ops = lambda: None
    return module


@functools.cache
def timm() -> Any:
    """The module ``timm``.

    Raises:
        EspalierError: it is not installed, or torchvision, which it needs, does not work.
    """
    torchvision()
    try:
        return _import("timm")
    except (ImportError, RuntimeError) as error:
        raise _missing("timm", error) from error


def _import(name: str) -> Any:
    return importlib.import_module(name)


def _missing(name: str, error: Exception) -> EspalierError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return EspalierError(f"{name} cannot be imported ({reason}): pip install 'espalier[vision]'.")


def _declare_operators() -> None:
    if _declared:
        return
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    library.impl("nms", keep_best_boxes, "CPU")  # type: ignore[no-untyped-call]
    _declared.append(library)


def keep_best_boxes(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression.

    Args:
        boxes: (N, 4) as x1, y1, x2, y2.
        scores: (N,).
        iou_threshold: a box that overlaps a better, kept one by more is dropped.

    Returns:
        Indices of the kept boxes, best first.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 10, 10], [20, 0, 30, 10]])
        >>> keep_best_boxes(boxes, torch.tensor([0.5, 0.9, 0.7]), 0.5)
        tensor([1, 2])
    """
    best_first = scores.argsort(descending=True, stable=True)
    left, top, right, bottom = boxes[best_first].unbind(1)
    areas = (right - left) * (bottom - top)
    widths = torch.minimum(right[:, None], right).sub_(torch.maximum(left[:, None], left)).clamp_(min=0)
    heights = torch.minimum(bottom[:, None], bottom).sub_(torch.maximum(top[:, None], top)).clamp_(min=0)
    shared = widths.mul_(heights)
    drops = (shared > iou_threshold * (areas[:, None] + areas - shared)).triu_(1).to(boxes.dtype)  # the row drops the column
    kept = torch.ones_like(areas)
    for _ in range(ROUNDS):  # the best box is right at once, and after each round one more at least: mostly a few do for all
        left_over = (kept @ drops == 0).to(boxes.dtype)
        if torch.equal(left_over, kept):
            return best_first[kept > 0]
        kept = left_over
    dropped = torch.zeros_like(areas)
    for index in range(len(areas)):  # long chains of boxes, one dropping the next
        if not dropped[index]:
            dropped += drops[index]
    return best_first[dropped == 0]
