"""Operations that nobody wrote a rule for, or whose units cannot be told apart: everything that they read is one unit."""

from __future__ import annotations

import torch
from op_case import TOKENS, Net, OpCase, R, tokens, vectors
from torch import Tensor, nn


@torch.library.custom_op("zoo::twist", mutates_args=())
def twist(x: Tensor, turns: int) -> Tensor:
    """A user's own operation."""
    return x.roll(turns, -1).cumsum(-1)


@twist.register_fake
def _(x: Tensor, turns: int) -> Tensor:
    return torch.empty_like(x)


ONE = {"n": 3, "rows": [0] * 3, "merged": True}


def both(op, f, n_read, shape=(4,), end=lambda y: y):
    """Two layers, of 3 and of 2 units, that the operation reads beside each other."""
    return OpCase(
        op,
        lambda: Net(
            lambda n, x: end(n.b(f(torch.cat([n.a(x), n.c(x)], -1)))), a=nn.Linear(4, 3), c=nn.Linear(4, 2), b=nn.Linear(n_read, 2)
        ),
        shape,
        {"a": 1, "b": 2},
        {"a.weight": ([0] * 3, [R] * 4), "c.weight": ([0] * 2, [R] * 4), "b.weight": ([1, 2], [0] * n_read)},
        merged=True,
    )


def later(net, x):
    """What the operation does not read stays apart."""
    h = net.a(x)
    return net.b(torch.cat([torch.sort(h, -1)[0], net.c(x)], 1))


MERGED: dict[str, OpCase] = {
    "sort": vectors("aten.sort.default", lambda h: torch.sort(h, -1)[0], [0] * 3, **ONE),
    "sort of two layers": both("aten.sort.default", lambda h: h.sort(-1).values, 5),
    "sort beside another layer": OpCase(
        "aten.sort.default",
        lambda: Net(later, a=nn.Linear(4, 3), c=nn.Linear(4, 2), b=nn.Linear(5, 2)),
        (4,),
        {"a": 1, "c": 2, "b": 2},
        {"a.weight": ([0] * 3, [R] * 4), "c.weight": ([1, 2], [R] * 4), "b.weight": ([3, 4], [0, 0, 0, 1, 2])},
        merged=True,
    ),
    "topk": vectors("aten.topk.default", lambda h: h.topk(2).values, [0] * 2, **ONE),
    "kthvalue": vectors("aten.kthvalue.default", lambda h: h.kthvalue(2, -1, keepdim=True).values, [0], **ONE),
    "distances of tokens": tokens("aten.cdist.default", lambda h: torch.cdist(h, h), [0] * 5, **ONE),
    "distances of tokens to a table": tokens(
        "aten.cdist.default", lambda n, h: torch.cdist(h, n.t), [0] * 2, parts=lambda: {"t": torch.linspace(-1, 1, 6).view(2, 3)}, **ONE
    ),
    "linalg.svdvals": vectors("aten.linalg_svdvals.default", torch.linalg.svdvals, [0] * 3, shape=TOKENS, **ONE),
    "linalg.inv": tokens("aten.linalg_inv.default", lambda h: torch.linalg.inv(h[:, :3] + 9 * torch.eye(3)), [0] * 3, **ONE),
    "linalg.matrix_exp": tokens("aten.linalg_matrix_exp.default", lambda h: torch.linalg.matrix_exp(h[:, :3]), [0] * 3, **ONE),
    "fft": vectors("aten.fft_rfft.default", lambda h: torch.fft.rfft(h).abs(), [0] * 2, **ONE),
    "fft of two layers": both("aten.fft_rfft.default", lambda h: torch.fft.rfft(h, dim=-1).real, 3, TOKENS, lambda y: y.mean(1)),
    "cross": tokens("aten.linalg_cross.default", lambda h: torch.linalg.cross(h, h.flip(1)), [0] * 3, **ONE),
    "an operation of the user": vectors("zoo.twist.default", lambda h: torch.ops.zoo.twist(h, 1), [0] * 3, **ONE),
    "an operation of the user on two layers": both("zoo.twist.default", lambda h: torch.ops.zoo.twist(h, 2), 5),
}
"""name -> a network in which all units that the operation reads are one; `explain` says "capacity lost here"."""
