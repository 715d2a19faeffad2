"""Removes channels that masks or zero weights have left dead or constant, with unchanged outputs."""

from espalier.compacting.compact import compact
from espalier.compacting.results import Compaction, Kept

__all__ = ["Compaction", "Kept", "compact"]
