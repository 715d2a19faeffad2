"""What a person sees while training: a bar on a terminal, one plain line per epoch elsewhere, or nothing."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from espalier.recipes.spec import Recipe
from espalier.records.numbers import duration


class Progress:
    """Shows nothing; the base of the two that do."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def start_epoch(self, epoch: int, batch: int) -> None:
        """Epoch `epoch` (from 0) begins, or continues, at `batch`."""

    def advance(self, batch: int) -> None:
        """`batch` batches of this epoch are done. Called every step: must not touch the device."""

    def show(self, loss: float, accuracy: float, sparsity: float | None) -> None:
        """Means of the epoch so far, and the sparsity in force; None for methods that cut."""

    def end_epoch(self, row: dict[str, Any]) -> None:
        """A row of metrics was written."""

    def end(self, result: dict[str, Any]) -> None:
        """The run is finished."""


class Lines(Progress):
    """One line per epoch, for logs and pipes."""

    def __init__(self, recipe: Recipe) -> None:
        self._epochs = recipe.train.epochs

    def end_epoch(self, row: dict[str, Any]) -> None:
        done, seconds = row["epoch"], row["seconds"]
        left = seconds / done * (self._epochs - done)
        print(
            f"epoch {done:>3}/{self._epochs}  loss {row['train_loss']:.4f}  train {row['train_acc']:.2%}  "
            f"val {row['val_acc']:.2%}  {pruned(row)}  {row['images_per_second']:.0f} images/s  "
            f"{duration(left)} left",
            flush=True,
        )

    def end(self, result: dict[str, Any]) -> None:
        print(ending(result), flush=True)


class Bar(Progress):
    """A bar for the whole run with rate, loss, sparsity and time left."""

    def __init__(self, recipe: Recipe, batches: int, console: Console) -> None:
        self._epochs, self._batches, self._images = recipe.train.epochs, batches, recipe.train.batch_size
        self._base = self._first = 0
        self._bar = RichProgress(  # fits into 80 columns
            TextColumn("{task.description}"),
            BarColumn(bar_width=8),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=False),
            TextColumn("left"),
            console=console,
        )
        self._task = self._bar.add_task("", total=self._epochs * batches, said="", rate="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def start_epoch(self, epoch: int, batch: int) -> None:
        self._base = epoch * self._batches
        self._bar.update(self._task, completed=self._base + batch, description=f"epoch {epoch + 1}/{self._epochs}")

    def advance(self, batch: int) -> None:
        self._bar.update(self._task, completed=self._base + batch)

    def show(self, loss: float, accuracy: float, sparsity: float | None) -> None:
        speed = self._bar.tasks[0].speed
        rate = f"{speed * self._images:.0f} img/s" if speed else ""
        said = f"loss {loss:.3f}" + ("" if sparsity is None else f"  sparsity {sparsity:.1%}")
        self._bar.update(self._task, said=said, rate=rate)

    def end_epoch(self, row: dict[str, Any]) -> None:
        self._print(
            f"epoch {row['epoch']:>3}  loss {row['train_loss']:.4f}  train {row['train_acc']:.2%}  "
            f"val {row['val_acc']:.2%}  {pruned(row)}"
        )

    def end(self, result: dict[str, Any]) -> None:
        self._print(ending(result))

    def _print(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


def make_progress(recipe: Recipe, batches: int, *, quiet: bool) -> Progress:
    """A bar on a terminal, lines elsewhere, silence if `quiet`."""
    if quiet:
        return Progress()
    return Bar(recipe, batches, Console()) if sys.stdout.isatty() else Lines(recipe)


def pruned(row: dict[str, Any]) -> str:
    """How far pruning has come, from a row of metrics or a result.

    Example:
        >>> pruned({"sparsity": 0.5}), pruned({"sparsity": 0.0, "keep_macs": 0.75})
        ('sparsity 50.00%', 'MACs 75.00%')
    """
    return f"sparsity {row['sparsity']:.2%}" if row.get("keep_macs") is None else f"MACs {row['keep_macs']:.2%}"


def ending(result: dict[str, Any]) -> str:
    """The one line that sums up a finished run."""
    if result.get("keep_macs") is not None:
        made = result["cuts"]
        when = f", cut after epoch {made[-1]['epoch']:.3g} ({made[-1]['reason']})" if made else ""
        return (
            f"test accuracy {result['test_acc']:.2%} with {result['keep_macs']:.2%} of the MACs and "
            f"{result['keep_params']:.2%} of the parameters{when}, after {duration(result['seconds'])}"
        )
    return (
        f"test accuracy {result['test_acc']:.2%} at sparsity {result['sparsity']:.2%} of the selected weights "
        f"({result['sparsity_all']:.2%} of all), after {duration(result['seconds'])}"
    )
