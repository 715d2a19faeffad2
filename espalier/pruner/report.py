"""What ``finish()`` hands back."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.masks import LayerSparsity
from espalier.methods import Round, Shrinkage


@dataclass(frozen=True)
class Report:
    """The outcome of a pruned training.

    Attributes:
        method: name of the method.
        steps: optimizer steps taken.
        total_steps: steps that were planned.
        sparsity: share of the selected weights that is zero.
        sparsity_all: share of all parameters (biases, norms and unselected layers included) that is zero.
        layers: the selected weights, one by one.
        shrinkage: what was cut, for methods that cut.
        rounds: the moves of the multipliers, for methods that have some.
    """

    method: str
    steps: int
    total_steps: int
    sparsity: float
    sparsity_all: float
    layers: tuple[LayerSparsity, ...]
    shrinkage: Shrinkage | None = None
    rounds: tuple[Round, ...] = ()

    def summary(self) -> str:
        """A line for the whole and a line for each layer, or what was cut."""
        if self.shrinkage is not None:
            return f"{self.method}, {self.steps} of {self.total_steps} steps: {self.shrinkage.summary()}"
        width = max((len(layer.name) for layer in self.layers), default=0)
        head = (
            f"{self.method}: {self.sparsity:.2%} of the selected weights and {self.sparsity_all:.2%} of all parameters are "
            f"zero after {self.steps} of {self.total_steps} steps"
        )
        rows = [f"  {x.name:<{width}}  {x.sparsity:7.2%}  {x.total - x.zeros:>10,} of {x.total:,} left" for x in self.layers]
        return "\n".join([head, *rows])
