"""Optimizer states, followers, masks and memory formats keep up with every change of shape, or nothing changes at all."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

import espalier as es
from espalier.structure import Structure
from espalier.surgery import cut, shape_to, structure_of
from tests.helpers.cutting import cut_channels
from tests.pruner.conftest import SmallNet, train_step

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, fused=True),
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    "rprop": torch.optim.Rprop,
    "asgd": torch.optim.ASGD,
    "adafactor": torch.optim.Adafactor,
}


def trained(name="sgd", channels_last=False):
    net = SmallNet().to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    optimizer = OPTIMIZERS[name](net.parameters())
    train_step(net, optimizer, 0)
    return net, optimizer


def native_shapes(name, net):
    """What the optimizer builds by itself for parameters of these shapes."""
    twin = copy.deepcopy(net)
    optimizer = OPTIMIZERS[name](twin.parameters())
    train_step(twin, optimizer, 0)
    return [{k: tuple(v.shape) for k, v in optimizer.state[p].items() if torch.is_tensor(v)} for p in twin.parameters()]


def shapes(net, optimizer):
    return [{k: tuple(v.shape) for k, v in optimizer.state[p].items() if torch.is_tensor(v)} for p in net.parameters()]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kept", [[1, 2, 6], [5]])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_states_have_native_shapes_after_cut_and_after_widening(name, kept, channels_last):
    net, optimizer = trained(name, channels_last)
    before = {key: value.clone() for key, value in optimizer.state[net.bn1.weight].items() if torch.is_tensor(value)}
    cut_channels(net, kept, optimizers=[optimizer])
    assert shapes(net, optimizer) == native_shapes(name, net)
    for key, value in optimizer.state[net.bn1.weight].items():
        if torch.is_tensor(value):
            assert torch.equal(value, before[key][kept] if before[key].dim() else before[key])
    shape_to(net, Structure(), optimizers=[optimizer])
    assert structure_of(net).is_dense
    assert shapes(net, optimizer) == native_shapes(name, net)
    for parameter in net.parameters():
        for value in optimizer.state[parameter].values():
            assert not torch.is_tensor(value) or value.shape != parameter.shape or value.stride() == parameter.stride()
    assert not channels_last or net.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    train_step(net, optimizer, 1)


def test_adafactor_with_one_row_left_of_a_linear():
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    optimizer = torch.optim.Adafactor(net.parameters())
    net(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    row = optimizer.state[net[0].weight]["row_var"][[5]].clone()
    cut(net, {("0.weight", 0): [5], ("0.bias", 0): [5], ("1.weight", 1): [5]}, optimizers=[optimizer])
    assert torch.equal(optimizer.state[net[0].weight]["row_var"], row)
    assert optimizer.state[net[0].weight]["col_var"].shape == (1, 4)


def test_the_factored_states_of_timm_and_transformers():
    net = SmallNet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    row, column = torch.rand(16, 8, 3), torch.rand(16, 8, 3)
    optimizer.state[net.conv2.weight].update(exp_avg_sq_row=row, exp_avg_sq_col=column)
    cut_channels(net, [1, 6], optimizers=[optimizer])
    assert torch.equal(optimizer.state[net.conv2.weight]["exp_avg_sq_row"], row[:, [1, 6]])
    assert torch.equal(optimizer.state[net.conv2.weight]["exp_avg_sq_col"], column[:, [1, 6]])


def cut_two(net, optimizers):
    cut_channels(net, [1, 2], optimizers=optimizers)


def shape_to_two(net, optimizers):
    other = SmallNet()
    shape_to(net, cut_channels(other, [1, 2]), optimizers=optimizers)


class Pretender(torch.Tensor):
    """As quantised optimizers keep: the shape and dtype of a moment, another content."""


@pytest.mark.parametrize(
    "state",
    [
        [torch.eye(8)],
        {"q": torch.eye(8)},
        torch.zeros(8, 3, 3, 3, dtype=torch.uint8),
        torch.zeros(8, 8),
        torch.zeros(8, 3, 3, 3).as_subclass(Pretender),
        torch.zeros(8, 3, 3, 3).to_sparse(),
    ],
    ids=["list", "dict", "codes", "preconditioner", "subclass", "sparse"],
)
@pytest.mark.parametrize("change", [cut_two, shape_to_two])
def test_unknown_states_are_refused_before_anything_changes(state, change):
    net, optimizer = trained()
    optimizer.state[net.conv1.weight]["odd"] = state
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(es.EspalierError, match="state 'odd' of SGD"):
        change(net, [optimizer])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert structure_of(net).is_dense


def test_a_preconditioner_of_a_square_weight_is_not_taken_for_a_moment():
    net = nn.Sequential(nn.Linear(6, 6))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(2, 6)).sum().backward()
    optimizer.step()
    cut(net, {("0.weight", 0): [0, 1, 2, 3, 4]}, optimizers=[optimizer])
    shape_to(net, Structure(), optimizers=[optimizer])
    optimizer.state[net[0].weight]["precond_0"] = torch.eye(6)
    with pytest.raises(es.EspalierError, match="precond_0"):
        cut(net, {("0.weight", 0): [0, 1]}, optimizers=[optimizer])


def test_wrapped_followers_are_cut_and_widened_along():
    net = SmallNet()
    ema = swa_utils.AveragedModel(net)
    cut_channels(net, [1, 2], followers=[ema])
    assert ema.module.conv1.out_channels == 2
    ema.update_parameters(net)
    shape_to(net, Structure(), followers=[ema])
    assert ema.module.conv1.weight.shape[0] == ema.module.conv1.out_channels == 8


def stranger(net):
    return SmallNet(width=4)


def cut_elsewhere(net):
    other = copy.deepcopy(net)
    cut_channels(other, [0, 1, 2])
    return other


@pytest.mark.parametrize("make", [stranger, cut_elsewhere])
def test_followers_of_other_shapes_are_refused_before_anything_changes(make):
    net = SmallNet()
    with pytest.raises(es.EspalierError, match="follower SmallNet"):
        cut_channels(net, [1, 2], followers=[make(net)])
    assert net.conv1.weight.shape[0] == 8


def test_masks_of_other_shapes_are_refused_before_anything_changes():
    net = SmallNet()
    masks = {"conv1.weight": torch.ones(8, 3, 3, 3), "conv2.weight": torch.ones(2, 2)}
    with pytest.raises(es.EspalierError, match=r"mask of conv2\.weight"):
        cut_channels(net, [1, 2], companions=[masks])
    assert net.conv1.weight.shape[0] == masks["conv1.weight"].shape[0] == 8


def test_a_shared_tensor_is_cut_under_all_its_names():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    with pytest.raises(es.EspalierError, match="are one tensor"):
        cut(net, {("0.weight", 0): [0, 1], ("1.weight", 0): [2, 3]})
    structure = cut(net, {("0.weight", 0): [0, 1]})
    assert structure.kept["1.weight", 0] == (0, 1)
    assert net[1].weight is net[0].weight


@pytest.mark.parametrize(
    ("module", "memory_format"),
    [
        (nn.Conv2d(8, 16, 3), torch.channels_last),
        (nn.Conv2d(8, 16, 1), torch.channels_last),
        (nn.Conv3d(8, 16, 3), torch.channels_last_3d),
    ],
)
def test_memory_formats_survive_a_single_channel_and_back(module, memory_format):
    net = nn.Sequential(module).to(memory_format=memory_format)
    cut(net, {("0.weight", 1): [3]}, integers={"0.in_channels": 1})
    shape_to(net, Structure())
    assert net[0].weight.is_contiguous(memory_format=memory_format)


def test_hooks_on_parameters_survive():
    net, optimizer = trained()
    seen = []
    net.conv1.weight.register_hook(lambda gradient: seen.append(("hook", gradient.shape[0])))
    net.conv1.weight.register_post_accumulate_grad_hook(lambda p: seen.append(("after", p.grad.shape[0])))
    train_step(net, optimizer, 1)
    cut_channels(net, [1, 2], optimizers=[optimizer])
    train_step(net, optimizer, 2)
    assert seen == [("hook", 8), ("after", 8), ("hook", 2), ("after", 2)]


@pytest.mark.parametrize(
    "structure",
    [
        Structure({"conv1.weight": (9, 3, 3, 3)}, {("conv1.weight", 0): (0,)}),
        Structure({"conv9.weight": (8, 3, 3, 3)}, {("conv9.weight", 0): (0,)}),
        Structure(integers={"conv1.out_channels": (64, 3)}),
        Structure(integers={"conv1.nothing": (8, 3)}),
    ],
)
def test_records_of_other_models_are_refused_before_anything_changes(structure):
    net, optimizer = trained()
    with pytest.raises(es.EspalierError, match=r"belongs to another model|no integer"):
        shape_to(net, structure, optimizers=[optimizer])
    assert net.conv1.out_channels == net.conv1.weight.shape[0] == 8
