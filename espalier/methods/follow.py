"""Any schedule as a method: for comparisons that have no paper of their own (linear, cosine, dense-sparse-dense)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from espalier.errors import EspalierError
from espalier.methods.frame.masking.scheduled import Scheduled
from espalier.schedules import Schedule


@dataclass(frozen=True)
class Follow(Scheduled):
    """Prune along ``curve``, any ``Schedule``.

    The other arguments are those of ``Scheduled``.

    Example:
        >>> from espalier.schedules import Cosine
        >>> Follow(Cosine(0.9, end=0.7)).schedule()(0.7)
        0.9
    """

    curve: Schedule

    name: ClassVar[str] = "follow"

    def __post_init__(self) -> None:
        if not isinstance(self.curve, Schedule):
            raise EspalierError(f"Follow takes a schedule, say es.schedules.Cosine(0.9); got {self.curve!r}.")
        super().__post_init__()

    def schedule(self) -> Schedule:
        return self.curve
