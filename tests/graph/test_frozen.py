"""What a trace cannot follow is frozen with the reason; what it cannot take is refused in one sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import espalier as es
from espalier import EspalierError
from tests.graph.oracles import sizes
from tests.graph.small import Calls, reasons, two_layers

# -- what is frozen ----------------------------------------------------------------------------------------------------


@torch.library.custom_op("espalier_tests::turned", mutates_args=())
def turned(x: Tensor) -> Tensor:
    return x.flip(-1)


@turned.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def between(operation: Any, width: int = 8) -> Calls:
    """The operation between two layers, with a pair of layers beside."""
    return Calls(
        lambda self, x: self.two(operation(self.one(x))) + self.beside(x),
        one=nn.Linear(4, width), two=nn.Linear(width, 3), beside=two_layers(6),
    )  # fmt: skip


FREEZING = {
    "custom operation": (turned, "turned"),
    "linalg": (lambda x: torch.linalg.solve(torch.eye(8), x.t()).t(), "linalg"),
    "chosen channels": (lambda x: x[:, torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])], "indices pick from it"),
    "argmax": (lambda x: x * x.argmax(1, keepdim=True), "argmax"),
    "topk": (lambda x: x - x.topk(2, dim=1).values.sum(1, keepdim=True), "topk"),
    "sort": (lambda x: x.sort(dim=1).values, "sort"),
    "roll": (lambda x: x.roll(1, 1), "is rolled"),
    "literal": (lambda x: x.view(2, 2, 4).transpose(1, 2).reshape(2, 8), "written as a number in the code"),
    "literal slice": (lambda x: torch.cat([x[:, :5].relu(), x[:, 5:]], 1), "written as a number in the code"),
    "literal split": (lambda x: torch.cat(x.split([3, 5], 1)[::-1], 1), "written as a number in the code"),
    "constant": (lambda x: x + torch.arange(8.0), "add"),
    "fourier": (lambda x: torch.fft.fft(x).real, "Fourier"),
    "one channel": (lambda x: x * x[:, :1], "written as a number in the code"),
    "single channel": (lambda x: x * x[:, 0].unsqueeze(1), "single channels of it are picked"),
}


@pytest.mark.parametrize("name", FREEZING)
def test_what_has_no_rule_or_cannot_be_cut_is_frozen_with_the_reason(name: str):
    operation, reason = FREEZING[name]
    graph = es.trace(between(operation), torch.zeros(2, 4))
    assert sizes(graph) == [6], "only the layers beside can be cut"
    assert reason in reasons(graph)


def test_an_unfrozen_neighbour_of_a_frozen_operation_is_cut_right():
    net = between(turned).eval()
    x = torch.randn(2, 4)
    graph = es.trace(net, x)
    (group,) = graph.groups
    with torch.no_grad():
        net.beside[0].weight[0] = net.beside[0].bias[0] = 0
    before = net(x)
    es.cut(net, {group: list(range(1, 6))})
    torch.testing.assert_close(net(x), before)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 5), "does not run on these example inputs"),
        ((torch.zeros(2, 4), torch.zeros(2)), "does not run on these example inputs"),
        ({"y": torch.zeros(2, 4)}, "does not run on these example inputs"),
        ((), "no tensor in example_inputs"),
        (None, "no tensor in example_inputs"),
        ("image.png", "no tensor in example_inputs"),
        (torch.zeros(0, 4), "are empty: give at least one item"),
    ],
)
def test_wrong_inputs_are_refused_in_one_sentence(inputs: Any, message: str):
    with pytest.raises(EspalierError, match=message) as caught:
        es.trace(two_layers(), inputs)
    assert "\n" not in str(caught.value)


def test_something_else_than_a_module_is_refused():
    for thing, words in (
        (lambda x: x, "takes a torch.nn.Module"),
        (nn.Linear, "takes a torch.nn.Module"),
        (torch.jit.trace(two_layers(), torch.zeros(2, 4)), "model of torch.jit"),
    ):
        with pytest.raises(EspalierError, match=words):
            es.trace(thing, torch.zeros(2, 4))  # type: ignore[arg-type]


class QueryUsedTwice(nn.Module):
    """Attention whose query also makes a bias, as the relative positions of SAM."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 12) for _ in range(3))
        self.out, self.places, self.twice = nn.Linear(12, 5), nn.Parameter(torch.randn(7, 12)), twice

    def forward(self, x):
        q = self.q(x)
        bias = q @ self.places.T if self.twice else None
        return self.out(nn.functional.scaled_dot_product_attention(q, self.k(x), self.v(x), attn_mask=bias))


def test_a_query_that_is_used_twice_cannot_take_over_the_scale():
    x = torch.zeros(2, 7, 6)
    assert es.trace(QueryUsedTwice(False), x).group("q").reason is None
    assert "used elsewhere" in es.trace(QueryUsedTwice(True), x).group("q").reason
