"""Tests that need a CUDA device; without one they are skipped. `pytest tests/gpu` on a machine with a GPU runs them."""

from collections.abc import Iterator

import pytest
import torch

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def _plain_arithmetic() -> Iterator[None]:
    """Full float32, and algorithms that give the same bits every time."""
    matmul, conv = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, conv


def on_gpu(thing):
    """Tensors of nested tuples and lists, on the GPU."""
    if isinstance(thing, torch.Tensor):
        return thing.cuda()
    return type(thing)(on_gpu(part) for part in thing)
