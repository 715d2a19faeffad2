"""Refusals at construction: what would otherwise become a silent no-op or a traceback in the middle of a training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from espalier.cost.budgets import is_number
from espalier.errors import EspalierError
from espalier.methods import METHODS, Method
from espalier.surgery import FollowsCuts
from espalier.wrappers import unwrap


def check_model(model: Any) -> nn.Module:
    """The unwrapped model, or a refusal."""
    if not isinstance(model, nn.Module):
        raise EspalierError(f"model must be a torch.nn.Module; got {type(model).__name__}.")
    inner = unwrap(model)
    if "FullyShardedDataParallel" in type(inner).__name__ or any(type(p).__name__ == "DTensor" for p in inner.parameters()):
        raise EspalierError("Sharded parameters (FSDP, DTensor) are not supported yet: use DistributedDataParallel.")
    return inner


def check_wrappers(model: nn.Module, method: Method) -> None:
    """torch's own DistributedDataParallel keeps gradient buckets of the shapes that it was built with."""
    for module in model.modules() if method.cuts else ():
        if isinstance(module, DistributedDataParallel) and not isinstance(module, FollowsCuts):
            raise EspalierError(
                f"{method.name} changes shapes, which torch.nn.parallel.DistributedDataParallel does not survive: wrap the "
                f"model in es.DistributedDataParallel instead."
            )


def check_optimizers(optimizers: Any) -> tuple[Optimizer, ...]:
    """A tuple of torch optimizers, unwrapped from Accelerate's or Lightning's shells."""
    many = tuple(optimizers) if isinstance(optimizers, list | tuple) else (optimizers,)
    if not many:
        raise EspalierError("Pruner needs at least one optimizer: it rides on optimizer.step().")
    found = []
    for optimizer in many:
        inner = getattr(optimizer, "optimizer", None) or getattr(optimizer, "_optimizer", None)
        optimizer = inner if isinstance(inner, Optimizer) and not isinstance(optimizer, LRScheduler) else optimizer
        if not isinstance(optimizer, Optimizer):
            raise EspalierError(f"optimizer must be a torch.optim.Optimizer or a list of them; got {type(optimizer).__name__}.")
        found.append(optimizer)
    if len({id(o) for o in found}) < len(found):
        raise EspalierError("The same optimizer was given twice.")
    return tuple(found)


def check_method(method: Any) -> Method:
    """A method object, with a hint for the class or a name given instead."""
    if isinstance(method, Method):
        return method
    names = ", ".join(f"es.{kind.__name__}" for kind in METHODS.values())
    if isinstance(method, type) and issubclass(method, Method):
        raise EspalierError(f"method must be an object, not the class: write es.{method.__name__}(...).")
    raise EspalierError(f"method must be one of {names}, with its arguments; got {method!r}.")


def check_total_steps(total_steps: Any) -> int:
    """A positive whole number of optimizer steps."""
    if isinstance(total_steps, bool) or not isinstance(total_steps, Integral) or total_steps < 1:
        raise EspalierError(
            f"total_steps must be the number of optimizer.step() calls of the whole training, a positive int (epochs * "
            f"len(loader) // accumulation); got {total_steps!r}."
        )
    return int(total_steps)


def check_ownership(weights: dict[str, nn.Parameter], model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """Every weight to prune must be stepped by one of the optimizers."""
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in model.parameters()):
        raise EspalierError(
            "The optimizer holds none of the model's parameters: build it from model.parameters() of this very model, after "
            "any deepcopy, and then the Pruner."
        )
    missing = [name for name, p in weights.items() if id(p) not in held]
    if missing:
        frozen = "" if any(weights[name].requires_grad for name in missing) else " (frozen, requires_grad=False)"
        raise EspalierError(
            f"{len(missing)} weights to prune are in no optimizer{frozen}, {missing[0]} the first: add them to the optimizer "
            f"or exclude them."
        )


def check_followers(followers: Any, model: nn.Module) -> tuple[nn.Module, ...]:
    """Followers (EMA, SWA) must have the parameter names and shapes of the model, and tensors of their own."""
    if isinstance(followers, nn.Module) or not isinstance(followers, Sequence):
        followers = (followers,)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    found = []
    for follower in followers:
        if not isinstance(follower, nn.Module):
            raise EspalierError(f"A follower must be a module such as AveragedModel(model); got {type(follower).__name__}.")
        inner = unwrap(follower)
        if {name: p.shape for name, p in inner.named_parameters()} != shapes:
            raise EspalierError(
                f"The follower {type(follower).__name__} has other parameters than the model: build it from it."
            )
        if any(a is b for a, b in zip(inner.parameters(), model.parameters(), strict=True)):
            raise EspalierError("A follower shares its parameters with the model: give a copy (AveragedModel, deepcopy).")
        found.append(inner)
    return tuple(found)


def check_loss(loss: Any) -> Tensor:
    """A reported loss as a tensor, or a refusal."""
    if is_number(loss):
        return torch.tensor(float(loss))
    if not isinstance(loss, Tensor) or not loss.numel():
        raise EspalierError(f"observe takes the loss of a batch as a tensor or a number; got {loss!r}.")
    return loss
