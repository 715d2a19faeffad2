"""Recurrent layers, all steps at once, and cells, which do one step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from espalier.graph.labels import Labels
from espalier.graph.rows import Rows, stack
from espalier.graph.rules.registry import Arguments, rule

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule(*GATES)
def recurrent(labels: Labels, op: str, given: Arguments, out: tuple[Tensor, ...]) -> None:
    """Input (T, B, I), (B, T, I) or packed (steps, I), states (layers x directions, B, H). Weights of each layer and direction:
    (gates x H, I), (gates x H, P), biases of gates x H, and (P, H) if the LSTM projects its H cells to P outputs; else P is H.

    One tensor holds the states of all layers and directions, so all lose the same units.
    """
    x, states, weights = given["input"], out[1:], list(given["params"])
    *others, inputs = labels.of(x)
    cells = shown = None
    directions = 2 if given["bidirectional"] else 1
    size = len(weights) // states[0].shape[0]
    for start in range(0, len(weights), size):
        own = weights[start : start + size]
        projects = own.pop() if len(own) % 2 else None
        for gated in own:
            rows = labels.of(gated)[0]
            if GATES[op] > 1:
                _, rows = labels.split(rows, (GATES[op], states[-1].shape[2]), (False, True))
            cells = _one(labels, cells, rows, op)
        shown = cells if projects is None and shown is None else shown
        if projects is not None:
            shown = _one(labels, shown, labels.of(projects)[0], op)
            labels.unify(cells, labels.of(projects)[1], op)
        labels.unify(labels.of(own[1])[1], shown, op)
        labels.unify(labels.of(own[0])[1], inputs, op)
        for weight in (*own[:2], *(() if projects is None else (projects,))):
            lengths = zip(labels.of(weight), weight.shape, strict=True)
            labels.note_work(op, *zip(others, x.shape, strict=False), *lengths)
        if start // size % directions == directions - 1:  # what the next layer is given
            inputs = stack([(shown, states[0].shape[2])] * directions)
    labels.put(out[0], [*others, inputs])
    batch = None if x.dim() == 2 else others[0 if given["batch_first"] else 1]
    for before, after, rows in zip(_listed(given["hx"]), states, (shown, cells), strict=False):
        labels.freeze(labels.of(before)[0], "is one for each layer and direction")
        labels.unify(labels.of(before)[2], rows, op)
        labels.put(after, [None, batch, rows])


@rule("_pack_padded_sequence")
def pack(labels: Labels, op: str, given: Arguments, out: tuple[Tensor, ...]) -> None:
    """(T, B, ...) or (B, T, ...) -> (steps, ...)."""
    first, second, *others = labels.of(given["input"])
    for rows in (first, second):
        labels.freeze(rows, "is packed")
    labels.put(out[0], [None, *others])


@rule("_pad_packed_sequence")
def pad_packed(labels: Labels, op: str, given: Arguments, out: tuple[Tensor, ...]) -> None:
    """(steps, ...) -> (T, B, ...) or (B, T, ...)."""
    steps, *others = labels.of(given["data"])
    labels.freeze(steps, "is unpacked")
    labels.put(out[0], [None, None, *others])


CELLS = {"lstm_cell": 4, "gru_cell": 3, "rnn_tanh_cell": 1, "rnn_relu_cell": 1}


@rule(*CELLS)
def cell(labels: Labels, op: str, given: Arguments, out: Tensor | tuple[Tensor, ...]) -> None:
    """Input (B, I), states (B, H), weights (gates x H, I) and (gates x H, H), biases of gates x H."""
    x, from_input, from_state = given["input"], given["w_ih"], given["w_hh"]
    batch, inputs = labels.of(x)
    units = None
    for gated in (from_input, from_state, given["b_ih"], given["b_hh"]):
        if gated is not None:
            rows = labels.of(gated)[0]
            if CELLS[op] > 1:
                _, rows = labels.split(rows, (CELLS[op], from_state.shape[1]), (False, True))
            units = _one(labels, units, rows, op)
    for weight, rows in ((from_input, inputs), (from_state, units)):
        labels.unify(labels.of(weight)[1], rows, op)
        labels.note_work(op, (batch, x.shape[0]), *zip(labels.of(weight), weight.shape, strict=True))
    for before, after in zip(_listed(given["hx"]), _listed(out), strict=True):
        labels.unify(labels.of(before)[1], units, op)
        labels.put(after, [batch, units])


def _listed(states: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return (states,) if isinstance(states, Tensor) else states


def _one(labels: Labels, one: Rows, other: Rows, op: str) -> Rows:
    """Rows of two dimensions that are one; the first time there is only the other."""
    if one is not None:
        labels.unify(one, other, op)
    return other if one is None else one
