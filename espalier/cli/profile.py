"""`espalier profile MODEL`."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from espalier.cli.models import CLASSES_HELP, INPUT_HELP, MODEL_HELP, example_input, input_shape, model_named


def profile(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    shape: Annotated[str | None, typer.Option("--input", help=INPUT_HELP)] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per call; without --train batch 1 is measured too.")] = 32,
    against: Annotated[str | None, typer.Option(help="Another model, measured in turn with the first.")] = None,
    backward: Annotated[bool, typer.Option("--train", help="Time forward and backward in training mode.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch; default: as torch finds them.")] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="To measure for each batch size.")] = 2.0,
    device: Annotated[str, typer.Option(help="cpu, cuda, ... or auto.")] = "auto",
    classes: Annotated[int, typer.Option(min=1, help=CLASSES_HELP)] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the latency and the peak memory of a model, at batch 1 and at a larger one."""
    import espalier as es
    from espalier.recipes.training.processes import choose_device

    size = input_shape(model, shape)
    place = choose_device(device)
    net = model_named(model, classes=classes, in_channels=size[0]).to(place)
    other = None if against is None else model_named(against, classes=classes, in_channels=size[0]).to(place)
    inputs = example_input(size, batch).to(place)
    found = es.profile(net, inputs, train=backward, against=other, threads=threads, seconds=seconds)
    if as_json:
        named = {"model": model, "against": against, "input": list(size)}
        typer.echo(json.dumps(named | dataclasses.asdict(found)))
        return
    typer.echo(f"{model} at {' x '.join(map(str, size))}" + (f", other: {against}" if against else ""))
    typer.echo(str(found))
