"""Build everything that a recipe names: data, model, optimizer, pruner, followers, in a fixed and seeded order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import espalier as es
from espalier.errors import EspalierError
from espalier.names import unknown
from espalier.recipes.pruning import build_method, lr_restarts
from espalier.recipes.spec import DataSpec, Recipe
from espalier.recipes.training.optim import LRCurve, build_optimizer, restart_steps
from espalier.recipes.training.processes import Processes
from espalier.tasks.classification.data import SOURCES, Augment, Data, open_data
from espalier.tasks.classification.models import build_model, builder_of

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Training:
    """The parts of one training run.

    `model` is the plain module whose weights are saved; `net` is what the loop calls (compiled, data-parallel).
    """

    recipe: Recipe
    processes: Processes
    data: Data
    model: nn.Module
    net: nn.Module
    optimizer: torch.optim.Optimizer
    curve: LRCurve
    pruner: es.Pruner
    ema: AveragedModel | None
    scaler: torch.amp.GradScaler | None

    @property
    def device(self) -> torch.device:
        """Where the training runs."""
        return self.processes.device

    @property
    def autocast(self) -> torch.autocast:
        """Context of the forward pass in the recipe's precision."""
        return autocast(self.recipe, self.device)

    @property
    def settled(self) -> bool:
        """Whether the method has made its last cut; true for methods that make none."""
        return not getattr(self.pruner.run, "searching", False)

    def save(self, model: nn.Module, path: Path) -> None:
        """Write `model` or its average, with how it is built and the shape of its images, so that the file needs no recipe."""
        info, spec = self.data.info, self.recipe.model
        builder = builder_of(spec.name, num_classes=info.num_classes, in_channels=info.in_channels, **spec.args)
        es.save(model, path, builder=builder, metadata={"input": [info.in_channels, info.image_size, info.image_size]})


@dataclass(frozen=True)
class TrainingBatches:
    """The first epoch's training batches, from its start as often as they are asked for.

    They are functions of the seed: neither the training's own pass over the data nor any random state notices.
    """

    data: Data

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.data.train.epoch(0)

    def __len__(self) -> int:
        return len(self.data.train)


def build_training(recipe: Recipe, processes: Processes) -> Training:
    """Build the parts of a training.

    Raises:
        EspalierError: a name, path or combination does not fit; always before training starts.
    """
    device, train = processes.device, recipe.train
    restarts = lr_restarts(recipe)  # what is wrong with the method is said before the data is read
    data = open_recipe_data(recipe, processes)
    if len(data.train) == 0:
        raise EspalierError(f"The training split is smaller than one batch of {train.batch_size}: lower train.batch_size.")
    seed_everything(recipe.seed)
    model = build_recipe_model(recipe, data).to(device)
    if train.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(model, recipe.optimizer)
    ema = None
    if train.ema is not None:
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(train.ema))  # type: ignore[no-untyped-call]
    steps = steps_per_epoch(data, recipe)
    total_steps = steps * train.epochs
    pruner = es.Pruner(
        model,
        optimizer,
        build_method(recipe.pruning, epochs=train.epochs, steps_per_epoch=steps, seed=recipe.seed),
        total_steps=total_steps,
        example_inputs=example_image(data, device, channels_last=train.channels_last),
        followers=() if ema is None else (ema.module,),
        batches=TrainingBatches(data),
        loss_fn=lambda model, batch: batch_loss(recipe, model, batch),
        process_group=processes.group,
    )
    net: nn.Module = torch.compile(model) if train.compile else model  # type: ignore[assignment]
    if processes.group is not None:
        ids = [device] if device.type == "cuda" else None
        net = es.DistributedDataParallel(net, device_ids=ids, process_group=processes.group)
    scaler = torch.amp.GradScaler(device.type) if train.precision == "fp16" else None
    # Dropout and the like draw from here on; each process draws its own numbers.
    seed_everything(recipe.seed * 1000 + processes.rank)
    curve = LRCurve(recipe.lr_schedule, recipe.optimizer.lr, total_steps, restart_steps(restarts, total_steps))
    return Training(recipe, processes, data, model, net, optimizer, curve, pruner, ema, scaler)


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Context of the forward pass in the recipe's precision."""
    dtype = AUTOCAST.get(recipe.train.precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def batch_loss(recipe: Recipe, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss that is trained, of images and labels: for methods that need gradients of their own."""
    images, labels = batch
    with autocast(recipe, images.device):
        logits = model(images)
        return functional.cross_entropy(logits, labels, label_smoothing=recipe.train.label_smoothing)


def example_image(data: Data, device: torch.device, *, channels_last: bool, batch: int = 1) -> Tensor:
    """Made-up images (batch, C, H, W) as the training sees them, always the same ones: what shapes and costs are read from."""
    info, layout = data.info, torch.channels_last if channels_last else torch.contiguous_format
    numbers = torch.randn(batch, info.in_channels, info.image_size, info.image_size, generator=torch.Generator().manual_seed(0))
    return numbers.to(device).contiguous(memory_format=layout)


def steps_per_epoch(data: Data, recipe: Recipe) -> int:
    """Optimizer steps of one epoch; the last one may hold fewer batches than `accumulate`."""
    return -(-len(data.train) // recipe.train.accumulate)


def open_recipe_data(recipe: Recipe, processes: Processes) -> Data:
    """Open the data set; `batch_size` images of all processes together make one batch."""
    spec, train = recipe.data, recipe.train
    if train.batch_size % processes.world:
        raise EspalierError(
            f"The recipe's train.batch_size {train.batch_size} cannot be shared among {processes.world} processes: "
            f"choose a multiple of {processes.world}."
        )
    return open_data(
        spec.name,
        path=data_path(spec),
        batch_size=train.batch_size // processes.world,
        device=processes.device,
        seed=recipe.seed,
        val_fraction=spec.val_fraction,
        limit=spec.limit,
        augment=Augment(**spec.augment.model_dump()),
        resident=spec.resident,
        workers=spec.workers,
        image_size=spec.image_size,
        crop_pct=spec.crop_pct,
        mean=spec.mean,
        std=spec.std,
        channels_last=train.channels_last,
        download=spec.download,
        rank=processes.rank,
        world=processes.world,
    )


def check_data(recipe: Recipe) -> None:
    """Find the recipe's data, before many runs each fail to; nothing is decoded.

    Raises:
        EspalierError: it is not there, or not what the recipe says.
    """
    spec = recipe.data
    if spec.name not in SOURCES:
        raise unknown("data set", spec.name, SOURCES)
    SOURCES[spec.name](data_path(spec), download=spec.download)


def data_path(spec: DataSpec) -> str | None:
    """The data's path with `~` written out."""
    return None if spec.path is None else str(Path(spec.path).expanduser())


def build_recipe_model(recipe: Recipe, data: Data) -> nn.Module:
    """Build the recipe's model for the classes and channels of the data, with its start weights."""
    spec = recipe.model
    ours = spec.weights is not None and _written_by_espalier(Path(spec.weights).expanduser())
    arguments: dict[str, Any] = {"num_classes": data.info.num_classes, "in_channels": data.info.in_channels}
    try:
        model: nn.Module = build_model(spec.name, weights=None if ours else spec.weights, **arguments, **spec.args)
    except EspalierError:
        raise
    except (TypeError, ValueError, ArithmeticError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise EspalierError(f"The recipe's model section does not fit the model {spec.name!r} ({reason}).") from error
    if ours:
        model = es.load(Path(str(spec.weights)).expanduser(), model)
    _check_model(model, data, spec.name)
    return model


def build_dense_model(recipe: Recipe, data: Data) -> nn.Module:
    """The recipe's model in the shapes that its training began with; its values mean nothing, and nothing is fetched."""
    spec = recipe.model
    if spec.weights is not None and not _written_by_espalier(Path(spec.weights).expanduser()):  # others never change shapes
        recipe = recipe.model_copy(update={"model": spec.model_copy(update={"weights": None})})
    return build_recipe_model(recipe, data)


@torch.no_grad()
def _check_model(model: nn.Module, data: Data, name: str) -> None:
    """Show the model one image, in evaluation mode and hence without a trace, before anything is trained."""
    if not all(p.numel() for p in model.parameters()):
        raise EspalierError(f"The model {name!r} has layers without weights: give it a greater width.")
    training, size = model.training, data.info.image_size
    try:
        model.eval()(torch.zeros(1, data.info.in_channels, size, size))
    except EspalierError:
        raise
    except Exception as error:  # each layer complains in its own way
        reason = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
        raise EspalierError(
            f"The model {name!r} does not take the images of {size} x {size} pixels ({reason}): "
            f"set data.image_size, or choose another model."
        ) from error
    finally:
        model.train(training)


def _written_by_espalier(path: Path) -> bool:
    """Whether it is a file of `espalier.save`, whose tensors are packed."""
    try:
        with safe_open(path, framework="pt") as file:
            return "espalier" in (file.metadata() or {})
    except (OSError, SafetensorError):  # a name such as "pretrained", or a file of another kind
        return False


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
