"""What a step between two looks costs: nothing is read on the host, and no Python runs over channels."""

import pytest
import torch

from tests.helpers.host import no_reads
from tests.structured.nets import METHODS, Training, at, batch, early, loss_of, net, pulled, quiet

RARE = {"check_every": 1000, "latest": 1.0}
BETWEEN = {
    "ocsp": early(start=0, **RARE),
    "ocsp-constants": early(start=0, exposure=None, **RARE),
    "ocsp-gradient-penalty": early(start=0, penalty="gradient", **RARE),
    "ocsp-taylor": early(start=0, criterion="taylor", **RARE),
    "epi-magnitude": early(type(METHODS["epi-magnitude"]), criterion="magnitude", **RARE),
    "epi-taylor": early(type(METHODS["epi-taylor"]), **RARE),
    "epi-taylor-weights": early(type(METHODS["epi-taylor"]), criterion="taylor-weights", **RARE),
    "prune-at": at(at=1, check_every=1000),
    "train-prune-finetune": at(type(METHODS["train-prune-finetune"]), learn_from=0, check_every=1000),
    "network-slimming": at(type(METHODS["network-slimming"]), at=1, check_every=1000),
    "greg": at(type(METHODS["greg"]), check_every=1000),
    "slr-channels": pulled(type(METHODS["slr-channels"]), start=0, check_every=8),
}


@pytest.mark.parametrize("key", list(BETWEEN))
def test_nothing_is_read_on_the_host_between_two_looks(key):
    training = Training(BETWEEN[key], lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, foreach=True))
    training.train(0, 2)
    loss_of(training.net, batch(2)).backward()
    with no_reads():
        training.optimizer.step()
    assert training.pruner.step == 3


@pytest.mark.parametrize("key", list(BETWEEN))
def test_no_python_runs_over_channels(key):
    calls = []
    for width in (8, 32):
        training = Training(BETWEEN[key], model=net(width=width))
        training.train(0, 2)
        loss_of(training.net, batch(2)).backward()
        with torch.profiler.profile() as profile, quiet():
            training.optimizer.step()
        calls.append(sum(event.count for event in profile.key_averages() if event.key.startswith("aten::")))
    assert calls[1] < calls[0] + 12  # some weight more or less may be touched; there are 96 channels more


def test_after_the_cut_a_step_does_nothing_more():
    training = Training(at(at=0)).train(0, 2)
    run = training.run
    run.every_step = run.after_step = run.look = run._observe = None
    training.train(2)
