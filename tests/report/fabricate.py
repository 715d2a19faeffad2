"""Made-up run folders with the shape of real ones. Nothing in them was measured."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LAYERS = [("conv1", 432), *((f"stage{s}.{b}.conv{c}", 2304 * 4 ** (s - 1)) for s in (1, 2, 3) for b in (0, 1) for c in (1, 2))]
SCHEDULES = {
    "dense": lambda t: 0.0,
    "one-shot": lambda t: float(t >= 0.4),
    "iterative": lambda t: 0.0 if t < 0.2 else math.ceil(3 * (t - 0.2) / 0.8) / 3,
    "agp": lambda t: 0.0 if t < 0.2 else 1 - (1 - (t - 0.2) / 0.8) ** 3,
    "ocp": lambda t: (1 + math.exp(-9)) / (1 + math.exp(-14 * t + 5)),
}
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
