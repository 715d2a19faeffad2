"""Costs in closed form: against extents multiplied out one by one, and what is refused."""

import math

import pytest
import torch

import espalier as es
from espalier.graph.extent import Extent, Work
from tests.helpers.graphs import FakeGraph, FakeGroup, chain


def one_by_one(graph: FakeGraph, widths: list[int]) -> tuple[int, int, int]:
    shares = [width / group.size for width, group in zip(widths, graph.groups, strict=True)]
    return (
        sum(work.at(shares) for work in graph.work),
        sum(math.prod(extent.at(shares) for extent in extents) for extents in graph.weights.values()),
        sum(work.at(shares) for work in graph.activations),
    )


def test_the_whole_and_its_layers() -> None:
    cost = es.cost(chain([8, 4], classes=10, pixels=16))
    assert (cost.macs, cost.params, cost.activations) == (8 * 27 * 16 + 4 * 72 * 16 + 40, 8 * 27 + 4 * 72 + 50, 12 * 16 + 10)
    assert cost.flops == 2 * cost.macs
    assert cost.activation_bytes == 4 * cost.activations
    assert cost.layers["conv1"] == (4 * 72 * 16, 4 * 72, 64)
    assert cost.layers["fc"].flops == 80
    assert list(cost.layers) == ["conv0", "conv1", "fc"]


def test_widths_of_some_groups() -> None:
    graph = chain([8, 4])
    cost = es.cost(graph, {graph.groups[0]: 3})
    assert (cost.macs, cost.params, cost.activations) == one_by_one(graph, [3, 4])
    assert cost.layers["conv1"].macs == 4 * 3 * 9 * 16


@pytest.mark.parametrize("seed", range(20))
def test_sums_and_products_of_groups(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)

    def number(high: int) -> int:
        return int(torch.randint(1, high, (), generator=draw))

    groups = tuple(FakeGroup(f"g{k}", number(9)) for k in range(4))

    def extent() -> Extent:
        terms = []
        for _ in range(number(4)):
            held = tuple(k for k in range(4) if number(3) == 1)
            terms.append((number(5) * math.prod(groups[k].size for k in held), held))
        return Extent(tuple(terms))

    rows = tuple(Work(f"m{k % 3}", "mm", tuple(extent() for _ in range(number(5)))) for k in range(10))
    graph = FakeGraph(groups, rows[:6], {f"m{k}.weight": row.extents for k, row in enumerate(rows[4:])}, rows[2:])
    for _ in range(5):
        widths = [number(group.size + 1) for group in groups]
        cost = es.cost(graph, dict(zip(groups, widths, strict=True)))
        assert (cost.macs, cost.params, cost.activations) == one_by_one(graph, widths)
        for column, total in enumerate((cost.macs, cost.params, cost.activations)):
            assert sum(layer[column] for layer in cost.layers.values()) == total


def test_nothing_to_cut_and_nothing_to_count() -> None:
    assert es.cost(FakeGraph((), (Work("", "mm", (Extent.fixed(3), Extent.fixed(4))),))).macs == 12
    assert es.cost(FakeGraph((FakeGroup("g", 3),))) == es.Cost(0, 0, 0, 0, {})


def test_costs_beyond_32_bits() -> None:
    rows = (Work("a", "mm", (Extent.fixed(2**24 + 1), Extent(((2**20, (0,)),)))),)
    assert es.cost(FakeGraph((FakeGroup("g", 2**20),), rows)).macs == (2**24 + 1) * 2**20


def test_a_cut_graph_is_counted_anew() -> None:
    graph = chain([8, 4])
    before = es.cost(graph)
    narrow = chain([6, 4])
    graph.groups, graph.work, graph.weights = narrow.groups, narrow.work, narrow.weights
    graph.activations, graph.version = narrow.activations, 1
    assert es.cost(graph).macs < before.macs
    assert es.cost(graph, {graph.groups[0]: 3}).macs == one_by_one(graph, [3, 4])[0]


@pytest.mark.parametrize("width", [0, -1, 9, 2.5, "4", torch.tensor([1, 2])])
def test_impossible_widths_are_refused(width: object) -> None:
    graph = chain([8, 4])
    with pytest.raises(es.EspalierError, match="conv0"):
        es.cost(graph, {graph.groups[0]: width})  # type: ignore[dict-item]


def test_groups_of_elsewhere_are_refused() -> None:
    graph = chain([8, 4])
    with pytest.raises(es.EspalierError, match="not among the groups of this graph"):
        es.cost(graph, {FakeGroup("other", 8): 4})
    with pytest.raises(es.EspalierError, match=r"frozen \(it is the output\)"):
        es.cost(graph, {FakeGroup("out", 8, reason="it is the output"): 4})


def test_something_else_than_a_graph_is_refused() -> None:
    with pytest.raises(es.EspalierError, match=r"as es\.trace\(model, inputs\) returns it; got Linear"):
        es.cost(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(es.EspalierError, match="'conv0' is not among the groups"):
        es.cost(chain([8, 4]), {"conv0": 4})  # type: ignore[dict-item]


def test_the_table_is_short() -> None:
    lines = str(es.cost(chain([8] * 30))).splitlines()
    assert len(lines) == 13
    assert lines[-2].startswith("21 more")
    assert lines[-1].split()[0] == "total"
    assert len({len(line) for line in lines}) == 1
