"""Operations over positions: sums, pools, softmax, upsampling, padding. Over channels they merge units."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from op_case import TOKENS, R, each, maps, tokens, vectors
from torch import nn

# Over tokens, dimension 1 of (B, T, C).
OVER_TOKENS = {
    "mean": ("aten.mean.dim", lambda h: h.mean(1)),
    "mean of a type": ("aten.mean.dim", lambda h: h.mean(1, dtype=torch.float32)),
    "sum": ("aten.sum.dim_IntList", lambda h: h.sum(1)),
    "sum of a counted dimension": ("aten.sum.dim_IntList", lambda h: h.sum(-2)),
    "amax": ("aten.amax.default", lambda h: h.amax(1)),
    "amin": ("aten.amin.default", lambda h: h.amin(1)),
    "max": ("aten.max.dim", lambda h: h.max(1)[0]),
    "min": ("aten.min.dim", lambda h: h.min(dim=1).values),
    "median": ("aten.median.dim", lambda h: h.median(1).values),
    "std": ("aten.std.correction", lambda h: h.std(1, correction=0)),
    "var": ("aten.var.correction", lambda h: h.var(1, correction=1)),
    "norm": ("aten.linalg_vector_norm.default", lambda h: h.norm(dim=1)),
    "norm of absolute values": ("aten.linalg_vector_norm.default", lambda h: torch.linalg.vector_norm(h, 1, dim=1)),
    "std of a sample": ("aten.std.dim", lambda h: h.std(1)),
    "logsumexp": ("aten.logsumexp.default", lambda h: h.logsumexp(1)),
    "prod": ("aten.prod.dim_int", lambda h: h.prod(1)),
}
# Tokens stay.
ALONG_TOKENS = {
    "softmax over tokens": ("aten.softmax.int", lambda h: h.softmax(1)),
    "log_softmax over tokens": ("aten.log_softmax.int", lambda h: F.log_softmax(h, dim=1)),
    "cumsum over tokens": ("aten.cumsum.default", lambda h: h.cumsum(1)),
    "cumprod over tokens": ("aten.cumprod.default", lambda h: h.cumprod(dim=1)),
    "mean over tokens, kept": ("aten.mean.dim", lambda h: h - h.mean(1, keepdim=True)),
    "amax over tokens, kept": ("aten.amax.default", lambda h: h - h.amax(dim=1, keepdim=True)),
    "normalize over tokens": ("aten.clamp_min.default", lambda h: F.normalize(h, dim=1)),
}
# Over channels, the last dimension of (B, T, C): one unit. The next layer reads the tokens.
OVER_CHANNELS = {
    "mean over channels": ("aten.mean.dim", lambda h: h.mean(-1)),
    "sum over channels": ("aten.sum.dim_IntList", lambda h: h.sum(2)),
    "amax over channels": ("aten.amax.default", lambda h: h.amax(-1)),
    "max over channels": ("aten.max.dim", lambda h: h.max(-1).values),
    "std over channels": ("aten.std.dim", lambda h: h.std(-1)),
    "norm over channels": ("aten.linalg_vector_norm.default", lambda h: h.norm(dim=-1)),
    "logsumexp over channels": ("aten.logsumexp.default", lambda h: h.logsumexp(-1)),
    "mean over tokens and channels": ("aten.mean.dim", lambda h: h.mean((1, 2), keepdim=True).expand(-1, 5, 1).flatten(1)),
}
ALONG_CHANNELS = {
    "softmax over channels": ("aten.softmax.int", lambda h: h.softmax(-1)),
    "log_softmax over channels": ("aten.log_softmax.int", lambda h: F.log_softmax(h, -1)),
    "softmax2d": ("aten.softmax.int", lambda h: torch.softmax(h, 2)),
    "cumsum over channels": ("aten.cumsum.default", lambda h: h.cumsum(2)),
    "normalize over channels": ("aten.clamp_min.default", lambda h: F.normalize(h, dim=-1)),
    "centred over channels": ("aten.mean.dim", lambda h: h - h.mean(-1, keepdim=True)),
    "pool over channels": ("aten.avg_pool1d.default", lambda h: F.avg_pool1d(h, 3, 1, 1)),
}


def pools(d):
    """Pools over d dimensions of positions."""
    name = f"pool{d}d"
    f = {key: getattr(F, key + name) for key in ("max_", "avg_", "adaptive_avg_", "adaptive_max_")}
    return {
        f"max_{name}": maps(f"aten.max_{name}.default", lambda h: f["max_"](h, 3, 2, 1), n_dims=d),
        f"avg_{name}": maps(f"aten.avg_{name}.default", lambda h: f["avg_"](h, 2, ceil_mode=True), n_dims=d),
        f"adaptive_avg_{name}": maps(f"aten.adaptive_avg_{name}.default", lambda h: f["adaptive_avg_"](h, 2), n_dims=d),
        f"adaptive_max_{name}": maps(f"aten.adaptive_max_{name}.default", lambda h: f["adaptive_max_"](h, 2), n_dims=d),
    }


POOLS = {
    **pools(1),
    **pools(2),
    **pools(3),
    "max_pool2d, its indices unused": maps("aten.max_pool2d_with_indices.default", lambda h: F.max_pool2d(h, 2, return_indices=True)[0]),
    "max_pool2d, no square": maps("aten.max_pool2d.default", lambda h: F.max_pool2d(h, kernel_size=(2, 3), stride=(2, 1))),
    "lp_pool2d": maps("aten.avg_pool2d.default", lambda h: F.lp_pool2d(h.abs() + 0.1, 2.0, 2)),
    "global average pool": maps("aten.adaptive_avg_pool2d.default", lambda h: F.adaptive_avg_pool2d(h, 1)),
    "mean over positions": maps("aten.mean.dim", lambda h: h.mean((2, 3), keepdim=True)),
    "mean over rows": maps("aten.mean.dim", lambda h: h.mean(-1, True)),
    "max over columns of pixels": maps("aten.max.dim", lambda h: h.max(2, keepdim=True)[0]),
    "softmax over pixels": maps("aten.softmax.int", lambda h: h.flatten(2).softmax(-1).unflatten(2, (4, 6))),
}
UPSAMPLING = {
    "upsample nearest, scale": maps("aten.upsample_nearest2d.vec", nn.Upsample(scale_factor=2)),
    "upsample nearest, size": maps("aten.upsample_nearest2d.vec", lambda h: F.interpolate(h, size=(7, 9))),
    "upsample nearest 1d": maps("aten.upsample_nearest1d.vec", lambda h: F.interpolate(h, scale_factor=2), n_dims=1),
    "upsample nearest 3d": maps("aten.upsample_nearest3d.vec", lambda h: F.interpolate(h, scale_factor=2), n_dims=3),
    "upsample linear 1d": maps("aten.upsample_linear1d.vec", lambda h: F.interpolate(h, scale_factor=2, mode="linear"), n_dims=1),
    "upsample bilinear, scale": maps("aten.upsample_bilinear2d.vec", lambda h: F.interpolate(h, scale_factor=2, mode="bilinear")),
    "upsample bilinear, size": maps(
        "aten.upsample_bilinear2d.vec", lambda h: F.interpolate(h, size=(7, 9), mode="bilinear", align_corners=True)
    ),
    "upsample bicubic": maps("aten.upsample_bicubic2d.vec", lambda h: F.interpolate(h, scale_factor=2, mode="bicubic")),
    "upsample trilinear": maps("aten.upsample_trilinear3d.vec", lambda h: F.interpolate(h, scale_factor=2, mode="trilinear"), n_dims=3),
    "upsample to another map": maps(
        "aten.upsample_nearest2d.vec", lambda h: h + F.interpolate(F.max_pool2d(h, 2), size=h.shape[2:]).roll(1, 2)
    ),
}
PADDING = {
    "pad positions": maps("aten.pad.default", lambda h: F.pad(h, (1, 2, 0, 1))),
    "pad positions with a number": maps("aten.pad.default", lambda h: F.pad(h, (1, 2), value=0.5)),
    "pad channels": vectors("aten.pad.default", lambda h: F.pad(h, (1, 2)), [R, 0, 1, 2, R, R]),
    "pad channels of maps": maps("aten.pad.default", lambda h: F.pad(h, (0, 0, 0, 0, 2, 1)), [R, R, 0, 1, 2, R]),
    "pad channels with a number": tokens("aten.pad.default", lambda h: F.pad(h, (0, 1), value=0.5), [0, 1, 2, R]),
    "pad tokens": tokens("aten.pad.default", lambda h: F.pad(h, (0, 0, 1, 0))[:, :-1]),
    "crop by negative padding": maps("aten.pad.default", lambda h: F.pad(h, (-1, 0, 0, -1))),
    "reflection pad": maps("aten.pad.default", nn.ReflectionPad2d(1)),
    "replication pad": maps("aten.pad.default", nn.ReplicationPad2d((1, 2, 0, 1))),
    "circular pad": maps("aten.pad.default", nn.CircularPad2d(1)),
    "zero pad module": maps("aten.pad.default", nn.ZeroPad2d(2)),
    "causal convolution": maps(
        "aten.conv1d.default",
        lambda n, h: n.m(F.pad(h, (4, 0))),
        n_dims=1,
        parts=lambda: {"m": nn.Conv1d(3, 3, 3, dilation=2, groups=3)},
        labels={"m.weight": ([0, 1, 2], None)},
    ),
}

OPS = {
    **{f"{name} over tokens": vectors(op, f, shape=TOKENS) for name, (op, f) in OVER_TOKENS.items()},
    **{name: tokens(op, f) for name, (op, f) in ALONG_TOKENS.items()},
    **{name: vectors(op, f, [0] * 5, rows=[0] * 3, shape=TOKENS, merged=True) for name, (op, f) in OVER_CHANNELS.items()},
    **{name: tokens(op, f, [0] * 3, rows=[0] * 3, merged=True) for name, (op, f) in ALONG_CHANNELS.items()},
    "softmax over channels of maps": maps("aten.softmax.int", nn.Softmax2d(), [0] * 3, rows=[0] * 3, merged=True),
    # Each of two pairs of channels is a maximum: a maxout unit.
    "maxout": vectors("aten.amax.default", lambda h: h.unflatten(1, (3, 2)).amax(2), [0, 1, 2], n=6, rows=each([0, 1, 2], 2), merged=None),
    "maxout, other order": vectors(
        "aten.amax.default", lambda h: h.view(h.shape[0], 2, 3).amax(1), [0, 1, 2], n=6, rows=[0, 1, 2] * 2, merged=None
    ),
    **POOLS,
    **UPSAMPLING,
    **PADDING,
}
