"""The 1,797 real handwritten digits that come with scikit-learn: 8 x 8 grey pixels, no download."""

from __future__ import annotations

import torch

from espalier.errors import EspalierError
from espalier.tasks.classification.data.source import Source
from espalier.tasks.classification.data.splits import split_off


def load_digits(path: str | None = None, *, download: bool = False) -> Source:
    """All digits; 359 of them, a fixed stratified fifth, are the test set. Needs no download.

    Raises:
        EspalierError: a path is given, which would be ignored.
    """
    if path is not None:
        raise EspalierError(
            "The digits come with scikit-learn and are not read from data.path: leave it out, or set data.name."
        )
    try:
        from sklearn import datasets
    except ImportError as error:
        raise EspalierError("The digits come with scikit-learn: pip install 'espalier[train]'.") from error
    bunch = datasets.load_digits()
    images = torch.from_numpy(bunch.images / 16 * 255).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    rest, test = split_off(labels, 0.2)
    return Source(
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        train=(images[rest], labels[rest]),
        test=(images[test], labels[test]),
    )
