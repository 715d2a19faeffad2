"""A cut in the ordinary loop: the parameters stay the same objects and training goes on as if nothing had happened."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

import espalier as es
from espalier.surgery import cut, structure_of
from tests.helpers.cutting import cut_channels, integers, members
from tests.pruner.conftest import SmallNet, batch

KEPT = [0, 2, 3, 6, 7]
DEAD = [1, 4, 5]
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01}),
}


def kill_channels(net):
    """Weights, norms and consumers of the dead channels are zero, and so is every gradient from then on."""
    with torch.no_grad():
        for tensor in (net.conv1.weight, net.bn1.weight, net.bn1.bias, net.bn1.running_mean):
            tensor[DEAD] = 0
        net.conv2.weight[:, DEAD] = 0


def step(net, optimizer, number, scaler=None):
    x, y = batch(number)
    loss = nn.functional.cross_entropy(net(x), y)
    (loss if scaler is None else scaler.scale(loss)).backward()
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad()
    return loss


@pytest.mark.parametrize("loss_kept", [True, False])
@pytest.mark.parametrize("kind", ["foreach", "fused", "plain"])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("with_scaler", [False, True])
def test_cutting_dead_channels_changes_nothing_in_the_next_five_steps(name, kind, channels_last, loss_kept, with_scaler):
    torch.manual_seed(0)  # smooth activations: at the kink of a ReLU the last bit of a sum decides about a whole gradient
    dense = SmallNet(act=nn.functional.silu).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    kill_channels(dense)
    small = copy.deepcopy(dense)
    make, kwargs = OPTIMIZERS[name]
    flag = {} if kind == "plain" else {kind: True}
    optimizers = [make(net.parameters(), **kwargs, **flag) for net in (dense, small)]
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0) if with_scaler else None for _ in range(2)]
    identities = [id(p) for p in small.parameters()]
    calls = []
    small.conv1.weight.register_hook(lambda g: calls.append(g.shape))
    losses = [step(net, opt, n, s) for n in range(2) for net, opt, s in zip((dense, small), optimizers, scalers, strict=True)]
    if not loss_kept:
        del losses
        gc.collect()
    cut_channels(small, KEPT, optimizers=[optimizers[1]])
    assert [id(p) for p in small.parameters()] == identities
    for state, p in ((optimizers[1].state[p], p) for p in small.parameters()):
        for value in state.values():
            assert value.numel() == 1 or value.stride() == p.stride()
    for number in range(2, 7):
        for net, opt, scaler in zip((dense, small), optimizers, scalers, strict=True):
            step(net, opt, number, scaler)
    assert len(calls) == 7
    assert calls[-1][0] == len(KEPT)
    torch.testing.assert_close(dense.conv1.weight[KEPT], small.conv1.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(dense.conv2.weight[:, KEPT], small.conv2.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(dense.head.weight, small.head.weight, rtol=1e-4, atol=1e-6)
    assert small.conv1.weight.is_contiguous(memory_format=torch.channels_last) == channels_last or not channels_last


def test_followers_masks_and_integers_are_cut_along():
    net = SmallNet()
    ema = swa_utils.AveragedModel(net)
    masks = {"conv1.weight": torch.ones_like(net.conv1.weight), "conv2.weight": torch.ones_like(net.conv2.weight)}
    structure = cut_channels(net, KEPT, followers=[ema.module], masks=masks)
    assert masks["conv1.weight"].shape[0] == masks["conv2.weight"].shape[1] == 5
    assert (net.conv1.out_channels, ema.module.conv2.in_channels) == (5, 5)
    ema.update_parameters(net)
    assert structure == structure_of(net) == structure_of(ema.module) == structure_of(copy.deepcopy(net))
    assert structure.kept["conv2.weight", 1] == (0, 2, 3, 6, 7)


def test_cuts_follow_one_another_relative_to_the_original():
    net = SmallNet()
    cut_channels(net, KEPT)
    structure = cut_channels(net, [1, 4])
    assert structure.kept["conv1.weight", 0] == (2, 7)
    assert structure.integers["conv1.out_channels"] == (8, 2)
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 4)


def test_a_cut_model_equals_one_built_narrow():
    net = SmallNet(width=8).eval()
    cut_channels(net, KEPT)
    narrow = SmallNet(width=5)
    narrow.conv2, narrow.bn2, narrow.head = nn.Conv2d(5, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Linear(16, 4)
    narrow.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(narrow.eval()(x), net(x))


def test_lbfgs_starts_its_history_over():
    net = SmallNet()
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        x, y = batch(0)
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    cut_channels(net, KEPT, optimizers=[optimizer])
    optimizer.step(closure)


def test_adafactor_rows_and_columns_are_cut():
    net = SmallNet()
    optimizer = torch.optim.Adafactor(net.parameters())
    step(net, optimizer, 0)
    cut_channels(net, KEPT, optimizers=[optimizer])
    step(net, optimizer, 1)


@pytest.mark.parametrize(
    ("keep", "rewrite", "words"),
    [
        ({("conv9.weight", 0): [0]}, {}, "no parameter or buffer 'conv9.weight'"),
        ({("conv1.weight", 4): [0]}, {}, "no dimension 4"),
        ({("conv1.weight", 0): [3, 1]}, {}, "sorted, distinct"),
        ({("conv1.weight", 0): [8]}, {}, "below 8"),
        ({("conv1.weight", 0): []}, {}, "not empty"),
        (members(KEPT), {"conv1.channels": 5}, "no integer 'conv1.channels'"),
    ],
)
def test_a_cut_that_does_not_fit_changes_nothing(keep, rewrite, words):
    net = SmallNet()
    with pytest.raises(es.EspalierError, match=words):
        cut(net, keep, integers=rewrite)
    assert net.conv1.weight.shape[0] == 8
    assert structure_of(net).is_dense


def test_an_unknown_optimizer_state_is_refused_before_anything_changes():
    net = SmallNet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.state[net.conv1.weight]["codes"] = torch.zeros(99, dtype=torch.uint8)
    with pytest.raises(es.EspalierError, match="state 'codes' of SGD"):
        cut(net, members(KEPT), integers=integers(5), optimizers=[optimizer])
    assert net.conv1.weight.shape[0] == 8
