"""Checkpoints: everything that the rest of a run depends on, in one file that is replaced atomically."""

from __future__ import annotations

import io
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espalier.errors import EspalierError
from espalier.recipes.training.evaluate import Tally
from espalier.recipes.training.runs import write_atomically
from espalier.recipes.training.setup import Training

FORMAT = 1
PARTS = ("model", "optimizer", "pruner", "ema", "scaler", "tally", "rng")  # what `pack` gathers


@dataclass
class Position:
    """How far a run is. `batch` is the next batch of `epoch`; `step` counts optimizer steps."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    metrics_bytes: int = 0
    best: float = -1.0


def write_checkpoint(path: Path, content: dict[str, Any], position: Position, recipe_hash: str) -> None:
    """Save the parts of a training.

    Args:
        path: the file to replace.
        content: state dictionaries and tensors, among them "model" and "optimizer".
        position: how far the run is.
        recipe_hash: which experiment this is.

    Raises:
        EspalierError: the state holds NaN or infinity (the old file stays), or the disk is full.
    """
    learned = [content["model"], content["optimizer"]["state"], content.get("ema")]
    if not all_finite(_tensors(learned)):
        raise EspalierError(
            f"The weights or the optimizer's state are not finite after step {position.step}: lower optimizer.lr "
            f"or set train.clip_norm; the last good checkpoint, if there is one, is kept."
        )
    buffer = io.BytesIO()
    head = {"format": FORMAT, "recipe_hash": recipe_hash, "position": asdict(position)}
    torch.save(head | content, buffer)
    write_atomically(path, buffer.getbuffer())


def read_checkpoint(path: Path, recipe_hash: str) -> tuple[dict[str, Any], Position] | None:
    """Load a checkpoint to the CPU; None if there is none.

    Raises:
        EspalierError: the file is damaged, or belongs to another recipe.
    """
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        known = content["format"] == FORMAT
        position = Position(**content["position"])
        for part in PARTS:
            content[part]
    except Exception as error:  # torch.load raises a different type for each kind of damage
        raise EspalierError(
            f"The checkpoint {str(path)!r} cannot be read ({type(error).__name__}): delete it to start that run again."
        ) from None
    if not known or content["recipe_hash"] != recipe_hash:
        raise EspalierError(
            f"The checkpoint {str(path)!r} belongs to another recipe or version: choose another folder, or delete it."
        )
    return content, position


def pack(parts: Training, tally: Tally) -> dict[str, Any]:
    """Everything that the rest of a training depends on. All processes must call it: each adds its generators.

    The pruner's state also rides in the optimizer's.
    """
    return {
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "pruner": parts.pruner.state_dict(),
        "ema": None if parts.ema is None else parts.ema.state_dict(),
        "scaler": None if parts.scaler is None else parts.scaler.state_dict(),
        "tally": tally.sums,
        "rng": parts.processes.collect(rng_state(parts.device)),
    }


def unpack(content: dict[str, Any], parts: Training, tally: Tally) -> None:
    """Put what `pack` gathered back into a freshly built training.

    Raises:
        EspalierError: the run was started with another number of processes.
    """
    here, there = parts.processes.world, len(content["rng"])
    if here != there:
        raise EspalierError(
            f"The run was started with {there} processes and cannot continue with {here}: use as many as before."
        )
    parts.model.load_state_dict(content["model"])
    parts.optimizer.load_state_dict(content["optimizer"])
    parts.pruner.load_state_dict(content["pruner"])
    if parts.ema is not None:
        parts.ema.load_state_dict(content["ema"])
    if parts.scaler is not None:
        parts.scaler.load_state_dict(content["scaler"])
    tally.sums.copy_(content["tally"])
    set_rng_state(content["rng"][parts.processes.rank], parts.device)


def rng_state(device: torch.device) -> dict[str, Any]:
    """State of every random number generator that training may draw from, as plain tensors and numbers."""
    version, numbers, gauss = random.getstate()
    _, keys, place, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": (version, list(numbers), gauss),
        "numpy": (torch.from_numpy(np.asarray(keys).astype(np.int64)), int(place), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Continue the generators where `rng_state` left them."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    keys, place, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), place, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity; one host sync for all of them."""
    flags = [t.isfinite().all() for t in tensors if t.is_floating_point()]
    return not flags or bool(torch.stack([flag.to(flags[0].device) for flag in flags]).all())


def _tensors(thing: Any) -> Iterable[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from _tensors(value)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            yield from _tensors(value)
