"""Batch-norm statistics after a cut: averaged anew over some batches, without touching anything else."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import nn

from espalier.errors import EspalierError
from espalier.inputs import Call
from espalier.methods.base import Site


@torch.no_grad()
def recalibrate(site: Site, count: int) -> None:
    """Replace running means and variances by those of ``count`` batches. Random state and training flags stay as they are.

    Args:
        site: its ``batches`` give inputs, or pairs of inputs and anything else.
        count: how many batches to average over.
    """
    norms = [module for module in site.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.running_mean is not None]
    if not norms or site.batches is None:
        return
    flags = {module: module.training for module in site.model.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    devices = [device for device in {p.device for p in site.model.parameters()} if device.type != "cpu"]
    seen = 0
    try:
        with torch.random.fork_rng(devices=[device.index or 0 for device in devices]):
            site.model.eval()  # dropout and the like stay off
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain average over the batches
                norm.train()
            for batch in islice(iter(site.batches), count):
                Call.of(_inputs_of(batch))(site.model)
                seen += 1
    finally:
        for module, flag in flags.items():
            module.training = flag
        for norm, momentum in momenta.items():
            norm.momentum = momentum
    if not seen:
        raise EspalierError("batches gave nothing to recalibrate batch norm with: give an iterable that can be read anew.")


def _inputs_of(batch: Any) -> Any:
    """The inputs of a training batch: the first of a pair of inputs and labels."""
    return batch[0] if isinstance(batch, tuple | list) else batch
