"""What whole trainings cost that cut their network in the midst: seconds beside dense, and beside the ideal by MACs.

ResNet-20 on CIFAR-10, 20 epochs, batch 128, bf16, channels-last, half of the MACs, five checks in an epoch: the runs of
``docs/results.md``. All trainings of one seed go on in one process; every batch is taken by each of them in turn, in an order
that is shuffled anew; a second dense one shows the noise. Searches, comparisons and the cut itself are in the times, data and
evaluation are not.

Usage: python benchmarks/bench_training.py --data FOLDER [--seeds 0] [--images N]   FOLDER holds CIFAR-10 as Parquet files
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
import warnings
from typing import Any

import torch
from common import write
from torch import Tensor, nn

import espalier as es
from espalier.tasks.classification.data import Augment, Data, open_data
from espalier.tasks.classification.models import build_model

EPOCHS, CHECKS = 20, 5
VARIANTS: dict[str, Any] = {
    "dense": lambda every: es.Dense(),
    "dense again (A/A)": lambda every: es.Dense(),
    "ocsp": lambda every: es.OCSP(keep_macs=0.5, check_every=every),
    "ocsp, progressive": lambda every: es.OCSP(keep_macs=0.5, check_every=every, progressive=4),
    "epi": lambda every: es.EPI(keep_macs=0.5, criterion="magnitude", check_every=every),
}


class Training:
    """One training, an epoch at a time."""

    def __init__(self, name: str, data: Data, seed: int) -> None:
        torch.manual_seed(seed)
        self.data, steps = data, len(data.train)
        self.model = build_model("resnet20", num_classes=10).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, 0.2, total_steps=EPOCHS * steps, pct_start=0.25, cycle_momentum=False
        )
        method = VARIANTS[name](max(1, steps // CHECKS))
        example = torch.randn(1, 3, 32, 32)
        self.pruner = es.Pruner(self.model, self.optimizer, method, total_steps=EPOCHS * steps, example_inputs=example)
        self.seconds = 0.0

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One step, timed."""
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.seconds += time.perf_counter() - start

    def accuracy(self) -> float:
        """On the test images."""
        self.model.eval()
        right = torch.zeros(())
        count = 0
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for images, labels in self.data.test.epoch(0):
                right += (self.model(images).argmax(1) == labels).sum()
                count += len(labels)
        self.model.train()
        return right.item() / count

    def facts(self, dense: float) -> dict[str, Any]:
        """Seconds and their share of dense; when the cuts were made, and the share of dense that MACs would make it."""
        shrinkage = self.pruner.finish(allow_early=True).shrinkage
        total, left, at, ideal = EPOCHS * len(self.data.train), 1.0, 0, 0.0
        cuts = [] if shrinkage is None else shrinkage.cuts
        for cut in cuts:
            ideal += left * (cut.step - at) / total
            left, at = cut.macs / shrinkage.dense_macs, cut.step
        return {
            "seconds": self.seconds,
            "ratio": self.seconds / dense,
            "ideal": ideal + left * (total - at) / total,
            "accuracy": self.accuracy(),
            "cuts": [[round(cut.step / total, 4), cut.reason, cut.macs] for cut in cuts],
        }


def together(folder: str, seed: int, images: int | None, epochs: int) -> dict[str, Any]:
    """All variants side by side."""
    augment = Augment(flip=True, crop_padding=4)
    data = open_data(
        "parquet", path=folder, limit=images, batch_size=128, device=torch.device("cpu"), seed=seed, augment=augment
    )
    trainings = {name: Training(name, data, seed) for name in VARIANTS}
    order, shuffle = list(trainings), random.Random(seed).shuffle
    for epoch in range(epochs):
        for batch in data.train.epoch(epoch):
            shuffle(order)
            for name in order:
                trainings[name].step(*batch)
    dense = trainings["dense"].seconds
    return {name: training.facts(dense) for name, training in trainings.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with train.parquet and test.parquet")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--images", type=int, help="train on so many at most; on all if left out")
    parser.add_argument("--quick", action="store_true", help="one epoch, to see that it runs; writes nothing of worth")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    seeds = [int(seed) for seed in given.seeds.split(",")]
    rows = {f"seed {seed}": together(given.data, seed, given.images, 1 if given.quick else EPOCHS) for seed in seeds}
    mean = {
        name: {key: statistics.mean(row[name][key] for row in rows.values()) for key in ("ratio", "ideal", "accuracy")}
        for name in VARIANTS
    }
    write("training-quick" if given.quick else "training", {"images": given.images, "runs": rows, "mean": mean})


if __name__ == "__main__":
    main()
