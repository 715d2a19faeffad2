"""What pruning costs and buys on a GPU: ResNet-50, 224 px, batch 128, bf16, channels-last.

1. ``steps``: training steps of dense networks (twice: A/A), under a standing mask, under OCSP's shrinkage, EPI's Taylor
   scores and SLR's penalty, between two looks; of networks cut to half of the MACs at initialisation (random channels) with
   the default rounding and with ``round_to=1``, and of one built natively at those widths.
2. ``compiled``: dense (twice), cut and native under ``torch.compile``.
3. ``moments``: milliseconds of a new mask of all weights, of a look at the sub-network, of a search and of the cut.

Every time ends with the device idle. Usage: python benchmarks/bench_gpu.py [--quick] [--batch 128]
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from common import compare, interleaved, seconds, write
from torch import nn

import espalier as es
from espalier.tasks.vision import torchvision

BATCH, SIZE, STEPS = 128, 224, 10**6
CUDA = torch.device("cuda")


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torchvision().models.get_model("resnet50", weights=None).to(CUDA, memory_format=torch.channels_last)
    return model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, device=CUDA).contiguous(memory_format=torch.channels_last)


def loss_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    with torch.autocast("cuda", torch.bfloat16):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, *, compiled: bool = False) -> Callable[[], None]:
    batch = images(BATCH), torch.randint(0, 1000, (BATCH,), device=CUDA)
    net: Any = torch.compile(model) if compiled else model

    def step() -> None:
        loss_of(net, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()

    return step


def under(method: es.Method) -> tuple[es.Pruner, Callable[[], None]]:
    model, optimizer = make()
    batches = [(images(BATCH), torch.randint(0, 1000, (BATCH,), device=CUDA))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = es.Pruner(
            model, optimizer, method, total_steps=STEPS, example_inputs=images(1), batches=batches, loss_fn=loss_of
        )
        step = step_of(model, optimizer)
        for _ in range(3):
            step()
    return pruner, step


def cut(round_to: int | None) -> tuple[nn.Module, torch.optim.Optimizer, dict[str, Any]]:
    model, optimizer = make()
    method = es.PruneAt(at=0, keep_macs=0.5, max_ratio=0.75, criterion="random", round_to=round_to)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = es.Pruner(model, optimizer, method, total_steps=10, example_inputs=images(1))
    shrinkage = pruner.run.shrinkage()
    assert shrinkage is not None
    pruner.detach()
    return model, optimizer, {"keep_macs": shrinkage.keep_macs, "widths": {k: v[1] for k, v in shrinkage.widths.items()}}


def native(model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The same widths in fresh storage, as constructors give it, and an optimizer of its own."""
    made = copy.deepcopy(model)
    for parameter in made.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.preserve_format)
    return made, torch.optim.SGD(made.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)


RARE = {"check_every": STEPS // 10, "latest": 1.0}
AT_WORK = {
    "standing mask": es.OneShot(0.9, at=0),
    "ocsp": es.OCSP(keep_macs=0.5, start=0, **RARE),
    "epi-taylor": es.EPI(keep_macs=0.5, **RARE),
    "slr": es.SLR(0.9, check_every=STEPS // 10),
}


def eager(rounds: int) -> dict[str, Any]:
    variants = {"dense": step_of(*make()), "dense again": step_of(*make())}
    for label, method in AT_WORK.items():
        _, variants[label] = under(method)
    networks = {}
    for label, round_to in (("cut", None), ("cut to odd widths", 1)):
        model, optimizer, networks[label] = cut(round_to)
        variants[label] = step_of(model, optimizer)
        if label == "cut":
            variants["native"] = step_of(*native(model))
    return {"times": compare(interleaved(variants, rounds, warmup=3), "dense"), "networks": networks}


def compiled(rounds: int) -> dict[str, Any]:
    torch._dynamo.config.cache_size_limit = 64
    model, optimizer, _ = cut(None)
    variants = {
        "dense": step_of(*make(), compiled=True),
        "dense again": step_of(*make(), compiled=True),
        "cut": step_of(model, optimizer, compiled=True),
        "native": step_of(*native(model), compiled=True),
    }
    return compare(interleaved(variants, rounds, warmup=3), "dense")


def waited(call: Callable[[], object]) -> Callable[[], None]:
    def whole() -> None:
        call()
        torch.cuda.synchronize()

    return whole


def moments(rounds: int) -> dict[str, float]:
    found: dict[str, float] = {}
    pruner, _ = under(es.OCP(0.9))
    found["new_mask_s"] = seconds(waited(lambda: pruner.run._prune_to(0.5)), rounds)
    pruner.detach()
    for label, method in (("ocsp", es.OCSP(keep_macs=0.5)), ("epi-magnitude", es.EPI(keep_macs=0.5, criterion="magnitude"))):
        pruner, _ = under(method)
        for _ in range(8):
            pruner.run.look()
        found[f"look_{label}_s"] = seconds(waited(pruner.run.look), rounds)
        pruner.detach()
    model, optimizer = make()
    step_of(model, optimizer)()
    found["trace_s"] = seconds(waited(lambda: es.trace(model, images(1))), rounds)
    graph = es.trace(model, images(1))
    scores = {group: torch.rand(group.size, device=CUDA) for group in graph.groups}
    found["search_s"] = seconds(waited(lambda: es.search(graph, scores, keep_macs=0.5)), rounds)
    keep = es.search(graph, scores, keep_macs=0.5)
    found["cut_s"] = seconds(waited(lambda: es.cut(model, keep, optimizer=optimizer)), 1)
    return found


def main() -> None:
    global BATCH
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--batch", type=int, default=BATCH)
    options = parser.parse_args()
    BATCH, rounds = options.batch, 3 if options.quick else 15
    start = time.time()
    found: dict[str, Any] = {"batch": BATCH}
    for name, part in (("moments", moments), ("steps", eager), ("compiled", compiled)):
        found[name] = part(rounds)
        write("gpu", found | {"seconds": time.time() - start})  # after each part: what was measured is not lost


if __name__ == "__main__":
    main()
