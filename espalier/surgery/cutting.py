"""The only place where a parameter changes shape.

The ``Parameter`` object stays the same, so optimizers, param groups and every other reference stay valid. Optimizer states
are cut along, moments and all; followers (EMA) too. A cut is all or nothing: everything is worked out before anything changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from espalier.attributes import read_integer, read_scale, write
from espalier.errors import EspalierError
from espalier.structure import Place, Shape, Structure
from espalier.surgery.caches import forget
from espalier.surgery.optimizer_states import following
from espalier.surgery.slicing import sliced, sliced_gradient, sliced_mask, sliced_state, zeros, zeros_state
from espalier.surgery.wrapped import note_change, refuse_old_reducers
from espalier.wrappers import unwrap

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
    scales: Mapping[str, float] | None = None,
    optimizers: Sequence[Optimizer] = (),
    followers: Sequence[nn.Module] = (),
    companions: Sequence[MutableMapping[str, Tensor]] = (),
) -> Structure:
    """Keep only the named slices, in place: of tensors, their gradients, optimizer states, followers and masks.

    Cut between two steps, not between a forward and its backward. A model inside ``espalier.DistributedDataParallel`` trains
    on, cut alike on every rank; torch's own DistributedDataParallel refuses its next forward.

    Args:
        model: the module to cut; names are those of the module inside its wrappers.
        keep: (name of parameter or buffer, dimension) -> sorted indices that stay. One name of a shared tensor is enough.
        integers: module integers to rewrite, such as ``{"conv1.out_channels": 12}``.
        scales: module floats to rewrite, such as ``{"attn.scale": 0.2}``.
        optimizers: their states are cut along.
        followers: models with the same names that are cut alike.
        companions: tensors of the parameters' shapes, by name, that are cut alike: masks, running sums.

    Returns:
        The structure of the model, relative to how it was built.

    Raises:
        EspalierError: for names, dimensions or indices that are not there, and for optimizer states that nobody here knows
            how to cut. Nothing has changed then.
    """
    model, integers = unwrap(model), dict(integers or {})
    modules = [model, *(unwrap(follower) for follower in followers)]
    plan = _plan(model, keep)
    shapes = {name: tuple(_tensor(model, name).shape) for name in plan}
    values = {path: (read_integer(model, path), new) for path, new in integers.items()}
    for follower in modules[1:]:
        _check_follower(follower, structure_of(model), shapes, integers)
    floats = {path: (read_scale(model, path), new) for path, new in (scales or {}).items()}
    kept = {(name, dim): indices for name, dims in plan.items() for dim, indices in dims.items()}
    structure = structure_of(model).cut(kept, shapes, values, floats)

    new = [{name: sliced(_tensor(module, name), dims) for name, dims in plan.items()} for module in modules]
    commits: list[Callable[[], object]] = []
    changed: list[Tensor] = []
    for module, parts in zip(modules, new, strict=True):
        old = {name: _tensor(module, name) for name in parts}
        gradients = {name: sliced_gradient(tensor, plan[name], parts[name]) for name, tensor in old.items()}
        commits += [partial(replace, tensor, parts[name], gradients[name]) for name, tensor in old.items()]
        changed += old.values()
    changes = {_tensor(model, name): (dims, new[0][name]) for name, dims in plan.items()}
    for optimizer in optimizers:
        commits += following(optimizer, changes, sliced_state)
    for beside in companions:
        narrow = {n: sliced_mask(n, beside[n], shapes[n], plan[n], new[0][n]) for n in plan if n in beside}
        commits.append(partial(beside.update, narrow))
    commits += [partial(_note, module, {**integers, **(scales or {})}, structure) for module in modules]
    commits.append(partial(refuse_old_reducers, changed))
    _carry_out(commits)
    for module in modules:
        forget(module)
    return structure


@torch.no_grad()
def shape_to(
    model: nn.Module, structure: Structure, *, optimizers: Sequence[Optimizer] = (), followers: Sequence[nn.Module] = ()
) -> None:
    """Give ``model`` the shapes of ``structure``, narrower or wider; what is in the changed parameters is zero until loaded.

    Args:
        model: the module, dense or cut already.
        structure: the record to follow.
        optimizers: states of the changed parameters get the new shapes, and zeros.
        followers: models with the same names that are shaped alike.

    Raises:
        EspalierError: if the structure belongs to another model. Nothing has changed then.
    """
    model = unwrap(model)
    commits: list[Callable[[], object]] = []
    changed: list[Tensor] = []
    for module in (model, *(unwrap(follower) for follower in followers)):
        if structure_of(module) == structure:
            continue
        shapes = target_shapes(module, structure)
        empty = {n: _awaiting(module, n, t, structure, shapes[n]) for n, t in _named(module) if tuple(t.shape) != shapes[n]}
        commits += [partial(replace, _tensor(module, name), data) for name, data in empty.items()]
        changed += [_tensor(module, name) for name in empty]
        if module is model:
            changes = {_tensor(model, name): data for name, data in empty.items()}
            for optimizer in optimizers:
                commits += following(optimizer, changes, zeros_state)
        numbers = {**_target_integers(module, structure), **_target_scales(module, structure)}
        commits.append(partial(_note, module, numbers, structure))
    commits.append(partial(refuse_old_reducers, changed))
    _carry_out(commits)
    for module in (model, *map(unwrap, followers)):
        forget(module)


def _awaiting(model: nn.Module, name: str, tensor: Tensor, structure: Structure, shape: Shape) -> Tensor:
    """Zeros to be loaded into; a buffer keeps its values, since it may be one that no state dict holds."""
    if isinstance(tensor, nn.Parameter):
        return zeros(tensor, shape)
    present = structure_of(model)
    dims: dict[int, tuple[int, ...]] = {}
    for dim, size in enumerate({**present.shapes, **structure.shapes}[name]):
        place = {index: number for number, index in enumerate(present.kept.get((name, dim), range(size)))}
        wanted = structure.kept.get((name, dim), range(size))
        if any(index not in place for index in wanted):
            if name in model.state_dict(keep_vars=True):
                return zeros(tensor, shape)
            raise EspalierError(
                f"The buffer {name} is in no state dict, and this model has lost channels of it that are wanted again: "
                f"build the model anew and load into that."
            )
        dims[dim] = tuple(place[index] for index in wanted)
    return sliced(tensor, dims)


def target_shapes(model: nn.Module, structure: Structure) -> dict[str, Shape]:
    """The shapes that all parameters and buffers of ``model`` have under ``structure``; nothing is changed.

    Raises:
        EspalierError: if the structure belongs to another model.
    """
    present = structure_of(model)
    shapes = {name: present.shapes.get(name, tuple(tensor.shape)) for name, tensor in _named(model)}
    for name, built in structure.shapes.items():
        if shapes.get(name) != built:
            here = f"builds it as {list(shapes[name])}" if name in shapes else "has no such parameter or buffer"
            raise EspalierError(
                f"The structure record says that {name} was built as {list(built)}, but this model {here}: "
                f"it belongs to another model."
            )
        shapes[name] = structure.shape(name)
    return shapes


def replace(tensor: Tensor, new: Tensor, gradient: Tensor | None = None) -> None:
    """Put other data of another shape into a parameter or buffer that stays the same object.

    Gradient accumulators remember the old shape (a ``loss`` that is still alive holds them), and only a change of dtype makes
    autograd build new ones; hence the detour over an empty tensor of another dtype. Hooks on the parameter survive.

    Args:
        tensor: the parameter or buffer.
        new: its new data.
        gradient: what has been accumulated for it, in the new shape.
    """
    tensor.grad = None
    other = torch.float64 if tensor.dtype != torch.float64 else torch.float32
    tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = new
    tensor.grad = gradient
    note_change(tensor)


# -- looking things up, and refusing -------------------------------------------------------------------------------


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers; a shared one under each of its names."""
    return chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))


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


def _plan(model: nn.Module, keep: Keep) -> dict[str, dict[int, tuple[int, ...]]]:
    """Checked kept indices by name and dimension, under every name of a shared tensor."""
    names: dict[int, list[str]] = {}
    for name, tensor in _named(model):
        names.setdefault(id(tensor), []).append(name)
    plan: dict[str, dict[int, tuple[int, ...]]] = {}
    for (name, dim), kept in keep.items():
        tensor, indices = _tensor(model, name), tuple(map(int, kept))
        if not 0 <= dim < tensor.dim():
            raise EspalierError(f"{name} has {tensor.dim()} dimensions; there is no dimension {dim} to cut.")
        size = tensor.shape[dim]
        if not indices or list(indices) != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= size:
            raise EspalierError(
                f"The kept indices of {name}, dimension {dim}, must be sorted, distinct, not empty and below {size}."
            )
        for twin in names[id(tensor)]:
            if plan.setdefault(twin, {}).setdefault(dim, indices) != indices:
                raise EspalierError(f"{name} and {twin} are one tensor, so dimension {dim} must keep the same indices in both.")
    return plan


def _check_follower(
    follower: nn.Module, structure: Structure, shapes: Mapping[str, Shape], integers: Mapping[str, int]
) -> None:
    if structure_of(follower) != structure or any(tuple(_tensor(follower, n).shape) != s for n, s in shapes.items()):
        raise EspalierError(f"The follower {type(follower).__name__} has other shapes than the model: build it from the model.")
    for path in integers:
        read_integer(follower, path)


def _target_integers(model: nn.Module, structure: Structure) -> dict[str, int]:
    """What the module integers are under ``structure``, back to the built value where it says nothing."""
    present = structure_of(model).integers
    for path, (built, _) in structure.integers.items():
        here = present[path][0] if path in present else read_integer(model, path)
        if here != built:
            raise EspalierError(
                f"The structure record says that {path} was built as {built}, but this model builds it as {here}: "
                f"it belongs to another model."
            )
    values = {path: built for path, (built, _) in present.items()}
    return values | {path: now for path, (_, now) in structure.integers.items()}


def _target_scales(model: nn.Module, structure: Structure) -> dict[str, float]:
    present = structure_of(model).scales
    for path in structure.scales:
        read_scale(model, path)
    return {path: built for path, (built, _) in present.items()} | {path: now for path, (_, now) in structure.scales.items()}


def _note(model: nn.Module, integers: Mapping[str, float], structure: Structure) -> None:
    for path, value in integers.items():
        write(model, path, value)
    model.__dict__[ATTRIBUTE] = structure


def _carry_out(commits: Sequence[Callable[[], object]]) -> None:
    for commit in commits:
        commit()
