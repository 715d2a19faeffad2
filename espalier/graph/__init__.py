"""Which channels of a model belong together, found by one labelled forward pass; see docs/architecture.md."""

from espalier.graph.extent import Extent, Work
from espalier.graph.graph import ChannelGraph, Group, Member
from espalier.graph.tracing import trace

__all__ = ["ChannelGraph", "Extent", "Group", "Member", "Work", "trace"]
