"""Exact selection: which units to keep, given their scores and how many to drop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def keep_best(scores: Tensor, drop: int) -> Tensor:
    """Bool tensor that is False for exactly the ``drop`` lowest of ``scores`` (one dimension).

    Ties at the threshold are broken by a fixed pseudo-random order, so that equal scores do not empty the first
    channels. On an accelerator nothing is read back to the host.

    >>> keep_best(torch.tensor([0.3, 0.1, 0.2]), 1).tolist()
    [True, False, True]
    """
    if drop <= 0:
        return torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    if drop >= scores.numel():
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    if scores.device.type == "cpu":
        return _keep_best_on_cpu(scores, drop)
    best = scores.topk(scores.numel() - drop, sorted=False).indices
    return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter_(0, best, True)


def _keep_best_on_cpu(scores: Tensor, drop: int) -> Tensor:
    """numpy's partition is a vectorised quick-select: 4 to 8 times faster than kthvalue or topk on millions of scores."""
    values = scores.detach().numpy()
    threshold = float(np.partition(values, drop - 1)[drop - 1])
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
