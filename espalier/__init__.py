"""Espalier: train once, ship small. Prune a PyTorch model during its one training run.

>>> import espalier as es
>>> es.OCP(sparsity=0.9).schedule()(1.0)
0.9
"""

from espalier import criteria, schedules
from espalier.errors import EspalierError
from espalier.files import load_model as load
from espalier.files import save_model as save
from espalier.masks import LayerSparsity, patterns
from espalier.methods import AGP, METHODS, OCP, Dense, Follow, Iterative, Method, OneShot
from espalier.pruner import Pruner, Report

__version__ = "0.1.0"

__all__ = [
    "AGP",
    "METHODS",
    "OCP",
    "Dense",
    "EspalierError",
    "Follow",
    "Iterative",
    "LayerSparsity",
    "Method",
    "OneShot",
    "Pruner",
    "Report",
    "criteria",
    "load",
    "patterns",
    "save",
    "schedules",
]
