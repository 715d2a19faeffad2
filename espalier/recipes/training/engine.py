"""The training loop: one recipe in, one run folder out, resumable at every optimizer step."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from espalier.errors import EspalierError
from espalier.recipes.recipe import recipe_hash
from espalier.recipes.spec import Recipe
from espalier.recipes.training import runs
from espalier.recipes.training.checkpoint import Position, pack, read_checkpoint, unpack, write_checkpoint
from espalier.recipes.training.evaluate import Tally, evaluate
from espalier.recipes.training.latency import measure_latency
from espalier.recipes.training.processes import Processes, processes
from espalier.recipes.training.progress import Progress, make_progress
from espalier.recipes.training.results import make_result
from espalier.recipes.training.setup import Training, build_training
from espalier.recipes.training.stop import StopRequest
from espalier.recipes.training.trackers import Tracker, open_trackers


class Interrupted(EspalierError):
    """The run was asked to stop and has saved a checkpoint."""


def train(
    recipe: Recipe, folder: str | Path | None = None, *, runs_folder: str | Path = "runs", quiet: bool = False
) -> dict[str, Any]:
    """Train as the recipe says; a finished run is returned as it is, a half-finished one continues.

    Args:
        recipe: what to do.
        folder: the run folder; None makes one named after the recipe inside `runs_folder`.
        runs_folder: where run folders go.
        quiet: show no progress.

    Returns:
        The content of `result.json`.

    Raises:
        EspalierError: bad recipe, NaN, full disk, or a folder in use; the last good checkpoint is kept.
    """
    folder = Path(folder) if folder is not None else Path(runs_folder) / runs.run_name(recipe)
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    with processes(recipe.train.device) as procs, runs.claimed(folder, recipe) if procs.leads else nullcontext():
        procs.wait()
        done: dict[str, Any] | None = procs.collect(runs.read_result(folder))[0]
        if done is not None:
            return done
        try:
            return Engine(recipe, folder, procs, quiet=quiet or not procs.leads).run()
        except torch.OutOfMemoryError as error:
            raise EspalierError(
                f"The device's memory is too small ({str(error).splitlines()[0].rstrip('.')}): lower train.batch_size, and "
                f"raise train.accumulate by the same factor to keep the batches of a step as large."
            ) from None
        except ValueError as error:
            if not str(error).startswith("Expected more than 1 value per channel"):
                raise
            raise EspalierError(
                "Batch norm cannot train on one image at a time where maps are 1 x 1: set train.batch_size to at least 2."
            ) from None


class Engine:
    """One run. `run` is the whole story; everything below it is a step of it."""

    def __init__(self, recipe: Recipe, folder: Path, procs: Processes, *, quiet: bool) -> None:
        self.recipe, self.folder, self.processes = recipe, folder, procs
        self.hash = recipe_hash(recipe)
        self.quiet = quiet
        self.parts: Training = build_training(recipe, procs)
        self.position = Position()
        self.tally = Tally(procs.device)
        self._stop = StopRequest()
        self._started = 0.0
        self._epoch_started = (0.0, 0)
        self._metrics: runs.MetricsFile | None = None
        self._trackers: list[Tracker] = []
        self._progress: Progress

    def run(self) -> dict[str, Any]:
        """Train from the last checkpoint, or from the start, to the end."""
        self._resume()
        self._started = time.monotonic() - self.position.seconds
        if self.processes.leads:
            self._metrics = runs.MetricsFile(self.folder / runs.METRICS, self.position.metrics_bytes)
            runs.read_metrics(self.folder)  # a damaged file is refused now, not when the result is made of it
            self._trackers = open_trackers(self.recipe, self.folder)
        epochs, batches = self.recipe.train.epochs, len(self.parts.data.train)
        self._progress = make_progress(self.recipe, batches, quiet=self.quiet)
        try:
            with self._stop, self._progress:
                while self.position.epoch < epochs:
                    self._train_epoch()
                    self._end_epoch()
                return self._finish()
        finally:
            for tracker in self._trackers:
                tracker.close()
            if self._metrics is not None:
                self._metrics.close()

    # -- one epoch -------------------------------------------------------------------------------------------------

    def _train_epoch(self) -> None:
        """The training loop proper: batches, accumulated into optimizer steps."""
        parts, position, accumulate = self.parts, self.position, self.recipe.train.accumulate
        parts.net.train()
        batches = parts.data.train.epoch(position.epoch, start=position.batch)
        total = len(parts.data.train)
        self._progress.start_epoch(position.epoch, position.batch)
        self._epoch_started = (time.monotonic(), position.batch)
        index, group = position.batch, 0
        for images, labels in batches:
            if group == 0:  # the last group of an epoch may be smaller
                size = group = min(accumulate, total - index)
                parts.curve.apply(parts.optimizer, position.step)
            self._backward(images, labels, size, last=group == 1)
            index, group = index + 1, group - 1
            if group == 0:
                self._update()
                position.batch, position.step = index, position.step + 1
                self._progress.advance(index)
                self._after_step(ends_epoch=index == total)

    def _backward(self, images: Tensor, labels: Tensor, group: int, *, last: bool) -> None:
        """Forward and backward of one of `group` batches whose gradients add up to one step."""
        parts = self.parts
        if isinstance(parts.net, DistributedDataParallel):
            parts.net.require_backward_grad_sync = last
        with parts.autocast:
            logits = parts.net(images)
            loss = functional.cross_entropy(logits, labels, label_smoothing=self.recipe.train.label_smoothing)
        self.tally.add(logits, labels, loss)
        parts.pruner.observe(loss)
        if group > 1:
            loss = loss / group
        (loss if parts.scaler is None else parts.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]

    def _update(self) -> None:
        """One optimizer step; the pruner acts inside it."""
        parts, clip = self.parts, self.recipe.train.clip_norm
        if clip is not None:
            if parts.scaler is not None:
                parts.scaler.unscale_(parts.optimizer)
            torch.nn.utils.clip_grad_norm_(parts.model.parameters(), clip)
        if parts.scaler is not None:
            parts.scaler.step(parts.optimizer)
            parts.scaler.update()
        else:
            parts.optimizer.step()
        parts.optimizer.zero_grad(set_to_none=True)
        if parts.ema is not None:
            parts.ema.update_parameters(parts.model)

    def _after_step(self, *, ends_epoch: bool) -> None:
        """Every now and then look at the loss; save when it is time; stop when asked."""
        every = self.recipe.train.checkpoint_every.steps
        due = every is not None and self.position.step % every == 0
        look = due or self.position.step % self.recipe.train.check_every == 0
        if look:
            self._look()
        alone = self.processes.world == 1
        stop = self._stop.asked if alone else look and self._stop_agreed()  # all must stop at the same step
        if ends_epoch:  # the epoch's row comes first; its checkpoint follows
            return
        if due or stop:
            self._save()
        if stop:
            raise Interrupted(f"Stopped at step {self.position.step}: the same command continues from there.")

    def _stop_agreed(self) -> bool:
        flag = torch.tensor(float(self._stop.asked), device=self.processes.device)
        return bool(self.processes.add(flag) > 0)

    def _look(self) -> None:
        """The only place where the loop waits for the device."""
        loss, accuracy = self.tally.read(self.processes)
        if not math.isfinite(loss):
            raise self._not_finite("The loss")
        self._progress.show(loss, accuracy, None if self.parts.pruner.method.cuts else self.parts.pruner.sparsity)

    def _not_finite(self, what: str) -> EspalierError:
        return EspalierError(
            f"{what} is not finite (epoch {self.position.epoch + 1}, step {self.position.step}): lower optimizer.lr or set "
            f"train.clip_norm; the last good checkpoint, if there is one, is kept in {str(self.folder)!r}."
        )

    def _end_epoch(self) -> None:
        """Validate, write the epoch's row, save."""
        parts, position = self.parts, self.position
        self._look()
        train_loss, train_acc = self.tally.read(self.processes)
        since, first = self._epoch_started
        spent = max(time.monotonic() - since, 1e-9)
        images = (len(parts.data.train) - first) * self.recipe.train.batch_size
        self.processes.align_buffers(parts.model, parts.ema)
        val_loss, val_acc = evaluate(parts.model, parts.data.val.epoch(0), self.processes, parts.autocast)
        if not math.isfinite(val_loss):
            raise self._not_finite("The validation loss")
        row: dict[str, Any] = {
            "epoch": position.epoch + 1,
            "step": position.step,
            "lr": parts.optimizer.param_groups[0]["lr"],
            "train_loss": train_loss,
            "train_acc": train_acc,
            "val_loss": val_loss,
            "val_acc": val_acc,
        }
        if parts.ema is not None:
            ema = evaluate(parts.ema.module, parts.data.val.epoch(0), self.processes, parts.autocast)
            row |= {"val_loss_ema": ema[0], "val_acc_ema": ema[1]}
        if parts.pruner.run.looks_ahead:  # what hard pruning would leave now, beside the live weights
            with parts.pruner.projected():
                ahead = evaluate(parts.model, parts.data.val.epoch(0), self.processes, parts.autocast)
            row |= {"val_loss_projected": ahead[0], "val_acc_projected": ahead[1]}
        stats = parts.pruner.stats()
        row |= {"sparsity": stats["sparsity"], "sparsity_all": stats["sparsity_all"]}
        row |= {
            key: stats[key] for key in ("keep_macs", "keep_params", "stability", "rounds", "gap", "step_size") if key in stats
        }
        row |= {"seconds": time.monotonic() - self._started, "images_per_second": images / spent}
        if self._metrics is not None:
            position.metrics_bytes = self._metrics.append(row)
        for tracker in self._trackers:
            tracker.log(row, position.step)
        self._keep_best(val_acc, stats["sparsity"])
        self._progress.end_epoch(row)
        position.epoch, position.batch = position.epoch + 1, 0
        self.tally = Tally(self.processes.device)
        every = self.recipe.train.checkpoint_every.epochs
        stop = self._stop_agreed()
        last = position.epoch == self.recipe.train.epochs
        if stop or last or (every is not None and position.epoch % every == 0):
            self._save()
        if stop and not last:
            raise Interrupted(f"Stopped after epoch {position.epoch}: the same command continues from there.")

    def _keep_best(self, val_acc: float, sparsity: float) -> None:
        """Beside the last epoch, keep the best that is already on target (a dense epoch is no result)."""
        target = self.recipe.pruning.sparsity
        on_target = sparsity >= (self.parts.pruner.run.goal if target is None else target) - 0.001 and self.parts.settled
        if not self.recipe.train.keep_best or not on_target or val_acc <= self.position.best:
            return
        self.position.best = val_acc
        if self.processes.leads:
            self.parts.save(self.parts.model, self.folder / "best.safetensors")

    # -- the end ---------------------------------------------------------------------------------------------------

    def _finish(self) -> dict[str, Any]:
        """Meet the target exactly, test once, write the model and then the result."""
        parts = self.parts
        report = parts.pruner.finish()
        tested = evaluate(parts.model, parts.data.test.epoch(0), self.processes, parts.autocast)
        extra: dict[str, Any] = {}
        if parts.ema is not None:
            ema = evaluate(parts.ema.module, parts.data.test.epoch(0), self.processes, parts.autocast)
            extra = {"test_loss_ema": ema[0], "test_acc_ema": ema[1]}
        seconds = time.monotonic() - self._started
        result = make_result(parts, report, tested, runs.read_metrics(self.folder), self.position.step, seconds) | extra
        if self.processes.leads:
            if report.shrinkage is not None and self.recipe.train.latency:
                result["latency"] = measure_latency(parts)
            parts.save(parts.model, self.folder / runs.WEIGHTS)
            if parts.ema is not None:
                parts.save(parts.ema.module, self.folder / "model_ema.safetensors")
            runs.write_json(self.folder / runs.RESULT, result)
            (self.folder / runs.CHECKPOINT).unlink(missing_ok=True)
            (self.folder / runs.FAILURE).unlink(missing_ok=True)
        self._progress.end(result)
        self.processes.wait()
        return result

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def _save(self) -> None:
        self.position.seconds = time.monotonic() - self._started
        content = pack(self.parts, self.tally)
        if self.processes.leads:
            write_checkpoint(self.folder / runs.CHECKPOINT, content, self.position, self.hash)
        self.processes.wait()

    def _resume(self) -> None:
        found = read_checkpoint(self.folder / runs.CHECKPOINT, self.hash)
        if found is not None:
            content, self.position = found
            unpack(content, self.parts, self.tally)
        if len(set(self.processes.collect(self.position.step))) > 1:
            raise EspalierError(f"The processes find different checkpoints: {str(self.folder)!r} must be a shared folder.")
