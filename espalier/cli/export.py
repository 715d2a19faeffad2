"""`espalier export MODEL`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from espalier.cli.models import CLASSES_HELP, INPUT_HELP, MODEL_HELP, example_input, input_shape, model_named
from espalier.errors import EspalierError

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "openvino": ".xml"}


def export(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    out: Annotated[Path | None, typer.Option(help="The file to write; default: named after the model.")] = None,
    form: Annotated[str | None, typer.Option("--format", help="onnx, pt2 or openvino; default: as --out says.")] = None,
    shape: Annotated[str | None, typer.Option("--input", help=INPUT_HELP)] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Fix the batch size; default: any, where that works.")] = None,
    opset: Annotated[int | None, typer.Option(help="Of ONNX; default: torch's choice.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Largest difference, as a share of the largest output.")] = None,
    classes: Annotated[int, typer.Option(min=1, help=CLASSES_HELP)] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a model as ONNX, torch.export or OpenVINO, run the file, and compare its outputs with the model's."""
    import espalier as es

    place = _place(model, out, form)
    size = input_shape(model, shape)
    net = model_named(model, classes=classes, in_channels=size[0])
    inputs = example_input(size, batch or 2)
    done = es.export(net, place, inputs, dynamic_batch=None if batch is None else False, opset=opset, tolerance=tolerance)
    if not as_json:
        typer.echo(str(done))
        return
    content = {
        "model": model,
        "path": str(done.path),
        "files": [str(file) for file in done.files],
        "format": done.format,
        "bytes": done.bytes,
        "dynamic_batch": done.dynamic_batch,
        "opset": done.opset,
        "max_absolute": done.max_absolute,
        "max_relative": done.max_relative,
    }
    typer.echo(json.dumps(content))


def _place(model: str, out: Path | None, form: str | None) -> Path:
    """Where to write: the format and the suffix agree."""
    if form is not None and form not in SUFFIXES:
        raise EspalierError(f"--format is one of {', '.join(SUFFIXES)}; got {form!r}.")
    if out is None:
        path = Path(model)
        stem = path.with_suffix("") if path.suffix == ".safetensors" else Path(model.replace("/", "-").replace(":", "-"))
        return stem.with_name(stem.name + SUFFIXES[form or "onnx"])
    if form is not None and out.suffix != SUFFIXES[form]:
        raise EspalierError(f"--format {form} writes a {SUFFIXES[form]} file, and --out is {str(out)!r}: give one of the two.")
    return out
