"""The load hooks alone, without a Pruner: every checkpoint into every state, by both file kinds, in either order."""

import copy
import gc
import pickle
import weakref

import pytest
import torch

import espalier as es
from espalier.surgery import reshaping, shape_to, structure_of
from tests.helpers.cutting import CutAt, cut_channels
from tests.pruner.conftest import SmallNet, train_step

KEPT = {"dense": None, "cut": [0, 2, 3, 6], "other cut": [1, 2, 5, 6, 7]}
CASES = [(here, there) for here in KEPT for there in KEPT if here != there]


class Shell(torch.nn.Module):
    """Stands for DistributedDataParallel: the same keys with a prefix."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


WRAPS = {"plain": lambda net: net, "module.": Shell, "_orig_mod.": lambda net: torch.compile(net, backend="eager")}


def trained(state, wrap, seed):
    torch.manual_seed(seed)
    net = SmallNet()
    reshaping.install(net)
    optimizer = torch.optim.AdamW(net.parameters())
    reshaping.bind(net, [optimizer], [])
    model = WRAPS[wrap](net)
    train_step(model, optimizer, 0)
    if KEPT[state]:
        cut_channels(net, KEPT[state], optimizers=[optimizer])
    train_step(model, optimizer, 1)
    return net, model, optimizer


@pytest.mark.parametrize("order", ["model first", "optimizer first"])
@pytest.mark.parametrize("kind", ["torch.save", "safetensors"])
@pytest.mark.parametrize("wrap", list(WRAPS))
@pytest.mark.parametrize(("here", "there"), CASES)
def test_the_load_matrix(here, there, wrap, kind, order, tmp_path):
    net, model, optimizer = trained(there, wrap, seed=0)
    if kind == "torch.save":
        torch.save(model.state_dict(), tmp_path / "m")
    else:
        es.save(model, tmp_path / "m")
    torch.save({"state": optimizer.state_dict(), "structure": structure_of(net).to_json()}, tmp_path / "o")
    train_step(model, optimizer, 2)

    mine, shell, rider = trained(here, wrap, seed=7)
    identities = [id(p) for p in mine.parameters()]

    def load_model():
        if kind == "torch.save":
            shell.load_state_dict(torch.load(tmp_path / "m", weights_only=True))
        else:
            es.load(tmp_path / "m", shell)

    def load_optimizer():
        saved = torch.load(tmp_path / "o", weights_only=True)
        shape_to(mine, es.structure.Structure.from_json(saved["structure"]), optimizers=[rider])
        rider.load_state_dict(saved["state"])

    for load in (load_model, load_optimizer) if order == "model first" else (load_optimizer, load_model):
        load()
        for parameter in mine.parameters():
            assert all(v.dim() == 0 or v.shape == parameter.shape for v in rider.state[parameter].values())
    assert [id(p) for p in mine.parameters()] == identities
    assert structure_of(mine) == structure_of(net)
    train_step(shell, rider, 2)
    for (name, a), b in zip(mine.state_dict().items(), net.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def cut_net():
    net = SmallNet()
    reshaping.install(net)
    cut_channels(net, [1, 2])
    return net


def test_installing_twice_is_once_and_can_be_taken_back():
    net = cut_net()
    hooks = len(net._state_dict_hooks)
    reshaping.install(net)
    assert len(net._state_dict_hooks) == hooks
    reshaping.uninstall(net)
    assert reshaping.KEY not in net.state_dict()._metadata[""]
    fresh = SmallNet()
    reshaping.install(fresh)
    with pytest.raises(RuntimeError, match="size mismatch"):
        fresh.load_state_dict(net.state_dict())
    reshaping.install(net)
    fresh.load_state_dict(net.state_dict())
    assert fresh.conv1.out_channels == 2


@pytest.mark.parametrize("again", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_carry_hooks_and_record_but_no_optimizer(again):
    net = cut_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    reshaping.bind(net, [optimizer], [])
    train_step(net, optimizer, 0)
    twin = again(net)
    assert structure_of(twin) == structure_of(net)
    dense = SmallNet()
    reshaping.install(dense)
    twin.load_state_dict(dense.state_dict())
    assert (twin.conv1.out_channels, net.conv1.out_channels) == (8, 2)
    assert optimizer.state[net.conv1.weight]["momentum_buffer"].shape[0] == 2


def test_a_state_dict_whose_tensors_were_exchanged_is_refused_before_anything_changes():
    state = cut_net().state_dict()
    state["conv1.weight"] = torch.zeros(8, 3, 3, 3)
    fresh = SmallNet()
    reshaping.install(fresh)
    before = fresh.conv1.weight.detach().clone()
    with pytest.raises(es.EspalierError, match="exchanged after saving"):
        fresh.load_state_dict(state)
    assert torch.equal(fresh.conv1.weight, before)


def test_an_abandoned_training_is_freed():
    net = SmallNet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = es.Pruner(net, optimizer, CutAt(at=3, width=4), total_steps=9)
    gone = weakref.ref(net)
    del net, optimizer, pruner
    gc.collect()
    assert gone() is None
