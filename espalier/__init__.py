"""Espalier: train once, ship small. Prune a PyTorch model during its one training run.

>>> import espalier as es
>>> es.OCP(sparsity=0.9).schedule()(1.0)
0.9
"""

from espalier import criteria, schedules
from espalier.compacting import Compaction, compact
from espalier.cost import Cost, cost, search
from espalier.distributed import DistributedDataParallel
from espalier.errors import EspalierError
from espalier.exporting import export
from espalier.files import save_model as save
from espalier.graph import ChannelGraph, Group, trace
from espalier.masks import LayerSparsity, patterns
from espalier.methods import AGP, METHODS, OCP, Dense, Follow, Iterative, Method, OneShot
from espalier.profiling import profile
from espalier.pruner import Pruner, Report
from espalier.rebuild import load
from espalier.surgery.channels import cut
from espalier.surgery.reshaping import load_state_dict

__version__ = "0.1.0"

__all__ = [
    "AGP",
    "METHODS",
    "OCP",
    "ChannelGraph",
    "Compaction",
    "Cost",
    "Dense",
    "DistributedDataParallel",
    "EspalierError",
    "Follow",
    "Group",
    "Iterative",
    "LayerSparsity",
    "Method",
    "OneShot",
    "Pruner",
    "Report",
    "compact",
    "cost",
    "criteria",
    "cut",
    "export",
    "load",
    "load_state_dict",
    "patterns",
    "profile",
    "save",
    "schedules",
    "search",
    "trace",
]
