"""Masks of tickets: exact counts, nesting, files; and training under them."""

import copy
import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import espalier as es
from espalier import lottery
from tests.pruner.conftest import SmallNet, sgd, train_step


@pytest.fixture
def net():
    torch.manual_seed(0)
    return SmallNet()


def trained(net, method, steps=4, start=0):
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, method, total_steps=steps)
    for step in range(steps):
        train_step(net, optimizer, start + step)
    return pruner.finish()


def test_five_rounds_are_nested_and_their_counts_exact(net, tmp_path):
    start, masks = copy.deepcopy(net.state_dict()), None
    total = remaining = sum(weight.numel() for weight in lottery.weights_of(net, ["*"]).values())
    for number in range(5):
        net.load_state_dict(start)
        trained(net, es.Dense(include=["*"]) if masks is None else es.Ticket(tmp_path / "masks.safetensors"), start=10 * number)
        before, masks = masks, lottery.next_masks(lottery.weights_of(net, ["*"]), masks)
        remaining -= math.ceil(0.2 * remaining)
        assert sum(int(mask.sum()) for mask in masks.values()) == remaining
        assert before is None or all(not (mask & ~before[name]).any() for name, mask in masks.items())
        lottery.save_masks(masks, tmp_path / "masks.safetensors")
    assert lottery.density(masks) == pytest.approx(0.8**5, abs=5 / total)


def test_rewound_weights_are_the_saved_ones_bit_for_bit(net, tmp_path):
    start = copy.deepcopy(net.state_dict())
    trained(net, es.Dense())
    masks = lottery.next_masks(lottery.weights_of(net))
    lottery.save_masks(masks, tmp_path / "m.safetensors")
    net.load_state_dict(start)
    es.Pruner(net, sgd(net), es.Ticket(tmp_path / "m.safetensors"), total_steps=3)
    for name, value in net.state_dict().items():
        stays = masks.get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value[stays], start[name][stays]), name
        assert not value[~stays].any()


def test_the_smallest_of_the_remaining_go_by_brute_force():
    weights = {"a": torch.randn(6, 5), "b": torch.randn(4, 3, 3, 3) * 2}
    masks = lottery.next_masks(weights, fraction=0.3)
    again = lottery.next_masks(weights, masks, fraction=0.3)
    values = sorted(float(v) for name, w in weights.items() for v in w[masks[name]].abs())
    threshold = values[math.ceil(0.3 * len(values)) - 1]
    for name, weight in weights.items():
        assert torch.equal(again[name], masks[name] & (weight.abs() > threshold)), name


def test_channels_last_weights_and_local_scope():
    weight = torch.randn(8, 4, 3, 3)
    plain = lottery.next_masks({"w": weight})
    last = lottery.next_masks({"w": weight.to(memory_format=torch.channels_last)})
    assert torch.equal(plain["w"], last["w"])
    local = lottery.next_masks({"a": torch.randn(10) * 100, "b": torch.randn(20)}, fraction=0.5, scope="local")
    assert [int(mask.sum()) for mask in local.values()] == [5, 10]


def test_no_layer_dies():
    weights = {"large": torch.randn(1000) + 5, "small": torch.randn(10) * 1e-4}
    masks = None
    for _ in range(15):
        masks = lottery.next_masks(weights, masks)
    assert masks["small"].sum() == 1


@pytest.mark.parametrize("scope", ["global", "local"])
def test_a_layer_that_is_wholly_out_stays_out(scope):
    weights = {"gone": torch.randn(10) * 100, "here": torch.randn(20)}
    before = {"gone": torch.zeros(10, dtype=torch.bool), "here": torch.arange(20) < 15}
    masks = lottery.next_masks(weights, before, fraction=0.2, scope=scope)
    assert not masks["gone"].any()
    assert masks["here"].sum() == 12
    assert not (masks["here"] & ~before["here"]).any()
    with pytest.raises(es.EspalierError, match="No weight is left"):
        lottery.next_masks(weights, {name: torch.zeros_like(mask) for name, mask in before.items()}, scope=scope)


def test_random_masks_have_the_same_counts_in_every_layer(net):
    masks = lottery.next_masks(lottery.weights_of(net), fraction=0.7)
    one, same, other = (lottery.random_masks(masks, seed) for seed in (1, 1, 2))
    for name, mask in masks.items():
        assert one[name].sum() == mask.sum()
        assert torch.equal(one[name], same[name])
    assert any(not torch.equal(one[name], other[name]) for name in masks)
    assert lottery.overlap(one, other)[""] == pytest.approx(0.3 / 1.7, abs=0.06)
    assert lottery.overlap(masks, masks)[""] == 1.0


def test_masks_of_zeros_are_what_a_pruned_model_holds(net):
    report = trained(net, es.OneShot(0.75, at=0))
    masks = lottery.masks_of_zeros(lottery.weights_of(net))
    assert 1 - lottery.density(masks) == pytest.approx(report.sparsity)


# -- files and the method ----------------------------------------------------------------------------------------------


def test_files_are_bits_and_equal_masks_give_equal_bytes(net, tmp_path):
    masks = lottery.next_masks(lottery.weights_of(net))
    for name in ("a", "b"):
        lottery.save_masks(masks, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_size < sum(mask.numel() for mask in masks.values()) // 8 + 1000
    back = lottery.load_masks(tmp_path / "a")
    assert all(torch.equal(back[name], mask) and back[name].dtype == torch.bool for name, mask in masks.items())


def test_a_ticket_is_named_by_its_masks_not_by_its_file(net, tmp_path):
    masks = lottery.next_masks(lottery.weights_of(net))
    lottery.save_masks(masks, tmp_path / "a")
    lottery.save_masks(masks, tmp_path / "b")
    assert repr(es.Ticket(tmp_path / "a")) == repr(es.Ticket(tmp_path / "b"))
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, es.Ticket(tmp_path / "a"), total_steps=4)
    train_step(net, optimizer, 0)
    saved = copy.deepcopy(optimizer.state_dict())
    pruner.detach()
    other = es.Pruner(net, optimizer, es.Ticket(tmp_path / "b"), total_steps=4)
    optimizer.load_state_dict(saved)
    assert other.step == 1
    lottery.save_masks(lottery.random_masks(masks), tmp_path / "c")
    other.detach()
    es.Pruner(net, optimizer, es.Ticket(tmp_path / "c"), total_steps=4)
    with pytest.raises(es.EspalierError, match="build it with the same"):
        optimizer.load_state_dict(saved)


def damaged(path):
    path.write_bytes(b"no masks")
    return path


def foreign(path):
    save_file({"w": torch.zeros(3)}, path)
    return path


def of_another_model(path):
    lottery.save_masks({"conv1.weight": torch.ones(2, 2, dtype=torch.bool)}, path)
    net = SmallNet()
    es.Pruner(net, sgd(net), es.Ticket(path), total_steps=2)


def with_other_masks(path):
    lottery.save_masks({"w": torch.tensor([True, False])}, path)
    digest = es.Ticket(path).digest
    assert es.Ticket(path, digest=digest) == es.Ticket(path)
    lottery.save_masks({"w": torch.tensor([False, True])}, path)
    es.Ticket(path, digest=digest)


def with_sparsity_as_text(path):
    lottery.save_masks({"w": torch.tensor([True, False])}, path)
    es.Ticket(path, sparsity="0.5")


def with_another_sparsity(path):
    lottery.save_masks({"w": torch.tensor([True, False])}, path)
    es.Ticket(path, sparsity=0.8)


def of_other_shapes(path):
    bits = {"w": torch.tensor([1], dtype=torch.uint8)}
    save_file(bits, path, metadata={"espalier masks 1": json.dumps({"w": [9, 9], "v": [2]})})
    es.Ticket(path)


REFUSED = {
    "no file": (lambda path: es.Ticket(path), "There are no masks"),
    "damaged": (lambda path: es.Ticket(damaged(path)), "cannot be read"),
    "other shapes": (of_other_shapes, "do not fit their bits"),
    "foreign": (lambda path: es.Ticket(foreign(path)), "holds no masks"),
    "no path": (lambda path: es.Ticket({"w": 1}), "masks is a file"),
    "another model": (of_another_model, "are of another model"),
    "other masks than meant": (with_other_masks, "not those that are meant"),
    "sparsity as text": (with_sparsity_as_text, "share of zeros in the masks"),
    "another sparsity": (with_another_sparsity, "a sparsity of 0.5000, not 0.8"),
    "no fraction": (lambda path: lottery.next_masks({"w": torch.ones(3)}, fraction=1.5), "between 0 and 1"),
    "nothing left": (lambda path: lottery.next_masks({"w": torch.ones(3)}, keep=0), "cannot stay"),
    "nan": (lambda path: lottery.next_masks({"w": torch.full((3,), float("nan"))}), "not finite"),
    "other masks": (lambda path: lottery.next_masks({"w": torch.ones(3)}, {"w": torch.ones(2)}), "do not fit"),
    "no folder": (
        lambda path: lottery.save_masks({"w": torch.ones(3, dtype=torch.bool)}, path / "a" / "b"),
        "could not be written",
    ),
    "mask as list": (lambda path: lottery.save_masks({"w": [True]}, path), "that of w is a list"),
    "mask of numbers": (lambda path: lottery.save_masks({"w": torch.ones(3)}, path), "that of w is of torch.float32"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence(case, tmp_path):
    do, words = REFUSED[case]
    with pytest.raises(es.EspalierError, match=words) as caught:
        do(tmp_path / "masks.safetensors")
    assert "\n" not in str(caught.value)


# -- siblings ----------------------------------------------------------------------------------------------------------


def test_the_line_between_siblings_has_their_own_ends_and_leaves_the_model_alone(net):
    other = SmallNet()
    before = copy.deepcopy(net.state_dict())
    x = torch.randn(4, 3, 8, 8)

    def evaluate(model):
        return float(model.eval()(x).sum().detach()), 0.5

    points = lottery.interpolate(net, before, other.state_dict(), evaluate, points=5)
    assert [point.at for point in points] == [0, 0.25, 0.5, 0.75, 1]
    assert (points[0].loss, points[-1].loss) == (evaluate(net)[0], evaluate(other)[0])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert lottery.instability(points) == 0
    with pytest.raises(es.EspalierError, match="different weights"):
        lottery.interpolate(net, before, nn.Linear(2, 2).state_dict(), evaluate)
    for foreign in (nn.Linear(2, 2).state_dict(), SmallNet(width=4).state_dict()):
        with pytest.raises(es.EspalierError, match="not those of the model") as caught:
            lottery.interpolate(net, foreign, foreign, evaluate)
        assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
