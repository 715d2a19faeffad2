"""SynFlow: prune before training without any data, and never a whole layer.

Tanaka, Kunin, Yamins, Ganguli: "Pruning neural networks without any data by iteratively conserving synaptic flow", NeurIPS
2020, arXiv 2006.05467.

In the network with |w| in place of every parameter, fed with ones in evaluation mode, R is the sum of the outputs and

    S(w) = |dR/dw * w|

the flow through a weight. Every layer of a chain without biases passes on the same flow, sum S = R, so a large layer has small
scores and iterating keeps layers alive: n = 100 rounds, density^(k/n) after round k, the highest of the network stay.

As in the authors' code biases and batch norm's running statistics become their magnitudes, too, and batch norm divides by the
running variance (1 at initialisation). Departures: other buffers, such as attention masks, stay what they are; float64, since
flows of deep networks leave float32's range (the model's own types where a device has no float64, or where the forward sets
types itself and cannot run in it); the library's selection (convolutions, unless told otherwise) in place of all layers; at
least one unit of every layer stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from espalier.errors import EspalierError
from espalier.inputs import Call, tensors_in
from espalier.methods.frame.base import Site
from espalier.methods.frame.masking.atinit import AtInit, AtInitRun, Weights


@dataclass(frozen=True)
class SynFlow(AtInit):
    """Iterative synaptic flow (NeurIPS 2020). Needs ``example_inputs``, of which only the shape is used.

    Args:
        sparsity: share of the selected weights that is zero from the first step on, in [0, 1).
        rounds: n.

    The other arguments are those of ``AtInit``: scope ("global"), pattern, include, exclude.

    Raises:
        EspalierError: no example inputs, a sparsity that would empty a layer, flows that are too large or all zero, a model
            that cannot run on ones.

    Example:
        >>> import torch, espalier as es
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> method = es.SynFlow(0.9, include=["Linear"])
        >>> es.Pruner(net, optimizer, method, total_steps=100, example_inputs=torch.zeros(1, 8)).sparsity
        0.9
    """

    rounds: int = 100

    name: ClassVar[str] = "synflow"
    looks_at: ClassVar[str] = (
        "that the weights are finite, that some path of weights leads from the inputs to the outputs, and that the flow along "
        "it is not too large"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_counts("rounds")

    @property
    def steps(self) -> int:
        return self.rounds

    def begin(self, site: Site) -> AtInitRun:
        if site.example_inputs is None:
            raise EspalierError(
                "synflow sends ones through the model: give es.Pruner(..., example_inputs=x), x being any inputs."
            )
        return super().begin(site)

    def scores(self, site: Site, weights: Weights, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        site.model.eval()
        device = next(iter(weights.values())).device
        problem = None
        for dtype in (torch.float32 if device.type == "mps" else torch.float64, None):
            try:  # the second time for a forward that sets types itself, with .float() or constants
                return self._flows(site, weights, dtype)
            except RuntimeError as error:
                problem = error
        said = " ".join(str(problem).split())
        raise EspalierError(f"synflow cannot send ones through this model: give inputs that it takes ({said}).") from None

    def _flows(self, site: Site, weights: Weights, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """The scores, computed in a floating-point type; None: in those that everything has."""
        device = next(iter(weights.values())).device
        with torch.no_grad():
            state = _positive_state(site.model, dtype)
            ones = Call.of(site.example_inputs).resized(1).map(lambda tensor: _ones(tensor.to(device), dtype))
        parameters = [state[name].requires_grad_() for name in weights]
        with torch.autocast(device.type, enabled=False):
            flow = _total(functional_call(site.model, state, ones.args, ones.kwargs))
        found = torch.autograd.grad(flow, parameters, allow_unused=True)
        scores = [
            torch.zeros_like(value) if grad is None else (grad * value).abs()
            for value, grad in zip(parameters, found, strict=True)
        ]
        return dict(zip(weights, _to_one(scores), strict=True))


def _positive_state(model: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Copies: magnitudes of parameters and of everything in norms with running statistics, all else with its sign."""
    norms = {name.rpartition(".")[0] for name, _ in model.named_buffers() if name.rpartition(".")[2] == "running_var"}
    state = {name: _copy(value, dtype, positive=True) for name, value in model.named_parameters()}
    return state | {
        name: _copy(value, dtype, positive=name.rpartition(".")[0] in norms) for name, value in model.named_buffers()
    }


def _copy(value: Tensor, dtype: torch.dtype | None, *, positive: bool) -> Tensor:
    """Counters and indices as they are."""
    copy = value.detach().clone()
    if not copy.is_floating_point():
        return copy
    copy = copy if dtype is None else copy.to(dtype)
    return copy.abs() if positive else copy


def _ones(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Token numbers stay what they are: there is no other way into an embedding."""
    return torch.ones_like(tensor, dtype=dtype) if tensor.is_floating_point() else tensor


def _total(outputs: Any) -> Tensor:
    """R: the sum of everything that the model returns."""
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    found = [value for value in tensors_in(list(values) if not isinstance(values, Tensor) else values) if value.requires_grad]
    if not found:
        raise EspalierError("synflow sums up what the model returns, and no output of this model depends on its weights.")
    return torch.stack([value.sum() for value in found]).sum()


def _to_one(scores: list[Tensor]) -> list[Tensor]:
    """Divided by the highest, so that float32, in which all layers are ranked together, holds them."""
    highest = torch.stack([score.max() for score in scores]).max()
    return [score / highest for score in scores]
