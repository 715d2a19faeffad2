"""From scores of channels and a budget to the channels that stay: arithmetic on sorted scores."""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from espalier.cost.blocks import Blocks, rank
from espalier.cost.budgets import Budget, check_share
from espalier.cost.evaluation import compiled, position
from espalier.cost.form import Floats, Ints
from espalier.errors import EspalierError

if TYPE_CHECKING:
    from espalier.graph import ChannelGraph, Group

Scope = Literal["global", "group"]
Normalise = Literal["none", "mean", "max", "sum"]
FLOOR = 16  # by default a sixteenth of a group stays
WIDEST_STEP = 16


def search(
    graph: ChannelGraph,
    scores: Mapping[Group, Tensor],
    *,
    keep_macs: float | None = None,
    keep_params: float | None = None,
    max_macs: float | None = None,
    max_params: float | None = None,
    prune_channels: float | None = None,
    scope: Scope = "global",
    max_ratio: float | Mapping[Group, float] = 1.0,
    min_channels: int | Mapping[Group, int] | None = None,
    round_to: int | Mapping[Group, int] | None = None,
    normalise: Normalise = "none",
) -> dict[Group, Tensor]:
    """Choose the channels to keep: the best ones that a budget pays for. The network is not touched.

    Blocks of ``round_to`` channels go in the order of their mean score until the budget is met; then whatever still fits comes
    back, best first. So the result is just below the budget: no block of any group fits in any more.

    Args:
        graph: what ``es.trace`` found.
        scores: worth of every channel, (group.size,), higher is better, as a tensor, array or list. Groups that are
            not named stay whole.
        keep_macs: share of the present MACs that may stay, in [0, 1].
        keep_params: share of the present parameters that may stay.
        max_macs: MACs of a pass with the traced inputs.
        max_params: parameters.
        prune_channels: share of the channels of all groups in ``scores`` that go.
        scope: "global" compares scores of all groups; "group" takes the same share from each and compares within it.
        max_ratio: largest share of a group that may go, for all groups or by group (others: 1).
        min_channels: fewest channels that a group keeps, for all groups or by group. By default, and for groups that are not
            named, a sixteenth and at least 1: a ranking that compares scales of different layers likes to empty one of them, a
            layer of one channel blocks what flows through it, and a sixteenth of every width is still below 1 % of the MACs.
        round_to: widths are multiples of it, or whole; for all groups or by group. None, and for groups that are not named,
            is a choice that runs fast: 16 from a width of 64 on, 8 from 16 on; 1 allows every width.
        normalise: divide each group's scores by the "mean", "max" or "sum" of their absolute values.

    Returns:
        Sorted indices of the channels that stay, for every group in ``scores``; on the CPU. Of equal scores the earlier channel
        of the earlier group stays.

    Raises:
        EspalierError: the budget cannot be met under caps, floors and rounding (the least possible is named); scores do not
            fit or are not finite.

    Example:
        >>> import espalier as es
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> graph = es.trace(net, torch.zeros(1, 8))
        >>> kept = es.search(graph, {graph.groups[0]: torch.arange(16)}, keep_macs=0.5)
        >>> [indices.tolist() for indices in kept.values()]
        [[8, 9, 10, 11, 12, 13, 14, 15]]
    """
    found = compiled(graph)
    if not isinstance(scores, Mapping):
        raise EspalierError(f"scores map groups to numbers, {{graph.groups[0]: tensor}}; got {type(scores).__name__}.")
    groups = list(scores)
    places = [position(found, group) for group in groups]
    for choice in (max_ratio, min_channels, round_to):
        for group in choice if isinstance(choice, Mapping) else ():
            position(found, group)
    if scope not in get_args(Scope):
        raise EspalierError(f"scope is 'global' or 'group', not {scope!r}.")
    values = _normalised(_read({group: _as_tensor(group, given) for group, given in scores.items()}), normalise)
    budget = Budget(
        found,
        places,
        keep_macs=keep_macs,
        keep_params=keep_params,
        max_macs=max_macs,
        max_params=max_params,
        prune_channels=prune_channels,
    )
    least = np.array([_least(group, max_ratio, min_channels) for group in groups], dtype=np.int64)
    steps = np.array([_step(group, round_to) for group in groups], dtype=np.int64)
    blocks = rank(values, least, steps, together=scope == "global")
    removed = _Removal(blocks, np.array(places, dtype=np.int64), found.sizes, budget).search()
    return {
        group: torch.from_numpy(np.sort(order[gone:]))
        for group, order, gone in zip(groups, blocks.order, removed.tolist(), strict=True)
    }


class _Removal:
    """How many channels each group loses under a budget."""

    def __init__(self, blocks: Blocks, places: Ints, sizes: Floats, budget: Budget) -> None:
        self.blocks, self.places, self.sizes, self.budget = blocks, places, sizes, budget

    def search(self) -> Ints:
        count = len(self.places)
        everything = len(self.blocks.size)
        self.budget.check(self.widths(self.blocks.removed(everything, count)))
        low, high = 0, everything  # with the first `high` blocks gone the budget is met
        while low < high:
            middle = (low + high) // 2
            if self.fits(self.blocks.removed(middle, count)):
                high = middle
            else:
                low = middle + 1
        return self._give_back(self.blocks.removed(high, count), high)

    def widths(self, removed: Ints) -> Floats:
        """Widths of all groups of the graph, (..., groups of the search) -> (..., groups)."""
        widths = np.broadcast_to(self.sizes, (*removed.shape[:-1], len(self.sizes))).copy()
        widths[..., self.places] -= removed
        return widths

    def fits(self, removed: Ints) -> bool:
        return bool(self.budget.fits(self.widths(removed)))

    def _give_back(self, removed: Ints, gone: int) -> Ints:
        """Return blocks that still fit, best first.

        Costs only grow with widths, so a group whose next block does not fit is done with; in every turn at least one is.
        """
        group, size = self.blocks.group[:gone][::-1], self.blocks.size[:gone][::-1]
        while len(group):
            owners, first = np.unique(group, return_index=True)
            tried = np.repeat(removed[None], len(owners), axis=0)
            tried[np.arange(len(owners)), owners] -= size[first]
            open_groups = owners[self.budget.fits(self.widths(tried))]
            stays = np.isin(group, open_groups)
            group, size = group[stays], size[stays]
            low, high = 0, len(group)  # the first `low` fit together
            while low < high:
                middle = (low + high + 1) // 2
                if self.fits(removed - self._sum(group, size, middle, len(removed))):
                    low = middle
                else:
                    high = middle - 1
            removed = removed - self._sum(group, size, low, len(removed))
            group, size = group[low:], size[low:]
        return removed

    @staticmethod
    def _sum(group: Ints, size: Ints, count: int, groups: int) -> Ints:
        return np.bincount(group[:count], weights=size[:count], minlength=groups).astype(np.int64)


def _as_tensor(group: Group, given: Any) -> Tensor:
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise EspalierError(
            f"The scores of group {group.name!r} are no numbers: give {group.size} of them in a tensor, not "
            f"{reprlib.repr(given)}."
        ) from None


def _read(scores: Mapping[Group, Tensor]) -> list[Floats]:
    """Checked scores as numpy, brought over from the device at once."""
    for group, tensor in scores.items():
        if tuple(tensor.shape) != (group.size,):
            raise EspalierError(
                f"The scores of group {group.name!r} have shape {list(tensor.shape)}; one score per channel is [{group.size}]."
            )
    if not scores:
        raise EspalierError("A search needs scores of at least one group.")
    device = next(iter(scores.values())).device
    if any(tensor.is_meta for tensor in scores.values()):
        raise EspalierError("The scores are on the meta device and have no values to rank by.")
    dtype = torch.float32 if device.type == "mps" else torch.float64
    flat = torch.cat([tensor.detach().to(device, dtype) for tensor in scores.values()]).cpu().double().numpy()
    split = np.split(flat, np.cumsum([group.size for group in scores])[:-1])
    for group, values in zip(scores, split, strict=True):
        if not np.isfinite(values).all():
            raise EspalierError(
                f"The scores of group {group.name!r} are not all finite: check for NaN and overflow; to protect a group, "
                f"give it a max_ratio of 0."
            )
    return split


def _normalised(scores: list[Floats], how: Normalise) -> list[Floats]:
    if how not in get_args(Normalise):
        raise EspalierError(f"normalise is 'none', 'mean', 'max' or 'sum', not {how!r}.")
    if how == "none":
        return scores
    scales = [float(getattr(np.abs(values), how)()) for values in scores]
    return [values / scale if scale else values for values, scale in zip(scores, scales, strict=True)]


def _least(group: Group, max_ratio: float | Mapping[Group, float], min_channels: int | Mapping[Group, int] | None) -> int:
    """Channels that stay whatever the scores say."""
    ratio = max_ratio.get(group, 1.0) if isinstance(max_ratio, Mapping) else max_ratio
    check_share("max_ratio", ratio)
    floor = min_channels.get(group) if isinstance(min_channels, Mapping) else min_channels
    if floor is None:
        floor = math.ceil(group.size / FLOOR)
    capped = group.size - int(group.size * ratio + 1e-9)
    return min(group.size, max(_whole("min_channels", floor), capped))


def _step(group: Group, round_to: int | Mapping[Group, int] | None) -> int:
    step = round_to.get(group) if isinstance(round_to, Mapping) else round_to
    return fast_step(group.size) if step is None else _whole("round_to", step)


def fast_step(width: int) -> int:
    """Widths that are multiples of it run fast: 16 from a width of 64 on, 8 from 16 on, the greatest power of two at most a
    quarter of it below.

    ResNet-20 and ResNet-56 with half of their MACs train 1.2 to 1.4 times as fast as dense at such widths on a CPU. Where
    widths of 12 are allowed they train slower than dense (benchmarks/README.md).

    Example:
        >>> fast_step(64), fast_step(24), fast_step(12), fast_step(3)
        (16, 8, 2, 1)
    """
    quarter = 1 << max(0, (width // 4).bit_length() - 1)
    return min(WIDEST_STEP, max(quarter, 8) if width >= 16 else quarter)


def _whole(name: str, number: int) -> int:
    try:
        whole = operator.index(number)
    except TypeError:
        whole = 0
    if whole < 1 or isinstance(number, bool):
        raise EspalierError(f"{name} is a whole number of at least 1, not {number!r}.")
    return whole
