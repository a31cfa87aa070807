"""Operations that torch's own layers do not call, or seldom: each of them by its name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from op_case import CONV, POSITIONS, TOKENS, Net, OpCase, R, each, maps, parameter, span, tokens, vectors
from torch import nn

aten = torch.ops.aten


def drawn(n, mask):
    """Stochastic depth: a mask in training, its mean in evaluation."""
    return mask.bernoulli_(0.8) / 0.8 if n.training else 1.0


OVER_TOKENS = {
    "var of a sample": ("aten.var.dim", lambda h: aten.var.dim(h, [1])),
    "any": ("aten.any.dim", lambda h: (h > 0.4).any(1).float()),
    "all": ("aten.all.dim", lambda h: (h > -0.6).all(1).float()),
    "old norm": ("aten.norm.ScalarOpt_dim", lambda h: aten.norm.ScalarOpt_dim(h, 2, [1])),
}
ALONG_TOKENS = {
    "cummax over tokens": ("aten.cummax.default", lambda h: torch.cummax(h, 1)[0]),
    "cummin over tokens": ("aten.cummin.default", lambda h: torch.cummin(h, 1).values),
    "logcumsumexp over tokens": ("aten.logcumsumexp.default", lambda h: h.logcumsumexp(1)),
    "argsort over tokens": ("aten.argsort.default", lambda h: h * h.argsort(1)),
    "tokens of a lower triangle": (
        "aten.tril_indices.default",
        lambda h: h[:, torch.tril_indices(3, 2)[0]] * h[:, torch.tril_indices(3, 2)[1]],
    ),
    "tokens that are counted": ("aten.index_select.default", lambda h: h.index_select(1, torch.tril_indices(3, 2)[0]).exp()),
    "tokens of an upper triangle": (
        "aten.triu_indices.default",
        lambda h: h[:, torch.triu_indices(3, 2)[0]] * h[:, torch.triu_indices(3, 2)[1]],
    ),
}
MADE = {
    "zeros": ("aten.zeros.default", lambda h: torch.maximum(h, torch.zeros(3))),
    "count from 0": ("aten.arange.default", lambda h: h * (torch.arange(3) + 1)),
    "eye": ("aten.eye.default", lambda h: (h[:, None] * (torch.eye(3) + 1)).exp().mean(1)),
    "new_zeros": ("aten.new_zeros.default", lambda h: torch.maximum(h, h.new_zeros(3))),
    "numbers in the code": ("aten.lift_fresh_copy.default", lambda h: h * torch.tensor([0.5, 1.0, 2.0])),
    "type of another": ("aten.type_as.default", lambda h: h.mul(3).type_as(torch.ones(1, dtype=torch.int64)).float()),
    "at least": ("aten.clamp_min.default", lambda h: h.clamp_min(0.1)),
    "nan_to_num of nan": ("aten.nan_to_num.default", lambda h: h.log().nan_to_num(0.3)),
    "ones": ("aten.ones.default", lambda h: h + torch.ones(3)),
    "full": ("aten.full.default", lambda h: h * torch.full((1, 3), 2.0)),
    "count from 1": ("aten.arange.start", lambda h: h * torch.arange(1, 4)),
    "count by 2": ("aten.arange.start_step", lambda h: h * torch.arange(1, 7, 2)),
    "linspace": ("aten.linspace.default", lambda h: h * torch.linspace(0.5, 1.5, 3)),
    "scalar_tensor": ("aten.scalar_tensor.default", lambda h: h * torch.scalar_tensor(2.0)),
    "new_ones": ("aten.new_ones.default", lambda h: h + h.new_ones(3)),
    "new_full": ("aten.new_full.default", lambda h: h * h.new_full((1, 3), 2.0)),
    "zeros_like": ("aten.zeros_like.default", lambda h: torch.maximum(h, torch.zeros_like(h))),
    "full_like": ("aten.full_like.default", lambda h: h * torch.full_like(h, 2.0)),
    "as another": ("aten.to.other", lambda h: aten.to.other(h.mul(3), torch.ones(1, dtype=torch.int64)).float()),
    "to a device": ("aten.to.device", lambda h: aten.to.device(h.mul(3), torch.device("cpu"), torch.int64).float()),
    "to a device by name": ("aten.to.dtype_layout", lambda h: aten.to.dtype_layout(h.mul(3), dtype=torch.int64, device="cpu").float()),
    "squeeze of what is no one": ("aten.squeeze.dim", lambda h: h.squeeze(1).exp()),
    "squeeze of what are no ones": ("aten.squeeze.dims", lambda h: h[:, :, None].squeeze((1, 2)).exp()),
}


MASKS = {
    name: vectors(op, lambda n, h, like=like: h * drawn(n, like(h)), parts=lambda: {"p": nn.Identity()})
    for name, op, like in (
        ("a random mask of examples", "aten.bernoulli_.float", lambda h: h.new_empty(h.shape[0], 1)),
        ("a random mask of units", "aten.bernoulli_.float", torch.empty_like),
        ("a random mask of its own", "aten.empty.memory_format", lambda _: torch.empty(1, 3)),
        ("a random mask of another size", "aten.new_empty.default", lambda h: h.new_empty(h.shape[0], 3)),
    )
}

ONE = {"rows": [0] * 3, "merged": None}


def table():
    return {"t": torch.linspace(-1, 1, 6).view(3, 2)}


def with_raw(op, f, tie=(0, 1, 2)):
    """Units and raw input of the same shape."""
    return OpCase(
        op,
        lambda: Net(lambda n, x: n.b(f(n.a(x), x)), a=nn.Linear(4, 3), b=nn.Linear(len(tie), 2)),
        (4,),
        {"a": 3, "b": 2},
        {"a.weight": ([0, 1, 2], [R] * 4), "b.weight": ([3, 4], list(tie))},
    )


SHAPES = {
    "movedim of several": vectors("aten.movedim.intlist", lambda h: h.movedim((1, 2), (2, 1)).flatten(1), each([0, 1, 2], 5), shape=TOKENS),
    "t of a parameter": vectors("aten.t.default", lambda n, h: h * n.p.exp().t(), parts=lambda: {"p": parameter(3, 1)}),
    "T of a parameter": vectors("aten.numpy_T.default", lambda n, h: h * n.p.exp().T, parts=lambda: {"p": parameter(3, 1)}),
    "narrow of tokens": vectors("aten.narrow.default", lambda h: h.narrow(1, 1, 2).flatten(1), [0, 1, 2] * 2, shape=TOKENS),
    "shuffled tokens": vectors(
        "aten.channel_shuffle.default", lambda h: torch.channel_shuffle(h[:, :4], 2).flatten(1), [0, 1, 2] * 4, shape=TOKENS
    ),
    "sort over tokens": vectors("aten.sort.default", lambda h: h.sort(1)[0].flatten(1), [0, 1, 2] * 5, shape=TOKENS),
    "mm with a table": vectors("aten.mm.default", lambda n, h: torch.mm(h, n.t), [0] * 2, parts=table, **ONE),
    "addmm with a table": vectors("aten.addmm.default", lambda n, h: torch.addmm(n.t[0], h, n.t), [0] * 2, parts=table, **ONE),
    "prelu of raw channels": OpCase(
        "aten.prelu.default",
        lambda: Net(lambda n, x: n.b(n.n(x)), n=nn.PReLU(4), b=nn.Linear(4, 2)),
        (4,),
        {"n": 4, "b": 2},
        {"n.weight": (span(0, 4), None), "b.weight": ([4, 5], span(0, 4))},
    ),
    "concat of pieces": vectors("aten.concat.default", lambda h: torch.concat([h[:, 2:], h[:, :2]], 1), [2, 0, 1]),
    "squeeze of everything": vectors(
        "aten.squeeze.default", lambda n, h: h * n.p.exp().squeeze().permute(0), parts=lambda: {"p": parameter(1, 3, 1)}
    ),
    "swapdims": vectors("aten.swapdims.default", lambda h: h.swapdims(1, 2).flatten(1), each([0, 1, 2], 5), shape=TOKENS),
    "view_as": with_raw("aten.view_as.default", lambda h, x: h[:, None].view_as(x[:, :3])),
    "reshape_as": with_raw("aten.reshape_as.default", lambda h, x: h[:, None].reshape_as(x[:, 1:])),
    "expand_as raw input": with_raw(
        "aten.expand_as.default", lambda h, x: h[:, None].expand_as(x[:, :3, None] * x[:, None, :3]).exp().mean(1)
    ),
    "constant_pad_nd of channels": with_raw(
        "aten.constant_pad_nd.default", lambda h, x: aten.constant_pad_nd(h, [1, 2], 0.5), (R, 0, 1, 2, R, R)
    ),
}


def padded(d):
    """Padding over d dimensions of positions."""
    return {
        f"{kind}_pad{d}d": maps(
            f"aten.{kind}_pad{d}d.default", lambda h, kind=kind: getattr(aten, f"{kind}_pad{d}d")(h, [1, 2] * d), n_dims=d
        )
        for kind in ("reflection", "replication")
    }


UPSAMPLING = {
    "interpolate nearest-exact": maps(
        "aten._upsample_nearest_exact2d.vec", lambda h: F.interpolate(h, scale_factor=1.5, mode="nearest-exact")
    ),
    "interpolate without aliasing": maps(
        "aten._upsample_bilinear2d_aa.vec", lambda h: F.interpolate(h, scale_factor=0.5, mode="bilinear", antialias=True)
    ),
}

WHOLE = {
    f"{name} of a parameter": vectors(
        f"aten.{name}.default",
        lambda n, h, name=name: h * getattr(n.p, name)(),
        [0] * 3,
        rows=[0] * 3,
        parts=lambda: {"p": parameter(4)},
        merged=True,
    )
    for name in ("mean", "sum", "max", "min")
}


def two_layers(op, kind, d, **options):
    """Two convolutions of a kind, one after the other."""
    dims = {"a.weight": (1, 0), "b.weight": (1, 0)} if "transpose" in op else {}
    return OpCase(
        op,
        lambda: Net(lambda n, x: n.b(n.a(x).tanh()).flatten(2).mean(2), a=kind(2, 3, 3, **options), b=kind(3, 2, 3, **options)),
        (2, *[6] * d) if d < 3 else (2, 5, 5, 5),
        {"a": 3, "b": 2},
        {"a.weight": (span(0, 3), [R, R]), "b.weight": ([3, 4], span(0, 3))},
        dims=dims,
    )


LAYERS = {
    **{f"two convolutions {d}d": two_layers(f"aten.conv{d}d.default", CONV[d], d) for d in POSITIONS},
    **{f"two convolutions {d}d, same": two_layers(f"aten.conv{d}d.padding", CONV[d], d, padding="same") for d in POSITIONS},
    **{
        f"two transposed convolutions {d}d": two_layers(f"aten.conv_transpose{d}d.{'input' if d > 1 else 'default'}", kind, d)
        for d, kind in {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}.items()
    },
}

OPS = {
    **{name: vectors(op, f, shape=TOKENS) for name, (op, f) in OVER_TOKENS.items()},
    **{name: tokens(op, f) for name, (op, f) in ALONG_TOKENS.items()},
    **{name: vectors(op, f) for name, (op, f) in MADE.items()},
    **SHAPES,
    **padded(1),
    **padded(2),
    **padded(3),
    **UPSAMPLING,
    **MASKS,
    **WHOLE,
    **LAYERS,
}
