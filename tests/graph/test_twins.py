"""Like blocks are labelled once; the graph is the same as if each had been."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import espalier as es
from espalier.graph import twins
from espalier.graph.graph import ChannelGraph, Dim

RUNS: list[str] = []  # which blocks have been run, and in what mode


@pytest.fixture(autouse=True)
def none_run() -> Iterator[None]:
    RUNS.clear()
    yield
    RUNS.clear()


def facts(graph: ChannelGraph) -> dict[str, Any]:
    """All that a graph says."""

    def of(label: Dim | int) -> Any:
        return label if isinstance(label, int) else (label.groups.tolist(), label.channels.tolist())

    def terms(every: Any) -> list[Any]:
        return [(term.module, term.op, [of(length) for length in term.lengths]) for term in every]

    return {
        "groups": [(group.name, group.size, group.exact) for group in graph.groups],
        "members": [[str(member) for member in group.members] for group in graph.groups],
        "frozen": [(group.name, group.size, group.reason) for group in graph.frozen],
        "tensors": {name: [of(label) for label in labels] for name, labels in graph.tensors.items()},
        "attributes": {path: of(label) for path, label in graph.attributes.items()},
        "rescales": [(each.module, each.names, each.dims, [rows.tolist() for rows in each.rows]) for each in graph.rescales],
        "work": terms(graph._work),
        "activations": terms(graph._activations),
        "notes": graph.notes,
    }


class Attention(nn.Module):
    def __init__(self, width: int = 12, heads: int = 3, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads, self.head_dim, self.dropout = heads, width // heads, dropout
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        x = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.proj(x.transpose(1, 2).reshape(b, n, self.heads * self.head_dim))


class Block(nn.Module):
    """Of a transformer: 11 modules inside."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        RUNS.append("block")
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Residual(nn.Module):
    """Of a convolutional net: 8 modules inside."""

    def __init__(self, width: int = 8, *, dilation: int = 1, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 1, groups=2),
            nn.BatchNorm2d(width),
            nn.Dropout2d(0.1),
        )
        self.last = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        RUNS.append("residual")
        return self.last(x + self.scale * self.body(x))


class Noisy(Residual):
    """Something else in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out * torch.rand(len(x), 1, 1, 1) if self.training else out


class Fixed(Residual):
    """A number in the code keeps the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(x.shape[0], 2, 4, x.shape[2], x.shape[3]).flatten(1, 2)


class InPlace(Residual):
    """What it is given is changed."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


class Keeping(Residual):
    """It remembers what it was given."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return super().forward(x)


class Pair(Residual):
    """Two results."""

    def forward(self, x: Tensor, other: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        out = super().forward(x)
        return out, out * 2 if other is None else out + other


class Chain(nn.Module):
    """Blocks that hand on two tensors."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 1), nn.ModuleList(Pair() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        x, other = self.blocks[0](self.stem(x))
        for block in self.blocks[1:]:
            x, other = block(x, other)
        return (x + other).mean((2, 3))


def tokens(block: Callable[[], nn.Module] = Block, count: int = 12) -> nn.Module:
    """Blocks whose paths are plain numbers."""
    return nn.Sequential(nn.Linear(5, 12), *(block() for _ in range(count)), nn.Linear(12, 2))


def images(*blocks: nn.Module) -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
    return nn.Sequential(stem, nn.ModuleDict({"blocks": nn.Sequential(*blocks)})["blocks"], nn.Flatten(), nn.Linear(8 * 36, 2))


def both(monkeypatch: pytest.MonkeyPatch, build: Callable[[], nn.Module], x: Tensor) -> tuple[int, int]:
    """How many blocks are run with twins and without. The graphs are compared."""
    torch.manual_seed(0)
    model, counts, found = build(), [], []
    for worth in (twins.WORTH, 10**9):
        monkeypatch.setattr(twins, "WORTH", worth)
        RUNS.clear()
        found.append(facts(es.trace(model, x, check=False)))
        counts.append(len(RUNS))
    for fact, told in found[0].items():
        assert told == found[1][fact], fact
    return counts[0], counts[1]


X, IMAGES = torch.zeros(2, 4, 5), torch.zeros(2, 3, 6, 6)


def test_a_transformer_is_labelled_by_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    assert both(monkeypatch, tokens, X) == (2, 12)  # the first is given what a layer has computed, the others a sum


def test_convolutional_blocks_are_labelled_once_each_kind_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> nn.Module:
        return images(*(Residual() for _ in range(6)), *(Residual(dilation=2) for _ in range(6)))

    run, without = both(monkeypatch, build, IMAGES)
    assert (run, without) == (3, 12)


def test_what_blocks_do_in_training_mode_is_labelled_once_too(monkeypatch: pytest.MonkeyPatch) -> None:
    run, without = both(monkeypatch, lambda: images(*(Noisy() for _ in range(6))), IMAGES)
    assert (run, without) == (4, 12)  # in both modes


def test_reasons_name_the_block_that_they_are_about(monkeypatch: pytest.MonkeyPatch) -> None:
    run, without = both(monkeypatch, lambda: tokens(lambda: Block()), X)
    assert run < without
    graph = es.trace(tokens(), X)
    assert {group.name.split(".")[0] for group in graph.groups} == {"0", *map(str, range(1, 13))}


def test_blocks_of_other_settings_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    run, without = both(monkeypatch, lambda: images(*(Residual(scale=1 + i / 10) for i in range(6))), IMAGES)
    assert run == without == 6


@pytest.mark.parametrize("kind", [Fixed, InPlace, Keeping])
def test_the_graph_is_the_same_where_blocks_do_more_than_compute(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    run, without = both(monkeypatch, lambda: images(*(kind() for _ in range(6))), IMAGES)
    assert run == without if kind is not Fixed else run <= without


def test_several_results_and_nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    run, without = both(monkeypatch, lambda: Chain(8), IMAGES)
    assert run < without == 8


def test_hooks_are_called_for_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> nn.Module:
        model = tokens(count=6)
        for block in model[1:-1]:
            block.norm2.register_forward_hook(lambda module, args, out: RUNS.append("hook"))
        return model

    run, without = both(monkeypatch, build, X)
    assert run == without >= 12


def test_a_shared_module_is_no_part_of_a_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> nn.Module:
        model = tokens(count=6)
        for block in model[2:-1]:
            block.norm1 = model[1].norm1
        return model

    run, without = both(monkeypatch, build, X)
    assert run == without == 6


def test_a_cut_of_repeated_blocks_trains_on() -> None:
    torch.manual_seed(0)
    model, x = tokens(count=6), torch.randn(2, 4, 5)
    graph = es.trace(model, x)
    assert len(RUNS) < 12  # one block, and the trial cut
    es.cut(model, {group: range(group.size - group.size // 3) for group in graph.groups if group.name.endswith("mlp.0")})
    model(x).sum().backward()
    assert {block.mlp[0].out_features for block in model[1:-1]} == {16}
