"""How each format is written. All start from one capture of torch.export; the suffix of the file names the format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from espalier.errors import EspalierError
from espalier.exporting.runtimes import Run, needed, open_onnx, open_openvino, open_program, quiet
from espalier.inputs import Call

EXTERNAL_ABOVE = 1_800_000_000  # bytes of weights; protobuf ends at 2 GiB, so larger ONNX models keep them in NAME.onnx.data
OLDEST_OPSET = 18  # of torch's exporter


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        name: what to call it.
        packages: what must be installed, besides torch.
        write: (program, file, opset) -> opset of the file; None where there is none.
        open: reads the file with its own runtime.
    """

    name: str
    packages: tuple[str, ...]
    write: Callable[[ExportedProgram, Path, int | None], int | None]
    open: Callable[[Path], Run]


@torch.no_grad()
def capture(model: nn.Module, call: Call, *, dynamic: bool) -> ExportedProgram:
    """The model as a graph, for the shapes of ``call`` and, if ``dynamic``, any batch size."""
    shapes: Any = None
    if dynamic:
        shapes, batch = ShapesCollection(), Dim("batch")  # type: ignore[no-untyped-call]
        for tensor in call.tensors:
            if call.is_batched(tensor):
                shapes[tensor] = {0: batch}
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # its fused operator has no counterpart in other runtimes
        with quiet():
            return torch.export.export(model, call.args, call.kwargs, dynamic_shapes=shapes, strict=False)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def write_program(program: ExportedProgram, path: Path, opset: int | None) -> None:
    """The format of torch.export."""
    if opset is not None:
        raise EspalierError("A .pt2 file has no opset: leave the opset out, or export to .onnx.")
    program.example_inputs = None  # the user's data has no business in the file
    with quiet():
        torch.export.save(program, path)


def write_onnx(program: ExportedProgram, path: Path, opset: int | None) -> int:
    """ONNX, by the exporter of torch.onnx that reads torch.export's graphs."""
    newest = needed("onnx").defs.onnx_opset_version()
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise EspalierError(f"ONNX files are written in opset {OLDEST_OPSET} to {newest}, not {opset}.")
    with quiet():
        exported = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=opset)
        assert exported is not None
        weights = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
        exported.save(path, external_data=weights > EXTERNAL_ABOVE)
    (written,) = (item.version for item in needed("onnx").load(path, load_external_data=False).opset_import if not item.domain)
    if opset is not None and written != opset:
        raise EspalierError(f"The model cannot be written in ONNX opset {opset}: it needs opset {written}.")
    return int(written)


def write_openvino(program: ExportedProgram, path: Path, opset: int | None) -> int:
    """OpenVINO's .xml and .bin, read in from ONNX, with weights as precise as the model's."""
    openvino = needed("openvino")
    between = path.with_name("between.onnx")
    try:
        opset = write_onnx(program, between, opset)
        openvino.save_model(openvino.Core().read_model(str(between)), str(path), compress_to_fp16=False)
    finally:
        for leftover in path.parent.glob("between.onnx*"):
            leftover.unlink()
    return opset


FORMATS = {
    ".onnx": Format("ONNX", ("onnx", "onnxscript", "onnxruntime"), write_onnx, open_onnx),
    ".pt2": Format("torch.export", (), write_program, open_program),
    ".xml": Format("OpenVINO", ("onnx", "onnxscript", "openvino"), write_openvino, open_openvino),
}
