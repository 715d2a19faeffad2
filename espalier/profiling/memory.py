"""The most memory that one call needs.

Counted are parameters, buffers and inputs, plus the most that the call had allocated at a time on top (activations, outputs,
work space of the operators; gradients when training). On CUDA the caching allocator counts that, on the CPU torch's profiler,
which sees every block that torch's allocator hands out. Memory that a library takes behind its back, and the interpreter's
own, is not in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espalier.inputs import Call

SILENT = "6"  # Kineto announces each profile on standard error below this level


def peak_memory(model: nn.Module, step: Callable[[], Any], call: Call, device: torch.device) -> int | None:
    """Weights and inputs, and what a call needs besides at its worst."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = None  # those of the last call; this call makes its own
    lasting = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(model, call)}
    if device.type == "cpu":
        return sum(lasting.values()) + _allocated_on_cpu(step)
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return sum(lasting.values()) + torch.cuda.max_memory_allocated(device) - before


def _tensors(model: nn.Module, call: Call) -> list[Tensor]:
    return [*model.parameters(), *model.buffers(), *call.tensors]


def _allocated_on_cpu(step: Callable[[], Any]) -> int:
    """The most that torch's CPU allocator had handed out at a time, from the profiler's list of blocks taken and given back."""
    with _variable("KINETO_LOG_LEVEL", SILENT), tempfile.TemporaryDirectory() as folder:
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as record:
            step()
        trace = Path(folder) / "trace.json"
        record.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    blocks = [(event["ts"], event["args"]) for event in events if event.get("name") == "[memory]"]
    held = peak = 0
    for _, block in sorted(blocks, key=lambda entry: (entry[0], entry[1].get("Ev Idx", 0))):
        held += block["Bytes"] if block["Device Type"] == 0 else 0
        peak = max(peak, held)
    return peak


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """An environment variable for a while, unless the user has set it."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
