"""Measured latency and memory."""

from espalier.profiling.measure import profile
from espalier.profiling.results import Profile, Row, Spread

__all__ = ["Profile", "Row", "Spread", "profile"]
