"""One paper, one file. ``METHODS`` is the list that the command line and the contract tests read."""

from espalier.methods.agp import AGP
from espalier.methods.base import Clock, Gradients, Method, Run, Site
from espalier.methods.dense import Dense
from espalier.methods.follow import Follow
from espalier.methods.iterative import Iterative
from espalier.methods.ocp import OCP
from espalier.methods.oneshot import OneShot
from espalier.methods.scheduled import Scheduled

METHODS: dict[str, type[Method]] = {m.name: m for m in (Dense, OneShot, Iterative, AGP, OCP, Follow)}

__all__ = [
    "AGP",
    "METHODS",
    "OCP",
    "Clock",
    "Dense",
    "Follow",
    "Gradients",
    "Iterative",
    "Method",
    "OneShot",
    "Run",
    "Scheduled",
    "Site",
]
