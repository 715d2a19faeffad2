"""Convolutions, norms, pooling: operations that know which dimension holds the channels."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from espalier.graph.integers import may_change
from espalier.graph.labels import KERNEL, Labels
from espalier.graph.rows import Rows, merge
from espalier.graph.rules.matmul import layer
from espalier.graph.rules.registry import Arguments, rule


@rule("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution")
def convolution(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """Input (B, I, ...), weight (O, I / groups, ...), transposed (I, O / groups, ...); groups are an axis of their own."""
    x, weight, bias, groups = given["input"], given["weight"], given["bias"], given["groups"]
    batch, source, *spatial = labels.of(x)
    spatial = [None if rows is None else _untouched(labels, given, rows, place) for place, rows in enumerate(spatial)]
    if groups == 1 and not given["transposed"]:
        outputs = labels.unify_matrix(source, weight, op)
    else:
        outputs = _grouped(labels, op, source, given, out.shape[1])
    kernel = labels.of(weight)
    if bias is not None:
        labels.unify_vectors(outputs, [bias], op)
    labels.put(out, [batch, outputs, *spatial])
    pixels = zip(spatial, (x if given["transposed"] else out).shape[2:], strict=True)
    labels.note_work(op, (batch, x.shape[0]), *pixels, *zip(kernel, weight.shape, strict=True))
    labels.put_source(out, None if given["transposed"] else layer(labels, weight, bias, outputs))


def _untouched(labels: Labels, given: Arguments, rows: Rows, place: int) -> Rows:
    """The label of a spatial dimension along which the kernel has length 1; others cannot be cut."""
    setting = [given[name][place] if len(given[name]) > place else given[name][0] for name in ("stride", "padding", "dilation")]
    if given["weight"].shape[place + 2] == 1 and setting[:2] == [1, 0] and not given["transposed"]:
        return rows
    labels.freeze(rows, "is a spatial dimension of a convolution")
    return None


def _grouped(labels: Labels, op: str, source: Rows, given: Arguments, width: int) -> Rows:
    """Channels are (group, channel in group); the weight lists those of all groups on one side, of one on the other."""
    groups, weight = given["groups"], given["weight"]
    frame = labels.frame
    number = frame.sizes[0] if frame is not None and frame.name.startswith("conv") and frame.sizes else groups
    free = (may_change(number), True)
    if not given["transposed"] and (depthwise := labels.meet_depthwise(source, weight, op)) is not None:
        labels.demand(number, source, groups)
        return depthwise
    sizes = given["input"].shape[1], weight.shape[0]
    many, few, *kernel = labels.of(weight)
    for rows in kernel:
        labels.axes.freeze(rows, KERNEL)
    if given["transposed"] and groups == 1:
        labels.unify(source, many, op)
        return few
    if given["transposed"]:
        outer, inner = labels.split(many, (groups, sizes[1] // groups), free)
        mine, inside = labels.split(source, (groups, sizes[0] // groups), free)
        labels.unify(outer, mine, op)
        labels.unify(inner, inside, op)
        outputs = merge([(outer, groups), (few, width // groups)])
    else:
        mine, inside = labels.split(source, (groups, sizes[0] // groups), free)
        outer, _ = labels.split(many, (groups, sizes[1] // groups), free)
        labels.unify(outer, mine, op)
        labels.unify(inside, few, op)
        outputs = many
    labels.demand(number, mine if mine is not None else outer, groups)
    return outputs


@rule(
    "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update", "_batch_norm_no_update", "_native_batch_norm_legit_functional", "batch_norm",
)  # fmt: skip
def batch_norm(labels: Labels, op: str, given: Arguments, out: Any) -> None:
    """Channels are dimension 1; the others are averaged over, if only in training."""
    x = given["input"]
    dims = labels.of(x)
    channels = dims[1]
    for dim, rows in enumerate(dims):
        if dim != 1 and rows is not None:
            labels.note_inexact(rows, op)
    vectors = [given.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    labels.unify_vectors(channels, [vector for vector in vectors if isinstance(vector, Tensor)], op)
    for result in out if isinstance(out, tuple | list) else (out,):
        if result.shape == x.shape:
            labels.put_like(result, x)
        elif result.dim() == 1 and result.shape[0] == x.shape[1]:
            labels.put(result, [channels])


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm")
def layer_norm(labels: Labels, op: str, given: Arguments, out: Any) -> None:
    """Normalised over the last dimensions, all of them together."""
    x, weight, bias = given["input"], given.get("weight"), given.get("bias")
    count = len(given["normalized_shape"])
    dims = labels.of(x)
    for place in range(1, count + 1):
        learned = [tensor for tensor in (weight, bias) if tensor is not None]
        if count == 1:
            labels.unify_vectors(dims[-1], learned, op)
        else:
            for tensor in learned:
                labels.unify(dims[-place], labels.of(tensor)[-place], op)
        labels.note_inexact(dims[-place], op)
    frame = labels.frame
    if frame is not None and frame.name in ("layer_norm", "rms_norm") and len(frame.sizes) == count:
        for number, rows, size in zip(frame.sizes, dims[-count:], x.shape[-count:], strict=True):
            labels.demand(number, rows, size)
    results = out if isinstance(out, tuple | list) else (out,)
    labels.put(results[0], dims)
    for statistic in results[1:]:
        labels.put(statistic, [*dims[: x.dim() - count], *[None] * (statistic.dim() - x.dim() + count)])
    names = [labels.name_of(tensor) for tensor in (weight, bias) if tensor is not None]
    if names:
        labels.put_source(results[0], labels.new_source(names, [0] * len(names)))


@rule("native_group_norm", "group_norm")
def group_norm(labels: Labels, op: str, given: Arguments, out: Any) -> None:
    """Channels are (group, channel in group): groups leave as a whole, or all lose the same places."""
    x = given["input"]
    groups = given.get("group", given.get("num_groups"))
    channels = labels.of(x)[1]
    labels.unify_vectors(channels, [given[name] for name in ("weight", "bias") if given[name] is not None], op)
    frame = labels.frame
    number = frame.sizes[0] if frame is not None and frame.name == "group_norm" and frame.sizes else groups
    outer, inner = labels.split(channels, (groups, x.shape[1] // groups), (may_change(number), True))
    labels.demand(number, outer, groups)
    labels.note_inexact(inner, op)
    results = out if isinstance(out, tuple | list) else (out,)
    labels.put(results[0], labels.of(x))


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(labels: Labels, op: str, given: Arguments, out: Any) -> None:
    """Direction (O, I, ...) times length (O, 1, ...)."""
    direction, length = given["v"], given["g"]
    dims = labels.of(direction)
    for place, rows in enumerate(labels.of(length)):
        if length.shape[place] == direction.shape[place]:
            labels.unify(dims[place], rows, op)
        else:
            labels.note_inexact(dims[place], op)
    labels.put(out[0] if isinstance(out, tuple | list) else out, dims)


SPATIAL = (
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d",
    "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "_upsample_nearest_exact2d", "upsample_linear1d", "upsample_bilinear2d", "_upsample_bilinear2d_aa",
    "upsample_bicubic2d", "_upsample_bicubic2d_aa", "upsample_trilinear3d", "reflection_pad1d", "reflection_pad2d",
    "replication_pad1d", "replication_pad2d", "grid_sampler_2d", "grid_sampler_3d", "fractional_max_pool2d",
)  # fmt: skip


@rule(*SPATIAL)
def spatial(labels: Labels, op: str, given: Arguments, out: Any) -> None:
    """Pooling, resizing, padding of pixels: the last dimensions are spatial, those before stay."""
    x = given.get("self", given.get("input"))
    assert x is not None
    digits = re.search(r"([123])d", op)
    count = int(digits.group(1)) if digits else 2
    dims = labels.of(x)
    for rows in dims[x.dim() - count :]:
        labels.freeze(rows, f"is a spatial dimension of {op}")
    for result in out if isinstance(out, tuple | list) else (out,):
        labels.put(result, [*dims[: x.dim() - count], *[None] * count])


@rule("roi_align", "_roi_align")
def roi_align(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """Regions (K) of images (B, C, H, W) -> (K, C, h, w)."""
    labels.put(out, [None, labels.of(given["input"])[1], None, None])
