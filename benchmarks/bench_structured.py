"""What structured pruning costs, and what it buys.

1. ``check``: one look at the sub-network (scores, search, comparison with earlier looks) on ResNet-56 and ResNet-50.
2. ``shrink``: steps of ResNet-56, batch 128, bf16, channels-last, interleaved in one process: dense twice (A/A), OCSP with
   shrinkage in force, EPI with Taylor scores (gradients observed at every step).
3. ``after``: steps of networks cut to half of the MACs at initialisation (random channels) with the default rounding, with
   round_to=1, and built natively with the same widths, beside dense ones. ``--models`` names them; ``--fp32`` for processors
   without bf16.

Usage: python benchmarks/bench_structured.py [--quick] [--only check,shrink,after] [--models NAMES] [--fp32] [--out NAME]
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from common import compare, interleaved, seconds, step_of, write
from torch import nn

import espalier as es
from espalier.methods import Gradients
from espalier.tasks.classification.models import build_model

BATCH = 128
SIZES = {"resnet50": 224}
VITS = {"vit-small": {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 4}}  # of the recipe


def make(name: str, *, classes: int = 10) -> tuple[nn.Module, torch.optim.Optimizer, torch.Tensor]:
    torch.manual_seed(0)
    size = SIZES.get(name, 32)
    if name in VITS:
        model = build_model("timm:vit_tiny_patch16_224", num_classes=classes, **VITS[name])
    elif size == 32:
        model = build_model(name, num_classes=classes)
    else:
        from espalier.tasks.vision import torchvision

        model = torchvision().models.get_model(name, weights=None)
    model = model.to(memory_format=torch.channels_last)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4), torch.randn(1, 3, size, size)


def check(name: str, rounds: int) -> dict[str, float]:
    """Median seconds of a look, in the steady state (the history is full)."""
    model, optimizer, x = make(name)
    found = {}
    for label, method in (
        ("ocsp", es.OCSP(keep_macs=0.5)),
        ("epi-magnitude", es.EPI(prune_channels=0.3, criterion="magnitude")),
    ):
        pruner = es.Pruner(model, optimizer, method, total_steps=10_000, example_inputs=x)
        for _ in range(8):
            pruner.run.look()
        found[label] = seconds(pruner.run.look, rounds)
        pruner.detach()
    return found


def shrink(name: str, rounds: int) -> dict[str, Any]:
    """Steps while the method is at work, between two looks; and its own share of them, timed apart."""
    variants: dict[str, Callable[[], None]] = {}
    apart: dict[str, float] = {}
    for label, method in (
        ("dense", None),
        ("dense again", None),
        ("ocsp", es.OCSP(keep_macs=0.5, start=0, check_every=10**6, latest=1.0)),
        ("epi-taylor", es.EPI(keep_macs=0.5, check_every=10**6, latest=1.0)),
    ):
        model, optimizer, x = make(name)
        step = step_of(model, optimizer, BATCH, bf16=True)
        if method is not None:
            pruner = es.Pruner(model, optimizer, method, total_steps=10**6, example_inputs=x)
            step()
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            run, clock = pruner.run, pruner.site.clock

            def own(run: Any = run, clock: Any = clock) -> None:
                run.before_update(Gradients())
                clock.step += 1
                run.after_update()

            apart[label] = seconds(own, 20)
            optimizer.zero_grad()
        variants[label] = step
    rows = compare(interleaved(variants, rounds), "dense")
    for label, spent in apart.items():
        rows[label]["own_s"] = spent
        rows[label]["own_share"] = spent / rows["dense"]["median_s"]
    return rows


def after(name: str, rounds: int, *, bf16: bool) -> dict[str, Any]:
    """Steps before and after the cut."""
    variants: dict[str, Callable[[], None]] = {}
    widths: dict[str, Any] = {}
    dense, optimizer, x = make(name)
    variants["dense"] = step_of(dense, optimizer, BATCH, bf16=bf16)
    for label, round_to in (("cut", None), ("cut to odd widths", 1)):
        model, optimizer, x = make(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            method = es.PruneAt(at=0, keep_macs=0.5, max_ratio=0.75, criterion="random", round_to=round_to)
            pruner = es.Pruner(model, optimizer, method, total_steps=10, example_inputs=x)
        shrinkage = pruner.run.shrinkage()
        assert shrinkage is not None
        widths[label] = {"keep_macs": shrinkage.keep_macs, "widths": {k: v[1] for k, v in shrinkage.widths.items()}}
        pruner.detach()
        variants[label] = step_of(model, optimizer, BATCH, bf16=bf16)
        if label == "cut":
            native = copy.deepcopy(model)
            for parameter in native.parameters():  # fresh storage in plain order, as a constructor gives it
                parameter.data = parameter.data.clone(memory_format=torch.preserve_format)
            sgd = torch.optim.SGD(native.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
            variants["native"] = step_of(native, sgd, BATCH, bf16=bf16)
    return {"steps": compare(interleaved(variants, rounds), "dense"), "networks": widths}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="check,shrink,after")
    parser.add_argument("--models", default="resnet20,resnet56", help="of the third part")
    parser.add_argument("--fp32", action="store_true", help="steps of the third part without autocast")
    parser.add_argument("--out", default="structured", help="name of the file in results/")
    options = parser.parse_args()
    wanted, rounds = options.only.split(","), 3 if options.quick else 15
    found: dict[str, Any] = {}
    start = time.time()
    if "check" in wanted:
        found["check"] = {name: check(name, rounds) for name in ("resnet56", "resnet50")}
    if "shrink" in wanted:
        found["shrink"] = {"resnet56": shrink("resnet56", rounds)}
    if "after" in wanted:
        names = options.models.split(",")
        found["after"] = {name: after(name, rounds, bf16=not options.fp32) for name in names}
    found["seconds"] = time.time() - start
    write(options.out, found)


if __name__ == "__main__":
    main()
