"""Pruning on a schedule: the frame that One-Cycle, one-shot, iterative and gradual pruning share.

A scheduled method joins independent choices: *when* (schedule), *how much where* (scope), *which pattern* and *by which
score* (criterion). After k optimizer steps the sparsity in force is s(k / total_steps), from construction on.

The mask is recomputed from the current weights whenever the schedule has moved on by more than ``tolerance``; so the
sparsity in force stays within ``tolerance`` of the schedule at every step, and it is exact at the end (and as soon as
the schedule comes within half a tolerance of its final value). ``tolerance=0`` follows every step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from espalier.criteria import CRITERIA, Criterion
from espalier.distributed import broadcast, check_equal, is_leader
from espalier.errors import EspalierError
from espalier.masks import SCOPES, LayerSparsity, Masks, Pattern, Weight, pack_bits, select_ratios, select_weights, unpack_bits
from espalier.masks import allocation as allocate
from espalier.masks.ranking import keep_best, keep_best_together
from espalier.masks.targets import Entry
from espalier.methods.frame.base import Gradients, Method, Run, Site
from espalier.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class Scheduled(Method):
    """Base of the scheduled methods; a subclass says which schedule.

    Args:
        scope: "local" (every layer alike), "global" (one ranking) or "erk".
        pattern: what is zeroed as one, see ``espalier.patterns``.
        criterion: a name ("magnitude", "squared", "weight-gradient", "movement", "random") or a ``Criterion``.
        include: name patterns and module types of the weights to prune; None means every convolution.
        exclude: likewise, taken out again.
        every: look at the schedule only every so many steps.
        tolerance: how far the sparsity in force may lag behind the schedule, as a share.
    """

    scope: str = "local"
    pattern: Pattern = field(default_factory=Weight)
    criterion: Criterion | str = "magnitude"
    include: Sequence[Entry] | None = None
    exclude: Sequence[Entry] = ()
    every: int = 1
    tolerance: float = 0.001

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise EspalierError(f"scope must be one of {', '.join(SCOPES)}; got {self.scope!r}.")
        if not isinstance(self.pattern, Pattern):
            raise EspalierError(f"pattern must be an object such as es.patterns.Kernel(); got {self.pattern!r}.")
        if not isinstance(self.criterion, Criterion) and self.criterion not in list(CRITERIA):
            raise EspalierError(f"criterion must be one of {', '.join(CRITERIA)}, or a Criterion; got {self.criterion!r}.")
        if not isinstance(self.every, int) or self.every < 1 or not 0 <= self.tolerance < 1:
            raise EspalierError("every must be a whole number, at least 1, and tolerance a share in [0, 1).")
        if any(isinstance(x, str) or not isinstance(x, Sequence) for x in (self.include or (), self.exclude)):
            raise EspalierError("include and exclude take lists: include=['layer1.*'], not include='layer1.*'.")
        self._check_pattern(self.schedule())

    @abstractmethod
    def schedule(self) -> Schedule:
        """The curve that this method follows; with ratios that of the highest of them."""

    @property
    def ratios(self) -> Mapping[str, float] | None:
        """Shares by name pattern, for methods whose ``sparsity`` may be such a mapping and is."""
        return None

    def weights(self, model: nn.Module) -> dict[str, nn.Parameter]:
        if self.ratios is not None:
            named = dict(model.named_parameters())
            return {name: named[name] for name in select_ratios(model, self.ratios, self.exclude)}
        return select_weights(model, self.include, self.exclude)

    def begin(self, site: Site) -> ScheduledRun:
        return ScheduledRun(self, site)

    def _check_pattern(self, schedule: Schedule) -> None:
        fixed = self.pattern.fixed_sparsity
        if fixed is None:
            return
        shown = f"{type(self.pattern).__name__}{self.pattern.__dict__ or ''}"
        if self.scope != "local":
            raise EspalierError(f"Pattern {shown} has the same sparsity everywhere: use scope='local', not {self.scope!r}.")
        levels = schedule.levels
        if levels is None:
            raise EspalierError(
                f"Pattern {shown} is either there or not, so it cannot follow the gradual schedule "
                f"{type(schedule).__name__}: use OneShot(sparsity={fixed:g}, pattern=...)."
            )
        shares = {*levels, *(self.ratios or {}).values()}
        if any(share and abs(share - fixed) > 1e-4 for share in shares):
            raise EspalierError(f"Pattern {shown} means a sparsity of {fixed:g}; the schedule takes {sorted(shares)}.")


class ScheduledRun(Run):
    """Masks that follow a schedule. The loop of the method is ``after_update``."""

    def __init__(self, method: Scheduled, site: Site) -> None:
        super().__init__(site)
        self.method = method
        self.schedule = method.schedule()
        criterion = method.criterion
        self.criterion = CRITERIA[criterion]() if isinstance(criterion, str) else criterion
        self.weights = method.weights(site.model)
        self.masks = Masks(self.weights, site.optimizers, site.followers)
        self.memories: dict[str, Tensor] = {}
        self.in_force = 0.0
        self._plan()
        check_equal(self.weights.values(), site.process_group, "The weights")
        self._follow(exactly=True)

    # -- the three moments of a step -------------------------------------------------------------------------------

    @torch.no_grad()
    def before_update(self, gradients: Gradients) -> None:
        if self.masks.overwritten():
            if self.site.clock.step == 0:
                self._prune_to(self.in_force)  # start weights that were loaded after construction: rank those
            else:
                self.masks.apply_to_weights()
        if self.criterion.uses_gradients:
            self._observe(gradients)
        self.masks.apply_to_gradients()

    def after_update(self) -> None:
        self.masks.apply_to_weights(only_where_needed=True)
        clock = self.site.clock
        if clock.step % self.method.every == 0 or clock.step >= clock.total:
            self._follow(exactly=clock.step >= clock.total)

    def finish(self) -> None:
        final = self.schedule(1.0)
        if self.in_force != final:
            self._prune_to(final)
        self.masks.apply()
        units = sum(layer.zeros // self._unit_size[layer.name] for layer in self.masks.layers())
        if units != self._total_drop(final) or not self.masks.hold():
            raise EspalierError(
                f"The final sparsity of {self._overall(final):g} is not in force, since weights are NaN or infinite: training "
                f"has diverged; go back to an earlier checkpoint."
            )

    def companions(self) -> Sequence[MutableMapping[str, Tensor]]:
        return [self.masks.tensors, self.memories]

    def reshaped(self) -> None:
        """Count anew, and choose anew among the weights that are left, so that the sparsity in force is right again."""
        self._plan()
        if self.masks.tensors:
            self._prune_to(self.in_force)

    # -- following the schedule ------------------------------------------------------------------------------------

    @property
    def target(self) -> float:
        return self._overall(self.schedule(self.site.clock.progress))

    @property
    def goal(self) -> float:
        """Share of the selected weights that the method wants to be zero at the end."""
        return self._overall(self.schedule(1.0))

    def _overall(self, level: float) -> float:
        """Share of all selected weights when the schedule stands at ``level``, which is that of the highest ratio."""
        if self.method.ratios is None:
            return level
        units = dict(zip(self._units, self._drops(level), strict=True))
        zeros = sum(self._unit_size[name] * drop for name, drop in units.items())
        return zeros / sum(weight.numel() for weight in self.weights.values())

    def _follow(self, *, exactly: bool) -> None:
        """Prune to the schedule's present value if it has moved away from the sparsity in force."""
        target, final = self.schedule(self.site.clock.progress), self.schedule(1.0)
        if abs(target - final) < self.method.tolerance / 2:
            target, exactly = final, True
        if target != self.in_force and (exactly or abs(target - self.in_force) > self.method.tolerance):
            self._prune_to(target)

    @torch.no_grad()
    def _prune_to(self, sparsity: float) -> None:
        """Rank, select, mask. Rank 0 decides for all."""
        group = self.site.process_group
        choices = self._select(sparsity) if is_leader(group) else {}
        for name in self.weights:
            keep = choices[name] if group is None else self._agree(name, choices.get(name))
            self.method.pattern.expand(keep, self.masks.writable(name))
        self.in_force = sparsity
        self.masks.apply()

    def _select(self, sparsity: float) -> dict[str, Tensor]:
        """Bool choice of units to keep, per weight."""
        return self._choose({name: self._score(name, weight.detach()) for name, weight in self.weights.items()}, sparsity)

    def _score(self, name: str, weight: Tensor) -> Tensor:
        return self.criterion.of(name).score(weight, self._memory(name))

    def _choose(self, scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Bool choice of the units with the highest scores, per weight."""
        ranked = {name: self.method.pattern.reduce(score) for name, score in scores.items()}
        units = list(self._units.values())
        if self.method.scope == "global":
            together = keep_best_together(list(ranked.values()), allocate.global_drop(sparsity, units))
            return dict(zip(ranked, together, strict=True))
        drops = self._drops(sparsity)
        return {name: keep_best(score, drop) for (name, score), drop in zip(ranked.items(), drops, strict=True)}

    def _drops(self, sparsity: float) -> list[int]:
        units = list(self._units.values())
        if self.method.scope == "erk":
            return allocate.erk_drops(sparsity, self._shares, self._peak, units)
        if self.method.ratios is None and self.method.pattern.fixed_sparsity is None:
            return allocate.local_drops(sparsity, units)
        return allocate.share_drops(sparsity / self._peak if self._peak else 0.0, self._shares, units)

    def _total_drop(self, sparsity: float) -> int:
        if self.method.scope == "global":
            return allocate.global_drop(sparsity, list(self._units.values()))
        return sum(self._drops(sparsity))

    def _agree(self, name: str, keep: Tensor | None) -> Tensor:
        device, units = self.weights[name].device, self._units[name]
        bits = torch.zeros((units + 7) // 8, dtype=torch.uint8, device=device) if keep is None else pack_bits(keep)
        broadcast(bits, self.site.process_group)
        return unpack_bits(bits, (units,), device)

    def _plan(self) -> None:
        """Everything that is fixed for the run, and the refusals that need the model."""
        pattern = self.method.pattern
        shapes = {name: tuple(weight.shape) for name, weight in self.weights.items()}
        for name, shape in shapes.items():
            pattern.check(name, shape)
        self._unit_size = {name: pattern.unit_size(shape) for name, shape in shapes.items()}
        self._units = {name: pattern.units(shape) for name, shape in shapes.items()}
        self._peak = max(self.schedule.final, self.schedule.initial)
        units = list(self._units.values())
        # A pattern's own share may be one that is not written out in full, such as 4 / 9.
        self._shares = [self._peak if pattern.fixed_sparsity is None else pattern.fixed_sparsity] * len(units)
        if self.method.ratios is not None and pattern.fixed_sparsity is None:
            self._shares = list(select_ratios(self.site.model, self.method.ratios, self.method.exclude).values())
        if self.method.scope == "erk":
            self._shares = allocate.erk_shares(self._peak, list(shapes.values()), units)
        allocate.check_reachable(self.method.scope, self._peak, list(shapes), units, self._shares)

    # -- gradient criteria -----------------------------------------------------------------------------------------

    def _observe(self, gradients: Gradients) -> None:
        """Gradients of the optimizer that steps; half precision is widened first, where products would underflow."""
        memories, contributions = [], []
        for name, weight in self.weights.items():
            if weight.grad is None or gradients.optimizer not in (None, self.masks.owner[name]):
                continue
            if name not in self.memories:
                self.memories[name] = torch.zeros_like(weight, dtype=torch.float32)
            memories.append(cast(Tensor, self._memory(name)))
            contributions.append(weight.detach().float() * gradients.unscaled(weight.grad.to_dense().float()))
        if memories:
            self.criterion.observe(memories, contributions)

    def _memory(self, name: str) -> Tensor | None:
        """The memory of a weight, if it has one, with the device and strides that the weight has now."""
        memory, weight = self.memories.get(name), self.weights[name]
        if memory is None:
            return None
        if memory.device != weight.device or memory.stride() != weight.stride():
            memory = self.memories[name] = torch.empty_like(weight, dtype=torch.float32).copy_(memory)
        return memory

    # -- reading and resuming --------------------------------------------------------------------------------------

    @property
    def sparsity(self) -> float:
        layers = self.layers()
        return sum(layer.zeros for layer in layers) / sum(layer.total for layer in layers)

    def layers(self) -> list[LayerSparsity]:
        return self.masks.layers()

    def state_dict(self) -> dict[str, Any]:
        memories = {name: memory.clone() for name, memory in self.memories.items()}
        return {"in_force": self.in_force, "masks": self.masks.state_dict(), "memories": memories}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._plan()  # the model may have taken other shapes
        self.in_force = state["in_force"]
        self.masks.load_state_dict(state["masks"])
        self.memories = {}
        for name, memory in state["memories"].items():
            self.memories[name] = torch.zeros_like(self.weights[name], dtype=torch.float32).copy_(memory)
