"""One paper, one file. ``METHODS`` is the list that the command line and the contract tests read."""

from espalier.methods.agp import AGP
from espalier.methods.dense import Dense
from espalier.methods.earlybird import EarlyBird
from espalier.methods.epi import EPI
from espalier.methods.follow import Follow
from espalier.methods.force import Force
from espalier.methods.frame.base import Clock, Gradients, Method, Run, Site
from espalier.methods.frame.scheduled import Scheduled
from espalier.methods.frame.shrinkage import Check, Cut, Shrinkage
from espalier.methods.frame.structured import Structured
from espalier.methods.greg import GReg
from espalier.methods.iterative import Iterative
from espalier.methods.ocp import OCP
from espalier.methods.ocsp import OCSP
from espalier.methods.oneshot import OneShot
from espalier.methods.pruneat import PruneAt
from espalier.methods.slimming import NetworkSlimming
from espalier.methods.trainprunefinetune import TrainPruneFinetune

WEIGHT_METHODS: tuple[type[Method], ...] = (Dense, OneShot, Iterative, AGP, OCP, Follow)
CHANNEL_METHODS: tuple[type[Method], ...] = (
    OCSP,
    EPI,
    PruneAt,
    Force,
    TrainPruneFinetune,
    NetworkSlimming,
    EarlyBird,
    GReg,
)
METHODS: dict[str, type[Method]] = {m.name: m for m in (*WEIGHT_METHODS, *CHANNEL_METHODS)}

__all__ = [
    "AGP",
    "EPI",
    "METHODS",
    "OCP",
    "OCSP",
    "Check",
    "Clock",
    "Cut",
    "Dense",
    "EarlyBird",
    "Follow",
    "Force",
    "GReg",
    "Gradients",
    "Iterative",
    "Method",
    "NetworkSlimming",
    "OneShot",
    "PruneAt",
    "Run",
    "Scheduled",
    "Shrinkage",
    "Site",
    "Structured",
    "TrainPruneFinetune",
]
