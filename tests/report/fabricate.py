"""Made-up run folders with the shape of real ones. Nothing in them was measured."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LAYERS = [("conv1", 432), *((f"stage{s}.{b}.conv{c}", 2304 * 4 ** (s - 1)) for s in (1, 2, 3) for b in (0, 1) for c in (1, 2))]
GROUPS = [("conv1", 16), *((f"layer{s}.{b}.conv1", 8 * 2**s) for s in (1, 2, 3) for b in (0, 1, 2)), ("layer3", 64)]
SCHEDULES = {
    "dense": lambda t: 0.0,
    "one-shot": lambda t: float(t >= 0.4),
    "iterative": lambda t: 0.0 if t < 0.2 else math.ceil(3 * (t - 0.2) / 0.8) / 3,
    "agp": lambda t: 0.0 if t < 0.2 else 1 - (1 - (t - 0.2) / 0.8) ** 3,
    "ocp": lambda t: (1 + math.exp(-9)) / (1 + math.exp(-14 * t + 5)),
}
NORMS = {"edges": [0.25, 0.5, 1.0, 2.0], "kept": [0, 2, 30, 25, 1], "removed": [40, 12, 3, 0, 0]}
FINAL = {"dense": 0.975, "one-shot": 0.93, "iterative": 0.936, "agp": 0.949, "ocp": 0.956}


def write_run(
    root: Path,
    method: str = "ocp",
    sparsity: float = 0.9,
    *,
    seed: int = 0,
    epochs: int = 10,
    model: str = "resnet8",
    data: str = "digits",
    stop_after: int | None = None,
    layers: Sequence[tuple[str, int]] = LAYERS,
    settings: dict[str, Any] | None = None,
    **result: Any,
) -> Path:
    """Write one run folder. `stop_after` leaves it unfinished after so many epochs; `result` overrides result.json."""
    sparsity = 0.0 if method == "dense" else sparsity
    noise = random.Random(f"{method}{sparsity}{seed}{epochs}{model}")
    schedule = SCHEDULES.get(method, SCHEDULES["ocp"])
    final = FINAL.get(method, 0.94) - 0.12 * max(0.0, sparsity - 0.85) - 0.25 / epochs + noise.gauss(0, 0.006)
    folder = root / f"{model}-{method}-{sparsity:g}-e{epochs}-s{seed}-{noise.getrandbits(32):08x}"
    folder.mkdir(parents=True)
    recipe = {
        "name": "made-up",
        "model": {"name": model},
        "data": {"name": data},
        "train": {"epochs": epochs, "batch_size": 64},
        "pruning": {"method": method, "sparsity": sparsity or None} | (settings or {}),
        "seed": seed,
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    rows = []
    for epoch in range(1, (epochs if stop_after is None else stop_after) + 1):
        t = epoch / epochs
        dip = 0.25 * math.exp(-40 * max(0.0, t - 0.4)) if method == "one-shot" and t >= 0.4 else 0.0
        accuracy = final * (1 - 0.8 * math.exp(-6 * t)) - dip * sparsity + noise.gauss(0, 0.008) * (1 - t)
        share = min(1.0, schedule(t)) * sparsity
        rows.append(
            {"epoch": epoch, "step": 22 * epoch, "lr": 0.1 * (1 - t), "train_loss": 2.3 * math.exp(-4 * t)}
            | {"train_acc": min(1.0, accuracy + 0.01), "val_loss": 2.3 - 2 * accuracy, "val_acc": accuracy}
            | {"sparsity": share, "sparsity_all": 0.985 * share, "seconds": 1.4 * epoch, "images_per_second": 950.0}
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if stop_after is None:
        record = {
            "name": "made-up",
            "model": model,
            "data": data,
            "method": method,
            "sparsity_target": sparsity,
            "epochs": epochs,
            "seed": seed,
            "test_acc": final,
            "test_loss": 2.3 - 2 * final,
            "val_acc": rows[-1]["val_acc"],
            "sparsity": sparsity,
            "sparsity_all": 0.985 * sparsity,
            "layers": [
                {"name": f"{name}.weight", "shape": [size // 9, 1, 3, 3], "total": size, "zeros": round(sparsity * size)}
                for name, size in layers
            ],
            "params": sum(size for _, size in layers),
            "seconds": 1.4 * epochs + noise.random(),
            "steps": 22 * epochs,
            "recipe_hash": "0" * 16,
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
            "machine": {"cpu": "Imaginary CPU", "cores": 2, "threads": 1, "device": "cpu"},
        }
        (folder / "result.json").write_text(json.dumps(record | result))
    return folder


def write_split_run(root: Path, method: str = "slr", sparsity: float = 0.9, *, prune_after: int = 6, **more: Any) -> Path:
    """Write the folder of a run with two rounds of multipliers in an epoch, and hard pruning after so many epochs."""
    folder = write_run(root, method, sparsity, **more)
    lines = []
    for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        epoch = row["epoch"]
        row |= {"rounds": 2 * epoch, "gap": 8 / min(epoch, prune_after), "step_size": 0.01 * epoch}
        row |= {"val_acc_projected": row["val_acc"] * epoch / prune_after} if epoch < prune_after else {}
        lines.append(json.dumps(row) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    result = folder / "result.json"
    if result.exists():
        told = method == "slr"
        rounds = [
            {
                "step": 11 * n,
                "gap": 8 / n,
                "gaps": {"conv1.weight": 4 / n, "bn1.bias": 0.1, "fc.weight": 7 / n},
                "step_size": 0.01 * n,
            }
            | {
                "alpha": 1 - 0.01 / n if told else None,
                "held": [n % 2 == 1, True] if told else [],
                "loss": 1.0 if told else None,
            }
            for n in range(1, 2 * prune_after + 1)
        ]
        result.write_text(json.dumps(json.loads(result.read_text()) | {"rounds": rounds}))
    return folder


def write_cut_run(
    root: Path,
    method: str = "ocsp",
    keep_macs: float = 0.5,
    *,
    seed: int = 0,
    epochs: int = 10,
    cut_after: Sequence[float] = (3.0,),
    reason: str = "stable",
    stop_after: int | None = None,
    measured: bool = True,
    with_norms: bool = True,
    groups: Sequence[tuple[str, int]] = GROUPS,
    settings: dict[str, Any] | None = None,
    **more: Any,
) -> Path:
    """Write the folder of a run that cut channels after the given epochs, an equal part of its MACs each time."""
    budget = {"keep_macs": keep_macs}
    folder = write_run(
        root,
        method,
        0.0,
        seed=seed,
        epochs=epochs,
        stop_after=stop_after,
        layers=(),
        settings=budget | (settings or {}),
        **more,
    )
    dense_macs, dense_params = 40_000_000, 270_000
    parts = [1 - (1 - keep_macs) * (n + 1) / len(cut_after) for n in range(len(cut_after))]
    lines = []
    for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        left = [part for part, when in zip(parts, cut_after, strict=True) if when <= row["epoch"]]
        share = left[-1] if left else 1.0
        row |= {"keep_macs": share, "keep_params": share**1.5, "stability": min(1.0, row["epoch"] / max(cut_after[-1], 1.0))}
        row |= {"sparsity": 0.0, "sparsity_all": 0.0, "images_per_second": 950 / (0.3 + 0.7 * share)}
        lines.append(json.dumps(row) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    if stop_after is not None:
        return folder
    cuts = [
        {"step": round(22 * when), "epoch": when, "reason": reason if n == len(parts) - 1 else "faded"}
        | {"macs": int(part * dense_macs), "params": int(part**1.5 * dense_params)}
        | ({"norms": NORMS} if with_norms else {})
        for n, (part, when) in enumerate(zip(parts, cut_after, strict=True))
    ]
    checks = [
        [0, None, None],
        *([11 * n, 0.9, min(1.0, n / (2 * cut_after[-1]))] for n in range(1, int(2 * cut_after[-1]) + 1)),
    ]
    speed = {"seconds": 0.031, "dense_seconds": 0.045, "speedup": 1.45, "low": 1.4, "high": 1.5}
    record = {
        "budget": budget,
        "macs": cuts[-1]["macs"],
        "dense_macs": dense_macs,
        "params": cuts[-1]["params"],
        "dense_params": dense_params,
        "keep_macs": cuts[-1]["macs"] / dense_macs,
        "keep_params": cuts[-1]["params"] / dense_params,
        "widths": {name: [width, max(1, int(width * keep_macs**0.5) - seed)] for name, width in groups},
        "cuts": cuts,
        "checks": checks,
    }
    if measured:
        rows = [{"batch": 1} | speed, {"batch": 64} | speed]
        record["latency"] = {"device": "cpu", "threads": 1, "precision": "fp32", "rows": rows}
    result = folder / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | record))
    return folder


def write_comparison(
    root: Path, sparsities: Sequence[float] = (0.9, 0.95), seeds: int = 3, epochs: Sequence[int] = (25,), **more: Any
) -> Path:
    """Write the runs of one comparison of all methods; returns `root`."""
    for budget in epochs:
        for seed in range(seeds):
            write_run(root, "dense", seed=seed, epochs=budget, **more)
            for method in ("one-shot", "iterative", "agp", "ocp"):
                for sparsity in sparsities:
                    write_run(root, method, sparsity, seed=seed, epochs=budget, **more)
    return root
