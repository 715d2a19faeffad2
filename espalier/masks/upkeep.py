"""The only place where a weight is zeroed.

A mask is a tensor of ones and zeros with the dtype and strides of its weight (a float multiply is the cheapest way to
apply it), kept outside the modules. While a mask stands still, zeroing the *gradients* keeps a masked weight at zero
under every optimizer that works element by element, so weights and moments are touched only when a mask changes. Other
optimizers (Muon, LBFGS, unknown ones) get their weights masked again after every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from espalier.errors import EspalierError

ELEMENTWISE = frozenset({"SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta", "RMSprop"})
STEP_SIZES = frozenset({"step_size"})  # Rprop keeps learning rates, not moments, under this key
PRECONDITIONERS = ("precond", "pre_cond", "inv_precond", "inv_pre_cond")  # of a d x d weight d x d too: only names tell


@dataclass(frozen=True)
class LayerSparsity:
    """One pruned weight: its name and shape, how many weights it has and how many of them are zero."""

    name: str
    shape: tuple[int, ...]
    total: int
    zeros: int

    @property
    def sparsity(self) -> float:
        return self.zeros / self.total if self.total else 0.0


class Masks:
    """Masks of the selected weights of one model, applied to weights, gradients, moments and followers.

    Args:
        weights: name -> parameter, the weights that may be masked.
        optimizers: their optimizers; moments are looked up there.
        followers: models with the same parameter names (EMA) that are masked alike.
    """

    def __init__(
        self, weights: Mapping[str, nn.Parameter], optimizers: Sequence[Optimizer], followers: Sequence[nn.Module] = ()
    ) -> None:
        self.weights = dict(weights)
        self.tensors: dict[str, Tensor] = {}
        self._zeros: dict[str, int] = {}  # counted when somebody asks, so that a step never waits for the device
        self._versions: dict[str, int] = {}  # torch's counters of in-place writes, as the last step left them
        self._followers = [dict(follower.named_parameters()) for follower in followers]
        self._optimizers = tuple(optimizers)
        owner = {id(p): opt for opt in optimizers for group in opt.param_groups for p in group["params"]}
        self.owner = {name: owner.get(id(p)) for name, p in self.weights.items()}
        self._elementwise = {name: _is_elementwise(optimizer) for name, optimizer in self.owner.items()}

    def layers(self) -> list[LayerSparsity]:
        """How many weights of each layer the masks zero. Reads from the device once per change of the masks."""
        for name, mask in self.tensors.items():
            if name not in self._zeros:
                self._zeros[name] = mask.numel() - int(torch.count_nonzero(mask))
        return [LayerSparsity(n, tuple(p.shape), p.numel(), self._zeros.get(n, 0)) for n, p in self.weights.items()]

    @torch.no_grad()
    def writable(self, name: str) -> Tensor:
        """The mask of ``name``, for the caller to write to; call ``apply`` when all are written."""
        self._zeros.pop(name, None)
        if name not in self.tensors:
            self.tensors[name] = torch.ones_like(self.weights[name], requires_grad=False)
        return self._aligned(name)

    @torch.no_grad()
    def apply(self) -> None:
        """Zero masked weights, their moments and the followers' weights. Call when masks have changed."""
        self.apply_to_weights()
        pairs = [pair for name in self.tensors for pair in self._moments(name)]
        for follower in self._followers:
            pairs += [(follower[name].data, mask.to(follower[name].device)) for name, mask in self.tensors.items()]
        _multiply(pairs)
        for optimizer in self._optimizers:
            if type(optimizer).__name__ == "LBFGS":
                optimizer.state.clear()  # curvature pairs of another support mislead the next direction

    @torch.no_grad()
    def apply_to_weights(self, *, only_where_needed: bool = False) -> None:
        """Zero masked weights; with ``only_where_needed`` just those whose optimizer moves them in spite of the gradient."""
        names = [n for n in self.tensors if not (only_where_needed and self._elementwise[n])]
        pairs = [(self.weights[n].data, self._aligned(n)) for n in names]
        if only_where_needed:
            pairs += [pair for n in names for pair in self._moments(n)]
        _multiply(pairs)
        self._versions = {n: getattr(self.weights[n], "_version", 0) for n in self.tensors}

    def overwritten(self) -> bool:
        """Whether somebody else has written to masked weights since the last step: a state dict was loaded, or Lookahead.

        Asked once a step, since optimizers with a closure write to the weights between its calls.
        """
        versions, self._versions = self._versions, {}
        return any(getattr(self.weights[name], "_version", 0) != version for name, version in versions.items())

    def hold(self) -> bool:
        """Whether the weights are zero where they are masked; NaN is not. Reads from the device."""
        return not any(bool(self.weights[n].detach()[self._aligned(n) == 0].any()) for n in self.tensors)

    @torch.no_grad()
    def apply_to_gradients(self) -> None:
        """Zero the gradients of masked weights. Sparse gradients (embeddings) are left to the mask after the step."""
        pairs = []
        for name in self.tensors:
            gradient = self.weights[name].grad
            if gradient is None:
                continue
            if gradient.layout is not torch.strided:
                self._elementwise[name] = False
            else:
                pairs.append((gradient, self._aligned(name)))
        _multiply(pairs, keep_sign_of_zero=True)

    def _aligned(self, name: str) -> Tensor:
        """The mask with the device, dtype and strides that its weight has now: a user may move the model at any time."""
        mask, weight = self.tensors[name], self.weights[name]
        if mask.device != weight.device or mask.dtype != weight.dtype or mask.stride() != weight.stride():
            mask = self.tensors[name] = torch.empty_like(weight, requires_grad=False).copy_(mask)
        return mask

    def _moments(self, name: str) -> list[tuple[Tensor, Tensor]]:
        mask, optimizer = self._aligned(name), self.owner[name]
        state = optimizer.state.get(self.weights[name], {}) if optimizer is not None else {}
        return [
            (value, mask)
            for key, value in state.items()
            if isinstance(value, Tensor) and value.shape == mask.shape and _is_moment(key, value)
        ]

    def state_dict(self) -> dict[str, Tensor]:
        """Masks packed to bits, in logical order of the weight."""
        return {name: pack_bits(mask) for name, mask in self.tensors.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the masks over without touching any weight: weights and moments come with their own state dicts."""
        for name, bits in state.items():
            if name not in self.weights or bits.numel() != (self.weights[name].numel() + 7) // 8:
                raise EspalierError(f"The state has a mask of {name} that fits no weight here: it belongs to another model.")
        self.tensors, self._zeros, self._versions = {}, {}, {}
        for name, bits in state.items():
            mask = self.writable(name)
            mask.copy_(unpack_bits(bits, mask.shape, mask.device))


def pack_bits(mask: Tensor) -> Tensor:
    """A mask of any dtype -> uint8 tensor with 8 entries a byte, on the same device."""
    flat = (mask != 0).reshape(-1)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8).to(torch.uint8)
    powers = 1 << torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (padded * powers).sum(1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, shape: Sequence[int], device: torch.device) -> Tensor:
    """The inverse of ``pack_bits``: a bool tensor of the given shape."""
    shifts = torch.arange(8, dtype=torch.uint8, device=device)
    flat = (bits.to(device).unsqueeze(1) >> shifts) & 1
    return flat.reshape(-1)[: int(torch.Size(shape).numel())].view(*shape).bool()


def _is_elementwise(optimizer: Optimizer | None) -> bool:
    kind = type(optimizer)
    return kind.__module__.startswith("torch.optim") and kind.__name__ in ELEMENTWISE


def _is_moment(key: str, value: Tensor) -> bool:
    """Quantised states are no numbers to multiply (their code 0 may mean -1), or subclasses that pretend to be floats."""
    plain = type(value) in (Tensor, nn.Parameter) and (value.is_floating_point() or value.is_complex())
    return plain and key not in STEP_SIZES and not str(key).startswith(PRECONDITIONERS)


def _multiply(pairs: Sequence[tuple[Tensor, Tensor]], *, keep_sign_of_zero: bool = False) -> None:
    """target *= mask for all pairs, one fused call per dtype and device; -0.0 becomes 0.0 unless its sign may stay."""
    batches: dict[tuple[torch.dtype, torch.device], tuple[list[Tensor], list[Tensor]]] = {}
    for target, mask in pairs:
        targets, masks = batches.setdefault((target.dtype, target.device), ([], []))
        targets.append(target)
        masks.append(mask if mask.dtype == target.dtype else mask.to(target.dtype))
    for targets, masks in batches.values():
        torch._foreach_mul_(targets, masks)
        if not keep_sign_of_zero:
            torch._foreach_add_(targets, 0.0)
