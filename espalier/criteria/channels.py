"""Scores of channels: the higher, the more a channel matters, with everything in the network that goes with it.

A criterion says which parameters of a channel count and how they add up; it gives one number for every channel of a layout, in
one row. Those that learn from gradients are fed at every optimizer step and rank by the mean since the last check.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from espalier.criteria.slices import filters, norm_scales, parameters, slice_products, slice_sums, weights
from espalier.errors import EspalierError
from espalier.graph.layout import Layout, Places

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class ChannelCriterion(ABC):
    """Base of all criteria of channels; ``uses_gradients`` says whether ``contribution`` must be fed at every step."""

    name: ClassVar[str]
    uses_gradients: ClassVar[bool] = False

    @abstractmethod
    def places(self, model: nn.Module, layout: Layout) -> Places:
        """The parameters that count. Channels that none of them carries have no score and stay."""

    @abstractmethod
    def score(self, tensors: Tensors, places: Places, observed: Tensor | None) -> Tensor:
        """Worth of every channel of the layout, (total,).

        Args:
            tensors: parameters by name.
            places: as ``places`` gave them.
            observed: mean of the contributions since the last check; None before the first.
        """

    def contribution(self, tensors: Tensors, gradients: Tensors, places: Places) -> Tensor:
        """What this step adds, (total,). ``gradients`` has the weights that got one."""
        raise NotImplementedError


@dataclass(frozen=True)
class GroupSaliency(ChannelCriterion):
    """Saliency of OCSPruner as in its code: sum of |w|^p over sqrt(number of weights), for every convolution, linear layer and
    norm that the channel runs through, averaged over them. Biases do not count.

    ``root`` takes the p-th root of each sum first, as the paper describes it.
    """

    p: float = 2.0
    root: bool = False

    name: ClassVar[str] = "group-saliency"

    def places(self, model: nn.Module, layout: Layout) -> Places:
        return weights(model, layout)

    def score(self, tensors: Tensors, places: Places, observed: Tensor | None) -> Tensor:
        sums = slice_sums(tensors, places.keys, self.p)
        if self.root:  # of the whole sum in each layer: after a flatten a channel has many entries there
            apart, counts = places.gather_apart(sums)
            return (apart.pow(1 / self.p) * counts.clamp(min=1).rsqrt()).sum(0) / places.carriers.clamp(min=1)
        return places.gather(sums, places.counts.rsqrt()) / places.carriers.clamp(min=1)


@dataclass(frozen=True)
class DepGraphNorm(ChannelCriterion):
    """Group magnitude of DepGraph (arXiv 2301.12900): sum of |w|^p, averaged over all layers that the channel runs through.

    To be used with ``normalise="mean"``, which divides by the mean over the group's channels.
    """

    p: float = 2.0

    name: ClassVar[str] = "depgraph"

    def places(self, model: nn.Module, layout: Layout) -> Places:
        return weights(model, layout)

    def score(self, tensors: Tensors, places: Places, observed: Tensor | None) -> Tensor:
        return places.gather(slice_sums(tensors, places.keys, self.p)) / places.carriers.clamp(min=1)


@dataclass(frozen=True)
class ChannelSquares(ChannelCriterion):
    """Sum of w^2 over everything that leaves with the channel, biases too: how far from it the network without it lies.

    The score of SLR and ADMM on channels. A weight between two channels counts for both.
    """

    name: ClassVar[str] = "squared"

    def places(self, model: nn.Module, layout: Layout) -> Places:
        return layout.places(parameters(model), lambda group, member: True)

    def score(self, tensors: Tensors, places: Places, observed: Tensor | None) -> Tensor:
        return places.gather(slice_sums(tensors, places.keys, 2.0))


@dataclass(frozen=True)
class ChannelMagnitude(ChannelCriterion):
    """L2 norm of the filter, not normalised, summed over the layers that make the channel (the magnitude criterion of EPI)."""

    p: float = 2.0

    name: ClassVar[str] = "magnitude"

    def places(self, model: nn.Module, layout: Layout) -> Places:
        return filters(model, layout)

    def score(self, tensors: Tensors, places: Places, observed: Tensor | None) -> Tensor:
        return places.gather([vector.pow(1 / self.p) for vector in slice_sums(tensors, places.keys, self.p)])


@dataclass(frozen=True)
class BatchNormScale(ChannelCriterion):
    """|gamma| of the norms that the channel runs through, averaged over them (network slimming, Early-Bird tickets)."""

    name: ClassVar[str] = "bn-scale"

    def places(self, model: nn.Module, layout: Layout) -> Places:
        return norm_scales(model, layout)

    def score(self, tensors: Tensors, places: Places, observed: Tensor | None) -> Tensor:
        return places.gather(slice_sums(tensors, places.keys, 1.0)) / places.carriers.clamp(min=1)


@dataclass(frozen=True)
class ChannelTaylor(ChannelCriterion):
    """First-order Taylor score from the weights: |sum of w dL/dw| over the filters of the layers that make the channel,
    averaged over steps; ``squared`` takes the square (Molchanov et al. 2019).

    Ranks by magnitude before the first gradient.
    """

    squared: bool = False

    name: ClassVar[str] = "taylor-weights"
    uses_gradients: ClassVar[bool] = True

    def places(self, model: nn.Module, layout: Layout) -> Places:
        return filters(model, layout)

    def score(self, tensors: Tensors, places: Places, observed: Tensor | None) -> Tensor:
        return ChannelMagnitude().score(tensors, places, None) if observed is None else observed

    def contribution(self, tensors: Tensors, gradients: Tensors, places: Places) -> Tensor:
        total = places.gather(slice_products(tensors, gradients, places.keys))
        return total.square() if self.squared else total.abs()


@dataclass(frozen=True)
class GateTaylor(ChannelCriterion):
    """First-order Taylor score from the norms: |gamma dL/dgamma + beta dL/dbeta|, summed over coupled norms before the absolute
    value, averaged over steps. Channels without a norm are scored by their filters, as ``ChannelTaylor`` does.

    The gradient criterion of EPI, in the form that the same group uses in HALP; ``squared`` is that of Taylor pruning.
    Ranks by |gamma| (without a norm: by magnitude) before the first gradient.
    """

    squared: bool = False

    name: ClassVar[str] = "taylor"
    uses_gradients: ClassVar[bool] = True

    def places(self, model: nn.Module, layout: Layout) -> Places:
        return filters(model, layout, norms_first=True)

    def score(self, tensors: Tensors, places: Places, observed: Tensor | None) -> Tensor:
        return ChannelMagnitude().score(tensors, places, None) if observed is None else observed

    def contribution(self, tensors: Tensors, gradients: Tensors, places: Places) -> Tensor:
        products = slice_products(tensors, gradients, places.keys, with_shift=True)
        total = places.gather(products)
        return total.square() if self.squared else total.abs()


@dataclass(frozen=True)
class ChannelRandom(ChannelCriterion):
    """A fixed random order, the control: equal for equal ``seed`` and layout, on every device and rank."""

    seed: int = 0

    name: ClassVar[str] = "random"

    def places(self, model: nn.Module, layout: Layout) -> Places:
        return layout.places(parameters(model), lambda group, member: True)

    def score(self, tensors: Tensors, places: Places, observed: Tensor | None) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(len(places.carriers), generator=generator).to(places.carriers.device)


CHANNEL_CRITERIA: dict[str, type[ChannelCriterion]] = {
    kind.name: kind
    for kind in (
        GroupSaliency,
        DepGraphNorm,
        ChannelMagnitude,
        ChannelSquares,
        BatchNormScale,
        ChannelTaylor,
        GateTaylor,
        ChannelRandom,
    )
}


def channel_criterion(given: ChannelCriterion | str) -> ChannelCriterion:
    """A criterion by name or as it is.

    Raises:
        EspalierError: for a name that is not known.
    """
    if isinstance(given, ChannelCriterion):
        return given
    if not isinstance(given, str) or given not in CHANNEL_CRITERIA:
        raise EspalierError(f"criterion must be one of {', '.join(CHANNEL_CRITERIA)}, or a ChannelCriterion; got {given!r}.")
    return CHANNEL_CRITERIA[given]()
