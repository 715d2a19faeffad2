"""Pruning of channels: the frame that EPI, OCSPruner and their baselines share.

Training starts dense. At every check the run asks which channels would stay if the cut were made now (criterion, scope,
budget); an indicator compares these selections over time and says when they have settled. Then the channels leave, in place and
for good, and the same training goes on with a smaller network: same optimizer, same learning-rate schedule.

A method joins independent choices: *by which score* (criterion), *how much* (budget, caps, rounding), *when* (indicator, with
``latest`` as the time-out), and what happens to the channels that are about to leave (its own run).
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from espalier.cost import cost, search
from espalier.cost.budgets import is_number
from espalier.cost.search import Normalise, Scope, fast_step
from espalier.criteria.channels import ChannelCriterion, channel_criterion
from espalier.criteria.slices import parameters
from espalier.distributed import broadcast, check_equal, is_leader
from espalier.errors import EspalierError
from espalier.graph import ChannelGraph, Group, trace
from espalier.graph.layout import Layout
from espalier.indicators import Indicator, Selection
from espalier.inputs import Call
from espalier.masks import LayerSparsity
from espalier.methods.base import Gradients, Method, Run, Site
from espalier.methods.latency import TRIES, LatencyLimit, parse_latency
from espalier.methods.recalibration import recalibrate
from espalier.methods.shrinkage import Check, Cut, Shrinkage
from espalier.surgery import changes_made, last_change
from espalier.surgery.channels import cut

BUDGETS = ("keep_macs", "keep_params", "max_macs", "max_params", "prune_channels")
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
        criterion: a name ("group-saliency", "magnitude", "taylor", "taylor-weights", "bn-scale", "depgraph", "random") or a
            ``ChannelCriterion``.
        scope: "global" compares channels of all groups, "group" takes the same share from each.
        normalise: divide each group's scores by their "mean", "max" or "sum" first.
        max_ratio: largest share of a group that may go.
        min_channels: fewest channels that a group keeps; None: a sixteenth.
        round_to: widths are multiples of it, or whole; None: a fast choice for each width; 1: any width.
        include: name patterns of the groups that may be cut; None: all that can be.
        exclude: likewise, taken out again.
        check_every: optimizer steps between two looks at the sub-network; None: a hundredth of the training.
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

    def weights(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Nothing is known before the trace; frozen parameters may be cut too."""
        return {}

    @abstractmethod
    def begin(self, site: Site) -> StructuredRun:
        """Trace the model, check that the budget can be met, and take the first look."""


class StructuredRun(Run):
    """A dense network on its way to a small one.

    Args:
        method: the settings.
        site: what to work on.
        indicator: says when the selection has settled; None where the method decides by other means.
        latest: share of the training after which the cut is made whatever the indicator says.

    Attributes:
        searching: whether there are channels still to be removed.
        keep: what the last look chose, group -> sorted channels.
    """

    def __init__(self, method: Structured, site: Site, *, indicator: Indicator | None, latest: float) -> None:
        super().__init__(site)
        self.method, self.indicator = method, indicator
        self.criterion = channel_criterion(method.criterion)
        self.every = method.check_every or max(1, round(site.clock.total / CHECKS))
        self.latest = math.ceil(latest * site.clock.total - 1e-9)
        self.searching = True
        self.keep: dict[Group, Tensor] = {}
        self.sizes: dict[str, int] = {}
        self.selections: list[Selection] = []
        self.checks: list[Check] = []
        self.made: list[Cut] = []
        self._step, self._looked, self._cutting = 0, 0, False
        self._check_inputs()
        self._trace()
        whole = cost(self.graph)
        self.dense = {"macs": whole.macs, "params": whole.params}
        self.sizes = {group.name: group.size for group in self.groups}
        check_equal(site.model.parameters(), site.process_group, "The weights")
        self._warn_of_odd_widths()
        self._paid_macs: float | None = None  # what the latency budget pays for
        self.latency = self._latency_limit()
        self.start()

    # -- what a method adds -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Before training: look once, so that a budget that cannot be met is refused here."""
        self.look()

    def selected(self) -> None:
        """The last look has chosen anew."""

    def leave(self, why: str) -> dict[Group, Tensor]:
        """The channels that stay when a cut is made for this reason."""
        return self.keep

    def every_step(self, gradients: Gradients) -> None:
        """Gradients are fresh, and channels are still to be removed: penalties."""

    def after_step(self) -> None:
        """A step was taken, and channels are still to be removed: shrinkage."""

    def narrowed(self, keep: Mapping[Group, Tensor]) -> None:
        """A part of the channels has left; ``layout`` still has the old ones."""

    def verdict(self) -> str | None:
        """After a look: why to cut now, or None."""
        if self.indicator is not None and self.indicator.fires([check.score for check in self.checks]):
            return "stable"
        return "latest" if self._step >= self.latest else None

    # -- the moments of a step --------------------------------------------------------------------------------------

    @torch.no_grad()
    def before_update(self, gradients: Gradients) -> None:
        if not self.searching:
            return
        self._keep_up()
        if self.criterion.uses_gradients:
            self._observe(gradients)
        self.every_step(gradients)

    @torch.no_grad()
    def after_update(self) -> None:
        step = self.site.clock.step
        if not self.searching or step <= self._step:  # the second of several optimizers: this step was looked at
            return
        self._step = step
        self.after_step()
        if step % self.every == 0 or step >= self.latest:
            self.look()
            why = self.verdict()
            if why is not None:
                self.remove(why)

    @torch.no_grad()
    def finish(self) -> None:
        if self.searching:
            self._keep_up()
            if self._looked < self.site.clock.step:
                self._step = self.site.clock.step
                self.look()
            self.remove("finish")
        least = {name: getattr(cost(self.graph), name.removeprefix("max_")) for name in ("max_macs", "max_params")}
        for name, most in self._budget().items():
            if name in least and least[name] > most * (1 + 1e-9):
                raise EspalierError(f"The network has {least[name]:,} {name.removeprefix('max_')}, more than {most:,.0f}.")

    # -- looking ----------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Choose the channels that would stay now, and compare the choice with earlier ones."""
        self._ranked = self.scores() if is_leader(self.site.process_group) else None
        self.keep = self._choose() if self.site.process_group is None else self._agree()
        self._looked = self._step
        self._observed.zero_()
        self._seen = 0
        if self.indicator is not None:
            self.selections.append([_as_mask(group, kept) for group, kept in self.keep.items()])
            del self.selections[: -self.indicator.history]
            similarity = self.indicator.similarity(self.selections)
            similarities = [*(check.similarity for check in self.checks), similarity]
            self.checks.append(Check(self._step, similarity, self.indicator.score(similarities)))
        self.selected()

    def scores(self) -> Tensor:
        """Worth of every channel of the layout, (total,)."""
        observed = self._observed / self._seen if self._seen else None
        return self.criterion.score(parameters(self.site.model), self._places, observed)

    def _choose(self) -> dict[Group, Tensor]:
        assert self._ranked is not None
        scores = self.layout.split(self._ranked)
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

    def caps(self) -> dict[Group, float]:
        """Largest share of each group that may still go, so that at most ``max_ratio`` of its first width does."""
        return {group: max(0.0, 1 - self._least(group) / group.size) for group in self.groups}

    def floors(self) -> dict[Group, int]:
        """Fewest channels that each group keeps."""
        return {group: self._least(group) for group in self.groups}

    def steps(self) -> dict[Group, int]:
        """Widths are multiples of these; they go by the first widths, so that several cuts end where one would."""
        return {group: self.method.round_to or fast_step(self.sizes.get(group.name, group.size)) for group in self.groups}

    def _least(self, group: Group) -> int:
        size = self.sizes.get(group.name, group.size)
        floor = math.ceil(size / 16) if self.method.min_channels is None else self.method.min_channels
        return min(group.size, max(floor, size - int(size * self.method.max_ratio + 1e-9)))

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

    def _agree(self) -> dict[Group, Tensor]:
        """The leader's choice, on every rank; no bits at all tell the others that it could not choose."""
        device = next(self.site.model.parameters()).device
        bits, refusal = torch.zeros(sum(group.size for group in self.groups), dtype=torch.uint8), None
        if is_leader(self.site.process_group):
            try:
                keep = self._choose()
                bits = torch.from_numpy(np.concatenate([_as_mask(group, keep[group]) for group in self.groups])).to(torch.uint8)
            except EspalierError as error:
                refusal = error
        bits = bits.to(device)
        broadcast(bits, self.site.process_group)
        if refusal is not None:
            raise refusal
        if not bits.any():
            raise EspalierError("Rank 0 could not choose the channels that stay, and has raised an error that says why.")
        parts = torch.split(bits.cpu(), [group.size for group in self.groups])
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
        found = None
        if is_leader(self.site.process_group):
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
            fast = self.latency.tighten(self.site.model, self.keep) if self.latency is not None else False
            if self._leaders(float(fast)):
                return
            self._paid_macs = self._leaders(self.latency.macs if self.latency is not None else 0.0)
            self.keep = self._choose() if self.site.process_group is None else self._agree()
        warnings.warn(
            f"The network takes longer than max_latency={self.method.max_latency} still; see es.profile.", stacklevel=4
        )

    def _leaders(self, number: float) -> float:
        value = torch.tensor([number], dtype=torch.float64, device=self._observed.device)
        broadcast(value, self.site.process_group)
        return float(value)

    # -- cutting ----------------------------------------------------------------------------------------------------

    def remove(self, why: str) -> None:
        """Make the cut; ends the search unless it is a part ("faded") of a progressive one."""
        if why != "faded":
            self._fast_enough()
        keep = self.leave(why)
        check_equal(self.site.model.parameters(), self.site.process_group, "The weights")
        if why == "latest" and self.indicator is not None and any(len(kept) < group.size for group, kept in keep.items()):
            self._warn_of_time_out()
        self._cutting = True
        try:
            cut(self.site.model, keep, optimizer=self.site.optimizers, followers=self.site.followers)
        finally:
            self._cutting = False
        self.searching = why == "faded"
        self._note_changes()
        left = cost(self.graph)
        self.made.append(Cut(self.site.clock.step, why, left.macs, left.params))
        if self.method.recalibrate:
            recalibrate(self.site, self.method.recalibrate)
        if self.searching:
            kept = [keep[group].numpy() for group in self.groups]
            self.selections = [[mask[k] for mask, k in zip(old, kept, strict=True)] for old in self.selections]
            self.keep = {group: torch.searchsorted(keep[group], self.keep[group]) for group in self.groups}
            self.narrowed(keep)
            self._lay_out()
            self.selected()

    def reshaped(self) -> None:
        """Somebody else cut the model: look at it anew."""
        if not self._cutting:
            self._trace()
            self.selections.clear()
            if self.searching:
                self.look()

    def _keep_up(self) -> None:
        """A state dict of other shapes may have been loaded, without the optimizer's that would have told us."""
        if self._changes != changes_made():
            last = self._last_change
            self._note_changes()
            if self._last_change != last:
                self.reshaped()

    def _note_changes(self) -> None:
        self._changes, self._last_change = changes_made(), last_change(self.site.model.parameters())

    def _trace(self) -> None:
        self._note_changes()
        self.graph: ChannelGraph = trace(self.site.model, self.site.example_inputs)
        if self.searching:
            self._lay_out()
            names = set(self.layout.names())
            self.weights = {name: p for name, p in self.site.model.named_parameters() if name in names}

    def _lay_out(self) -> None:
        """Everything that is fixed between two cuts."""
        device = next(self.site.model.parameters()).device
        self.layout = Layout(self._wanted_groups())
        self._places = self.criterion.places(self.site.model, self.layout).to(device)
        self._names = list(dict.fromkeys(name for name, _ in self._places.keys))
        if self.criterion.uses_gradients:
            first = set(self._names)
            beside = {f"{name.removesuffix('weight')}bias" for name in self._names}
            self._names += [name for name, _ in self.site.model.named_parameters() if name in beside - first]
        scored = self.layout.split(self._places.carriers)
        self.groups = [group for group in self.layout.groups if bool((scored[group] > 0).all())]
        if not self.groups:
            raise EspalierError(f"The criterion {self.criterion.name!r} has no score for any group: choose another.")
        self._observed = torch.zeros(self.layout.total, device=device)
        self._seen = 0

    def _wanted_groups(self) -> list[Group]:
        names = [group.name for group in self.graph.groups]
        for pattern in (*(self.method.include or ()), *self.method.exclude):
            if not self.sizes and not any(fnmatchcase(name, pattern) for name in names):  # later they may have gone
                raise EspalierError(f"{pattern!r} matches no group that can be cut; there are {', '.join(names[:8])}, ...")
        wanted = [
            group
            for group in self.graph.groups
            if (self.method.include is None or any(fnmatchcase(group.name, p) for p in self.method.include))
            and not any(fnmatchcase(group.name, p) for p in self.method.exclude)
        ]
        if not wanted:
            reasons = "; ".join(dict.fromkeys(str(group.reason) for group in self.graph.frozen[:3]))
            raise EspalierError(
                "The model has no group of channels that may be cut: "
                + ("include and exclude leave none." if names else f"all are frozen ({reasons}).")
            )
        return wanted

    # -- checks of the input ----------------------------------------------------------------------------------------

    def _check_inputs(self) -> None:
        if self.site.example_inputs is None:
            raise EspalierError(
                f"{self.method.name} has to see the model run once: give es.Pruner(..., example_inputs=x), x being a batch."
            )
        device = next(self.site.model.parameters()).device
        for tensor in Call.of(self.site.example_inputs).tensors:
            if tensor.device != device:
                raise EspalierError(
                    f"example_inputs are on {tensor.device} and the model is on {device}: move them to the same device."
                )
        if self.method.recalibrate and self.site.batches is None:
            raise EspalierError("recalibrate needs data: give es.Pruner(..., batches=loader).")

    def _warn_of_odd_widths(self) -> None:
        if self.method.round_to == 1:
            warnings.warn(
                "round_to=1 allows odd widths, which many devices compute slowly: ResNet-20 with half of its MACs at such "
                "widths trained at 0.81 of the dense speed on a CPU, at multiples of 8 at 1.2 times. Leave it out for speed.",
                stacklevel=5,
            )

    def _warn_of_time_out(self) -> None:
        assert self.indicator is not None
        score = self.checks[-1].score if self.checks else None
        warnings.warn(
            f"The selection of channels had not settled after {self._step} of {self.site.clock.total} steps (the last score of "
            f"the {self.indicator.name} indicator is {'none yet' if score is None else f'{score:.3f}'}): they leave now all "
            f"the same, as latest says. Check more often, lower the threshold, or raise latest.",
            stacklevel=2,
        )

    # -- reading and resuming ---------------------------------------------------------------------------------------

    sparsity = 0.0
    target = 0.0

    def layers(self) -> list[LayerSparsity]:
        return []

    def shrinkage(self) -> Shrinkage:
        left = cost(self.graph)
        now = {group.name: group.size for group in self.graph.groups}  # without those that had one channel when traced
        widths = {name: (size, now.get(name, 1)) for name, size in self.sizes.items()}
        return Shrinkage(
            dense_macs=self.dense["macs"],
            macs=left.macs,
            dense_params=self.dense["params"],
            params=left.params,
            widths=widths,
            cuts=tuple(self.made),
            checks=tuple(self.checks),
        )

    def state_dict(self) -> dict[str, Any]:
        masks = [np.concatenate(selection) for selection in self.selections]
        there = self.groups if self.searching else []  # after the last cut the groups are as wide as what was kept
        kept = [_as_mask(group, self.keep[group]) for group in there if group in self.keep]
        return {
            "searching": self.searching,
            "step": self._step,
            "dense": dict(self.dense),
            "sizes": dict(self.sizes),
            "groups": {group.name: group.size for group in there},
            "keep": torch.from_numpy(np.concatenate(kept)) if kept else torch.zeros(0, dtype=torch.bool),
            "selections": torch.from_numpy(np.stack(masks)) if masks and self.searching else torch.zeros(0, 0),
            "checks": [[check.step, check.similarity, check.score] for check in self.checks],
            "cuts": [[one.step, one.reason, one.macs, one.params] for one in self.made],
            "observed": self._observed.clone() if self.searching else torch.zeros(0),
            "paid_macs": self._paid_macs,
            "seen": self._seen,
            "looked": self._looked,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.searching, self._step = state["searching"], state["step"]
        self.dense, self.sizes = dict(state["dense"]), dict(state["sizes"])
        self._trace()  # the model may have taken other shapes
        self._paid_macs = state["paid_macs"]
        self.checks = [Check(*row) for row in state["checks"]]
        self.made = [Cut(*row) for row in state["cuts"]]
        self._seen, self._looked = state["seen"], state["looked"]
        self.keep, self.selections = {}, []
        if self.searching:
            if len(state["observed"]) == len(self._observed):
                self._observed.copy_(state["observed"])

            def by_group(row: Tensor) -> list[Tensor]:
                parts = dict(zip(state["groups"], torch.split(row.cpu(), list(state["groups"].values())), strict=True))
                return [parts[group.name] for group in self.groups]

            self.selections = [[part.numpy() for part in by_group(row)] for row in state["selections"]]
            kept = by_group(state["keep"])
            self.keep = {group: part.nonzero().flatten() for group, part in zip(self.groups, kept, strict=True)}


def _as_mask(group: Group, kept: Tensor) -> np.ndarray[Any, np.dtype[np.bool_]]:
    mask = np.zeros(group.size, dtype=bool)
    mask[kept.numpy()] = True
    return mask
