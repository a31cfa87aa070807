"""Operations that meet position by position."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from op_case import TOKENS, Net, OpCase, R, Weight, maps, parameter, span, tokens, vectors
from torch import nn

ACTIVATIONS = {
    "relu": torch.relu,
    "relu6": lambda h: F.relu6(9 * h),
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "elu": lambda h: F.elu(h, alpha=0.7),
    "celu": lambda h: F.celu(h, alpha=0.7),
    "selu": F.selu,
    "leaky_relu": lambda h: F.leaky_relu(h, 0.2),
    "hardtanh": lambda h: F.hardtanh(h, -0.5, 0.7),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": lambda h: F.softplus(h, beta=2),
    "hardshrink": lambda h: F.hardshrink(h, 0.3),
    "softshrink": lambda h: F.softshrink(h, 0.3),
    "log_sigmoid": F.logsigmoid,
    "threshold": lambda h: F.threshold(h, 0.1, -1.0),
    "rrelu": lambda h: F.rrelu(h, 0.1, 0.4),
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": lambda h: torch.log(h.abs() + 1.5),
    "log1p": lambda h: torch.log1p(h.abs()),
    "sqrt": lambda h: torch.sqrt(h.abs() + 0.5),
    "rsqrt": lambda h: torch.rsqrt(h.abs() + 0.5),
    "reciprocal": lambda h: torch.reciprocal(h.abs() + 0.5),
    "abs": torch.abs,
    "neg": lambda h: -h,
    "square": torch.square,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "sign": torch.sign,
    "clone": lambda h: h.clone(),
    "contiguous": lambda h: h.transpose(1, 0).contiguous().transpose(1, 0),
    "clamp": lambda h: h.clamp(-0.5, 0.7),
    "clamp_min": lambda h: torch.clamp_min(h, -0.2),
}
OTHER_NAMES = {
    "softsign": ("aten.div.Tensor", F.softsign),
    "tanhshrink": ("aten.sub.Tensor", F.tanhshrink),
    "pow with a number": ("aten.pow.Tensor_Scalar", lambda h: h.pow(3)),
    "pow of a number": ("aten.pow.Scalar", lambda h: 1.5**h),
    "add a number": ("aten.add.Tensor", lambda h: h + 2),
    "subtract a number": ("aten.sub.Tensor", lambda h: h - 2),
    "subtract from a number": ("aten.rsub.Scalar", lambda h: 1 - h),
    "multiply by a number": ("aten.mul.Tensor", lambda h: 3 * h),
    "divide by a number": ("aten.div.Tensor", lambda h: h / 3),
    "divide a number": ("aten.reciprocal.default", lambda h: 1 / (h.abs() + 1)),
    "compare with a number": ("aten.gt.Scalar", lambda h: (h > 0).float()),
    "where with a number": ("aten.where.ScalarOther", lambda h: torch.where(h > 0, h, -0.5)),
    "to another type": ("aten.to.dtype", lambda h: h.to(torch.float64).exp().to(torch.float32)),
    "detach": ("aten.detach.default", lambda h: h - h.detach().round()),
    "add ones": ("aten.ones_like.default", lambda h: h + torch.ones_like(h)),
    "relu in place": ("aten.relu_.default", lambda h: F.relu(h, inplace=True)),
    "multiply in place": ("aten.mul_.Tensor", lambda h: h.mul_(2)),
    "nan_to_num": ("aten.nan_to_num.default", torch.nan_to_num),
    "hardtanh of a module": ("aten.hardtanh.default", nn.Hardtanh(-0.3, 0.4)),
}
DROPOUT = {
    "dropout": ("aten.dropout.default", lambda: nn.Dropout(0.3), 1),
    "dropout1d": ("aten.feature_dropout.default", lambda: nn.Dropout1d(0.3), 1),
    "dropout2d": ("aten.feature_dropout.default", lambda: nn.Dropout2d(0.3), 2),
    "dropout3d": ("aten.feature_dropout.default", lambda: nn.Dropout3d(0.3), 3),
    "alpha_dropout": ("aten.alpha_dropout.default", lambda: nn.AlphaDropout(0.3), 2),
    "feature_alpha_dropout": ("aten.feature_alpha_dropout.default", lambda: nn.FeatureAlphaDropout(0.3), 2),
}
MASK = torch.tensor([1, 0, 1, 1, 0], dtype=torch.bool)[:, None]


def met(op, f, names="ac", reverse=False, **parts):
    """Layers of three units that meet in `f`; the second one in reverse order if that is asked for, so that its rows are, too."""
    rows = {name: [2, 1, 0] if reverse and name == "c" else [0, 1, 2] for name in names}

    def run(net, x):
        h = [getattr(net, name)(x) for name in names]
        if reverse:
            h[1] = h[1].flip(2)
        return net.b(f(net, *h)).mean(1)

    return OpCase(
        op,
        lambda: Net(run, **{name: nn.Linear(4, 3) for name in names}, b=nn.Linear(3, 2), **{name: part() for name, part in parts.items()}),
        TOKENS,
        {"a": 3, "b": 2},
        {**{f"{name}.weight": (units, [R] * 4) for name, units in rows.items()}, "b.weight": ([3, 4], [0, 1, 2])},
    )


MEETINGS = {
    "add": met("aten.add.Tensor", lambda n, h, g: h + g, reverse=True),
    "add with a factor": met("aten.add.Tensor", lambda n, h, g: torch.add(h, g, alpha=2)),
    "add in place": met("aten.add_.Tensor", lambda n, h, g: h.mul(2).add_(g)),
    "sub": met("aten.sub.Tensor", lambda n, h, g: h - g, reverse=True),
    "mul": met("aten.mul.Tensor", lambda n, h, g: h * g, reverse=True),
    "div": met("aten.div.Tensor", lambda n, h, g: h / (g.exp() + 1), reverse=True),
    "pow": met("aten.pow.Tensor_Tensor", lambda n, h, g: (h.abs() + 0.5) ** g),
    "maximum": met("aten.maximum.default", lambda n, h, g: torch.maximum(h, g), reverse=True),
    "minimum": met("aten.minimum.default", lambda n, h, g: torch.minimum(h, g)),
    "atan2": met("aten.atan2.default", lambda n, h, g: torch.atan2(h, g)),
    "where with a fixed mask": met("aten.where.self", lambda n, h, g: torch.where(n.mask, h, g), mask=lambda: MASK),
    "where with a gate": met("aten.where.self", lambda n, h, g: torch.where(g > 0, h, 0.0 * h), reverse=True),
    "where of three": met("aten.where.self", lambda n, h, g, k: torch.where(k > 0, h, g), "acd"),
    "masked_fill": met("aten.masked_fill.Scalar", lambda n, h, g: (h - g).masked_fill(n.mask, 0.5), mask=lambda: MASK),
    "masked_fill with a gate": met("aten.masked_fill.Scalar", lambda n, h, g: h.masked_fill(g > 0, 0.5)),
    "addcmul": met("aten.addcmul.default", lambda n, h, g, k: torch.addcmul(h, g, k, value=0.5), "acd", reverse=True),
    "addcdiv": met("aten.addcdiv.default", lambda n, h, g, k: torch.addcdiv(h, g, k.exp() + 1), "acd"),
    "lerp": met("aten.lerp.Scalar", lambda n, h, g: torch.lerp(h, g, 0.3), reverse=True),
    "lerp with a gate": met("aten.lerp.Tensor", lambda n, h, g, k: torch.lerp(h, g, k.sigmoid()), "acd"),
    "add what all tokens get": met("aten.add.Tensor", lambda n, h, g: h + g[:, :1]),
    "clamp between units": met("aten.clamp.Tensor", lambda n, h, g: torch.clamp(h, max=g)),
}


def gated(net, x):
    """One number scales all channels: they are one unit with it."""
    return net.b(net.a(x) * torch.sigmoid(net.c(x)))


def swiglu(net, x):
    return net.b(F.silu(net.a(x)) * net.c(x)).mean(1)


GATES = {
    "glu": vectors("aten.glu.default", F.glu, [0, 1, 2], n=6, rows=[0, 1, 2, 0, 1, 2]),
    "glu of tokens": tokens("aten.glu.default", F.glu, [0, 1, 2], n=6, rows=[0, 1, 2, 0, 1, 2]),
    "glu of maps": maps("aten.glu.default", lambda h: F.glu(h, dim=1), [0, 1], n=4, rows=[0, 1, 0, 1]),
    "swiglu": OpCase(
        "aten.silu.default",
        lambda: Net(swiglu, a=nn.Linear(4, 3), c=nn.Linear(4, 3), b=nn.Linear(3, 2)),
        TOKENS,
        {"a": 3, "b": 2},
        {"a.weight": ([0, 1, 2], [R] * 4), "c.weight": ([0, 1, 2], [R] * 4), "b.weight": ([3, 4], [0, 1, 2])},
    ),
    "one gate for all channels": OpCase(
        "aten.mul.Tensor",
        lambda: Net(gated, a=nn.Linear(4, 3), c=nn.Linear(4, 1), b=nn.Linear(3, 2)),
        (4,),
        {"a": 1, "b": 2},
        {"a.weight": ([0] * 3, [R] * 4), "c.weight": ([0], [R] * 4), "b.weight": ([1, 2], [0] * 3)},
    ),
    # Squeeze and excitation: c scales a; d is a group of its own.
    "squeeze and excitation": OpCase(
        "aten.mul.Tensor",
        lambda: Net(
            lambda n, x: n.b((h := n.a(x)) * n.c(n.d(h.mean((2, 3), keepdim=True)).relu()).sigmoid()).mean((2, 3)),
            a=nn.Conv2d(2, 3, 1),
            d=nn.Conv2d(3, 2, 1),
            c=nn.Conv2d(2, 3, 1),
            b=nn.Conv2d(3, 2, 1),
        ),
        (2, 4, 6),
        {"a": 3, "d": 2, "b": 2},
        {
            "a.weight": ([0, 1, 2], [R, R]),
            "d.weight": ([3, 4], [0, 1, 2]),
            "c.weight": ([0, 1, 2], [3, 4]),
            "b.weight": ([5, 6], [0, 1, 2]),
        },
    ),
}


def times(weight, x):
    return x * weight


def plus(weight, x):
    return x + weight


def alone(run, shape, example, b, units, read):
    """A parameter that meets raw input only: one unit for each channel."""
    n = len(units)
    dim = next(i for i, size in enumerate(shape) if size > 1)
    return OpCase(
        "aten.mul.Tensor" if run is times else "aten.add.Tensor",
        lambda: Net(lambda net, x: net.b(net.s(x)).flatten(2).mean(2), s=Weight(run, *shape), b=b()),
        example,
        {"s": n, "b": 2},
        {"s.weight": (units, None), "b.weight": ([n, n + 1], read)},
        dims={"s.weight": (dim, None)},
    )


SCALES = {
    "a learned scale of channels": tokens(
        "aten.mul.Tensor", lambda n, h: h * n.s, parts=lambda: {"s": parameter(3)}, labels={"s": ([0, 1, 2], None)}
    ),
    "a learned scale of reversed channels": tokens(
        "aten.mul.Tensor", lambda n, h: h.flip(2) * n.s, [2, 1, 0], parts=lambda: {"s": parameter(3)}, labels={"s": ([2, 1, 0], None)}
    ),
    "a learned scale of channels of maps": maps(
        "aten.mul.Tensor", lambda n, h: h * n.s, parts=lambda: {"s": parameter(3, 1, 1)}, labels={"s": ([0, 1, 2], None)}
    ),
    "a learned scale, viewed": maps(
        "aten.view.default", lambda n, h: h * n.s.view(1, -1, 1, 1), parts=lambda: {"s": parameter(3)}, labels={"s": ([0, 1, 2], None)}
    ),
    "a learned shift of channels of maps": maps(
        "aten.add.Tensor",
        lambda n, h: h + n.s,
        parts=lambda: {"s": parameter(1, 3, 1, 1)},
        labels={"s": ([0, 1, 2], None)},
        dims={"s": (1, None)},
    ),
    "a learned shift of channels and positions": maps(
        "aten.add.Tensor", lambda n, h: h + n.s, parts=lambda: {"s": parameter(3, 4, 6)}, labels={"s": ([0, 1, 2], None)}
    ),
    "layer scale": OpCase(
        "aten.mul.Tensor",
        lambda: Net(
            lambda n, x: n.b((h := n.a(x)) + n.g * n.d(torch.relu(n.c(h)))).mean(1),
            a=nn.Linear(4, 3),
            c=nn.Linear(3, 5),
            d=nn.Linear(5, 3),
            g=parameter(3),
            b=nn.Linear(3, 2),
        ),
        TOKENS,
        {"a": 3, "c": 5, "b": 2},
        {
            "a.weight": ([0, 1, 2], [R] * 4),
            "c.weight": (span(3, 5), [0, 1, 2]),
            "d.weight": ([0, 1, 2], span(3, 5)),
            "g": ([0, 1, 2], None),
            "b.weight": ([8, 9], [0, 1, 2]),
        },
    ),
    "a learned temperature": tokens("aten.mul.Tensor", lambda n, h: n.t(h), parts=lambda: {"t": Weight(times, 1)}, shared=("t",)),
    "a learned temperature without dimensions": tokens(
        "aten.mul.Tensor", lambda n, h: n.t(h), parts=lambda: {"t": Weight(times)}, shared=("t",)
    ),
    "a learned temperature, exp": tokens(
        "aten.exp.default", lambda n, h: n.t(h), parts=lambda: {"t": Weight(lambda w, x: x / w.exp(), 1)}, shared=("t",)
    ),
    "a learned scale of positions": OpCase(
        "aten.mul.Tensor",
        lambda: Net(lambda n, x: n.b(n.t(n.a(x))).mean(1), a=nn.Linear(4, 3), t=Weight(times, 5, 1), b=nn.Linear(3, 2)),
        TOKENS,
        {"a": 3, "t": 1, "b": 2},
        {"a.weight": ([0, 1, 2], [R] * 4), "t.weight": ([3] * 5, None), "b.weight": ([4, 5], [0, 1, 2])},
        shared=("t",),
    ),
    "a learned scale of a raw image": alone(times, (3, 1, 1), (3, 4, 6), lambda: nn.Conv2d(3, 2, 1), [0, 1, 2], [0, 1, 2]),
    "a learned shift of a raw image": alone(plus, (1, 3, 1, 1), (3, 4, 6), lambda: nn.Conv2d(3, 2, 1), [0, 1, 2], [0, 1, 2]),
    "a learned scale of raw vectors": OpCase(
        "aten.mul.Tensor",
        lambda: Net(lambda net, x: net.b(net.s(x)), s=Weight(times, 4), b=nn.Linear(4, 2)),
        (4,),
        {"s": 4, "b": 2},
        {"s.weight": ([0, 1, 2, 3], None), "b.weight": ([4, 5], [0, 1, 2, 3])},
    ),
}

OPS = {
    **{name: vectors(f"aten.{name}.default", f) for name, f in ACTIVATIONS.items()},
    **{name: vectors(op, f) for name, (op, f) in OTHER_NAMES.items()},
    **{name: maps(op, lambda n, h: n.d(h), n_dims=d, parts=lambda make=make: {"d": make()}) for name, (op, make, d) in DROPOUT.items()},
    **MEETINGS,
    **GATES,
    **SCALES,
}
