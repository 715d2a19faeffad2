"""Write a model for another runtime, run the file there, and let it stand only if it computes what the model computes."""

from __future__ import annotations

import copy
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from espalier.errors import EspalierError
from espalier.exporting.compare import Difference, another, difference
from espalier.exporting.formats import FORMATS, Format, capture
from espalier.exporting.runtimes import needed
from espalier.inputs import Call, in_mode
from espalier.wrappers import unwrap


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from the model.

    Attributes:
        path: the file.
        format: "ONNX", "torch.export" or "OpenVINO".
        bytes: size, with the weights where these are a file of their own.
        dynamic_batch: whether the file takes any batch size, or that of the example only.
        opset: of ONNX (that OpenVINO was read from, too); None for torch.export.
        max_absolute: largest difference of any output value.
        max_relative: the same as a share of the largest value of that output.
        files: all files that belong together, ``path`` among them.
    """

    path: Path
    format: str
    bytes: int
    dynamic_batch: bool
    opset: int | None
    max_absolute: float
    max_relative: float
    files: tuple[Path, ...]

    def __str__(self) -> str:
        kind = f"{self.format}, opset {self.opset}" if self.opset is not None else self.format
        sizes = "any batch size" if self.dynamic_batch else "this batch size only"
        return (
            f"{self.path}: {kind}, {self.bytes / 1e6:.2f} MB, {sizes}; outputs differ from the model's by at most "
            f"{self.max_absolute:.1e} ({self.max_relative:.1e} of the largest)"
        )


def export(
    model: nn.Module,
    path: str | Path,
    example_inputs: Any,
    *,
    dynamic_batch: bool | None = None,
    opset: int | None = None,
    tolerance: float | None = None,
) -> Exported:
    """Write a model in evaluation mode for another runtime, and compare what the file computes with the model.

    The file is loaded by its own runtime (onnxruntime, torch.export, OpenVINO in float32) and run on the example inputs and
    on a second, random batch. Only if both agree does it take its place; an old file stays otherwise.

    Args:
        model: stays as it is; of a wrapped one (torch.compile, DistributedDataParallel) the inner module is exported. A model
            on another device than the CPU is copied to the CPU first.
        path: ends in ``.onnx`` (ONNX; above 1.8 GB the weights lie beside it in ``.onnx.data``), ``.pt2`` (torch.export) or
            ``.xml`` (OpenVINO; the weights lie beside it in ``.bin``).
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        dynamic_batch: whether the file takes any batch size; the batch is the first dimension of the first tensor, and of
            every other tensor where it is as long. None tries that, and fixes the batch size if it does not work.
        opset: of ONNX; None leaves it to torch.
        tolerance: largest difference allowed, as a share of the largest value of an output. None: 1e-4, for float16 1e-2,
            for bfloat16 5e-2.

    Returns:
        Size, opset and differences; ``str()`` of it is one line.

    Raises:
        EspalierError: another suffix, a missing package, a model that cannot be captured, or outputs that differ.

    Example:
        >>> import tempfile, torch, espalier as es
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = es.export(torch.nn.Linear(4, 2), f"{folder}/small.pt2", torch.randn(2, 4))
        >>> done.format, done.dynamic_batch, done.max_absolute
        ('torch.export', True, 0.0)
    """
    path = Path(path)
    form = FORMATS.get(path.suffix)
    if form is None:
        raise EspalierError(f"The suffix of {str(path)!r} names no format: choose one of {', '.join(FORMATS)}.")
    for package in form.packages:
        needed(package)
    if tolerance is not None and not tolerance >= 0:
        raise EspalierError(f"tolerance is a share of at least 0 of the largest output, not {tolerance!r}.")
    model, call = _on_cpu(unwrap(model), Call.of(example_inputs))
    if dynamic_batch and not call.batch:
        raise EspalierError("The first tensor of the example inputs has no batch dimension: leave dynamic_batch out.")
    plans = [True, False] if dynamic_batch is None and call.batch else [bool(dynamic_batch)]
    with in_mode(model, train=False):
        while True:
            dynamic = plans.pop(0)
            try:
                return _attempt(model, path, form, call, dynamic, opset, tolerance)
            except EspalierError:
                if not plans:
                    raise


def _attempt(
    model: nn.Module, path: Path, form: Format, call: Call, dynamic: bool, opset: int | None, tolerance: float | None
) -> Exported:
    """Write beside the place, run, compare, and only then put the files into place, the one that ``path`` names last."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.mkdir()
        draft = beside / path.name
        opset = _write(model, draft, form, call, dynamic, opset)
        worst = _compare(model, draft, form, call, dynamic, tolerance)
        names = sorted((file.name for file in beside.iterdir()), key=lambda name: name == path.name)
        size = sum((beside / name).stat().st_size for name in names)
        for name in names:
            with open(beside / name, "rb") as file:
                os.fsync(file.fileno())
            os.replace(beside / name, path.with_name(name))
    except OSError as error:
        reason = error.strerror or str(error)
        raise EspalierError(
            f"{str(path)!r} could not be written ({reason}): free some space or choose another place."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    files = tuple(path.with_name(name) for name in names)
    return Exported(path, form.name, size, dynamic, opset, worst.absolute, worst.relative, files)


def _write(model: nn.Module, draft: Path, form: Format, call: Call, dynamic: bool, opset: int | None) -> int | None:
    # torch.export takes a batch of one for a constant, so a batch that may vary is captured with at least two.
    traced = call.resized(max(2, call.batch)) if dynamic else call
    try:
        return form.write(capture(model, traced, dynamic=dynamic), draft, opset)
    except (EspalierError, OSError):
        raise
    except Exception as error:  # each exporter has exceptions of its own
        raise EspalierError(f"The model cannot be exported to {form.name} ({_reason(error)}).") from error


def _compare(model: nn.Module, draft: Path, form: Format, call: Call, dynamic: bool, tolerance: float | None) -> Difference:
    """The worst difference on the example and on a second batch, which is of size 1 if it may be."""
    other = call.batch if not dynamic else 1 if call.batch > 1 else 3
    worst = Difference()
    try:
        run = form.open(draft)
        for inputs in (call, another(call, other)):
            found, usual = difference(model, run, inputs)
            worst, allowed = worst.worst(found), usual if tolerance is None else tolerance
            if not worst.relative <= allowed:
                raise EspalierError(
                    f"The outputs of the exported {form.name} file differ from the model's by {worst.absolute:.1e}, which is "
                    f"{worst.relative:.1e} of the largest value, and {allowed:.1e} is allowed: it was not written."
                )
    except (EspalierError, OSError):
        raise
    except Exception as error:  # each runtime has exceptions of its own
        raise EspalierError(f"The exported {form.name} file does not run ({_reason(error)}): it was not written.") from error
    return worst


def _on_cpu(model: nn.Module, call: Call) -> tuple[nn.Module, Call]:
    """The model itself where it is on the CPU, else a copy there: files shall run on any machine."""
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise EspalierError("The model is on the meta device and has no weights to export.")
    if any(tensor.device.type != "cpu" for tensor in tensors):
        model = copy.deepcopy(model).cpu()
    return model, call.map(lambda tensor: tensor.detach().cpu())


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines[0] if lines else type(error).__name__).rstrip(".")
    return text if len(text) <= 200 else text[:200] + "..."
