"""Two answers to what a cut model has to compute, made without the code that cuts.

Zeroed: the dense model in which every slice of a cut channel is zero. It computes the same wherever nothing averages over
channels: a layer norm over half of its channels is another function.

Native: the dense model in which every layer of torch is constructed anew in the narrow size and given the kept weights.
It computes the same always.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.layers import construct

Keeps = Mapping[Any, Tensor]  # group -> sorted indices of the channels that stay
Places = Mapping[tuple[str, int], Tensor]  # (name of a tensor, dim) -> bool mask of what stays


def random_keeps(groups: Iterable[Any], seed: int) -> dict[Any, Tensor]:
    """A random half of every group's channels; of an odd number the larger half, so that one is left at least."""
    made = torch.Generator().manual_seed(seed)
    return {group: torch.randperm(group.size, generator=made)[group.size // 2 :].sort().values for group in groups}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under every name that they have."""
    found = dict(model.named_parameters(remove_duplicate=False))
    return {**found, **dict(model.named_buffers(remove_duplicate=False))}


def kept_positions(model: nn.Module, keeps: Keeps) -> dict[tuple[str, int], Tensor]:
    """For every cut dim of every tensor a mask: a position stays if every group that it belongs to keeps its channel.

    To be called before the cut, which brings the groups up to date.
    """
    shapes = {name: tensor.shape for name, tensor in tensors(model).items()}
    masks: dict[tuple[str, int], Tensor] = {}
    for group, keep in keeps.items():
        stays = torch.zeros(group.size, dtype=torch.bool)
        stays[keep] = True
        for member in group.members:
            place = (member.name, member.dim)
            mask = masks.setdefault(place, torch.ones(shapes[member.name][member.dim], dtype=torch.bool))
            mask &= (member.index < 0) | stays[member.index.clamp(min=0)]
    return masks


def zero(dense: nn.Module, places: Places) -> None:
    """Zeroes every slice of the cut channels, in place."""
    found = tensors(dense)
    with torch.no_grad():
        for (name, dim), mask in places.items():
            found[name].index_fill_(dim, (~mask).nonzero().flatten(), 0)
    drop_caches(dense)


def misplaced(dense: nn.Module, cut: nn.Module, places: Places) -> list[str]:
    """Names of tensors of the cut model that are not the kept slices of the dense one, a common factor of rows aside."""
    before, after = tensors(dense), tensors(cut)
    wrong = sorted(before.keys() ^ after.keys())
    known = {id(before[name]): name for name, _ in places}  # a shared tensor is a member under one of its names
    for name in before.keys() & after.keys():
        expected, source = before[name], known.get(id(before[name]), name)
        for dim in range(expected.dim()):
            if (source, dim) in places:
                expected = expected.index_select(dim, places[source, dim].nonzero().flatten())
        if expected.shape != after[name].shape or not scaled(after[name], expected):
            wrong.append(name)
    return sorted(wrong)


def scaled(found: Tensor, expected: Tensor) -> bool:
    """Whether tensors are equal up to one factor on some of the rows, as a cut of an attention's width needs it."""
    if torch.equal(found, expected):
        return True
    factors = (found / expected)[expected != 0]
    others = factors[(factors - 1).abs() > 1e-5]
    return bool(found.is_floating_point() and len(others) and (others / others[0] - 1).abs().max() < 1e-5)


def native(dense: nn.Module, cut: nn.Module) -> tuple[nn.Module, list[str]]:
    """The narrow model built from the dense one, and the numbers in which the layers of the cut one differ from its."""
    shared = {id(tensor): tensor for tensor in [*dense.parameters(), *dense.buffers()]}  # replaced below: no need to copy
    narrow = copy.deepcopy(dense, shared)
    stale = replace_layers(narrow, cut)
    for (name, module), other in zip(narrow.named_modules(), cut.modules(), strict=True):
        if not getattr(module, "constructed", False):
            copy_numbers(module, other, name)
    copy_tensors(narrow, cut)
    drop_caches(narrow)
    return narrow, stale


def replace_layers(narrow: nn.Module, cut: nn.Module) -> list[str]:
    stale: list[str] = []
    made: dict[int, nn.Module] = {}
    for name, module in list(narrow.named_modules()):
        for child_name, child in list(module._modules.items()):
            if child is None:
                continue
            path = f"{name}.{child_name}".lstrip(".")
            if id(child) not in made:
                fresh = construct(child, cut.get_submodule(path))
                if fresh is None:
                    continue
                stale += [f"{path}.{difference}" for difference in differences(fresh, cut.get_submodule(path))]
                made[id(child)] = fresh
                made[id(fresh)] = fresh
            module._modules[child_name] = made[id(child)]
    return stale


def differences(fresh: nn.Module, cut: nn.Module) -> list[str]:
    mine, other = vars(fresh), vars(cut)
    names = [name for name, value in mine.items() if is_number(value) and name in other and other[name] != value]
    return [f"{name}={other[name]} instead of {mine[name]}" for name in names if name not in ("training", "constructed")]


def is_number(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(is_number(item) for item in value)
    return isinstance(value, (int, float))


def copy_numbers(module: nn.Module, other: nn.Module, name: str) -> None:
    """The integers that surgery rewrote in modules that are not layers: head counts, split sizes, scales."""
    for attribute, value in vars(other).items():
        if is_number(value) and vars(module).get(attribute) != value:
            vars(module)[attribute] = value


def copy_tensors(narrow: nn.Module, cut: nn.Module) -> None:
    made: dict[int, nn.Parameter] = {}
    for name, value in cut.named_parameters(remove_duplicate=False):
        if id(value) not in made:
            made[id(value)] = nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)
        owner, _, leaf = name.rpartition(".")
        setattr(narrow.get_submodule(owner), leaf, made[id(value)])
    for name, value in cut.named_buffers(remove_duplicate=False):
        owner, _, leaf = name.rpartition(".")
        narrow.get_submodule(owner)._buffers[leaf] = value.clone()


def drop_caches(model: nn.Module) -> None:
    """Some attention modules keep their gathered biases while in eval mode; ``train`` empties those."""
    model.train().eval()


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference relative to the largest value, over all outputs."""
    worst = 0.0
    for mine, other in zip(found, expected, strict=True):
        worst = max(worst, float((mine - other).abs().max() / other.abs().max().clamp(min=1e-30)))
    return worst
