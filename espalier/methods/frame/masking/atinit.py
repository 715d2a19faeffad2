"""Pruning at initialisation: scores before the first step, one mask for the whole training.

A method says how weights are scored; the frame does the rest. With n ``rounds`` the mask comes in n steps of equal ratio,

    density after round k = density^(k/n),

each round scoring the network that the last one left. What is out stays out, unless the method lets it return. A pattern that
has one sparsity only (N:M, kernel shapes) is chosen in the last round; single weights that it would not keep go before.

Masks are made when the Pruner is built, and anew at the first step if start weights were loaded in between, from the batches
that were read first (that step is in mid-epoch: the loader must not start over). A resumed training takes them from its state.
On several ranks the first one scores, and the others receive its masks.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from espalier.criteria import Criterion
from espalier.distributed import all_or_none, is_leader
from espalier.errors import EspalierError
from espalier.masks import Weight
from espalier.masks.ranking import keep_best
from espalier.masks.trial import tried
from espalier.methods.frame.base import Site
from espalier.methods.frame.masking.scheduled import Scheduled, ScheduledRun
from espalier.methods.frame.recalibration import undisturbed
from espalier.schedules import Constant

Weights = Mapping[str, nn.Parameter]


@dataclass(frozen=True)
class AtInit(Scheduled):
    """Base of the methods that prune before the first step; a subclass says how weights are scored.

    Args:
        sparsity: share of the selected weights that is zero during the whole training, in [0, 1).
        scope: "global" (one ranking, as in the papers), "local" (every layer alike) or "erk".
        pattern: what is zeroed as one, see ``espalier.patterns``; scores of its weights are added up.
        include: name patterns and module types of the weights to prune; None means every convolution. The papers prune
            linear layers too: ``include=["*"]``.
        exclude: likewise, taken out again.
    """

    sparsity: float
    scope: str = field(default="global", kw_only=True)
    criterion: Criterion | str = field(default="magnitude", init=False, repr=False)  # these three are no choice here
    every: int = field(default=1, init=False, repr=False)
    tolerance: float = field(default=0.0, init=False, repr=False)

    looks_at: ClassVar[str] = "the weights, the batches and loss_fn"  # what may be wrong where scores are not finite

    def schedule(self) -> Constant:
        return Constant(self.sparsity)

    @property
    def steps(self) -> int:
        """Rounds of scoring."""
        return 1

    @property
    def lets_return(self) -> bool:
        """Whether weights that are out may come back in a later round."""
        return False

    @abstractmethod
    def scores(self, site: Site, weights: Weights, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Score of every selected weight, of its shape: the higher, the more it matters.

        Args:
            site: its model is pruned as the last round left it, and in evaluation or training mode as it was found; what the
                method does to modes, buffers and random state is undone by the frame.
            weights: name -> parameter, zero where pruned.
            whole: name -> values of the same weights without pruning.
        """

    def begin(self, site: Site) -> AtInitRun:
        return AtInitRun(self, site)

    def _check_counts(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise EspalierError(f"{name} is a whole number of at least 1; got {value!r}.")


class FixedRun(ScheduledRun):
    """Masks that are decided before the first step: what is left is to keep them."""

    def after_update(self) -> None:
        self.masks.apply_to_weights(only_where_needed=True)

    def finish(self) -> None:
        self.masks.apply()
        if not self.masks.hold():
            raise EspalierError(
                "The masks do not hold, since weights are NaN or infinite: training has diverged; go back to an earlier "
                "checkpoint."
            )

    def reshaped(self) -> None:
        """Masks of the weights that are left stay as they are: nothing can be decided before the first step any more."""
        self._plan_if_possible()
        self.in_force = self.sparsity

    @property
    def target(self) -> float:
        return self.in_force

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._plan_if_possible()
        self.in_force = state["in_force"]
        self.masks.load_state_dict(state["masks"])

    def _plan_if_possible(self) -> None:
        """What is planned is the count at the start: a narrower layer need not allow it any more."""
        with contextlib.suppress(EspalierError):
            self._plan()


class AtInitRun(FixedRun):
    """Scores, in rounds, when the Pruner is built."""

    method: AtInit
    _chosen: dict[str, Tensor]

    def __init__(self, method: AtInit, site: Site) -> None:
        self._read = None if site.batches is None else ReadOnce(site.batches)
        super().__init__(method, site if self._read is None else replace(site, batches=self._read))
        if self._read is not None:
            self._read.close()

    def after_update(self) -> None:
        super().after_update()
        if self._read is not None and self.site.clock.step:
            self._read.kept.clear()  # no mask is made any more

    def _follow(self, *, exactly: bool) -> None:
        self._prune_to(self.method.sparsity)

    def _prune_to(self, sparsity: float) -> None:
        """Rank 0 scores; all ranks learn whether it could, so that none waits for a mask that will not come."""
        group = self.site.process_group
        self._refuse_synchronised_norms(group)
        self._chosen = {}
        with all_or_none(group, next(iter(self.weights.values())).device, "score the weights"):
            if is_leader(group):
                self._chosen = self._in_rounds(sparsity)
        super()._prune_to(sparsity)
        self._chosen = {}

    def _select(self, sparsity: float) -> dict[str, Tensor]:
        return self._chosen

    def _in_rounds(self, sparsity: float) -> dict[str, Tensor]:
        """Units to keep after the last round, per weight."""
        rounds, masks, scores = self.method.steps, dict[str, Tensor](), dict[str, Tensor]()
        whole = {name: weight.detach().clone() for name, weight in self.weights.items()}
        for turn in range(1, rounds + 1):
            with tried(self.weights, masks), undisturbed(self.site.model), torch.enable_grad():
                scores = self.method.scores(self.site, self.weights, whole)
            self._check_finite(scores)
            scores = {name: _laid_out_as(whole[name], score) for name, score in scores.items()}
            if not self.method.lets_return:
                scores |= {name: scores[name].masked_fill_(mask == 0, -torch.inf) for name, mask in masks.items()}
            if turn < rounds:
                masks = self._on_the_way(scores, 1 - (1 - sparsity) ** (turn / rounds))
        return self._choose(scores, sparsity)

    def _on_the_way(self, scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Masks after a round before the last.

        A pattern of one sparsity is there or not. On the way to it single weights go, and none that it would keep now: so
        every group or kernel has enough left in the end, and what is out need not return.
        """
        pattern = self.method.pattern
        masks = {name: torch.ones_like(score) for name, score in scores.items()}
        fixed = pattern.fixed_sparsity is not None
        for name, keep in self._choose(scores, self.method.sparsity if fixed else sparsity).items():
            pattern.expand(keep, masks[name])
        if fixed:
            for (name, mask), drop in zip(masks.items(), self._drops(sparsity), strict=True):
                guarded = scores[name].masked_fill_(mask != 0, torch.inf)  # in place: a copy has other strides
                Weight().expand(keep_best(Weight().reduce(guarded), drop), mask)
        return masks

    def _check_finite(self, scores: Mapping[str, Tensor]) -> None:
        for name, score in scores.items():
            if not torch.isfinite(score).all():
                raise EspalierError(
                    f"The {self.method.name} scores of {name} are not finite before training: check {self.method.looks_at}."
                )

    def _refuse_synchronised_norms(self, group: dist.ProcessGroup | None) -> None:
        if group is not None and any(isinstance(module, nn.SyncBatchNorm) for module in self.site.model.modules()):
            raise EspalierError(
                f"{self.method.name} runs the model on rank 0 alone, where SyncBatchNorm would wait for the other ranks: use "
                f"BatchNorm instead."
            )


def _laid_out_as(weight: Tensor, score: Tensor) -> Tensor:
    """A copy with the strides of the weight, which patterns count units by; float32 at least."""
    dtype = torch.float32 if score.dtype in (torch.float16, torch.bfloat16) else score.dtype
    return torch.empty_like(weight, dtype=dtype).copy_(score.detach())


class ReadOnce:
    """Batches of which those that were read first are kept, and all that there is once they are closed.

    Masks that are made anew at the first step are made in mid-epoch, where a loader must not be asked to start over: with
    persistent workers that would end the running epoch.

    Attributes:
        kept: what the first reading took.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self.kept: list[Any] = []
        self._batches: Iterable[Any] | None = batches

    def close(self) -> None:
        """Read nothing more."""
        self._batches = None

    def __iter__(self) -> Iterator[Any]:
        if self._batches is None:
            yield from self.kept
            return
        first = not self.kept
        for batch in self._batches:
            if first:
                self.kept.append(batch)
            yield batch


def need_data(method: AtInit, site: Site) -> None:
    """Refuse a Pruner without data and loss, in one sentence."""
    if site.batches is None or site.loss_fn is None:
        raise EspalierError(
            f"{method.name} looks at gradients before training: give es.Pruner(..., batches=loader, loss_fn=f), "
            f"f(model, batch) being the loss."
        )


def first_batches(site: Site, count: int) -> Iterator[Any]:
    """Up to ``count`` batches, from the first; at least one."""
    assert site.batches is not None
    found = 0
    for batch in islice(iter(site.batches), count):
        found += 1
        yield batch
    if not found:
        raise EspalierError("batches gave nothing: give an iterable that can be read anew, such as a DataLoader.")


def loss_of(site: Site, batch: Any) -> Tensor:
    """The loss of a batch in training mode, a tensor ()."""
    assert site.loss_fn is not None
    site.model.train()
    loss = site.loss_fn(site.model, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise EspalierError("loss_fn(model, batch) must return the loss as a tensor of one number that has a gradient.")
    return loss.squeeze()


def gradients_of(value: Tensor, weights: Weights, *, create_graph: bool = False) -> dict[str, Tensor]:
    """dvalue/dweight of every weight, zeros for one that is not used. ``p.grad`` stays as it is."""
    asked = {name: weight for name, weight in weights.items() if weight.requires_grad}
    found = torch.autograd.grad(value, list(asked.values()), create_graph=create_graph, allow_unused=True)
    given = {name: grad for name, grad in zip(asked, found, strict=True) if grad is not None}
    return {name: given.get(name, torch.zeros_like(weight)) for name, weight in weights.items()}
