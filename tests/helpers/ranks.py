"""Two gloo ranks on this machine, for tests only."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_two_ranks(work: Callable[..., Any], *args: Any) -> list[Any]:
    """``work(rank, *args)`` in two processes; what they return, by rank, as ``torch.load(weights_only=True)`` reads it."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(folder, work, args), nprocs=2)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _rank(rank: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    patience = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=patience)
    try:
        torch.save(work(rank, *args), Path(folder) / f"{rank}.pt")
        _wait_for(Path(folder) / f"{1 - rank}.pt")
    finally:
        dist.destroy_process_group()
    # DistributedDataParallel keeps the group, and so gloo's threads, beyond that (torch 2.13): on a busy machine such a thread
    # can meet the interpreter while it shuts down, and abort. All is written, so leave without shutting down.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _wait_for(file: Path, patience: float = 10.0) -> None:
    """Until the other rank has its result, so that neither leaves while the other still reads from it.

    Not a barrier: where a check has failed on one rank, the other hangs in a collective until this one leaves.
    """
    end = time.monotonic() + patience
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.01)


def failures(rank: int, checks: Mapping[str, Callable[[int], None]]) -> dict[str, str]:
    """Run many checks in one pair of processes: name -> traceback, empty if the check passed."""
    outcome = {}
    for name, check in checks.items():
        torch.manual_seed(0)
        try:
            check(rank)
            outcome[name] = ""
        except Exception:
            outcome[name] = traceback.format_exc()
            break  # the other rank may be waiting in a collective: nothing after this would tell anything
    return outcome
