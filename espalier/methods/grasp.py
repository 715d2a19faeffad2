"""GraSP: keep the weights that the flow of gradients needs.

Wang, Zhang, Grosse: "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020, arXiv 2002.07376.

With g the gradient and H the Hessian of the loss at initialisation, logits divided by the temperature T = 200, the score of a
weight is the change of the squared gradient norm if it goes, to first order,

    S(-w) = -w * (H g).

The weights with the highest S are removed, so those with the lowest stay. H g is the gradient of g . (g held fixed), by double
backpropagation; over several batches g is the sum of their gradients, and H g the sum of every batch's H with that g.

Departures: the library's selection (convolutions, unless told otherwise) in place of all layers; linear layers are not
initialised anew with Xavier as in the authors' code; at least one unit of every layer stays. The authors see about 10 images of
every class: choose ``batches_per_round`` accordingly.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from espalier.errors import EspalierError
from espalier.methods.frame.base import Site
from espalier.methods.frame.masking.atinit import AtInit, AtInitRun, Weights, first_batches, gradients_of, loss_of, need_data


@dataclass(frozen=True)
class GraSP(AtInit):
    """Gradient signal preservation (ICLR 2020). Needs ``batches`` and ``loss_fn``.

    Args:
        sparsity: share of the selected weights that is zero from the first step on, in [0, 1).
        temperature: T, which the model's output is divided by while scores are computed; 1 leaves it as it is, for models that
            don't return logits.
        batches_per_round: batches to sum over, from the first that ``batches`` gives.

    The other arguments are those of ``AtInit``: scope ("global"), pattern, include, exclude.

    Raises:
        EspalierError: no batches or no loss, a sparsity that would empty a layer, operations without second derivatives, scores
            that are not finite.

    Example:
        >>> import torch, espalier as es
        >>> from torch.nn.functional import cross_entropy
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> batch = torch.randn(32, 8), torch.randint(2, (32,))
        >>> pruner = es.Pruner(
        ...     net, optimizer, es.GraSP(0.9, include=["Linear"]), total_steps=100,
        ...     batches=[batch], loss_fn=lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
        ... )
        >>> pruner.sparsity
        0.9
    """

    temperature: float = 200.0
    batches_per_round: int = 1

    name: ClassVar[str] = "grasp"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_counts("batches_per_round")
        value = self.temperature
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise EspalierError(f"temperature is a number above 0; got {value!r}.")

    def begin(self, site: Site) -> AtInitRun:
        need_data(self, site)
        return super().begin(site)

    def scores(self, site: Site, weights: Weights, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        batches = list(first_batches(site, self.batches_per_round))
        flow = {name: torch.zeros_like(value) for name, value in whole.items()}  # g
        change = {name: torch.zeros_like(value) for name, value in whole.items()}  # H g
        with _divided(site.model, self.temperature), sdpa_kernel(SDPBackend.MATH):  # other kernels have no second derivative
            for batch in batches:
                for name, gradient in gradients_of(loss_of(site, batch), weights).items():
                    flow[name] += gradient
            for batch in batches:
                gradients = gradients_of(loss_of(site, batch), weights, create_graph=True)
                product = torch.stack([(gradients[name] * flow[name]).sum() for name in weights]).sum()
                for name, part in _derivatives(product, weights).items():
                    change[name] += part
        return {name: value.float() * change[name].float() for name, value in whole.items()}  # -S: the higher, the better


def _derivatives(product: Tensor, weights: Weights) -> dict[str, Tensor]:
    try:
        return gradients_of(product, weights)
    except RuntimeError as error:
        raise EspalierError(
            f"grasp needs second derivatives, which the model does not give ({str(error).splitlines()[0].rstrip('.')}): "
            f"use SNIP or SynFlow."
        ) from error


@contextlib.contextmanager
def _divided(model: nn.Module, temperature: float) -> Iterator[None]:
    """The model's output divided by the temperature for a while."""

    def divide(_: nn.Module, __: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            raise EspalierError(
                f"grasp divides logits by its temperature, but the model returns a {type(output).__name__}: give "
                f"temperature=1, or a model that returns logits."
            )
        return output / temperature

    handle = model.register_forward_hook(divide) if temperature != 1 else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
