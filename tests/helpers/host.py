"""Code that must not wait for the device: whatever reads a tensor's values on the host raises inside ``no_reads``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

READS = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy", "cpu")


@contextlib.contextmanager
def no_reads() -> Iterator[None]:
    """On an accelerator each of these would wait until all queued work is done."""
    with pytest.MonkeyPatch.context() as patch:
        for name in READS:

            def refused(tensor: torch.Tensor, *args: object, name: str = name, **kwargs: object) -> None:
                raise AssertionError(f"Tensor.{name} reads on the host")

            patch.setattr(torch.Tensor, name, refused)
        yield
