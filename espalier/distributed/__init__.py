"""Training on several ranks: rank 0 decides and the others receive, checksums prove that they started alike.

``following`` has the DistributedDataParallel that goes on when the model inside it is cut. It stands apart because it imports
torch's compiler, which takes longer than all of espalier.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from espalier.errors import EspalierError


def is_leader(group: dist.ProcessGroup | None) -> bool:
    """Whether this process makes the decisions of ``group`` (always, without one)."""
    return group is None or dist.get_rank(group) == 0


def broadcast(tensor: Tensor, group: dist.ProcessGroup | None) -> None:
    """Overwrite ``tensor`` with the leader's; does nothing without a group."""
    if group is not None:
        dist.broadcast(tensor, src=dist.get_global_rank(group, 0), group=group)


def average(tensor: Tensor, group: dist.ProcessGroup | None) -> None:
    """Overwrite ``tensor`` with the mean over the ranks; does nothing without a group."""
    if group is not None:
        dist.all_reduce(tensor, group=group)
        tensor /= dist.get_world_size(group)


@contextlib.contextmanager
def all_or_none(group: dist.ProcessGroup | None, device: torch.device, what: str) -> Iterator[None]:
    """What fails inside on one rank raises on all: none waits for another that has given up.

    Args:
        group: whose ranks all pass here; the code inside must not communicate.
        device: of the group's tensors.
        what: "score the weights": told to the ranks on which nothing failed.
    """
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        if group is None:
            raise
        problem = error
    if group is None:
        return
    failed = torch.tensor(float(problem is not None), device=device)
    dist.all_reduce(failed, group=group)
    if problem is not None:
        raise problem
    if failed:
        raise EspalierError(f"Another rank could not {what}; its own message says why.")


@torch.no_grad()
def check_equal(tensors: Iterable[Tensor], group: dist.ProcessGroup | None, what: str) -> None:
    """Raise on every rank if the ranks of ``group`` hold different tensors; the message names them.

    A cheap checksum (sum and sum of magnitudes in float64), meant for set-up time, not for training steps.
    """
    if group is None:
        return
    tensors = list(tensors)
    sums = [torch.stack([t.double().sum(), t.double().abs().sum()]) for t in tensors]
    mine = torch.stack(sums).sum(0)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, mine, group=group)
    odd = [rank for rank, other in enumerate(everyone) if not torch.equal(other, everyone[0])]
    if odd:
        raise EspalierError(
            f"{what} differ between rank 0 and rank {', '.join(map(str, odd))}: start every rank from the same model (wrap "
            f"it in DistributedDataParallel first, or set one seed) before building the Pruner."
        )
