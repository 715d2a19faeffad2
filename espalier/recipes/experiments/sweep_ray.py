"""A Ray cluster as the place where runs are carried out.

The run folders must lie on a filesystem that every node sees under the same path: a run that loses its node is started again
elsewhere and continues from the checkpoint in its folder. Espalier must be installed on every node.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espalier.errors import EspalierError
from espalier.recipes.experiments.carrying import Ended, Place, PlannedRun
from espalier.recipes.training import runs

_STOP_WITHIN = 120.0  # seconds for the runs under way to save their checkpoints
_LOCK_WITHIN = 600.0  # seconds until the lock of a lost node must be free: network filesystems take a while


class WorkerStopped(Exception):
    """The process of a run was asked to end, its checkpoint is saved: Ray starts the run again, unless it was cancelled."""


class RayCluster(Place):
    """Tasks on a Ray cluster, each the training of one run; Ray places them by the resources that they need.

    Args:
        address: of the cluster, as `ray.init` takes it: "auto" for the one that this machine belongs to, "local" to start one.
        jobs: runs at a time; None: as many as the cluster has room for now.
        cpus: of each run, which has as many threads.
        gpus: of each run; 0.5 puts two on one GPU.
        retries: how often a run may lose its node or its process.

    Raises:
        EspalierError: Ray is not installed, there is no cluster, or no node of it is large enough.
    """

    def __init__(
        self, address: str = "auto", *, jobs: int | None = None, cpus: int = 1, gpus: float = 0.0, retries: int = 3
    ) -> None:
        try:
            import ray
        except ImportError:
            raise EspalierError("`--on ray` needs one more package: pip install 'espalier[ray]'.") from None
        self._ray = ray
        if not ray.is_initialized():
            _connect(ray, address)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = sum(_room(node, cpus, gpus) for node in nodes)
        if room < 1:
            raise EspalierError(f"No node of the Ray cluster has {cpus} CPUs and {gpus:g} GPUs for a run: ask for less.")
        self.slots = room if jobs is None else jobs
        self._threads = cpus
        # A process per run, as on one machine: what a run leaves in its process is nothing to the next one.
        options = {"max_calls": 1, "max_retries": retries, "retry_exceptions": [WorkerStopped]}
        self._task = ray.remote(num_cpus=cpus, num_gpus=gpus, **options)(_train)
        self._running: dict[Any, int] = {}

    def start(self, run: PlannedRun, slot: int) -> None:
        self._running[self._task.remote(str(run.folder.resolve()), os.getcwd(), self._threads)] = slot

    def ended(self) -> list[Ended]:
        if not self._running:
            return []
        over, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [self._end(task) for task in over]

    def stop(self) -> None:
        for task in self._running:
            self._ray.cancel(task, force=False)  # arrives as Ctrl-C: the run saves its checkpoint
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=_STOP_WITHIN)
        self._running.clear()

    def _end(self, task: Any) -> Ended:
        slot = self._running.pop(task)
        try:
            code, error = self._ray.get(task)
        except self._ray.exceptions.RayError as lost:
            cause = getattr(lost, "cause", None) or lost
            words = str(cause).strip().splitlines() or [type(cause).__name__]
            return Ended(slot, 1, f"the run was lost on the Ray cluster ({words[0].rstrip('.')})")
        return Ended(slot, code, error)


def _connect(ray: Any, address: str) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options["include_dashboard"] = False
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise EspalierError(
            f"There is no Ray cluster at {address!r} ({reason}): start one with `ray start --head`, or give --address local."
        ) from None


def _room(node: Mapping[str, float], cpus: int, gpus: float) -> int:
    """How many runs fit on a node.

    Example:
        >>> _room({"CPU": 16.0, "GPU": 2.0}, cpus=4, gpus=0.5), _room({"CPU": 1.0}, cpus=1, gpus=0.5)
        (4, 0)
    """
    by_cpus = int(node.get("CPU", 0.0) / cpus)
    return min(by_cpus, int(node.get("GPU", 0.0) / gpus)) if gpus else by_cpus


def _train(folder: str, start_folder: str, threads: int) -> tuple[int, str | None]:
    """On a node: train the run of a folder from its last checkpoint on; returns an exit code, and why it failed, if it did."""
    from espalier.recipes.training.engine import Interrupted

    place = Path(folder)
    if not (place / runs.RECIPE).is_file():
        return 1, (
            f"the node {platform.node()} does not see {folder!r}: run folders must lie on a filesystem that all nodes share, "
            f"under the same path"
        )
    if os.path.isdir(start_folder):
        os.chdir(start_folder)  # relative paths in the recipe mean the same as at the command's start
    with (place / runs.LOG).open("a", encoding="utf-8", buffering=1) as log:
        print(f"on node {_node()}, process {os.getpid()}", file=log)
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            try:
                _train_here(place, threads)
            except Interrupted as stopped:
                print(stopped, file=log)
                raise WorkerStopped(str(stopped)) from None
            except runs.FolderInUse as busy:
                print(busy, file=log)
                return runs.IN_USE, str(busy)
            except EspalierError as error:
                print(error, file=log)
                return 1, str(error)
    return 0, None


def _train_here(folder: Path, threads: int) -> None:
    from espalier.recipes.recipe import load_recipe
    from espalier.recipes.training.engine import train

    deadline = time.monotonic() + _LOCK_WITHIN
    while runs.is_locked(folder) and time.monotonic() < deadline:
        time.sleep(1.0)
    recipe = load_recipe(folder / runs.RECIPE, [f"train.threads={threads}"])
    train(recipe, folder)


def _node() -> str:
    import ray

    return f"{platform.node()} ({ray.get_runtime_context().get_node_id()})"
