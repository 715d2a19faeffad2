"""What the benchmarks share: interleaved timing, medians of paired ratios, and results with their machine."""

from __future__ import annotations

import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

RESULTS = Path(__file__).parent / "results"


def interleaved(
    variants: dict[str, Callable[[], None]], rounds: int, *, warmup: int = 2, seed: int = 0
) -> dict[str, list[float]]:
    """Seconds of every variant, one call each a round, in an order that is shuffled anew every round."""
    order, times = list(variants), {name: [] for name in variants}
    shuffle = random.Random(seed)
    for turn in range(warmup + rounds):
        shuffle.shuffle(order)
        for name in order:
            start = time.perf_counter()
            variants[name]()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return times


def seconds(call: Callable[[], object], rounds: int) -> float:
    """Median seconds of a call."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, batch: int, *, bf16: bool = False) -> Callable[[], None]:
    """A training step on made-up images of 32 x 32 pixels in 10 classes, channels-last."""
    x = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (batch,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare(times: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Median seconds, and the median of the ratios to ``base`` of the same round with their quartiles."""
    rows = {}
    for name, mine in times.items():
        ratios = sorted(a / b for a, b in zip(mine, times[base], strict=True))
        quarter = len(ratios) // 4
        rows[name] = {
            "median_s": statistics.median(mine),
            "ratio": statistics.median(ratios),
            "ratio_q1": ratios[quarter],
            "ratio_q3": ratios[-1 - quarter],
        }
    return rows


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    names = [x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(names),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def peak_memory_mib() -> float:
    """Peak resident MiB of this process; ``ru_maxrss`` would start at that of the process that launched it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def write(name: str, content: dict[str, Any]) -> None:
    """Results go to ``benchmarks/results/NAME.json`` and to the terminal."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), **content}, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)
