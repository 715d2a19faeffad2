"""Building blocks of generated networks: maps (B, C, H, W) in, maps out. Zero channels stay zero wherever that can be.

Each step says with which arguments it would be built at its parameters' present shapes (``arguments``), so that a cut network
can be built anew, natively narrow, and compared.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Arguments = dict[str, Any]

NORMS = ("none", "batch", "group", "layer", "instance")
SMOOTH = {"gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "none": nn.Identity}


class Step(nn.Module):
    """One step; ``arguments`` are those of its constructor."""

    def arguments(self) -> Arguments:
        """What to give the constructor to get these shapes."""
        raise NotImplementedError


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of maps."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def norm(kind: str, width: int, groups: int) -> nn.Module:
    if kind == "batch":
        layer: nn.Module = nn.BatchNorm2d(width)
    elif kind == "group":
        layer = nn.GroupNorm(groups, width)
    elif kind == "layer":
        layer = ChannelNorm(width)
    else:
        layer = nn.InstanceNorm2d(width, affine=True) if kind == "instance" else nn.Identity()
    return layer


class Conv(Step):
    """Convolution, norm, activation; grouped, depthwise, strided or transposed."""

    def __init__(
        self, width: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = True, kind: str = "none",
        norm_groups: int = 1, act: str = "gelu", transposed: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        make = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.conv = make(width, out, kernel, stride, 0 if transposed else kernel // 2, groups=groups, bias=bias)
        self.norm = norm(kind, out, norm_groups)
        self.act = SMOOTH[act]()
        self.kinds = kind, act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))

    def arguments(self) -> Arguments:
        conv = self.conv
        one, two = conv.weight.shape[:2]
        transposed = isinstance(conv, nn.ConvTranspose2d)
        width, out = (one, two * conv.groups) if transposed else (two * conv.groups, one)
        return {
            "width": width, "out": out, "kernel": conv.kernel_size[0], "stride": conv.stride[0], "groups": conv.groups,
            "bias": conv.bias is not None, "kind": self.kinds[0], "norm_groups": getattr(self.norm, "num_groups", 1),
            "act": self.kinds[1], "transposed": transposed,
        }  # fmt: skip


class Residual(Step):
    """x + conv(act(conv(x)))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(hidden)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(functional.silu(self.norm(self.one(x))))

    def arguments(self) -> Arguments:
        return {"width": self.one.weight.shape[1], "hidden": self.one.weight.shape[0]}


class Tied(Step):
    """One convolution used twice, and two convolutions that share their weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1, bias=False)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(functional.gelu(self.one(functional.gelu(self.one(x)))))

    def arguments(self) -> Arguments:
        return {"width": self.one.weight.shape[0]}


class SqueezeExcite(Step):
    """Gates computed from the mean of every channel, by convolutions or by linear layers."""

    def __init__(self, width: int, hidden: int, linear: bool) -> None:
        super().__init__()
        self.one: nn.Module = nn.Linear(width, hidden) if linear else nn.Conv2d(width, hidden, 1)
        self.two: nn.Module = nn.Linear(hidden, width) if linear else nn.Conv2d(hidden, width, 1)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        if self.linear:
            gate = self.two(functional.silu(self.one(x.mean((2, 3)))))[:, :, None, None]
        else:
            gate = self.two(functional.silu(self.one(functional.adaptive_avg_pool2d(x, 1))))
        return x * gate.sigmoid()

    def arguments(self) -> Arguments:
        hidden, width = self.one.weight.shape[:2]
        return {"width": width, "hidden": hidden, "linear": self.linear}


class ChunkGate(Step):
    """One half of the channels gates the other."""

    def __init__(self, width: int, hidden: int, out: int, glu: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(width, 2 * hidden, 1), nn.Conv2d(hidden, out, 1)
        self.glu = glu

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        if self.glu:
            return self.two(functional.glu(x, 1))
        one, two = x.chunk(2, dim=1)
        return self.two(one * functional.silu(two))

    def arguments(self) -> Arguments:
        out, hidden = self.two.weight.shape[:2]
        return {"width": self.one.weight.shape[1], "hidden": hidden, "out": out, "glu": self.glu}


class SplitCat(Step):
    """Channels divided by two numbers that the module keeps; one part is convolved, both are put together again."""

    def __init__(self, width: int, first: int, out: int) -> None:
        super().__init__()
        self.first, self.rest = first, width - first
        self.conv = nn.Conv2d(first, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        one, two = x.split([self.first, self.rest], dim=1)
        return torch.cat([functional.gelu(self.conv(one)), two], dim=1)

    def arguments(self) -> Arguments:
        out, first = self.conv.weight.shape[:2]
        return {"width": first + self.rest, "first": first, "out": out}


class SliceAdd(Step):
    """Bottleneck of Res2Net: pieces of equal width, each convolved with what came before; the last may be cut apart."""

    def __init__(self, width: int, pieces: int, each: int, last: int) -> None:
        super().__init__()
        self.pieces, self.each = pieces, each
        outs = [each] * (pieces - 2) + [last]
        self.before, self.after = nn.Conv2d(width, pieces * each, 1), nn.Conv2d(each + sum(outs), width, 1)
        self.convs = nn.ModuleList(nn.Conv2d(each, out, 3, padding=1) for out in outs)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.before(x), self.each, 1)
        done = [parts[0]]
        for part, conv in zip(parts[1:], self.convs, strict=True):
            done.append(functional.gelu(conv(part + done[-1])))
        return x + self.after(torch.cat(done, 1))

    def arguments(self) -> Arguments:
        last, each = self.convs[-1].weight.shape[:2]
        return {"width": self.after.weight.shape[0], "pieces": self.pieces, "each": each, "last": last}


class Shuffle(Step):
    """Channels of all groups interleaved, spelled out or by ``channel_shuffle``."""

    def __init__(self, groups: int, spelled: bool) -> None:
        super().__init__()
        self.groups, self.spelled = groups, spelled

    def forward(self, x: Tensor) -> Tensor:
        if not self.spelled:
            return functional.channel_shuffle(x, self.groups)
        batch, channels, height, width = x.shape
        x = x.view(batch, self.groups, channels // self.groups, height, width)
        return x.transpose(1, 2).reshape(batch, channels, height, width)

    def arguments(self) -> Arguments:
        return {"groups": self.groups, "spelled": self.spelled}


class PixelUp(Step):
    """Convolution to r x r times the channels, then pixel shuffle."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 4 * out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.pixel_shuffle(self.conv(x), 2)

    def arguments(self) -> Arguments:
        return {"width": self.conv.weight.shape[1], "out": self.conv.weight.shape[0] // 4}


class PixelDown(Step):
    """Pixels become channels, as a function or spelled out, then a convolution."""

    def __init__(self, width: int, out: int, spelled: bool) -> None:
        super().__init__()
        self.conv, self.spelled = nn.Conv2d(4 * width, out, 1), spelled

    def forward(self, x: Tensor) -> Tensor:
        if not self.spelled:
            return self.conv(functional.pixel_unshuffle(x, 2))
        batch, channels, height, width = x.shape
        x = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 3, 5, 1, 2, 4)
        return self.conv(x.reshape(batch, 4 * channels, height // 2, width // 2))

    def arguments(self) -> Arguments:
        return {"width": self.conv.weight.shape[1] // 4, "out": self.conv.weight.shape[0], "spelled": self.spelled}


class PaddedShortcut(Step):
    """ResNet's parameterless shortcut: channels of zeros added to the input, and a convolution added to both."""

    def __init__(self, width: int, more: int) -> None:
        super().__init__()
        self.more = more
        self.conv = nn.Conv2d(width, width + more, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.more)) + functional.gelu(self.conv(x))

    def arguments(self) -> Arguments:
        out, width = self.conv.weight.shape[:2]
        return {"width": width, "more": out - width}


class Pool(Step):
    """Pooling and resizing."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "max":
            return functional.max_pool2d(x, 2)
        if self.kind == "average":
            return functional.avg_pool2d(x, 3, 1, 1)
        if self.kind == "adaptive":
            return functional.adaptive_avg_pool2d(x, (x.shape[2] // 2, x.shape[3] // 2))
        return functional.interpolate(functional.max_pool2d(x, 2), size=x.shape[2:], mode="nearest")

    def arguments(self) -> Arguments:
        return {"kind": self.kind}


class Scaled(Step):
    """A learned factor and threshold per channel, and weights used functionally."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(width, 1, 1))
        self.slope = nn.PReLU(width)
        self.weight = nn.Parameter(torch.randn(out, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(self.slope(x) * self.gamma, self.weight)

    def arguments(self) -> Arguments:
        return {"width": self.gamma.shape[0], "out": self.weight.shape[0]}


class SpatialGate(Step):
    """Mean and maximum over the channels gate the pixels; softmax over the channels."""

    def __init__(self, softmax: bool) -> None:
        super().__init__()
        self.conv, self.softmax = nn.Conv2d(2, 1, 3, padding=1), softmax

    def forward(self, x: Tensor) -> Tensor:
        if self.softmax:
            return x * x.softmax(1)
        return x * self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()

    def arguments(self) -> Arguments:
        return {"softmax": self.softmax}


class Head(Step):
    """Logits: from the mean of the channels, or from all pixels flattened."""

    def __init__(self, width: int, pixels: int, classes: int, flat: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width * pixels if flat else width, classes)
        self.pixels, self.flat = pixels, flat

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1) if self.flat else x.mean((2, 3)))

    def arguments(self) -> Arguments:
        classes, inputs = self.linear.weight.shape
        width = inputs // self.pixels if self.flat else inputs
        return {"width": width, "pixels": self.pixels, "classes": classes, "flat": self.flat}


class Join(Step):
    """Two values put together."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.how == "cat":
            return torch.cat([x, y], dim=1)
        return x + y if self.how == "add" else x * torch.tanh(y)

    def arguments(self) -> Arguments:
        return {"how": self.how}


class Network(nn.Module):
    """Steps in order, each applied to earlier values: the input is value 0, step k makes value k + 1."""

    def __init__(self, steps: list[Step], sources: list[str]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.sources = sources  # as text such as "3,1": no integers of this module are sizes

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for step, sources in zip(self.steps, self.sources, strict=True):
            values.append(step(*(values[int(place)] for place in sources.split(","))))
        return values[-1]


def built_anew(net: Network) -> Network:
    """The same network from its constructors, at the widths that its parameters have now, with their values."""
    steps = [type(step)(**step.arguments()) for step in net.steps]  # type: ignore[operator]
    fresh = Network(steps, list(net.sources))
    fresh.load_state_dict(net.state_dict(), strict=True)
    return fresh.train(net.training)


def integers(net: nn.Module) -> dict[str, Any]:
    """Every integer that a module of the network keeps, alone or in a tuple."""
    found = {}
    for path, module in net.named_modules():
        for name, value in vars(module).items():
            items = value if isinstance(value, tuple | list) else [value]
            if items and all(isinstance(item, int) and not isinstance(item, bool) for item in items):
                found[f"{path}.{name}"] = value
    return found


def plain_integers(net: nn.Module) -> bool:
    """Whether all integers of all modules are of type int and of no subclass."""
    values = [value if isinstance(value, tuple | list) else (value,) for value in integers(net).values()]
    return all(type(item) is int for item in itertools.chain(*values))
