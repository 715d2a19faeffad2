"""The Pruner: binds one method to one model and its optimizers."""

from espalier.pruner.pruner import Pruner
from espalier.pruner.report import Report

__all__ = ["Pruner", "Report"]
