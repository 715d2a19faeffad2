"""What any choice of widths costs, and which widths a budget pays for; nothing here touches the model."""

from espalier.cost.costs import Cost, LayerCost
from espalier.cost.evaluation import ChannelCost, channel_costs, cost
from espalier.cost.search import search

__all__ = ["ChannelCost", "Cost", "LayerCost", "channel_costs", "cost", "search"]
