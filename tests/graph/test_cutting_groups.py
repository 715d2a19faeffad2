"""``es.cut`` through groups: refusals, followers, files, and cuts in the middle of training and of pruning."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

import espalier as es
from espalier import EspalierError
from espalier.graph import Group
from tests.graph.attentions import TOKENS, Block, Timm
from tests.graph.oracles import lively
from tests.pruner.conftest import SmallNet, batch, masked_weights_are_zero, sgd, train_step

X = torch.zeros(1, 3, 8, 8)
STEPS = 12


def shapes(model: nn.Module) -> dict[str, Any]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


# -- refusals ----------------------------------------------------------------------------------------------------------


def frozen(net: nn.Module) -> dict[Group, Any]:
    return {es.trace(net, X).frozen[-1]: [0]}


def unsorted(net: nn.Module) -> dict[Group, Any]:
    return {es.trace(net, X).groups[0]: [3, 1]}


def stale(net: nn.Module) -> dict[Group, Any]:
    old, new = es.trace(net, X), es.trace(net, X)
    es.cut(net, {new.groups[0]: [0, 1, 2]})
    return {old.groups[0]: [0, 1]}


def foreign(net: nn.Module) -> dict[Group, Any]:
    other = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    return {es.trace(other, torch.zeros(1, 4)).groups[0]: [0]}


def two_graphs(net: nn.Module) -> dict[Group, Any]:
    return {es.trace(net, X).groups[0]: [0], es.trace(net, X).groups[1]: [0]}


REFUSED = {
    "frozen": (frozen, "cannot be cut: it is frozen: reaches the model's output"),
    "unsorted": (unsorted, "must be sorted"),
    "repeated": (lambda net: {es.trace(net, X).groups[0]: [1, 1, 2]}, "must be sorted, distinct"),
    "beyond": (lambda net: {es.trace(net, X).groups[0]: [0, 8]}, "below 8"),
    "negative": (lambda net: {es.trace(net, X).groups[0]: [-1, 2]}, "below 8"),
    "empty": (lambda net: {es.trace(net, X).groups[0]: []}, "conv1 would lose all 8 channels"),
    "nothing kept": (lambda net: {es.trace(net, X).groups[0]: torch.zeros(8, dtype=torch.bool)}, "at least one must stay"),
    "short mask": (lambda net: {es.trace(net, X).groups[0]: torch.ones(7, dtype=torch.bool)}, "8 booleans"),
    "floats": (lambda net: {es.trace(net, X).groups[0]: [0.0, 1.0]}, "sorted, distinct channel numbers"),
    "a number": (lambda net: {es.trace(net, X).groups[0]: 3}, "sorted, distinct channel numbers"),
    "stale": (stale, "Trace the model again"),
    "foreign": (foreign, "belongs to another model|does not fit"),
    "two graphs": (two_graphs, "no group of this graph"),
    "names": (lambda net: {"conv1": [0]}, "takes groups of a graph"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_is_refused_and_nothing_changes(name: str):
    make, message = REFUSED[name]
    net = SmallNet()
    keep = make(net)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(EspalierError, match=message) as caught:
        es.cut(net, keep)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


STRANGERS = {
    "optimizer of a copy": ({"optimizer": sgd(SmallNet())}, "SGD holds none of the model's parameters"),
    "one of two": ({"optimizer": [sgd(SmallNet())]}, "SGD holds none"),
    "no optimizer": ({"optimizer": "sgd"}, "Optimizer or a list of them, not str"),
    "one follower": ({"followers": SmallNet()}, r"write followers=\[ema\]"),
    "no model": ({"followers": ["ema"]}, "torch.nn.Module is needed here"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_optimizers_and_followers_of_others_are_refused_and_nothing_changes(name: str):
    options, message = STRANGERS[name]
    net = SmallNet()
    graph = es.trace(net, X)
    before = shapes(net)
    for keep in ({graph.groups[0]: [0, 1]}, {}):
        with pytest.raises(EspalierError, match=message):
            es.cut(net, keep, **options)
    assert shapes(net) == before


def test_a_model_cannot_follow_itself_and_nothing_is_no_choice():
    net = SmallNet()
    graph = es.trace(net, X)
    with pytest.raises(EspalierError, match="shares parameters with the model"):
        es.cut(net, {graph.groups[0]: [0, 1]}, followers=[nn.Sequential(net)])
    with pytest.raises(EspalierError, match="takes a mapping from groups to channels"):
        es.cut(net, None)  # type: ignore[arg-type]
    assert graph.groups[0].size == 8


def test_optimizer_states_that_nobody_knows_are_refused_before_anything_changes():
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["odd"] = torch.zeros(5, 7)

    net = SmallNet()
    optimizer = Odd(net.parameters(), lr=0.1)
    train_step(net, optimizer, 0)
    graph = es.trace(net, X)
    before = shapes(net)
    with pytest.raises(EspalierError):
        es.cut(net, {graph.groups[0]: [0, 1]}, optimizer=optimizer)
    assert shapes(net) == before
    assert graph.groups[0].size == 8
    assert graph.version == 0


# -- what a cut takes along --------------------------------------------------------------------------------------------


def test_indices_masks_arrays_and_tensors_mean_the_same():
    results = []
    for channels in ([0, 2, 5], (0, 2, 5), torch.tensor([0, 2, 5]), torch.tensor([1, 0, 1, 0, 0, 1, 0, 0]).bool()):
        torch.manual_seed(0)
        net = SmallNet()
        es.cut(net, {es.trace(net, X).groups[0]: channels})
        results.append(net.state_dict())
    assert all(torch.equal(one[key], results[0][key]) for one in results for key in one)


def test_keeping_everything_changes_nothing():
    net = SmallNet()
    graph = es.trace(net, X)
    assert es.cut(net, {group: list(range(group.size)) for group in graph.groups}).is_dense
    assert es.cut(net, {}).is_dense
    assert shapes(net) == shapes(SmallNet())


def test_successive_cuts_use_the_same_graph_and_equal_one_cut():
    torch.manual_seed(0)
    once, twice = SmallNet(), SmallNet()
    twice.load_state_dict(once.state_dict())
    graph = es.trace(twice, X)
    first, second = graph.groups
    es.cut(twice, {first: [0, 1, 4, 6, 7]})
    assert (first.size, second.size) == (5, 16)
    es.cut(twice, {first: [1, 2], second: [3, 5, 8]})
    structure = es.cut(twice, {second: [0, 2]})
    assert graph.version == 3
    fresh = es.trace(once, X)
    assert structure == es.cut(once, {fresh.groups[0]: [1, 4], fresh.groups[1]: [3, 8]})
    assert all(torch.equal(tensor, once.state_dict()[key]) for key, tensor in twice.state_dict().items())


def test_optimizer_and_averaged_model_follow():
    net = SmallNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    ema = swa_utils.AveragedModel(net, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
    for step in range(3):
        train_step(net, optimizer, step)
        ema.update_parameters(net)
    graph = es.trace(net, X)
    moments = optimizer.state[net.conv2.weight]["exp_avg"].clone()
    average = ema.module.conv2.weight.clone()
    es.cut(net, {graph.groups[0]: [1, 3, 4], graph.groups[1]: list(range(0, 16, 2))}, optimizer=optimizer, followers=[ema])
    assert torch.equal(optimizer.state[net.conv2.weight]["exp_avg"], moments[::2][:, [1, 3, 4]])
    assert torch.equal(ema.module.conv2.weight, average[::2][:, [1, 3, 4]])
    assert ema.module.conv1.out_channels == 3
    for step in range(3, 6):
        train_step(net, optimizer, step)
        ema.update_parameters(net)
    assert shapes(ema.module) == shapes(net)
    assert ema.module.eval()(X).shape == (1, 4)


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
def test_a_file_of_cut_attention_opens_in_a_fresh_model(fused: bool, tmp_path):
    def build() -> nn.Module:
        return Block(Timm(fused=fused))

    net, x = lively(build()), torch.randn(2, TOKENS, 5)
    graph = es.trace(net, x)
    es.cut(net, {group: list(range(1, group.size)) for group in graph.groups})
    es.save(net, tmp_path / "cut.safetensors")
    loaded = es.load(tmp_path / "cut.safetensors", build()).eval()
    assert torch.equal(loaded(x), net(x))
    assert (loaded.attention.num_heads, loaded.attention.head_dim) == (2, 3)
    assert loaded.attention.scale == net.attention.scale
    again = es.trace(loaded, x)
    assert [(group.name, group.size) for group in again.groups] == [(group.name, group.size) for group in graph.groups]


def test_state_dicts_carry_the_structure_into_a_bound_model():
    net = SmallNet()
    graph = es.trace(net, X)
    structure = es.cut(net, {graph.groups[0]: [0, 3]})
    again = copy.deepcopy(net)
    es.cut(again, {es.trace(again, X).groups[1]: [1, 2, 3]})
    again.load_state_dict(net.state_dict())  # wider than it was
    assert shapes(again) == shapes(net)
    assert es.surgery.structure_of(again) == structure


def test_a_checkpoint_of_a_cut_model_loads_into_a_fresh_one_and_training_goes_on():
    def one_more(net, optimizer):
        train_step(net, optimizer, 3)
        return net.state_dict()

    net = SmallNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    train_step(net, optimizer, 0)
    es.cut(net, {es.trace(net, X).groups[0]: [0, 3, 4]}, optimizer=optimizer)
    saved = io.BytesIO()
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, saved)
    saved.seek(0)
    checkpoint = torch.load(saved, weights_only=True)
    fresh = es.load_state_dict(SmallNet(), checkpoint["model"])
    again = torch.optim.AdamW(fresh.parameters(), lr=0.01)
    again.load_state_dict(checkpoint["optimizer"])
    expected, actual = one_more(net, optimizer), one_more(fresh, again)
    assert all(torch.equal(tensor, actual[key]) for key, tensor in expected.items())


def test_a_forgotten_optimizer_is_refused_and_nothing_changes():
    net = SmallNet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    train_step(net, optimizer, 0)
    group, before = es.trace(net, X).groups[0], shapes(net)
    with pytest.raises(EspalierError, match="SGD holds states"):
        es.cut(net, {group: [0, 3]})
    assert shapes(net) == before
    optimizer.state.clear()
    es.cut(net, {group: [0, 3]})  # without states there is nothing to forget
    train_step(net, optimizer, 1)


class Positions(nn.Module):
    """A table that is no part of the state dict but has the width of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("table", torch.arange(1.0, 9.0), persistent=False)

    def forward(self, x):
        return self.two(self.one(x) + self.table)


def test_buffers_that_are_not_saved_keep_their_values(tmp_path):
    net, x = Positions(), torch.randn(2, 4)
    graph = es.trace(net, x)
    assert [group.size for group in graph.groups] == [8]
    es.cut(net, {graph.groups[0]: [1, 4, 6]})
    assert net.table.tolist() == [2.0, 5.0, 7.0]
    es.save(net, tmp_path / "cut.safetensors")
    loaded = es.load(tmp_path / "cut.safetensors", Positions())
    assert torch.equal(loaded(x), net(x))
    dense = tmp_path / "dense.safetensors"
    es.save(Positions(), dense)
    with pytest.raises(EspalierError, match="table is in no state dict"):
        es.load(dense, net)


# -- masks of a live pruner --------------------------------------------------------------------------------------------


def pruned(net: nn.Module, **kwargs: Any) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = sgd(net)
    return optimizer, es.Pruner(net, optimizer, es.OCP(sparsity=0.75), total_steps=STEPS, **kwargs)


def test_masks_of_a_live_pruner_are_cut_and_the_target_is_met(deterministic):
    net = SmallNet()
    ema = swa_utils.AveragedModel(net)
    optimizer, pruner = pruned(net, followers=[ema])
    for step in range(6):
        train_step(net, optimizer, step)
    graph = es.trace(net, X)
    in_force = pruner.sparsity
    es.cut(net, {graph.groups[0]: [0, 2, 3, 5, 7], graph.groups[1]: list(range(1, 16))})  # its optimizer is known
    assert pruner.run.masks.tensors["conv2.weight"].shape == (15, 5, 3, 3)
    assert pruner.sparsity == pytest.approx(in_force, abs=1e-3)  # of the weights that are left
    assert masked_weights_are_zero(pruner)
    assert shapes(ema.module) == shapes(net)
    for step in range(6, STEPS):
        train_step(net, optimizer, step)
        assert masked_weights_are_zero(pruner)
    report = pruner.finish()
    total = sum(weight.numel() for weight in pruner.run.weights.values())
    zeros = sum(int((weight == 0).sum()) for weight in pruner.run.weights.values())
    assert abs(zeros - 0.75 * total) <= 0.5
    assert report.sparsity == pytest.approx(0.75, abs=0.51 / total)


def test_resuming_from_a_checkpoint_after_a_cut_is_bit_equal(deterministic, tmp_path):
    def start() -> tuple[SmallNet, torch.optim.Optimizer, Any]:
        torch.manual_seed(3)
        net = SmallNet()
        return net, *pruned(net)

    net, optimizer, pruner = start()
    for step in range(8):
        if step == 5:
            graph = es.trace(net, X)
            es.cut(net, {graph.groups[0]: [0, 2, 3, 5, 7], graph.groups[1]: list(range(2, 16))})
        train_step(net, optimizer, step)
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    for step in range(8, STEPS):
        train_step(net, optimizer, step)
    pruner.finish()

    again, second, resumed = start()
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    again.load_state_dict(content["model"])
    second.load_state_dict(content["optimizer"])
    assert shapes(again) == shapes(net)
    for step in range(8, STEPS):
        train_step(again, second, step)
    resumed.finish()
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    x, _ = batch(99)
    assert torch.equal(net.eval()(x), again.eval()(x))
