"""A DistributedDataParallel that follows when the model inside it is cut."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as TorchDDP

from espalier.errors import EspalierError
from espalier.surgery import FollowsCuts, changes_made, last_change, structure_of

# What a training may have switched since construction, beside what every module has (hooks, training).
SWITCHES = ("require_backward_grad_sync", "require_forward_param_sync", "forward_sync_buffers", "_join_config")


class DistributedDataParallel(TorchDDP, FollowsCuts):
    """torch's DistributedDataParallel that goes on when the model inside is cut.

    Takes the arguments of ``torch.nn.parallel.DistributedDataParallel`` and gives the same names in its state dict
    (``module.``). At each forward it compares one integer; after a cut, a reshaping load included, the first forward with
    gradients starts the wrapper over inside the same object: new buckets, the same arguments, communication hooks, forward
    hooks and ``no_sync`` state, gradients accumulated so far, and nothing broadcast, since all ranks cut alike. That they did
    is checked then, by a checksum of the structure on every rank; it is the only communication that a cut adds.

    Memory that PowerSGD keeps per bucket is forgotten, and it averages plainly until the new buckets have settled.

    Raises:
        EspalierError: at the first forward after a cut, on every rank, if the ranks were cut differently; on the ranks that
            were cut, after the timeout of the process group, if others were not. At construction, for ``mixed_precision``
            and ``delay_all_reduce_named_params``, whose hooks cannot be taken off the model again.

    Example:
        >>> import os, tempfile, torch, espalier as es
        >>> from espalier.surgery import cut
        >>> meet = "file://" + os.path.join(tempfile.mkdtemp(), "meet")
        >>> torch.distributed.init_process_group("gloo", init_method=meet, rank=0, world_size=1)
        >>> model = es.DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 1)))
        >>> _ = cut(model, {("0.weight", 0): [0, 3], ("0.bias", 0): [0, 3], ("1.weight", 1): [0, 3]})
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> model.module[0].weight.grad.shape
        torch.Size([2, 2])
        >>> torch.distributed.destroy_process_group()
    """

    def __init__(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        signature = inspect.signature(TorchDDP.__init__)
        arguments = dict(signature.bind(self, module, *args, **kwargs).arguments)
        for name in ("mixed_precision", "delay_all_reduce_named_params"):
            if arguments.get(name) is not None:
                raise EspalierError(f"espalier.DistributedDataParallel cannot follow a cut with {name}: leave it out.")
        super().__init__(module, *args, **kwargs)
        self._arguments = {n: v for n, v in arguments.items() if n not in ("self", "module", "process_group", "static_graph")}
        self._registered: list[tuple[str, tuple[Any, ...]]] = []
        self._seen, self._last_change = changes_made(), last_change(module.parameters())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._seen, self._last_change = changes_made(), last_change(self.module.parameters())

    @torch.compiler.disable(recursive=False)  # type: ignore[no-untyped-call, untyped-decorator]
    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The model's output; after a cut, the buckets are rebuilt first."""
        if self._seen != changes_made() and torch.is_grad_enabled():
            self._follow()
        return super().forward(*inputs, **kwargs)  # type: ignore[no-untyped-call]

    def register_comm_hook(self, state: object, hook: Callable[..., Any]) -> None:
        """As torch's; registered again after every cut."""
        super().register_comm_hook(state, hook)
        self._registered.append(("register_comm_hook", (state, hook)))

    def _register_builtin_comm_hook(self, comm_hook_type: Any) -> None:
        super()._register_builtin_comm_hook(comm_hook_type)  # type: ignore[no-untyped-call]
        self._registered.append(("_register_builtin_comm_hook", (comm_hook_type,)))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _follow(self) -> None:
        """Start over if one of our parameters has changed its shape."""
        seen, last = changes_made(), last_change(self.module.parameters())
        if last != self._last_change:
            check_same_shapes(self.module, self.process_group)
            self._start_over()
        self._seen, self._last_change = seen, last

    def _start_over(self) -> None:
        mine = {name: self.__dict__[name] for name in (*nn.Module().__dict__, *SWITCHES) if name in self.__dict__}
        target = {} if self._arguments.get("device_mesh") is not None else {"process_group": self.process_group}
        for handle in getattr(self, "_accum_grad_hooks", ()):  # of the reducer in Python that compiled autograd uses
            handle.remove()
        self.__dict__.pop("reducer", None)  # its buckets are freed before there are new ones
        again = {**self._arguments, **target, "static_graph": self.static_graph, "init_sync": False}
        super().__init__(self.module, **again)
        self.__dict__.update(mine)
        for method, arguments in self._registered:
            getattr(super(), method)(*arguments)
            _forget_buckets(arguments[0])


def check_same_shapes(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Raise on every rank if the ranks of ``group`` hold differently cut models.

    Goes through the store of the group, not through a collective: where one rank was not cut it is in the midst of other
    collectives, which must not be mistaken for this.
    """
    record = {name: structure_of(module).to_json() for name, module in model.named_modules()}
    shapes = [(name, tuple(tensor.shape)) for name, tensor in model.named_parameters()]
    digest = hashlib.sha256(repr((sorted(record.items()), shapes)).encode()).hexdigest()
    digests = _exchange(digest, group)
    odd = [str(rank) for rank, other in enumerate(digests) if other != digests[0]]
    if odd:
        raise EspalierError(
            f"The model was cut differently on rank 0 and rank {', '.join(odd)}: decide on one rank, broadcast the kept "
            f"indices and cut every rank alike."
        )


def _exchange(text: str, group: dist.ProcessGroup) -> list[str]:
    """``text`` of every rank, by rank. Waits for the slowest one, at most for the timeout of the group's store."""
    store, rank = group.get_group_store(), dist.get_rank(group)
    turn = store.add(f"espalier/turns/{rank}", 1)  # of this rank on this group: the same on all where all were cut as often
    keys = [f"espalier/{turn}/{other}" for other in range(dist.get_world_size(group))]
    store.set(keys[rank], text)
    try:
        store.wait(keys)
    except RuntimeError as error:
        late = [str(other) for other, key in enumerate(keys) if not store.check([key])]
        raise EspalierError(
            f"The model was cut on rank {rank}, but rank {', '.join(late)} did not come to a forward after a cut: cut the "
            f"model on every rank after the same step."
        ) from error
    return [value.decode() for value in store.multi_get(keys)]


def _forget_buckets(state: Any) -> None:
    """PowerSGD keeps errors and factors by number of bucket; reducers settle their buckets in two iterations."""
    if hasattr(state, "start_powerSGD_iter"):
        for memory in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
            memory.clear()
        state.iter = min(state.iter, state.start_powerSGD_iter - 2)
