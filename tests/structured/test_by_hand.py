"""Whoever else changes the model meanwhile: cuts by hand, copies, state dicts of other shapes, Pruners over cut models."""

import copy

import pytest
import torch

import espalier as es
from espalier.surgery import structure_of
from tests.structured.nets import METHODS, STEPS, Training, at, batch, early, loss_of, net

RUNS = ["ocsp", "ocsp-progressive", "ocsp-gradient-penalty", "epi-taylor", "prune-at-half", "train-prune-finetune", "greg"]
RUNS += ["slr-channels", "admm-channels"]


def cut_by_hand(training, name="wide", fewer=4):
    group = es.trace(training.net, batch(0)[0]).group(name)
    es.cut(training.net, {group: list(range(group.size - fewer))})


@pytest.mark.parametrize("key", RUNS)
def test_a_cut_by_hand_in_the_midst_is_taken_into_account(key):
    training = Training(METHODS[key]).train(0, 5)
    early_cuts = len(training.run.made)
    cut_by_hand(training)
    left = training.train(5).finish().shrinkage
    assert left.keep_macs <= 0.5
    assert left.dense_macs == es.cost(es.trace(net(), batch(0)[0])).macs
    assert left.widths["wide"][0] == 32
    assert left.widths["wide"][1] <= 28
    assert len(left.cuts) > early_cuts or not training.run.searching
    assert es.cost(es.trace(training.net, batch(0)[0])).macs == left.macs


def test_a_cut_by_hand_after_the_end_of_the_search():
    training = Training(at(at=0.25)).train(0, 8)
    before = training.run.shrinkage().widths["wide"][1]
    cut_by_hand(training)
    left = training.train(8).finish().shrinkage
    assert left.widths["wide"] == (32, before - 4)
    assert left.macs == es.cost(es.trace(training.net, batch(0)[0])).macs


def test_a_cut_by_hand_is_saved_and_resumed():
    training = Training(METHODS["ocsp"]).train(0, 3)
    cut_by_hand(training)
    training.train(3, 5)
    resumed = Training(METHODS["ocsp"], seed=9).load(training.saved())
    training.train(5)
    resumed.train(5)
    assert all(torch.equal(a, b) for a, b in zip(training.net.parameters(), resumed.net.parameters(), strict=True))


@pytest.mark.parametrize("key", ["ocsp", "epi-taylor", "prune-at-half"])
def test_a_pruner_over_a_cut_model_counts_from_what_it_finds(key):
    model = net()
    graph = es.trace(model, batch(0)[0])
    es.cut(model, {graph.groups[0]: range(12)})
    macs = es.cost(graph).macs
    left = Training(METHODS[key], model=model).train().finish().shrinkage
    assert left.dense_macs == macs
    assert left.keep_macs <= 0.5
    fresh = net()
    es.load_state_dict(fresh, model.state_dict())
    assert torch.equal(fresh.eval()(batch(0)[0]), model.eval()(batch(0)[0]))
    assert structure_of(fresh).integers["stem.out_channels"][0] == 16


@pytest.mark.parametrize("key", ["ocsp", "epi-taylor", "ocsp-gradient-penalty"])
def test_a_copy_in_the_midst_stands_on_its_own(key):
    training = Training(METHODS[key]).train(0, 3)
    twin = copy.deepcopy(training.net)
    weights = [p.detach().clone() for p in twin.parameters()]
    assert training.train(3).finish().shrinkage.keep_macs <= 0.5
    assert all(torch.equal(a, b) for a, b in zip(weights, twin.parameters(), strict=True))
    assert structure_of(twin).is_dense
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    loss_of(twin, batch(0)).backward()
    optimizer.step()
    again = Training(METHODS[key], model=copy.deepcopy(twin)).train()
    assert again.finish().shrinkage.keep_macs <= 0.5


@pytest.mark.parametrize("key", ["ocsp", "epi-taylor", "prune-at-half"])
@pytest.mark.parametrize("moment", [0, 3])
def test_weights_of_a_cut_model_loaded_alone_are_pruned_on(key, moment):
    """A state dict of other shapes without the optimizer's: start weights from a model that was cut before."""
    cut = net(seed=4)
    graph = es.trace(cut, batch(0)[0])
    es.cut(cut, {graph.group("wide"): range(24), graph.group("stem"): range(12)})
    training = Training(METHODS[key]).train(0, moment)
    training.net.load_state_dict(cut.state_dict())
    left = training.train(moment).finish().shrinkage
    assert left.keep_macs <= 0.5
    assert left.macs == es.cost(es.trace(training.net, batch(0)[0])).macs


def test_start_weights_that_are_loaded_after_construction_are_ranked_anew():
    good = net(seed=4)
    one, other = Training(early(start=0.1)), Training(early(start=0.1), model=copy.deepcopy(good))
    one.net.load_state_dict(good.state_dict())
    kept = []
    for training in (one, other):
        training.train(0, 2)
        kept.append([channels.tolist() for channels in training.run.keep.values()])
    assert kept[0] == kept[1]


def test_a_second_training_of_the_same_model_goes_on_from_there():
    first = Training(METHODS["ocsp"]).train()
    model, macs = first.net, first.finish().shrinkage.macs
    del first  # with its optimizer, or the cut would ask for it
    second = Training(at(at=0.5, keep_macs=0.7), model=model).train().finish().shrinkage
    assert second.dense_macs == macs
    assert second.keep_macs <= 0.7


def test_detach_leaves_the_model_as_it_is():
    training = Training(METHODS["ocsp"]).train(0, 3)
    training.pruner.detach()
    training.train(3, STEPS)
    assert structure_of(training.net).is_dense
