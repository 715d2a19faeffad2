"""How optimizer states follow parameters that change shape: one rule per kind of state.

Most states have the shape of their parameter (SGD, the Adam family, RMSprop, Adagrad, Lion, Muon) and are sliced like it.
Adafactor keeps sums over rows and columns, LBFGS a history that starts over; step counters stay. Everything else
(preconditioners, quantised blocks, lists of tensors) is refused before anything changes: a wrong guess would train on quietly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from espalier.errors import EspalierError

Axes = tuple[int | None, ...]  # per dimension of a state: that of the parameter it runs along; None where it has size 1
Change = TypeVar("Change")
Commit = Callable[[], None]

# A state of another name may as well be the d x d preconditioner of a d x d weight; only these are sure not to be.
ELEMENTWISE = frozenset(
    {
        "momentum_buffer",  # SGD, Muon
        "exp_avg",
        "exp_avg_sq",
        "max_exp_avg_sq",
        "exp_inf",  # the Adam family, Lion, LAMB
        "square_avg",
        "grad_avg",
        "acc_delta",
        "sum",  # RMSprop, Adadelta, Adagrad
        "prev",
        "step_size",  # Rprop
        "ax",
        "variance",  # ASGD, Adafactor
        "exp_avg_diff",
        "exp_avg_var",
        "neg_pre_grad",  # Adan, AdaBelief
        "grad_sum_sq",
        "s",
        "x0",
        "z",  # MADGRAD, schedule-free
    }
)


def following(
    optimizer: Optimizer, changes: Mapping[Tensor, Change], resized: Callable[[Tensor, Tensor, Axes, Change], Tensor]
) -> list[Commit]:
    """What has to be done to the states of one optimizer when parameters change shape.

    Args:
        optimizer: any; states of parameters that don't change are left alone.
        changes: parameter, still in its old shape -> its change.
        resized: ``resized(parameter, state, axes, change)`` gives the new state.

    Raises:
        EspalierError: for a state that nobody here knows how to resize.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        return [lambda: _forget_history(optimizer)] if changes else []
    commits: list[Commit] = []
    for parameter, change in changes.items():
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            if not _is_number(key, value, parameter):
                commits.append(_setting(state, key, resized(parameter, value, _axes(optimizer, key, value, parameter), change)))
    return commits


def _is_number(key: str, value: Any, parameter: Tensor) -> bool:
    """Step counters and other scalars, whatever their spelling, do not depend on the shape."""
    if isinstance(value, Tensor):
        return value.dim() == 0 or (value.numel() == 1 and (key == "step" or value.shape != parameter.shape))
    return value is None or isinstance(value, int | float | complex | str)


def _axes(optimizer: Optimizer, key: str, value: Any, parameter: Tensor) -> Axes:
    dims = tuple(range(parameter.dim()))
    factored: dict[str, Axes] = {
        "row_var": (*dims[:-1], None),  # torch.optim.Adafactor
        "col_var": (*dims[:-2], None, *dims[-1:]),
        "exp_avg_sq_row": dims[:-1],  # the Adafactor of timm and transformers
        "exp_avg_sq_col": (*dims[:-2], *dims[-1:]),
    }
    axes = factored.get(key, dims)
    shape = tuple(1 if axis is None else parameter.shape[axis] for axis in axes)
    square = len(dims) == 2 and parameter.shape[0] == parameter.shape[1]
    known = key in factored or key in ELEMENTWISE or not square
    if not known or not _is_plain(value) or tuple(value.shape) != shape:
        what = f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        raise EspalierError(
            f"The state {key!r} of {type(optimizer).__name__} has {what} for a parameter of shape {list(parameter.shape)}; "
            f"it is not known how to cut it: use an optimizer whose states have the parameter's shape."
        )
    return axes


def _is_plain(value: Any) -> bool:
    """Quantised states are integers, or tensor subclasses that only pretend to be floats."""
    if type(value) not in (Tensor, nn.Parameter) or value.layout is not torch.strided:
        return False
    return bool(value.is_floating_point() or value.is_complex())


def _setting(state: dict[str, Any], key: str, value: Tensor) -> Commit:
    return lambda: state.__setitem__(key, value)


def _forget_history(optimizer: Optimizer) -> None:
    """LBFGS keeps one flat vector of all parameters, and in a private attribute how long it is."""
    optimizer.state.clear()
    if hasattr(optimizer, "_numel_cache"):
        optimizer._numel_cache = None
