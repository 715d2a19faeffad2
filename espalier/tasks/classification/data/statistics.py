"""Mean and standard deviation of the training images, exact and the same on every machine."""

from __future__ import annotations

import torch
from torch import Tensor

from espalier.tasks.classification.data.decode import Square, to_tensor
from espalier.tasks.classification.data.source import Encoded

SAMPLE = 1_000  # images that speak for a set too large to decode beforehand

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def channel_statistics(images: Tensor) -> Statistics:
    """Mean and standard deviation per channel on the 0-1 scale, to 4 decimals, by exact integer sums.

    Example:
        >>> channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
        ((0.5,), (0.5,))
    """
    return _summary([torch.bincount(images[:, channel].reshape(-1).cpu(), minlength=256) for channel in range(images.shape[1])])


def sampled_statistics(part: Encoded, indices: Tensor, square: Square) -> Statistics:
    """The same over ``SAMPLE`` images, evenly spread over ``indices``, as squares."""
    step = max(1, -(-len(indices) // SAMPLE))
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for index in indices[::step].tolist():
        image = to_tensor(square(part.image(index)))
        counts += torch.stack([torch.bincount(channel.reshape(-1), minlength=256) for channel in image])
    return _summary(list(counts))


def _summary(counts: list[Tensor]) -> Statistics:
    """From how often each value 0-255 occurs in each channel."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in counts:
        share = channel.double() / channel.double().sum()
        mean = float((share * values).sum())
        means.append(round(mean, 4))
        stds.append(round(max(float((share * (values - mean) ** 2).sum()) ** 0.5, 1e-4), 4))
    return tuple(means), tuple(stds)
