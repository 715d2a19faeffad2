"""Weights under masks for a while: what a model would be, before anything is decided."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def tried(weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Zero the weights where their masks are zero; afterwards every weight is bit for bit what it was.

    Args:
        weights: name -> parameter.
        masks: name -> ones and zeros of the same shape, for some or all of them.

    Example:
        >>> weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> with tried({"w": weight}, {"w": torch.tensor([1.0, 0.0])}):
        ...     weight.tolist()
        [1.0, 0.0]
        >>> weight.tolist()
        [1.0, 2.0]
    """
    kept = {name: weights[name].detach().clone() for name in masks}
    try:
        with torch.no_grad():
            for name, mask in masks.items():
                weights[name].masked_fill_(mask == 0, 0.0)
        yield
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                weights[name].copy_(weight)
