"""What combines, combines; what cannot is refused by name: every scope x pattern x criterion x schedule, one or the other."""

import itertools

import pytest
import torch

import espalier as es
from espalier.criteria import CRITERIA
from espalier.masks import SCOPES
from espalier.schedules import SCHEDULES
from tests.pruner.conftest import train_step

PATTERNS = {
    "weight": es.patterns.Weight(),
    "2:4": es.patterns.NM(2, 4),
    "kernel": es.patterns.Kernel(),
    "filter": es.patterns.Filter(),
    "block": es.patterns.Block(2, 3),
}
REFUSED = {("2:4", scope) for scope in ("global", "erk")}


@pytest.mark.parametrize("pattern", list(PATTERNS))
@pytest.mark.parametrize("scope", SCOPES)
def test_every_combination_trains_to_its_target_or_is_refused_by_name(make_net, scope, pattern):
    refusals: list[str] = []
    for criterion, schedule in itertools.product(CRITERIA, SCHEDULES):
        net = make_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        try:
            method = es.Follow(
                SCHEDULES[schedule](0.5), scope=scope, pattern=PATTERNS[pattern], criterion=criterion, exclude=["conv1"]
            )
        except es.EspalierError as error:
            refusals.append(str(error))
            continue
        pruner = es.Pruner(net, optimizer, method, total_steps=3)
        for step in range(3):
            train_step(net, optimizer, step)
        expected = 0.0 if schedule == "dense-sparse-dense" else 0.5
        assert pruner.finish().sparsity == pytest.approx(expected, abs=0.001)
    combinations = len(CRITERIA) * len(SCHEDULES)
    if (pattern, scope) in REFUSED:
        assert len(refusals) == combinations
    elif pattern == "2:4":
        assert len(refusals) == combinations - 2 * len(CRITERIA)  # step and constant jump; a staircase has other levels
    else:
        assert not refusals
    assert all("NM" in sentence for sentence in refusals)
