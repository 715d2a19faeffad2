"""The only place where a parameter changes shape.

The ``Parameter`` object stays the same, so optimizers, param groups and every other reference stay valid. Optimizer states
are cut along, moments and all; followers (EMA) too. A cut is all or nothing: everything is worked out before anything changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from espalier.errors import EspalierError
from espalier.structure import Place, Shape, Structure

ATTRIBUTE = "_espalier_structure"  # a plain attribute of the module: survives deepcopy, is no parameter and no buffer
Keep = Mapping[Place, Sequence[int]]


def structure_of(model: nn.Module) -> Structure:
    """How ``model`` was cut; the empty structure if it never was."""
    found = model.__dict__.get(ATTRIBUTE)
    return found if isinstance(found, Structure) else Structure()


@torch.no_grad()
def cut(
    model: nn.Module,
    keep: Keep,
    *,
    integers: Mapping[str, int] | None = None,
    optimizers: Sequence[Optimizer] = (),
    followers: Sequence[nn.Module] = (),
    masks: MutableMapping[str, Tensor] | None = None,
) -> Structure:
    """Keep only the named slices, in place.

    Args:
        model: the module to cut.
        keep: (name of parameter or buffer, dimension) -> sorted indices that stay.
        integers: module integers to rewrite, such as ``{"conv1.out_channels": 12}``.
        optimizers: their states are cut along.
        followers: models with the same names that are cut alike.
        masks: masks by parameter name that are cut alike.

    Returns:
        The structure of the model, relative to how it was built.

    Raises:
        EspalierError: for names, dimensions or indices that are not there, and for optimizer states that nobody here knows
            how to cut. Nothing has changed then.
    """
    places = {place: tuple(indices) for place, indices in keep.items()}
    integers = dict(integers or {})
    _check_places(model, places)
    by_name: dict[str, dict[int, tuple[int, ...]]] = {}
    for (name, dim), indices in places.items():
        by_name.setdefault(name, {})[dim] = indices
    old_integers = {path: _read_integer(model, path) for path in integers}
    shapes = {name: tuple(_tensor(model, name).shape) for name in by_name}
    structure = structure_of(model).cut(places, shapes, {p: (old_integers[p], new) for p, new in integers.items()})

    commits: list[Callable[[], None]] = []
    for module in (model, *followers):
        for name, dims in by_name.items():
            commits.append(_replacing(module, name, _slice(_tensor(module, name), dims)))
    for optimizer in optimizers:
        cuts = {_tensor(model, name): dims for name, dims in by_name.items() if isinstance(_tensor(model, name), nn.Parameter)}
        commits += _state_commits(optimizer, cuts, _slice)
    if masks is not None:
        for name in by_name.keys() & masks.keys():
            masks[name] = _slice(masks[name], by_name[name])
    _carry_out(commits, (model, *followers), integers, structure)
    return structure


@torch.no_grad()
def shape_to(
    model: nn.Module, structure: Structure, *, optimizers: Sequence[Optimizer] = (), followers: Sequence[nn.Module] = ()
) -> None:
    """Give ``model`` the shapes of ``structure``, narrower or wider; what is in the changed tensors is zero until loaded.

    Raises:
        EspalierError: if the structure belongs to another model. Nothing has changed then.
    """
    for module in (model, *followers):
        present = structure_of(module)
        if present == structure:
            continue
        commits: list[Callable[[], None]] = []
        changed: dict[Tensor, Shape] = {}
        for name in sorted({*present.shapes, *structure.shapes}):
            old = _tensor(module, name)
            original = present.shapes.get(name, tuple(old.shape))
            if name in structure.shapes and tuple(structure.shapes[name]) != tuple(original):
                raise EspalierError(
                    f"The structure record says that {name} was built as {list(structure.shapes[name])}, but this model builds "
                    f"it as {list(original)}: it belongs to another model."
                )
            shape = structure.shape(name) if name in structure.shapes else original
            if tuple(old.shape) != tuple(shape):
                commits.append(_replacing(module, name, _zeros(old, shape)))
                changed[old] = shape
        values = {path: original for path, (original, _) in present.integers.items()}
        values |= {path: now for path, (_, now) in structure.integers.items()}
        for path in values:
            _read_integer(module, path)
        if module is model:
            for optimizer in optimizers:
                commits += _state_commits(optimizer, changed, _state_zeros)
        _carry_out(commits, (module,), values, structure)


def replace(tensor: Tensor, new: Tensor) -> None:
    """Put other data of another shape into a parameter or buffer that stays the same object.

    Gradient accumulators remember the old shape (a ``loss`` that is still alive holds them), and only a change of dtype makes
    autograd build new ones; hence the detour over an empty tensor of another dtype. Hooks on the parameter survive.
    """
    tensor.grad = None
    other = torch.float64 if tensor.dtype != torch.float64 else torch.float32
    tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = new


# -- tensors -------------------------------------------------------------------------------------------------------


def _slice(tensor: Tensor, dims: Mapping[int, tuple[int, ...]]) -> Tensor:
    """The kept part, in the memory format of the whole. Dimensions of size 1 (Adafactor) stay."""
    part = tensor.detach()
    for dim, indices in dims.items():
        if part.shape[dim] != 1 or len(indices) == 1:
            part = part.index_select(dim, torch.tensor(indices, device=part.device))
    return _formatted(part, tensor)


def _zeros(like: Tensor, shape: Sequence[int]) -> Tensor:
    return _formatted(torch.zeros(tuple(shape), dtype=like.dtype, device=like.device), like)


def _state_zeros(state: Tensor, shape: Shape) -> Tensor:
    """Zeros for a parameter of ``shape``; dimensions of size 1 (Adafactor) stay."""
    return _zeros(state, [1 if size == 1 else new for size, new in zip(state.shape, shape, strict=True)])


def _formatted(tensor: Tensor, like: Tensor) -> Tensor:
    """``index_select`` forgets channels-last; bring it back, or plain contiguity."""
    last = like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(owner)
    except AttributeError:
        module = None
    tensor = None if module is None else module._parameters.get(leaf, module._buffers.get(leaf))
    if tensor is None:
        raise EspalierError(f"The model has no parameter or buffer {name!r}.")
    return tensor


def _check_places(model: nn.Module, keep: Mapping[Place, tuple[int, ...]]) -> None:
    for (name, dim), indices in keep.items():
        shape = _tensor(model, name).shape
        if not 0 <= dim < len(shape):
            raise EspalierError(f"{name} has {len(shape)} dimensions; there is no dimension {dim} to cut.")
        if not indices or list(indices) != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= shape[dim]:
            raise EspalierError(
                f"The kept indices of {name}, dimension {dim}, must be sorted, distinct, not empty and below {shape[dim]}."
            )


def _replacing(model: nn.Module, name: str, new: Tensor) -> Callable[[], None]:
    tensor = _tensor(model, name)
    return lambda: replace(tensor, new)


# -- optimizer states ----------------------------------------------------------------------------------------------

Cut = Callable[[Tensor, Any], Tensor]


def _state_commits(optimizer: Optimizer, cuts: Mapping[Tensor, Any], new: Cut) -> list[Callable[[], None]]:
    """What has to be done to the states of one optimizer, or a refusal."""
    if type(optimizer).__name__ == "LBFGS":
        return [lambda: _forget_history(optimizer)]
    commits: list[Callable[[], None]] = []
    for parameter, dims in cuts.items():
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            if isinstance(value, Tensor) and value.numel() > 1:
                _check_state(optimizer, key, value, parameter)
                commits.append(_setting(state, key, new(value, dims), parameter))
    return commits


def _forget_history(optimizer: Optimizer) -> None:
    """LBFGS keeps one flat vector of all parameters, and in a private attribute how long it is."""
    optimizer.state.clear()
    if hasattr(optimizer, "_numel_cache"):
        optimizer._numel_cache = None


def _check_state(optimizer: Optimizer, key: str, value: Tensor, parameter: Tensor) -> None:
    """Known are tensors shaped like the parameter, with 1 where it is factored; everything else is refused."""
    fits = value.dim() == parameter.dim() and all(v in (1, p) for v, p in zip(value.shape, parameter.shape, strict=True))
    if not fits or not value.is_floating_point():
        raise EspalierError(
            f"The state {key!r} of {type(optimizer).__name__} has shape {list(value.shape)} for a parameter of shape "
            f"{list(parameter.shape)}; it is not known how to cut it: use an optimizer whose states have the parameter's shape."
        )


def _setting(state: dict[str, Any], key: str, value: Tensor, parameter: Tensor) -> Callable[[], None]:
    def commit() -> None:
        """Fused optimizers compute wrong updates, without an error, where strides of state and parameter differ."""
        if value.shape == parameter.shape and value.stride() != parameter.stride():
            state[key] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        else:
            state[key] = value

    return commit


# -- module integers and the record --------------------------------------------------------------------------------


def _read_integer(model: nn.Module, path: str) -> int:
    owner, _, leaf = path.rpartition(".")
    try:
        value = getattr(model.get_submodule(owner), leaf)
    except AttributeError:
        value = None
    if not isinstance(value, int) or isinstance(value, bool):
        raise EspalierError(f"The model has no integer {path!r} to rewrite.")
    return value


def _carry_out(
    commits: Sequence[Callable[[], None]], modules: Sequence[nn.Module], integers: Mapping[str, int], structure: Structure
) -> None:
    for commit in commits:
        commit()
    for module in modules:
        for path, value in integers.items():
            owner, _, leaf = path.rpartition(".")
            setattr(module.get_submodule(owner), leaf, value)
        module.__dict__[ATTRIBUTE] = structure
