"""Pulling chosen channels towards zero: one strength per channel, spread over all weights that go with it.

A weight whose row and whose column are both chosen is pulled by both. The strengths are spread to tensors of the weights' own
shapes when they change, once per check; a step then costs one foreach call over the weights that are touched at all.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn

from espalier.graph.layout import Places
from espalier.methods.base import Gradients


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

    @torch.no_grad()
    def aim(self, strengths: Tensor) -> None:
        """Set the strength of every channel, (total,); weights of channels without any are left alone."""
        spread: dict[str, list[Tensor]] = {}
        for (name, dim), vector in self.places.spread(strengths).items():
            parameter = self._parameters[name]
            shape = [1] * parameter.dim()
            shape[dim] = -1
            spread.setdefault(name, []).append(vector.to(parameter.dtype).view(shape))
        held = torch.stack([torch.stack([vector.any() for vector in vectors]).any() for vectors in spread.values()])
        self.weights, self.factors = [], []
        for (name, vectors), touched in zip(spread.items(), held.tolist(), strict=True):
            if touched:
                weight = self._parameters[name]
                total: Tensor = reduce(torch.add, vectors)
                self.weights.append(weight)
                self.factors.append(torch.empty_like(weight.detach()).copy_(total))  # with the strides of the weight

    @torch.no_grad()
    def shrink(self, amount: float) -> None:
        """w <- w (1 - amount x strength), after a step."""
        if self.weights and amount:
            weights: list[Tensor] = list(self.weights)
            torch._foreach_addcmul_(weights, weights, self.factors, value=-amount)

    @torch.no_grad()
    def penalise(self, gradients: Gradients, amount: float = 1.0) -> None:
        """dL/dw += amount x strength x w, before a step, for the weights that the stepping optimizer is about to use."""
        chosen = [(w, w.grad, f) for w, f in zip(self.weights, self.factors, strict=True) if w.grad is not None]
        if not chosen or not amount:
            return
        weights, grads, factors = (list(column) for column in zip(*chosen, strict=True))
        if gradients.scale is None:
            torch._foreach_addcmul_(grads, weights, factors, value=amount)
            return
        products = torch._foreach_mul(weights, factors)
        torch._foreach_mul_(products, gradients.scale.to(products[0].device))
        torch._foreach_add_(grads, products, alpha=amount)
