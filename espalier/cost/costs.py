"""What a network costs at any widths: MACs, parameters and activations, in closed form from one traced pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SHOWN = 10  # layers in the table of str(cost)


class LayerCost(NamedTuple):
    """What one module costs itself, without its children.

    Attributes:
        macs: multiply-accumulates of one traced pass.
        params: weights that it owns.
        activations: elements of the outputs that it allocates in one traced pass.
    """

    macs: int
    params: int
    activations: int

    @property
    def flops(self) -> int:
        """Twice the MACs, as ``torch.utils.flop_counter`` counts."""
        return 2 * self.macs


class Layers(Mapping[str, LayerCost]):
    """Costs by layer, kept as arrays: a search asks for totals only, and a hundred tuples take longer than all sums.

    Args:
        places: layer -> its place in the columns.
        columns: MACs, parameters and activations, (layers,) each.
    """

    def __init__(self, places: Mapping[str, int], *columns: NDArray[np.float64]) -> None:
        self._places, self._columns = places, columns

    def __getitem__(self, layer: str) -> LayerCost:
        place = self._places[layer]
        return LayerCost(*(int(column[place]) for column in self._columns))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclass(frozen=True)
class Cost:
    """What a network costs in one pass with the traced inputs, the whole batch of them.

    Attributes:
        macs: multiply-accumulates of convolutions, matrix products and attention.
        params: weights, shared ones once.
        activations: elements of all outputs that the pass allocates.
        activation_bytes: the same in bytes, in the dtype that was traced.
        layers: module path -> its own share; "" is the model's own code.

    Example:
        >>> cost = Cost(2_000_000, 1200, 500, 2000, {"fc": LayerCost(2_000_000, 1200, 500)})
        >>> cost.flops
        4000000
        >>> print(cost)
        layer    MACs  params  activations
        fc       2.00 M  1.20 k          500
        total    2.00 M  1.20 k          500
    """

    macs: int
    params: int
    activations: int
    activation_bytes: int
    layers: Mapping[str, LayerCost]

    @property
    def flops(self) -> int:
        """Twice the MACs, as ``torch.utils.flop_counter`` counts."""
        return 2 * self.macs

    def __str__(self) -> str:
        """The layers with the most MACs, and the total."""
        ranked = sorted(self.layers.items(), key=lambda item: item[1].macs, reverse=True)
        rows = [(name or "(model)", *map(short, layer)) for name, layer in ranked[:SHOWN]]
        if len(ranked) > SHOWN:
            rest = zip(*(layer for _, layer in ranked[SHOWN:]), strict=True)
            rows.append((f"{len(ranked) - SHOWN} more", *map(short, map(sum, rest))))
        rows.append(("total", short(self.macs), short(self.params), short(self.activations)))
        rows.insert(0, ("layer", "MACs", "params", "activations"))
        wide = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ["  ".join((row[0].ljust(wide[0]), *map(str.rjust, row[1:], wide[1:]))) for row in rows]
        return "\n".join(lines)


def short(number: float) -> str:
    """A count in three digits.

    Example:
        >>> short(4089184256), short(64)
        ('4.09 G', '64')
    """
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            shown = number / size
            return f"{shown:.{max(0, 2 - int(math.log10(shown)))}f} {unit}"
    return f"{number:.0f}"
