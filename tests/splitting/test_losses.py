"""What SLR and ADMM compare from round to round: when the loss is read, on which data, and what each rank knows of it."""

import warnings

import pytest
import torch
from torch import nn

import espalier as es
from tests.helpers.ranks import in_two_ranks
from tests.pruner.conftest import DATA, SmallNet, batch, sgd, train_step
from tests.splitting.conftest import Trained

pytestmark = pytest.mark.usefixtures("quiet")


def fails_in_evaluation(model, data):
    """A loss with an auxiliary output that is there in training only, as GoogLeNet's is."""
    outputs = (model(data[0]),) * (2 if model.training else 1)
    return nn.functional.cross_entropy(outputs[1], data[1])


@pytest.mark.parametrize("method", [es.SLR(0.5, start=0.5), es.SLR(0.5), es.ADMM(0.5)])
def test_a_loss_that_cannot_be_read_in_evaluation_mode_is_refused_before_training(make_net, method):
    net = make_net()
    with pytest.raises(es.EspalierError, match=r"model in evaluation mode \(IndexError: tuple index out of range\)"):
        es.Pruner(net, sgd(net), method, total_steps=20, **(DATA | {"loss_fn": fails_in_evaluation}))
    assert net.training
    optimizer = sgd(net)
    es.Pruner(net, optimizer, method, total_steps=20, **DATA)  # nothing of the first one is left
    train_step(net, optimizer, 0)


def told(**more):
    """SLR that is told its losses."""
    return Trained(es.SLR(0.5, include=["*"], conditions="mean", **more), 40, batches=None, loss_fn=None)


def test_losses_of_the_dense_warm_up_are_no_part_of_the_mean():
    trained = told(start=0.4, check_every=4)
    for step in range(20):
        trained.pruner.observe(torch.tensor(1000.0 if step < 16 else float(step)))
        trained.step()
    (first,) = trained.run.rounds()
    assert (first.step, first.loss) == (20, 17.5)  # of the steps 16 to 19


def test_the_loss_of_the_first_step_with_z_counts():
    trained = told(start=0.4, check_every=1)
    for step in range(17):
        trained.pruner.observe(float(step))
        trained.step()
    assert [made.loss for made in trained.run.rounds()] == [16.0]


def test_resuming_leaves_the_state_that_it_was_given():
    trained = told(check_every=4)
    trained.pruner.observe(torch.tensor(2.0))
    state = trained.pruner.state_dict()
    for _ in range(2):  # one state for two trainings
        other = told(check_every=4)
        other.pruner.load_state_dict(state)
        other.pruner.observe(torch.tensor(4.0))
        assert float(other.run.iteration.loss.read()) == 3.0


@pytest.mark.parametrize("loss", [3.2, 3, torch.tensor([3.2, 3.2]), torch.tensor(3.2, dtype=torch.bfloat16)])
def test_numbers_and_tensors_are_observed(loss):
    trained = told(check_every=1)
    trained.pruner.observe(loss)
    trained.step()
    assert trained.run.rounds()[0].loss == pytest.approx(float(torch.as_tensor(loss).float().mean()))


@pytest.mark.parametrize("loss", [None, "3.2", True, [3.2], torch.zeros(0)])
@pytest.mark.parametrize("method", [es.SLR(0.5, include=["*"], conditions="mean"), es.ADMM(0.5, include=["*"])])
def test_what_is_no_loss_is_refused(method, loss):
    with pytest.raises(es.EspalierError, match="a tensor or a number"):
        Trained(method, 40).pruner.observe(loss)


def test_the_sums_follow_the_model_to_another_device():
    trained = told()
    trained.pruner.observe(1.0)
    loss = trained.run.iteration.loss
    trained.net.to("meta")
    loss.observe(torch.zeros((), device="meta"))
    loss.observe(torch.tensor(3.2))
    assert loss.state_dict()["sums"].device.type == "meta"


def only_rank_1_cannot(model, data):
    if torch.distributed.get_rank() == 1:
        raise IndexError("no such output")
    return torch.tensor(1.0)


def rank_1_cannot_from_the_third_round(model, data, calls=[]):  # noqa: B006
    calls.append(data)
    return only_rank_1_cannot(model, data) if len(calls) > 3 else DATA["loss_fn"](model, data)


def losses_on_ranks(rank):
    """A loss that one rank cannot read or does not report, and batches that are each rank's own."""
    group = torch.distributed.group.WORLD
    heard = []

    def build(**more):
        torch.manual_seed(0)
        net = SmallNet()
        optimizer = sgd(net)
        method = es.SLR(0.75, check_every=1, conditions="mean" if more.get("batches", 0) is None else "batches")
        data = {"batches": [batch(50 + rank)], "loss_fn": DATA["loss_fn"]} | more
        return net, optimizer, es.Pruner(net, optimizer, method, total_steps=20, process_group=group, **data)

    try:
        build(loss_fn=only_rank_1_cannot)
    except es.EspalierError as error:
        heard.append(str(error))

    net, optimizer, pruner = build(loss_fn=rank_1_cannot_from_the_third_round)
    try:
        for step in range(10):
            train_step(net, optimizer, step)
    except es.EspalierError as error:
        heard.append(str(error))
    pruner.detach()

    net, optimizer, pruner = build(batches=None)
    if rank == 0:
        pruner.observe(1.0)
    try:
        train_step(net, optimizer, 0)
    except es.EspalierError as error:
        heard.append(str(error))
    pruner.detach()

    pruner = build()[2]
    state = [pruner.state_dict() if rank == 0 else None]  # rank 0 alone writes the checkpoint
    torch.distributed.broadcast_object_list(state, src=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build()[2].load_state_dict(state[0])
    heard.append([str(one.message) for one in caught])
    return heard


def test_ranks_agree_that_a_loss_is_missing_and_compare_batches_on_rank_0():
    first, second = in_two_ranks(losses_on_ranks)
    assert "Another rank could not read its loss" in first[0]
    assert "IndexError: no such output" in second[0]
    assert "Another rank could not read its loss" in first[1]
    assert "IndexError: no such output" in second[1]
    assert "distributed: on every rank" in first[2]
    assert first[2] == second[2]
    assert first[3] == second[3] == []


class Epochs:
    """A loader with one running iterator, which starts over whenever it is asked for another, as with persistent workers."""

    def __init__(self, count):
        self.count, self.position, self.starts = count, 0, 0

    def __iter__(self):
        self.position = 0
        self.starts += 1
        return self

    def __next__(self):
        self.position += 1
        if self.position > self.count:
            raise StopIteration
        return batch(self.position)


@pytest.mark.parametrize("load", [False, True])
@pytest.mark.parametrize(
    "method",
    [es.ADMM(0.5), es.SLR(0.5), es.SNIP(0.5), es.SNIP(0.5, rounds=3, batches_per_round=2), es.GraSP(0.5)],
    ids=["admm", "slr", "snip", "iterative snip", "grasp"],
)
def test_the_first_step_leaves_the_epoch_of_the_training_loader_alone(make_net, method, load):
    net, loader, seen = make_net(), Epochs(8), []
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, method, total_steps=30, **(DATA | {"batches": loader}))
    if load:  # weights after construction: masks at initialisation are made anew at the first step
        net.load_state_dict(make_net(seed=5).state_dict())
    starts = loader.starts
    for x, y in loader:
        seen.append(loader.position)
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loader.starts == starts + 1
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8]
    assert pruner.step == 8


@pytest.mark.parametrize("method", [es.SNIP(0.5, rounds=3), es.GraSP(0.5, batches_per_round=2)])
def test_masks_made_anew_see_the_batches_that_were_read_at_construction(make_net, method):
    masks = []
    for late in (False, True):
        net, loader = make_net(seed=0 if late else 5), Epochs(8)
        optimizer = sgd(net)
        pruner = es.Pruner(net, optimizer, method, total_steps=30, **(DATA | {"batches": loader}))
        if late:
            net.load_state_dict(make_net(seed=5).state_dict())
        train_step(net, optimizer, 0)
        masks.append(pruner.run.masks.tensors)
        assert not pruner.run.site.batches.kept
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())
