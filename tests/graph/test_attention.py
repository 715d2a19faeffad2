"""Heads and the width of heads are axes of their own, however attention is written."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.graph import attentions
from tests.graph.attentions import EACH, HEADS, TOKENS, WIDTH, Block
from tests.graph.oracles import check_groups, sizes

MLP = 10
SPELLINGS: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {
    "timm": (attentions.Timm, [HEADS, EACH, MLP]),
    "timm spelled": (lambda: attentions.Timm(fused=False), [HEADS, EACH, MLP]),
    "timm normed": (lambda: attentions.Timm(normed=True), [HEADS, EACH, MLP]),
    "bert": (attentions.Bert, [HEADS, EACH, MLP, WIDTH]),
    "gpt": (attentions.Gpt, [HEADS, EACH, MLP, WIDTH]),
    "llama": (attentions.Llama, [2, 2, MLP, WIDTH]),
    "llama normed": (lambda: attentions.Llama(normed=True), [2, 2, MLP, WIDTH]),
    "swin": (attentions.Swin, [HEADS, EACH, MLP]),
    "class attention": (attentions.ClassAttention, [HEADS, HEADS, EACH, MLP]),
    "einsum": (attentions.Einsum, [HEADS, EACH, MLP, WIDTH]),
    "linear attention": (attentions.LinearAttention, [HEADS, EACH, MLP, WIDTH]),
    "reduced": (attentions.Reduced, [HEADS, EACH, MLP, WIDTH]),
    "torch": (attentions.Torch, [HEADS, EACH, MLP]),
    "torch with bias rows": (lambda: attentions.Torch(add_bias_kv=True), [HEADS, EACH, MLP]),
    "torch without bias": (lambda: attentions.Torch(bias=False), [HEADS, EACH, MLP]),
    "cross": (attentions.Cross, [HEADS, EACH, 8, MLP, 10]),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_cut_right(spelling: str, tmp_path: Path):
    make, expected = SPELLINGS[spelling]
    graph = check_groups(lambda: Block(make()), torch.randn(2, TOKENS, 5), tmp_path)
    assert sizes(graph) == sorted(expected)


class Shifted(nn.Module):
    """Something is added to the query, in place: scaling what computed it no longer scales it all."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.shift, self.key, self.value = (nn.Linear(WIDTH, EACH) for _ in range(4))
        self.proj = nn.Linear(EACH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = self.query(x)
        query += self.shift(x)
        return self.proj(nn.functional.scaled_dot_product_attention(query, self.key(x), self.value(x)))


def test_a_query_that_is_changed_in_place_cannot_be_rescaled(tmp_path: Path):
    graph = check_groups(lambda: Block(Shifted()), torch.randn(2, TOKENS, 5), tmp_path)
    assert not graph.rescales
    reason = next(group.reason for group in graph.frozen if group.size == EACH)
    assert "cannot be rescaled" in reason
