"""One process or many: what `torchrun` says in the environment, and the few collectives that the engine needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from espalier.errors import EspalierError


@dataclass(frozen=True)
class Processes:
    """Place of this process among those of one training."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def add(self, tensor: Tensor) -> Tensor:
        """Sum over all processes; the argument stays as it is."""
        if self.group is None:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def collect(self, thing: Any) -> list[Any]:
        """`thing` of every process, by rank, on every process."""
        if self.group is None:
            return [thing]
        things: list[Any] = [None] * self.world
        dist.all_gather_object(things, thing, group=self.group)
        return things

    def align_buffers(self, *models: nn.Module | None) -> None:
        """Give every process the leader's buffers: batch norm statistics differ between processes while training."""
        if self.group is not None:
            for buffer in (b for model in models if model is not None for b in model.buffers()):
                dist.broadcast(buffer, src=0, group=self.group)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.group is not None:
            dist.barrier(group=self.group)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU.

    Raises:
        EspalierError: the device does not exist here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise EspalierError(f"The device {name!r} is not available here: use auto or cpu.") from None
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_rank)
    return device


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the processes that `torchrun` started, or be alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if world == 1:
        yield Processes(device=chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), world, chosen, dist.group.WORLD)
    finally:
        if ours:
            dist.destroy_process_group()
