"""Masks: the only place where a weight is zeroed."""

from espalier.masks.allocation import SCOPES
from espalier.masks.patterns import NM, PATTERNS, Block, Column, Filter, InputChannel, Kernel, KernelShape, Pattern, Weight
from espalier.masks.targets import select_ratios, select_weights
from espalier.masks.upkeep import LayerSparsity, Masks, pack_bits, unpack_bits

__all__ = [
    "NM",
    "PATTERNS",
    "SCOPES",
    "Block",
    "Column",
    "Filter",
    "InputChannel",
    "Kernel",
    "KernelShape",
    "LayerSparsity",
    "Masks",
    "Pattern",
    "Weight",
    "pack_bits",
    "select_ratios",
    "select_weights",
    "unpack_bits",
]
