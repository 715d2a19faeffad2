"""What a trace of one model costs, in turn with a forward pass and with Torch-Pruning's graph in the same process.

Batch 2, one thread. ``graph`` is Torch-Pruning's ``build_dependency``; without that package, or where it fails, it is left out.

Usage: PYTHONPATH=FOLDER python -m benchmarks.coverage.speed NAME       (run by benchmarks.coverage --side speed)
For Torch-Pruning: pip install --target FOLDER --no-deps torch-pruning==1.6.1.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import torch

import espalier as es
from benchmarks.common import compare, interleaved, seconds
from benchmarks.coverage.child import Record, limit, one_line
from benchmarks.coverage.models import Entry, build, example, find, watch
from benchmarks.coverage.theirs import graph_of

TIME = 300  # seconds a model
ROUNDS, FEW, SLOW = 5, 3, 3.0  # a round of several seconds is repeated less often


def run(key: str) -> None:
    limit(TIME)
    entry, record = find(key), Record(key)
    with record.stage("dense"):
        model, inputs = build(entry).eval(), example(entry)
    with record.stage("trace"):
        variants: dict[str, Callable[[], Any]] = {
            "forward": lambda: forward(entry, model, inputs),
            "trace": lambda: es.trace(model, inputs, check=False),
            "trace and trial cut": lambda: es.trace(model, inputs),
        }
        for variant in variants.values():
            variant()
    try:
        graph_of(entry, model, inputs)
        variants["graph"] = lambda: graph_of(entry, model, inputs)
    except Exception as error:
        record.note(graph_error=one_line(error))
        model, inputs = build(entry).eval(), example(entry)  # it may have left hooks behind
    with record.stage("times"):
        gc.collect()
        gc.freeze()  # a collection goes through what a variant made, not through all that this process has loaded
        taken = sum(seconds(variant, 1) for variant in variants.values())
        times = interleaved(variants, FEW if taken > SLOW else ROUNDS, warmup=0)
        found = {base: compare(times, base) for base in ("forward", "graph") if base in times}
        record.note(times={name: row["median_s"] for name, row in found["forward"].items()})
        record.note(**{f"over_{base}": {name: row["ratio"] for name, row in rows.items()} for base, rows in found.items()})
    record.holds()


def forward(entry: Entry, model: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
    with torch.no_grad():
        watch(entry, model.eval(), inputs)


if __name__ == "__main__":
    run(sys.argv[1])
