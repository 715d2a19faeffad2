"""The typed form of a recipe: one frozen pydantic model per YAML section, unknown keys refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from espalier.records.numbers import budgets_in

_CLOSED = ConfigDict(extra="forbid", frozen=True)
_OPEN = ConfigDict(extra="allow", frozen=True)


class ModelSpec(BaseModel):
    """`model`: a name that `espalier list models` knows; further keys go to the model as arguments.

    Example:
        >>> ModelSpec(name="convnet4", width=16).args
        {'width': 16}
    """

    model_config = _OPEN
    name: str
    weights: str | None = Field(default=None, description="a .safetensors file to start from, or 'pretrained'")

    @property
    def args(self) -> dict[str, Any]:
        """Arguments for the model besides its name and start weights."""
        return dict(self.model_extra or {})


class AugmentSpec(BaseModel):
    """`data.augment`: applied to training batches only."""

    model_config = _CLOSED
    flip: bool = False
    crop_padding: int = Field(default=0, ge=0)
    random_resized_crop: float | None = Field(default=None, gt=0, le=1, description="smallest share of the area kept")
    cutout: int = Field(default=0, ge=0, description="side of the erased square, in pixels")


class DataSpec(BaseModel):
    """`data`: a name that `espalier list data` knows, and where it lies."""

    model_config = _CLOSED
    name: str
    path: str | None = None
    val_fraction: float = Field(default=0.1, gt=0, lt=1)
    limit: int | None = Field(default=None, gt=0, description="use only so many training images")
    image_size: int | None = Field(default=None, gt=0)
    crop_pct: float | None = Field(default=None, gt=0, le=1, description="central square of the shorter side; null: squeezed")
    mean: tuple[float, ...] | None = Field(default=None, description="to normalise by; null measures")
    std: tuple[float, ...] | None = None
    resident: bool | None = Field(default=None, description="keep the images on the device; null decides by size")
    workers: int = Field(default=2, ge=0)
    download: bool = False
    augment: AugmentSpec = AugmentSpec()


class OptimizerSpec(BaseModel):
    """`optimizer`: `lr` is the highest rate the schedule reaches."""

    model_config = _CLOSED
    name: Literal["sgd", "adam", "adamw", "rmsprop"] = "sgd"
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    decay_all: bool = Field(default=False, description="decay norms and biases too")


class LRScheduleSpec(BaseModel):
    """`lr_schedule`: a factor on `optimizer.lr` for every optimizer step."""

    model_config = _CLOSED
    name: Literal["one-cycle", "cosine", "multi-step", "constant"] = "one-cycle"
    warmup: float | None = Field(default=None, ge=0, lt=1, description="share; null: 0.25 for one-cycle, else 0")
    div: float = Field(default=25.0, ge=1, description="one-cycle starts at lr / div")
    final_div: float = Field(default=1e5, ge=1, description="one-cycle ends at lr / final_div")
    momentum_cycle: bool = True
    momentum_range: tuple[float, float] = (0.85, 0.95)
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = Field(default=0.1, gt=0)
    restart_at: tuple[float, ...] | None = Field(default=None, description="shares at which the schedule starts over")
    restart_scale: float | None = Field(
        default=None, gt=0, description="highest rate after a restart, as a share of lr; null: 1"
    )

    @field_validator("restart_at")
    @classmethod
    def _rising(cls, shares: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if shares is not None and not all(low < high for low, high in pairwise((0.0, *shares, 1.0))):
            raise ValueError("rising shares above 0 and below 1, such as [0.667]")
        return shares or None


class CheckpointSpec(BaseModel):
    """`train.checkpoint_every`: whichever comes first; null switches one off."""

    model_config = _CLOSED
    epochs: int | None = Field(default=1, gt=0)
    steps: int | None = Field(default=None, gt=0)


class TrainSpec(BaseModel):
    """`train`: the loop. `batch_size` counts the images of all processes together, before accumulation."""

    model_config = _CLOSED
    epochs: int = Field(default=10, gt=0)
    batch_size: int = Field(default=128, gt=0)
    accumulate: int = Field(default=1, gt=0, description="batches per optimizer step")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = True
    clip_norm: float | None = Field(default=None, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    ema: float | None = Field(default=None, gt=0, lt=1, description="decay of the averaged model")
    compile: bool = False
    device: str = "auto"
    threads: int | None = Field(default=None, gt=0)
    check_every: int = Field(default=50, gt=0, description="optimizer steps between looks at the loss")
    keep_best: bool = Field(default=False, description="also keep the best epoch whose sparsity is on target")
    checkpoint_every: CheckpointSpec = CheckpointSpec()
    latency: bool = Field(default=True, description="measure what a cut has bought, for a second at the end")


class PruningSpec(BaseModel):
    """`pruning`: a method that `espalier list methods` knows, or a schedule; further keys are its arguments."""

    model_config = _OPEN
    method: str = "dense"
    sparsity: float | None = Field(default=None, ge=0, lt=1, description="share of zeros at the end")

    @property
    def args(self) -> dict[str, Any]:
        """The method's own arguments."""
        return dict(self.model_extra or {})

    @property
    def budget(self) -> dict[str, float]:
        """What a method that cuts may leave, such as {"keep_macs": 0.5}; empty for the others."""
        return budgets_in(self.args)


class Recipe(BaseModel):
    """One training run, completely described.

    Example:
        >>> Recipe(model="convnet4", data="digits").train.epochs
        10
    """

    model_config = _CLOSED
    name: str | None = None
    model: ModelSpec
    data: DataSpec
    optimizer: OptimizerSpec = OptimizerSpec()
    lr_schedule: LRScheduleSpec = LRScheduleSpec()
    train: TrainSpec = TrainSpec()
    pruning: PruningSpec = PruningSpec()
    seed: int = Field(default=0, ge=0, le=10**15)  # times 1000 it still fits torch's generators
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthand(cls, raw: Any) -> Any:
        return expand_shorthand(raw) if isinstance(raw, dict) else raw


SHORTHAND = {"model": "name", "data": "name", "optimizer": "name", "lr_schedule": "name", "pruning": "method"}


def expand_shorthand(raw: dict[str, Any]) -> dict[str, Any]:
    """Turn `model: resnet20` into `model: {name: resnet20}`, likewise for the other sections that have a name."""
    return {
        key: {SHORTHAND[key]: value} if key in SHORTHAND and isinstance(value, str) else value for key, value in raw.items()
    }
