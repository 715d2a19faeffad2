"""The table of rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from espalier.graph.labels import Labels

Arguments = Mapping[str, Any]
Rule = Callable[[Labels, str, Arguments, Any], None]

_rules: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operations by their ATen names."""

    def register(function: Rule) -> Rule:
        for name in names:
            _rules[name] = function
        return function

    return register


def find(name: str, tags: object) -> Rule | None:
    """The rule of an operation: by name, by name without the underscore of in-place operations, or as an elementwise one."""
    found = _rules.get(name) or _rules.get(name.removesuffix("_"))
    if found is None and torch.Tag.pointwise in tags:  # type: ignore[operator]
        return _rules["elementwise"]
    return found
