"""One paper, one file. ``METHODS`` is the list that the command line and the contract tests read."""

from espalier.methods.admm import ADMM, ADMMChannels
from espalier.methods.agp import AGP
from espalier.methods.dense import Dense
from espalier.methods.earlybird import EarlyBird
from espalier.methods.epi import EPI
from espalier.methods.follow import Follow
from espalier.methods.force import Force
from espalier.methods.frame.base import Clock, Gradients, Method, Run, Site
from espalier.methods.frame.cutting.structured import Structured
from espalier.methods.frame.masking.atinit import AtInit
from espalier.methods.frame.masking.scheduled import Scheduled
from espalier.methods.frame.shrinkage import Check, Cut, Shrinkage
from espalier.methods.grasp import GraSP
from espalier.methods.greg import GReg
from espalier.methods.iterative import Iterative
from espalier.methods.ocp import OCP
from espalier.methods.ocsp import OCSP
from espalier.methods.oneshot import OneShot
from espalier.methods.pruneat import PruneAt
from espalier.methods.slimming import NetworkSlimming
from espalier.methods.slr import SLR, SLRChannels
from espalier.methods.snip import SNIP
from espalier.methods.synflow import SynFlow
from espalier.methods.ticket import Ticket
from espalier.methods.trainprunefinetune import TrainPruneFinetune
from espalier.records.rounds import Round

WEIGHT_METHODS: tuple[type[Method], ...] = (
    Dense,
    OneShot,
    Iterative,
    AGP,
    OCP,
    Follow,
    SNIP,
    GraSP,
    SynFlow,
    Ticket,
    SLR,
    ADMM,
)
CHANNEL_METHODS: tuple[type[Method], ...] = (
    OCSP,
    EPI,
    PruneAt,
    Force,
    TrainPruneFinetune,
    NetworkSlimming,
    EarlyBird,
    GReg,
    SLRChannels,
    ADMMChannels,
)
METHODS: dict[str, type[Method]] = {m.name: m for m in (*WEIGHT_METHODS, *CHANNEL_METHODS)}

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
    "AtInit",
    "Check",
    "Clock",
    "Cut",
    "Dense",
    "EarlyBird",
    "Follow",
    "Force",
    "GReg",
    "GraSP",
    "Gradients",
    "Iterative",
    "Method",
    "NetworkSlimming",
    "OneShot",
    "PruneAt",
    "Round",
    "Run",
    "SLRChannels",
    "Scheduled",
    "Shrinkage",
    "Site",
    "Structured",
    "SynFlow",
    "Ticket",
    "TrainPruneFinetune",
]
