"""Real latency and peak memory of a model, measured; never guessed from its MACs.

What is timed: one call, from handing over the inputs until the outputs are there (the device is waited for), after warm-up
calls, many times. What is stated: median and quartiles, the number of threads, the device. Two models are compared call by
call in shuffled order, so that both meet the same noise, and the ratio has a spread of its own.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import EspalierError
from espalier.inputs import Call, in_mode, tensors_in
from espalier.profiling.memory import peak_memory
from espalier.profiling.results import Profile, Row, Spread

FEWEST, MOST = 11, 10_000  # samples
SHORTEST = 5e-4  # seconds; a shorter call is timed several times in a row
WARM_UP = 3  # calls at least


def profile(
    model: nn.Module,
    inputs: Any,
    *,
    batches: Sequence[int] | None = None,
    train: bool = False,
    against: nn.Module | None = None,
    threads: int | None = None,
    seconds: float = 2.0,
) -> Profile:
    """Measure latency and peak memory, at batch 1 and at the batch of the inputs (when training, at the latter only).

    Args:
        model: on its device; compiled and wrapped ones are measured as they are. Training flags, gradients, buffers and
            random state are afterwards what they were.
        inputs: a tensor, a tuple of arguments or a dict of keyword arguments, on the same device; the batch is the first
            dimension of the first tensor, and of every other tensor where it is as long.
        batches: batch sizes to measure instead, made of the inputs' items.
        train: time forward and backward in training mode (of the sum of all outputs), not a forward pass without gradients.
        against: a second model for the same inputs; both are then called in turn, in shuffled order.
        threads: number of torch's threads while measuring; None leaves it.
        seconds: to measure for each batch size, after the warm-up; at least 11 samples are taken.

    Raises:
        EspalierError: a model does not run on the inputs at one of the batch sizes.

    Example:
        >>> import torch, espalier as es
        >>> found = es.profile(torch.nn.Linear(256, 256), torch.randn(8, 256), seconds=0.01)
        >>> [(row.batch, row.memory) for row in found.rows], found.rows[1].seconds.median > 0
        ([(1, 265216), (8, 279552)], True)
    """
    call = Call.of(inputs)
    for each in (model, *([] if against is None else [against])):
        if not isinstance(each, nn.Module):
            raise EspalierError(f"profile measures torch.nn.Modules; got {type(each).__name__}.")
    if batches is not None and not isinstance(batches, Sequence):
        raise EspalierError(f"batches is a list of batch sizes, such as [1, 32]; got {batches!r}.")
    usual = {call.batch} if train else {1, call.batch}  # few models train on one item
    sizes = tuple(batches) if batches is not None else tuple(sorted(usual))
    if not call.batch or not sizes or min(sizes) < 1:
        raise EspalierError(f"Batch sizes are whole numbers of at least 1, and the inputs need a batch dimension; got {sizes}.")
    models = [model] if against is None else [model, against]
    device = call.tensors[0].device
    with contextlib.ExitStack() as stack:
        stack.enter_context(_threads(threads))
        for each in models:
            stack.enter_context(_as_found(each, device, train=train))
        rows = tuple(_row(models, call.resized(size), size, device, train, seconds) for size in sizes)
        used = torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Profile(name, used, train, rows)


def _row(models: list[nn.Module], call: Call, batch: int, device: torch.device, train: bool, seconds: float) -> Row:
    steps = [_step(model, call, train) for model in models]
    for model, step in zip(models, steps, strict=True):
        try:
            step()
        except Exception as error:  # each layer complains in its own way
            reason = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
            raise EspalierError(f"{type(model).__name__} does not run at batch {batch} on these inputs ({reason}).") from error
    samples = _samples(steps, device, seconds)
    memory = [peak_memory(model, step, call, device) for model, step in zip(models, steps, strict=True)]
    spreads = [Spread.of(values) for values in samples]
    if len(models) == 1:
        return Row(batch, spreads[0], memory[0])
    ratio = Spread.of([other / this for this, other in zip(*samples, strict=True)])
    return Row(batch, spreads[0], memory[0], spreads[1], memory[1], ratio)


def _step(model: nn.Module, call: Call, train: bool) -> Callable[[], Any]:
    """One call to be timed; it returns what it made, so that this lives until the clock has stopped."""

    def forward() -> Any:
        with torch.no_grad():
            return call(model)

    def forward_and_backward() -> Any:
        for parameter in model.parameters():
            parameter.grad = None
        with torch.enable_grad():
            total = sum(output.float().sum() for output in tensors_in(call(model)) if output.requires_grad)
        if not isinstance(total, Tensor):
            raise EspalierError("no output depends on a parameter that learns")
        total.backward()  # type: ignore[no-untyped-call]

    return forward_and_backward if train else forward


def _samples(steps: list[Callable[[], Any]], device: torch.device, seconds: float) -> list[list[float]]:
    """Seconds per call of each step, the n-th samples taken side by side."""
    loops = []
    for step in steps:  # warm up for a fifth of the time, and see how long a call takes
        end = time.perf_counter() + seconds / 5
        times: list[float] = []
        while len(times) < WARM_UP or (time.perf_counter() < end and len(times) < MOST):
            times.append(_clock(step, 1, device))
        loops.append(max(1, round(SHORTEST / max(min(times), 1e-9))))
    samples: list[list[float]] = [[] for _ in steps]
    order, shuffle = list(range(len(steps))), random.Random(0).shuffle
    end = time.perf_counter() + seconds
    while len(samples[0]) < FEWEST or (time.perf_counter() < end and len(samples[0]) < MOST):
        shuffle(order)
        for index in order:
            samples[index].append(_clock(steps[index], loops[index], device))
    return samples


def _clock(step: Callable[[], Any], loops: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(loops):
        step()
    _wait(device)
    return (time.perf_counter() - start) / loops


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextlib.contextmanager
def _as_found(model: nn.Module, device: torch.device, *, train: bool) -> Iterator[None]:
    """The mode to measure in; flags, gradients, buffers and random state come back."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    devices = [device] if device.type != "cpu" else []
    try:
        with in_mode(model, train=train), torch.random.fork_rng(devices, device_type=devices[0].type if devices else "cuda"):
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for module, name, buffer, saved in buffers:
                setattr(module, name, buffer)  # which the module may have replaced by another tensor
                if not torch.equal(buffer, saved):
                    buffer.copy_(saved)


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if number is not None and number < 1:
        raise EspalierError(f"threads is a whole number of at least 1; got {number}.")
    try:
        torch.set_num_threads(before if number is None else number)
        yield
    finally:
        torch.set_num_threads(before)
