"""Pulling chosen channels towards zero: one strength per channel, spread over all weights that go with it.

A weight whose row and whose column are both chosen is pulled by both. The strengths are spread to tensors of the weights' own
shapes when they change, once per check; a step then costs one foreach call over the weights that are touched at all.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn

from espalier.graph.layout import Places
from espalier.methods.frame.base import Gradients


class Pull:
    """Strengths of the channels of a layout, as factors of weights.

    Args:
        model: whose weights are pulled.
        places: where the channels live.
    """

    def __init__(self, model: nn.Module, places: Places) -> None:
        self._parameters = dict(model.named_parameters())
        self.places = places
        self.weights: list[nn.Parameter] = []
        self.factors: list[Tensor] = []
        self._aimed: list[str] = []

    @torch.no_grad()
    def aim(self, strengths: Tensor) -> None:
        """Set the strength of every channel, (total,); weights of channels without any are left alone."""
        spread = self._spread(strengths)
        held = torch.stack([torch.stack([vector.any() for vector in vectors]).any() for vectors in spread.values()])
        self._aimed = [name for name, touched in zip(spread, held.tolist(), strict=True) if touched]
        self.weights = [self._parameters[name] for name in self._aimed]
        self.factors = [torch.empty_like(weight.detach()) for weight in self.weights]  # with the strides of the weight
        self._fill(spread)

    @torch.no_grad()
    def renew(self, strengths: Tensor) -> None:
        """Other strengths for the weights that ``aim`` found. Unlike there, nothing is read on the host: fit for every step."""
        self._fill(self._spread(strengths))

    def _spread(self, strengths: Tensor) -> dict[str, list[Tensor]]:
        spread: dict[str, list[Tensor]] = {}
        for (name, dim), vector in self.places.spread(strengths).items():
            parameter = self._parameters[name]
            shape = [1] * parameter.dim()
            shape[dim] = -1
            spread.setdefault(name, []).append(vector.to(parameter.dtype).view(shape))
        return spread

    def _fill(self, spread: dict[str, list[Tensor]]) -> None:
        for name, factor in zip(self._aimed, self.factors, strict=True):
            total: Tensor = reduce(torch.add, spread[name])
            factor.copy_(total)

    @torch.no_grad()
    def shrink(self, amount: float) -> None:
        """w <- w (1 - amount x strength), after a step."""
        if self.weights and amount:
            weights: list[Tensor] = list(self.weights)
            torch._foreach_addcmul_(weights, weights, self.factors, value=-amount)

    @torch.no_grad()
    def penalise(self, gradients: Gradients, amount: float = 1.0) -> None:
        """dL/dw += amount x strength x w, before a step, for the weights that the stepping optimizer is about to use."""
        pairs = zip(self.weights, self.factors, strict=True)
        chosen = [(w, w.grad, f) for w, f in pairs if w.grad is not None and gradients.are_for(w)]
        if not chosen or not amount:
            return
        weights, grads, factors = (list(column) for column in zip(*chosen, strict=True))
        if gradients.scale is None:
            torch._foreach_addcmul_(grads, weights, factors, value=amount)
            return
        products = torch._foreach_mul(weights, factors)
        torch._foreach_mul_(products, gradients.scale.to(products[0].device))
        torch._foreach_add_(grads, products, alpha=amount)
