"""Transformers whose attention has biases: by relative position (Swin, T5), or put together from parts (BEiT)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from zoo_attention import Patches
from zoo_entry import Entry, images
from zoo_language import LONGER, SHORTER, TEXT, VOCABULARY

WINDOW = 2


class DropPath(nn.Module):
    """Stochastic depth: drop a whole branch of an example, in training."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * mask.div_(1 - self.p)


def windows(x, size):
    """(B, size, size, C) -> (B * number of windows, WINDOW * WINDOW, C)."""
    x = x.view(-1, size // WINDOW, WINDOW, size // WINDOW, WINDOW, x.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, WINDOW * WINDOW, x.shape[-1])


def image(x, size):
    """The way back."""
    x = x.view(-1, size // WINDOW, size // WINDOW, WINDOW, WINDOW, x.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size, size, x.shape[-1])


class WindowAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.table = nn.Parameter(0.5 * torch.randn((2 * WINDOW - 1) ** 2, heads))
        places = torch.stack(torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij")).flatten(1)
        distance = (places[:, :, None] - places[:, None, :]) + WINDOW - 1
        self.register_buffer("place", distance[0] * (2 * WINDOW - 1) + distance[1])

    def forward(self, x, mask=None):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.table[self.place.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous()
        scores = scores + bias.unsqueeze(0)
        if mask is not None:
            scores = scores.view(-1, len(mask), self.heads, n, n) + mask[None, :, None]
            scores = scores.view(-1, self.heads, n, n)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1))


class SwinBlock(nn.Module):
    def __init__(self, dim, heads, size, shift, hidden):
        super().__init__()
        self.size, self.shift = size, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads)
        self.drop = DropPath(0.1)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        mask = None
        if shift:
            regions = torch.zeros(1, size, size, 1)
            cuts = (slice(0, -WINDOW), slice(-WINDOW, -shift), slice(-shift, None))
            for number, (rows, columns) in enumerate((rows, columns) for rows in cuts for columns in cuts):
                regions[:, rows, columns] = number
            parts = windows(regions, size).squeeze(-1)
            mask = 0.0 - 100.0 * (parts[:, None] != parts[:, :, None]).float()
        self.register_buffer("mask", mask)

    def forward(self, x):
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = image(self.attn(windows(y, self.size), self.mask), self.size)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + self.drop(y)
        return x + self.drop(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class Merging(nn.Module):
    """Four neighbours become one token of twice the width."""

    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x):
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.reduction(self.norm(x))


class Swin(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 24, kernel_size=2, stride=2)
        self.norm = nn.LayerNorm(24)
        self.first = SwinBlock(24, 6, 4, 0, 40)
        self.second = SwinBlock(24, 6, 4, 1, 40)
        self.merging = Merging(24)
        self.third = SwinBlock(48, 8, 2, 0, 56)
        self.last = nn.LayerNorm(48)

    def forward(self, x):
        x = self.norm(self.patches(x).permute(0, 2, 3, 1))
        return self.last(self.third(self.merging(self.second(self.first(x))))).mean((1, 2))


class T5(nn.Module):
    """An encoder layer of T5: buckets of distances have a bias for each head, no layer has a bias."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 28)
        self.norm1 = nn.RMSNorm(28)
        self.q, self.k, self.v = (nn.Linear(28, 24, bias=False) for _ in range(3))
        self.distances = nn.Embedding(8, 6)
        self.o = nn.Linear(24, 28, bias=False)
        self.norm2 = nn.RMSNorm(28)
        self.wi = nn.Linear(28, 40, bias=False)
        self.wo = nn.Linear(40, 28, bias=False)
        self.norm3 = nn.RMSNorm(28)

    def forward(self, x):
        h = self.embedding(x)
        b, t, _ = h.shape
        y = self.norm1(h)
        q, k, v = (layer(y).view(b, t, 6, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        place = torch.arange(t)
        bucket = (place[None] - place[:, None]).abs().clamp(max=7)
        scores = q @ k.transpose(-1, -2) + self.distances(bucket).permute(2, 0, 1)[None]
        h = h + self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, 24))
        return self.norm3(h + self.wo(F.relu(self.wi(self.norm2(h))))).mean(1)


class Beit(nn.Module):
    """Queries and values have a bias, keys have none."""

    def __init__(self):
        super().__init__()
        self.patches = Patches()
        self.norm = nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 72, bias=False)
        self.q_bias = nn.Parameter(0.1 * torch.randn(24))
        self.v_bias = nn.Parameter(0.1 * torch.randn(24))
        self.register_buffer("k_bias", torch.zeros(24), persistent=False)
        self.proj = nn.Linear(24, 32)
        self.fc1 = nn.Linear(32, 48)
        self.fc2 = nn.Linear(48, 32)
        self.last = nn.LayerNorm(32)

    def forward(self, x):
        x = self.patches(x)
        b, t, _ = x.shape
        qkv = F.linear(self.norm(x), self.qkv.weight, torch.cat((self.q_bias, self.k_bias, self.v_bias)))
        q, k, v = qkv.reshape(b, t, 3, 6, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.proj(y)
        return self.last(x + self.fc2(F.gelu(self.fc1(x)))).mean(1)


WHY = "all channels of an attention head are one unit, with the head's biases by relative position"
ENTRIES = [
    Entry(
        "swin",
        Swin,
        images(1, 8, 8),
        {
            "patches": 24,
            "first.attn.qkv": 6,
            "first.fc1": 40,
            "second.attn.qkv": 6,
            "second.fc1": 40,
            "merging.reduction": 48,
            "third.attn.qkv": 8,
            "third.fc1": 56,
        },
        merged={f"{block}.attn.qkv": WHY for block in ("first", "second", "third")},
    ),
    Entry(
        "t5",
        T5,
        TEXT,
        {"embedding": 28, "q": 6, "wi": 40},
        varying=(SHORTER, LONGER),
        merged={"q": WHY},
    ),
    Entry("beit", Beit, images(1, 8, 8), {"patches.proj": 32, "qkv.weight": 6, "fc1": 48}, merged={"qkv.weight": WHY.partition(",")[0]}),
]
