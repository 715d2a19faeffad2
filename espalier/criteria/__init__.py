"""Scores: of single weights (``weights``) and of whole channels with all that goes with them (``channels``)."""

from espalier.criteria.channels import (
    CHANNEL_CRITERIA,
    BatchNormScale,
    ChannelCriterion,
    ChannelMagnitude,
    ChannelRandom,
    ChannelTaylor,
    DepGraphNorm,
    GateTaylor,
    GroupSaliency,
)
from espalier.criteria.weights import CRITERIA, Criterion, Magnitude, Movement, Random, Squared, WeightGradient

__all__ = [
    "CHANNEL_CRITERIA",
    "CRITERIA",
    "BatchNormScale",
    "ChannelCriterion",
    "ChannelMagnitude",
    "ChannelRandom",
    "ChannelTaylor",
    "Criterion",
    "DepGraphNorm",
    "GateTaylor",
    "GroupSaliency",
    "Magnitude",
    "Movement",
    "Random",
    "Squared",
    "WeightGradient",
]
