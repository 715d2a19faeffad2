"""Save and load models without pickle: safetensors, written atomically."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors.torch import load_file, save
from torch import nn


def save_model(model: nn.Module, path: str | Path) -> None:
    """Write all parameters and buffers; the same weights give the same bytes."""
    path = Path(path)
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})
    beside = path.with_name(path.name + ".part")
    with open(beside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def load_model(path: str | Path, model: nn.Module) -> nn.Module:
    """Fill ``model`` with the tensors of the file, strictly."""
    model.load_state_dict(load_file(path))
    return model
