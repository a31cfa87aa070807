"""Norms: what they tie, whose their scales are, and over which units they are taken."""

from __future__ import annotations

import torch
from op_case import TOKENS, Net, OpCase, R, maps, tokens, vectors
from torch import nn

OWN = {"n.weight": ([0, 1, 2], None), "n.bias": ([0, 1, 2], None)}
STATISTICS = {"n.running_mean": ([0, 1, 2], None), "n.running_var": ([0, 1, 2], None)}


def through(net, h):
    return net.n(h)


def channels_last(net, h):
    return net.n(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def module(make):
    return lambda: {"n": make()}


def raw_vectors(op, norm, labels, read=(0, 1, 2, 3)):
    """A norm of raw tokens, then a layer. Raw input is everyone's, so that the statistics are those of all of it."""
    n = max(read) + 1
    return OpCase(
        op,
        lambda: Net(lambda net, x: net.b(net.n(x)).mean(1), n=norm(), b=nn.Linear(4, 2)),
        TOKENS,
        {"n": n, "b": 2} if n else {"b": 2},
        {**labels, "b.weight": ([n, n + 1], list(read))},
    )


def raw_maps(op, norm):
    """A norm of a raw image, then a convolution."""
    return OpCase(
        op,
        lambda: Net(lambda net, x: net.b(net.n(x)).mean((2, 3)), n=norm(), b=nn.Conv2d(3, 2, 1)),
        (3, 4, 6),
        {"n": 3, "b": 2},
        {**OWN, "b.weight": ([3, 4], [0, 1, 2])},
    )


class RmsByHand(nn.RMSNorm):
    """As in Llama."""

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class RmsByRoot(nn.RMSNorm):
    def forward(self, x):
        return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + self.eps) * self.weight


class LayerNormByHand(nn.LayerNorm):
    def forward(self, x):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / torch.sqrt(variance + self.eps) * self.weight + self.bias


class ChannelsFirst(nn.LayerNorm):
    """As in ConvNeXt: over the channels of each pixel."""

    channels_first = True

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


BATCH = {
    "batch_norm of vectors": vectors("aten.batch_norm.default", through, parts=module(lambda: nn.BatchNorm1d(3)), labels=OWN | STATISTICS),
    "batch_norm without affine": vectors(
        "aten.batch_norm.default", through, parts=module(lambda: nn.BatchNorm1d(3, affine=False)), labels=STATISTICS
    ),
    "batch_norm1d": maps(
        "aten.batch_norm.default", through, n_dims=1, parts=module(lambda: nn.BatchNorm1d(3, momentum=0.3)), labels=OWN | STATISTICS
    ),
    "batch_norm2d": maps("aten.batch_norm.default", through, parts=module(lambda: nn.BatchNorm2d(3)), labels=OWN | STATISTICS),
    "batch_norm3d": maps("aten.batch_norm.default", through, n_dims=3, parts=module(lambda: nn.BatchNorm3d(3)), labels=OWN | STATISTICS),
    "batch_norm of reversed channels": maps(
        "aten.batch_norm.default",
        lambda net, h: net.n(h.flip(1)),
        [2, 1, 0],
        parts=module(lambda: nn.BatchNorm2d(3)),
        labels={name: ([2, 1, 0], None) for name in OWN | STATISTICS},
    ),
    "batch_norm of tokens": tokens(
        "aten.batch_norm.default",
        lambda net, h: net.n(h.transpose(1, 2)).transpose(1, 2),
        parts=module(lambda: nn.BatchNorm1d(3)),
        labels=OWN | STATISTICS,
    ),
    "batch_norm of raw input": raw_maps("aten.batch_norm.default", lambda: nn.BatchNorm2d(3)),
}


def beside(net, x):
    return net.b(net.n(torch.cat([net.a(x), net.c(x)], 1)))


LAYER = {
    "layer_norm": tokens("aten.layer_norm.default", through, parts=module(lambda: nn.LayerNorm(3)), labels=OWN, norm=-1),
    "layer_norm of vectors": vectors("aten.layer_norm.default", through, parts=module(lambda: nn.LayerNorm(3)), labels=OWN, norm=-1),
    "layer_norm without bias": tokens(
        "aten.layer_norm.default", through, parts=module(lambda: nn.LayerNorm(3, bias=False)), labels={"n.weight": OWN["n.weight"]}, norm=-1
    ),
    "layer_norm without affine": tokens(
        "aten.layer_norm.default", through, parts=module(lambda: nn.LayerNorm(3, elementwise_affine=False)), norm=-1
    ),
    "layer_norm of maps": maps("aten.layer_norm.default", through, parts=module(lambda: nn.LayerNorm((3, 4, 6))), labels=OWN, norm=1),
    "layer_norm of maps, channels last": maps(
        "aten.layer_norm.default", channels_last, parts=module(lambda: nn.LayerNorm(3)), labels=OWN, norm=-1
    ),
    # Over positions: a channel has statistics of its own, and all of them one scale for each position.
    "layer_norm over positions": OpCase(
        "aten.layer_norm.default",
        lambda: Net(
            lambda net, x: net.b(net.n(net.a(x).transpose(1, 2)).transpose(1, 2)).mean(1),
            a=nn.Linear(4, 3),
            n=nn.LayerNorm(5),
            b=nn.Linear(3, 2),
        ),
        TOKENS,
        {"a": 3, "n": 1, "b": 2},
        {
            "a.weight": ([0, 1, 2], [R] * 4),
            "n.weight": ([3] * 5, None),
            "n.bias": ([3] * 5, None),
            "b.weight": ([4, 5], [0, 1, 2]),
        },
        shared=("n",),
    ),
    # The two layers stay two groups: a norm ties nothing.
    "layer_norm of two groups": OpCase(
        "aten.layer_norm.default",
        lambda: Net(beside, a=nn.Linear(4, 3), c=nn.Linear(4, 2), n=nn.LayerNorm(5), b=nn.Linear(5, 2)),
        (4,),
        {"a": 3, "c": 2, "b": 2},
        {
            "a.weight": ([0, 1, 2], [R] * 4),
            "c.weight": ([3, 4], [R] * 4),
            "n.weight": ([0, 1, 2, 3, 4], None),
            "n.bias": ([0, 1, 2, 3, 4], None),
            "b.weight": ([5, 6], [0, 1, 2, 3, 4]),
        },
        norms={"n": (-1, [0, 1, 2, 3, 4])},
    ),
    "layer_norm of raw input": raw_vectors(
        "aten.layer_norm.default",
        lambda: nn.LayerNorm(4),
        {"n.weight": ([0, 1, 2, 3], None), "n.bias": ([0, 1, 2, 3], None)},
    ),
    "layer_norm of raw input, without affine": raw_vectors(
        "aten.layer_norm.default", lambda: nn.LayerNorm(4, elementwise_affine=False), {}, [R] * 4
    ),
    "layer_norm of raw maps": raw_maps("aten.layer_norm.default", lambda: nn.LayerNorm((3, 4, 6))),
}
RMS = {
    "rms_norm": tokens(
        "aten.rms_norm.default", through, parts=module(lambda: nn.RMSNorm(3)), labels={"n.weight": OWN["n.weight"]}, norm=-1
    ),
    "rms_norm with an epsilon": tokens(
        "aten.rms_norm.default", through, parts=module(lambda: nn.RMSNorm(3, 0.3)), labels={"n.weight": OWN["n.weight"]}, norm=-1
    ),
    "rms_norm without affine": tokens(
        "aten.rms_norm.default", through, parts=module(lambda: nn.RMSNorm(3, elementwise_affine=False)), norm=-1
    ),
    "rms_norm of raw input": raw_vectors("aten.rms_norm.default", lambda: nn.RMSNorm(4), {"n.weight": ([0, 1, 2, 3], None)}),
}
BY_HAND = {
    f"{kind.__name__}": tokens(
        "aten.mean.dim", through, parts=module(lambda kind=kind: kind(3, eps=0.1)), labels={key: OWN[key] for key in keys}, norm=-1
    )
    for kind, keys in ((RmsByHand, ["n.weight"]), (RmsByRoot, ["n.weight"]), (LayerNormByHand, OWN))
} | {
    "layer norm by hand, channels first": maps(
        "aten.pow.Tensor_Scalar", through, parts=module(lambda: ChannelsFirst(3, eps=0.1)), labels=OWN, norm=1
    ),
    # Over tokens it is no norm over units.
    "rms over tokens by hand": tokens("aten.rsqrt.default", lambda h: h * torch.rsqrt(h.pow(2).mean(1, keepdim=True) + 0.1)),
    # These look like norms, but what they divide by is of something else.
    "divided by the rms of a half": tokens(
        "aten.rsqrt.default",
        lambda h: h * torch.rsqrt(h[..., :2].pow(2).mean(-1, keepdim=True) + 0.1),
        [0] * 3,
        rows=[0] * 3,
        merged=True,
    ),
    "divided by the rms of the shifted": tokens(
        "aten.rsqrt.default",
        lambda h: (h + 1) * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 0.1),
        [0] * 3,
        rows=[0] * 3,
        merged=True,
    ),
    "divided by a deviation": tokens(
        "aten.std.correction",
        lambda h: (h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True, correction=1) + 0.1),
        [0] * 3,
        rows=[0] * 3,
        merged=True,
    ),
}
HALVES = ([0, 0, 0, 1, 1, 1], None)
GROUP = {
    "group_norm, one group": maps("aten.group_norm.default", through, parts=module(lambda: nn.GroupNorm(1, 3)), labels=OWN, norm=1),
    "group_norm, one group, 1d": maps(
        "aten.group_norm.default", through, n_dims=1, parts=module(lambda: nn.GroupNorm(1, 3, affine=False)), norm=1
    ),
    "group_norm, two groups": maps(
        "aten.group_norm.default",
        through,
        HALVES[0],
        n=6,
        rows=HALVES[0],
        parts=module(lambda: nn.GroupNorm(2, 6)),
        labels={"n.weight": HALVES, "n.bias": HALVES},
    ),
    "group_norm, two groups, without affine": maps(
        "aten.group_norm.default", through, HALVES[0], n=6, rows=HALVES[0], parts=module(lambda: nn.GroupNorm(2, 6, affine=False))
    ),
    "group_norm, every channel alone": maps("aten.group_norm.default", through, parts=module(lambda: nn.GroupNorm(3, 3)), labels=OWN),
    "group_norm of raw input, one group": raw_maps("aten.group_norm.default", lambda: nn.GroupNorm(1, 3)),
    "group_norm of raw input, every channel alone": raw_maps("aten.group_norm.default", lambda: nn.GroupNorm(3, 3)),
    "instance_norm": maps("aten.instance_norm.default", through, parts=module(lambda: nn.InstanceNorm2d(3))),
    "instance_norm with affine": maps(
        "aten.instance_norm.default", through, parts=module(lambda: nn.InstanceNorm2d(3, affine=True)), labels=OWN
    ),
    "instance_norm1d with affine": maps(
        "aten.instance_norm.default", through, n_dims=1, parts=module(lambda: nn.InstanceNorm1d(3, affine=True)), labels=OWN
    ),
    "instance_norm of raw input": raw_maps("aten.instance_norm.default", lambda: nn.InstanceNorm2d(3, affine=True)),
}

OPS = {**BATCH, **LAYER, **RMS, **BY_HAND, **GROUP}
