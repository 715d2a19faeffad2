"""What the data path costs: batches that stay on the device, beside a training step and beside a loader that decodes.

1. ``share``: one resident batch (128 images of 32 x 32, crop by 4 pixels, flip, normalise) as a share of a training step
   of ResNet-20 on it, in fp32 and in bf16 autocast, both channels-last. The step is timed alone, on a batch that is
   there already, so the share is what the data adds to it; the batch is timed twice (A/A).
2. ``loader``: images per second of the resident path beside a torch ``DataLoader`` with two worker processes that decodes
   the JPEG files of the same images with Pillow and does the same augmentation with torch, image by image.
3. ``syncs``, on a GPU: how many times an epoch of resident batches makes the host wait, by
   ``torch.cuda.set_sync_debug_mode``.

Usage: python benchmarks/bench_data.py --data FOLDER [--quick]      FOLDER holds CIFAR-10 as train.parquet, test.parquet
"""

from __future__ import annotations

import argparse
import io
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from common import compare, interleaved, write
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from espalier.tasks.classification.data import Augment, Data, open_data
from espalier.tasks.classification.models import build_model

BATCH, PADDING = 128, 4
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def open_resident(folder: str) -> Data:
    augment = Augment(flip=True, crop_padding=PADDING)
    return open_data("parquet", path=folder, batch_size=BATCH, device=DEVICE, augment=augment, channels_last=True)


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def endless(data: Data) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 0
    while True:
        yield from data.train.epoch(epoch)
        epoch += 1


def training_step(batch: tuple[Tensor, Tensor], *, bf16: bool) -> Callable[[], None]:
    torch.manual_seed(0)
    model = build_model("resnet20", num_classes=10).to(DEVICE, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    x, y = batch

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wait()

    return step


def share(data: Data, rounds: int) -> dict[str, dict[str, float]]:
    batches, again = endless(data), endless(data)
    standing = next(batches)

    def resident() -> None:
        next(batches)
        wait()

    def resident_again() -> None:
        next(again)
        wait()

    times = interleaved(
        {
            "step fp32": training_step(standing, bf16=False),
            "step bf16": training_step(standing, bf16=True),
            "resident batch": resident,
            "resident batch again (A/A)": resident_again,
        },
        rounds,
    )
    return {f"of a {base}": compare(times, base) for base in ("step fp32", "step bf16")}


class Decoding(Dataset[tuple[Tensor, int]]):
    """The way of most training scripts: an item is one image, decoded, cropped, flipped and normalised in the worker."""

    def __init__(self, folder: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        table = pq.read_table(Path(folder) / "train.parquet")
        self.files = [item["bytes"] for item in table["img" if "img" in table.column_names else "image"].to_pylist()]
        self.labels = table["label"].to_pylist()
        self.mean, self.std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = np.array(Image.open(io.BytesIO(self.files[index])).convert("RGB"))
        image = nn.functional.pad(torch.from_numpy(pixels).permute(2, 0, 1), (PADDING,) * 4)
        top, left = torch.randint(0, 2 * PADDING + 1, (2,)).tolist()
        image = image[:, top : top + pixels.shape[0], left : left + pixels.shape[1]]
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        return (image.float().div_(255) - self.mean) / self.std, self.labels[index]


def loader(data: Data, folder: str, batches: int, rounds: int) -> dict[str, float | int]:
    """Both are started and warm before time is taken; images a second over the same number of batches, in turn."""
    decoding = DataLoader(
        Decoding(folder, data.info.mean, data.info.std),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        pin_memory=DEVICE.type == "cuda",
    )

    def decoded() -> Generator[tuple[Tensor, Tensor], None, None]:
        while True:  # each pass starts workers of its own; a closed stream ends them
            for x, y in decoding:
                yield x.to(DEVICE, memory_format=torch.channels_last, non_blocking=True), y.to(DEVICE, non_blocking=True)

    def rate(stream: Iterator[tuple[Tensor, Tensor]]) -> float:
        for _ in range(8):  # more than the loader has decoded ahead when it is first asked
            next(stream)
        wait()
        start = time.perf_counter()
        for _ in range(batches):
            next(stream)
        wait()
        return BATCH * batches / (time.perf_counter() - start)

    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(rate(endless(data)))
        stream = decoded()  # not running meanwhile: workers that decode ahead would take the cores from the other
        theirs.append(rate(stream))
        stream.close()
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    middle = rounds // 2
    return {
        "resident_images_per_second": sorted(ours)[middle],
        "two_workers_images_per_second": sorted(theirs)[middle],
        "ratio": ratios[middle],
        "lowest_ratio": ratios[0],
        "rounds": rounds,
        "batches": batches,
    }


def syncs(data: Data, batches: int) -> dict[str, float | int | str]:
    if DEVICE.type != "cuda":
        return {"note": "no GPU here"}
    stream = endless(data)
    next(stream)
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(batches):
            next(stream)
    torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in seen if "synchroniz" in str(warning.message)]
    return {"batches": batches, "syncs": len(waits), "syncs_per_batch": len(waits) / batches}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with CIFAR-10 as train.parquet and test.parquet")
    parser.add_argument("--quick", action="store_true", help="few rounds, to see that it runs; writes nothing of worth")
    options = parser.parse_args()
    quick, data = options.quick, open_resident(options.data)
    content = {
        "batch": {"images": BATCH, "size": data.info.image_size, "device": DEVICE.type},
        "share": share(data, 3 if quick else 60),
        "loader": loader(data, options.data, 10 if quick else 150, 1 if quick else 5),
        "syncs": syncs(data, min(100, len(data.train) - 1)),
    }
    write("data-quick" if quick else "data", content)


if __name__ == "__main__":
    main()
