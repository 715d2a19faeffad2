"""Writes ``models.json``: of every family the architecture with the fewest parameters, at the smallest input it takes.

timm's ``test_*`` models are left out: they are toys made for its own tests, not architectures. Models without a classifier
get one of 1000 classes, as their embedding would otherwise be the output. Parameters are counted on the meta device.
Takes some ten minutes.

Usage: python -m benchmarks.coverage.listing
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from benchmarks.coverage.models import LIST, Entry, build, example, loss, watch
from espalier.tasks.vision import timm, torchvision

# Not the smallest of their families, but the claims to be tested name them.
EXTRAS = {
    "timm": ["mixer_s32_224", "coatnet_nano_rw_224", "convnextv2_atto", "res2net50_26w_4s", "resnext50_32x4d"],
    "torchvision": ["resnext50_32x4d"],
}
DETECTORS: dict[str, dict[str, Any]] = {
    "ssdlite320_mobilenet_v3_large": {},
    "ssd300_vgg16": {},
    "retinanet_resnet50_fpn": {"min_size": 128, "max_size": 128},
    "fcos_resnet50_fpn": {"min_size": 128, "max_size": 128},
}
FAST = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}  # minutes of truncated normals
SIDES, LARGE = (128, 160, 192, 224, 256), 60_000_000


def count(library: str, name: str, arguments: dict[str, Any]) -> int:
    try:
        with torch.device("meta"):
            model = build(Entry(name, library, "", 0, (3, 0, 0), arguments))
    except NotImplementedError:  # regnet computes its widths with tensors; torchvision has their number on record
        return torchvision().models.get_model_weights(name).DEFAULT.meta["num_params"]
    return sum(parameter.numel() for parameter in model.parameters())


def timm_families() -> dict[str, list[str]]:
    """Names by module of timm, without toys, deprecated aliases and names that cannot be built without a download."""
    families: dict[str, list[str]] = {}
    models = timm().models
    for module in sorted({models.model_entrypoint(name).__module__ for name in models.list_models()}):
        short = module.rsplit(".", 1)[1]
        names = [name for name in models.list_models(module=short) if not name.startswith("test_")]
        families[short] = [name for name in names if models.get_pretrained_cfg(name) is not None]
    return families


def torchvision_families(package: str) -> dict[str, list[str]]:
    models = torchvision().models
    module = models if package == "torchvision" else models.segmentation
    families: dict[str, list[str]] = {}
    for name in models.list_models(module=module):
        family = models.get_model_builder(name).__module__.removeprefix("torchvision.models.")
        families.setdefault(family, []).append(name)
    return families


def smallest(library: str, families: dict[str, list[str]]) -> list[Entry]:
    entries = []
    for family, names in families.items():
        sizes = sorted((count(library, name, FAST.get(name, {}) if library != "timm" else {}), name) for name in names)
        picked = [sizes[0][1], *(name for name in EXTRAS.get(library, []) if name in names and name != sizes[0][1])]
        for name in picked:
            arguments = FAST.get(name, {}) if library != "timm" else {}
            entry = Entry(name, library, family, dict(map(reversed, sizes))[name], (3, 224, 224), arguments)
            entries.append(with_classifier(replace(entry, extra=name != picked[0])))
            print(entries[-1], flush=True)
    return entries


def with_classifier(entry: Entry) -> Entry:
    if entry.library != "timm":
        return entry
    with torch.device("meta"):
        classes = getattr(build(entry), "num_classes", 1000)
    if classes:
        return entry
    arguments = {"num_classes": 1000}
    return replace(entry, arguments=arguments, parameters=count("timm", entry.name, arguments))


def default_side(entry: Entry) -> int:
    if entry.library == "timm":
        return timm().get_pretrained_cfg(entry.name).input_size[-1]
    return 299 if entry.name == "inception_v3" else 224


def sized(entry: Entry) -> Entry | str:
    """The entry at the smallest side at which it runs forward and backward, or the reason why it never does."""
    default, model, reason = default_side(entry), build(entry), ""
    sides = [side for side in SIDES if side < default]
    if entry.parameters > LARGE:
        sides.insert(0, 112)
    for side in [*sides, default]:
        trial = replace(entry, input=(3, side, side))
        try:
            runs(trial, model)
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        return trial
    return reason


def runs(entry: Entry, model: nn.Module) -> None:
    inputs = example(entry)
    with torch.no_grad():
        watch(entry, model.eval(), inputs)
    loss(watch(entry, model.train(), inputs)).backward()


def main() -> None:
    warnings.filterwarnings("ignore")
    entries = smallest("timm", timm_families())
    for library in ("torchvision", "torchvision.segmentation"):
        entries += smallest(library, torchvision_families(library))
    for name, arguments in DETECTORS.items():
        size = count("torchvision.detection", name, arguments)
        entries.append(Entry(name, "torchvision.detection", "detection." + name.split("_")[0], size, (3, 128, 128), arguments))
    models, left_out = [], []
    for entry in entries:
        result = sized(entry)
        if isinstance(result, str):
            left_out.append({"name": entry.key, "reason": result})
        else:
            models.append(asdict(result))
        print(entry.key, result, flush=True)
    write(models, left_out)


def write(models: list[dict[str, Any]], left_out: list[dict[str, str]]) -> None:
    """One model a line, so that a change of the list is read at a glance."""
    lines = ",\n".join("    " + json.dumps(model) for model in models)
    LIST.write_text(f'{{\n  "models": [\n{lines}\n  ],\n  "left_out": {json.dumps(left_out)}\n}}\n')


if __name__ == "__main__":
    main()
