"""Like blocks are labelled once; the graph is the same as if each had been."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import espalier as es
from espalier.graph import twins
from espalier.graph.graph import ChannelGraph, Dim
from espalier.graph.pattern import Pattern
from espalier.tasks.vision import timm, torchvision
from tests.graph.like_blocks import (
    Chain,
    Counting,
    Early,
    Fixed,
    Flagged,
    Heads,
    InPlace,
    Keeping,
    Nested,
    Noisy,
    Residual,
    Split,
    Stack,
    Switching,
    Unsqueezed,
    images,
    tokens,
)


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


def repeated(monkeypatch: pytest.MonkeyPatch, build: Callable[[], nn.Module], x: Tensor) -> int:
    """How many blocks are not run, since others are like them. The graph is compared with that of all blocks run."""
    torch.manual_seed(0)
    model, known, found = build(), [], []
    repeat = Pattern.repeat

    def counted(pattern: Pattern, *args: Any) -> Any:
        known.append(pattern)
        return repeat(pattern, *args)

    monkeypatch.setattr(Pattern, "repeat", counted)
    for worth in (30, 10**9):  # the models here are small
        with monkeypatch.context() as patch:
            patch.setattr(twins, "WORTH", worth)
            found.append(facts(es.trace(model, x, check=False)))
    monkeypatch.setattr(Pattern, "repeat", repeat)
    for fact, told in found[0].items():
        assert told == found[1][fact], fact
    return len(known)


X, IMAGES = torch.zeros(2, 4, 5), torch.zeros(2, 3, 6, 6)


def test_a_transformer_is_labelled_by_two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert repeated(monkeypatch, tokens, X) == 10  # the first is given what a layer has computed, the others a sum


def test_convolutional_blocks_are_labelled_once_each_kind_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> nn.Module:
        return images(*(Residual() for _ in range(6)), *(Residual(dilation=2) for _ in range(6)))

    assert repeated(monkeypatch, build, IMAGES) == 9


def test_blocks_that_do_something_else_in_training_mode_are_all_run_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert repeated(monkeypatch, lambda: images(*(Noisy() for _ in range(6))), IMAGES) == 4


def test_names_are_those_of_each_block() -> None:
    graph = es.trace(tokens(), X)
    assert {group.name.split(".")[0] for group in graph.groups} == {"0", *map(str, range(1, 13))}


def test_blocks_of_other_settings_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert repeated(monkeypatch, lambda: images(*(Residual(scale=1 + i / 10) for i in range(6))), IMAGES) == 0


DROPPING: dict[str, Callable[[float], nn.Module]] = {
    "values": nn.Dropout,
    "paths, as timm does": lambda rate: timm().layers.DropPath(rate),
    "paths, as torchvision does": lambda rate: torchvision().ops.StochasticDepth(rate, "row"),
}


def dropping(kind: str, rates: Sequence[float]) -> nn.Module:
    model = tokens(count=len(rates))
    for block, rate in zip(model[1:-1], rates, strict=True):
        block.mlp[2] = DROPPING[kind](rate)
    return model


@pytest.mark.parametrize("kind", DROPPING)
def test_each_block_may_drop_a_share_of_its_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = [0.01 * (1 + block) for block in range(12)]
    assert repeated(monkeypatch, lambda: dropping(kind, rates), X) == 10


@pytest.mark.parametrize("kind", DROPPING)
def test_blocks_that_drop_nothing_are_another_kind(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert repeated(monkeypatch, lambda: dropping(kind, [0.0] * 6 + [0.1] * 6), X) == 9


@pytest.mark.parametrize("kind", [Keeping, Nested, Counting])
def test_blocks_that_do_more_than_compute_are_all_run(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    assert repeated(monkeypatch, lambda: images(*(kind() for _ in range(6))), IMAGES) == 0


def test_what_all_blocks_look_at_may_change_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert repeated(monkeypatch, Switching, X) == 3  # each kind is labelled first


@pytest.mark.parametrize("kind", [Fixed, InPlace])
def test_what_is_found_of_one_is_found_of_all(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    assert repeated(monkeypatch, lambda: images(*(kind() for _ in range(6))), IMAGES) > 0


def test_several_results_and_nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert repeated(monkeypatch, lambda: Chain(8), IMAGES) > 0


def test_hooks_are_called_for_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[nn.Module] = []

    def build() -> nn.Module:
        model = tokens(count=6)
        for block in model[1:-1]:
            block.norm2.register_forward_hook(lambda module, args, out: called.append(module))
        return model

    assert repeated(monkeypatch, build, X) == 0
    assert len(called) >= 12


def test_a_shared_layer_is_no_part_of_a_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> nn.Module:
        model = tokens(count=6)
        for block in model[2:-1]:
            block.norm1 = model[1].norm1
        return model

    assert repeated(monkeypatch, build, X) == 0


def test_nor_is_a_shared_module_without_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> nn.Module:
        shared = Heads()
        return Stack(lambda: Split(shared))

    assert repeated(monkeypatch, build, X) == 0
    assert repeated(monkeypatch, Stack, X) > 0  # each with its own


def test_an_integer_of_a_later_block_that_was_read_before(monkeypatch: pytest.MonkeyPatch) -> None:
    assert repeated(monkeypatch, Early, X) == 4  # the last is tied to what is around the blocks


def test_a_block_that_is_ready_after_training_is_not_ready_before(monkeypatch: pytest.MonkeyPatch) -> None:
    repeated(monkeypatch, Flagged, X)


def test_results_may_change_their_shape_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert repeated(monkeypatch, Unsqueezed, X) > 0


def test_a_cut_of_repeated_blocks_trains_on() -> None:
    torch.manual_seed(0)
    model, x = tokens(count=6), torch.randn(2, 4, 5)
    graph = es.trace(model, x)
    es.cut(model, {group: range(group.size - group.size // 3) for group in graph.groups if group.name.endswith("mlp.0")})
    model(x).sum().backward()
    assert {block.mlp[0].out_features for block in model[1:-1]} == {16}
