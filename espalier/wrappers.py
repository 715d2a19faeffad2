"""Modules around the user's own: torch.compile, DistributedDataParallel, AveragedModel and the like."""

from __future__ import annotations

import torch
from torch import nn

from espalier.errors import EspalierError

NAMES = ("_orig_mod", "module")


def unwrap(model: nn.Module) -> nn.Module:
    """The module that was wrapped, however often; ``model`` itself if it is no wrapper.

    A module with tensors of its own is no wrapper, even if its only child happens to be called ``module``; the counter of
    ``AveragedModel`` is the exception.

    Raises:
        EspalierError: ``model`` is no module, or a scripted one, whose parts are no Python any more.

    Example:
        >>> inner = nn.Linear(2, 2)
        >>> unwrap(nn.DataParallel(inner)) is inner
        True
    """
    if not isinstance(model, nn.Module):
        raise EspalierError(
            f"A torch.nn.Module is needed here, an object and not its class or name; got {type(model).__name__}."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise EspalierError("A model of torch.jit cannot be read or changed: give the torch.nn.Module that it was made from.")
    while not model._parameters and not model._buffers.keys() - {"n_averaged"} and len(model._modules) == 1:
        inner = next((model._modules[name] for name in NAMES if name in model._modules), None)
        if inner is None:
            break
        model = inner
    return model
