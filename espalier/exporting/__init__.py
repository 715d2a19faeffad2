"""The file to ship: ONNX, torch.export or OpenVINO, proved by running it."""

from espalier.exporting.export import Exported, export

__all__ = ["Exported", "export"]
