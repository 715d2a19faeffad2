"""Norms of channels at the moment of a cut."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from espalier.criteria.slices import parameters, slice_sums, weights
from espalier.errors import EspalierError
from espalier.graph import Group
from espalier.graph.layout import Layout
from espalier.records.norms import NormHistogram


@torch.no_grad()
def norms_at_cut(model: nn.Module, layout: Layout, keep: Mapping[Group, Tensor]) -> NormHistogram | None:
    """Histogram of the norms of the channels that stay and of those that leave. Reads from the device once.

    Args:
        model: just before the cut.
        layout: its groups.
        keep: the channels that stay, on the CPU; groups that are not named stay whole and are not counted.

    Returns:
        The histogram; None where the channels have no weights to measure (a criterion of the user's own may score others).
    """
    try:
        places = weights(model, layout).to(next(model.parameters()).device)
    except EspalierError:
        return None
    norms = places.gather(slice_sums(parameters(model), places.keys, 2.0)).double().sqrt().cpu()
    kept, removed = [np.zeros(0)], [np.zeros(0)]
    for group, part in layout.split(norms).items():
        if group in keep:
            stays = torch.zeros(group.size, dtype=torch.bool).index_fill_(0, keep[group], True)
            usual = part[stays].mean() if bool(part[stays].any()) else torch.ones(())
            kept.append((part[stays] / usual).numpy())
            removed.append((part[~stays] / usual).numpy())
    return NormHistogram.of(np.concatenate(kept), np.concatenate(removed))
