"""Layers of torch constructed anew: sizes from the weights that a cut left, everything else as the dense layer has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def construct(dense: Any, cut: Any) -> nn.Module | None:
    """A narrow layer in place of ``dense``, or None if it is no layer of torch.

    A subclass keeps its class and what it added; what torch's own constructor sets comes from a fresh call of that.
    """
    for base, make in MAKERS.items():
        if isinstance(dense, base):
            fresh = make(base, dense, cut)
            break
    else:
        return None
    narrow = object.__new__(type(dense))
    own = {"_forward_hooks", "_forward_pre_hooks", "training"}
    narrow.__dict__.update(vars(dense))
    narrow.__dict__.update({name: value for name, value in vars(fresh).items() if name not in own})
    if not isinstance(dense, nn.MultiheadAttention):
        narrow.__dict__["_modules"] = dict(dense._modules)
    narrow.__dict__["_buffers"] = {**dense._buffers, **fresh._buffers}
    narrow.__dict__["_parameters"] = {**dense._parameters, **fresh._parameters}
    narrow.__dict__["constructed"] = True
    return narrow


def conv(base: Any, dense: Any, cut: Any) -> nn.Module:
    out, inside = cut.weight.shape[:2]
    return base(
        inside * cut.groups,
        out,
        dense.kernel_size,
        dense.stride,
        dense.padding,
        dense.dilation,
        cut.groups,
        dense.bias is not None,
        dense.padding_mode,
    )


def transposed(base: Any, dense: Any, cut: Any) -> nn.Module:
    inside, out = cut.weight.shape[:2]
    return base(
        inside,
        out * cut.groups,
        dense.kernel_size,
        dense.stride,
        dense.padding,
        dense.output_padding,
        cut.groups,
        dense.bias is not None,
        dense.dilation,
        dense.padding_mode,
    )


def linear(base: Any, dense: Any, cut: Any) -> nn.Module:
    out, inside = cut.weight.shape
    return nn.Linear(inside, out, dense.bias is not None)


def running(base: Any, dense: Any, cut: Any) -> nn.Module:
    sized = next((t for t in (cut.weight, cut.running_mean) if t is not None), None)
    width = cut.num_features if sized is None else sized.shape[0]
    return base(width, dense.eps, dense.momentum, dense.affine, dense.track_running_stats)


def group_norm(base: Any, dense: Any, cut: Any) -> nn.Module:
    width = cut.num_channels if cut.weight is None else cut.weight.shape[0]
    return nn.GroupNorm(cut.num_groups, width, dense.eps, dense.affine)


def layer_norm(base: Any, dense: Any, cut: Any) -> nn.Module:
    shape = cut.normalized_shape if cut.weight is None else tuple(cut.weight.shape)
    return nn.LayerNorm(shape, dense.eps, dense.elementwise_affine, getattr(dense, "bias", None) is not None)


def rms_norm(base: Any, dense: Any, cut: Any) -> nn.Module:
    shape = cut.normalized_shape if cut.weight is None else tuple(cut.weight.shape)
    return nn.RMSNorm(shape, dense.eps, dense.elementwise_affine)


def embedding(base: Any, dense: Any, cut: Any) -> nn.Module:
    return nn.Embedding(*cut.weight.shape, dense.padding_idx, dense.max_norm, dense.norm_type, dense.scale_grad_by_freq)


def attention(base: Any, dense: Any, cut: Any) -> nn.Module:
    return nn.MultiheadAttention(
        cut.out_proj.weight.shape[0],
        cut.num_heads,
        dense.dropout,
        dense.in_proj_bias is not None,
        dense.bias_k is not None,
        dense.add_zero_attn,
        batch_first=dense.batch_first,
    )


def recurrent(base: Any, dense: Any, cut: Any) -> nn.Module:
    hidden, inside = cut.weight_hh_l0.shape[1], cut.weight_ih_l0.shape[1]
    return base(inside, hidden, dense.num_layers, dense.bias, dense.batch_first, dense.dropout, dense.bidirectional)


def prelu(base: Any, dense: Any, cut: Any) -> nn.Module:
    return nn.PReLU(cut.weight.shape[0])


MAKERS: dict[type[nn.Module], Callable[[Any, Any, Any], nn.Module]] = {
    **dict.fromkeys(CONVS, conv),
    **dict.fromkeys(TRANSPOSED, transposed),
    **dict.fromkeys(BATCH_NORMS, running),
    **dict.fromkeys(INSTANCE_NORMS, running),
    nn.GroupNorm: group_norm,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: rms_norm,
    nn.Embedding: embedding,
    nn.MultiheadAttention: attention,
    nn.LSTM: recurrent,
    nn.GRU: recurrent,
    nn.Linear: linear,
    nn.PReLU: prelu,
}
