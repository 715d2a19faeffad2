"""What a cut model costs as a share of the dense one: for what a method says of itself and for what a run folder says of it."""

from __future__ import annotations


class Shares:
    """Properties of a record that has costs before and now."""

    dense_macs: int
    macs: int
    dense_params: int
    params: int

    @property
    def keep_macs(self) -> float:
        """Share of the MACs that is left."""
        return self.macs / self.dense_macs

    @property
    def keep_params(self) -> float:
        """Share of the parameters that is left."""
        return self.params / self.dense_params
