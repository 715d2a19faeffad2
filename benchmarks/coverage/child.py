"""What both sides share: a process with limits that tells how far it came, and the numbers taken of every model."""

from __future__ import annotations

import json
import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.coverage.models import Entry, example, loss, watch

MEMORY = 8 << 30  # bytes of address space


class Failed(Exception):
    """The model did not hold; the message becomes the outcome."""


class Record:
    """One result line, printed anew after every stage, so that a process that is killed still says where it was."""

    def __init__(self, key: str) -> None:
        self.content: dict[str, Any] = {"name": key, "outcome": "crash", "stage": "start", "error": ""}

    def note(self, **values: Any) -> None:
        self.content.update(values)
        print(json.dumps(self.content), flush=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """An error inside ends the process, with the stage's name as the outcome."""
        self.note(stage=name)
        try:
            yield
        except Exception as error:
            self.note(outcome=outcome_of(error), error=one_line(error))
            raise SystemExit(0) from error

    def holds(self) -> None:
        self.note(outcome="ok", stage="")


def outcome_of(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return "memory"
    return "fail"


def one_line(error: BaseException) -> str:
    """The error in at most 200 characters."""
    text = " ".join(str(error).split())
    name = "" if isinstance(error, Failed) else f"{type(error).__name__}: "
    return (name + text)[:200]


def limit(processor_seconds: int) -> None:
    """Bounds this process. Time is that of the processor, one thread, so that a busy machine changes no outcome."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (processor_seconds, processor_seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")


def size(entry: Entry, model: nn.Module, inputs: tuple[Any, ...]) -> tuple[int, int]:
    """Multiply-accumulates of one forward, and parameters."""
    with FlopCounterMode(display=False) as counter:  # not under no_grad: its module tracker trips over views of parameters
        watch(entry, model, inputs)
    return counter.get_total_flops() // 2, sum(parameter.numel() for parameter in model.parameters())


def shapes(outputs: list[Tensor]) -> list[list[int]]:
    return [list(output.shape) for output in outputs]


def check_runs(record: Record, entry: Entry, model: nn.Module, before: dict[bool, list[list[int]]]) -> None:
    """Forward in eval mode, forward and backward in training mode: shapes as before, every number finite."""
    inputs = example(entry)
    with record.stage("forward"), torch.no_grad():
        compare(watch(entry, model.eval(), inputs), before[False])
    with record.stage("training forward"):
        outputs = watch(entry, model.train(), inputs)
        compare(outputs, before[True])
    with record.stage("backward"):
        loss(outputs).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                continue
            if parameter.grad.shape != parameter.shape:
                raise Failed(f"the gradient of {name} has another shape")
            if not parameter.grad.isfinite().all():
                raise Failed(f"the gradient of {name} is not finite")
    model.zero_grad(set_to_none=True)


def dense_shapes(entry: Entry, model: nn.Module) -> dict[bool, list[list[int]]]:
    """Shapes of the outputs of the uncut model, by training flag; the model's buffers stay as they are."""
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = {}
    with torch.no_grad():
        for training in (True, False):
            found[training] = shapes(watch(entry, model.train(training), example(entry)))
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
    return found


def compare(outputs: list[Tensor], expected: list[list[int]]) -> None:
    if shapes(outputs) != expected:
        raise Failed(f"outputs have shapes {shapes(outputs)} instead of {expected}")
    if not all(output.isfinite().all() for output in outputs):
        raise Failed("outputs are not finite")
