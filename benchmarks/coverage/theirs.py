"""Torch-Pruning 1.6.1 on one model, in the recipe that its examples give for a model it knows nothing about.

``BasePruner`` with ``GroupMagnitudeImportance(p=2)``, global ranking, ratio 0.5, classifiers and the predictors of
detectors ignored; detectors are traced through their training losses. A model that fails at batch 2 gets a second chance
at batch 1, and counts as held if either holds.

It runs in an environment of its own, which holds nothing but torch-pruning and looks up the rest in the project's:

    python -m venv ENV
    echo "import site; site.addsitedir('PROJECT/.venv/lib/python3.11/site-packages')" \\
        > ENV/lib/python3.11/site-packages/base.pth
    ENV/bin/pip install --no-deps torch-pruning==1.6.1

Usage: ENV/bin/python -m benchmarks.coverage.theirs NAME BATCH      (run by benchmarks.coverage --side theirs --python ...)
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from benchmarks.coverage.child import Record, check_runs, dense_shapes, limit, size
from benchmarks.coverage.models import Entry, build, example, find, floats, is_detector

TIME = 90  # seconds a model
PREDICTORS = ("classification_head.module_list", "regression_head.module_list", "cls_logits", "bbox_reg", "bbox_ctrness")


def ignored(entry: Entry, model: nn.Module) -> list[nn.Module]:
    """The layers whose output channels are classes or boxes."""
    if is_detector(entry):
        return [module for name, module in model.head.named_modules() if name.endswith(PREDICTORS)]
    classes = getattr(model, "num_classes", None) or (21 if "segmentation" in entry.library else 1000)
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return [layer for layer in layers if layer.weight.shape[0] == classes]


def tracing(entry: Entry) -> dict[str, Any]:
    if not is_detector(entry):
        return {}

    def losses(model: nn.Module, inputs: tuple[Any, ...]) -> torch.Tensor:
        return torch.stack(floats(model.train()(*inputs))).sum()

    return {"forward_fn": losses}


def sample(entry: Entry, inputs: tuple[Any, ...]) -> Any:
    return inputs if is_detector(entry) else inputs[0]


def graph_of(entry: Entry, model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    return tp.DependencyGraph().build_dependency(model, sample(entry, inputs), **tracing(entry))


def run(key: str, batch: int) -> None:
    limit(TIME)
    entry, record = find(key), Record(key)
    with record.stage("dense"):
        model = build(entry)
        inputs = example(entry, batch)
        before = dense_shapes(entry, model)
        macs, parameters = size(entry, model.eval(), inputs)
        record.note(batch=batch, macs=macs, parameters=parameters)
    with record.stage("graph"):
        graph_of(entry, model, inputs)
    with record.stage("pruner"):
        importance = tp.importance.GroupMagnitudeImportance(p=2)
        pruner = tp.pruner.BasePruner(
            model,
            sample(entry, inputs),
            importance,
            global_pruning=True,
            pruning_ratio=0.5,
            ignored_layers=ignored(entry, model),
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
            **tracing(entry),
        )
    with record.stage("prune"):
        pruner.step()
    check_runs(record, entry, model, before)
    macs, parameters = size(entry, model.eval(), inputs)
    record.note(macs_after=macs, parameters_after=parameters)
    record.holds()


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]))
