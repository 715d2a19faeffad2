"""The quick ways to shapes on meta say what the operations themselves say, or nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from espalier.graph.meta.operations import SHORTCUTS
from espalier.graph.meta.shortcuts import run_on_meta

aten: Any = torch.ops.aten


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


LAST = empty(2, 4, 5, 6).to(memory_format=torch.channels_last)
CALLS = {
    "convolution": (
        aten.convolution.default,
        empty(2, 6, 9, 8),
        empty(4, 3, 3, 2),
        empty(4),
        [2, 1],
        [1, 0],
        [1, 2],
        False,
        [0, 0],
        2,
    ),
    "convolution in 1 dimension": (
        aten.convolution.default,
        empty(2, 6, 9),
        empty(4, 6, 3),
        None,
        [1],
        [1],
        [1],
        False,
        [0],
        1,
    ),
    "batch norm": (aten.native_batch_norm.default, LAST, empty(4), empty(4), empty(4), empty(4), True, 0.1, 1e-5),
    "layer norm": (aten.native_layer_norm.default, empty(2, 3, 4, 5), [4, 5], empty(4, 5), None, 1e-5),
    "group norm": (aten.native_group_norm.default, empty(2, 4, 5), empty(4), empty(4), 2, 4, 5, 2, 1e-5),
    "addmm": (aten.addmm.default, empty(5), empty(3, 4), empty(4, 5)),
    "addmm, turned": (aten.addmm.default, empty(3, 1), empty(3, 4), empty(5, 4).t()),
    "bmm": (aten.bmm.default, empty(2, 3, 4), empty(2, 4, 5)),
    "cat": (aten.cat.default, [empty(2, 3, 4), empty(2, 5, 4)], -2),
    "roll": (aten.roll.default, empty(2, 3), [1], [0]),
    "masked_fill": (aten.masked_fill.Scalar, empty(2, 3), empty(3, dtype=torch.bool), 0.0),
    "add": (aten.add.Tensor, empty(3, 1), empty(2, 3, 4)),
    "mul of channels last": (aten.mul.Tensor, LAST, 2.0),
    "mul of turned dimensions": (aten.mul.Tensor, empty(2, 3, 4).permute(2, 0, 1), 2.0),
    "mul of a part": (aten.mul.Tensor, empty(2, 3, 4)[:, :2].permute(2, 0, 1), 2.0),
    "mul with a length of 1": (aten.mul.Tensor, empty(2, 1, 4).permute(2, 0, 1), 2.0),
    "mul of repeated entries": (aten.mul.Tensor, empty(2, 1).expand(2, 3), 2.0),
    "relu in place": (aten.relu_.default, LAST),
    "integers": (aten.mul.Tensor, empty(2, dtype=torch.int64), 0.5),
    "two dtypes": (aten.add.Tensor, empty(2), empty(2, dtype=torch.float64)),
    "outer product": (aten.mul.Tensor, empty(3, 1), empty(1, 4)),
    "cat of two dtypes": (aten.cat.default, [empty(2), empty(2, dtype=torch.float64)]),
    "mean": (aten.mean.dim, empty(2, 3, 4), [-1, 0]),
    "mean that keeps its dimensions": (aten.mean.dim, empty(2, 3, 4), [1], True),
    "mean of all": (aten.mean.default, empty(2, 3)),
    "mean of all, as no dimension": (aten.mean.dim, empty(2, 3), []),
    "mean of turned dimensions": (aten.mean.dim, empty(2, 3, 4).permute(2, 0, 1), [1]),
    "mean of channels last": (aten.mean.dim, LAST, [2, 3], True),
    "mean of a part": (aten.mean.dim, empty(2, 3, 4, 5)[:, 1:].permute(0, 2, 3, 1), [3], True),
    "sum": (aten.sum.dim_IntList, empty(2, 3, 4), [1]),
    "sum of integers": (aten.sum.dim_IntList, empty(2, 3, dtype=torch.int32), [1]),
    "amax": (aten.amax.default, empty(2, 3), [0], True),
    "norm": (aten.linalg_vector_norm.default, empty(2, 3, 4), 2, [-1], True),
    "norm of all": (aten.linalg_vector_norm.default, empty(2, 3, 4)),
    "resized": (aten.upsample_bilinear2d.default, empty(2, 3, 4, 5), [7, 8], False),
    "resized by factors": (aten.upsample_bilinear2d.vec, empty(2, 3, 4, 5), None, False, [2.0, 0.5]),
    "resized without factors": (aten.upsample_bicubic2d.vec, empty(2, 3, 4, 5), [7, 8], True, None),
    "resized to the nearest": (aten.upsample_nearest2d.vec, empty(2, 3, 4, 5), None, [1.5, 2.5]),
    "resized lines": (aten.upsample_linear1d.vec, empty(2, 3, 5), [9], False, None),
    "resized channels last": (aten.upsample_nearest2d.vec, LAST, [7, 8], None),
    "resized tokens": (
        aten.upsample_bilinear2d.vec,
        empty(2, 21, 3)[:, 1:].transpose(1, 2).view(2, 3, 4, 5),
        [7, 8],
        False,
        None,
    ),
    "resized in one channel": (aten.upsample_nearest2d.vec, empty(2, 1, 4, 5), [7, 8], None),
    "resized turned images": (aten.upsample_nearest2d.vec, empty(2, 3, 5, 4).transpose(2, 3), [7, 8], None),
    "clamp": (aten.clamp.default, empty(2, 3), -1, 1),
    "clamp by tensors": (aten.clamp.Tensor, empty(2, 3), empty(1), empty(1)),
    "clamp of integers": (aten.clamp.default, empty(2, 3, dtype=torch.int64), -1, 1.5),
    "clamp_min": (aten.clamp_min.default, empty(2, 3), 1e-6),
    "pow": (aten.pow.Tensor_Scalar, empty(2, 3), 2),
    "number to a power": (aten.pow.Scalar, 10000.0, empty(3)),
    "quotient of integers": (aten.div.Tensor, empty(2, dtype=torch.int64), empty(2, dtype=torch.int64)),
    "leaky relu in place": (aten.leaky_relu_.default, LAST, 0.1),
    "addcmul": (aten.addcmul.default, empty(3), empty(2, 3), empty(2, 3)),
    "outer product in three dimensions": (aten.div.Tensor, empty(4, 2, 1), empty(1, 1, 5)),
    "cat of turned dimensions": (aten.cat.default, [empty(2, 3, 4).permute(2, 0, 1), empty(4, 2, 3)], -1),
    "cat of channels last": (aten.cat.default, [LAST, LAST], 1),
    "transposed convolution": (aten.convolution.default, empty(2, 6, 9), empty(6, 4, 3), None, [2], [1], [1], True, [1], 1),
}


@pytest.mark.parametrize("kind", CALLS)
def test_a_shortcut_says_what_the_operation_says(kind: str):
    func, *args = CALLS[kind]
    mine, theirs = run_on_meta(func, args, {}), func(*args)
    for one, other in zip(*((x,) if isinstance(x, Tensor) else x for x in (mine, theirs)), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.stride() == other.stride() or not one.numel()


def test_a_copy_lies_in_one_piece():
    turned = empty(2, 3, 4).permute(2, 0, 1)
    made = run_on_meta(aten.clone.default, [turned], {"memory_format": torch.contiguous_format})
    assert made.shape == turned.shape
    assert made.is_contiguous()


@pytest.mark.parametrize("x", [empty(3), empty(3, dtype=torch.int64), LAST])
def test_a_rounded_quotient_keeps_its_dtype(x: Tensor):
    mine, theirs = (run(aten.div.Tensor_mode, (x, 2), {"rounding_mode": "floor"}) for run in (run_on_meta, _run))
    assert (mine.shape, mine.dtype, mine.stride()) == (theirs.shape, theirs.dtype, theirs.stride())


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


MISFITS = {
    "convolution": (aten.convolution.default, empty(2, 6, 9), empty(4, 5, 3), None, [1], [1], [1], False, [0], 1),
    "bias": (aten.convolution.default, empty(2, 6, 9), empty(4, 6, 3), empty(3), [1], [1], [1], False, [0], 1),
    "kernel": (aten.convolution.default, empty(2, 6, 2), empty(4, 6, 3), None, [1], [0], [1], False, [0], 1),
    "batch norm": (aten.native_batch_norm.default, empty(2, 4, 5), empty(3), None, None, None, True, 0.1, 1e-5),
    "layer norm": (aten.native_layer_norm.default, empty(2, 4), [5], None, None, 1e-5),
    "addmm": (aten.addmm.default, empty(5), empty(3, 4), empty(3, 5)),
    "addmm with another bias": (aten.addmm.default, empty(4), empty(3, 4), empty(4, 5)),
    "bmm": (aten.bmm.default, empty(2, 3, 4), empty(2, 3, 5)),
    "cat": (aten.cat.default, [empty(2, 3), empty(3, 4)], 1),
    "add": (aten.add.Tensor, empty(3), empty(2)),
    "outer product": (aten.mul.Tensor, empty(3, 1, 2), empty(1, 4, 3)),
    "mean": (aten.mean.dim, empty(2, 3), [2]),
    "resized": (aten.upsample_bilinear2d.default, empty(2, 3, 4, 5), [7], False),
    "add in place": (aten.add_.Tensor, empty(3), empty(2, 3)),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_what_does_not_fit_is_left_to_the_operation(kind: str):
    func, *args = MISFITS[kind]
    assert SHORTCUTS[func.overloadpacket.__name__](*args) is None
