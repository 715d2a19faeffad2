"""A small residual net, its data, and the table of structured methods that the contract runs over."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import espalier as es
from espalier.criteria import ChannelTaylor, GroupSaliency
from espalier.indicators import CountStability, JaccardStability, MaskDistance

STEPS = 16


class Residual(nn.Module):
    """Three convolutions around a residual sum, one more, a flatten and a linear layer, on 8 x 8 images."""

    def __init__(self, width: int = 16, norm: str = "batch") -> None:
        super().__init__()
        make = {"batch": nn.BatchNorm2d, "group": lambda n: nn.GroupNorm(2, n)}[norm]
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), make(width)
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), make(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), make(width)
        self.wide, self.norm3 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), make(2 * width)
        self.head = nn.Linear(2 * width * 4, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))
        x = nn.functional.max_pool2d(torch.relu(self.norm3(self.wide(x))), 2)
        return self.head(x.flatten(1))


def batch(step: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """The data of one step: a function of its number, so that a resumed loop sees the same."""
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.randint(0, 4, (size,), generator=generator)


def loss_of(model, given):
    """The loss, of inputs as precise as the model."""
    return nn.functional.cross_entropy(model(given[0].to(next(model.parameters()).dtype)), given[1])


def net(seed: int = 0, **kwargs) -> Residual:
    torch.manual_seed(seed)
    return Residual(**kwargs)


def early(kind=es.OCSP, /, **kwargs):
    """Settings that start, settle and cut within ``STEPS`` steps."""
    budget = {} if any(name.startswith(("keep", "max_m", "max_p", "prune")) for name in kwargs) else {"keep_macs": 0.5}
    return kind(**{"check_every": 1, "latest": 0.75, **budget, **kwargs})


def at(kind=es.PruneAt, /, **kwargs):
    return kind(**{"check_every": 1, "keep_macs": 0.5, **kwargs})


def pulled(kind, /, **kwargs):
    """Settings with rounds after steps 5, 8 and 11, and a cut after step 12."""
    budget = {} if "prune_channels" in kwargs else {"keep_macs": 0.5}
    return kind(**{"check_every": 3, "start": 0.1, "hard_prune_at": 0.75, **budget, **kwargs})


METHODS: dict[str, Any] = {
    "ocsp": early(start=0.1),
    "ocsp-automatic": early(),
    "ocsp-progressive": early(start=0.05, progressive=3, exposure=8.0),
    "ocsp-gradient-penalty": early(start=0.1, penalty="gradient", exposure=0.5),
    "ocsp-constants": early(start=0.1, exposure=None, lambda_start=0.5, lambda_step=0.5),
    "ocsp-no-shrink": early(exposure=0.0, latest=0.5),
    "ocsp-cost-weighting": early(start=0.1, cost_weighting="mean"),
    "ocsp-keep-params": early(start=0.1, keep_params=0.5),
    "ocsp-root": early(start=0.1, criterion=GroupSaliency(root=True)),
    "ocsp-any-width": early(start=0.1, round_to=1),
    "ocsp-count": early(start=0.1, indicator=CountStability(r=2, look_back=1)),
    "epi-magnitude": early(es.EPI, prune_channels=0.4, criterion="magnitude"),
    "epi-taylor": early(es.EPI),
    "epi-taylor-weights": early(es.EPI, criterion="taylor-weights"),
    "epi-taylor-squared": early(es.EPI, criterion=ChannelTaylor(squared=True)),
    "epi-jaccard": early(es.EPI, indicator=JaccardStability(threshold=0.7)),
    "epi-mask-distance": early(es.EPI, indicator=MaskDistance(window=2, distance=0.2)),
    "prune-at-0": at(at=0),
    "prune-at-half": at(at=0.5, criterion="depgraph", normalise="mean"),
    "prune-at-random-uniform": at(at=0.25, criterion="random", scope="group"),
    "prune-at-1": at(at=1, criterion="bn-scale"),
    "prune-at-taylor": at(at=0.5, criterion="taylor", max_ratio=0.6),
    "force": at(es.Force, rounds=3),
    "snip": at(es.Force, rounds=3, returns=False),
    "train-prune-finetune": at(es.TrainPruneFinetune),
    "network-slimming": at(es.NetworkSlimming, strength=1e-2),
    "early-bird": early(es.EarlyBird, window=3),
    "greg": at(es.GReg, pick_at=0.25, at=0.5),
    "slr-channels": pulled(es.SLRChannels),
    "slr-channels-whole-group": pulled(es.SLRChannels, prune_channels=0.4, scope="group", norm="layers", hard_prune_at=1.0),
    "admm-channels": pulled(es.ADMMChannels),
}

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "sgd-loop": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, foreach=False),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001, momentum=0.9, centered=True),
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings about odd widths and time-outs, which have tests of their own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="round_to=1|The selection of channels had not settled")
        yield


class Training:
    """A net, its optimizer and its Pruner, and the user's loop."""

    def __init__(self, method, optimizer="sgd", seed=0, steps=STEPS, model=None, wrap=lambda net: net, **kwargs):
        self.net = net(seed) if model is None else model
        self.model = wrap(self.net)
        make = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
        self.optimizer = make(self.net.parameters())
        example = batch(0)[0].to(next(self.net.parameters()).dtype)
        given = {"example_inputs": example, "batches": [batch(900), batch(901)], "loss_fn": loss_of, **kwargs}
        with quiet():
            self.pruner = es.Pruner(self.model, self.optimizer, method, total_steps=steps, **given)

    @property
    def run(self):
        return self.pruner.run

    def train(self, first=0, last=STEPS, each=lambda step: None):
        with quiet():
            for step in range(first, last):
                each(step)
                loss_of(self.model, batch(step)).backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
        return self

    def finish(self, **kwargs):
        return self.pruner.finish(**kwargs)

    def saved(self) -> bytes:
        file = io.BytesIO()
        torch.save({"model": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}, file)
        return file.getvalue()

    def load(self, saved: bytes, order="model first"):
        state = torch.load(io.BytesIO(saved), weights_only=True)
        parts = [lambda: self.net.load_state_dict(state["model"]), lambda: self.optimizer.load_state_dict(state["optimizer"])]
        for part in parts if order == "model first" else reversed(parts):
            part()
        return self


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two nestings of dicts, lists and tensors differ, bit by bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [path]
    if isinstance(one, dict) and isinstance(other, dict):
        found = [f"{path}/{key}" for key in one.keys() ^ other.keys()]
        return found + [d for key in one.keys() & other.keys() for d in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [d for k, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, f"{path}/{k}")]
    return [] if type(one) is type(other) and one == other else [path]
