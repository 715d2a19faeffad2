"""What the structure engine costs, as ratios to a forward pass of the same model in the same process.

1. ``trace``: ``es.trace`` without and with its trial cut, against one forward at batch 1 (eval, no gradients), for twenty
   classifiers that Torch-Pruning can cut (the vision transformers with its help). With ``--torch-pruning``, where that can be
   imported, in turn with them Torch-Pruning's dependency graph, and the graph with its groups, which ``es.trace`` returns too;
   and ours against its graph. On one thread, and on all: a trace needs but one, a forward pass and that graph gain from more.
2. ``meta``: a trace of models that were never given memory.
3. ``search`` and ``cut``: a budget of half the MACs of ResNet-50, and the cut with SGD momentum.
4. ``step``: a training step of ResNet-18 cut to multiples of 16 beside one whose layers were built so, interleaved.

Usage: python benchmarks/bench_graph.py [--torch-pruning] [--quick]
For Torch-Pruning: pip install --target FOLDER --no-deps torch-pruning==1.6.1, then PYTHONPATH=FOLDER.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from common import compare, interleaved, seconds, write
from torch import nn

import espalier as es
from espalier.tasks.vision import timm, torchvision

NAMES = [
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "densenet121", "efficientnet_b0", "convnext_tiny", "vit_b_16",
    "regnet_y_400mf", "vgg16_bn", "squeezenet1_1", "googlenet", "inception_v3", "timm/vit_tiny_patch16_224",
    "timm/deit_small_patch16_224", "timm/resnet50d", "timm/convnextv2_atto", "timm/mobilenetv4_conv_small", "timm/ghostnet_100",
    "timm/repvgg_a0",
]  # fmt: skip
WITHOUT_HEADS = {"aux_logits": False, "init_weights": False}
ARGUMENTS = {"googlenet": WITHOUT_HEADS, "inception_v3": WITHOUT_HEADS}  # heads in training alone: Torch-Pruning sees none
PIXELS = {"inception_v3": 299}
THEIRS = "Torch-Pruning's graph"
META = ["timm/vit_large_patch16_224", "timm/convnext_xlarge"]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name.startswith("timm/"):
        return timm().create_model(name.removeprefix("timm/")).eval()
    return torchvision().models.get_model(name, weights=None, **ARGUMENTS.get(name, {})).eval()


def forward(model: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        model(x)


def traces(names: list[str], rounds: int, *, torch_pruning: bool) -> dict[str, Any]:
    rows = {}
    for name in names:
        size = PIXELS.get(name, 224)
        model, x = build(name), torch.zeros(1, 3, size, size)
        variants = {
            "forward": lambda model=model, x=x: forward(model, x),
            "trace": lambda model=model, x=x: es.trace(model, x, check=False),
            "trace and trial cut": lambda model=model, x=x: es.trace(model, x),
        }
        gc.collect()
        gc.freeze()  # a collection goes through what a variant made, not through all that this process has loaded
        times = interleaved(variants | (theirs(model, x) if torch_pruning else {}), rounds)
        gc.unfreeze()  # a cut goes through all objects
        rows[name] = compare(times, "forward") | {"groups": len(es.trace(model, x).groups)}
        if torch_pruning:
            against = compare(times, THEIRS)
            rows[name]["over Torch-Pruning's graph"] = {ours: against[ours] for ours in ("trace", "trace and trial cut")}
    return rows


def theirs(model: nn.Module, x: torch.Tensor) -> dict[str, Callable[[], None]]:
    """Torch-Pruning's graph of the model, and the graph with its groups."""
    import torch_pruning

    def graph() -> Any:
        return torch_pruning.DependencyGraph().build_dependency(model, x)

    return {THEIRS: graph, f"{THEIRS} with groups": lambda: list(graph().get_all_groups())}


def metas() -> dict[str, Any]:
    rows = {}
    for name in META:
        with torch.device("meta"):
            model = build(name)
        size = model.default_cfg["input_size"][-1]
        x = torch.zeros(1, 3, size, size, device="meta")
        rows[name] = {"trace_s": seconds(lambda model=model, x=x: es.trace(model, x), 3)}
    return rows


def search_and_cut(rounds: int) -> dict[str, float]:
    model, x = build("resnet50"), torch.zeros(1, 3, 224, 224)
    graph = es.trace(model, x)
    scores = {group: torch.rand(group.size, generator=torch.Generator().manual_seed(0)) for group in graph.groups}
    search = seconds(lambda: es.search(graph, scores, keep_macs=0.5), rounds)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    model.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    optimizer.step()
    keep = es.search(graph, scores, keep_macs=0.5)
    start = time.perf_counter()
    es.cut(model, keep, optimizer=optimizer)
    return {"search_s": search, "cut_s": time.perf_counter() - start}


def native(model: nn.Module) -> nn.Module:
    """The same architecture, every layer constructed anew at the widths of the cut model."""
    made = build("resnet18")
    for path, layer in list(model.named_modules()):
        owner, _, leaf = path.rpartition(".")
        if isinstance(layer, nn.Conv2d):
            new: nn.Module = nn.Conv2d(
                layer.weight.shape[1], layer.weight.shape[0], layer.kernel_size, layer.stride, layer.padding, bias=False
            )
        elif isinstance(layer, nn.BatchNorm2d):
            new = nn.BatchNorm2d(layer.weight.shape[0])
        elif isinstance(layer, nn.Linear):
            new = nn.Linear(layer.weight.shape[1], layer.weight.shape[0])
        else:
            continue
        setattr(made.get_submodule(owner), leaf, new)
    made.load_state_dict(model.state_dict())
    return made


def steps(rounds: int) -> dict[str, Any]:
    model, x = build("resnet18"), torch.randn(8, 3, 128, 128).to(memory_format=torch.channels_last)
    model = model.to(memory_format=torch.channels_last)
    graph = es.trace(model, x)
    scores = {group: torch.rand(group.size, generator=torch.Generator().manual_seed(0)) for group in graph.groups}
    es.cut(model, es.search(graph, scores, keep_macs=0.5, round_to=16))
    variants = {"native": native(model), "native again (A/A)": native(model), "cut": model}
    return compare(
        interleaved({k: step_of(v.to(memory_format=torch.channels_last), x) for k, v in variants.items()}, rounds), "native"
    )


def step_of(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    y = torch.zeros(len(x), dtype=torch.long)

    def step() -> None:
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-pruning", action="store_true", help="time torch-pruning 1.6.1 beside")
    parser.add_argument("--quick", action="store_true", help="few rounds, to see that it runs")
    given = parser.parse_args()
    rounds = 2 if given.quick else 9
    threads, traced = torch.get_num_threads(), {}
    for title, number in {"trace": 1, "trace on all threads": threads}.items():
        torch.set_num_threads(number)
        traced[title] = traces(NAMES[:2] if given.quick else NAMES, rounds, torch_pruning=given.torch_pruning)
    content = {
        **traced,
        "meta": metas(),
        "resnet50": sorted((search_and_cut(rounds) for _ in range(3)), key=lambda row: row["cut_s"])[1],
        "step": steps(3 * rounds),
    }
    write("graph", content)


if __name__ == "__main__":
    sys.exit(main())
