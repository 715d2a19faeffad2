"""Methods whose ``sparsity`` may be one share for all layers, or a share of its own for every name pattern."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from espalier.cost.budgets import is_number
from espalier.errors import EspalierError
from espalier.methods.frame.masking.scheduled import Scheduled
from espalier.schedules import Step


@dataclass(frozen=True, kw_only=True)
class WithRatios(Scheduled):
    """Base of methods with a field ``sparsity`` that is a number or a mapping of name patterns to shares."""

    def __post_init__(self) -> None:
        if self.ratios is not None:
            self._check_ratios(self.ratios)
        super().__post_init__()

    @abstractmethod
    def schedule(self) -> Step:
        """One jump to ``highest``."""

    @property
    def ratios(self) -> Mapping[str, float] | None:
        given = self._given
        return given if isinstance(given, Mapping) else None

    @property
    def highest(self) -> float:
        """The share of the sparsest layer, which the schedule is written in."""
        given = self._given
        return max(given.values()) if isinstance(given, Mapping) else given

    @property
    def _given(self) -> float | Mapping[str, float]:
        given: float | Mapping[str, float] = self.sparsity  # type: ignore[attr-defined]
        return given

    def _check_ratios(self, ratios: Mapping[str, float]) -> None:
        for pattern, ratio in ratios.items():
            if not isinstance(pattern, str) or not is_number(ratio) or not 0 <= ratio < 1:
                raise EspalierError(
                    f"sparsity as a mapping has name patterns and shares of at least 0 and less than 1, such as "
                    f"{{'layer1.*': 0.9}}; got {pattern!r}: {ratio!r}."
                )
        if not any(ratios.values()):
            raise EspalierError("sparsity as a mapping needs at least one share above 0, such as {'layer1.*': 0.9}.")
        if self.include is not None:
            raise EspalierError("A mapping of ratios says which weights are pruned, so leave include out.")
        if self.scope != "local":
            raise EspalierError(f"Ratios per layer and scope={self.scope!r} exclude each other: leave scope out.")
