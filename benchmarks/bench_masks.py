"""What pruning on a schedule costs beside dense training.

Two questions, on ResNet-18 with CIFAR stem (11.2 M convolution weights), channels-last, SGD with momentum:

1. ``whole_run``: all upkeep of a run of 30 epochs at batch 128, one-cycle to 90 %: gradients masked at each of the 11,700
   steps, masks recomputed whenever the schedule asks for it, weights and moments zeroed with them. Every one of those
   calls is made and timed; forward and backward, which they do not depend on, are timed apart (bf16), so that the whole
   does not take a day. The sparsity in force is held against the schedule at every step.
2. ``step``: whole training steps in one process, interleaved, at batch 4 and 32 (fp32): dense twice (A/A), ours with a
   standing mask at 90 %, and the other ways to keep a mask: a hand-written loop, torch.nn.utils.prune, and a multiply
   per layer after the step, as fasterai's Sparsifier does.

Usage: python benchmarks/bench_masks.py [--quick]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from common import compare, interleaved, peak_memory_mib, step_of, write
from torch import nn
from torch.nn.utils import prune

import espalier as es
from espalier.methods import Gradients
from espalier.tasks.classification.models import build_model

STEPS, SPARSITY = 390 * 30, 0.9


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = build_model("resnet18", num_classes=10).to(memory_format=torch.channels_last)
    return model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)


def whole_run(steps: int, dense_rounds: int) -> dict[str, float]:
    model, optimizer = make()
    dense = step_of(*make(), batch=128, bf16=True)
    dense_step = compare(interleaved({"dense": dense}, dense_rounds, warmup=1), "dense")["dense"]["median_s"]

    step_of(model, optimizer, batch=8)()  # gives the moments
    pruner = es.Pruner(model, optimizer, es.OCP(SPARSITY), total_steps=steps)
    gradients = [torch.randn_like(p) for p in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    run, clock = pruner.run, pruner.site.clock
    updates, worst, spent, in_force = 0, 0.0, 0.0, run.in_force
    schedule = es.schedules.OneCycle(SPARSITY)
    for step in range(1, steps + 1):
        start = time.perf_counter()
        run.before_update(Gradients())
        clock.step = step
        run.after_update()
        spent += time.perf_counter() - start
        if run.in_force != in_force:
            updates, in_force = updates + 1, run.in_force
            worst = max(worst, abs(pruner.sparsity - schedule(step / steps)))
        worst = max(worst, abs(in_force - schedule(step / steps)))
    layers = run.layers()
    assert all(layer.zeros == int(SPARSITY * layer.total + 0.5) for layer in layers), "the end must be exact"
    return {
        "steps": steps,
        "mask_updates": updates,
        "upkeep_s": spent,
        "dense_step_batch128_bf16_s": dense_step,
        "overhead": spent / (steps * dense_step),
        "worst_distance_from_schedule_points": 100 * worst,
    }


def by_hand(batch: int) -> Callable[[], None]:
    """The loop that a user would write: one float mask a layer, multiplied after the step."""
    model, optimizer = make()
    step = step_of(model, optimizer, batch)
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    masks = [(w.abs() > w.abs().flatten().kthvalue(int(SPARSITY * w.numel())).values).to(w.dtype) for w in weights]

    def masked() -> None:
        step()
        with torch.no_grad():
            for weight, mask in zip(weights, masks, strict=True):
                weight.data.mul_(mask)

    return masked


def torch_prune(batch: int) -> Callable[[], None]:
    model, optimizer = make()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            score = module.weight.detach().abs()  # its own ranking refuses channels-last weights
            mask = (score > score.flatten().kthvalue(int(SPARSITY * score.numel())).values).to(score.dtype)
            prune.custom_from_mask(module, "weight", mask)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    return step_of(model, optimizer, batch)


def fasterai_style(batch: int) -> Callable[[], None]:
    """Masks as buffers of the modules, bool as a comparison leaves them, applied to ``weight.data`` layer by layer."""
    model, optimizer = make()
    step = step_of(model, optimizer, batch)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for layer in layers:
        score = layer.weight.detach().abs()
        layer.register_buffer("_mask", score > score.flatten().kthvalue(int(SPARSITY * score.numel())).values)

    def masked() -> None:
        step()
        for layer in layers:
            layer.weight.data.mul_(layer._mask)

    return masked


def ours(batch: int) -> Callable[[], None]:
    model, optimizer = make()
    es.Pruner(model, optimizer, es.Follow(es.schedules.Constant(SPARSITY)), total_steps=10**9)
    return step_of(model, optimizer, batch)


VARIANTS: dict[str, Callable[[int], Callable[[], None]]] = {
    "dense": lambda batch: step_of(*make(), batch),
    "dense again (A/A)": lambda batch: step_of(*make(), batch),
    "espalier": ours,
    "hand-written float masks after the step": by_hand,
    "fasterai-style masks after the step": fasterai_style,
    "torch.nn.utils.prune": torch_prune,
}


def step_costs(batch: int, rounds: int) -> dict[str, dict[str, float]]:
    return compare(interleaved({name: build(batch) for name, build in VARIANTS.items()}, rounds), "dense")


def memory() -> dict[str, float]:
    """Peak resident MiB of a process that makes three steps at batch 32, one process per variant."""
    peaks = {}
    for name in VARIANTS:
        done = subprocess.run([sys.executable, __file__, "--peak", name], capture_output=True, text=True, check=True)
        peaks[name] = float(done.stdout)
    return peaks


def peak(name: str) -> None:
    step = VARIANTS[name](32)
    for _ in range(3):
        step()
    print(peak_memory_mib())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, to see that it runs; writes nothing of worth")
    parser.add_argument("--peak", metavar="VARIANT", help="print the peak memory of one variant")
    arguments = parser.parse_args()
    if arguments.peak:
        return peak(arguments.peak)
    quick = arguments.quick
    content = {
        "whole_run": whole_run(STEPS // 100 if quick else STEPS, 2 if quick else 9),
        "step_batch4": step_costs(4, 3 if quick else 40),
        "step_batch32": step_costs(32, 2 if quick else 15),
        "peak_memory_mib": memory(),
    }
    write("masks-quick" if quick else "masks", content)


if __name__ == "__main__":
    main()
