"""What every method that cuts channels promises, over every method. A new method joins by one row in ``METHODS``."""

import copy
import io
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import espalier as es
from espalier.cost.search import fast_step
from tests.structured.nets import METHODS, STEPS, Training, batch, differences, net

methods = pytest.mark.parametrize("key", list(METHODS))
BEFORE_TRAINING = ("prune-at-0", "force", "snip")


def limits(method, graph):
    """(what an es.cost has, most of it) for each budget of a method on the dense graph."""
    whole = es.cost(graph)
    found = [(unit, getattr(method, f"keep_{unit}") * getattr(whole, unit)) for unit in ("macs", "params")
             if getattr(method, f"keep_{unit}") is not None]
    return found


def free_steps(method, graph, widths):
    """Group -> by how many channels it could be wider: one multiple more, or whole."""
    for group in graph.groups:
        step = method.round_to or fast_step(group.size)
        if widths[group] < group.size:
            yield group, min(group.size, widths[group] // step * step + step)


@methods
def test_trains_meets_its_budget_and_leaves_a_plain_small_module(key):
    method = METHODS[key]
    training = Training(method)
    names = list(training.net.state_dict())
    graph = es.trace(net(), batch(0)[0])
    training.train()
    report = training.finish()
    left = report.shrinkage

    widths = {group: left.widths[group.name][1] for group in graph.groups}
    assert {name: pair[0] for name, pair in left.widths.items()} == {group.name: group.size for group in graph.groups}
    expected = es.cost(graph, widths)
    assert (left.dense_macs, left.dense_params) == (es.cost(graph).macs, es.cost(graph).params)
    assert (left.macs, left.params) == (expected.macs, expected.params)
    assert left.params == sum(p.numel() for p in training.net.parameters())
    again = es.cost(es.trace(training.net, batch(0)[0]))
    assert (again.macs, again.params) == (left.macs, left.params)
    with FlopCounterMode(display=False) as counter:
        assert training.net.eval()(batch(0)[0]).shape == (8, 4)
    assert counter.get_total_flops() == 2 * left.macs

    for unit, most in limits(method, graph):
        assert getattr(expected, unit) <= most
        for group, wider in free_steps(method, graph, widths):
            if not getattr(method, "progressive", 0):
                assert getattr(es.cost(graph, {**widths, group: wider}), unit) > most, group
    if method.prune_channels is not None:
        total, kept = sum(group.size for group in graph.groups), sum(widths.values())
        assert 0 <= total - round(method.prune_channels * total) - kept < 8
    for group, width in widths.items():
        step = method.round_to or fast_step(group.size)
        assert width == group.size or width % step == 0
        assert width >= max(math.ceil(group.size / 16), group.size - int(group.size * method.max_ratio))

    assert list(training.net.state_dict()) == names
    assert not training.net._forward_hooks
    assert not training.net._forward_pre_hooks
    copy.deepcopy(training.net)
    assert "espalier" not in training.optimizer.state_dict()


@methods
def test_reports_what_happened(key):
    method = METHODS[key]
    training = Training(method)
    stages = [training.pruner.stats()]
    training.train(each=lambda step: stages.append(training.pruner.stats()))
    stages.append(training.pruner.stats())
    report = training.finish()
    left = report.shrinkage
    assert stages[0]["keep_macs"] == (1.0 if key not in BEFORE_TRAINING else left.keep_macs)
    assert stages[-1]["keep_macs"] == left.keep_macs == left.macs / left.dense_macs < 1
    assert stages[-1]["keep_params"] == left.keep_params < 1
    for stats in stages:
        assert stats["sparsity"] == 0
    scores = [check.score for check in left.checks]
    known = [score for score in scores if score is not None]
    assert stages[-1].get("stability") == (known[-1] if known else None)
    assert all(0 <= score <= 1 for score in known)
    assert all(check.similarity is None or 0 <= check.similarity <= 1 for check in left.checks)
    steps = [check.step for check in left.checks]
    assert steps == sorted(set(steps))

    assert left.cuts, "a training that ends dense says so"
    assert left.cuts[-1].macs == left.macs
    assert all(cut.reason == "faded" for cut in left.cuts[:-1])
    assert left.cuts[-1].reason in ("stable", "latest", "planned", "start")
    assert len(left.cuts) <= getattr(method, "progressive", 0) + 1
    text = report.summary()
    assert f"{left.keep_macs:.2%} of the MACs" in text
    assert all(f"cut after step {cut.step} ({cut.reason})" in text for cut in left.cuts)
    assert all((f"{now:>5} of {before} channels" in text) for before, now in left.widths.values() if now < before)


def moments(training):
    """The interesting steps of a training that is over, for a resume."""
    cuts = [cut.step for cut in training.run.made]
    began = getattr(training.run, "began", None) or 0
    wanted = {0, 1, began, began + 1, *(cut + d for cut in cuts for d in (-1, 0, 1)), cuts[-1] // 2, STEPS - 1}
    return sorted(step for step in wanted if 0 <= step < STEPS)


@methods
@pytest.mark.parametrize(("optimizer", "order"), [("sgd", "model first"), ("adamw-fused", "optimizer first")])
def test_resumes_bit_equal_around_every_moment(key, optimizer, order):
    reference, files = Training(METHODS[key], optimizer), []
    reference.train(each=lambda step: files.append(reference.saved()))
    files.append(reference.saved())
    last = reference.run.made[-1].step
    for stop in moments(reference):
        resumed = Training(METHODS[key], optimizer, seed=99).load(files[stop], order)
        assert resumed.pruner.step == stop
        end = min(STEPS, max(stop + 2, last + 1))
        resumed.train(stop, end)
        mine, theirs = (torch.load(io.BytesIO(file), weights_only=True) for file in (resumed.saved(), files[end]))
        assert differences(mine, theirs) == [], stop
    fresh = reference.finish().shrinkage
    resumed.train(end, STEPS)
    assert resumed.finish().shrinkage == fresh


@methods
def test_a_dense_checkpoint_rewinds_a_cut_training(key):
    training, files = Training(METHODS[key]), []
    training.train(each=lambda step: files.append(training.saved()))
    end = training.saved()
    for stop, order in ((1, "model first"), (0, "optimizer first")):
        training.load(files[stop], order)
        assert training.pruner.step == stop
        training.train(stop)
        assert differences(*(torch.load(io.BytesIO(file), weights_only=True) for file in (training.saved(), end))) == []
    training.finish()


@methods
def test_the_explicit_state_does_the_same(key):
    reference = Training(METHODS[key])
    cut = [c.step for c in reference.train().run.made][-1]
    for stop in {max(cut - 1, 0), min(cut, STEPS - 1)}:
        one, other = Training(METHODS[key]).train(0, stop), Training(METHODS[key], seed=5)
        saved = copy.deepcopy({"pruner": one.pruner.state_dict(), "optimizer": one.optimizer.state_dict()})
        model = one.net.state_dict()
        del saved["optimizer"]["espalier"]
        other.pruner.load_state_dict(saved["pruner"])
        other.net.load_state_dict(model)
        other.optimizer.load_state_dict(saved["optimizer"])
        other.train(stop)
        assert differences(other.net.state_dict(), reference.net.state_dict()) == []


@methods
def test_a_run_that_ends_early_is_refused_or_cut_on_request(key):
    training = Training(METHODS[key]).train(0, 1)
    with pytest.raises(es.EspalierError, match="stopped after 1 of 16 steps"):
        training.finish()
    report = training.finish(allow_early=True)
    for unit, most in limits(METHODS[key], es.trace(net(), batch(0)[0])):
        assert getattr(report.shrinkage, unit) <= most
    assert report.shrinkage.cuts[-1].reason == ("start" if key in BEFORE_TRAINING else "finish")
