"""Functions that are labelled in one go.

Taken apart, a linear layer is four operations and a scaled dot product eighteen. That takes most of the time of tracing a
transformer, and says no more than one rule can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from espalier.graph import shortcuts
from espalier.graph.modes import transform, without_operations

PLAIN = frozenset({Tensor, nn.Parameter})  # subclasses may have operations of their own


@dataclass(frozen=True)
class Composite:
    """A function with a rule of its own."""

    name: str
    arguments: tuple[str, ...]
    shape: Callable[..., Tensor | None]  # an empty result on meta; None where the function has to be taken apart
    tensors: int = 2  # as many of the arguments have to be tensors

    def given(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by name; None for those that were left out."""
        return {**dict.fromkeys(self.arguments), **dict(zip(self.arguments, args, strict=False)), **kwargs}

    def result(self, given: Mapping[str, Any]) -> Tensor | None:
        """What the function returns on meta, if it is called in a usual way."""
        needed = [given[key] for key in self.arguments[: self.tensors]]
        usual = len(given) == len(self.arguments) and all(type(value) in PLAIN for value in needed)
        if not usual or transform() is not None:  # inside vmap a tensor is larger than it says
            return None
        with without_operations():
            return self.shape(*given.values())


_LINEAR = Composite("linear", ("input", "weight", "bias"), shortcuts.linear)
_MATMUL = Composite("matmul", ("input", "other"), shortcuts.matmul)
_ATTENTION = Composite(
    "scaled_dot_product_attention",
    ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"),
    shortcuts.attention,
    tensors=3,
)
COMPOSITES: dict[Any, Composite] = {
    functional.linear: _LINEAR,
    functional.scaled_dot_product_attention: _ATTENTION,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _MATMUL),
}


class CompositesOnMeta(TorchFunctionMode):
    """Runs them in one go, where no rule is asked for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        composite = COMPOSITES.get(func)
        out = None if composite is None else composite.result(composite.given(args, kwargs))
        return func(*args, **kwargs) if out is None else out
