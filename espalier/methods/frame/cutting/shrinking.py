"""The run that structured methods share: look at every check, decide when to cut, cut, and go on with the small network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espalier.cost import cost
from espalier.distributed import check_equal
from espalier.errors import EspalierError
from espalier.graph import Group
from espalier.indicators import Indicator, Selection
from espalier.masks import LayerSparsity
from espalier.methods.frame.base import Gradients, Site
from espalier.methods.frame.cutting.choosing import ChoosingRun, as_mask
from espalier.methods.frame.cutting.norms import norms_at_cut
from espalier.methods.frame.cutting.structured import CHECKS, Structured
from espalier.methods.frame.recalibration import recalibrate
from espalier.methods.frame.shrinkage import Check, Cut, Shrinkage
from espalier.records.norms import NormHistogram
from espalier.surgery.channels import cut

FEWEST = 10  # steps between two looks, in trainings long enough


def usual_check(total: int) -> int:
    """Steps between two looks unless told: a hundredth of the training, but not so few that nothing can have changed.

    Example:
        >>> usual_check(7000), usual_check(600), usual_check(100)
        (70, 10, 5)
    """
    return max(1, round(total / CHECKS), min(FEWEST, total // 20))


class StructuredRun(ChoosingRun):
    """A dense network on its way to a small one.

    Args:
        method: the settings.
        site: what to work on.
        indicator: says when the selection has settled; None where the method decides by other means.
        latest: share of the training after which the cut is made whatever the indicator says.

    Attributes:
        selections: the last choices, as many as the indicator looks at.
        checks, made: all looks and all cuts.
    """

    def __init__(self, method: Structured, site: Site, *, indicator: Indicator | None, latest: float) -> None:
        super().__init__(method, site)
        self.indicator = indicator
        self.every = method.check_every or usual_check(site.clock.total)
        self.latest = math.ceil(latest * site.clock.total - 1e-9)
        self.selections: list[Selection] = []
        self.checks: list[Check] = []
        self.made: list[Cut] = []
        self._step, self._looked = 0, 0
        self._warn_of_odd_widths()
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

    def advice(self) -> str:
        """What to change after a time-out."""
        return "Check more often, lower the threshold, or raise latest."

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
        # Of several optimizers the first to step sets the clock. The others' weights are looked at, shrunk and cut just before
        # their own update instead of just after it; a cut takes their gradients along, so that they step on what is left.
        if not self.searching or step <= self._step:
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
        observed = not self.criterion.uses_gradients or self._seen > 0  # else ranked by something else: not comparable
        self.choose()
        self._looked = self._step
        if self.indicator is not None and observed:
            self.selections.append([as_mask(group, kept) for group, kept in self.keep.items()])
            del self.selections[: -self.indicator.history]
            similarity = self.indicator.similarity(self._comparable())
            similarities = [*(check.similarity for check in self.checks), similarity]
            self.checks.append(Check(self._step, similarity, self.indicator.score(similarities)))
        self.selected()

    def _comparable(self) -> list[Selection]:
        """The selections without the groups that can never lose a channel: always the same, they would pass for settled."""
        may = [self.may_narrow(group) for group in self.groups]
        if all(may) or not any(may):
            return self.selections
        return [[mask for mask, counts in zip(one, may, strict=True) if counts] for one in self.selections]

    def forget(self) -> None:
        self.selections.clear()

    # -- cutting ----------------------------------------------------------------------------------------------------

    def remove(self, why: str) -> None:
        """Make the cut; ends the search unless it is a part ("faded") of a progressive one.

        Where all channels have left in parts, the last cut is one of nothing: only its moment and reason are noted.
        """
        if why != "faded":
            self._fast_enough()
        keep = self.leave(why)
        check_equal(self.site.model.parameters(), self.site.process_group, "The weights")
        leaves = any(len(kept) < group.size for group, kept in keep.items())
        if self.made and not leaves:
            self.searching = False
            self._note_cut(why, norms_at_cut(self.site.model, self.layout, keep))
            return
        if why == "latest" and self.indicator is not None and leaves:
            self._warn_of_time_out()
        norms = norms_at_cut(self.site.model, self.layout, keep)
        self._cutting = True
        try:
            cut(self.site.model, keep, optimizer=self.site.optimizers, followers=self.site.followers)
        finally:
            self._cutting = False
        self.searching = why == "faded"
        self._note_changes()
        self._note_cut(why, norms)
        if self.method.recalibrate:
            recalibrate(self.site, self.method.recalibrate)
        if self.searching:
            kept = [keep[group].numpy() for group in self.groups]
            self.selections = [[mask[k] for mask, k in zip(old, kept, strict=True)] for old in self.selections]
            self.keep = {group: torch.searchsorted(keep[group], self.keep[group]) for group in self.groups}
            self.narrowed(keep)
            self._lay_out()
            self.selected()

    def _note_cut(self, why: str, norms: NormHistogram | None) -> None:
        left = cost(self.graph)
        self.made.append(Cut(self.site.clock.step, why, left.macs, left.params, norms))

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
            f"the same, as latest says. {self.advice()}",
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
        kept = [as_mask(group, self.keep[group]) for group in there if group in self.keep]
        return {
            "searching": self.searching,
            "step": self._step,
            "dense": dict(self.dense),
            "macs": cost(self.graph).macs,
            "sizes": dict(self.sizes),
            "groups": {group.name: group.size for group in there},
            "keep": torch.from_numpy(np.concatenate(kept)) if kept else torch.zeros(0, dtype=torch.bool),
            "selections": torch.from_numpy(np.stack(masks)) if masks and self.searching else torch.zeros(0, 0),
            "checks": [[check.step, check.similarity, check.score] for check in self.checks],
            "cuts": [[one.step, one.reason, one.macs, one.params] for one in self.made],
            "norms": [None if one.norms is None else one.norms.content() for one in self.made],
            "observed": self._observed.clone() if self.searching else torch.zeros(0),
            "paid_macs": self._paid_macs,
            "seen": self._seen,
            "looked": self._looked,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.searching, self._step = state["searching"], state["step"]
        self.dense, self.sizes = dict(state["dense"]), dict(state["sizes"])
        self._trace()  # the model may have taken other shapes
        now = cost(self.graph).macs
        if state.get("macs", now) != now:
            raise EspalierError(
                f"The state counts {state['macs']:,} MACs in a pass with the example inputs, and here it is {now:,}: give the "
                f"Pruner example_inputs of the same shape as when the training began."
            )
        self._paid_macs = state["paid_macs"]
        if self.latency is not None and self._paid_macs is not None:
            self.latency.macs = self._paid_macs
        self.checks = [Check(*row) for row in state["checks"]]
        norms = [NormHistogram.from_content(said) for said in state.get("norms", [None] * len(state["cuts"]))]
        pairs = zip(state["cuts"], norms, strict=True)
        self.made = [Cut(step, why, macs, params, said) for (step, why, macs, params), said in pairs]
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
