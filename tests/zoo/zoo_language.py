"""Transformers of the zoo that read tokens: causal attention, embeddings, rotary positions, grouped queries."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from zoo_attention import HEADS_OF_4
from zoo_entry import Entry, tokens

DIM = 32
LENGTH = 24
VOCABULARY = 96


class FusedAttention(nn.Module):
    """As in nanoGPT with torch's own attention."""

    def __init__(self):
        super().__init__()
        self.c_attn = nn.Linear(DIM, 72)
        self.c_proj = nn.Linear(24, DIM)

    def forward(self, x):
        B, T, _ = x.size()
        q, k, v = self.c_attn(x).split(24, dim=2)
        k = k.view(B, T, 6, 24 // 6).transpose(1, 2)
        q = q.view(B, T, 6, 24 // 6).transpose(1, 2)
        v = v.view(B, T, 6, 24 // 6).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, 24))


class MaskedAttention(nn.Module):
    """As in nanoGPT without it."""

    def __init__(self):
        super().__init__()
        self.c_attn = nn.Linear(DIM, 72)
        self.c_proj = nn.Linear(24, DIM)
        self.register_buffer("bias", torch.tril(torch.ones(LENGTH, LENGTH)).view(1, 1, LENGTH, LENGTH))

    def forward(self, x):
        B, T, _ = x.size()
        q, k, v = self.c_attn(x).split(24, dim=2)
        k = k.view(B, T, 6, 4).transpose(1, 2)
        q = q.view(B, T, 6, 4).transpose(1, 2)
        v = v.view(B, T, 6, 4).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = F.softmax(att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf")), dim=-1)
        return self.c_proj((att @ v).transpose(1, 2).contiguous().view(B, T, 24))


class GptBlock(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.ln_1 = nn.LayerNorm(DIM)
        self.attn = attention()
        self.ln_2 = nn.LayerNorm(DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, 64), nn.GELU(approximate="tanh"), nn.Linear(64, DIM))

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Gpt(nn.Module):
    def __init__(self, attention, *, tied):
        super().__init__()
        self.emb = nn.Embedding(VOCABULARY, DIM)
        self.pos = nn.Embedding(LENGTH, DIM)
        self.h = nn.ModuleList([GptBlock(attention) for _ in range(2)])
        self.ln_f = nn.LayerNorm(DIM)
        self.lm_head = nn.Linear(DIM, VOCABULARY, bias=False)
        if tied:
            self.lm_head.weight = self.emb.weight

    def forward(self, idx):
        _, t = idx.size()
        x = self.emb(idx) + self.pos(torch.arange(0, t, dtype=torch.long, device=idx.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x)[:, -1, :])


class HandRMSNorm(nn.Module):
    """As in the code that came with Llama."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotary(length, dim):
    angles = torch.outer(torch.arange(length).float(), 1.0 / 100 ** (torch.arange(0, dim, 2).float() / dim))
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate_half(x):
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


class GroupedAttention(nn.Module):
    """12 query heads of 4 channels, 6 key and value heads, which are repeated."""

    def __init__(self):
        super().__init__()
        self.wq = nn.Linear(DIM, 48, bias=False)
        self.wk = nn.Linear(DIM, 24, bias=False)
        self.wv = nn.Linear(DIM, 24, bias=False)
        self.wo = nn.Linear(48, DIM, bias=False)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q = self.wq(x).view(b, t, 12, 4).transpose(1, 2)
        k = self.wk(x).view(b, t, 6, 4).transpose(1, 2)
        v = self.wv(x).view(b, t, 6, 4).transpose(1, 2)
        q = q * cos + rotate_half(q) * sin
        k = k * cos + rotate_half(k) * sin
        return self.wo(self.attend(q, k, v).transpose(1, 2).reshape(b, t, 48))

    def attend(self, q, k, v):
        k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class ByTorch(GroupedAttention):
    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class ByExpanding(GroupedAttention):
    """As in transformers: a new dimension, expanded and flattened, and an additive mask."""

    def attend(self, q, k, v):
        k, v = self.repeat_kv(k), self.repeat_kv(v)
        t = q.shape[2]
        mask = torch.full((t, t), -10000.0, device=q.device).triu(diagonal=1)
        weights = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(4) + mask
        return torch.matmul(F.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype), v)

    def repeat_kv(self, x):
        batch, n_heads, length, dim = x.shape
        x = x[:, :, None, :, :].expand(batch, n_heads, 2, length, dim)
        return x.reshape(batch, n_heads * 2, length, dim)


class SwiGlu(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1 = nn.Linear(DIM, 40, bias=False)
        self.w3 = nn.Linear(DIM, 40, bias=False)
        self.w2 = nn.Linear(40, DIM, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class FusedSwiGlu(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up = nn.Linear(DIM, 80, bias=False)
        self.down = nn.Linear(40, DIM, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(up * F.silu(gate))


class LlamaBlock(nn.Module):
    def __init__(self, attention, mlp, norm):
        super().__init__()
        self.attention_norm = norm(DIM)
        self.attention = attention()
        self.ffn_norm = norm(DIM)
        self.feed_forward = mlp()

    def forward(self, x, cos, sin):
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nn.Module):
    def __init__(self, attention, mlp, norm):
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, DIM)
        self.layers = nn.ModuleList([LlamaBlock(attention, mlp, norm) for _ in range(2)])
        self.norm = norm(DIM)
        cos, sin = rotary(64, 4)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x):
        t = x.shape[1]
        cos, sin = self.cos[:t], self.sin[:t]
        x = self.tok_embeddings(x)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x).mean(dim=1)


TEXT = tokens(LENGTH, VOCABULARY)
SHORTER = tokens(11, VOCABULARY)
LONGER = tokens(40, VOCABULARY)
GROUPED = "a key and value head with its two query heads is one unit: 4 + 4 + 8 channels"


def gpt(name, attention, *, tied):
    return Entry(
        name,
        lambda: Gpt(attention, tied=tied),
        TEXT,
        # A unit for each of 32 columns of the embedding; positions are added to them. The head is no part of the trunk.
        {"emb": DIM, **{f"h.{i}.{part}": n for i in (0, 1) for part, n in (("attn.c_attn", 6), ("mlp.0", 64))}},
        varying=(SHORTER,),
        head="lm_head",
        merged=dict.fromkeys(("h.0.attn.c_attn", "h.1.attn.c_attn"), HEADS_OF_4),
    )


def llama(name, attention, mlp, norm, gate):
    return Entry(
        name,
        lambda: Llama(attention, mlp, norm),
        TEXT,
        # wq runs first and names the heads; with SwiGLU channel i of the gate and of the value are one unit.
        {
            "tok_embeddings": DIM,
            **{f"layers.{i}.{part}": n for i in (0, 1) for part, n in (("attention.wq", 6), (f"feed_forward.{gate}", 40))},
        },
        varying=(SHORTER, LONGER),
        merged={
            **dict.fromkeys(("layers.0.attention.wq", "layers.1.attention.wq"), GROUPED),
            **dict.fromkeys((f"layers.{i}.feed_forward.{gate}" for i in (0, 1)), "a gate and what it gates are one unit"),
        },
    )


ENTRIES = [
    gpt("gpt-tied", FusedAttention, tied=True),
    gpt("gpt-untied", MaskedAttention, tied=False),
    llama("llama", GroupedAttention, SwiGlu, nn.RMSNorm, "w1"),
    llama("llama-gqa", ByTorch, FusedSwiGlu, nn.RMSNorm, "gate_up"),
    llama("llama-by-hand", ByExpanding, SwiGlu, HandRMSNorm, "w1"),
]
