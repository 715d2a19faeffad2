"""Labelled in one go or taken apart, functions say the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import espalier as es
from espalier.graph import tracer


class Mixing(nn.Module):
    """Attention of several spellings around one residual stream."""

    def __init__(self, mix: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.mix = mix
        self.qkv, self.out = nn.Linear(24, 36), nn.Linear(12, 24, bias=False)
        self.up, self.down = nn.Linear(24, 10), nn.Linear(10, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)
        x = x + self.out(self.mix(q, k, v).transpose(1, 2).reshape(2, 5, 12))
        return x + self.down(functional.gelu(self.up(x)))


def products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.matmul((q @ k.mT / k.shape[-1] ** 0.5).softmax(-1), v)


def keywords(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(query=q, key=k, value=v, scale=0.5)


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, torch.zeros(5, 5))


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def shared(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One key for all heads, given again and again by broadcasting."""
    return (q @ k[:, :1].mT).softmax(-1) @ v[:, :1]


def members(group: es.Group) -> list[object]:
    return [(member.name, member.dim, member.index.tolist()) for member in group.members]


def described(model: nn.Module, x: Tensor) -> tuple[list[object], object, int, int]:
    graph = es.trace(model, x)
    groups: list[object] = [
        (group.name, group.size, [(m.name, m.dim, m.index.tolist()) for m in group.members]) for group in graph.groups
    ]
    return groups, [(group.name, group.size) for group in graph.frozen], es.cost(graph).macs, es.cost(graph).activations


@pytest.mark.parametrize("mix", [functional.scaled_dot_product_attention, products, keywords, masked, causal, shared])
def test_both_ways_find_the_same(mix: Callable[[Tensor, Tensor, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(7, 24), Mixing(mix), nn.Linear(24, 3))
    *whole, kept = described(model, torch.zeros(2, 5, 7))
    monkeypatch.setattr(tracer, "COMPOSITES", {})
    *apart, copied = described(model, torch.zeros(2, 5, 7))
    assert whole == apart
    assert whole[0]
    assert kept <= copied  # torch copies what does not lie in one piece before it multiplies


class Images(nn.Module):
    """Convolutions, norms and activations in several spellings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep, self.wide = nn.Conv2d(8, 8, 3, padding="same", groups=8), nn.Conv2d(8, 6, (1, 3), padding=(0, 1), groups=2)
        self.layer, self.last = nn.LayerNorm(14), nn.Conv2d(14, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(x)), inplace=True)
        x = torch.cat([functional.silu(self.deep(x)) + x, functional.relu6(self.wide(x))], 1)
        x = self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.last(torch.cat((functional.gelu(x), x * x), dim=-1))


def test_both_ways_find_the_same_in_images(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = described(Images(), torch.zeros(2, 3, 9, 9))
    monkeypatch.setattr(tracer, "COMPOSITES", {})
    assert described(Images(), torch.zeros(2, 3, 9, 9)) == whole
    assert whole[0]


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("variance", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.batch_norm(self.first(x), self.mean, self.variance, training=self.training))


def test_in_training_mode_batch_norm_refuses_single_values() -> None:
    graph = es.trace(Normalised(), torch.zeros(1, 3, 3, 3))
    assert [(group.name, group.size) for group in graph.groups] == [("first", 4)]
    assert "Expected more than 1 value per channel" in graph.notes[0]


class Vectorised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.func.vmap(lambda row: functional.linear(row, self.first.weight, self.first.bias))(x)
        assert hidden.shape[:2] == x.shape[:2]
        return self.last(hidden)


def test_inside_vmap_functions_are_taken_apart() -> None:
    graph = es.trace(Vectorised(), torch.zeros(4, 5, 6))
    assert [(group.name, group.size) for group in graph.groups] == [("first", 8)]
    assert es.cost(graph).macs == 4 * 5 * (6 * 8 + 8 * 3)


def test_a_wrong_shape_is_the_operation_s_own_error() -> None:
    with pytest.raises(es.EspalierError, match="mat1 and mat2"):
        es.trace(nn.Sequential(nn.Linear(7, 5), nn.Linear(4, 3)), torch.zeros(2, 7))


def test_views_take_no_memory() -> None:
    graph = es.trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.zeros(2, 5, 4))
    assert es.cost(graph).activations == 2 * 5 * (6 + 6 + 3)


def test_with_values_what_is_unusual_is_taken_apart_too():
    class Grouped(nn.Module):
        """Fewer keys than queries, in a model whose code looks at values."""

        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)
            self.proj, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert x.sum().item() == x.sum().item()
            query, key, value = (
                layer(x).unflatten(-1, (heads, 2)).transpose(1, 2)
                for layer, heads in ((self.query, 4), (self.key, 2), (self.value, 2))
            )
            mixed = functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
            return self.head(self.proj(mixed.transpose(1, 2).flatten(2)))

    model, x = Grouped(), torch.randn(2, 5, 8)
    graph = es.trace(model, x)
    assert "Run with values" in graph.notes[0]
    es.cut(model, {group: [0] for group in graph.groups})
    assert model(x).shape == (2, 5, 3)
