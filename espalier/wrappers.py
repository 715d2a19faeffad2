"""Modules around the user's own: torch.compile, DistributedDataParallel, AveragedModel and the like."""

from __future__ import annotations

from torch import nn

NAMES = ("_orig_mod", "module")


def unwrap(model: nn.Module) -> nn.Module:
    """The module that was wrapped, however often; ``model`` itself if it is no wrapper.

    Example:
        >>> inner = nn.Linear(2, 2)
        >>> unwrap(nn.DataParallel(inner)) is inner
        True
    """
    while True:
        children = dict(model.named_children())
        inner = next((children[name] for name in NAMES if name in children), None)
        if inner is None or len(children) > 1:
            return model
        model = inner
