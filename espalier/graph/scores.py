"""Reductions over all that a channel of a group is made of: what importance scores and group penalties are built from.

Every weight of a member belongs to the channel that ``member.index`` names; indices repeat where a channel is spread over
several (a flattened image), and are -1 where the group has no part. One ``index_add_`` per member does the sum, on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from espalier.errors import EspalierError
from espalier.wrappers import unwrap

if TYPE_CHECKING:
    from espalier.graph import Group, Member

Values = Callable[[str], Tensor | None]  # parameter or buffer name -> numbers of its shape; None leaves it out
Reduction = Callable[[Tensor, tuple[int, ...]], Tensor]  # a tensor and the dimensions to reduce -> one number per index


def weights_of(model: nn.Module, *, biases: bool = False, buffers: bool = False) -> Values:
    """The numbers of a model's parameters by name, as ``reduce`` and its relatives take them.

    Args:
        model: the traced model, wrapped or not.
        biases: count what is added (convolution and linear biases, beta of norms) too.
        buffers: count running statistics and the like too.

    Example:
        >>> values = weights_of(nn.Linear(3, 2))
        >>> values("weight").shape, values("bias")
        (torch.Size([2, 3]), None)
    """
    model = unwrap(model)
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    if buffers:
        found |= dict(model.named_buffers(remove_duplicate=False))
    known = {name for name, _ in model.named_buffers(remove_duplicate=False)} | found.keys()

    def values(name: str) -> Tensor | None:
        if name not in known:
            raise EspalierError(f"The model has no parameter or buffer {name!r}: the graph was traced on another model.")
        left_out = not biases and name.rpartition(".")[2].endswith("bias")
        return None if left_out or name not in found else found[name].detach()

    return values


def per_member(group: Group, values: Values | Mapping[str, Tensor], reduction: Reduction) -> Iterator[tuple[Member, Tensor]]:
    """Each member that has values, with its sum per channel, (group.size,).

    Args:
        group: the channels.
        values: numbers by parameter name; members without any are passed over.
        reduction: reduces the given dimensions of a tensor and keeps the one that the group runs along.
    """
    for member in group.members:
        tensor = values.get(member.name) if isinstance(values, Mapping) else values(member.name)
        if tensor is None:
            continue
        if not -tensor.dim() <= member.dim < tensor.dim() or tensor.shape[member.dim] != len(member.index):
            raise EspalierError(
                f"{member.name} has shape {list(tensor.shape)}, but the graph knows {len(member.index)} entries in its "
                f"dimension {member.dim}: trace the model again."
            )
        others = tuple(dim for dim in range(tensor.dim()) if dim != member.dim % tensor.dim())
        yield member, _gather(member, reduction(tensor, others), group.size)


def reduce(group: Group, values: Values | Mapping[str, Tensor], reduction: Reduction) -> Tensor:
    """Sum of a reduction over all members, (group.size,).

    Example:
        >>> import espalier as es
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> (group,) = es.trace(net, torch.zeros(1, 3)).groups
        >>> largest = reduce(group, weights_of(net), lambda weight, dims: weight.abs().amax(dims))
        >>> torch.equal(largest, net[0].weight.abs().amax(1) + net[2].weight.abs().amax(0))
        True
    """
    return _total(group, (sums for _, sums in per_member(group, values, reduction)))


def channel_sums(group: Group, values: Values | Mapping[str, Tensor], power: float | None = None) -> Tensor:
    """Sum of v, or of |v|^power, over all values of each channel, (group.size,).

    Give ``lambda name: gradients[name] * weights[name]`` for Taylor scores. A weight whose row and column are both channels of
    the group counts for both.
    """
    return reduce(group, values, sums(power))


def channel_counts(group: Group, values: Values | Mapping[str, Tensor]) -> Tensor:
    """How many values each channel has in all members, (group.size,)."""
    return reduce(group, values, count)


def member_means(group: Group, values: Values | Mapping[str, Tensor], power: float = 2.0, *, root: float = 0.5) -> Tensor:
    """Sum of |v|^power over count^root, per member, averaged over the members that carry the channel; (group.size,).

    With power 2 and root 1/2 it is the saliency of OCSPruner (for norms, whose channels have one value, gamma squared); with
    root 0 the plain group norm of Torch-Pruning, with root 1 the mean over values.
    """
    total, carriers = [], []
    counted = per_member(group, values, count)
    for (_, summed), (_, held) in zip(per_member(group, values, sums(power)), counted, strict=True):
        total.append(summed / held.clamp(min=1).pow(root))
        carriers.append((held > 0).to(summed.dtype))
    return _total(group, iter(total)) / _total(group, iter(carriers)).clamp(min=1)


def sums(power: float | None) -> Reduction:
    """Reduction: sum of v (None), or of |v|^power, in float32 at least."""

    def reduction(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
        wide = torch.promote_types(tensor.dtype, torch.float32)
        if power is None:
            return tensor.sum(dims, dtype=wide) if dims else tensor.to(wide)
        if dims and power > 0:
            norm: Tensor = torch.linalg.vector_norm(tensor, power, dims, dtype=wide)
            return norm.pow(power)
        powers = tensor.to(wide).abs().pow(power)
        return powers.sum(dims) if dims else powers

    return reduction


def count(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Reduction: how many values there are."""
    kept = next((size for dim, size in enumerate(tensor.shape) if dim not in dims), 1)
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return torch.full((kept,), tensor.numel() / max(kept, 1), dtype=wide, device=tensor.device)


def _gather(member: Member, values: Tensor, size: int) -> Tensor:
    """Values per index of a dimension -> values per channel; what belongs to none falls into a last bin that is dropped."""
    index = member.index.to(values.device)
    bins = values.new_zeros(size + 1)
    return bins.index_add_(0, torch.where(index < 0, size, index), values)[:size]


def _total(group: Group, parts: Iterator[Tensor]) -> Tensor:
    total: Tensor | None = None
    for part in parts:
        total = part if total is None else total + part.to(total.device)
    if total is None:
        raise EspalierError(f"No member of group {group.name!r} has values: there is nothing to score its channels by.")
    return total
