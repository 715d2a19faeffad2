"""Costs before a cut against torch's own counter after it, on real models cut at random."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import espalier as es
from espalier.cost import channel_costs
from espalier.graph.scores import channel_sums, weights_of
from espalier.tasks.classification.models import build_model


def small(name: str) -> Callable[[], nn.Module]:
    return lambda: build_model(name, num_classes=10)


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "convnet4": (small("convnet4"), 32),
    "resnet20": (small("resnet20"), 32),
    "mobilenetv2": (small("mobilenetv2"), 64),
    "resnet18": (small("torchvision:resnet18"), 64),
    "densenet121": (small("torchvision:densenet121"), 64),
    "shufflenet": (small("torchvision:shufflenet_v2_x0_5"), 64),
    "vit": (small("timm:vit_tiny_patch16_224"), 224),
    "convnext": (small("timm:convnext_atto"), 64),
}
SLOW = ("shufflenet",)


# Torch counts the matrix products of attention, but not the fused kernel of CPUs.
def counted(model: nn.Module, x: Tensor) -> tuple[int, int]:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops(), sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MODELS])
def test_costs_are_what_a_cut_model_is_counted_to_have(name: str) -> None:
    build, pixels = MODELS[name]
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(2, 3, pixels, pixels)
    graph = es.trace(model, x)
    assert graph.groups
    assert (es.cost(graph).flops, es.cost(graph).params) == counted(model, x)
    for _ in range(2):  # cuts follow one another
        keep = {}
        for group in graph.groups:
            width = int(torch.randint(max(1, group.size // 3), group.size + 1, ()))
            keep[group] = torch.randperm(group.size)[:width].sort().values
        foretold = es.cost(graph, {group: len(kept) for group, kept in keep.items()})
        es.cut(model, keep)
        assert (foretold.flops, foretold.params) == counted(model, x)
        assert es.cost(graph) == foretold


def test_activations_are_counted_in_the_dtype_of_the_model() -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(3, 4)
    cost = es.cost(es.trace(net, x))
    assert (cost.activations, cost.activation_bytes) == (3 * (8 + 8 + 2), 4 * 3 * (8 + 8 + 2))
    assert es.cost(es.trace(net.double(), x.double())).activation_bytes == 2 * cost.activation_bytes


def test_a_searched_budget_is_met_by_the_cut_model() -> None:
    torch.manual_seed(0)
    model, x = small("resnet20")().eval(), torch.randn(1, 3, 32, 32)
    graph = es.trace(model, x)
    dense = counted(model, x)[0]
    scores = {group: channel_sums(group, weights_of(model), 2) for group in graph.groups}
    es.cut(model, es.search(graph, scores, keep_macs=0.5, normalise="mean", round_to=1))
    assert 0.49 * dense < counted(model, x)[0] <= 0.5 * dense


def test_what_a_channel_carries() -> None:
    model, x = small("convnet4")().eval(), torch.randn(1, 3, 32, 32)
    graph = es.trace(model, x)
    for group, carried in channel_costs(graph).items():
        alone = es.cost(graph, {group: 1})
        whole = es.cost(graph)
        assert carried.macs == pytest.approx((whole.macs - alone.macs) / (group.size - 1))
        assert carried.params == pytest.approx((whole.params - alone.params) / (group.size - 1))
