"""Which parameters of a model speak for its channels, and sums over their slices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from espalier.graph.graph import Group, Member
from espalier.graph.layout import Layout, Place, Places

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter, without gradient tracking; names that share one all have it."""
    return {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}


def weights(model: nn.Module, layout: Layout) -> Places:
    """Every parameter but what is added (biases of layers, beta of norms)."""
    return layout.places(parameters(model), lambda group, member: not member.name.rpartition(".")[2].endswith("bias"))


def norm_scales(model: nn.Module, layout: Layout) -> Places:
    """gamma of every norm."""
    scales = set(_norm_scales(model))
    return layout.places(parameters(model), lambda group, member: member.name in scales)


def filters(model: nn.Module, layout: Layout, *, norms_first: bool = False) -> Places:
    """The slices that make a channel: output filters of convolutions and rows of linear layers.

    Groups that no such layer makes (a class token, say) are seen through all their weights.

    Args:
        model: the model.
        layout: the channels.
        norms_first: groups that run through a norm are seen through its scale alone.
    """
    made = _made_along(model)
    scales = set(_norm_scales(model))
    wanted: dict[Group, Callable[[Member], bool]] = {}
    for group in layout.groups:
        choices: list[Callable[[Member], bool]] = [lambda member: made.get(member.name) == member.dim]
        if norms_first:
            choices.insert(0, lambda member: member.name in scales)
        choices.append(lambda member: not member.name.endswith("bias"))
        wanted[group] = next((c for c in choices if any(map(c, group.members))), choices[-1])
    return layout.places(parameters(model), lambda group, member: wanted[group](member))


def readers(model: nn.Module, layout: Layout) -> Places:
    """The slices that read a channel: columns of linear layers and of convolutions.

    Groups that no such layer reads are seen through all their weights.
    """
    made = _made_along(model)
    read = {
        group: {
            (member.name, member.dim) for member in group.members if member.name in made and member.dim == 1 - made[member.name]
        }
        for group in layout.groups
    }

    def reads(group: Group, member: Member) -> bool:
        return (member.name, member.dim) in read[group] or not (read[group] or member.name.endswith("bias"))

    return layout.places(parameters(model), reads)


def slice_sums(tensors: Mapping[str, Tensor], keys: Sequence[Place], power: float) -> list[Tensor]:
    """Sum of |w|^power over each slice: one vector for each place, in float32 at least."""
    return _along(keys, lambda name: _wide(tensors[name]), lambda tensor: tensor.abs().pow_(power))


def slice_products(
    tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor], keys: Sequence[Place], *, with_shift: bool = False
) -> list[Tensor]:
    """Sum of w dL/dw over each slice: one vector for each place; zeros where there is no gradient.

    Args:
        tensors: parameters by name.
        gradients: those that have one.
        keys: the places.
        with_shift: add the same of the bias beside a scale ("bn.bias" to "bn.weight").
    """

    def product(name: str) -> Tensor:
        gradient = gradients.get(name)
        return torch.zeros_like(_wide(tensors[name])) if gradient is None else _wide(tensors[name]) * gradient

    found = _along(keys, product, lambda tensor: tensor)
    if with_shift:
        for position, (name, _) in enumerate(keys):
            shift = f"{name.removesuffix('weight')}bias"
            if tensors[name].dim() == 1 and shift in gradients:
                found[position] = found[position] + product(shift)
    return found


def _made_along(model: nn.Module) -> dict[str, int]:
    """Weight of a convolution or linear layer -> the dimension of what it makes."""
    return {
        f"{name}.weight" if name else "weight": int(isinstance(module, TRANSPOSED))
        for name, module in model.named_modules()
        if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear))
    }


def _along(keys: Sequence[Place], tensor_of: Callable[[str], Tensor], prepare: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Reduce each tensor to each of its wanted dimensions; what none of them needs is reduced once."""
    wanted: dict[str, list[int]] = {}
    for name, dim in keys:
        wanted.setdefault(name, []).append(dim)
    found: dict[Place, Tensor] = {}
    for name, dims in wanted.items():
        tensor = prepare(tensor_of(name))
        core = _reduced(tensor, sorted({dim % tensor.dim() for dim in dims}))
        for dim in dims:
            place = sorted({d % tensor.dim() for d in dims}).index(dim % tensor.dim())
            found[name, dim] = _reduced(core, [place])
    return [found[key] for key in keys]


def _reduced(tensor: Tensor, kept: list[int]) -> Tensor:
    others = [dim for dim in range(tensor.dim()) if dim not in kept]
    return tensor.sum(others) if others else tensor


def _norm_scales(model: nn.Module) -> Iterable[str]:
    """Names of the scales of norms: a one-dimensional "weight" beside which the module keeps no other matrix."""
    for name, module in model.named_modules():
        if _is_norm(module):
            yield f"{name}.weight" if name else "weight"


def _is_norm(module: nn.Module) -> bool:
    scale: Any = getattr(module, "weight", None)
    return isinstance(scale, nn.Parameter) and scale.dim() == 1 and "norm" in type(module).__name__.lower()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
