"""Vision networks of the zoo made of tokens: mixers and transformers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from zoo_entry import Entry, images

DIM = 32
HEADS = 6
WIDTH = 24  # of all heads together


class Patches(nn.Module):
    """16 patches of 2 x 2 pixels, of an image of 8 x 8."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(1, DIM, kernel_size=2, stride=2)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)  # (B, 16, DIM)


class Mlp(nn.Module):
    def __init__(self, n_in, hidden):
        super().__init__()
        self.fc1 = nn.Linear(n_in, hidden)
        self.fc2 = nn.Linear(hidden, n_in)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class MixerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(DIM)
        self.token_mixing = Mlp(16, 12)
        self.norm2 = nn.LayerNorm(DIM)
        self.channel_mixing = Mlp(DIM, 48)

    def forward(self, x):
        y = self.norm1(x).transpose(1, 2)
        x = x + self.token_mixing(y).transpose(1, 2)
        return x + self.channel_mixing(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = Patches()
        self.blocks = nn.Sequential(MixerBlock(), MixerBlock())
        self.norm = nn.LayerNorm(DIM)

    def forward(self, x):
        return self.norm(self.blocks(self.patches(x))).mean(dim=1)


class SpatialGate(nn.Module):
    def __init__(self, n, n_tokens):
        super().__init__()
        self.norm = nn.LayerNorm(n)
        self.proj = nn.Conv1d(n_tokens, n_tokens, kernel_size=1)
        nn.init.normal_(self.proj.weight, std=0.1)
        nn.init.ones_(self.proj.bias)

    def forward(self, x):
        u, v = x.chunk(2, dim=-1)
        return u * self.proj(self.norm(v))


class GmlpBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.fc1 = nn.Linear(DIM, 64)
        self.gate = SpatialGate(32, 16)
        self.fc2 = nn.Linear(32, DIM)

    def forward(self, x):
        return x + self.fc2(self.gate(F.gelu(self.fc1(self.norm(x)))))


class Gmlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = Patches()
        self.blocks = nn.ModuleList([GmlpBlock(), GmlpBlock()])
        self.norm = nn.LayerNorm(DIM)

    def forward(self, x):
        x = self.patches(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).mean(1)


class EinsumAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, DIM)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = q.view(b, t, 6, 4), k.view(b, t, 6, 4), v.view(b, t, 6, 4)
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k) / 4**0.5
        out = torch.einsum("bhqk,bkhd->bqhd", weights.softmax(dim=-1), v)
        return self.proj(out.reshape(b, t, 24))


class MatmulAttention(nn.Module):
    """Three layers, and a scale that is written down."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(DIM, WIDTH, bias=False)
        self.k = nn.Linear(DIM, WIDTH, bias=False)
        self.v = nn.Linear(DIM, WIDTH)
        self.out = nn.Linear(WIDTH, DIM)
        self.drop = nn.Dropout(0.05)

    def forward(self, x):
        batch = x.size(0)
        q = self.q(x).view(batch, -1, 6, 4).transpose(1, 2)
        k = self.k(x).view(batch, -1, 6, 4).permute(0, 2, 3, 1)
        v = self.v(x).view(batch, -1, 6, 4).transpose(1, 2)
        weights = F.softmax(torch.matmul(q, k) * 0.5, dim=-1)
        out = (self.drop(weights) @ v).transpose(1, 2).contiguous().view(batch, -1, 24)
        return self.out(out)


class PackedAttention(nn.Module):
    """nn.MultiheadAttention, with 8 heads of 4 channels."""

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(DIM, 8, batch_first=True)

    def forward(self, x):
        return self.attn(x, x, x, need_weights=False)[0]


class NormedAttention(nn.Module):
    """Queries and keys are normalised inside their heads; attention is torch's own."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * WIDTH, bias=False)
        self.q_norm = nn.LayerNorm(4)
        self.k_norm = nn.LayerNorm(4)
        self.proj = nn.Linear(WIDTH, DIM)

    def forward(self, x):
        n, t, _ = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, 6, 4).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(x.transpose(1, 2).reshape(n, t, 24))


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.norm1 = nn.LayerNorm(DIM)
        self.attn = attention()
        self.norm2 = nn.LayerNorm(DIM)
        self.mlp = Mlp(DIM, 48)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ScaledBlock(Block):
    """With a learned scale for each channel of what a branch adds (LayerScale)."""

    def __init__(self, attention):
        super().__init__(attention)
        self.ls1 = nn.Parameter(torch.full((DIM,), 0.5))
        self.ls2 = nn.Parameter(torch.full((DIM,), 0.5))

    def forward(self, x):
        x = x + self.attn(self.norm1(x)) * self.ls1
        return x + self.mlp(self.norm2(x)) * self.ls2


class ViT(nn.Module):
    def __init__(self, attention, block=Block, n_extra=1):
        super().__init__()
        self.patches = Patches()
        self.extra = nn.Parameter(0.1 * torch.randn(1, n_extra, DIM))  # the class token, and registers
        self.position = nn.Parameter(0.1 * torch.randn(1, 16, DIM))
        self.blocks = nn.Sequential(block(attention), block(attention))
        self.norm = nn.LayerNorm(DIM)

    def forward(self, x):
        x = self.patches(x) + self.position
        x = torch.cat([self.extra.expand(x.shape[0], -1, -1), x], dim=1)
        return self.norm(self.blocks(x))[:, 0]


class EncoderViT(nn.Module):
    """Made of torch's own encoder layers: norms behind the sums, and one that puts them before."""

    def __init__(self):
        super().__init__()
        self.patches = Patches()
        self.position = nn.Parameter(0.1 * torch.randn(1, 16, DIM))
        self.first = nn.TransformerEncoderLayer(DIM, 8, 48, dropout=0.05, batch_first=True)
        self.second = nn.TransformerEncoderLayer(DIM, 8, 48, dropout=0.05, activation="gelu", batch_first=True, norm_first=True)

    def forward(self, x):
        x = self.patches(x) + self.position
        return self.second(self.first(x)).mean(dim=1)


class Gain(nn.Module):
    """One learned number for all channels."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x):
        return x * self.gain


class CosineAttention(nn.Module):
    """Attention between the pixels of a map: cosines of queries and keys, and a learned temperature for each head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, DIM, 3, 2, 1)
        self.norm = nn.GroupNorm(1, DIM)
        self.qkv = nn.Conv2d(DIM, 3 * WIDTH, 1, bias=False)
        self.temperature = nn.Parameter(torch.full((6, 1, 1), 3.0))
        self.proj = nn.Conv2d(WIDTH, DIM, 1)
        self.gain = Gain()

    def forward(self, x):
        x = self.stem(x)
        b, _, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=1)
        q = F.normalize(q.reshape(b, 6, 4, h * w), dim=2)
        k = F.normalize(k.reshape(b, 6, 4, h * w), dim=2)
        v = v.reshape(b, 6, 4, h * w)
        weights = torch.softmax((q.transpose(-2, -1) @ k) * self.temperature, dim=-1)
        out = (v @ weights.transpose(-2, -1)).reshape(b, 24, h, w)
        x = x + self.gain(self.proj(out))
        return F.adaptive_avg_pool2d(F.relu(x), 2).flatten(1)


HEADS_OF_4 = "a head: its 4 query, key and value channels are one unit"


def blocks(attention, n_heads, name="blocks.{}", mlp="mlp.fc1"):
    """The groups of two blocks: heads, and the hidden layer of the MLP."""
    return {f"{name.format(i)}.{part}": n for i in (0, 1) for part, n in ((attention, n_heads), (mlp, 48))}


def heads(*groups):
    return dict.fromkeys(groups, HEADS_OF_4)


ENTRIES = [
    Entry(
        "mixer",
        Mixer,
        images(1, 8, 8),
        # Everything that mixes tokens does the same to each channel: shared, one unit for each module.
        {
            "patches.proj": DIM,
            **{f"blocks.{i}.token_mixing.fc{j}": 1 for i in (0, 1) for j in (1, 2)},
            **{f"blocks.{i}.channel_mixing.fc1": 48 for i in (0, 1)},
        },
        shared=tuple(f"blocks.{i}.token_mixing.fc{j}" for i in (0, 1) for j in (1, 2)),
    ),
    Entry(
        "gmlp",
        Gmlp,
        images(1, 8, 8),
        # fc1 has 64 rows: channel i is gated by channel 32 + i.
        {"patches.proj": DIM, **{f"blocks.{i}.{name}": n for i in (0, 1) for name, n in (("fc1", 32), ("gate.proj", 1))}},
        shared=("blocks.0.gate.proj", "blocks.1.gate.proj"),
        merged=dict.fromkeys(("blocks.0.fc1", "blocks.1.fc1"), "a gate and what it gates are one unit"),
    ),
    Entry(
        "vit-einsum",
        lambda: ViT(EinsumAttention),
        images(1, 8, 8),
        {"patches.proj": DIM, **blocks("attn.qkv", HEADS)},
        merged=heads("blocks.0.attn.qkv", "blocks.1.attn.qkv"),
    ),
    Entry(
        "vit-matmul",
        lambda: ViT(MatmulAttention, ScaledBlock),
        images(1, 8, 8),
        {"patches.proj": DIM, **blocks("attn.q", HEADS)},  # q runs before k and v, and names them
        merged=heads("blocks.0.attn.q", "blocks.1.attn.q"),
    ),
    Entry(
        "vit-multihead",
        lambda: ViT(PackedAttention),
        images(1, 8, 8),
        {"patches.proj": DIM, **blocks("attn.attn", 8)},
        merged=heads("blocks.0.attn.attn", "blocks.1.attn.attn"),
    ),
    Entry(
        "vit-encoder",
        EncoderViT,
        images(1, 8, 8),
        {"patches.proj": DIM, **{f"{name}.{part}": n for name in ("first", "second") for part, n in (("self_attn", 8), ("linear1", 48))}},
        merged=heads("first.self_attn", "second.self_attn"),
    ),
    Entry(
        "vit-registers",
        lambda: ViT(NormedAttention, ScaledBlock, n_extra=4),
        images(1, 8, 8),
        # The norms of queries and keys have a scale for each of 4 channels of a head, the same for all heads: shared.
        {
            "patches.proj": DIM,
            **blocks("attn.qkv", HEADS),
            **{f"blocks.{i}.attn.{name}": 1 for i in (0, 1) for name in ("q_norm", "k_norm")},
        },
        shared=tuple(f"blocks.{i}.attn.{name}" for i in (0, 1) for name in ("q_norm", "k_norm")),
        merged=heads("blocks.0.attn.qkv", "blocks.1.attn.qkv"),
    ),
    Entry(
        "cosine-attention",
        CosineAttention,
        images(1, 8, 8),
        # A temperature belongs to its head; the gain, a single number, is shared.
        {"stem": DIM, "qkv": HEADS, "gain": 1},
        shared=("gain",),
        varying=(images(1, 12, 12),),
        merged=heads("qkv"),
    ),
]
