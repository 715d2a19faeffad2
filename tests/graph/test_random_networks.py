"""Cuts of random networks against two oracles: the dense network with zeroed slices, and the network built narrow."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

import espalier as es
from espalier.graph import ChannelGraph, Group
from tests.graph.oracles import assert_close, zeroed
from tests.graph.random_networks import KINDS, PIXELS, Choice, Drawn, build, drawn
from tests.graph.steps import Network, built_anew, integers, plain_integers

Keep = dict[Group, list[int]]


def kept_channels(groups: list[Group], generator: random.Random, least: int) -> Keep:
    """Of each group some random channels."""
    keep = {}
    for group in groups:
        if group.size > least:
            count = generator.randint(least, group.size - 1)
            keep[group] = sorted(generator.sample(range(group.size), count))
    return keep


def state(net: nn.Module) -> dict[str, Any]:
    """All that a trace must leave as it is."""
    return {
        "tensors": {name: (tensor.clone(), tensor.stride()) for name, tensor in net.state_dict().items()},
        "identities": [id(tensor) for tensor in [*net.parameters(), *net.buffers()]],
        "gradients": [parameter.grad for parameter in net.parameters()],
        "training": [module.training for module in net.modules()],
        "integers": integers(net),
        "attributes": [sorted(vars(module)) for module in net.modules()],
        "hooks": [len(hooks) for module in net.modules() for name, hooks in vars(module).items() if name.endswith("hooks")],
        "random": torch.get_rng_state(),
    }


def assert_same(one: Mapping[str, Any], two: Mapping[str, Any]) -> None:
    for name, (tensor, stride) in one["tensors"].items():
        assert torch.equal(tensor, two["tensors"][name][0]), name
        assert stride == two["tensors"][name][1], name
    assert torch.equal(one["random"], two["random"])
    for key in ("identities", "gradients", "training", "integers", "attributes", "hooks"):
        assert one[key] == two[key], key


def assert_same_format(net: nn.Module, channels_last: bool) -> None:
    for name, parameter in net.named_parameters():
        if parameter.dim() == 4 and channels_last:
            assert parameter.is_contiguous(memory_format=torch.channels_last), name
        elif not channels_last:
            assert parameter.is_contiguous(), name


def check_cut(net: Network, keep: Keep, x: Tensor, channels_last: bool) -> None:
    """Cut ``net`` and compare it with both oracles; then a step of training."""
    net.eval()
    exact = all(group.exact for group in keep)
    expected = zeroed(net, keep)(x) if exact else None
    parameters = list(net.parameters())
    structure = es.cut(net, keep)
    assert structure == es.surgery.structure_of(net)
    with torch.no_grad():
        found = net(x)
        if expected is not None:
            assert_close(found, expected.detach(), "zeroed slices")
        native = built_anew(net).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        assert_close(found, native(x), "built narrow")
    assert integers(net) == integers(native)
    assert plain_integers(net)
    assert all(one is two for one, two in zip(parameters, net.parameters(), strict=True))
    assert_same_format(net, channels_last)
    net.train()(x).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    net.zero_grad()


def widths(graph: ChannelGraph) -> dict[str, int]:
    return {group.name: group.size for group in graph.groups}


def comparable(graph: ChannelGraph) -> bool:
    """Whether a new trace must find the same groups. Where concatenations and products overlap, single channels lie apart, and
    after a cut the borders may fall together."""
    return all(group.size > 1 for group in (*graph.groups, *graph.frozen))


def check(net: Network, channels_last: bool, seed: int) -> ChannelGraph:
    """Trace, cut some groups, then all, of a copy."""
    generator = random.Random(seed)
    x = torch.randn(2, 3, PIXELS, PIXELS)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    net.train(generator.random() < 0.5)
    before = state(net)
    graph = es.trace(net, x)
    assert_same(before, state(net))
    assert plain_integers(net)
    narrow = copy.deepcopy(net)
    some = [group for group in graph.groups if generator.random() < 0.5]
    for groups, least in ((some, 2), (list(graph.groups), 2), (list(graph.groups), 1)):
        keep = kept_channels(groups, generator, least)
        if keep:
            check_cut(narrow, keep, x, channels_last)
            if least > 1 and comparable(graph):
                assert widths(graph) == widths(es.trace(narrow, x))
    assert_same(before, {**state(net), "random": before["random"]})  # building anew draws numbers
    return graph


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(drawn)
def test_random_networks_are_cut_right(example: Drawn):
    check(example.network(), example.channels_last, example.seed)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_step_alone(kind: str, channels_last: bool):
    before = [Choice("strided", 1, 5)] if kind in ("transposed", "pixel up", "token mixer") else []
    for number in range(5 if "attention" in kind else 3):
        choices = [*before, Choice(kind, number + 1, number + 3), Choice("conv", 1, 2)]
        net = build(choices, stem=12)
        assert len(net.steps) == len(choices) + 2
        if channels_last:
            net = net.to(memory_format=torch.channels_last)
        graph = check(net, channels_last, seed=number)
        assert graph.groups
