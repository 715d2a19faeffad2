"""What SLR and ADMM cost beside dense training.

On ResNet-18 with CIFAR stem (11.2 M convolution weights), channels-last, SGD with momentum, 90 % sparsity:

1. ``penalty``: rho (W - Z + U) on the gradients, as a share of a training step at batch 128 (bf16 and fp32).
2. ``round``: seconds of one round, whole and in parts: projection of all weights, norms, one move of the multipliers, and the
   loss on one fixed batch of 128; the same for networks with a quarter and with four times the weights.
3. ``memory``: bytes kept between rounds, as copies of the pruned weights.

Usage: python benchmarks/bench_splitting.py [--quick]
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import torch
from common import compare, interleaved, seconds, step_of, write
from torch import nn

import espalier as es
from espalier.methods import Gradients
from espalier.methods.frame.splitting.masks import SplitRun
from espalier.tasks.classification.models import build_model

SPARSITY = 0.9
KINDS = {"slr": es.SLR, "admm": es.ADMM}


def make(width: int = 64) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = build_model("resnet18", num_classes=10, width=width).to(memory_format=torch.channels_last)
    return model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)


def bound(kind: str, width: int = 64, batch: int = 8) -> tuple[nn.Module, SplitRun]:
    """A model under the method with Z and U in place, gradients kept."""
    model, optimizer = make(width)
    x, y = torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,))
    data = {"batches": [(x, y)], "loss_fn": lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])}
    pruner = es.Pruner(model, optimizer, KINDS[kind](SPARSITY, check_every=10**5), total_steps=10**6, **data)
    step_of(model, optimizer, batch)()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    assert isinstance(pruner.run, SplitRun)
    return model, pruner.run


def penalty(rounds: int) -> dict[str, Any]:
    _, run = bound("slr")
    calls = {
        "penalty": lambda: run.coupling.pull(Gradients()),
        "step bf16": step_of(*make(), batch=128, bf16=True),
        "step fp32": step_of(*make(), batch=128),
    }
    times = interleaved(calls, rounds, warmup=1)
    return {name: compare({"penalty": times["penalty"], name: times[name]}, name)["penalty"] for name in list(calls)[1:]}


def one_round(kind: str, width: int, rounds: int) -> dict[str, float]:
    _, run = bound(kind, width)
    pair = run.coupling
    parts = {
        "weights": float(sum(weight.numel() for weight in run.weights.values())),
        "whole_s": seconds(run.iteration.update, rounds),
        "projection_s": seconds(run.projection, rounds),
        "norms_s": seconds(lambda: (pair.gaps(), pair.penalty()), rounds),
        "move_s": seconds(lambda: pair.move(1e-3), rounds),
    }
    if kind == "slr":
        parts["loss_s"] = seconds(run.iteration.loss.read, rounds)  # type: ignore[attr-defined]
        parts["bookkeeping_s"] = parts["whole_s"] - parts["loss_s"]
    return parts


def memory(kind: str) -> dict[str, float]:
    _, run = bound(kind)
    kept = [*run.coupling.centres.values(), *run.coupling.multipliers.values()]
    mine, theirs = (sum(t.numel() * t.element_size() for t in tensors) for tensors in (kept, run.weights.values()))
    return {"copies": mine / theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, to see that it runs; writes nothing of worth")
    quick = parser.parse_args().quick
    warnings.simplefilter("ignore")  # these networks are not trained, and are told so
    rounds = 2 if quick else 15
    content = {
        "penalty": penalty(rounds),
        "round": {f"{kind} width {width}": one_round(kind, width, rounds) for kind in KINDS for width in (32, 64, 128)},
        "memory": {kind: memory(kind) for kind in KINDS},
    }
    write("splitting-quick" if quick else "splitting", content)


if __name__ == "__main__":
    main()
