"""What operations do to labels: one function per kind of operation, found by the operation's name.

A rule gets the labels of the trace, the arguments by name and the result; it unifies, freezes and labels. An operation
without a rule freezes what it touches.
"""

from espalier.graph.rules import elementwise, joins, layers, matmul, parts, recurrent, reductions, shapes
from espalier.graph.rules.registry import Rule, find

__all__ = ["Rule", "elementwise", "find", "joins", "layers", "matmul", "parts", "recurrent", "reductions", "shapes"]
