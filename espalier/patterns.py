"""Public names of the patterns: ``es.patterns.NM(2, 4)``."""

from espalier.masks.patterns import NM, PATTERNS, Block, Filter, Kernel, Pattern, Weight

__all__ = ["NM", "PATTERNS", "Block", "Filter", "Kernel", "Pattern", "Weight"]
