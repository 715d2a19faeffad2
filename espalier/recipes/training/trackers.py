"""Experiment trackers beside `metrics.jsonl`, behind one small protocol; none is imported unless asked for."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from espalier.errors import EspalierError
from espalier.recipes.recipe import resolved
from espalier.recipes.spec import Recipe


class Tracker(Protocol):
    """Anything that takes rows of numbers."""

    def log(self, row: dict[str, Any], step: int) -> None:
        """Record the numbers of one epoch at optimizer step `step`."""

    def close(self) -> None:
        """Flush and let go."""


def open_trackers(recipe: Recipe, folder: Path) -> list[Tracker]:
    """Start the recipe's trackers.

    Raises:
        EspalierError: a tracker's package is not installed, or it cannot start (no server, no login).
    """
    return [Lenient(name, _open(name, recipe, folder)) for name in recipe.trackers]


def _open(name: str, recipe: Recipe, folder: Path) -> Tracker:
    try:
        return _TRACKERS[name](recipe, folder)
    except EspalierError:
        raise
    except Exception as error:  # each tracker has exceptions of its own
        raise EspalierError(
            f"The tracker {name!r} cannot start ({_words(error)}): mend that, or take it out of trackers."
        ) from error


class Lenient:
    """A tracker that may fail later on, as servers do: one warning, and the training goes on without it."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name = name
        self._tracker: Tracker | None = tracker

    def log(self, row: dict[str, Any], step: int) -> None:
        self._attempt(lambda tracker: tracker.log(row, step))

    def close(self) -> None:
        self._attempt(lambda tracker: tracker.close())

    def _attempt(self, act: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            act(self._tracker)
        except Exception as error:  # each tracker has exceptions of its own
            self._tracker = None
            warnings.warn(
                f"The tracker {self._name!r} failed ({_words(error)}) and gets no more rows; metrics.jsonl has them all.",
                stacklevel=3,
            )


class TensorBoard:
    """Event files in `tensorboard/` of the run folder."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        _need("tensorboard", "tensorboard")
        self._writer: Any = _need("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder / "tensorboard"))

    def log(self, row: dict[str, Any], step: int) -> None:
        for key, value in row.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """An MLflow run named after the folder; where it goes is MLflow's own setting (MLFLOW_TRACKING_URI)."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self._mlflow: Any = _need("mlflow", "mlflow")
        self._mlflow.set_experiment(recipe.name or "espalier")
        known = folder / ".mlflow_run"
        if known.exists():  # a resumed training continues its record
            self._mlflow.start_run(run_id=known.read_text().strip())
            return
        run = self._mlflow.start_run(run_name=folder.name)
        known.write_text(run.info.run_id)
        self._mlflow.log_params(_flat(resolved(recipe)))

    def log(self, row: dict[str, Any], step: int) -> None:
        self._mlflow.log_metrics({k: float(v) for k, v in row.items()}, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class WandB:
    """A Weights & Biases run that continues when the training does; WANDB_MODE=offline keeps it local."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self._run: Any = _need("wandb", "wandb").init(
            project="espalier",
            name=folder.name,
            id=folder.name,  # the same id again continues the run
            resume="allow",
            dir=str(folder),
            config=resolved(recipe),
        )

    def log(self, row: dict[str, Any], step: int) -> None:
        self._run.log(row, step=step)

    def close(self) -> None:
        self._run.finish()


_TRACKERS: dict[str, Callable[[Recipe, Path], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


def _words(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _need(module: str, tracker: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise EspalierError(
            f"The tracker {tracker!r} needs a package that is not installed: pip install 'espalier[track]'."
        ) from None


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
