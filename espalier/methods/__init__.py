"""One paper, one file. ``METHODS`` is the list that the command line and the contract tests read."""

from espalier.methods.agp import AGP
from espalier.methods.base import Clock, Gradients, Method, Run, Site
from espalier.methods.dense import Dense
from espalier.methods.epi import EPI
from espalier.methods.follow import Follow
from espalier.methods.iterative import Iterative
from espalier.methods.ocp import OCP
from espalier.methods.ocsp import OCSP
from espalier.methods.oneshot import OneShot
from espalier.methods.pruneat import PruneAt
from espalier.methods.scheduled import Scheduled
from espalier.methods.shrinkage import Check, Cut, Shrinkage
from espalier.methods.structured import Structured

METHODS: dict[str, type[Method]] = {m.name: m for m in (Dense, OneShot, Iterative, AGP, OCP, Follow, OCSP, EPI, PruneAt)}

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
    "Follow",
    "Gradients",
    "Iterative",
    "Method",
    "OneShot",
    "PruneAt",
    "Run",
    "Scheduled",
    "Shrinkage",
    "Site",
    "Structured",
]
