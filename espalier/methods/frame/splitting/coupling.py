"""The constraint W = Z between the weights that train and their pruned twins, with its multipliers.

In the scaled form of the augmented Lagrangian, with U = Lam / rho and ||.|| the Frobenius norm of all layers,

    f(W) + <Lam, W - Z> + rho/2 ||W - Z||^2  =  f(W) + rho/2 ||W - Z + U||^2 - rho/2 ||U||^2,

so that a training step adds rho (W - Z + U) to the gradients. Kept are two tensors for each weight, U and the *centre*
Z - U: a step reads only the centre, and Z is their sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from espalier.errors import EspalierError
from espalier.methods.frame.base import Gradients

HALVES = (torch.float16, torch.bfloat16)


class Coupling:
    """W, Z and U of the weights to prune.

    Half-precision weights have Z and U in float32, where small moves of the multipliers count.

    Args:
        weights: name -> parameter, the W.
        rho: of the penalty.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], rho: float) -> None:
        self.weights, self.rho = weights, rho
        self.multipliers: dict[str, Tensor] = {}
        self.centres: dict[str, Tensor] = {}

    @property
    def tied(self) -> bool:
        """Whether there is a Z yet, and still."""
        return bool(self.centres)

    def tie(self, z: Mapping[str, Tensor]) -> None:
        """Begin with these Z and U = 0. The tensors of ``z`` are taken over."""
        self.multipliers = {name: torch.zeros_like(tensor) for name, tensor in z.items()}
        self.centres = dict(z)

    def release(self) -> None:
        """No Z any more: the weights are pruned, and the tensors go."""
        self.multipliers.clear()
        self.centres.clear()

    # -- in every step ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def pull(self, gradients: Gradients) -> None:
        """df/dW += rho (W - Z + U), for the weights that the stepping optimizer is about to use; in its loss scale."""
        names = [n for n, w in self.weights.items() if w.grad is not None and n in self.centres and gradients.are_for(w)]
        if not names:
            return
        grads = [self._gradient(name) for name in names]
        weights: list[Tensor] = [self.weights[name] for name in names]
        centres = [self._centre(name) for name in names]
        if gradients.scale is None and not any(weight.dtype in HALVES for weight in weights):
            torch._foreach_add_(grads, weights, alpha=self.rho)
            torch._foreach_sub_(grads, centres, alpha=self.rho)
            return
        pulls = list(torch._foreach_sub(centres, weights))  # in the wider dtype of the two
        if gradients.scale is not None:
            for pull in pulls:
                pull.mul_(gradients.scale.to(pull.device))
        torch._foreach_sub_(grads, pulls, alpha=self.rho)

    def _gradient(self, name: str) -> Tensor:
        gradient = self.weights[name].grad
        assert gradient is not None
        if gradient.layout is not torch.strided:
            raise EspalierError(
                f"{name} has sparse gradients, which a penalty on all of its weights cannot be added to: exclude it."
            )
        return gradient

    # -- in a round ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def gaps(self) -> Tensor:
        """||W - Z|| of every layer, (layers,)."""
        return self._norms(self.gap(name) for name in self.weights)

    @torch.no_grad()
    def penalty(self) -> Tensor:
        """rho/2 ||W - Z + U||^2, ()."""
        norms = self._norms(self._wide(name) - self._centre(name) for name in self.weights)
        return norms.square().sum() * (self.rho / 2)

    @torch.no_grad()
    def gap(self, name: str) -> Tensor:
        """W - Z of a layer."""
        return self._wide(name).sub(self._centre(name)).sub_(self._multiplier(name))

    @torch.no_grad()
    def point(self, name: str) -> Tensor:
        """W + U of a layer: what the best Z is the projection of."""
        return self._wide(name) + self._multiplier(name)

    def copy(self, name: str) -> Tensor:
        """W of a layer, in float32 at least."""
        weight = self.weights[name].detach()
        return torch.empty_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)).copy_(weight)

    @torch.no_grad()
    def move(self, step_size: float) -> None:
        """Lam <- Lam + s (W - Z), which is U <- U + s/rho (W - Z)."""
        for name in self.weights:
            change = self.gap(name).mul_(step_size / self.rho)
            self._multiplier(name).add_(change)
            self._centre(name).sub_(change)

    @torch.no_grad()
    def put(self, z: Mapping[str, Tensor]) -> None:
        """Z <- z."""
        for name, tensor in z.items():
            torch.sub(tensor, self._multiplier(name), out=self._centre(name))

    def distance_to(self, z: Mapping[str, Tensor]) -> Tensor:
        """rho/2 ||W - z + U||^2 for another z, ()."""
        with torch.no_grad():
            norms = self._norms(self.point(name) - tensor for name, tensor in z.items())
            return norms.square().sum() * (self.rho / 2)

    # -- as the weights are now --------------------------------------------------------------------------------------

    def _norms(self, tensors: Iterator[Tensor]) -> Tensor:
        norms = [torch.linalg.vector_norm(tensor) for tensor in tensors]
        return torch.stack([norm.to(norms[0].device, torch.float32) for norm in norms])

    def _wide(self, name: str) -> Tensor:
        weight = self.weights[name].detach()
        return weight.float() if weight.dtype in HALVES else weight

    def _centre(self, name: str) -> Tensor:
        return self._aligned(self.centres, name)

    def _multiplier(self, name: str) -> Tensor:
        return self._aligned(self.multipliers, name)

    def _aligned(self, tensors: dict[str, Tensor], name: str) -> Tensor:
        """With the device and strides that the weight has now: a user may move the model at any time."""
        tensor, weight = tensors[name], self.weights[name]
        if tensor.device != weight.device or tensor.stride() != weight.stride():
            tensor = tensors[name] = torch.empty_like(weight, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
        return tensor

    # -- resuming --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Copies of U and Z - U, by name; empty before and after."""
        return {
            "multipliers": {name: tensor.clone() for name, tensor in self.multipliers.items()},
            "centres": {name: tensor.clone() for name, tensor in self.centres.items()},
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on with what ``state_dict`` gave."""
        for mine, theirs in ((self.multipliers, state["multipliers"]), (self.centres, state["centres"])):
            mine.clear()
            for name, tensor in theirs.items():
                if name not in self.weights or tensor.shape != self.weights[name].shape:
                    raise EspalierError(
                        f"The state has multipliers of {name} that fit no weight here: it belongs to another model."
                    )
                mine[name] = torch.empty_like(self.weights[name], dtype=tensor.dtype, requires_grad=False).copy_(tensor)
