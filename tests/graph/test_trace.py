"""``es.trace`` on hand-written modules: inputs and outputs of any kind, sharing, wrappers; the model is left as it was."""

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
from tests.graph.oracles import check_groups, sizes
from tests.graph.small import Calls, members, reasons, two_layers
from tests.graph.test_random_networks import assert_same, state

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


def test_a_model_that_returns_no_tensors_is_traced_with_a_note():
    class Keeping(nn.Sequential):
        def forward(self, x):
            self.last = super().forward(x)

    graph = es.trace(Keeping(nn.Linear(4, 8), nn.Linear(8, 3)), torch.zeros(2, 4))
    assert sizes(graph) == [3, 8]
    assert graph.notes == ["The model returns no tensors, so that no channels are kept for its output."]


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


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_the_old_norms_of_weights_are_cut(norm: Any):
    net = two_layers()
    net[0], x = norm(net[0]), torch.randn(2, 4)
    net(x).sum().backward()  # the weight is no leaf from now on
    graph = es.trace(net, x)
    assert sizes(graph) == [8]
    dense = net.eval()(x)
    with torch.no_grad():
        dense -= net[1](net[0](x))[:, 4:] @ net[2].weight[:, 4:].T
    es.cut(net, {graph.groups[0]: [0, 1, 2, 3]})
    assert net(x).shape == dense.shape
    if graph.groups[0].exact:
        torch.testing.assert_close(net(x), dense)
    net.train()(x).sum().backward()


def test_lazy_modules_are_refused():
    with pytest.raises(EspalierError, match="run the model once"):
        es.trace(nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 2)), torch.zeros(2, 4))


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


def test_a_copied_graph_has_its_members():
    graph = es.trace(two_layers(), torch.zeros(2, 4))
    assert graph.groups[0].members
    again = copy.deepcopy(graph)
    assert [member.name for member in again.groups[0].members] == [member.name for member in graph.groups[0].members]


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
