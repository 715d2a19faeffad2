"""What every method that cuts channels promises, over every method. A new method joins by one row in ``METHODS``."""

import copy
import functools
import io
import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import espalier as es
from espalier.cost.search import fast_step
from tests.structured.nets import METHODS, STEPS, Training, batch, differences, net

methods = pytest.mark.parametrize("key", list(METHODS))
BEFORE_TRAINING = ("prune-at-0", "force", "snip")


@functools.cache
def finished(key):
    """One whole training: checkpoints and statistics before each step and after the last, and the report."""
    torch.manual_seed(0)
    training, files, stages = Training(METHODS[key]), [], []

    def note(step):
        files.append(training.saved())
        stages.append(training.pruner.stats())

    training.train(each=note)
    note(STEPS)
    return SimpleNamespace(run=training.run, files=files, stages=stages, report=training.finish(), training=training)


def read(file):
    return torch.load(io.BytesIO(file), weights_only=True)


def limits(method, graph):
    """(unit, most of it) for each budget of a method on the dense graph."""
    whole = es.cost(graph)
    shares = {unit: getattr(method, f"keep_{unit}") for unit in ("macs", "params")}
    return [(unit, share * getattr(whole, unit)) for unit, share in shares.items() if share is not None]


def wider(method, graph, widths):
    """Group -> the next width above its own: one multiple more, or whole."""
    for group in graph.groups:
        step = method.round_to or fast_step(group.size)
        if widths[group] < group.size:
            yield group, min(group.size, widths[group] // step * step + step)


@methods
def test_trains_meets_its_budget_and_leaves_a_plain_small_module(key):
    method, done = METHODS[key], finished(key)
    model, left = done.training.net, done.report.shrinkage
    dense = net()
    graph = es.trace(dense, batch(0)[0])
    assert {name: pair[0] for name, pair in left.widths.items()} == {group.name: group.size for group in graph.groups}
    widths = {group: left.widths[group.name][1] for group in graph.groups}
    expected = es.cost(graph, widths)
    assert (left.dense_macs, left.dense_params) == (es.cost(graph).macs, es.cost(graph).params)
    assert (left.macs, left.params) == (expected.macs, expected.params)
    assert left.params == sum(p.numel() for p in model.parameters())
    again = es.cost(es.trace(model, batch(0)[0]))
    assert (again.macs, again.params) == (left.macs, left.params)
    with FlopCounterMode(display=False) as counter:
        assert model.eval()(batch(0)[0]).shape == (8, 4)
    assert counter.get_total_flops() == 2 * left.macs

    for unit, most in limits(method, graph):
        assert getattr(expected, unit) <= most
        for group, width in wider(method, graph, widths):
            if not getattr(method, "progressive", 0):
                assert getattr(es.cost(graph, {**widths, group: width}), unit) > most, group
    if method.prune_channels is not None:
        total, kept = sum(group.size for group in graph.groups), sum(widths.values())
        assert 0 <= total - round(method.prune_channels * total) - kept < 8
    for group, width in widths.items():
        step = method.round_to or fast_step(group.size)
        assert width == group.size or width % step == 0
        assert width >= max(math.ceil(group.size / 16), group.size - int(group.size * method.max_ratio))

    assert list(model.state_dict()) == list(dense.state_dict())
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    copy.deepcopy(model)
    assert "espalier" not in done.training.optimizer.state_dict()


@methods
def test_reports_what_happened(key):
    method, done = METHODS[key], finished(key)
    stages, left = done.stages, done.report.shrinkage
    assert stages[0]["keep_macs"] == (1.0 if key not in BEFORE_TRAINING else left.keep_macs)
    assert stages[-1]["keep_macs"] == left.keep_macs == left.macs / left.dense_macs < 1
    assert stages[-1]["keep_params"] == left.keep_params < 1
    assert all(stats["sparsity"] == 0 for stats in stages)
    known = [check.score for check in left.checks if check.score is not None]
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
    text = done.report.summary()
    assert f"{left.keep_macs:.2%} of the MACs" in text
    assert all(f"cut after step {cut.step} ({cut.reason})" in text for cut in left.cuts)
    assert all((f"{now:>5} of {before} channels" in text) for before, now in left.widths.values() if now < before)


@methods
def test_resumes_bit_equal_around_every_moment(key):
    done = finished(key)
    cuts, began = [cut.step for cut in done.run.made], getattr(done.run, "began", None) or 1
    moments = {0, began, began + 1, cuts[0] - 1, cuts[0], cuts[-1] - 1, cuts[-1], cuts[-1] + 1, STEPS - 1}
    for stop in sorted(moment for moment in moments if 0 <= moment < STEPS):
        resumed = Training(METHODS[key], seed=99).load(done.files[stop])
        assert resumed.pruner.step == stop
        end = min(STEPS, cuts[-1] + 1 if stop == began + 1 < cuts[-1] else stop + 2)
        resumed.train(stop, end)
        assert differences(read(resumed.saved()), read(done.files[end])) == [], stop
    assert resumed.train(end).finish().shrinkage == done.report.shrinkage


@methods
def test_resumes_bit_equal_under_adamw_with_the_optimizer_loaded_first(key):
    last = finished(key).run.made[-1].step
    stop, end = max(last - 1, 0), min(last + 1, STEPS)
    one = Training(METHODS[key], "adamw-fused").train(0, stop)
    file = one.saved()
    one.train(stop, end)
    other = Training(METHODS[key], "adamw-fused", seed=99).load(file, "optimizer first").train(stop, end)
    assert differences(read(one.saved()), read(other.saved())) == []


@methods
def test_a_cut_checkpoint_loads_and_a_dense_one_rewinds_it(key):
    done = finished(key)
    training = Training(METHODS[key], seed=99).load(done.files[-1])
    assert differences(read(training.saved()), read(done.files[-1])) == []
    last = done.run.made[-1].step
    for stop, order in ((1, "optimizer first"), (max(last - 1, 0), "model first")):
        training.load(done.files[stop], order)
        assert training.pruner.step == stop
        end = min(STEPS, max(stop, last) + 1)
        training.train(stop, end)
        assert differences(read(training.saved()), read(done.files[end])) == []


@methods
def test_the_explicit_state_does_the_same(key):
    done = finished(key)
    last = done.run.made[-1].step
    for stop in {max(last - 1, 0), min(last, STEPS - 1)}:
        saved = read(done.files[stop])
        training = Training(METHODS[key], seed=5)
        training.pruner.load_state_dict(saved["optimizer"].pop("espalier"))
        training.net.load_state_dict(saved["model"])
        training.optimizer.load_state_dict(saved["optimizer"])
        training.train(stop, stop + 1)
        assert differences(read(training.saved()), read(done.files[stop + 1])) == []


@methods
def test_a_run_that_ends_early_is_refused_or_cut_on_request(key):
    training = Training(METHODS[key]).train(0, 1)
    with pytest.raises(es.EspalierError, match="stopped after 1 of 16 steps"):
        training.finish()
    report = training.finish(allow_early=True)
    for unit, most in limits(METHODS[key], es.trace(net(), batch(0)[0])):
        assert getattr(report.shrinkage, unit) <= most
    assert report.shrinkage.cuts[-1].reason == ("start" if key in BEFORE_TRAINING else "finish")
