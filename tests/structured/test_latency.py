"""Latency budgets, with a clock that goes by the work of the model, so that nothing depends on the machine."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import espalier as es
from espalier.methods.frame.cutting import latency
from tests.structured.nets import STEPS, Training, at, batch, early, net


@pytest.fixture
def clock(monkeypatch):
    """Replaces the measurement: a pass takes a nanosecond for each FLOP. Holds how slow the models are that it has timed."""
    timed = []

    def measure(model, inputs):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(inputs)
        timed.append(counter.get_total_flops() * clock_rate[0])
        return timed[-1]

    clock_rate = [1e-9]
    monkeypatch.setattr(latency, "measure", measure)
    timed_and_rate = (timed, clock_rate)
    return timed_and_rate


def seconds(model):
    return latency.measure(model, batch(0)[0])


@pytest.mark.parametrize("method", [at, early])
def test_the_small_network_keeps_to_the_latency_and_wastes_little(clock, method):
    dense = seconds(net())
    kind = {"at": 0.5} if method is at else {"start": 0.1}
    given = method(keep_macs=1.0, max_latency=0.5 * dense, round_to=1, **kind)
    training = Training(given).train()
    training.finish()
    assert 0.45 * dense < seconds(training.net) <= 0.5 * dense


def test_a_network_that_turns_out_slower_is_narrowed_before_the_cut(clock):
    _, rate = clock
    dense = seconds(net())
    training = Training(at(keep_macs=1.0, max_latency=f"{0.5 * dense * 1e3:.6f}ms", at=0.5))
    rate[0] *= 1.3  # the device has slowed down since
    training.train().finish()
    assert seconds(training.net) <= 0.5 * dense


def test_without_another_budget_latency_alone_decides(clock):
    dense = seconds(net())
    training = Training(es.PruneAt(at=0, max_latency=0.6 * dense, check_every=1))
    assert seconds(training.net) <= 0.6 * dense


def test_a_network_that_is_fast_enough_stays_whole(clock):
    training = Training(es.PruneAt(at=0, max_latency=2 * seconds(net()), check_every=1))
    assert training.run.shrinkage().keep_macs == 1


def test_what_no_network_can_meet_is_refused_with_the_least(clock):
    with pytest.raises(es.EspalierError, match=r"narrowest network that caps, floors and rounding allow takes .* ms here"):
        Training(es.PruneAt(at=0.5, max_latency=1e-12))


@pytest.mark.parametrize("given", ["5", "fast", "-1ms", 0, -1.0, True, "5 min", float("inf")])
def test_a_latency_is_a_time(given):
    with pytest.raises(es.EspalierError, match="max_latency is a time above 0"):
        es.PruneAt(at=0.5, max_latency=given)


def test_a_resumed_run_goes_by_the_first_measurement(clock):
    _, rate = clock
    given = at(keep_macs=1.0, max_latency=0.5 * seconds(net()), at=0.75)
    whole = Training(given).train()
    half = Training(given).train(last=6)
    saved = half.saved()
    rate[0] *= 0.9  # another machine, a little faster: the limit that was measured first still holds
    resumed = Training(given, seed=1).load(saved)
    rate[0] /= 0.9
    resumed.train(first=6)
    assert STEPS > 6
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(tensor, resumed.net.state_dict()[name]), name
