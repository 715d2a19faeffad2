"""Pruning of channels: the frame that EPI, OCSPruner and their baselines share.

Training starts dense. At every check the run asks which channels would stay if the cut were made now (criterion, scope,
budget); an indicator compares these selections over time and says when they have settled. Then the channels leave, in place and
for good, and the same training goes on with a smaller network: same optimizer, same learning-rate schedule.

A method joins independent choices: *by which score* (criterion), *how much* (budget, caps, rounding), *when* (indicator, with
``latest`` as the time-out), and what happens to the channels that are about to leave (its own run).

Here are the settings. The run is built in three layers: ``traced.py`` knows where channels live, ``choosing.py`` which of them
would stay, ``shrinking.py`` when the others leave.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from espalier.cost.budgets import is_number
from espalier.cost.search import Normalise, Scope
from espalier.criteria.channels import ChannelCriterion, channel_criterion
from espalier.errors import EspalierError
from espalier.methods.frame.base import Method, Site
from espalier.methods.frame.cutting.latency import parse_latency
from espalier.records import numbers

if TYPE_CHECKING:
    from espalier.methods.frame.cutting.shrinking import StructuredRun

BUDGETS = tuple(name for name in numbers.BUDGETS if name != "max_latency")  # what arithmetic alone can check
CHECKS = 100  # looks at the sub-network in a whole training, unless told otherwise


@dataclass(frozen=True, kw_only=True)
class Structured(Method):
    """Base of the methods that cut channels. Give at least one budget.

    Args:
        keep_macs: share of the dense network's MACs that may stay, in (0, 1].
        keep_params: share of its parameters that may stay.
        max_macs: MACs of a pass with the example inputs (a batch of one for MACs per image).
        max_params: parameters.
        max_latency: time of a pass with the example inputs on their device, "5ms" or seconds; measured when the Pruner is built
            and again, on a copy of the very network, before the cut.
        prune_channels: share of all channels that goes.
        criterion: a name ("group-saliency", "magnitude", "squared", "taylor", "taylor-weights", "bn-scale", "depgraph",
            "random") or a ``ChannelCriterion``.
        scope: "global" compares channels of all groups, "group" takes the same share from each.
        normalise: divide each group's scores by their "mean", "max" or "sum" first.
        max_ratio: largest share of a group that may go.
        min_channels: fewest channels that a group keeps; None: a sixteenth.
        round_to: widths are multiples of it, or whole; None: a fast choice for each width; 1: any width.
        include: name patterns of the groups that may be cut; None: all that can be.
        exclude: likewise, taken out again.
        check_every: optimizer steps between two looks at the sub-network; None: a hundredth of the training, 10 steps at least
            where the training has 200 or more.
        recalibrate: batches (of ``batches`` given to the Pruner) to renew batch-norm statistics with after a cut.
    """

    keep_macs: float | None = None
    keep_params: float | None = None
    max_macs: float | None = None
    max_params: float | None = None
    max_latency: str | float | None = None
    prune_channels: float | None = None
    criterion: ChannelCriterion | str = "group-saliency"
    scope: Scope = "global"
    normalise: Normalise = "none"
    max_ratio: float = 1.0
    min_channels: int | None = None
    round_to: int | None = None
    include: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    check_every: int | None = None
    recalibrate: int = 0

    cuts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if not given and self.max_latency is None:
            known = ", ".join((*BUDGETS, "max_latency"))
            raise EspalierError(f"{self.name} needs a budget: give one of {known}, such as keep_macs=0.5.")
        if self.max_latency is not None:
            parse_latency(self.max_latency)
        for name in given:
            value = getattr(self, name)
            share = not name.startswith("max_")
            if not is_number(value) or not value > 0 or (share and value > 1):
                what = "a share above 0 and at most 1, such as 0.5 (never percent)" if share else "a number above 0"
                raise EspalierError(f"{name} is {what}; got {value!r}.")
        channel_criterion(self.criterion)
        if any(isinstance(x, str) or not isinstance(x, Sequence) for x in (self.include or (), self.exclude)):
            raise EspalierError("include and exclude take lists of group names: include=['layer1.*'], not include='layer1.*'.")
        for name, least in (("check_every", 1), ("recalibrate", 0), ("round_to", 1), ("min_channels", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise EspalierError(f"{name} is a whole number of at least {least}; got {value!r}.")
        if not is_number(self.max_ratio) or not 0 <= self.max_ratio <= 1:
            raise EspalierError(f"max_ratio is a share between 0 and 1; got {self.max_ratio!r}.")

    @property
    def stages(self) -> tuple[float, ...]:
        """Shares of the training at which another stage begins, as far as the settings tell: where a learning-rate schedule may
        start over. Empty for methods that stay within one schedule."""
        return ()

    def weights(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Nothing is known before the trace; frozen parameters may be cut too."""
        return {}

    @abstractmethod
    def begin(self, site: Site) -> StructuredRun:
        """Trace the model, check that the budget can be met, and take the first look."""
