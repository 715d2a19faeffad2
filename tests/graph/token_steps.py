"""Steps of generated networks that work on tokens: MLPs, mixers, and attention in several spellings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.graph.steps import Arguments, Step


class Tokens(Step):
    """Steps on tokens (B, N, C); maps become tokens by flattening, and maps again."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        tokens = self.mix(x.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).unflatten(2, (height, width))

    def mix(self, x: Tensor) -> Tensor:
        """What happens to the tokens."""
        raise NotImplementedError


class Mlp(Tokens):
    """Norm, linear, activation, linear; with a gate if ``gated``."""

    def __init__(self, width: int, hidden: int, gated: bool, normed: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if normed else nn.Identity()
        self.one, self.two = nn.Linear(width, hidden * (2 if gated else 1)), nn.Linear(hidden, width)
        self.gated = gated

    def mix(self, x: Tensor) -> Tensor:
        y = self.one(self.norm(x))
        if self.gated:
            one, two = y.chunk(2, -1)
            return x + self.two(functional.silu(one) * two)
        return x + self.two(functional.gelu(y))

    def arguments(self) -> Arguments:
        width, hidden = self.two.weight.shape
        return {"width": width, "hidden": hidden, "gated": self.gated, "normed": isinstance(self.norm, nn.LayerNorm)}


class TokenMixer(Tokens):
    """Linear layers over the tokens; a class token and a position embedding of the channels' width."""

    def __init__(self, width: int, tokens: int, hidden: int) -> None:
        super().__init__()
        self.cls, self.position = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, tokens + 1, width))
        self.one, self.two = nn.Linear(tokens + 1, hidden), nn.Linear(hidden, tokens + 1)

    def mix(self, x: Tensor) -> Tensor:
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        x = x + self.two(functional.gelu(self.one(x.transpose(1, 2)))).transpose(1, 2)
        return x[:, 1:]

    def arguments(self) -> Arguments:
        tokens, hidden = self.two.weight.shape
        return {"width": self.cls.shape[2], "tokens": tokens - 1, "hidden": hidden}


class FusedAttention(Tokens):
    """One linear layer for q, k and v, which are taken apart in several ways; v may have a width of its own."""

    SPELLINGS = ("permute", "chunk", "head first", "slices", "sizes")

    def __init__(self, width: int, heads: int, each: int, value: int, spelling: str) -> None:
        super().__init__()
        self.heads, self.spelling = heads, spelling
        if spelling == "sizes":
            self.sizes = [heads * each, heads * each, heads * value]
        self.qkv, self.out = nn.Linear(width, heads * (2 * each + value)), nn.Linear(heads * value, width)

    def mix(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        if self.spelling == "permute":
            q, k, v = self.qkv(x).reshape(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.spelling == "chunk":
            q, k, v = (y.view(batch, count, self.heads, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        elif self.spelling == "head first":
            q, k, v = self.qkv(x).view(batch, count, self.heads, -1).transpose(1, 2).chunk(3, dim=-1)
        else:
            y = self.qkv(x)
            if self.spelling == "slices":
                third = y.shape[-1] // 3
                parts = (y[..., :third], y[:, :, third : 2 * third], y[..., 2 * third :])
            else:
                parts = y.split(self.sizes, dim=-1)
            q, k, v = (part.reshape(batch, count, self.heads, -1).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).reshape(batch, count, -1))

    def arguments(self) -> Arguments:
        width, inner = self.out.weight.shape
        value = inner // self.heads
        each = (self.qkv.weight.shape[0] // self.heads - value) // 2
        return {"width": width, "heads": self.heads, "each": each, "value": value, "spelling": self.spelling}


class Attention(Tokens):
    """Separate projections, values of a width of their own; the scale is a given number, or 1 / sqrt of the query's width."""

    def __init__(self, width: int, heads: int, each: int, value: int, scale: float | None, spelled: bool) -> None:
        super().__init__()
        self.heads, self.factor, self.spelled = heads, scale, spelled
        self.q, self.k = nn.Linear(width, heads * each), nn.Linear(width, heads * each, bias=False)
        self.v, self.out = nn.Linear(width, heads * value), nn.Linear(heads * value, width)

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.spelled and self.factor is not None:
            mixed = (q * self.factor @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, scale=self.factor)
        return x + self.out(mixed.transpose(1, 2).flatten(2))

    def arguments(self) -> Arguments:
        each, value = (layer.weight.shape[0] // self.heads for layer in (self.q, self.v))
        width = self.out.weight.shape[0]
        return {
            "width": width, "heads": self.heads, "each": each, "value": value, "scale": self.factor, "spelled": self.spelled
        }  # fmt: skip


class TorchAttention(Tokens):
    """``nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=batch_first)

    def mix(self, x: Tensor) -> Tensor:
        if self.attention.batch_first:
            return x + self.attention(x, x, x, need_weights=False)[0]
        y = x.transpose(0, 1)
        return x + self.attention(y, y, y)[0].transpose(0, 1)

    def arguments(self) -> Arguments:
        attention = self.attention
        return {"width": attention.out_proj.weight.shape[0], "heads": attention.num_heads, "batch_first": attention.batch_first}


class ChannelAttention(Tokens):
    """Attention among channels, as in XCiT: the map is head_dim x head_dim."""

    def __init__(self, width: int, heads: int, each: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * heads * each), nn.Linear(heads * each, width)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def mix(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, self.heads, -1).permute(2, 0, 3, 4, 1).unbind(0)
        q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
        mixed = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(-1) @ v
        return x + self.out(mixed.permute(0, 3, 1, 2).reshape(batch, count, -1))

    def arguments(self) -> Arguments:
        width, inner = self.out.weight.shape
        return {"width": width, "heads": self.heads, "each": inner // self.heads}
