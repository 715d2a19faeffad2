"""What the file of a masked model weighs beside that of the dense one, and what saving and loading it costs.

ResNet-20 and ResNet-18 with CIFAR stem, ten classes, fp32, as `es.save` writes them: dense, and with the method's default
masks (every convolution, local) at 90 % and 95 %. A file's size depends on how many weights are zero, not on which, so the
models are not trained. Each file is loaded again and compared bit by bit. Times are of `es.save`, which waits for the disk,
and of `es.load` into a model that is there, interleaved.

Usage: python benchmarks/bench_files.py
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common import compare, interleaved, write
from torch import nn

import espalier as es
from espalier.tasks.classification.models import build_model

SEED, ROUNDS = 0, 15
NAMES, SPARSITIES = ["resnet20", "resnet18"], [0.9, 0.95]


def make(name: str, sparsity: float | None) -> nn.Module:
    """With masks on whatever weights the seed gives, if there is a sparsity."""
    torch.manual_seed(SEED)
    model = build_model(name, num_classes=10)
    if sparsity is not None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        es.Pruner(model, optimizer, es.OCP(sparsity), total_steps=1).finish(allow_early=True)
    return model


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)) for a, b in pairs)


def weigh(name: str, folder: Path) -> dict[str, Any]:
    models = {"dense": make(name, None), "dense again (A/A)": make(name, None)}
    models |= {f"{sparsity:.0%}": make(name, sparsity) for sparsity in SPARSITIES}
    files = {key: folder / str(turn) for turn, key in enumerate(models)}
    target = build_model(name, num_classes=10)
    saving = interleaved({key: partial(es.save, models[key], files[key]) for key in models}, ROUNDS)
    loading = interleaved({key: partial(es.load, files[key], target) for key in models}, ROUNDS)
    for key, model in models.items():
        assert same_bits(es.load(files[key], target), model), "a file must give back every bit"
    sizes = {key: file.stat().st_size for key, file in files.items()}
    return {
        "files": {key: {"bytes": size, "of_dense": size / sizes["dense"]} for key, size in sizes.items()},
        "save": compare(saving, "dense"),
        "load": compare(loading, "dense"),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = {name: weigh(name, Path(folder)) for name in NAMES}
    write("files", {"safetensors": version("safetensors"), "seed": SEED, "models": models})


if __name__ == "__main__":
    main()
