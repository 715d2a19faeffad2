"""Running a model in the midst of its training: to look at gradients, or to renew batch-norm statistics after a cut."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import nn

from espalier.errors import EspalierError
from espalier.inputs import Call
from espalier.methods.frame.base import Site


@contextlib.contextmanager
def undisturbed(model: nn.Module, *, buffers: bool = True) -> Iterator[None]:
    """Leave training flags, random state and (unless they are the purpose) buffers as they were found."""
    flags = {module: module.training for module in model.modules()}
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()] if buffers else []
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=[device.index or 0 for device in devices]):
            yield
    finally:
        for module, flag in flags.items():
            module.training = flag
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)


@torch.no_grad()
def recalibrate(site: Site, count: int) -> None:
    """Replace running means and variances by plain averages over ``count`` batches.

    Args:
        site: its ``batches`` give inputs, or pairs of inputs and anything else.
        count: how many batches to average over.
    """
    norms = [module for module in site.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.running_mean is not None]
    if not norms or site.batches is None:
        return
    momenta = {norm: norm.momentum for norm in norms}
    seen = 0
    try:
        with undisturbed(site.model, buffers=False):
            site.model.eval()  # dropout and the like stay off
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain average over the batches
                norm.train()
            for batch in islice(iter(site.batches), count):
                _show(site.model, batch)
                seen += 1
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
    if not seen:
        raise EspalierError("batches gave nothing to recalibrate batch norm with: give an iterable that can be read anew.")


def _show(model: nn.Module, batch: Any) -> None:
    device = next(model.parameters()).device  # loaders often give batches on the CPU
    call = Call.of(_inputs_of(batch)).map(lambda tensor: tensor.to(device))
    try:
        call(model)
    except TypeError as error:
        raise EspalierError(
            f"recalibrate calls the model with what batches give, which its forward does not take ({error}): give batches of "
            f"inputs, or pairs of inputs and labels."
        ) from error


def _inputs_of(batch: Any) -> Any:
    """The inputs of a training batch: the first of a pair of inputs and labels."""
    return batch[0] if isinstance(batch, tuple | list) else batch
