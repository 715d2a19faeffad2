"""Reductions over the members of a group: against loops over channels, on hand-made index maps."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import espalier as es
from espalier.graph.scores import channel_counts, channel_sums, member_means, per_member, reduce, weights_of
from tests.helpers.graphs import FakeGroup, FakeMember


class Branches(nn.Module):
    """Two convolutions whose outputs are concatenated and flattened into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(9)
        self.fc = nn.Linear(9 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Images of 4 x 4."""
        return self.fc(self.norm(torch.cat([self.a(x), self.b(x)], 1)).relu().flatten(1))


def index(*entries: int) -> Tensor:
    return torch.tensor(entries)


@pytest.fixture
def net() -> Branches:
    torch.manual_seed(0)
    return Branches()


@pytest.fixture
def group() -> FakeGroup:
    """The channels of ``a``; the concatenation and the flattened image hold others too."""
    four = torch.arange(4)
    both = torch.cat([four, index(-1, -1, -1, -1, -1)])
    return FakeGroup(
        "a",
        4,
        (
            FakeMember("a.weight", 0, four),
            FakeMember("a.bias", 0, four),
            FakeMember("norm.weight", 0, both),
            FakeMember("norm.bias", 0, both),
            FakeMember("norm.running_var", 0, both),
            FakeMember("fc.weight", 1, both.repeat_interleave(4)),
        ),
    )


def parts(net: Branches, channel: int) -> list[Tensor]:
    """What channel ``channel`` of ``a`` is made of: convolution, gamma, columns of the linear layer."""
    return [net.a.weight[channel], net.norm.weight[channel], net.fc.weight[:, 4 * channel : 4 * channel + 4]]


def by_hand(net: Branches, score: Callable[[list[Tensor]], Tensor]) -> Tensor:
    return torch.stack([score([part.detach() for part in parts(net, channel)]) for channel in range(4)])


def test_a_traced_model_gives_the_same(net: Branches) -> None:
    """Concatenated, flattened and cut: the index maps of a trace are those that a reader would write."""
    graph = es.trace(net, torch.zeros(1, 3, 4, 4))
    (group,) = (g for g in graph.groups if g.name == "a")

    def score(found: list[Tensor]) -> Tensor:
        return sum(p.square().sum() / p.numel() ** 0.5 for p in found) / len(found)

    expected = by_hand(net, score)
    torch.testing.assert_close(member_means(group, weights_of(net)), expected)
    es.cut(net, {group: [1, 3]})
    torch.testing.assert_close(member_means(group, weights_of(net)), expected[[1, 3]])


@pytest.mark.parametrize("power", [None, 1, 2, 3, 0.5])
def test_sums_over_all_members(net: Branches, group: FakeGroup, power: float | None) -> None:
    def score(found: list[Tensor]) -> Tensor:
        return sum((p if power is None else p.abs() ** power).sum() for p in found)

    torch.testing.assert_close(channel_sums(group, weights_of(net), power), by_hand(net, score))


def test_counts_biases_and_buffers(net: Branches, group: FakeGroup) -> None:
    assert channel_counts(group, weights_of(net)).tolist() == [27 + 1 + 8] * 4
    assert channel_counts(group, weights_of(net, biases=True)).tolist() == [27 + 1 + 8 + 2] * 4
    assert channel_counts(group, weights_of(net, biases=True, buffers=True)).tolist() == [27 + 1 + 8 + 3] * 4


def test_the_saliency_of_ocspruner(net: Branches, group: FakeGroup) -> None:
    def score(found: list[Tensor]) -> Tensor:
        return sum(p.square().sum() / p.numel() ** 0.5 for p in found) / len(found)

    torch.testing.assert_close(member_means(group, weights_of(net)), by_hand(net, score))
    l1 = by_hand(net, lambda found: sum(p.abs().mean() for p in found) / len(found))
    torch.testing.assert_close(member_means(group, weights_of(net), 1, root=1), l1)


def test_members_that_hold_some_channels_only() -> None:
    group = FakeGroup("g", 3, (FakeMember("x", 0, index(0, 1, 2)), FakeMember("y", 0, index(2, -1))))
    values = {"x": torch.tensor([1.0, 2, 3]), "y": torch.tensor([5.0, 7])}
    assert channel_sums(group, values).tolist() == [1, 2, 8]
    assert member_means(group, values).tolist() == [1, 4, (9 + 25) / 2]


def test_gradients(net: Branches, group: FakeGroup) -> None:
    net(torch.randn(2, 3, 4, 4)).square().sum().backward()
    taylor = {name: p.grad * p for name, p in net.named_parameters() if not name.endswith("bias")}
    by_loop = [
        sum(
            (p * g).sum()
            for p, g in (
                (net.a.weight[c], net.a.weight.grad[c]),
                (net.norm.weight[c], net.norm.weight.grad[c]),
                (net.fc.weight[:, 4 * c : 4 * c + 4], net.fc.weight.grad[:, 4 * c : 4 * c + 4]),
            )
        )
        for c in range(4)
    ]
    torch.testing.assert_close(channel_sums(group, taylor), torch.stack(by_loop))


def test_any_reduction_and_each_member(net: Branches, group: FakeGroup) -> None:
    values = weights_of(net)
    peaks = reduce(group, values, lambda tensor, dims: tensor.abs().amax(dims) if dims else tensor.abs())
    members = list(per_member(group, values, lambda tensor, dims: tensor.abs().amax(dims) if dims else tensor.abs()))
    assert [member.name for member, _ in members] == ["a.weight", "norm.weight", "fc.weight"]
    torch.testing.assert_close(members[0][1], net.a.weight.detach().abs().amax((1, 2, 3)))
    torch.testing.assert_close(peaks, members[0][1] + members[1][1] + members[2][1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_summed_in_full(dtype: torch.dtype) -> None:
    group = FakeGroup("g", 2, (FakeMember("x", 0, index(0, 1)),))
    values = {"x": torch.full((2, 300, 300), 2.0, dtype=dtype)}
    for total in (channel_sums(group, values, 2), channel_sums(group, values, 1) * 2, channel_counts(group, values) * 4):
        assert total.tolist() == [360_000.0] * 2
        assert total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_meta_tensors_have_scores_without_values(net: Branches, group: FakeGroup) -> None:
    net.to("meta")
    for scores in (channel_sums(group, weights_of(net), 2), member_means(group, weights_of(net))):
        assert scores.is_meta
        assert scores.shape == (4,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_scores_on_a_gpu(net: Branches, group: FakeGroup) -> None:
    expected = member_means(group, weights_of(net))
    found = member_means(group, weights_of(net.cuda()))
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected)


def test_wrapped_models(net: Branches, group: FakeGroup) -> None:
    assert torch.equal(channel_sums(group, weights_of(nn.DataParallel(net))), channel_sums(group, weights_of(net)))


def test_what_does_not_fit_is_refused(net: Branches, group: FakeGroup) -> None:
    with pytest.raises(es.EspalierError, match=r"no parameter or buffer 'a.weight'"):
        channel_sums(group, weights_of(nn.Linear(2, 2)))
    with pytest.raises(es.EspalierError, match=r"a.weight has shape \[3, 3\]"):
        channel_sums(group, {"a.weight": torch.rand(3, 3)})
    with pytest.raises(es.EspalierError, match="No member of group 'a' has values"):
        channel_sums(group, {})
