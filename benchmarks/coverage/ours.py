"""Espalier on one model: trace it, cut half the channels of every group, run it, and hold the result against both oracles.

Usage: python -m benchmarks.coverage.ours NAME          (run by benchmarks.coverage --side ours; times: speed.py)
"""

from __future__ import annotations

import copy
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

import espalier as es
from benchmarks.coverage import oracles
from benchmarks.coverage.child import Failed, Record, check_runs, dense_shapes, limit, one_line, size
from benchmarks.coverage.models import Entry, build, example, find, watch
from benchmarks.coverage.shares import enliven, shares

TIME = 180  # seconds a model
SEED = 3  # of the kept channels


def run(key: str) -> None:
    limit(TIME)
    entry, record = find(key), Record(key)
    inputs = example(entry)
    with record.stage("dense"):
        model = build(entry)
        enliven(model)
        before = dense_shapes(entry, model)
        expected = outputs(entry, model, inputs)
        if not all(output.isfinite().all() for output in expected):
            raise Failed("the dense model's outputs are not finite")
        macs, parameters = size(entry, model, inputs)
        record.note(macs=macs, parameters=parameters)
    with record.stage("trace"):
        graph = trace(model, inputs)
        record.note(**shares(model, graph), notes=graph.notes)
    record.note(**zeroed(entry, model, graph, inputs))
    dense, keeps = copy.deepcopy(model), oracles.random_keeps(graph.groups, SEED)
    places = oracles.kept_positions(model, keeps)
    outputs(entry, model, inputs)  # some attentions now hold gathered biases of the old width
    with record.stage("cut"):
        start = time.perf_counter()
        es.cut(model, keeps)
        record.note(cut_s=time.perf_counter() - start)
    with record.stage("forward"):
        found = outputs(entry, model, inputs)
    record.note(**natively(entry, dense, model, found, inputs, places))
    del dense
    check_runs(record, entry, model, before)
    macs, parameters = size(entry, model.eval(), inputs)
    record.note(macs_after=macs, parameters_after=parameters)
    record.holds()


def outputs(entry: Entry, model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        return watch(entry, model.eval(), inputs)


def trace(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """The graph; the model must be left as it was."""
    before = {name: tensor.clone() for name, tensor in oracles.tensors(model.train()).items()}
    graph = es.trace(model, inputs)
    changed = [name for name, tensor in oracles.tensors(model).items() if not torch.equal(tensor, before[name])]
    if changed or not all(module.training for module in model.modules()):
        raise Failed(f"the trace changed the model: {changed[:3] or 'training flags'}")
    return graph


def zeroed(entry: Entry, model: nn.Module, graph: Any, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Oracle 1, on a cut of those groups alone whose channels can be zeroed without changing what others compute."""
    keeps = oracles.random_keeps([group for group in graph.groups if group.exact], SEED)
    noted = {"exact_groups": len(keeps)}
    twins = dict(zip(graph.groups, copy.deepcopy(graph).groups, strict=True))  # the cut brings those up to date, not ours
    try:
        dense, cut = copy.deepcopy(model), copy.deepcopy(model)
        places = oracles.kept_positions(model, keeps)
        es.cut(cut, {twins[group]: keep for group, keep in keeps.items()})
        found = outputs(entry, cut, inputs)
        del cut
        oracles.zero(dense, places)
        return {**noted, "zeroed_difference": oracles.difference(found, outputs(entry, dense, inputs))}
    except Exception as error:
        return {**noted, "zeroed_error": one_line(error)}


def natively(
    entry: Entry, dense: nn.Module, cut: nn.Module, found: list[Tensor], inputs: tuple[Any, ...], places: oracles.Places
) -> dict[str, Any]:
    """Oracle 2, on the cut of all groups; the difference to oracle 1 is noted too, though norms may account for it."""
    try:
        misplaced = oracles.misplaced(dense, cut, places)
        narrow, stale = oracles.native(dense, cut)
        noted = {"misplaced": misplaced[:5], "stale": stale[:5]}
    except Exception as error:
        return {"native_error": one_line(error)}
    try:
        noted["native_difference"] = oracles.difference(found, outputs(entry, narrow, inputs))
    except Exception as error:
        noted["native_error"] = one_line(error)
    oracles.zero(dense, places)
    return {**noted, "zeroed_all_difference": oracles.difference(found, outputs(entry, dense, inputs))}


if __name__ == "__main__":
    run(sys.argv[1])
