"""How large the channels were that a cut took away, beside those that stayed: a histogram that goes into a run's record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

EDGES = tuple(2.0 ** (half / 2) for half in range(-16, 5))  # half octaves from 1/256 to 4


@dataclass(frozen=True)
class NormHistogram:
    """Channels of all groups by their norm, relative to the mean norm of the channels of their group that stay.

    The norm of a channel is the L2 norm of all weights that go with it (biases apart). So channels that stay gather around 1,
    and what shrinkage has emptied lies far to the left.

    Attributes:
        edges: borders between the bins, rising.
        kept: how many channels that stay lie in each bin, (len(edges) + 1,); the first is below all edges, the last above.
        removed: likewise of those that leave.

    Example:
        >>> NormHistogram.of(kept=[0.9, 1.1], removed=[0.01], edges=(0.5, 1.0))
        NormHistogram(edges=(0.5, 1.0), kept=(0, 1, 1), removed=(1, 0, 0))
    """

    edges: tuple[float, ...]
    kept: tuple[int, ...]
    removed: tuple[int, ...]

    @classmethod
    def of(cls, kept: ArrayLike, removed: ArrayLike, edges: tuple[float, ...] = EDGES) -> NormHistogram:
        """Count relative norms, (channels,) each."""
        counted = [
            np.bincount(np.digitize(np.asarray(norms, dtype=np.float64), edges), minlength=len(edges) + 1).tolist()
            for norms in (kept, removed)
        ]
        return cls(edges, tuple(counted[0]), tuple(counted[1]))

    def content(self) -> dict[str, list[Any]]:
        """The histogram as plain values, for JSON and for checkpoints."""
        return {"edges": list(self.edges), "kept": list(self.kept), "removed": list(self.removed)}

    @classmethod
    def from_content(cls, content: Mapping[str, Iterable[Any]] | None) -> NormHistogram | None:
        """Read ``content`` back; None where nothing was recorded.

        Raises:
            KeyError, TypeError, ValueError: it is not complete.
        """
        if content is None:
            return None
        edges = tuple(float(edge) for edge in content["edges"])
        kept, removed = (tuple(int(count) for count in content[key]) for key in ("kept", "removed"))
        if not len(kept) == len(removed) == len(edges) + 1:
            raise ValueError("a histogram of norms has one bin more than edges")
        return cls(edges, kept, removed)


def took_nothing(norms: NormHistogram | None) -> bool:
    """Whether a cut is known to have removed no channel: the last one where all had left in parts before."""
    return norms is not None and not any(norms.removed)
