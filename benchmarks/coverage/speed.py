"""What a trace of one model costs, in turn with a forward pass and with Torch-Pruning's graph in the same process.

Batch 2, one thread. ``graph`` is Torch-Pruning's ``build_dependency``; without that package, or where it fails, it is left out.
``graph with groups`` is that and a list of all its groups, which a trace returns as well; it is left out where one takes more
than 15 s or 8 GiB.

Usage: PYTHONPATH=FOLDER python -m benchmarks.coverage.speed NAME       (run by benchmarks.coverage --side speed)
For Torch-Pruning: pip install --target FOLDER --no-deps torch-pruning==1.6.1.
"""

from __future__ import annotations

import gc
import signal
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
PATIENCE = 15  # for one list of groups
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
    if "graph" in variants:
        against_groups(record, variants, lambda: list(graph_of(entry, model, inputs).get_all_groups()))
    record.holds()


def against_groups(record: Record, variants: dict[str, Callable[[], Any]], groups: Callable[[], Any]) -> None:
    """Note what a trace costs relative to the graph with its groups."""
    signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        groups()
    except Exception as error:
        record.note(groups_error=one_line(error))
        return
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    both = {name: variants[name] for name in ("trace", "trace and trial cut")} | {"graph with groups": groups}
    rows = compare(interleaved(both, FEW, warmup=0), "graph with groups")
    record.note(over_groups={name: row["ratio"] for name, row in rows.items()})


def too_long(*_: Any) -> None:
    raise TimeoutError(f"more than {PATIENCE} s")


def forward(entry: Entry, model: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
    with torch.no_grad():
        watch(entry, model.eval(), inputs)


if __name__ == "__main__":
    run(sys.argv[1])
