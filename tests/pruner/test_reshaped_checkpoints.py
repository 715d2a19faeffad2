"""Checkpoints whose shapes differ from the model's: narrower, wider or cut elsewhere, in either order of loading."""

import copy

import pytest
import torch
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torch.optim import swa_utils

import espalier as es
from espalier.surgery import structure_of
from tests.helpers.cutting import CutAt, cut_channels
from tests.pruner.conftest import SmallNet, train_step

STEPS = 8
METHOD = CutAt(at=3, width=6, again=5, narrower=4)
MOMENTS = {"dense": 2, "cut": 4, "narrower": 6}
WIDTHS = {"dense": 8, "cut": 6, "narrower": 4}
CASES = [("dense", "cut"), ("cut", "dense"), ("cut", "narrower"), ("narrower", "cut"), ("dense", "narrower")]


class Wrapper(torch.nn.Module):
    """Stands for DistributedDataParallel: the same keys with a prefix."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


WRAPS = {
    "plain": lambda net: net,
    "module.": Wrapper,
    "_orig_mod.": lambda net: torch.compile(net, backend="eager"),
}


def start(wrap, seed=0):
    torch.manual_seed(seed)
    net = SmallNet()
    model = WRAPS[wrap](net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    return net, model, optimizer, es.Pruner(model, optimizer, METHOD, total_steps=STEPS)


def train(model, optimizer, first, last):
    for step in range(first, last):
        train_step(model, optimizer, step)


@pytest.mark.parametrize("order", ["model first", "optimizer first"])
@pytest.mark.parametrize("wrap", list(WRAPS))
@pytest.mark.parametrize(("here", "there"), CASES)
def test_every_checkpoint_loads_into_every_state_and_goes_on_bit_equal(here, there, wrap, order, tmp_path):
    net, model, optimizer, _ = start(wrap)
    train(model, optimizer, 0, MOMENTS[there])
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt")
    train(model, optimizer, MOMENTS[there], STEPS)

    other, shell, rider, pruner = start(wrap, seed=7)
    train(shell, rider, 0, MOMENTS[here])
    assert other.conv1.out_channels == WIDTHS[here]
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    loads = [lambda: shell.load_state_dict(saved["model"]), lambda: rider.load_state_dict(saved["optimizer"])]
    for load in loads if order == "model first" else reversed(loads):
        load()
    assert other.conv1.out_channels == other.conv1.weight.shape[0] == WIDTHS[there]
    assert pruner.step == MOMENTS[there]
    train(shell, rider, MOMENTS[there], STEPS)
    for (name, mine), theirs in zip(other.state_dict().items(), net.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    assert structure_of(other) == structure_of(net)


@pytest.mark.parametrize(("here", "there"), CASES)
def test_prefixed_keys_load_into_a_plain_model_once_the_prefix_is_consumed(here, there):
    _, model, optimizer, _ = start("module.")
    train(model, optimizer, 0, MOMENTS[there])
    state = model.state_dict()
    consume_prefix_in_state_dict_if_present(state, "module.")
    net, shell, rider, _ = start("plain", seed=7)
    train(shell, rider, 0, MOMENTS[here])
    net.load_state_dict(state)
    assert net.conv1.out_channels == WIDTHS[there]


@pytest.mark.parametrize("order", ["model first", "optimizer first"])
@pytest.mark.parametrize("wrap", list(WRAPS))
@pytest.mark.parametrize(("here", "there"), [*CASES, ("dense", "dense"), ("cut", "cut")])
def test_safetensors_files_restore_the_model_beside_the_optimizer(here, there, wrap, order, tmp_path):
    net, model, optimizer, _ = start(wrap)
    train(model, optimizer, 0, MOMENTS[there])
    es.save(model, tmp_path / "m.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    train(model, optimizer, MOMENTS[there], STEPS)

    other, shell, rider, _ = start(wrap, seed=7)
    train(shell, rider, 0, MOMENTS[here])
    loads = [
        lambda: es.load(tmp_path / "m.safetensors", shell),
        lambda: rider.load_state_dict(torch.load(tmp_path / "o.pt", weights_only=True)),
    ]
    for load in loads if order == "model first" else reversed(loads):
        load()
    train(shell, rider, MOMENTS[there], STEPS)
    for (name, mine), theirs in zip(other.state_dict().items(), net.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_the_explicit_state_serves_where_the_optimizers_is_rebuilt():
    net, model, optimizer, pruner = start("plain")
    train(model, optimizer, 0, 4)
    saved = copy.deepcopy({"model": net.state_dict(), "pruner": pruner.state_dict()})
    states = copy.deepcopy({k: v for k, v in optimizer.state_dict().items() if k != "espalier"})
    train(model, optimizer, 4, STEPS)
    other, shell, rider, again = start("plain", seed=7)
    again.load_state_dict(saved["pruner"])
    other.load_state_dict(saved["model"])
    rider.load_state_dict({**states, "espalier": saved["pruner"]})
    train(shell, rider, 4, STEPS)
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), net.state_dict().values(), strict=True))


def test_an_average_is_cut_along_and_restored():
    net, model, optimizer, pruner = start("plain")
    pruner.detach()
    ema = swa_utils.AveragedModel(net)
    es.Pruner(net, optimizer, METHOD, total_steps=STEPS, followers=[ema])
    for step in range(4):
        train_step(model, optimizer, step)
        ema.update_parameters(net)
    assert ema.module.conv1.out_channels == 6
    state = copy.deepcopy(ema.state_dict())
    state._metadata = ema.state_dict()._metadata
    fresh_net, _, fresh_optimizer, fresh = start("plain", seed=7)
    fresh.detach()
    fresh_ema = swa_utils.AveragedModel(fresh_net)
    es.Pruner(fresh_net, fresh_optimizer, METHOD, total_steps=STEPS, followers=[fresh_ema])
    fresh_ema.load_state_dict(state)
    assert torch.equal(fresh_ema.module.conv1.weight, ema.module.conv1.weight)


def test_without_a_record_torchs_own_error_stands():
    net, model, optimizer, _ = start("plain")
    train(model, optimizer, 0, 4)
    with pytest.raises(RuntimeError, match="size mismatch"):
        net.load_state_dict(dict(SmallNet().state_dict()))


def test_a_record_of_another_model_is_refused():
    net, model, optimizer, _ = start("plain")
    train(model, optimizer, 0, 4)
    wide = SmallNet(width=16)
    es.Pruner(wide, torch.optim.SGD(wide.parameters(), lr=0.1), METHOD, total_steps=STEPS)
    with pytest.raises(es.EspalierError, match="belongs to another model"):
        wide.load_state_dict(net.state_dict())


def test_a_copy_of_the_model_is_on_its_own():
    net, _, _, pruner = start("plain")
    twin = copy.deepcopy(net)
    cut_channels(twin, [0, 1])
    state = twin.state_dict()
    net.load_state_dict(state)
    assert net.conv1.out_channels == 2
    assert pruner.step == 0
