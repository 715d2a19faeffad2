"""What a method that pulls weights towards pruned ones tells about itself, round by round; a part of a run's record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Round:
    """One move of the multipliers.

    Attributes:
        step: optimizer steps taken.
        gap: ||W - Z|| after it, over all layers as the method's ``norm`` says.
        gaps: weight name -> ||W - Z|| of that layer.
        step_size: s, by which the multipliers are moved.
        alpha: the last factor of the step size; None for methods without one.
        held: which of the two optimality conditions held; empty for methods without conditions.
        loss: f(W), as the conditions see it; None for methods without conditions.
    """

    step: int
    gap: float
    gaps: dict[str, float]
    step_size: float
    alpha: float | None = None
    held: tuple[bool, ...] = ()
    loss: float | None = None

    def to_plain(self) -> dict[str, Any]:
        """Numbers, texts, lists and mappings only, for states and records."""
        return asdict(self) | {"held": list(self.held)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Round:
        """The inverse of ``to_plain``."""
        return cls(**(plain | {"held": tuple(plain["held"])}))
