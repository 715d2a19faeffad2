"""The Pruner: one method bound to one model and its optimizers, riding on ``optimizer.step()``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from espalier.errors import EspalierError
from espalier.masks import LayerSparsity
from espalier.methods import Clock, Gradients, Method, Site
from espalier.pruner import checks, state
from espalier.pruner.report import Report
from espalier.pruner.riding import Ride
from espalier.structure import Structure
from espalier.surgery import reshaping, shape_to, structure_of

DONE = 0.99  # fp16 skips steps and loaders drop batches, so the last percent may be missing


class Pruner:
    """Prune a model during its one training run; the training loop does not change.

    Masks, penalties and cuts happen inside ``optimizer.step()``. Weights and their moments are exactly zero where masked;
    names in the state dicts stay plain.

    Args:
        model: the model that is trained; may be wrapped by torch.compile or DistributedDataParallel
            (``es.DistributedDataParallel`` for methods that change shapes).
        optimizer: its optimizer, or all of them.
        method: what to do, say ``es.OCP(sparsity=0.9)``.
        total_steps: optimizer steps of the whole training. After k of them the sparsity in force is s(k / total_steps),
            from construction on.
        example_inputs: an input batch, for methods that trace the model.
        followers: models with the same parameter names that must be pruned alike (EMA, SWA).
        batches: data, for methods that need some.
        loss_fn: ``loss_fn(model, batch) -> scalar``, for the same methods. SLR and ADMM call it with the model in evaluation
            mode, SNIP and GraSP in training mode, Force in the mode that the model is in.
        process_group: in distributed training, the group whose rank 0 decides for all.

    Raises:
        EspalierError: if the model, optimizer, method and target do not fit together; always before training starts.

    Example:
        >>> import torch, espalier as es
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 2))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> pruner = es.Pruner(model, optimizer, es.AGP(sparsity=0.5), total_steps=4)
        >>> for _ in range(4):
        ...     model(torch.randn(8, 1, 8, 8)).sum().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> print(pruner.finish().summary())
        agp: 50.00% of the selected weights and 5.45% of all parameters are zero after 4 of 4 steps
          0.weight   50.00%          18 of 36 left
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        method: Method,
        *,
        total_steps: int,
        example_inputs: Any = None,
        followers: Sequence[nn.Module] = (),
        batches: Iterable[Any] | None = None,
        loss_fn: Callable[..., Tensor] | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        self.model = checks.check_model(model)
        self.method = checks.check_method(method)
        checks.check_wrappers(model, self.method)
        optimizers = checks.check_optimizers(optimizer)
        clock = Clock(checks.check_total_steps(total_steps))
        self.site = Site(
            model=self.model,
            optimizers=optimizers,
            followers=checks.check_followers(followers, self.model),
            clock=clock,
            process_group=process_group,
            example_inputs=example_inputs,
            batches=batches,
            loss_fn=loss_fn,
        )
        checks.check_ownership(self.method.weights(self.model), self.model, optimizers)
        state.refuse_second_pruner(optimizers)
        self.run = self.method.begin(self.site)
        self._report: Report | None = None
        self._warned = False
        self._ride = Ride(optimizers, list(self.run.weights.values()), self._before, self._after, self.detach)
        self._passenger = state.Passenger(optimizers, self.state_dict, self._load)
        for module in (self.model, *self.site.followers):  # after the ride, which unbinds an earlier Pruner of the model
            reshaping.install(module)  # also where the method does not cut: es.cut may, and a resumed run starts dense
        reshaping.bind(self.model, optimizers, self.site.followers, self.run)

    # -- inside optimizer.step() -----------------------------------------------------------------------------------

    @torch.no_grad()
    def _before(self, gradients: Gradients) -> None:
        self._passenger.excused = False
        self.run.before_update(gradients)

    @torch.no_grad()
    def _after(self, steps: int) -> None:
        clock = self.site.clock
        clock.step = steps
        if steps > clock.total and not self._warned:
            self._warned = True
            warnings.warn(
                f"Training goes on after the {clock.total} steps that the Pruner was told of; the final sparsity stays in "
                f"force. Give total_steps the number of optimizer steps, and call finish().",
                stacklevel=2,
            )
        self.run.after_update()

    # -- reading ---------------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.site.clock.step

    @property
    def progress(self) -> float:
        """Share of ``total_steps`` taken, in [0, 1]."""
        return self.site.clock.progress

    @property
    def sparsity(self) -> float:
        """Share of the selected weights that is zero now. Reads from the device if the masks have changed."""
        return self.run.sparsity

    def layers(self) -> list[LayerSparsity]:
        """The selected weights, one by one."""
        return self.run.layers()

    def stats(self) -> dict[str, float | int]:
        """Numbers for your own logger: sparsity, sparsity_all, sparsity_target, step, progress.

        For methods that cut also keep_macs and keep_params (shares that are left) and, once there is one, stability (the newest
        score of the indicator). For methods with multipliers also rounds (how many there were) and, after the first, gap (the
        norm of W - Z) and step_size.
        """
        zeros = sum(layer.zeros for layer in self.layers())
        shrinkage, more = self.run.shrinkage(), {}
        if shrinkage is not None:
            more = {"keep_macs": shrinkage.keep_macs, "keep_params": shrinkage.keep_params}
            scores = [check.score for check in shrinkage.checks if check.score is not None]
            more |= {"stability": scores[-1]} if scores else {}
        return (
            more
            | self.run.numbers()
            | {
                "sparsity": self.sparsity,
                "sparsity_all": zeros / sum(p.numel() for p in self.model.parameters()),
                "sparsity_target": self.run.target,
                "step": self.step,
                "progress": self.progress,
            }
        )

    def observe(self, loss: Tensor | float) -> None:
        """Report the training loss of a batch, for ``es.SLR(conditions="mean")``; other methods have no use for it.

        Args:
            loss: a tensor, which is not read on the host (of several numbers the mean counts), or a number. Distributed: every
                rank reports its own.

        Raises:
            EspalierError: for anything else.
        """
        self.run.observe(checks.check_loss(loss))

    def projected(self) -> AbstractContextManager[None]:
        """A look ahead: inside, the model has the weights that hard pruning would leave it now; afterwards its own again.

        For ``es.SLR`` and ``es.ADMM`` until they prune; other models stay as they are. Distributed: use it on all ranks, and
        never between a forward pass and its backward. Batch norm keeps the statistics of the live weights.

        Example:
            >>> import torch, espalier as es
            >>> model = torch.nn.Conv2d(1, 2, 3)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> pruner = es.Pruner(model, optimizer, es.ADMM(sparsity=0.5), total_steps=10)
            >>> with pruner.projected():
            ...     int((model.weight == 0).sum())
            9
            >>> int((model.weight == 0).sum())
            0
        """
        return self.run.projected()

    # -- ending ----------------------------------------------------------------------------------------------------

    def finish(self, *, allow_early: bool = False) -> Report:
        """Put the exact final state in force, check it, and leave a plain module behind. Distributed: call it on all ranks.

        Args:
            allow_early: accept a training that stopped before 99 % of ``total_steps``.

        Raises:
            EspalierError: if training stopped early or the target is not met.
        """
        if self._report is not None:
            return self._report
        self._ride.settle()
        self.site.clock.step = self._ride.steps
        if self.progress < DONE and not allow_early:
            raise EspalierError(
                f"Training stopped after {self.step} of {self.site.clock.total} steps, so the model was never trained at its "
                f"final sparsity: train on, or call finish(allow_early=True) to prune it now all the same."
            )
        self.run.finish()
        stats = self.stats()
        self._report = Report(
            method=self.method.name,
            steps=self.step,
            total_steps=self.site.clock.total,
            sparsity=float(stats["sparsity"]),
            sparsity_all=float(stats["sparsity_all"]),
            layers=tuple(self.layers()),
            shrinkage=self.run.shrinkage(),
            rounds=self.run.rounds(),
        )
        self.detach()
        return self._report

    def detach(self) -> None:
        """Stop pruning without finishing: remove every hook, leave the model as it is."""
        self._ride.detach()
        self._passenger.detach()
        reshaping.unbind(self.model)

    # -- saving and resuming ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly: tensors, numbers and strings, fit for ``torch.load(weights_only=True)``.

        The same travels in ``optimizer.state_dict()``; this form is for checkpoints that rebuild optimizer states
        (torch.distributed.checkpoint), where ``load_state_dict`` comes before the optimizer's.
        """
        taken = self._ride.state_dict()
        self.site.clock.step = self._ride.steps
        return {
            "version": state.VERSION,
            "method": repr(self.method),
            "total_steps": self.site.clock.total,
            "taken": taken,
            "structure": structure_of(self.model).to_json(),
            "run": self.run.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue a training saved by ``state_dict``; the model and the optimizer are loaded by their own means.

        Raises:
            EspalierError: for the state of another method or another number of steps.
        """
        self._load(saved)
        self._passenger.excused = True

    def _load(self, saved: Mapping[str, Any]) -> None:
        state.check_same_training(saved, repr(self.method), self.site.clock.total)
        structure = Structure.from_json(saved["structure"])
        shape_to(self.model, structure, optimizers=self.site.optimizers, followers=self.site.followers)
        self.run.load_state_dict(saved["run"])
        self._ride.load_state_dict(saved["taken"])
        self.site.clock.step = self._ride.steps
