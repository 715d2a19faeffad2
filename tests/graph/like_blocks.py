"""Models that repeat a block, as people write them, and blocks that do more than compute."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, width: int = 12, heads: int = 3, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads, self.head_dim, self.dropout = heads, width // heads, dropout
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        x = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.proj(x.transpose(1, 2).reshape(b, n, self.heads * self.head_dim))


class Block(nn.Module):
    """Of a transformer: 11 modules inside."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Heads(nn.Module):
    """Nothing but a number, of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


class SplitAttention(nn.Module):
    def __init__(self, heads: Heads) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(self.heads, self.qkv(x).chunk(3, -1))
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Split(Block):
    """Heads are counted by a module of its own, which several blocks may share."""

    def __init__(self, heads: Heads | None = None) -> None:
        super().__init__()
        self.attention = SplitAttention(Heads() if heads is None else heads)


class Ready(Split):
    """It takes note that it has been trained."""

    def __init__(self) -> None:
        super().__init__()
        self.ready = False

    def forward(self, x: Tensor) -> Tensor:
        self.ready = self.ready or self.training
        return super().forward(x)


class Stack(nn.Module):
    """What is around blocks."""

    def __init__(self, block: Callable[[], nn.Module] = Split) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Linear(5, 12), nn.ModuleList(block() for _ in range(6))
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.gelu(self.stem(x))
        for block in self.blocks:
            x = self.around(block, x)
        return self.head(x)

    def around(self, block: Any, x: Tensor) -> Tensor:
        return block(x)


class Early(Stack):
    """The heads of the last block are counted before the blocks are run."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias(x).view(x.shape[0], x.shape[1], self.blocks[-1].attention.heads.heads)
        return super().forward(x) + bias.mean(-1, keepdim=True)


class Flagged(Stack):
    """Blocks that have been trained are treated in another way."""

    def __init__(self) -> None:
        super().__init__(Ready)

    def around(self, block: Any, x: Tensor) -> Tensor:
        x = block(x)
        return x.view(x.shape[0], x.shape[1], 2, 6).flatten(2) if block.ready else x


switch = types.SimpleNamespace(mirrors=False)


class Mirrored(Split):
    """Looks at an object of its file."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x + x.flip(-1) if switch.mirrors else x


class Switching(Stack):
    """Changes what its blocks look at after the third."""

    def __init__(self) -> None:
        super().__init__(Mirrored)

    def around(self, block: Any, x: Tensor) -> Tensor:
        switch.mirrors = any(block is each for each in self.blocks[3:])
        return block(x)


class Unsqueezed(Stack):
    """Results are changed in place."""

    def around(self, block: Any, x: Tensor) -> Tensor:
        x = block(x).unsqueeze_(1)
        return x.squeeze(1) * 1.0


class Residual(nn.Module):
    """Of a convolutional net: 8 modules inside."""

    def __init__(self, width: int = 8, *, dilation: int = 1, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 1, groups=2),
            nn.BatchNorm2d(width),
            nn.Dropout2d(0.1),
        )
        self.last = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.scale * self.body(x))


class Noisy(Residual):
    """Something else in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out * torch.rand(len(x), 1, 1, 1) if self.training else out


class Fixed(Residual):
    """A number in the code keeps the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(x.shape[0], 2, 4, x.shape[2], x.shape[3]).flatten(1, 2)


class InPlace(Residual):
    """What it is given is changed."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


class Keeping(Residual):
    """It remembers what it was given."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return super().forward(x)


class Nested(Residual):
    """It remembers what it was given, two levels deep."""

    def __init__(self) -> None:
        super().__init__()
        self.record: dict[str, list[Tensor]] = {"seen": []}

    def forward(self, x: Tensor) -> Tensor:
        self.record["seen"].append(x)
        return super().forward(x)


COUNT = 0  # of blocks that have been run


class Counting(Residual):
    """Every other one turns the channels."""

    def forward(self, x: Tensor) -> Tensor:
        global COUNT
        COUNT += 1
        return super().forward(x.flip(1) if COUNT % 2 else x)


class Pair(Residual):
    """Two results."""

    def forward(self, x: Tensor, other: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        out = super().forward(x)
        return out, out * 2 if other is None else out + other


class Chain(nn.Module):
    """Blocks that hand on two tensors."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 1), nn.ModuleList(Pair() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        x, other = self.blocks[0](self.stem(x))
        for block in self.blocks[1:]:
            x, other = block(x, other)
        return (x + other).mean((2, 3))


def tokens(block: Callable[[], nn.Module] = Block, count: int = 12) -> nn.Module:
    """Blocks whose paths are plain numbers."""
    return nn.Sequential(nn.Linear(5, 12), *(block() for _ in range(count)), nn.Linear(12, 2))


def images(*blocks: nn.Module) -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
    return nn.Sequential(stem, nn.ModuleDict({"blocks": nn.Sequential(*blocks)})["blocks"], nn.Flatten(), nn.Linear(8 * 36, 2))
