"""Selection is exact, patterns are what they say, and what is masked is zero."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import espalier as es
from espalier.masks import allocation, pack_bits, unpack_bits
from espalier.masks.ranking import keep_best, keep_best_together

SHAPES = [(8, 4, 3, 3), (16, 8), (4, 4, 1, 1), (8, 8, 3)]


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, -1.0, 1e-30]), min_size=1, max_size=60), st.data())
def test_exactly_so_many_are_dropped_and_they_are_the_lowest(values, data):
    scores = torch.tensor(values)
    drop = data.draw(st.integers(0, len(values)))
    keep = keep_best(scores, drop)
    assert int((~keep).sum()) == drop
    if 0 < drop < len(values):
        assert scores[keep].min() >= scores[~keep].max()


def test_nan_scores_are_kept_and_counts_stay_exact():
    keep = keep_best(torch.tensor([float("nan"), 1.0, 2.0, float("nan")]), 2)
    assert keep.tolist() == [True, False, False, True]


def test_ties_do_not_empty_the_first_channels():
    keep = keep_best(torch.zeros(1000), 500)
    assert 200 < int(keep[:500].sum()) < 300


@given(st.integers(1, 30))
def test_one_ranking_over_all_leaves_every_tensor_something(drop):
    scores = [torch.full((10,), 1e-6), torch.rand(20) + 1, torch.rand(5) + 2]
    keep = keep_best_together(scores, drop)
    assert sum(int((~k).sum()) for k in keep) == drop
    assert all(k.any() for k in keep)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([(3,), (8,), (17,), (4, 5), (2, 3, 3, 3)]))
def test_packed_masks_come_back(seed, shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5
    packed = pack_bits(mask)
    assert packed.numel() == (mask.numel() + 7) // 8
    assert torch.equal(unpack_bits(packed, shape, mask.device), mask)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_weight_pattern_follows_the_strides_of_the_weight(shape, memory_format):
    weight = torch.randn(shape)
    if weight.dim() == 4:
        weight = weight.to(memory_format=memory_format)
    pattern, mask = es.patterns.Weight(), torch.ones_like(weight)
    pattern.expand(keep_best(pattern.reduce(weight.abs()), weight.numel() // 2), mask)
    dropped, kept = weight[mask == 0].abs(), weight[mask == 1].abs()
    assert len(dropped) == weight.numel() // 2
    assert dropped.max() <= kept.min()


@pytest.mark.parametrize("pattern", [es.patterns.Kernel(), es.patterns.Filter(), es.patterns.Block(2, 3), es.patterns.NM(1, 4)])
def test_patterns_keep_the_best_units_by_brute_force(pattern):
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(weight)
    units = pattern.units(weight.shape)
    drop = units * 3 // 4
    pattern.expand(keep_best(pattern.reduce(weight.abs()), drop), mask)
    if isinstance(pattern, es.patterns.NM):
        groups = mask.movedim(1, -1).reshape(-1, 4)
        best = weight.abs().movedim(1, -1).reshape(-1, 4).argmax(1)
        assert torch.equal(groups.argmax(1), best)
        assert torch.equal(groups.sum(1), torch.ones(len(groups)))
        return
    matrices = {
        es.patterns.Kernel: lambda t: t.reshape(32, 9),
        es.patterns.Filter: lambda t: t.reshape(8, 36),
        es.patterns.Block: lambda t: t.reshape(4, 2, 12, 3).transpose(1, 2).reshape(48, 6),
    }
    view = matrices[type(pattern)]
    alive = view(mask).amax(1)
    assert torch.equal(alive, view(mask).amin(1))
    assert int((alive == 0).sum()) == drop
    totals = view(weight.abs()).sum(1)
    assert totals[alive == 0].max() <= totals[alive == 1].min()


def test_erk_meets_the_overall_sparsity_and_spares_small_layers():
    shapes = [(16, 3, 3, 3), (64, 64, 3, 3), (10, 64)]
    units = [torch.Size(s).numel() for s in shapes]
    shares = allocation.erk_shares(0.9, shapes, units)
    assert sum(s * u for s, u in zip(shares, units, strict=True)) / sum(units) == pytest.approx(0.9)
    assert shares[0] < shares[1]
    assert sum(allocation.erk_drops(0.9, shares, 0.9, units)) == allocation.global_drop(0.9, units)
    assert sum(allocation.erk_drops(0.45, shares, 0.9, units)) == allocation.global_drop(0.45, units)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv1d(4, 4, 3))
        self.head = nn.Linear(8, 2)


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (None, (), ["stem.weight", "body.0.weight", "body.2.weight"]),
        (["*"], (), ["stem.weight", "body.0.weight", "body.2.weight", "head.weight"]),
        (["Linear"], (), ["head.weight"]),
        ([nn.Conv2d], ["stem"], ["body.0.weight"]),
        (["body.*"], (nn.Conv1d,), ["body.0.weight"]),
        (None, ["stem*"], ["body.0.weight", "body.2.weight"]),
    ],
)
def test_weights_are_selected_by_name_and_type(include, exclude, expected):
    assert list(es.masks.select_weights(Net(), include, exclude)) == expected


@pytest.mark.parametrize(
    ("include", "exclude", "words"),
    [
        (["nothing*"], (), "'nothing\\*' matches no weight"),
        (None, ["Conv3d"], "'Conv3d' matches no weight"),
        (["head"], ["Linear"], "exclude removes them all"),
        ([3], (), "name patterns and module types"),
    ],
)
def test_a_selection_that_matches_nothing_is_refused(include, exclude, words):
    with pytest.raises(es.EspalierError, match=words):
        es.masks.select_weights(Net(), include, exclude)


@pytest.mark.parametrize("include", [None, ["Conv2d"], [nn.Conv2d], ["*"]])
def test_a_parametrized_layer_is_refused_by_name(include):
    net = Net()
    torch.nn.utils.parametrizations.weight_norm(net.stem)
    with pytest.raises(es.EspalierError, match=r"weight of stem is computed by a parametrization.*exclude 'stem\*'"):
        es.masks.select_weights(net, include)
    assert "body.0.weight" in es.masks.select_weights(net, include, ["stem*"])


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [(["Linear"], (), ["emb.weight", "mid.weight"]), (["out"], (), ["emb.weight"]), (["*"], ["out"], ["mid.weight"])],
)
def test_a_tied_weight_is_meant_by_each_of_its_names(include, exclude, expected):
    net = nn.Module()
    net.emb, net.mid, net.out = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12, bias=False)
    net.out.weight = net.emb.weight
    assert list(es.masks.select_weights(net, include, exclude)) == expected


def test_kernel_shapes_never_multiply_what_is_barred():
    shapes = torch.tensor(es.masks.patterns.kernel_shapes(), dtype=torch.float32)
    scores = torch.rand(50, 4, 3, 3)
    allowed = shapes[torch.arange(200) % 13].view_as(scores)
    kept = es.patterns.KernelShape().reduce(scores.masked_fill(allowed == 0, -torch.inf))
    assert torch.equal(kept.view_as(scores), allowed)
    barred = torch.rand_like(scores) < 0.6
    kept = es.patterns.KernelShape().reduce(scores.masked_fill(barred, -torch.inf)).view(-1, 9)
    costs = barred.view(-1, 9).float() @ shapes.T * 100 - scores.masked_fill(barred, 0.0).view(-1, 9) @ shapes.T
    assert torch.equal(kept, shapes[costs.argmin(1)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_scores_of_any_floating_type_are_ranked(dtype):
    scores = torch.arange(1, 101).to(dtype)[torch.randperm(100)]
    keep = keep_best(scores, 40)
    assert keep.sum() == 60
    assert scores[keep].min() > scores[~keep].max()
