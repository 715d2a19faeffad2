"""Exact selection: which units to keep, given their scores and how many to drop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def keep_best(scores: Tensor, drop: int) -> Tensor:
    """Bool tensor that is False for exactly the ``drop`` lowest of ``scores`` (one dimension).

    On a CPU ties at the threshold are broken by a fixed pseudo-random order, so that equal scores do not empty the first
    channels. On an accelerator they fall as ``topk`` has it, and nothing is read back to the host.

    >>> keep_best(torch.tensor([0.3, 0.1, 0.2]), 1).tolist()
    [True, False, True]
    """
    if drop <= 0:
        return torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    if drop >= scores.numel():
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    if scores.device.type == "cpu":
        return _keep_best_on_cpu(scores, drop)
    return _keep_best_unread(scores, drop)


def _keep_best_unread(scores: Tensor, drop: int) -> Tensor:
    best = scores.topk(scores.numel() - drop, sorted=False).indices
    return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter_(0, best, True)


def _keep_best_on_cpu(scores: Tensor, drop: int) -> Tensor:
    """Weights that are zero already share the lowest score and need no ranking: only the others are searched.

    numpy's partition does that in a tenth of the time of ``kthvalue``, and in proportion to the number of scores. It is slow
    where most scores are equal, which is why those of the zeros stay out of it.
    """
    if scores.dtype not in (torch.float32, torch.float64):  # numpy knows no bfloat16
        scores = scores.float()
    lowest = scores.min()
    others = scores[scores > lowest]
    ranked = drop - (scores.numel() - others.numel())
    threshold = torch.from_numpy(np.partition(others.numpy(), ranked - 1)[ranked - 1 : ranked]) if ranked > 0 else lowest
    keep = scores > threshold
    missing = scores.numel() - drop - int(torch.count_nonzero(keep))
    if missing:
        ties = torch.nonzero(scores == threshold).squeeze(1)
        if len(ties) < missing:  # NaN compares false with everything: rank it above all else and try again
            return _keep_best_on_cpu(scores.nan_to_num(nan=float("inf")), drop)
        order = torch.randperm(len(ties), generator=torch.Generator().manual_seed(len(ties)))
        keep[ties[order[:missing]]] = True
    return keep


def keep_best_together(scores: Sequence[Tensor], drop: int) -> list[Tensor]:
    """As ``keep_best``, over all tensors in one ranking; the best unit of each tensor is always kept."""
    guarded = []
    for score in scores:
        copy = score.clone()
        guarded.append(copy.scatter_(0, copy.argmax(0, keepdim=True), float("inf")))
    keep = keep_best(torch.cat([score.float() for score in guarded]), drop)
    return list(torch.split(keep, [len(score) for score in scores]))
