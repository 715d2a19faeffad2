"""Histograms of channel norms at the cut."""

import pytest
import torch
from torch import nn

import espalier as es
from espalier.methods.frame.cutting.norms import norms_at_cut
from espalier.records.norms import EDGES, NormHistogram
from tests.structured.nets import METHODS, Training, early


def by_hand(weight: torch.Tensor, kept: list[int], edges: tuple[float, ...]) -> tuple[list[int], list[int]]:
    """Counts of a group whose channels have these vectors of weights, one row each."""
    norms = weight.double().norm(dim=1)
    relative = norms / norms[kept].mean()
    counts = [[0] * (len(edges) + 1) for _ in range(2)]
    for channel, norm in enumerate(relative.tolist()):
        counts[channel not in kept][sum(norm >= edge for edge in edges)] += 1
    return counts[0], counts[1]


def test_the_norm_of_a_channel_is_that_of_all_its_weights() -> None:
    net = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 2))
    with torch.no_grad():
        net[0].weight[5:9] *= 0.01
        net[2].weight[:, 5:9] *= 0.01
        net[0].bias.fill_(1e6)  # counts for nothing
    graph = es.trace(net, torch.zeros(1, 3))
    (group,) = graph.groups
    kept = [0, 1, 2, 3, 4, 6, 9, 10, 11]
    from espalier.graph.layout import Layout

    found = norms_at_cut(net, Layout([group]), {group: torch.tensor(kept)})
    expected = by_hand(torch.cat([net[0].weight.detach(), net[2].weight.detach().T], 1), kept, EDGES)
    assert (list(found.kept), list(found.removed)) == expected
    assert (sum(found.kept), sum(found.removed)) == (9, 3)
    assert NormHistogram.from_content(found.content()) == found


def test_a_channel_of_zeros_lies_in_the_first_bin() -> None:
    assert NormHistogram.of([1.0], [0.0]).removed[0] == 1
    assert NormHistogram.of([1.0, 99.0], []).kept[-1] == 1


@pytest.mark.parametrize("key", ["ocsp", "ocsp-progressive", "epi-taylor", "prune-at-0", "force"])
def test_every_cut_records_how_many_stay_and_leave(key: str) -> None:
    left = Training(METHODS[key]).train().finish().shrinkage
    before = sum(dense for dense, _ in left.widths.values())
    for cut in left.cuts:
        now = sum(cut.norms.kept)
        assert now + sum(cut.norms.removed) == before
        before = now
    assert before == sum(width for _, width in left.widths.values())


def test_strong_shrinkage_sets_the_channels_that_leave_apart() -> None:
    left = Training(early(start=0.05, exposure=8.0, round_to=1)).train().finish().shrinkage
    histogram = left.cuts[-1].norms
    half = EDGES.index(0.5) + 1
    assert sum(histogram.removed[:half]) > 0.9 * sum(histogram.removed)
    assert sum(histogram.kept[half:]) > 0.9 * sum(histogram.kept)


def test_a_state_of_an_older_version_has_no_norms() -> None:
    training = Training(METHODS["prune-at-0"])
    state = training.pruner.state_dict()
    assert state["run"].pop("norms")
    training.pruner.load_state_dict(state)
    assert [cut.norms for cut in training.run.made] == [None]
