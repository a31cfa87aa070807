"""Layers: operations that make new units."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from op_case import CONV, POSITIONS, TOKENS, Net, OpCase, R, Weight, each, maps, parameter, span, tokens, vectors
from torch import nn
from torch.nn.utils import parametrizations

TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MIDDLE = {"a": 3, "m": 5, "b": 2}
CHAIN = {"a.weight": ([0, 1, 2], [R] * 4), "m.weight": (span(3, 5), [0, 1, 2]), "b.weight": ([8, 9], span(3, 5))}


def image_chain(net, x):
    return net.b(net.m(torch.relu(net.a(x)))).flatten(2).mean(2)


def token_chain(net, x):
    return net.b(net.m(torch.relu(net.a(x)))).flatten(1, -2).mean(1)


def convolution(n_dims, op, **settings):
    """Three channels, then five."""
    conv = CONV[n_dims]
    return OpCase(
        op,
        lambda: Net(image_chain, a=conv(2, 3, 1), m=conv(3, 5, 3, **settings), b=conv(5, 2, 1)),
        (2, *POSITIONS[n_dims]),
        MIDDLE,
        {**CHAIN, "a.weight": ([0, 1, 2], [R, R]), "m.bias": (span(3, 5), None)},
    )


def transposed(n_dims):
    """The weight of a transposed convolution is (in, out, ...)."""
    conv = CONV[n_dims]
    return OpCase(
        "aten.conv_transpose1d.default" if n_dims == 1 else f"aten.conv_transpose{n_dims}d.input",
        lambda: Net(image_chain, a=conv(2, 3, 1), m=TRANSPOSED[n_dims](3, 5, 2, stride=2), b=conv(5, 2, 1)),
        (2, *POSITIONS[n_dims]),
        MIDDLE,
        {**CHAIN, "a.weight": ([0, 1, 2], [R, R]), "m.bias": (span(3, 5), None)},
        dims={"m.weight": (1, 0)},
    )


def grouped(op, n, m, rows, made, weight=None, more=None):
    """A grouped convolution `m` after a convolution of n channels, whose units are `rows`; its own channels are `made`."""
    n_units, n_made = max(rows) + 1, len(made)
    return OpCase(
        op,
        lambda: Net(image_chain, a=nn.Conv2d(2, n, 1), m=m(), b=nn.Conv2d(n_made, 2, 1)),
        (2, 4, 6),
        {"a": n_units, "b": 2},
        {
            "a.weight": (rows, [R, R]),
            "m.weight": (weight or made, None),
            "m.bias": (made, None),
            **(more or {}),
            "b.weight": ([n_units, n_units + 1], made),
        },
    )


def parameter_layer(op, m, chain=token_chain, shape=TOKENS, dims=(1, 0), b=None):
    """A parameter of its own between two linear layers: three units in, five out."""
    a, b = (nn.Linear(4, 3), nn.Linear(5, 2)) if b is None else (nn.Conv1d(4, 3, 1), b)
    return OpCase(op, lambda: Net(chain, a=a, m=m(), b=b), shape, MIDDLE, CHAIN, dims={"m.weight": dims})


def tied_rows(net, x):
    """Columns of the second layer in another order: a label in the wrong place is seen."""
    return net.b(net.m(net.a(x).flip(1)))


CONVOLUTIONS = {
    **{f"conv{d}d": convolution(d, f"aten.conv{d}d.default", stride=2, padding=1, dilation=1) for d in (1, 2, 3)},
    **{f"conv{d}d same padding": convolution(d, f"aten.conv{d}d.padding", padding="same") for d in (1, 2, 3)},
    **{f"transposed conv{d}d": transposed(d) for d in (1, 2, 3)},
    "transposed conv2d, output padding": OpCase(
        "aten.conv_transpose2d.input",
        lambda: Net(
            image_chain, a=nn.Conv2d(2, 3, 1), m=nn.ConvTranspose2d(3, 5, 3, 2, 1, output_padding=1, bias=False), b=nn.Conv2d(5, 2, 1)
        ),
        (2, 4, 6),
        MIDDLE,
        {**CHAIN, "a.weight": ([0, 1, 2], [R, R])},
        dims={"m.weight": (1, 0)},
    ),
    "transposed conv2d in two groups": grouped(
        "aten.conv_transpose2d.input",
        4,
        lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
        [0, 0, 1, 1],
        [0, 0, 0, 1, 1, 1],
        weight=[0, 0, 1, 1],  # its rows are input channels
    ),
    "conv2d in two groups": grouped("aten.conv2d.default", 4, lambda: nn.Conv2d(4, 6, 3, groups=2), [0, 0, 1, 1], [0, 0, 0, 1, 1, 1]),
    "conv2d in three groups": grouped(
        "aten.conv2d.default", 6, lambda: nn.Conv2d(6, 6, 3, padding=1, groups=3), each([0, 1, 2], 2), each([0, 1, 2], 2)
    ),
    "depthwise conv2d": grouped("aten.conv2d.default", 3, lambda: nn.Conv2d(3, 3, 3, groups=3), [0, 1, 2], [0, 1, 2]),
    "depthwise conv2d, same padding": grouped(
        "aten.conv2d.padding", 3, lambda: nn.Conv2d(3, 3, 3, padding="same", groups=3), [0, 1, 2], [0, 1, 2]
    ),
    "depthwise conv2d, channel multiplier": grouped(
        "aten.conv2d.default", 3, lambda: nn.Conv2d(3, 6, 3, groups=3), [0, 1, 2], [0, 0, 1, 1, 2, 2]
    ),
    "depthwise conv1d on tokens": tokens(
        "aten.conv1d.default",
        lambda n, h: n.m(h.transpose(1, 2)).transpose(1, 2),
        parts=lambda: {"m": nn.Conv1d(3, 3, 3, padding=1, groups=3)},
        labels={"m.weight": ([0, 1, 2], None)},
    ),
    # Groups {0, 1, 2}, {3, 4, 5} and then {0, 1}, {2, 3}, {4, 5}: a chain.
    "convolutions in two, then in three groups": OpCase(
        "aten.conv2d.default",
        lambda: Net(
            lambda n, x: n.b(n.d(n.c(n.a(x)))).flatten(2).mean(2),
            a=nn.Conv2d(2, 6, 1),
            c=nn.Conv2d(6, 6, 1, groups=2),
            d=nn.Conv2d(6, 6, 1, groups=3),
            b=nn.Conv2d(6, 2, 1),
        ),
        (2, 4, 6),
        {"a": 1, "b": 2},
        {"a.weight": ([0] * 6, [R, R]), "c.weight": ([0] * 6, None), "d.weight": ([0] * 6, None), "b.weight": ([1, 2], [0] * 6)},
    ),
    "depthwise conv2d on raw input": OpCase(
        "aten.conv2d.default",
        lambda: Net(lambda n, x: n.b(n.m(x)).flatten(2).mean(2), m=nn.Conv2d(3, 6, 3, groups=3), b=nn.Conv2d(6, 2, 1)),
        (3, 4, 6),
        {"m": 3, "b": 2},
        {"m.bias": ([0, 0, 1, 1, 2, 2], None), "b.weight": ([3, 4], [0, 0, 1, 1, 2, 2])},
    ),
}

LINEAR = {
    "linear": vectors("aten.linear.default", lambda h: h.flip(1), [2, 1, 0]),
    "linear on tokens": parameter_layer("aten.linear.default", lambda: nn.Linear(3, 5), dims=(0, 1)),
    "linear on a map, channels last": parameter_layer("aten.linear.default", lambda: nn.Linear(3, 5), shape=(2, 3, 4), dims=(0, 1)),
    "linear on vectors": OpCase(
        "aten.linear.default",
        lambda: Net(tied_rows, a=nn.Linear(4, 3), m=nn.Linear(3, 5, bias=False), b=nn.Linear(5, 2)),
        (4,),
        MIDDLE,
        {**CHAIN, "m.weight": (span(3, 5), [2, 1, 0])},
    ),
    "F.linear with a parameter": parameter_layer("aten.linear.default", lambda: Weight(lambda w, x: F.linear(x, w), 5, 3), dims=(0, 1)),
    "x @ W": parameter_layer("aten.matmul.default", lambda: Weight(lambda w, x: x @ w, 3, 5)),
    "x @ W on vectors": parameter_layer(
        "aten.matmul.default", lambda: Weight(lambda w, x: x @ w, 3, 5), lambda n, x: n.b(n.m(torch.relu(n.a(x)))), (4,)
    ),
    "x @ W.T": parameter_layer("aten.matmul.default", lambda: Weight(lambda w, x: x @ w.T, 5, 3), dims=(0, 1)),
    "torch.mm": parameter_layer(
        "aten.mm.default", lambda: Weight(lambda w, x: torch.mm(x, w), 3, 5), lambda n, x: n.b(n.m(torch.relu(n.a(x)))), (4,)
    ),
    "W @ x along channels": parameter_layer(
        "aten.matmul.default", lambda: Weight(torch.matmul, 5, 3), image_chain, (4, 6), (0, 1), nn.Conv1d(5, 2, 1)
    ),
    "einsum along channels": parameter_layer("aten.einsum.default", lambda: Weight(lambda w, x: torch.einsum("btd,do->bto", x, w), 3, 5)),
    "einsum, parameter first": parameter_layer(
        "aten.einsum.default",
        lambda: Weight(lambda w, x: torch.einsum("oc,bct->bot", w, x), 5, 3),
        image_chain,
        (4, 6),
        (0, 1),
        nn.Conv1d(5, 2, 1),
    ),
    "addmm": OpCase(
        "aten.addmm.default",
        lambda: Net(
            lambda n, x: n.b(torch.addmm(n.s, n.a(x), n.w)), a=nn.Linear(4, 3), w=parameter(3, 5), s=parameter(5), b=nn.Linear(5, 2)
        ),
        (4,),
        {"a": 3, "w": 5, "b": 2},
        {"a.weight": ([0, 1, 2], [R] * 4), "w": (span(3, 5), [0, 1, 2]), "s": (span(3, 5), None), "b.weight": ([8, 9], span(3, 5))},
        dims={"w": (1, 0)},
    ),
}

# Weights that mix positions do the same to every channel.
TOKEN_MIXING = {
    "W @ x along tokens": tokens(
        "aten.matmul.default", lambda n, h: n.m(h), parts=lambda: {"m": Weight(torch.matmul, 2, 5)}, shared=("m",)
    ),
    "linear along tokens": tokens(
        "aten.linear.default", lambda n, h: n.m(h.transpose(1, 2)).transpose(1, 2), parts=lambda: {"m": nn.Linear(5, 2)}, shared=("m",)
    ),
    "conv1d along tokens": tokens("aten.conv1d.default", lambda n, h: n.m(h), parts=lambda: {"m": nn.Conv1d(5, 2, 1)}, shared=("m",)),
    "einsum along tokens": tokens(
        "aten.einsum.default",
        lambda n, h: n.m(h),
        parts=lambda: {"m": Weight(lambda w, x: torch.einsum("btc,st->bsc", x, w), 2, 5)},
        shared=("m",),
    ),
    "x @ W along positions": maps(
        "aten.matmul.default", lambda n, h: n.m(h), parts=lambda: {"m": Weight(lambda w, x: x @ w, 6, 2)}, shared=("m",)
    ),
}


def words(n):
    return torch.randint(0, 7, (n, 5))


EMBEDDINGS = {
    "embedding": OpCase(
        "aten.embedding.default",
        lambda: Net(lambda n, x: n.b(n.e(x).flip(2)).mean(1), e=nn.Embedding(7, 3, padding_idx=0), b=nn.Linear(3, 2)),
        words,
        {"e": 3, "b": 2},
        {"e.weight": ([0, 1, 2], None), "b.weight": ([3, 4], [2, 1, 0])},
        dims={"e.weight": (1, None)},
    ),
    "a parameter of positions": OpCase(
        "aten.add.Tensor",
        lambda: Net(lambda n, x: n.b(n.e(x) + n.p[: x.shape[1]]).mean(1), e=nn.Embedding(7, 3), p=parameter(6, 3), b=nn.Linear(3, 2)),
        words,
        {"e": 3, "b": 2},
        {"e.weight": ([0, 1, 2], None), "p": ([0, 1, 2], None), "b.weight": ([3, 4], [0, 1, 2])},
        dims={"e.weight": (1, None), "p": (1, None)},
    ),
    "an embedding of positions": OpCase(
        "aten.embedding.default",
        lambda: Net(
            lambda n, x: n.b(n.e(x) + n.p(torch.arange(x.shape[1]))).mean(1), e=nn.Embedding(7, 3), p=nn.Embedding(6, 3), b=nn.Linear(3, 2)
        ),
        words,
        {"e": 3, "b": 2},
        {"e.weight": ([0, 1, 2], None), "p.weight": ([0, 1, 2], None), "b.weight": ([3, 4], [0, 1, 2])},
        dims={"e.weight": (1, None), "p.weight": (1, None)},
    ),
    "one-hot words": OpCase(
        "aten.one_hot.default",
        lambda: Net(lambda n, x: n.b(torch.relu(n.a(F.one_hot(x, 7).float()))).mean(1), a=nn.Linear(7, 3), b=nn.Linear(3, 2)),
        words,
        {"a": 3, "b": 2},
        {"a.weight": ([0, 1, 2], [R] * 7), "b.weight": ([3, 4], [0, 1, 2])},
    ),
}
PRELU = {
    "prelu, one slope a channel": maps(
        "aten.prelu.default", lambda n, h: n.p(h), parts=lambda: {"p": nn.PReLU(3)}, labels={"p.weight": ([0, 1, 2], None)}
    ),
    "prelu, one slope": maps("aten.prelu.default", lambda n, h: n.p(h), parts=lambda: {"p": nn.PReLU()}, shared=("p",)),
}


def normed(wrap, layer, shape, chain=token_chain):
    last = nn.Conv1d(5, 2, 1) if layer is nn.Conv1d else nn.Linear(5, 2)
    size = (1,) if layer is nn.Conv1d else ()
    return OpCase(
        "aten._weight_norm.default",
        lambda: Net(chain, a=layer(4, 3, *size), m=wrap(layer(3, 5, *size)), b=last),
        shape,
        MIDDLE,
        CHAIN,
    )


WEIGHT_NORM = {
    "weight_norm": normed(parametrizations.weight_norm, nn.Linear, TOKENS),
    "weight_norm of a convolution": normed(parametrizations.weight_norm, nn.Conv1d, (4, 6), image_chain),
    "weight_norm, old style": normed(nn.utils.weight_norm, nn.Linear, TOKENS),
    "weight_norm of a convolution, old style": normed(nn.utils.weight_norm, nn.Conv1d, (4, 6), image_chain),
}

OPS = {**CONVOLUTIONS, **LINEAR, **TOKEN_MIXING, **EMBEDDINGS, **PRELU, **WEIGHT_NORM}
