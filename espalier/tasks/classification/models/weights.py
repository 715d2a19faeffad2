"""Start weights: from a file of the user's, strictly, and never unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from espalier.errors import EspalierError
from espalier.files import load_model

WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
NESTED = ("state_dict", "model")  # where training scripts put the weights in their checkpoints
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".tar")


def load_weights(model: nn.Module, path: str | Path, name: str) -> nn.Module:
    """Fill a model with the tensors of a file.

    Args:
        model: filled in place.
        path: a file of ``espalier.save``, any other ``.safetensors``, or ``.pt`` / ``.pth`` as torch writes it: a state dict,
            or a dict that holds one.
        name: what to call the model in an error.

    Raises:
        EspalierError: the file is missing or damaged, or does not fit the model to the last tensor.
    """
    place = Path(path).expanduser()
    if written_by_espalier(place):  # packed, and the model may have to be cut to the file's shapes
        return load_model(place, model)
    held = read_tensors(place)
    wanted = model.state_dict()
    complaints = [
        *_listed("lacks", [key for key in wanted if key not in held]),
        *_listed("has besides", [key for key in held if key not in wanted]),
        *_listed(
            "has in another shape",
            [
                f"{key} {tuple(held[key].shape)} instead of {tuple(tensor.shape)}"
                for key, tensor in wanted.items()
                if key in held and held[key].shape != tensor.shape
            ],
        ),
    ]
    if complaints:
        raise EspalierError(f"The weights in {str(place)!r} do not fit the model {name}: the file {', '.join(complaints)}.")
    model.load_state_dict(held)
    return model


def written_by_espalier(place: Path) -> bool:
    """Whether ``espalier.save`` made the file: its safetensors header says so."""
    if place.suffix != ".safetensors":
        return False
    try:
        with safe_open(place, framework="pt") as file:
            return "espalier" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False  # what is wrong with it is said by whoever reads it


def read_tensors(place: Path) -> dict[str, Tensor]:
    """The state dict in a file, with plain keys."""
    if not place.is_file():
        raise EspalierError(f"There is no file {str(place)!r} to take the model's weights from.")
    try:
        if place.suffix == ".safetensors":
            content: Any = load_file(place)
        elif place.suffix in TORCH_SUFFIXES:
            content = torch.load(place, map_location="cpu", weights_only=True)
        else:
            raise EspalierError(f"Weights come as .safetensors or {', '.join(TORCH_SUFFIXES)} files; got {str(place)!r}.")
    except (SafetensorError, UnpicklingError, OSError, RuntimeError, EOFError, ValueError) as error:
        if isinstance(error, EspalierError):
            raise
        raise EspalierError(f"{str(place)!r} is not a readable file of tensors only.") from error
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise EspalierError(f"{str(place)!r} does not hold a state dict: names and tensors.")
    tensors = {str(key): value for key, value in content.items()}
    for prefix in WRAPPERS:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key[len(prefix) :]: value for key, value in tensors.items()}
    return tensors


def _listed(verb: str, names: list[str], most: int = 3) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return [f"{verb} {', '.join(names[:most])}{more}"]
