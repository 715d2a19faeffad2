"""A run on disk: its folder's name, atomic writes, the lock, and the files that record what happened."""

from __future__ import annotations

import errno
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from espalier.atomic import replacing
from espalier.errors import EspalierError
from espalier.recipes.recipe import load_recipe, recipe_hash, to_yaml
from espalier.recipes.spec import Recipe

RECIPE, METRICS, CHECKPOINT, WEIGHTS, RESULT = (
    "recipe.yaml",
    "metrics.jsonl",
    "checkpoint.pt",
    "model.safetensors",
    "result.json",
)
FAILURE, LOG = "failed.json", "train.log"
IN_USE = 75  # exit code of a training whose folder another process writes to: nothing has failed, try again later
_LOCK_PATIENCE = 1.0  # seconds: whoever asks `is_locked` holds the lock for a moment


class FolderInUse(EspalierError):
    """Another process is writing to the run folder."""


def run_name(recipe: Recipe) -> str:
    """Folder name of a recipe's run, such as `digits-ocp-0.9-s0-1a2b3c4d` or `digits-ocsp-keep-macs-0.5-s0-1a2b3c4d`."""
    target = "ratios" if recipe.pruning.args.get("ratios") else f"{recipe.pruning.sparsity or 0.0:g}"
    if recipe.pruning.budget:
        target = "-".join(f"{key.replace('_', '-')}-{value:g}" for key, value in recipe.pruning.budget.items())
    name = recipe.name or f"{recipe.model.name}-{recipe.data.name}"
    clean = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    return f"{clean}-{recipe.pruning.method}-{target}-s{recipe.seed}-{recipe_hash(recipe)[:8]}"


def open_run(folder: Path, recipe: Recipe) -> None:
    """Make the folder and leave the resolved recipe in it, or check that it belongs to this recipe.

    The pruning section of a recipe that is there already is brought up to date: masks may have moved.

    Raises:
        EspalierError: the folder holds a run of another recipe.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EspalierError(f"The run folder {str(folder)!r} cannot be made ({error.strerror}).") from None
    kept = folder / RECIPE
    if kept.exists():
        found = load_recipe(kept)
        if recipe_hash(found) != recipe_hash(recipe):
            raise EspalierError(
                f"The folder {str(folder)!r} holds a run of another recipe: choose another folder, or delete this one."
            )
        if found.pruning != recipe.pruning:
            write_atomically(kept, to_yaml(found.model_copy(update={"pruning": recipe.pruning})).encode())
    else:
        write_atomically(kept, to_yaml(recipe).encode())


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a reader sees the old or the new content, never half of it.

    Raises:
        EspalierError: the disk is full; the old file stays.
    """
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise disk_error(error, path) from None


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of a process that was killed while writing. Needs the lock."""
    for temporary in folder.glob(".*.part"):
        temporary.unlink(missing_ok=True)


def disk_error(error: OSError, path: Path) -> EspalierError:
    """One sentence for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EspalierError(
            f"The disk is full, {path.name!r} could not be written: free some space and give the same command again; "
            f"the run continues from the last good checkpoint."
        )
    return EspalierError(f"{str(path)!r} could not be written ({error.strerror or error}).")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary as indented JSON, atomically."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


@contextmanager
def locked(folder: Path, patience: float = _LOCK_PATIENCE) -> Iterator[None]:
    """Hold the folder for this process; the system lets go of it however the process ends.

    Args:
        folder: the run folder.
        patience: seconds to keep trying.

    Raises:
        FolderInUse: another process is writing there.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system: go without
        yield
        return
    deadline = time.monotonic() + patience
    with (folder / ".lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    raise FolderInUse(
                        f"Another process is writing to {str(folder)!r}: wait for it, or choose another folder."
                    ) from None
                time.sleep(0.05)
        yield


def is_locked(folder: Path, patience: float = 0.0) -> bool:
    """Whether another process is writing there; False where the system cannot tell.

    Somebody else who asks the same holds the lock for a moment; with `patience`, in seconds, that is not taken for writing.
    """
    if not (folder / ".lock").exists():
        return False
    try:
        with locked(folder, patience):
            return False
    except FolderInUse:
        return True


@contextmanager
def claimed(folder: Path, recipe: Recipe) -> Iterator[None]:
    """Open the run folder for writing: checked, locked, cleared of temporary files."""
    open_run(folder, recipe)
    with locked(folder):
        remove_leftovers(folder)
        yield


class MetricsFile:
    """`metrics.jsonl`: one line per epoch, cut back on resume to what the checkpoint knows.

    Args:
        path: the file.
        length: bytes that are known to be good; the rest is dropped.
    """

    def __init__(self, path: Path, length: int = 0) -> None:
        self._path = path
        self._file: IO[bytes] = path.open("ab")
        self._file.truncate(min(length, path.stat().st_size))

    def append(self, row: dict[str, Any]) -> int:
        """Write one row; returns the length of the file in bytes."""
        try:
            self._file.write((json.dumps(row) + "\n").encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise disk_error(error, self._path) from None
        return self._path.stat().st_size

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of a run's `metrics.jsonl`; an unfinished last line is left out.

    Raises:
        EspalierError: a line is damaged.
    """
    path = folder / METRICS
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise EspalierError(f"Line {number} of {str(path)!r} is not a record of an epoch; remove that line.") from None
    return rows


def read_result(folder: Path) -> dict[str, Any] | None:
    """A finished run's `result.json`, or None."""
    try:
        result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        result = {}
    if not isinstance(result, dict) or "test_acc" not in result:
        raise EspalierError(f"{str(folder / RESULT)!r} is damaged: delete it to train that run again.")
    return result


def read_failure(folder: Path) -> str:
    """Why a run has failed, as its `failed.json` says."""
    try:
        return str(json.loads((folder / FAILURE).read_text(encoding="utf-8"))["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"unknown, see {LOG}"


def machine(device: torch.device) -> dict[str, Any]:
    """What the run was made on."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "device": name}
