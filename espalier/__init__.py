"""Espalier: train once, ship small. Prune a PyTorch model during its one training run.

>>> import espalier as es
>>> es.OCP(sparsity=0.9).schedule()(1.0)
0.9
"""

from typing import TYPE_CHECKING, Any

from espalier import criteria, indicators, lottery, schedules
from espalier.compacting import Compaction, compact
from espalier.cost import Cost, cost, search
from espalier.errors import EspalierError
from espalier.exporting import export
from espalier.files import save_model as save
from espalier.graph import ChannelGraph, Group, trace
from espalier.masks import LayerSparsity, patterns
from espalier.methods import (
    ADMM,
    AGP,
    EPI,
    METHODS,
    OCP,
    OCSP,
    SLR,
    SNIP,
    ADMMChannels,
    Dense,
    EarlyBird,
    Follow,
    Force,
    GraSP,
    GReg,
    Iterative,
    Method,
    NetworkSlimming,
    OneShot,
    PruneAt,
    SLRChannels,
    SynFlow,
    Ticket,
    TrainPruneFinetune,
)
from espalier.profiling import profile
from espalier.pruner import Pruner, Report
from espalier.rebuild import load
from espalier.surgery.channels import cut
from espalier.surgery.reshaping import load_state_dict

if TYPE_CHECKING:
    from espalier.distributed.following import DistributedDataParallel

__version__ = "0.1.0"

__all__ = [
    "ADMM",
    "AGP",
    "EPI",
    "METHODS",
    "OCP",
    "OCSP",
    "SLR",
    "SNIP",
    "ADMMChannels",
    "ChannelGraph",
    "Compaction",
    "Cost",
    "Dense",
    "DistributedDataParallel",
    "EarlyBird",
    "EspalierError",
    "Follow",
    "Force",
    "GReg",
    "GraSP",
    "Group",
    "Iterative",
    "LayerSparsity",
    "Method",
    "NetworkSlimming",
    "OneShot",
    "PruneAt",
    "Pruner",
    "Report",
    "SLRChannels",
    "SynFlow",
    "Ticket",
    "TrainPruneFinetune",
    "compact",
    "cost",
    "criteria",
    "cut",
    "export",
    "indicators",
    "load",
    "load_state_dict",
    "lottery",
    "patterns",
    "profile",
    "save",
    "schedules",
    "search",
    "trace",
]

if not TYPE_CHECKING:  # a type checker that saw it would let every name pass

    def __getattr__(name: str) -> Any:
        """DistributedDataParallel at its first use: torch's compiler, which it needs, takes a second to import."""
        if name != "DistributedDataParallel":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from espalier.distributed.following import DistributedDataParallel

        globals()[name] = DistributedDataParallel
        return DistributedDataParallel


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
