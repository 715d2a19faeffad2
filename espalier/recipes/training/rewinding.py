"""Runs that do not start at the start: the state of an early step is kept, and later runs begin there.

Where a run begins is a file of weights whose header says the position (epoch, batch, step). A run that begins there is planted:
its folder gets a checkpoint at that position, with those weights under the run's masks and with fresh optimizer states, and is
from then on an ordinary run that was stopped there. Learning rates and the order of the data follow the position.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import espalier as es
from espalier.errors import EspalierError
from espalier.files import read_metadata
from espalier.recipes.recipe import recipe_hash
from espalier.recipes.spec import Recipe
from espalier.recipes.training import runs
from espalier.recipes.training.checkpoint import Position, pack, write_checkpoint
from espalier.recipes.training.engine import Engine, Interrupted
from espalier.recipes.training.evaluate import Tally
from espalier.recipes.training.processes import processes
from espalier.recipes.training.setup import (
    build_recipe_model,
    build_training,
    open_recipe_data,
    seed_everything,
    steps_per_epoch,
)

ANOTHER_SEED = 1_000_003  # added to a seed where something must be drawn anew


def read_moment(text: str) -> tuple[int, str]:
    """Read a moment of a training: steps, or epochs with "ep" behind.

    Raises:
        EspalierError: it is neither.

    Example:
        >>> read_moment("500"), read_moment("2ep")
        ((500, 'steps'), (2, 'epochs'))
    """
    number = text.strip().removesuffix("ep").strip()
    if not number.isascii() or not number.isdigit():
        raise EspalierError(f"A moment to rewind to is a number of steps such as 500, or of epochs such as 2ep; got {text!r}.")
    return int(number), "epochs" if text.strip().endswith("ep") else "steps"


def keep_start(recipe: Recipe, folder: Path, moment: str, path: Path) -> None:
    """Train a run up to a moment, write its weights there to `path`, and leave the run stopped with a checkpoint.

    Does nothing if the file is there. Random numbers and data are those of the whole run, so going on is the same run.

    Args:
        recipe: of the run.
        folder: its folder.
        moment: steps, or epochs with "ep"; at 0 nothing is trained.
        path: the file to write.

    Raises:
        EspalierError: the moment is not before the end of the training, or the run has gone past it already.
    """
    if path.exists():
        return
    number, unit = read_moment(moment)
    with processes(recipe.train.device) as procs, runs.claimed(folder, recipe):
        engine = _Stopping(recipe, folder, procs, quiet=True)
        each = steps_per_epoch(engine.parts.data, recipe)
        engine.until, engine.file = number * (each if unit == "epochs" else 1), path
        if engine.until >= each * recipe.train.epochs:
            raise EspalierError(f"Rewinding to {moment} is beyond the {each * recipe.train.epochs} steps of the training.")
        if (folder / runs.RESULT).exists():
            raise EspalierError(f"The run {str(folder)!r} is over, but its start {path.name!r} is gone: delete the folder.")
        if engine.until == 0:
            engine.write_start()
            return
        try:
            engine.run()
        except Interrupted:
            if not path.exists():  # somebody else asked it to stop
                raise


class _Stopping(Engine):
    """Stops after exactly `until` steps, when it has written the weights to `file`."""

    until: int
    file: Path

    def write_start(self) -> None:
        _save(self.parts.model, self.file, self.position)

    def _resume(self) -> None:
        super()._resume()
        if self.position.step > self.until:
            raise EspalierError(
                f"The run {str(self.folder)!r} has gone past step {self.until}, whose weights were not kept: delete the folder."
            )
        if self.position.step == self.until:  # stopped right here before
            self.write_start()
            raise Interrupted(f"Stopped at step {self.position.step}, whose weights are kept.")

    def _after_step(self, *, ends_epoch: bool) -> None:
        super()._after_step(ends_epoch=ends_epoch)
        if self.position.step == self.until and not ends_epoch:
            self._stop_here()

    def _end_epoch(self) -> None:
        super()._end_epoch()
        if self.position.step == self.until:
            self._stop_here()

    def _stop_here(self) -> None:
        self.write_start()
        self._save()
        raise Interrupted(f"Stopped at step {self.position.step}, whose weights are kept.")


def keep_fresh_start(recipe: Recipe, path: Path) -> None:
    """Write weights drawn anew, from another seed, as a start at step 0; nothing if the file is there."""
    if path.exists():
        return
    with processes(recipe.train.device) as procs:
        data = open_recipe_data(recipe, procs)
        seed_everything(recipe.seed + ANOTHER_SEED)
        model = recipe.model.model_copy(update={"weights": None})
        _save(build_recipe_model(recipe.model_copy(update={"model": model}), data), path, Position())


def plant(recipe: Recipe, folder: Path, weights: Path, position: Position | None = None) -> None:
    """Let a run begin with these weights at the position that their file names; nothing if the run has begun already.

    Args:
        recipe: of the run; the masks of its method zero some of the weights.
        folder: its folder.
        weights: a file of `keep_start` or, with a `position`, any model.
        position: where to begin instead.
    """
    if runs.is_locked(folder, patience=1.0):  # somebody is training it
        return
    with processes(recipe.train.device) as procs, runs.claimed(folder, recipe):
        if (folder / runs.RESULT).exists() or (folder / runs.CHECKPOINT).exists():
            return
        where = read_start(weights) if position is None else position
        parts = build_training(recipe, procs)
        es.load(weights, parts.model)
        if parts.ema is not None:
            es.load(weights, parts.ema.module)
        state = parts.pruner.state_dict() | {"taken": [where.step]}
        parts.pruner.load_state_dict(state)
        parts.pruner.run.masks.apply()  # type: ignore[attr-defined]
        write_checkpoint(folder / runs.CHECKPOINT, pack(parts, Tally(procs.device)), where, recipe_hash(recipe))


def read_start(path: Path) -> Position:
    """The position of a file of `keep_start`."""
    found: dict[str, Any] = read_metadata(path)
    if "start" not in found:
        raise EspalierError(f"{str(path)!r} does not say where a run begins with it.")
    return Position(**found["start"])


def _save(model: Any, path: Path, position: Position) -> None:
    place = asdict(Position(position.epoch, position.batch, position.step))
    es.save(model, path, metadata={"start": place})
