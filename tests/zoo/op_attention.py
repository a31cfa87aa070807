"""Attention: a head is a unit, however it is written."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from op_case import TOKENS, Net, OpCase, R, Weight, each, parameter, span
from torch import nn

sdpa = F.scaled_dot_product_attention
STREAM = span(0, 5)
HEADS = [5, 5, 6, 6, 7, 7]
CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()


def split(h, n_heads=3):
    """(B, T, C) -> (B, heads, T, 2)."""
    return h.view(h.shape[0], h.shape[1], n_heads, 2).transpose(1, 2)


def join(y):
    """(B, heads, T, 2) -> (B, T, C)."""
    return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)


def projected(attend, n_heads=3, n_kv=3):
    """The forward pass of a network with separate projections of queries, keys and values."""

    def run(net, x):
        h = net.a(x)
        q, k, v = split(net.q(h), n_heads), split(net.k(h), n_kv), split(net.v(h), n_kv)
        return net.o(join(attend(net, q, k, v))).mean(1)

    return run


def separate(op, attend, labels=None, groups=None, shared=(), n_kv=3, **more):
    """Three heads of two channels, or queries of four heads for two heads of keys; o makes 4 units."""
    n_heads = 3 if n_kv == 3 else 4
    heads = HEADS if n_kv == 3 else [5] * 4 + [6] * 4
    keys = HEADS if n_kv == 3 else [5, 5, 6, 6]
    start = 5 + n_kv + len(shared)
    parts = more.pop("parts", dict)
    return OpCase(
        op,
        lambda: Net(
            projected(attend, n_heads, n_kv),
            a=nn.Linear(4, 5),
            q=nn.Linear(5, 2 * n_heads),
            k=nn.Linear(5, 2 * n_kv),
            v=nn.Linear(5, 2 * n_kv),
            o=nn.Linear(2 * n_heads, 4),
            **parts(),
        ),
        TOKENS,
        groups or {"a": 5, "q": n_kv, **dict.fromkeys(shared, 1), "o": 4},
        {
            "a.weight": (STREAM, [R] * 4),
            "q.weight": (heads, STREAM),
            "k.weight": (keys, STREAM),
            "v.weight": (keys, STREAM),
            **(labels or {}),
            "o.weight": (span(start, 4), heads),
            "features": (span(start, 4), None),
        },
        shared=shared,
        **more,
    )


def by_matmul(n, q, k, v):
    weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(2), -1)
    return weights @ v


def scaled_by_a_size(n, q, k, v):
    weights = torch.softmax(torch.matmul(q, k.mT) * q.shape[-1] ** -0.5, dim=-1)
    return torch.matmul(F.dropout(weights, 0.1, n.training), v)


def by_einsum(n, q, k, v):
    weights = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


def by_bmm(n, q, k, v):
    """With the heads in the batch, as many libraries do it."""
    b, heads, t, d = q.shape
    q, k, v = (x.reshape(b * heads, t, d) for x in (q, k, v))
    weights = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
    return torch.bmm(weights, v).view(b, heads, t, d)


def by_baddbmm(n, q, k, v):
    b, heads, t, d = q.shape
    q, k, v = (x.reshape(b * heads, t, d) for x in (q, k, v))
    weights = torch.baddbmm(n.mask, q, k.transpose(1, 2), beta=1.0, alpha=0.7).softmax(-1)
    return torch.bmm(weights, v).view(b, heads, t, d)


def masked(n, q, k, v):
    scores = (q @ k.transpose(-2, -1)).masked_fill(~n.mask, -torch.inf)
    return scores.softmax(-1) @ v


def linear_attention(n, q, k, v):
    """No softmax between queries and keys: their features are multiplied the other way round."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    state = torch.einsum("bhnd,bhne->bhde", k, v)
    return torch.einsum("bhnd,bhde->bhne", q, state) / torch.einsum("bhnd,bhd->bhn", q, k.sum(2)).unsqueeze(-1)


def channel_attention(n, q, k, v):
    """Attention between the channels of a head."""
    return (v @ (k.transpose(-2, -1) @ q).softmax(-2)).contiguous()


def repeated(n, q, k, v):
    return sdpa(q, k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1))


def expanded(n, q, k, v):
    """As Llama repeats keys and values."""
    b, heads, t, d = k.shape
    k, v = (x[:, :, None].expand(b, heads, 2, t, d).reshape(b, heads * 2, t, d) for x in (k, v))
    return sdpa(q, k, v, is_causal=True)


def grouped(n, q, k, v):
    """Queries are grouped by the keys that they ask."""
    q = q.unflatten(1, (2, 2))
    return (sdpa(q, k.unsqueeze(2).expand_as(q), v.unsqueeze(2).expand_as(q))).flatten(1, 2)


def half_rotated(n, q, k, v):
    def rotate(x):
        first, second = x.chunk(2, -1)
        return x * n.cos + torch.cat([-second, first], -1) * n.sin

    return sdpa(rotate(q), rotate(k), v)


def complex_rotated(n, q, k, v):
    def rotate(x):
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * n.turn).flatten(3).type_as(x)

    return sdpa(rotate(q), rotate(k), v)


def angles():
    return torch.arange(5.0)[:, None]


BIAS = {"t": (HEADS[::2], None)}
FORMS = {
    "sdpa": separate("aten.scaled_dot_product_attention.default", lambda n, q, k, v: sdpa(q, k, v)),
    "sdpa with a scale": separate("aten.scaled_dot_product_attention.default", lambda n, q, k, v: sdpa(q, k, v, scale=0.3)),
    "sdpa with a mask": separate(
        "aten.scaled_dot_product_attention.default", lambda n, q, k, v: sdpa(q, k, v, attn_mask=n.mask), parts=lambda: {"mask": CAUSAL}
    ),
    "sdpa with an additive mask": separate(
        "aten.scaled_dot_product_attention.default",
        lambda n, q, k, v: sdpa(q, k, v, attn_mask=n.mask),
        parts=lambda: {"mask": torch.linspace(-1, 1, 25).view(5, 5)},
    ),
    "sdpa with a mask for each head": separate(
        "aten.scaled_dot_product_attention.default",
        lambda n, q, k, v: sdpa(q, k, v, attn_mask=n.mask),
        parts=lambda: {"mask": torch.linspace(-3, 3, 75).view(3, 5, 5)},
    ),
    "sdpa, causal": separate("aten.scaled_dot_product_attention.default", lambda n, q, k, v: sdpa(q, k, v, is_causal=True)),
    "sdpa with dropout": separate(
        "aten.scaled_dot_product_attention.default", lambda n, q, k, v: sdpa(q, k, v, dropout_p=0.3 if n.training else 0.0)
    ),
    "sdpa with grouped queries": separate(
        "aten.scaled_dot_product_attention.default", lambda n, q, k, v: sdpa(q, k, v, enable_gqa=True), n_kv=2
    ),
    "sdpa with a learned table": separate(
        "aten.scaled_dot_product_attention.default",
        lambda n, q, k, v: sdpa(q, k, v, attn_mask=n.t),
        BIAS,
        parts=lambda: {"t": parameter(3, 5, 5)},
    ),
    "keys repeated for queries": separate("aten.repeat_interleave.self_int", repeated, n_kv=2),
    "keys expanded for queries": separate("aten.expand.default", expanded, n_kv=2),
    "queries grouped by keys": separate("aten.unflatten.int", grouped, n_kv=2),
    "attention by matmul": separate("aten.matmul.default", by_matmul),
    "attention by matmul, scaled by a size": separate("aten.matmul.default", scaled_by_a_size),
    "attention by einsum": separate("aten.einsum.default", by_einsum),
    "attention by bmm": separate("aten.bmm.default", by_bmm),
    "attention by baddbmm": separate("aten.baddbmm.default", by_baddbmm, parts=lambda: {"mask": torch.linspace(-1, 1, 25).view(1, 5, 5)}),
    "attention with a mask": separate("aten.masked_fill.Scalar", masked, parts=lambda: {"mask": CAUSAL}),
    "linear attention": separate("aten.einsum.default", linear_attention),
    "attention between channels": separate("aten.matmul.default", channel_attention),
    "a learned table of heads": separate(
        "aten.add.Tensor",
        lambda n, q, k, v: (q @ k.transpose(-2, -1) + n.t).softmax(-1) @ v,
        BIAS,
        parts=lambda: {"t": parameter(3, 5, 5)},
    ),
    "a learned table of heads, by index": separate(
        "aten.index.Tensor",
        lambda n, q, k, v: (q @ k.transpose(-2, -1) + n.t[n.i].view(5, 5, 3).permute(2, 0, 1)).softmax(-1) @ v,
        BIAS,
        parts=lambda: {"t": parameter(9, 3), "i": (torch.arange(5)[:, None] - torch.arange(5) + 4).flatten()},
        dims={"t": (1, None)},
    ),
    "a temperature of heads": separate(
        "aten.mul.Tensor",
        lambda n, q, k, v: ((q @ k.transpose(-2, -1)) * n.t).softmax(-1) @ v,
        BIAS,
        parts=lambda: {"t": parameter(3, 1, 1)},
    ),
    "a learned temperature of all heads": separate(
        "aten.mul.Tensor",
        lambda n, q, k, v: n.t(q @ k.transpose(-2, -1)).softmax(-1) @ v,
        {"t.weight": ([8], None)},
        shared=("t",),
        parts=lambda: {"t": Weight(lambda w, x: x * w, 1)},
    ),
    "cosines of queries and keys": separate(
        "aten.matmul.default", lambda n, q, k, v: (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).softmax(-1) @ v
    ),
    "rotary, halves": separate("aten.cat.default", half_rotated, parts=lambda: {"cos": angles().cos(), "sin": angles().sin()}),
    "rotary, complex": separate(
        "aten.view_as_complex.default", complex_rotated, parts=lambda: {"turn": torch.polar(torch.ones(5, 1), angles())}
    ),
    "layer_norm of queries and keys": separate(
        "aten.layer_norm.default",
        lambda n, q, k, v: sdpa(n.qn(q), n.kn(k), v),
        {"qn.weight": ([8, 8], None), "qn.bias": ([8, 8], None), "kn.weight": ([9, 9], None)},
        shared=("qn", "kn"),
        parts=lambda: {"qn": nn.LayerNorm(2), "kn": nn.LayerNorm(2)},
    ),
    "rms_norm of queries and keys": separate(
        "aten.rms_norm.default",
        lambda n, q, k, v: sdpa(n.qn(q), n.kn(k), v),
        {"qn.weight": ([8, 8], None), "kn.weight": ([9, 9], None)},
        shared=("qn", "kn"),
        parts=lambda: {"qn": nn.RMSNorm(2), "kn": nn.RMSNorm(2)},
    ),
}


def fused(cut, op, rows):
    """One layer makes queries, keys and values."""

    def run(net, x):
        q, k, v = cut(net.q(net.a(x)))
        return net.o(join(sdpa(q, k, v))).mean(1)

    return OpCase(
        op,
        lambda: Net(run, a=nn.Linear(4, 5), q=nn.Linear(5, 18, bias=False), o=nn.Linear(6, 4)),
        TOKENS,
        {"a": 5, "q": 3, "o": 4},
        {"a.weight": (STREAM, [R] * 4), "q.weight": (rows, STREAM), "o.weight": (span(8, 4), HEADS), "features": (span(8, 4), None)},
    )


def each_its_own(run, op, parts, groups, labels, **more):
    return OpCase(op, lambda: Net(run, **parts()), TOKENS, groups, labels, **more)


def multihead(net, x):
    h = net.a(x)
    return net.b(h + net.m(h, h, h, need_weights=False)[0]).mean(1)


def multihead_weights(net, x):
    h = net.a(x).transpose(0, 1)
    return net.b((h + net.m(h, h, h)[0]).transpose(0, 1)).mean(1)


def multihead_parts(batch_first):
    return lambda: {"a": nn.Linear(4, 6), "m": nn.MultiheadAttention(6, 3, batch_first=batch_first, dropout=0.1), "b": nn.Linear(6, 2)}


MULTIHEAD = (
    {"a": 6, "m": 3, "b": 2},
    {
        "a.weight": (span(0, 6), [R] * 4),
        "m.in_proj_weight": (each([6, 7, 8], 2) * 3, span(0, 6)),
        "m.in_proj_bias": (each([6, 7, 8], 2) * 3, None),
        "m.out_proj.weight": (span(0, 6), each([6, 7, 8], 2)),
        "b.weight": ([9, 10], span(0, 6)),
    },
)


def einsum(equation, *shape):
    return Weight(lambda w, x: torch.einsum(equation, x, w), *shape)


def by_einsums(net, x):
    h = net.a(x)
    weights = torch.einsum("bqhk,bshk->bhqs", net.q(h), net.k(h)).softmax(-1)
    return net.o(torch.einsum("bhqs,bshk->bqhk", weights, net.v(h))).mean(1)


def with_class_token(net, x):
    h = torch.cat([net.cls.expand(x.shape[0], -1, -1), net.a(x)], 1) + net.pos
    return net.b(torch.tanh(h).mean(1))


def asked(net, x):
    """A learned query for each head pools the tokens."""
    h = net.a(x)
    y = sdpa(net.query.expand(x.shape[0], -1, -1, -1), split(net.k(h)), split(net.v(h)))
    return net.o(y.transpose(1, 2).flatten(1))


OTHER = {
    "queries, keys and values together": fused(
        lambda y: y.reshape(y.shape[0], y.shape[1], 3, 3, 2).permute(2, 0, 3, 1, 4).unbind(0), "aten.unbind.int", HEADS * 3
    ),
    "queries, keys and values in chunks": fused(lambda y: [split(part) for part in y.chunk(3, -1)], "aten.chunk.default", HEADS * 3),
    "queries, keys and values head by head": fused(
        lambda y: y.view(y.shape[0], y.shape[1], 3, 6).transpose(1, 2).split(2, -1), "aten.split.Tensor", each([5, 6, 7], 6)
    ),
    "nn.MultiheadAttention": each_its_own(
        multihead, "aten.scaled_dot_product_attention.default", multihead_parts(batch_first=True), *MULTIHEAD
    ),
    "nn.MultiheadAttention with weights, tokens first": each_its_own(
        multihead_weights, "aten.bmm.default", multihead_parts(batch_first=False), *MULTIHEAD
    ),
    "projections by einsum": each_its_own(
        by_einsums,
        "aten.einsum.default",
        lambda: {
            "a": nn.Linear(4, 5),
            **{name: einsum("btd,dhk->bthk", 5, 3, 2) for name in "qkv"},
            "o": einsum("bthk,hkd->btd", 3, 2, 4),
        },
        {"a": 5, "q": 3, "o": 4},
        {
            "a.weight": (STREAM, [R] * 4),
            **{f"{name}.weight": ([5, 6, 7], STREAM) for name in "qkv"},
            "o.weight": (span(8, 4), [5, 6, 7]),
            "features": (span(8, 4), None),
        },
        dims={**{f"{name}.weight": (1, 0) for name in "qkv"}, "o.weight": (2, 0)},
    ),
    "a class token": each_its_own(
        with_class_token,
        "aten.cat.default",
        lambda: {"a": nn.Linear(4, 3), "cls": parameter(1, 1, 3), "pos": parameter(1, 6, 3), "b": nn.Linear(3, 2)},
        {"a": 3, "b": 2},
        {"a.weight": ([0, 1, 2], [R] * 4), "cls": ([0, 1, 2], None), "pos": ([0, 1, 2], None), "b.weight": ([3, 4], [0, 1, 2])},
        dims={"cls": (2, None), "pos": (2, None)},
    ),
    "a learned query": each_its_own(
        asked,
        "aten.scaled_dot_product_attention.default",
        lambda: {"a": nn.Linear(4, 5), "query": parameter(3, 1, 2), "k": nn.Linear(5, 6), "v": nn.Linear(5, 6), "o": nn.Linear(6, 4)},
        {"a": 5, "k": 3, "o": 4},
        {
            "a.weight": (STREAM, [R] * 4),
            "query": ([5, 6, 7], None),
            "k.weight": (HEADS, STREAM),
            "v.weight": (HEADS, STREAM),
            "o.weight": (span(8, 4), HEADS),
            "features": (span(8, 4), None),
        },
    ),
    "complex numbers of channels": each_its_own(
        lambda n, x: n.b(torch.view_as_real(torch.view_as_complex(n.a(x).unflatten(2, (3, 2))) * n.turn).flatten(2)).mean(1),
        "aten.view_as_real.default",
        lambda: {"a": nn.Linear(4, 6), "turn": torch.polar(torch.ones(5, 1), angles()), "b": nn.Linear(6, 2)},
        {"a": 3, "b": 2},
        {"a.weight": (each([0, 1, 2], 2), [R] * 4), "b.weight": ([3, 4], each([0, 1, 2], 2))},
    ),
    "products of all tokens": each_its_own(
        lambda n, x: n.b((h := n.a(x)) @ h.transpose(1, 2)).mean(1),
        "aten.matmul.default",
        lambda: {"a": nn.Linear(4, 3), "b": nn.Linear(5, 2)},
        {"a": 1, "b": 2},
        {"a.weight": ([0] * 3, [R] * 4), "b.weight": ([1, 2], [0] * 5)},
        merged=True,
    ),
}

OPS = {**FORMS, **OTHER}
