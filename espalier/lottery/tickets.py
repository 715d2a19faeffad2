"""Masks of tickets: found by iterative magnitude pruning, drawn at random, compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from espalier.errors import EspalierError
from espalier.masks import select_weights
from espalier.masks.ranking import keep_best, keep_best_together
from espalier.masks.targets import Entry
from espalier.wrappers import unwrap

Tickets = Mapping[str, Tensor]


def weights_of(
    model: nn.Module, include: Sequence[Entry] | None = None, exclude: Sequence[Entry] = ()
) -> dict[str, nn.Parameter]:
    """Name -> weight of everything that a ticket masks: every convolution, or what ``include`` and ``exclude`` name.

    Raises:
        EspalierError: for an entry that matches nothing, and if nothing is left.
    """
    return select_weights(unwrap(model), include, exclude)


def remaining_after(remaining: int, fraction: float) -> int:
    """Weights that are left of ``remaining`` when a round has removed ceil(fraction x remaining) of them.

    >>> remaining_after(1000, 0.2), remaining_after(15, 0.2), remaining_after(16, 0.2)
    (800, 12, 12)
    """
    return remaining - math.ceil(Fraction(str(fraction)) * remaining)  # exact: 0.07 x 100 is 7, not 7.000000000000001


@torch.no_grad()
def next_masks(
    weights: Mapping[str, Tensor],
    masks: Tickets | None = None,
    *,
    fraction: float = 0.2,
    keep: int | None = None,
    scope: str = "global",
) -> dict[str, Tensor]:
    """Masks of the next round: the smallest |w| of the weights that are left go. Nested: what is out stays out.

    Args:
        weights: name -> trained weight.
        masks: of the round before, True where a weight stays; None: all stay.
        fraction: share of the remaining weights that goes, in (0, 1); their number is rounded up.
        keep: how many weights stay in all, in place of ``fraction``; global scope only.
        scope: "global" (one ranking over all weights; the best of every weight stays, so that no layer dies) or "local" (every
            weight loses the same share). A layer that is wholly out already stays so in both.

    Returns:
        Name -> bool tensor, on the devices of the weights.

    Raises:
        EspalierError: for masks of other weights, weights that are not finite, a share or number that leaves nothing.

    Example:
        >>> weights = {"w": torch.tensor([[0.1, -0.5], [0.3, 2.0]])}
        >>> masks = next_masks(weights, fraction=0.25)
        >>> masks["w"].tolist()
        [[False, True], [True, True]]
        >>> next_masks(weights, masks, fraction=0.25)["w"].tolist()  # ceil(0.75) of the remaining three
        [[False, True], [False, True]]
    """
    if not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise EspalierError(f"fraction is the share of the remaining weights that goes, between 0 and 1; got {fraction!r}.")
    if scope not in ("global", "local") or (scope == "local" and keep is not None):
        raise EspalierError("scope is 'global' or, without keep, 'local'.")
    before = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()} if masks is None else masks
    _check_fit(before, weights)
    scores = {name: _scores(name, weight, before[name]) for name, weight in weights.items()}
    left = {name: n for name, mask in before.items() if (n := int(mask.sum()))}  # a layer that is wholly out stays so
    if not left:
        raise EspalierError("No weight is left in the masks, so there is none to remove.")
    ranked = [scores[name] for name in left]
    if scope == "local":
        stays = [remaining_after(n, fraction) for n in left.values()]
        chosen = [keep_best(score, _dropped(score, stay)) for score, stay in zip(ranked, stays, strict=True)]
    else:
        total = sum(left.values())
        stay = remaining_after(total, fraction) if keep is None else keep
        if not len(left) <= stay <= total:
            raise EspalierError(f"{stay} weights cannot stay of {total} in {len(left)} layers, each of which keeps one.")
        chosen = keep_best_together(ranked, sum(map(len, ranked)) - stay)
    kept = dict(zip(left, chosen, strict=True))
    return {name: kept.get(name, torch.zeros_like(scores[name], dtype=torch.bool)).view(w.shape) for name, w in weights.items()}


def _scores(name: str, weight: Tensor, mask: Tensor) -> Tensor:
    """|w| in one dimension, below everything where the weight is out already."""
    score = weight.detach().abs().float()
    if not torch.isfinite(score).all():
        raise EspalierError(f"{name} is not finite: training has diverged, so there is no ticket in it.")
    return score.masked_fill(~mask.to(score.device), -torch.inf).reshape(-1)


def _dropped(score: Tensor, stay: int) -> int:
    if stay < 1:
        raise EspalierError("A layer would lose its last weight: use scope='global', or a smaller fraction.")
    return len(score) - stay


@torch.no_grad()
def masks_of_zeros(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks that keep what is not zero: the ticket that a pruned model holds.

    >>> masks_of_zeros({"w": torch.tensor([0.0, 2.0])})["w"].tolist()
    [False, True]
    """
    return {name: weight.detach() != 0 for name, weight in weights.items()}


@torch.no_grad()
def random_masks(masks: Tickets, seed: int = 0) -> dict[str, Tensor]:
    """As many weights in every layer as ``masks`` keep, at random places: the control that tells places from numbers.

    >>> random_masks({"w": torch.tensor([True, False, False, True])}, seed=1)["w"].sum().item()
    2
    """
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, mask in masks.items():
        order = torch.randperm(mask.numel(), generator=generator)
        flat = torch.zeros(mask.numel(), dtype=torch.bool)
        flat[order[: int(mask.sum())]] = True
        made[name] = flat.view(mask.shape).to(mask.device)
    return made


def density(masks: Tickets) -> float:
    """Share of the weights that stay.

    >>> density({"w": torch.tensor([True, False, False, False])})
    0.25
    """
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def overlap(first: Tickets, second: Tickets) -> dict[str, float]:
    """Jaccard index |A and B| / |A or B| of two tickets' masks, per layer and over all under the key "".

    Two random masks of density d in every layer have d / (2 - d); equal ones 1. Two layers that keep nothing agree: 1.

    Raises:
        EspalierError: the tickets are of different weights.

    Example:
        >>> overlap({"w": torch.tensor([True, True, False])}, {"w": torch.tensor([True, False, True])})
        {'w': 0.333..., '': 0.333...}
    """
    _check_fit(first, second)
    counts = {name: (int((mask & second[name]).sum()), int((mask | second[name]).sum())) for name, mask in first.items()}
    counts[""] = (sum(both for both, _ in counts.values()), sum(either for _, either in counts.values()))
    return {name: both / either if either else 1.0 for name, (both, either) in counts.items()}


def _check_fit(masks: Tickets, tensors: Mapping[str, Tensor]) -> None:
    for name in {**masks, **tensors}:
        if name not in masks or name not in tensors or masks[name].shape != tensors[name].shape:
            raise EspalierError(f"The masks do not fit: {name} is missing, or has another shape; they belong to another model.")
