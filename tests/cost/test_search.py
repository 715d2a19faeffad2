"""Searching a budget: exactly met or just missed from below, floors and caps kept, one answer always."""

import pytest
import torch
from torch import Tensor

import espalier as es
from tests.helpers.graphs import FakeGraph, FakeGroup, chain

Scores = dict[FakeGroup, Tensor]


def scored(graph: FakeGraph, seed: int = 0) -> Scores:
    draw = torch.Generator().manual_seed(seed)
    return {group: torch.rand(group.size, generator=draw) * (k + 1) for k, group in enumerate(graph.groups)}


def widths(kept: dict[FakeGroup, Tensor]) -> dict[FakeGroup, int]:
    return {group: len(indices) for group, indices in kept.items()}


def step_of(size: int) -> int:
    return max((2**k for k in range(5) if 2**k * 4 <= size), default=1)


BUDGETS = [{"keep_macs": 0.5}, {"keep_params": 0.3}, {"max_macs": 30000}, {"max_params": 900}, {"prune_channels": 0.6}]


@pytest.mark.parametrize("budget", [*BUDGETS, {"keep_macs": 0.5, "keep_params": 0.4}], ids=str)
@pytest.mark.parametrize("scope", ["global", "group"])
@pytest.mark.parametrize("round_to", [None, 1, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_just_below_the_budget(budget: dict[str, float], scope: str, round_to: int | None, seed: int) -> None:
    graph = chain([10, 16, 7, 13, 33])
    kept = es.search(graph, scored(graph, seed), **budget, scope=scope, round_to=round_to)
    now, sizes = es.cost(graph), sum(group.size for group in graph.groups)

    def fits(chosen: dict[FakeGroup, int]) -> bool:
        cost = es.cost(graph, chosen)
        return (
            cost.macs <= budget.get("keep_macs", 1) * now.macs
            and cost.params <= budget.get("keep_params", 1) * now.params
            and cost.macs <= budget.get("max_macs", now.macs)
            and cost.params <= budget.get("max_params", now.params)
            and sum(chosen.values()) <= sizes - round(budget.get("prune_channels", 0) * sizes)
        )

    chosen = widths(kept)
    assert fits(chosen)
    for group, width in chosen.items():
        step = round_to or step_of(group.size)
        assert width == group.size or width % step == 0
        if width < group.size:
            assert not fits({**chosen, group: min(group.size, width + step)})


@pytest.mark.parametrize("scope", ["global", "group"])
def test_the_best_channels_stay(scope: str) -> None:
    graph = chain([12, 20, 16])
    scores = scored(graph)
    for group, indices in es.search(graph, scores, keep_macs=0.4, scope=scope, round_to=1).items():
        assert indices.dtype == torch.long
        assert indices.tolist() == scores[group].topk(len(indices)).indices.sort().values.tolist()


def test_a_global_ranking_compares_groups() -> None:
    graph = chain([8, 8])
    first, second = graph.groups
    kept = es.search(graph, {first: torch.arange(8.0), second: torch.arange(8.0) + 4}, prune_channels=0.5, round_to=1)
    assert kept[first].tolist() == [6, 7]  # ties: of two scores of 6 the later group's goes first
    assert kept[second].tolist() == [2, 3, 4, 5, 6, 7]


def test_one_share_for_all_groups() -> None:
    graph = chain([8, 16, 32])
    scores = {group: torch.rand(group.size) * 10**k for k, group in enumerate(graph.groups)}
    kept = es.search(graph, scores, prune_channels=0.25, scope="group", round_to=1)
    assert list(widths(kept).values()) == [6, 12, 24]


def test_scales_of_groups_can_be_taken_out() -> None:
    graph = chain([8, 8])
    first, second = graph.groups
    scores = {first: torch.arange(1.0, 9), second: 1000 * torch.arange(1.0, 9)}
    assert list(widths(es.search(graph, scores, prune_channels=0.25, round_to=1)).values()) == [4, 8]
    for how in ("mean", "max", "sum"):
        kept = es.search(graph, scores, prune_channels=0.25, round_to=1, normalise=how)
        assert list(widths(kept).values()) == [6, 6]


def test_equal_scores_go_from_the_end() -> None:
    graph = chain([6, 6])
    kept = es.search(graph, {group: torch.zeros(6) for group in graph.groups}, prune_channels=0.5, round_to=1, normalise="mean")
    assert [indices.tolist() for indices in kept.values()] == [[0, 1, 2, 3, 4], [0]]


def test_caps_and_floors() -> None:
    graph = chain([32, 32, 32])
    first, second, third = graph.groups
    scores = {first: torch.zeros(32), second: torch.ones(32), third: torch.full((32,), 2.0)}

    def searched(**options: object) -> list[int]:
        return list(widths(es.search(graph, scores, prune_channels=0.5, round_to=1, **options)).values())  # type: ignore[arg-type]

    assert searched() == [2, 14, 32]
    assert searched(max_ratio=0.75) == [8, 8, 32]
    assert searched(max_ratio={first: 0.0}) == [32, 2, 14]
    assert searched(max_ratio=0.75, min_channels=10) == [10, 10, 28]
    assert searched(min_channels={first: 1}) == [1, 15, 32]
    assert list(widths(es.search(graph, scores, prune_channels=0.5, min_channels=5)).values()) == [8, 8, 32]


def test_groups_without_scores_stay_whole() -> None:
    graph = chain([16, 16])
    kept = es.search(graph, {graph.groups[1]: torch.rand(16)}, keep_macs=0.6, round_to=1)
    assert list(kept) == [graph.groups[1]]
    assert es.cost(graph, widths(kept)).macs <= 0.6 * es.cost(graph).macs


def test_a_budget_that_all_fits_in_removes_nothing() -> None:
    graph = chain([5, 9])
    for budget in ({"keep_macs": 1.0}, {"max_params": 1e9}, {"prune_channels": 0.0}):
        assert [len(k) for k in es.search(graph, scored(graph), **budget).values()] == [5, 9]


def test_the_least_possible_is_named() -> None:
    graph = chain([16, 16])
    least = {group: 8 for group in graph.groups}  # widths are multiples of 8
    with pytest.raises(es.EspalierError, match=r"keep_macs=0.01 .* at least .* \(0\.\d+ of the present") as caught:
        es.search(graph, scored(graph), keep_macs=0.01)
    share = float(str(caught.value).split("(")[1].split()[0])
    assert share == pytest.approx(es.cost(graph, least).macs / es.cost(graph).macs, abs=5e-5)
    assert widths(es.search(graph, scored(graph), keep_macs=share + 1e-4)) == least


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8])
def test_one_channel_at_a_time_finds_the_same(seed: int, keep: float) -> None:
    """Worst first until the budget is met, then best first whatever still fits."""
    graph = chain([9, 5, 13, 8])
    scores, whole = scored(graph, seed), es.cost(graph).macs
    kept = {group: set(range(group.size)) for group in graph.groups}

    def fits() -> bool:
        return es.cost(graph, {group: len(indices) for group, indices in kept.items()}).macs <= keep * whole

    gone = []
    for _, group, channel in sorted(((float(s), g, c) for g, v in scores.items() for c, s in enumerate(v)), key=lambda x: x[0]):
        if fits():
            break
        if len(kept[group]) > 1:
            kept[group].remove(channel)
            gone.append((group, channel))
    for group, channel in reversed(gone):
        kept[group].add(channel)
        if not fits():
            kept[group].remove(channel)
    found = es.search(graph, scores, keep_macs=keep, round_to=1, min_channels=1)
    assert {group: set(indices.tolist()) for group, indices in found.items()} == kept


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "needs a budget"),
        ({"keep_macs": 50}, "keep_macs is a share between 0 and 1"),
        ({"prune_channels": -0.1}, "prune_channels is a share"),
        ({"max_macs": 0}, "max_macs is a number of MACs above 0"),
        ({"keep_macs": float("nan")}, "keep_macs is a share"),
        ({"keep_macs": 0.5, "scope": "local"}, "scope is 'global' or 'group'"),
        ({"keep_macs": 0.5, "normalise": "std"}, "normalise is"),
        ({"keep_macs": 0.5, "max_ratio": 1.5}, "max_ratio is a share"),
        ({"keep_macs": 0.5, "min_channels": 0}, "min_channels is a whole number of at least 1"),
        ({"keep_macs": 0.5, "max_ratio": {FakeGroup("other", 8): 0.5}}, "'other' is not among the groups"),
        ({"keep_macs": 0.5, "min_channels": {FakeGroup("other", 8): 2}}, "'other' is not among the groups"),
        ({"keep_macs": 0.5, "round_to": 2.5}, "round_to is a whole number of at least 1"),
        ({"keep_macs": 0.5, "round_to": 0}, "round_to is a whole number"),
        ({"keep_macs": "0.5"}, "keep_macs is a share"),
        ({"keep_macs": True}, "keep_macs is a share"),
        ({"max_params": "1e6"}, "max_params is a number of parameters"),
        ({"keep_macs": 0.5, "max_ratio": None}, "max_ratio is a share"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, object], words: str) -> None:
    graph = chain([8, 8])
    with pytest.raises(es.EspalierError, match=words):
        es.search(graph, scored(graph), **options)  # type: ignore[arg-type]


def test_scores_may_be_arrays_and_lists() -> None:
    graph = chain([8, 8])
    scores = scored(graph)
    wanted = es.search(graph, scores, keep_macs=0.5)
    for spelling in (Tensor.numpy, Tensor.tolist):
        found = es.search(graph, {group: spelling(values) for group, values in scores.items()}, keep_macs=0.5)
        assert all(torch.equal(found[group], wanted[group]) for group in wanted)


def test_wrong_scores_are_refused() -> None:
    graph = chain([8, 8])
    first = graph.groups[0]
    for scores, words in (
        ({}, "at least one group"),
        ({first: torch.tensor([float("nan")] + [1.0] * 7)}, "'conv0' are not all finite"),
        ({first: torch.full((8,), float("inf"))}, "not all finite"),
        ({first: torch.rand(7)}, r"shape \[7\]; one score per channel is \[8\]"),
        ({first: torch.rand(8, device="meta")}, "meta device"),
        ({first: torch.rand(8, 1)}, r"shape \[8, 1\]"),
        ({FakeGroup("other", 8): torch.rand(8)}, "not among the groups"),
        ({first: None}, "'conv0' are no numbers"),
        ([torch.rand(8)], "got list"),
        (None, "scores map groups"),
    ):
        with pytest.raises(es.EspalierError, match=words):
            es.search(graph, scores, keep_macs=0.5)
