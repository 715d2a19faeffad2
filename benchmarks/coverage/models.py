"""The list of models, and how each is built, fed and looked at. The list itself is ``models.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from espalier.tasks.vision import timm, torchvision

LIST = Path(__file__).parent / "models.json"


@dataclass(frozen=True)
class Entry:
    """One model of the list.

    Attributes:
        name: as the library's registry spells it.
        library: "timm", "torchvision", "torchvision.segmentation" or "torchvision.detection".
        family: the library's module that defines it.
        parameters: their number in the dense model.
        input: (channels, height, width) of one image.
        arguments: what the constructor is called with besides the name.
        extra: not the smallest of its family, but named by the question.
    """

    name: str
    library: str
    family: str
    parameters: int
    input: tuple[int, int, int]
    arguments: dict[str, Any] = field(default_factory=dict)
    extra: bool = False

    @property
    def key(self) -> str:
        """Unique: both libraries have a resnet18."""
        return self.name if self.library == "timm" else f"tv_{self.name}"


def load() -> list[Entry]:
    """The models that run dense, in the order of the file."""
    rows = json.loads(LIST.read_text())["models"]
    return [Entry(**{**row, "input": tuple(row["input"])}) for row in rows]


def find(key: str) -> Entry:
    """The entry of that key."""
    return next(entry for entry in load() if entry.key == key)


def build(entry: Entry) -> nn.Module:
    """The model with random weights, the same at every call."""
    torch.manual_seed(0)
    if entry.library == "timm":
        return timm().create_model(entry.name, pretrained=False, **entry.arguments)
    models = torchvision().models
    weights = {"weights": None}
    if entry.library != "torchvision":
        weights["weights_backbone"] = None
    return models.get_model(entry.name, **weights, **entry.arguments)


def is_detector(entry: Entry) -> bool:
    return entry.library == "torchvision.detection"


def example(entry: Entry, batch: int = 2) -> tuple[Any, ...]:
    """Positional arguments of the model's forward. Detectors get targets too: they train by returning losses."""
    made = torch.Generator().manual_seed(1)
    images = torch.randn(batch, *entry.input, generator=made)
    if not is_detector(entry):
        return (images,)
    height, width = entry.input[1:]
    boxes = torch.tensor([[0.1, 0.1, 0.6, 0.7], [0.3, 0.2, 0.9, 0.9]]) * torch.tensor([width, height, width, height])
    targets = [{"boxes": boxes.clone(), "labels": torch.tensor([1, 2])} for _ in range(batch)]
    return list(images.sigmoid().unbind()), targets


def watch(entry: Entry, model: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    """The floating-point outputs of one forward.

    A detector in eval mode returns as many boxes as pass a threshold, so its shapes say nothing: what its head returns is
    looked at instead.
    """
    if not is_detector(entry) or model.training:
        return floats(model(*arguments))
    seen: list[Tensor] = []
    handle = model.head.register_forward_hook(lambda module, inputs, outputs: seen.extend(floats(outputs)))
    try:
        model(*arguments)
    finally:
        handle.remove()
    return seen


def floats(outputs: Any) -> list[Tensor]:
    """All floating-point tensors in whatever a model returned."""
    if hasattr(outputs, "__dataclass_fields__"):
        outputs = vars(outputs)
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def loss(outputs: list[Tensor]) -> Tensor:
    """One number that depends on every output."""
    return torch.stack([output.float().square().mean() for output in outputs]).sum()
