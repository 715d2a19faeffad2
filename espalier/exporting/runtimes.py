"""The runtimes that read exported files, each behind one function: file -> (inputs -> outputs)."""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from espalier.errors import EspalierError
from espalier.inputs import Call, tensors_in

Run = Callable[[Call], list[Tensor]]


def needed(name: str) -> Any:
    """Import a package of the extra ``export``.

    Raises:
        EspalierError: it is not installed or does not load.
    """
    try:
        with _quiet_openvino() if name == "openvino" else contextlib.nullcontext():
            return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise EspalierError(
            f"Exporting needs {name}, which cannot be imported ({reason}): pip install 'espalier[export]'."
        ) from error


@contextlib.contextmanager
def _quiet_openvino() -> Iterator[None]:
    """OpenVINO reports each import to its makers unless its telemetry package is missing; nobody asked for that."""
    name = "openvino_telemetry"
    if "openvino" in sys.modules or name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # makes `import openvino_telemetry` raise ImportError
    try:
        yield
    finally:
        del sys.modules[name]


def open_onnx(path: Path) -> Run:
    """An ONNX file in onnxruntime, on the CPU."""
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]

    def run(call: Call) -> list[Tensor]:
        arrays = [tensor.detach().cpu().numpy() for tensor in call.tensors]
        return [torch.from_numpy(array) for array in session.run(None, dict(zip(names, arrays, strict=True)))]

    return run


def open_openvino(path: Path) -> Run:
    """An OpenVINO model on the CPU, in float32: its default precision is bfloat16 where the processor has it."""
    core = needed("openvino").Core()
    compiled = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(call: Call) -> list[Tensor]:
        outputs = compiled([tensor.detach().cpu().numpy() for tensor in call.tensors])
        return [torch.from_numpy(outputs[index].copy()) for index in range(len(compiled.outputs))]

    return run


def open_program(path: Path) -> Run:
    """A program of torch.export."""
    with quiet():
        module = torch.export.load(path).module()

    @torch.no_grad()
    def run(call: Call) -> list[Tensor]:
        return tensors_in(call(module))

    return run


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that torch's exporters give about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
