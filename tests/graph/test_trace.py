"""``es.trace`` on hand-written modules: what is found, what is frozen and why, and what is refused."""

from __future__ import annotations

import copy
from collections import UserDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import espalier as es
from espalier import EspalierError
from espalier.graph import ChannelGraph
from tests.graph.oracles import check_groups, sizes
from tests.graph.test_random_networks import assert_same, state


def reasons(graph: ChannelGraph) -> str:
    return "\n".join(str(group.reason) for group in graph.frozen)


def members(graph: ChannelGraph, number: int = 0) -> set[tuple[str, int]]:
    return {(member.name, member.dim) for member in graph.groups[number].members}


def two_layers(width: int = 8, inputs: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 3))


class Calls(nn.Module):
    """A module made of a function of itself and the inputs."""

    def __init__(self, function: Any, **modules: Any) -> None:
        super().__init__()
        self.function = [function]
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function[0](self, *args, **kwargs)


# -- inputs and outputs ------------------------------------------------------------------------------------------------


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None


OUTPUTS = {
    "tensor": lambda y: y,
    "tuple": lambda y: (y, None),
    "list": lambda y: [y],
    "dict": lambda y: {"logits": y, "number": 3},
    "dataclass": lambda y: Output(y),
    "nested": lambda y: {"a": [(Output(y),)]},
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_of_any_kind_are_frozen(kind: str):
    net = Calls(lambda self, x: OUTPUTS[kind](self.two(self.one(x))), one=nn.Linear(4, 8), two=nn.Linear(8, 3))
    graph = es.trace(net, torch.zeros(2, 4))
    assert sizes(graph) == [8]
    assert graph.group("two").reason == "reaches the model's output"


def test_every_output_is_frozen():
    net = Calls(lambda self, x: Output(self.two(h := self.one(x)), h), one=nn.Linear(4, 8), two=nn.Linear(8, 3))
    graph = es.trace(net, torch.zeros(2, 4))
    assert sizes(graph) == []
    assert sorted(group.size for group in graph.frozen if "output" in group.reason) == [3, 8]


def two_inputs() -> Calls:
    return Calls(
        lambda self, x, mask=None, *, scale=1.0: self.out((self.one(x) * scale).masked_fill(mask, 0.0)),
        one=nn.Linear(4, 8),
        out=nn.Linear(8, 3),
    )


@pytest.mark.parametrize("kind", ["args", "kwargs"])
def test_several_inputs(kind: str, tmp_path):
    x, mask = torch.randn(2, 4), torch.tensor([[True], [False]])
    inputs: Any = (x, mask) if kind == "args" else {"x": x, "mask": mask, "scale": 0.5}
    assert sizes(check_groups(two_inputs, inputs, tmp_path)) == [8]


def test_an_input_ties_what_it_is_added_to():
    net = Calls(lambda self, x, y: self.two(self.one(x) + y), one=nn.Linear(4, 8), two=nn.Linear(8, 3))
    graph = es.trace(net, (torch.zeros(2, 4), torch.zeros(2, 8)))
    assert sizes(graph) == []
    assert "add ties it to something that cannot be cut" in reasons(graph)


def test_keywords_as_a_mapping_that_is_no_dict():
    class Named(nn.Linear):
        def forward(self, input_ids):
            return super().forward(input_ids)

    graph = es.trace(Named(4, 2), UserDict(input_ids=torch.zeros(2, 4)))
    assert "reaches the model's output" in reasons(graph)


def test_inputs_as_a_dict_of_tensors_inside():
    net = Calls(lambda self, batch: self.two(self.one(batch["image"])), one=nn.Linear(4, 8), two=nn.Linear(8, 3))
    assert sizes(es.trace(net, ({"image": torch.zeros(2, 4)},))) == [8]


# -- training mode, sharing, functional use ----------------------------------------------------------------------------


def auxiliary(self: Calls, x: Tensor) -> Any:
    x = self.body(x)
    return (self.head(x), self.extra(x)) if self.training else self.head(x)


def test_heads_of_training_mode_are_cut_along():
    net = Calls(auxiliary, body=nn.Linear(4, 8), head=nn.Linear(8, 3), extra=two_layers(6, inputs=8)).eval()
    graph = es.trace(net, torch.zeros(2, 4))
    assert sizes(graph) == [6, 8]
    assert ("extra.0.weight", 1) in members(graph)
    es.cut(net, {group: [0, 2] for group in graph.groups})
    assert net.training is False
    assert [y.shape for y in net.train()(torch.zeros(2, 4))] == [(2, 3), (2, 3)]


def test_a_model_that_does_not_run_in_training_mode_is_traced_with_a_note():
    def forward(self: Calls, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("needs targets")
        return self.net(x)

    net = Calls(forward, net=two_layers())
    graph = es.trace(net, torch.zeros(2, 4))
    assert sizes(graph) == [8]
    assert "needs targets" in graph.notes[0]
    assert net.training


def test_a_layer_used_twice_ties_its_inputs_to_its_outputs(tmp_path):
    def build() -> nn.Module:
        layer = nn.Linear(8, 8, bias=False)
        return nn.Sequential(nn.Linear(4, 8), layer, nn.GELU(), layer, nn.Linear(8, 3))

    graph = check_groups(build, torch.randn(2, 4), tmp_path)
    assert sizes(graph) == [8]
    assert {("1.weight", 0), ("1.weight", 1)} < members(graph)


def test_tied_embedding_and_output_share_one_width(tmp_path):
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mlp, self.head = nn.Embedding(11, 8), two_layers(6, inputs=8), nn.Linear(8, 11, bias=False)
            self.mlp[2] = nn.Linear(6, 8)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            return self.head(x + self.mlp(x))

    graph = check_groups(Language, torch.tensor([[1, 2, 3]]), tmp_path)
    assert sizes(graph) == [6, 8]
    assert any("vocabulary" in group.reason or "output" in group.reason for group in graph.frozen)


def test_parameters_used_functionally(tmp_path):
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList([nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(3, 8))])
            self.gamma, self.shift = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(1, 8))

        def forward(self, x: Tensor) -> Tensor:
            x = functional.layer_norm(functional.linear(x, self.weights[0]), (self.gamma.shape[0],), self.gamma)
            return torch.relu(x * 2) @ self.weights[1].t() + (self.shift * self.gamma).sum(-1, keepdim=True)

    graph = check_groups(Functional, torch.randn(2, 4), tmp_path)
    assert sizes(graph) == [8]
    assert members(graph) == {("weights.0", 0), ("weights.1", 1), ("gamma", 0), ("shift", 1)}


def test_frozen_leaves_are_cut_along():
    net = two_layers().requires_grad_(False)
    net[2].requires_grad_(True)
    graph = es.trace(net, torch.zeros(2, 4))
    assert members(graph) == {("0.weight", 0), ("0.bias", 0), ("2.weight", 1)}
    es.cut(net, {graph.groups[0]: [1, 2]})
    assert not net[0].weight.requires_grad
    assert net[2].weight.requires_grad
    net(torch.zeros(2, 4)).sum().backward()
    assert net[0].weight.grad is None


def test_a_lora_branch_is_cut_with_its_layer(tmp_path):
    class Lora(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.down, self.up = nn.Linear(4, 8), nn.Linear(4, 3, bias=False), nn.Linear(3, 8, bias=False)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.base(x) + 2.0 * self.up(self.down(x))))

    assert sizes(check_groups(Lora, torch.randn(2, 4), tmp_path)) == [3, 8]


# -- wrappers, devices, parametrizations -------------------------------------------------------------------------------


class Wrapper(nn.Module):
    """As DistributedDataParallel keeps its model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any) -> Any:
        return self.module(*args)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, Wrapper, torch.optim.swa_utils.AveragedModel])
def test_wrapped_models_are_traced_and_cut_inside(wrap):
    net = two_layers()
    wrapped = wrap(net)
    graph = es.trace(wrapped, torch.zeros(2, 4))
    assert members(graph) == {("0.weight", 0), ("0.bias", 0), ("2.weight", 1)}
    es.cut(wrapped, {graph.groups[0]: [0, 5, 7]})
    inner = wrapped.module if isinstance(wrapped, torch.optim.swa_utils.AveragedModel) else net
    assert inner[0].out_features == 3


def test_models_on_meta():
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    graph = es.trace(net, torch.zeros(1, 3, 8, 8, device="meta"))
    assert sizes(graph) == [8]
    es.cut(net, {graph.groups[0]: [0, 3]})
    assert net(torch.zeros(1, 3, 8, 8, device="meta")).shape == (1, 4, 4, 4)


def test_a_model_that_looks_at_values_is_traced_with_values():
    def forward(self: Calls, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.two(x if x.sum().item() > -1e9 else -x)

    net = Calls(forward, one=nn.Linear(4, 8), two=nn.Linear(8, 3))
    before = state(net)
    graph = es.trace(net, torch.zeros(2, 4))
    assert_same(before, state(net))
    assert sizes(graph) == [8]


def test_new_weight_norm_is_supported_or_refused_by_name():
    net = two_layers()
    parametrizations.weight_norm(net[0])
    before = net(torch.ones(2, 4))
    try:
        graph = es.trace(net, torch.zeros(2, 4))
    except EspalierError as error:
        assert "parametriz" in str(error)  # noqa: PT017
        return
    for group in graph.groups:
        es.cut(net, {group: list(range(1, group.size))})
    assert net(torch.ones(2, 4)).shape == before.shape


def test_old_weight_norm_is_refused_with_the_way_out():
    net = two_layers()
    with pytest.warns(FutureWarning):
        net[0] = nn.utils.weight_norm(net[0])
    net(torch.zeros(2, 4)).sum().backward()
    with pytest.raises(EspalierError, match="parametrizations"):
        es.trace(net, torch.zeros(2, 4))


def test_lazy_modules_are_refused():
    with pytest.raises(EspalierError, match="run the model once"):
        es.trace(nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 2)), torch.zeros(2, 4))


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


# -- the model is left as it was ---------------------------------------------------------------------------------------


def test_the_model_is_left_exactly_as_it_was():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 4, 1))
    net = net.to(memory_format=torch.channels_last)
    net[1].eval()
    calls: list[int] = []
    net[0].register_forward_hook(lambda *_: calls.append(1))
    net[0].weight.register_hook(lambda gradient: gradient)
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    del calls[:]
    before = state(net)
    graph = es.trace(net, torch.randn(2, 3, 8, 8))
    after = state(net)
    assert_same({**before, "random": after["random"]}, after)
    assert sizes(graph) == [8]
    assert len(net[0]._forward_hooks) == 1


def test_gradients_modes_and_randomness_are_left():
    net, x = two_layers(), torch.randn(2, 4)
    random = torch.get_rng_state()
    fast = torch.backends.mha.get_fastpath_enabled()
    with torch.inference_mode():
        assert sizes(es.trace(net, x)) == [8]
    with torch.no_grad():
        es.trace(net, x)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert torch.equal(torch.get_rng_state(), random)


def test_a_graph_can_be_copied_with_its_groups():
    net = two_layers()
    graph = es.trace(net, torch.zeros(2, 4))
    again = copy.deepcopy(graph)
    es.cut(net, {again.groups[0]: [0, 1]})
    assert (again.groups[0].size, graph.groups[0].size) == (2, 8)


class Standardised(nn.Module):
    """A convolution whose weights are standardised over their inputs, as in NFNets."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        flat = self.two.weight.reshape(1, self.two.out_channels, -1)
        weight = nn.functional.batch_norm(flat, None, None, training=True).reshape_as(self.two.weight)
        return self.head(nn.functional.conv2d(self.one(x), weight, self.two.bias))


def test_groups_that_standardised_weights_are_averaged_over_are_not_exact():
    graph = es.trace(Standardised(), torch.zeros(1, 3, 8, 8))
    assert {group.name: group.exact for group in graph.groups} == {"one": False, "two": True}


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


def test_a_copied_graph_has_its_members():
    graph = es.trace(Standardised(), torch.zeros(1, 3, 8, 8))
    assert graph.groups[0].members
    again = copy.deepcopy(graph)
    assert [member.name for member in again.groups[0].members] == [member.name for member in graph.groups[0].members]


# -- means written by hand ---------------------------------------------------------------------------------------------

BY_HAND = {
    "shape": lambda self, x: x.sum(1, keepdim=True) / x.shape[1],
    "size": lambda self, x: x.sum(1, keepdim=True).div(x.size(1)),
    "in place": lambda self, x: x.sum(1, keepdim=True).div_(x.shape[-1]),
    "function": lambda self, x: torch.div(x.sum(1, keepdim=True), x.shape[1]),
    "inverse": lambda self, x: x.sum(1, keepdim=True) * (1 / x.shape[1]),
    "weighted": lambda self, x: x.shape[1] * x.sum(1, keepdim=True),
    "attribute": lambda self, x: x.view(-1, self.width).sum(1, keepdim=True) / self.width,
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_length_in_arithmetic_is_seen(kind: str):
    """Zeroing channels leaves the divisor, removing them does not."""
    net = Calls(lambda self, x: self.two(BY_HAND[kind](self, self.one(x))), one=nn.Linear(4, 8), two=nn.Linear(1, 3))
    net.width = 8
    (group,) = es.trace(net, torch.zeros(2, 4)).groups
    assert not group.exact


def test_a_length_in_arithmetic_of_indices_changes_no_number():
    def forward(self: Calls, x: Tensor) -> Tensor:
        x = self.one(x)
        first = torch.arange(1, device=x.device) * x.shape[1]
        return self.two(x) + first.to(x.dtype) * 0

    (group,) = es.trace(Calls(forward, one=nn.Linear(4, 8), two=nn.Linear(8, 3)), torch.zeros(2, 4)).groups
    assert group.exact


class KeepsNoPrefix(nn.Module):
    """Takes heads apart, splits off a prefix that is empty, and puts all together again, as rotary attention without tokens."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.heads, self.width, self.prefix = nn.Linear(6, 32), nn.Linear(32, 3), 4, 8, 0

    def forward(self, x):
        heads = self.first(x).view(-1, self.heads, self.width)
        flat = heads.transpose(1, 2).flatten(1)
        return self.last(torch.cat([flat[:, : self.prefix], flat[:, self.prefix :]], 1))


def test_a_dimension_without_entries_is_traced():
    net, x = KeepsNoPrefix(), torch.randn(2, 6)
    graph = es.trace(net, x)
    sizes = [group.size for group in graph.groups]
    assert sizes
    es.cut(net, {graph.groups[0]: list(range(graph.groups[0].size // 2))})
    assert net(x).shape == (2, 3)
