"""LSTM, GRU and plain recurrent layers: inputs, hidden units and projections are cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.utils.flop_counter import FlopCounterMode

import espalier as es
from espalier import EspalierError
from tests.graph.oracles import check_groups, sizes
from tests.graph.small import reasons


class Between(nn.Module):
    """A recurrent layer between linear ones."""

    def __init__(self, kind: Any, **settings: Any) -> None:
        super().__init__()
        out = (settings.get("proj_size") or 6) * (2 if settings.get("bidirectional") else 1)
        self.first, self.recurrent = nn.Linear(4, 8), kind(8, 6, **settings)
        self.middle, self.last = nn.Linear(out, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.recurrent(self.first(x))[0]))


KINDS: dict[str, tuple[Any, dict[str, Any], list[int]]] = {
    "lstm": (nn.LSTM, {"batch_first": True}, [6, 8, 12]),
    "time first": (nn.LSTM, {}, [6, 8, 12]),
    "two ways in two layers": (nn.LSTM, {"bidirectional": True, "num_layers": 2, "dropout": 0.1}, [6, 8, 12]),
    "projected": (nn.LSTM, {"proj_size": 4}, [4, 6, 8, 12]),
    "projected in two layers": (nn.LSTM, {"proj_size": 4, "num_layers": 2}, [4, 6, 8, 12]),
    "gru": (nn.GRU, {"bidirectional": True}, [6, 8, 12]),
    "gru in three layers": (nn.GRU, {"num_layers": 3, "bias": False}, [6, 8, 12]),
    "tanh": (nn.RNN, {}, [6, 8, 12]),
    "relu": (nn.RNN, {"nonlinearity": "relu", "bias": False}, [6, 8, 12]),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_layers_are_cut_right(kind: str, tmp_path: Path):
    layer, settings, expected = KINDS[kind]
    graph = check_groups(lambda: Between(layer, **settings), torch.randn(5, 2, 4), tmp_path)
    assert sizes(graph) == expected
    assert all(group.exact for group in graph.groups)


class Steps(nn.Module):
    """A cell between linear layers, one step after the other."""

    def __init__(self, kind: Any, **settings: Any) -> None:
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(4, 8), kind(8, 6, **settings), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        state, steps = None, []
        for step in self.first(x).unbind(0):
            state = self.cell(step, state)
            steps.append(state[0] if isinstance(state, tuple) else state)
        return self.last(torch.stack(steps))


CELLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lstm": (nn.LSTMCell, {}),
    "lstm without bias": (nn.LSTMCell, {"bias": False}),
    "gru": (nn.GRUCell, {}),
    "tanh": (nn.RNNCell, {}),
    "relu": (nn.RNNCell, {"nonlinearity": "relu", "bias": False}),
}


@pytest.mark.parametrize("kind", CELLS)
def test_cells_are_cut_right(kind: str, tmp_path: Path):
    layer, settings = CELLS[kind]
    graph = check_groups(lambda: Steps(layer, **settings), torch.randn(5, 2, 4), tmp_path)
    assert sizes(graph) == [6, 8]
    assert all(group.exact for group in graph.groups)


@pytest.mark.parametrize("kind", CELLS)
def test_the_cost_of_a_cell_is_that_of_its_products(kind: str):
    layer, settings = CELLS[kind]
    model, x = Steps(layer, **settings), torch.zeros(5, 2, 4)
    graph = es.trace(model, x)
    es.cut(model, {group: [0, 1, 2] for group in graph.groups})
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert 2 * es.cost(graph).macs == counter.get_total_flops()


def test_a_first_state_from_outside_keeps_the_units_of_a_cell():
    class Given(Steps):
        def forward(self, x: Tensor, state: Tensor) -> Tensor:  # type: ignore[override]
            return self.last(self.cell(self.first(x), state))

    graph = es.trace(Given(nn.GRUCell), (torch.zeros(2, 4), torch.zeros(2, 6)))
    assert sizes(graph) == [8]
    assert "gru_cell ties it to something that cannot be cut" in reasons(graph)


def test_the_cost_counts_every_step():
    graph = es.trace(Between(nn.GRU, bidirectional=True), torch.zeros(5, 2, 4))
    linear = 4 * 8 + 12 * 12 + 12 * 3
    assert es.cost(graph).macs == 5 * 2 * (linear + 2 * 3 * 6 * (8 + 6))


def test_states_from_outside_keep_the_hidden_units():
    class Given(Between):
        def forward(self, x: Tensor, state: Tensor) -> Tensor:  # type: ignore[override]
            return self.last(self.middle(self.recurrent(self.first(x), state)[0]))

    graph = es.trace(Given(nn.GRU), (torch.zeros(5, 2, 4), torch.zeros(1, 2, 6)))
    assert sizes(graph) == [8, 12]
    assert "gru ties it to something that cannot be cut" in reasons(graph)


class Packed(Between):
    """Of two sequences one is shorter."""

    def forward(self, x: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(self.first(x), torch.tensor([3, 5]), enforce_sorted=False)
        return self.last(self.middle(rnn.pad_packed_sequence(self.recurrent(packed)[0])[0]))


@pytest.mark.parametrize("kind", ["lstm", "two ways in two layers", "gru", "tanh"])
def test_packed_sequences_are_cut_right(kind: str, tmp_path: Path):
    layer, settings, expected = KINDS[kind]
    settings = {**settings, "batch_first": False}
    graph = check_groups(lambda: Packed(layer, **settings), torch.randn(5, 2, 4), tmp_path)
    assert sizes(graph) == expected
    assert "Run with values" in graph.notes[0]  # lengths are read


class Learned(Between):
    """Learned initial states."""

    def __init__(self, kind: Any, *, packs: bool, **settings: Any) -> None:
        super().__init__(kind, **settings)
        count = settings.get("num_layers", 1) * (2 if settings.get("bidirectional") else 1)
        self.packs, self.states = packs, nn.ParameterList([torch.randn(count, 1, 6) for _ in range(1 + (kind is nn.LSTM))])

    def forward(self, x: Tensor) -> Tensor:
        states = tuple(state.expand(-1, x.shape[1], -1).contiguous() for state in self.states)
        x = self.first(x)
        given = rnn.pack_padded_sequence(x, torch.tensor([3, 5]), enforce_sorted=False) if self.packs else x
        out = self.recurrent(given, states if len(states) > 1 else states[0])[0]
        return self.last(self.middle(rnn.pad_packed_sequence(out)[0] if self.packs else out))


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("kind", ["time first", "two ways in two layers", "gru", "gru in three layers"])
def test_learned_states_are_cut_along_but_not_in_their_number(kind: str, packs: bool, tmp_path: Path):
    layer, settings, expected = KINDS[kind]
    graph = check_groups(lambda: Learned(layer, packs=packs, **settings), torch.randn(5, 2, 4), tmp_path)
    assert sizes(graph) == expected


def test_packed_sequences_as_the_only_input():
    model = Packed(nn.GRU)
    model.forward = lambda packed: model.last(rnn.pad_packed_sequence(model.recurrent(packed)[0])[0])  # type: ignore[method-assign]
    model.last = nn.Linear(6, 3)
    packed = rnn.pack_padded_sequence(torch.randn(5, 2, 8), torch.tensor([3, 5]), enforce_sorted=False)
    assert 6 in sizes(es.trace(model, packed))


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_a_projection_stays_one():
    model = Between(nn.LSTM, proj_size=4)
    graph = es.trace(model, torch.zeros(5, 2, 4))
    hidden, outputs = (next(group for group in graph.groups if group.size == size) for size in (6, 4))
    with pytest.raises(EspalierError, match="recurrent would have 4 hidden units and as many outputs"):
        es.cut(model, {hidden: [0, 1, 2, 3]})
    es.cut(model, {hidden: [0, 1, 2, 3], outputs: [0, 1]})
    assert model(torch.zeros(5, 2, 4)).shape == (5, 2, 3)


def test_the_cost_of_packed_sequences_leaves_out_what_is_padded():
    graph = es.trace(Packed(nn.GRU), torch.zeros(5, 2, 4))
    linear = 4 * 8 + 6 * 12 + 12 * 3
    assert es.cost(graph).macs == 5 * 2 * linear + (3 + 5) * 3 * 6 * (8 + 6)


def test_the_last_state_has_the_hidden_units():
    class Last(Between):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.middle(self.recurrent(self.first(x))[1][0][-1]))

    model = Last(nn.LSTM)
    graph = es.trace(model, torch.zeros(5, 2, 4))
    assert sizes(graph) == [6, 8, 12]
    es.cut(model, {group: [0, 1] for group in graph.groups})
    assert model(torch.zeros(5, 2, 4)).shape == (2, 3)
    assert model.recurrent.hidden_size == 2
