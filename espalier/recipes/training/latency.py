"""What a cut has bought, measured when a run ends: the dense model and the small one, call by call in turn."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

import espalier as es
from espalier.recipes.training.setup import Training, build_dense_model, example_image

SECONDS = 1.0  # about; a batch that would take longer is halved, and where one image takes five times as long, none is
CALLS = 20.0  # about as many of each model does es.profile make at least, warm-up and memory included


@torch.no_grad()
def measure_latency(parts: Training) -> dict[str, Any] | None:
    """Seconds of a forward pass of the dense model and of the trained one, in the recipe's precision, threads as they are.

    At one image and at the training's batch, or the largest half, quarter, ... of it that fits into about a second. Random
    state stays as it is.

    Returns:
        "device", "threads", "precision" and "rows" of {"batch", "seconds", "dense_seconds", "speedup", "low", "high"};
        None where even one image takes too long.
    """
    recipe, device = parts.recipe, parts.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        dense = build_dense_model(recipe, parts.data).to(device)
    if recipe.train.channels_last:
        dense = dense.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = example_image(parts.data, device, channels_last=recipe.train.channels_last, batch=recipe.train.batch_size)
    training = parts.model.training
    try:
        with parts.autocast:
            batches = _affordable(dense.eval(), parts.model.eval(), images)
            if not batches:
                return None
            share = SECONDS / len(batches) / 4
            found = es.profile(parts.model, images, batches=batches, against=dense, seconds=share)
    finally:
        parts.model.train(training)
    rows = [
        {
            "batch": row.batch,
            "seconds": row.seconds.median,
            "dense_seconds": row.other_seconds.median,
            "speedup": row.ratio.median,
            "low": row.ratio.low,
            "high": row.ratio.high,
        }
        for row in found.rows
        if row.other_seconds is not None and row.ratio is not None
    ]
    return {"device": found.device, "threads": found.threads, "precision": recipe.train.precision, "rows": rows}


def _affordable(dense: nn.Module, small: nn.Module, images: Tensor) -> list[int]:
    """Batch sizes whose measurement takes about `SECONDS` together: one image, and a part of `images` as large as can be."""
    one = _clock(dense, images[:1]) + _clock(small, images[:1])
    if CALLS * one > 5 * SECONDS:
        return []
    batch = len(images)
    while batch > 1 and CALLS * one * batch > 40 * SECONDS:  # images in a batch cost less than one by one: not even tried
        batch //= 2
    while batch > 1:
        spent = _clock(dense, images[:batch]) + _clock(small, images[:batch])
        if CALLS * spent <= SECONDS:
            break
        batch //= 2 if CALLS * spent <= 3 * SECONDS else 4
    return [1, batch] if batch > 1 else [1]


def _clock(model: nn.Module, images: Tensor) -> float:
    """Seconds of a call, from the second one on."""
    for _ in range(2):
        start = time.perf_counter()
        model(images)
        if images.device.type != "cpu":
            torch.accelerator.synchronize(images.device)
    return time.perf_counter() - start
