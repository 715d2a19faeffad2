"""What a cut takes along (followers, masks, integers, records, gradients) and what it refuses; test_cut_table.py trains on."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

import espalier as es
from espalier.surgery import cut, structure_of
from tests.helpers.cutting import cut_channels, integers, members
from tests.pruner.conftest import SmallNet, batch, train_step

KEPT = [0, 2, 3, 6, 7]


def test_followers_masks_and_integers_are_cut_along():
    net = SmallNet()
    ema = swa_utils.AveragedModel(net)
    masks = {"conv1.weight": torch.ones_like(net.conv1.weight), "conv2.weight": torch.ones_like(net.conv2.weight)}
    structure = cut_channels(net, KEPT, followers=[ema.module], companions=[masks])
    assert masks["conv1.weight"].shape[0] == masks["conv2.weight"].shape[1] == 5
    assert (net.conv1.out_channels, ema.module.conv2.in_channels) == (5, 5)
    ema.update_parameters(net)
    assert structure == structure_of(net) == structure_of(ema.module) == structure_of(copy.deepcopy(net))
    assert structure.kept["conv2.weight", 1] == (0, 2, 3, 6, 7)


def test_gradients_are_cut_along():
    net = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 2)).to(torch.float64)
    net(torch.tensor([1, 1, 7])).sum().backward()
    before = [p.grad.clone() for p in net.parameters()]
    cut(net, {("0.weight", 1): [0, 3], ("1.weight", 1): [0, 3]}, integers={"0.embedding_dim": 2, "1.in_features": 2})
    assert torch.equal(net[0].weight.grad.to_dense(), before[0].to_dense()[:, [0, 3]])
    assert torch.equal(net[1].weight.grad, before[1][:, [0, 3]])
    net(torch.tensor([2])).sum().backward()
    assert net[0].weight.grad.to_dense()[[1, 2, 7]].all()


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
    train_step(net, optimizer, 0)
    cut_channels(net, KEPT, optimizers=[optimizer])
    train_step(net, optimizer, 1)


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
