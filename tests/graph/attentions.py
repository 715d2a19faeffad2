"""Attention as people write it, all 12 wide, 3 heads of 4 unless said otherwise; tokens (B, N, 12) in and out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, EACH, TOKENS = 12, 3, 4, 6


class Timm(nn.Module):
    """Fused qkv, optional norms of query and key, fused or spelled attention with a stored scale."""

    def __init__(self, fused: bool = True, normed: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.fused = HEADS, EACH, fused
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q_norm, self.k_norm = (nn.LayerNorm(EACH) if normed else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused:
            x = functional.scaled_dot_product_attention(q, k, v)
        else:
            x = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(batch, count, width))


class Bert(nn.Module):
    """Separate projections, divided by the root of an integer that the module keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_size = HEADS, EACH
        self.all_size = self.heads * self.head_size
        self.query, self.key, self.value = (nn.Linear(WIDTH, self.all_size) for _ in range(3))
        self.out = nn.Linear(self.all_size, WIDTH)

    def apart(self, x: Tensor) -> Tensor:
        return x.view(*x.size()[:-1], self.heads, self.head_size).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.apart(self.query(x)), self.apart(self.key(x)), self.apart(self.value(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.head_size)
        mixed = torch.matmul(scores.softmax(-1), v).permute(0, 2, 1, 3).contiguous()
        return self.out(mixed.view(*mixed.size()[:-2], self.all_size))


class Conv1D(nn.Module):
    """A linear layer whose weight is (inputs, outputs), as in GPT-2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return out.view((*x.size()[:-1], self.nf))


class Gpt(nn.Module):
    """One transposed layer for q, k and v, split by an integer that the module keeps; a causal mask in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.split_size = HEADS, EACH, WIDTH
        self.c_attn, self.c_proj = Conv1D(WIDTH, 3 * WIDTH), Conv1D(WIDTH, WIDTH)
        self.register_buffer("mask", torch.ones(TOKENS, TOKENS).tril().bool(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.c_attn(x).split(self.split_size, dim=2)
        q, k, v = (y.view((*y.shape[:-1], -1, self.head_dim)).transpose(1, 2) for y in (q, k, v))
        count = x.shape[1]
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask[:count, :count])
        return self.c_proj(mixed.transpose(1, 2).reshape(*x.shape[:-1], -1))


class RmsNorm(nn.Module):
    """Root mean square, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Llama(nn.Module):
    """Four heads of queries share two of keys and values; rotated positions; optional norms of query and key."""

    def __init__(self, normed: bool = False) -> None:
        super().__init__()
        self.heads, self.shared, self.head_dim = 4, 2, EACH
        self.repeats = self.heads // self.shared
        self.q = nn.Linear(WIDTH, self.heads * EACH, bias=False)
        self.k, self.v = (nn.Linear(WIDTH, self.shared * EACH, bias=False) for _ in range(2))
        self.o = nn.Linear(self.heads * EACH, WIDTH, bias=False)
        self.q_norm, self.k_norm = (RmsNorm(EACH) if normed else nn.Identity() for _ in range(2))
        angles = torch.outer(torch.arange(TOKENS), torch.tensor([1.0, 0.1])).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def rotated(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x * self.cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * self.sin

    def repeated(self, x: Tensor) -> Tensor:
        batch, heads, count, each = x.shape
        return x[:, :, None].expand(batch, heads, self.repeats, count, each).reshape(batch, heads * self.repeats, count, each)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, self.head_dim)
        q = self.q_norm(self.q(x).view(shape)).transpose(1, 2)
        k = self.k_norm(self.k(x).view(shape)).transpose(1, 2)
        v = self.v(x).view(shape).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(self.rotated(q), self.repeated(self.rotated(k)), self.repeated(v))
        return self.o(mixed.transpose(1, 2).reshape(*x.shape[:-1], -1))


class Swin(nn.Module):
    """Shifted windows of 2 of 6 tokens, with a table of relative position biases per head."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.window = HEADS, 2
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.table = nn.Parameter(torch.randn(3, HEADS))
        self.register_buffer("index", torch.tensor([[1, 0], [2, 1]]))

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        x = torch.roll(x, -1, 1)
        x = x.view(batch, count // self.window, self.window, width).reshape(-1, self.window, width)
        qkv = self.qkv(x).reshape(x.shape[0], self.window, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        q = q * (width // self.heads) ** -0.5
        scores = q @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(self.window, self.window, -1).permute(2, 0, 1).contiguous()
        x = ((scores + bias.unsqueeze(0)).softmax(-1) @ v).transpose(1, 2).reshape(-1, self.window, width)
        x = self.proj(x).view(batch, count // self.window, self.window, width).reshape(batch, count, width)
        return torch.roll(x, 1, 1)


class ClassAttention(nn.Module):
    """Only the class token asks; heads are mixed by linear layers before and after the softmax (CaiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = HEADS, EACH**-0.5
        self.q, self.k, self.v, self.proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.before, self.after = nn.Linear(HEADS, HEADS), nn.Linear(HEADS, HEADS)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1)
        batch, count, width = y.shape
        q = self.q(y[:, 0]).unsqueeze(1).reshape(batch, 1, self.num_heads, width // self.num_heads).permute(0, 2, 1, 3)
        k = self.k(y).reshape(batch, count, self.num_heads, width // self.num_heads).permute(0, 2, 1, 3)
        v = self.v(y).reshape(batch, count, self.num_heads, width // self.num_heads).permute(0, 2, 1, 3)
        scores = self.before((q * self.scale @ k.transpose(-2, -1)).permute(0, 2, 3, 1))
        weights = self.after(scores.softmax(dim=2)).permute(0, 3, 1, 2)
        token = self.proj((weights @ v).transpose(1, 2).reshape(batch, 1, width))
        return torch.cat([token, x], dim=1)[:, :-1]


class Einsum(nn.Module):
    """Products and contractions by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.scale = HEADS, 0.5
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in self.qkv(x).chunk(3, dim=-1))
        scores = torch.einsum("bihd,bjhd->bhij", q, k) * self.scale
        mixed = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)
        return self.out(mixed.flatten(2))


class LinearAttention(nn.Module):
    """Kernel attention without softmax, normalised by an appended row of ones (EfficientViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = EACH
        self.qkv, self.proj = nn.Conv1d(WIDTH, 3 * WIDTH, 1, bias=False), nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        y = self.qkv(x.transpose(1, 2)).reshape(batch, -1, 3 * self.dim, count).transpose(-1, -2)
        q, k, v = y.chunk(3, dim=-1)
        q, k = torch.relu(q), torch.relu(k)
        v = functional.pad(v, (0, 1), mode="constant", value=1.0)
        out = q @ (k.transpose(-1, -2) @ v)
        out = out[..., :-1] / (out[..., -1:] + 1e-3)
        return self.proj(out.transpose(-1, -2).reshape(batch, -1, count)).transpose(1, 2)


class Reduced(nn.Module):
    """Keys and values from fewer tokens, by a strided convolution (PVT)."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, EACH
        self.q, self.kv, self.proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.sr, self.norm = nn.Conv1d(WIDTH, WIDTH, 2, stride=2), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        q = self.q(x).reshape(batch, count, self.num_heads, -1).permute(0, 2, 1, 3)
        y = self.norm(self.sr(x.permute(0, 2, 1)).reshape(batch, width, -1).permute(0, 2, 1))
        k, v = self.kv(y).reshape(batch, -1, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, -1))


class Torch(nn.Module):
    """``nn.MultiheadAttention`` of tokens to themselves."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


class Cross(nn.Module):
    """``nn.MultiheadAttention`` to keys and values of other widths, with masks."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values = nn.Linear(WIDTH, 10), nn.Linear(WIDTH, 8)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, kdim=10, vdim=8)

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(0, 1)
        mask = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
        return self.attention(y, self.keys(y), self.values(y), attn_mask=mask, need_weights=False)[0].transpose(0, 1)


class Block(nn.Module):
    """A stem, attention with a residual, an MLP, and a head: the widths around attention can be cut as well."""

    def __init__(self, attention: nn.Module, residual: bool = True) -> None:
        super().__init__()
        self.stem, self.attention, self.residual = nn.Linear(5, WIDTH), attention, residual
        self.fc1, self.fc2, self.head = nn.Linear(WIDTH, 10), nn.Linear(10, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.attention(x) if self.residual else self.attention(x)
        return self.head(x + self.fc2(functional.gelu(self.fc1(x))))
