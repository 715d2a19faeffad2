"""Example inputs: one tensor, a tuple of arguments or a dict of keyword arguments, at any batch size."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import EspalierError


@dataclass(frozen=True)
class Call:
    """What a model is called with.

    Attributes:
        args, kwargs: tensors, None, and lists, tuples and dicts of them.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, inputs: Any) -> Call:
        """Read example inputs.

        Raises:
            EspalierError: there is no tensor in them, or something that is no tensor.

        Example:
            >>> Call.of((torch.zeros(4, 3), torch.zeros(7))).batch
            4
        """
        if isinstance(inputs, Mapping):
            call = cls((), dict(inputs))
        elif isinstance(inputs, tuple | list):
            call = cls(tuple(inputs), {})
        else:
            call = cls((inputs,), {})
        try:
            found = tensors_in((call.args, call.kwargs))
        except EspalierError as error:
            got = str(error).rpartition("; ")[2]
            raise EspalierError(
                f"Example inputs must be a tensor, a tuple of arguments or a dict of keywords, with nothing but tensors inside "
                f"(torch.as_tensor makes one of an array); {got}"
            ) from None
        if not found:
            raise EspalierError("Example inputs must hold a tensor: give a tensor, a tuple of arguments or a dict of keywords.")
        return call

    def __call__(self, model: Callable[..., Any]) -> Any:
        """Call the model."""
        return model(*self.args, **self.kwargs)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the arguments."""
        return tensors_in((self.args, self.kwargs))

    @property
    def batch(self) -> int:
        """Length of the first tensor's first dimension; 0 if it has none."""
        first = self.tensors[0]
        return first.shape[0] if first.dim() else 0

    def is_batched(self, tensor: Tensor) -> bool:
        """Whether a tensor has one entry per item: its first dimension is as long as the first tensor's."""
        return tensor.dim() > 0 and tensor.shape[0] == self.batch > 0

    def map(self, change: Callable[[Tensor], Any]) -> Call:
        """The same with every tensor changed."""
        return Call(map_tensors(change, self.args), map_tensors(change, self.kwargs))

    def resized(self, batch: int) -> Call:
        """The first ``batch`` items, repeated from the start where there are fewer."""
        if batch == self.batch:
            return self

        def resize(tensor: Tensor) -> Tensor:
            if not self.is_batched(tensor):
                return tensor
            return tensor[torch.arange(batch, device=tensor.device) % tensor.shape[0]]

        return self.map(resize)


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts, in order.

    Raises:
        EspalierError: there is something else than tensors and None.
    """
    found: list[Tensor] = []
    map_tensors(found.append, value)
    return found


def map_tensors(change: Callable[[Tensor], Any], value: Any) -> Any:
    """The same nesting of tuples, lists and dicts with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {key: map_tensors(change, item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [map_tensors(change, item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    raise EspalierError(
        f"Only tensors, and tuples, lists and dicts of them, are understood here; got a {type(value).__name__}."
    )


@contextlib.contextmanager
def in_mode(model: nn.Module, *, train: bool) -> Iterator[None]:
    """Training or evaluation mode for a while; afterwards every module has its own flag again."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.train(train)
        yield
    finally:
        for module, flag in flags:
            module.training = flag
