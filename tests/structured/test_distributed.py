"""Two gloo ranks cut the same channels, and train as one process does with the joined batch: in double precision, since sums in
another order grow apart in float32, by how much depends on the processor."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

import espalier as es
from espalier.criteria import GroupSaliency
from espalier.surgery import structure_of
from tests.helpers.ranks import in_two_ranks
from tests.structured.nets import METHODS, STEPS, Training, at, batch, early, loss_of, net, quiet

KEYS = ["ocsp", "ocsp-progressive", "epi-taylor", "prune-at-0", "prune-at-random-uniform", "force", "greg", "slr-channels"]
CASES = [*((key, "group") for key in KEYS), ("ocsp", "batch"), ("epi-taylor", "batch")]
WHOLE = 8


def part(step, rank):
    x, y = batch(step, WHOLE)
    mine = slice(rank * WHOLE // 2, (rank + 1) * WHOLE // 2)
    return x[mine], y[mine]


def together(rank, key, norm, last=STEPS):
    training = Training(
        METHODS[key],
        model=net(norm=norm).double(),
        wrap=es.DistributedDataParallel,
        process_group=dist.group.WORLD,
        batches=[part(900, rank), part(901, rank)],
    )
    with quiet():
        for step in range(last):
            loss_of(training.model, part(step, rank)).backward()
            training.optimizer.step()
            training.optimizer.zero_grad()
    return training


def outcome(training):
    left = training.finish().shrinkage
    return {
        "weights": {name: p.detach().clone() for name, p in training.net.named_parameters()},
        "structure": structure_of(training.net).to_json(),
        "cuts": [[cut.step, cut.reason, cut.macs] for cut in left.cuts],
    }


def on_two_ranks(rank):
    found = {f"{key} {norm}": outcome(together(rank, key, norm)) for key, norm in CASES}
    return found | {"refusals": refusals(rank)}


class Failing(GroupSaliency):
    """Cannot rank on rank 0, which alone is asked to."""

    name = "failing"

    def score(self, tensors, places, observed):
        raise es.EspalierError("No scores today.")


def message(act):
    try:
        act()
    except es.EspalierError as error:
        return str(error)
    return ""


def refusals(rank):
    found = {}
    model = net(seed=rank)
    found["apart"] = message(lambda: prune(model, model, early()))
    model = net()
    found["foreign"] = message(lambda: prune(nn.parallel.DistributedDataParallel(model), model, early()))
    model = net()
    found["budget"] = message(lambda: prune(es.DistributedDataParallel(model), model, es.OCSP(keep_macs=0.01)))
    model = net()
    found["scores"] = message(lambda: prune(es.DistributedDataParallel(model), model, early(criterion=Failing())))
    training = together(rank, "prune-at-half", "batch", last=2)
    with torch.no_grad():
        training.net.head.bias += rank
    found["drifted"] = message(lambda: drift(training, rank))
    return found


def prune(wrapped, model, method):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    group = dist.group.WORLD
    es.Pruner(wrapped, optimizer, method, total_steps=STEPS, example_inputs=batch(0)[0], process_group=group)


def drift(training, rank):
    for step in range(2, STEPS):
        loss_of(training.model, part(step, rank)).backward()
        training.optimizer.step()
        training.optimizer.zero_grad()


@pytest.fixture(scope="module")
def ranks():
    return in_two_ranks(on_two_ranks)


@pytest.mark.parametrize(("key", "norm"), CASES)
def test_both_ranks_cut_the_same_channels_and_hold_the_same_weights(ranks, key, norm):
    one, other = (rank[f"{key} {norm}"] for rank in ranks)
    assert one["structure"] == other["structure"]
    assert one["cuts"] == other["cuts"] != []
    for name, weight in one["weights"].items():
        assert torch.equal(weight, other["weights"][name]), name


@pytest.mark.parametrize("key", [key for key in KEYS if key != "force"])  # looks at the data of rank 0 alone
def test_without_batch_norm_two_ranks_train_as_one_process(ranks, key):
    alone = outcome(Training(METHODS[key], model=net(norm="group").double()).train())
    mine = ranks[0][f"{key} group"]
    assert mine["structure"] == alone["structure"]
    assert mine["cuts"] == alone["cuts"]
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(mine["weights"][name], weight, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_ranks_that_disagree_are_named_and_a_foreign_wrapper_is_refused(ranks):
    for rank in ranks:
        said = rank["refusals"]
        assert "The weights differ between rank 0 and rank 1" in said["apart"]
        assert "The weights differ between rank 0 and rank 1" in said["drifted"]
        assert "wrap the model in es.DistributedDataParallel instead" in said["foreign"]
    assert "caps, floors and rounding leave at least" in ranks[0]["refusals"]["budget"]
    assert "Another rank could not choose the channels" in ranks[1]["refusals"]["budget"]


def test_a_criterion_that_fails_on_the_leader_ends_the_run_on_all_ranks(ranks):
    assert ranks[0]["refusals"]["scores"] == "No scores today."
    assert "Another rank could not choose the channels" in ranks[1]["refusals"]["scores"]


def accumulated(key):
    """Two halves of the batch, one after the other, on one process."""
    training = Training(METHODS[key])
    for step in range(STEPS):
        for rank in range(2):
            (loss_of(training.net, part(step, rank)) / 2).backward()
        with quiet():
            training.optimizer.step()
        training.optimizer.zero_grad()
    return outcome(training)


@pytest.mark.parametrize("key", ["ocsp", "epi-taylor"])
def test_with_batch_norm_two_ranks_cut_as_two_micro_batches_do(ranks, key):
    alone, mine = accumulated(key), ranks[0][f"{key} batch"]
    assert mine["structure"] == alone["structure"]
    assert mine["cuts"] == alone["cuts"]


def test_without_a_process_group_one_process_decides_for_itself():
    assert Training(at(at=0)).run.site.process_group is None
