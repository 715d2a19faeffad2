"""The part of a structured run that chooses: scores, the search under the budget, one choice for all ranks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from espalier.cost import cost, search
from espalier.cost.costs import short
from espalier.cost.search import fast_step
from espalier.criteria.slices import parameters
from espalier.distributed import all_or_none, broadcast, check_equal, is_leader
from espalier.errors import EspalierError
from espalier.graph import Group
from espalier.methods.frame.base import Gradients, Site
from espalier.methods.frame.cutting.latency import TRIES, LatencyLimit, parse_latency
from espalier.methods.frame.cutting.structured import Structured
from espalier.methods.frame.cutting.traced import TracedRun


class ChoosingRun(TracedRun):
    """Says at any moment which channels would stay.

    Attributes:
        dense: MACs and parameters of the network as it came.
        keep: the last choice, group -> sorted channels.
    """

    def __init__(self, method: Structured, site: Site) -> None:
        super().__init__(method, site)
        whole = cost(self.graph)
        self.dense = {"macs": whole.macs, "params": whole.params}
        self.keep: dict[Group, Tensor] = {}
        check_equal(site.model.parameters(), site.process_group, "The weights")
        self._ranked: Tensor | None = None  # the last scores, on the leader
        self._paid_macs: float | None = None  # what the latency budget pays for
        self.latency = self._latency_limit()

    def choose(self) -> None:
        """Rank all channels and keep the best that the budget pays for; gradients are observed anew from here."""
        self.keep = self.agreed(self.scores)
        self._observed.zero_()
        self._seen = 0

    def agreed(self, rank: Callable[[], Tensor] | None = None) -> dict[Group, Tensor]:
        """The leader's choice, on every rank: by the scores that ``rank`` gives it, (total,), or by its last ones."""
        group, keep = self.site.process_group, {}
        with all_or_none(group, self._observed.device, "choose the channels that stay"):
            if is_leader(group):
                self._ranked = self._ranked if rank is None else rank()
                keep = self._choose()
        return keep if group is None else self._spread(keep)

    def scores(self) -> Tensor:
        """Worth of every channel of the layout, (total,)."""
        observed = self._observed / self._seen if self._seen else None
        return self.criterion.score(parameters(self.site.model), self._places, observed)

    def _choose(self) -> dict[Group, Tensor]:
        assert self._ranked is not None
        scores = self.layout.split(self._ranked)
        try:
            return search(
                self.graph,
                {group: scores[group] for group in self.groups},
                scope=self.method.scope,
                normalise=self.method.normalise,
                max_ratio=self.caps(),
                min_channels=self.floors(),
                round_to=self.steps(),
                **self._budget(),
            )
        except EspalierError:
            self._refuse_unreachable_share()
            raise

    def _refuse_unreachable_share(self) -> None:
        """The search is given MACs and parameters, and complains in these; the user may have given shares."""
        steps = self.steps()
        narrowest = {group: min(group.size, _up(self._least(group), steps[group])) for group in self.groups}
        least = cost(self.graph, narrowest)
        for unit, words, now in (("macs", "MACs", least.macs), ("params", "parameters", least.params)):
            share, dense = getattr(self.method, f"keep_{unit}"), self.dense[unit]
            if share is not None and now > share * dense * (1 + 1e-12):
                raise EspalierError(
                    f"keep_{unit}={share:g} asks for at most {short(share * dense)} {words}, but caps, floors and rounding "
                    f"leave at least {short(now)} ({now / dense:.4f} of the present ones): give keep_{unit} of at least "
                    f"{math.ceil(1e4 * now / dense) / 1e4:g}, raise max_ratio, or lower min_channels or round_to."
                )

    def caps(self) -> dict[Group, float]:
        """Largest share of each group that may still go, so that at most ``max_ratio`` of its first width does."""
        return {group: max(0.0, 1 - self._least(group) / group.size) for group in self.groups}

    def floors(self) -> dict[Group, int]:
        """Fewest channels that each group keeps."""
        return {group: self._least(group) for group in self.groups}

    def steps(self) -> dict[Group, int]:
        """Widths are multiples of these; they go by the first widths, so that several cuts end where one would."""
        return {group: self.method.round_to or fast_step(self.sizes.get(group.name, group.size)) for group in self.groups}

    def may_narrow(self, group: Group) -> bool:
        """Whether caps, floors and rounding have let it lose channels at all, from its first width."""
        size = self.sizes.get(group.name, group.size)
        return _up(self._floor(size), self.method.round_to or fast_step(size)) < size

    def _least(self, group: Group) -> int:
        return min(group.size, self._floor(self.sizes.get(group.name, group.size)))

    def _floor(self, size: int) -> int:
        floor = math.ceil(size / 16) if self.method.min_channels is None else self.method.min_channels
        return max(floor, size - int(size * self.method.max_ratio + 1e-9))

    def _budget(self) -> dict[str, float]:
        """The method's budget in numbers that hold for a network that is cut in part already."""
        method, budget = self.method, {}
        for unit in ("macs", "params"):
            limit, share = getattr(method, f"max_{unit}"), getattr(method, f"keep_{unit}")
            bounds = [limit, None if share is None else share * self.dense[unit], self._paid_macs if unit == "macs" else None]
            given = [bound for bound in bounds if bound is not None]
            if given:
                budget[f"max_{unit}"] = min(given)
        if method.prune_channels is not None:
            present = sum(group.size for group in self.groups)
            first = sum(self.sizes.values())
            alone = len(self.sizes) - len(self.groups)  # groups of one channel, which a later trace passes over
            gone = first - present - alone
            budget["prune_channels"] = max(0.0, round(method.prune_channels * first) - gone) / present
        return budget

    def _spread(self, keep: Mapping[Group, Tensor]) -> dict[Group, Tensor]:
        """The leader's ``keep`` on every rank, as one broadcast of a byte per channel."""
        sizes = [group.size for group in self.groups]
        bits = torch.zeros(sum(sizes), dtype=torch.uint8)
        if keep:
            bits = torch.from_numpy(np.concatenate([as_mask(group, keep[group]) for group in self.groups])).to(torch.uint8)
        bits = bits.to(self._observed.device)
        broadcast(bits, self.site.process_group)
        parts = torch.split(bits.cpu(), sizes)
        return {group: part.nonzero().flatten() for group, part in zip(self.groups, parts, strict=True)}

    def _observe(self, gradients: Gradients) -> None:
        """Gradients of the optimizer that steps; those of another one come when that steps, unscaled then."""
        tensors, fresh = dict(self.site.model.named_parameters()), {}
        for name in self._names:
            parameter = tensors[name]
            if parameter.grad is not None and gradients.are_for(parameter):
                fresh[name] = gradients.unscaled(parameter.grad.to_dense())
        detached = {name: tensors[name].detach() for name in self._names}
        self._observed += self.criterion.contribution(detached, fresh, self._places)
        self._seen += 1

    # -- latency ----------------------------------------------------------------------------------------------------

    def _latency_limit(self) -> LatencyLimit | None:
        """Time some narrower copies, on the leader; every rank goes by its limit."""
        if self.method.max_latency is None:
            return None
        found, group = None, self.site.process_group
        with all_or_none(group, self._observed.device, "measure the latency"):
            if is_leader(group):
                seconds, inputs = parse_latency(self.method.max_latency), self.site.example_inputs
                self._ranked = self.scores()
                found = LatencyLimit(self.site.model, inputs, self.graph, seconds, self._keep_under)
        self._paid_macs = self._leaders(found.macs if found else 0.0)
        return found

    def _keep_under(self, macs: float) -> dict[Group, Tensor] | None:
        self._paid_macs = macs
        try:
            return self._choose()
        except EspalierError:  # narrower than caps and floors allow
            return None

    def _fast_enough(self) -> None:
        """Before the last cut: time the very network, and take more away while it is too slow."""
        if self.method.max_latency is None:
            return
        for _ in range(TRIES):
            fast = False
            with all_or_none(self.site.process_group, self._observed.device, "measure the latency"):
                if self.latency is not None:
                    fast = self.latency.tighten(self.site.model, self.keep)
            if self._leaders(float(fast)):
                return
            self._paid_macs = self._leaders(self.latency.macs if self.latency is not None else 0.0)
            self.keep = self.agreed()
        warnings.warn(
            f"The network takes longer than max_latency={self.method.max_latency} still; see es.profile.", stacklevel=4
        )

    def _leaders(self, number: float) -> float:
        value = torch.tensor([number], dtype=torch.float64, device=self._observed.device)
        broadcast(value, self.site.process_group)
        return float(value)


def _up(width: int, step: int) -> int:
    """The next multiple of ``step``."""
    return -(-width // step) * step


def as_mask(group: Group, kept: Tensor) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Kept channels as one bool each, (group.size,)."""
    mask = np.zeros(group.size, dtype=bool)
    mask[kept.numpy()] = True
    return mask
