"""Masks: the only place where a weight is zeroed."""

from espalier.masks.allocation import SCOPES
from espalier.masks.patterns import NM, PATTERNS, Block, Filter, Kernel, Pattern, Weight
from espalier.masks.targets import select_weights
from espalier.masks.upkeep import LayerSparsity, Masks, pack_bits, unpack_bits

__all__ = [
    "NM",
    "PATTERNS",
    "SCOPES",
    "Block",
    "Filter",
    "Kernel",
    "LayerSparsity",
    "Masks",
    "Pattern",
    "Weight",
    "pack_bits",
    "select_weights",
    "unpack_bits",
]
