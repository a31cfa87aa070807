"""Operations that move positions without computing: whatever they do with channels shows in the columns of the next layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from op_case import TOKENS, Net, OpCase, R, each, maps, tokens, vectors
from torch import nn

FOUR = each([0, 1, 2], 4)

SHAPES = {
    "flatten maps": OpCase(
        "aten.flatten.using_ints",
        lambda: Net(lambda n, x: n.b(F.max_pool2d(n.a(x), 2).flatten(1)), a=nn.Conv2d(2, 3, 1), b=nn.Linear(18, 2)),
        (2, 4, 6),
        {"a": 3, "b": 2},
        {"a.weight": ([0, 1, 2], [R, R]), "b.weight": ([3, 4], each([0, 1, 2], 6))},
    ),
    "flatten tokens": vectors("aten.flatten.using_ints", lambda h: h.flatten(1), [0, 1, 2] * 5, shape=TOKENS),
    "flatten channels before tokens": vectors(
        "aten.flatten.using_ints", lambda h: h.transpose(1, 2).flatten(1), each([0, 1, 2], 5), shape=TOKENS
    ),
    "reshape": vectors("aten.reshape.default", lambda h: h.reshape(h.shape[0], -1), [0, 1, 2] * 5, shape=TOKENS),
    "reshape of a fixed size": vectors("aten.reshape.default", lambda h: h.reshape(-1, 15), [0, 1, 2] * 5, shape=TOKENS),
    "view": vectors("aten.view.default", lambda h: h.view(h.size(0), 15), [0, 1, 2] * 5, shape=TOKENS),
    "view of positions": maps("aten.view.default", lambda h: h.view(h.shape[0], 3, 8, 3)),
    "patches to tokens and back": maps(
        "aten.flatten.using_ints", lambda h: h.flatten(2).transpose(1, 2).transpose(1, 2).unflatten(2, (6, 4))
    ),
    "unflatten": maps("aten.unflatten.int", lambda h: h.flatten(2).unflatten(2, (3, 8))),
    "unflatten channels and back": vectors("aten.unflatten.int", lambda h: h.unflatten(1, (3, 2)).flatten(1), n=6),
    "squeeze": maps("aten.squeeze.dim", lambda h: h.mean(3, keepdim=True).squeeze(3).unsqueeze(2)),
    "squeeze of several": vectors("aten.squeeze.dims", lambda h: h[:, :, None, None].squeeze((2, 3))),
    "squeeze of all": vectors("aten.squeeze.dim", lambda h: h.unsqueeze(1).squeeze(1)),
    "unsqueeze": vectors("aten.unsqueeze.default", lambda h: h.unsqueeze(-1).mul(2).squeeze(-1)),
    "none in an index": vectors("aten.unsqueeze.default", lambda h: h[:, None].exp()[:, 0]),
    "permute": vectors("aten.permute.default", lambda h: h.permute(0, 2, 1).flatten(1), each([0, 1, 2], 5), shape=TOKENS),
    "transpose": vectors("aten.transpose.int", lambda h: h.transpose(-1, -2).flatten(1), each([0, 1, 2], 5), shape=TOKENS),
    "movedim": vectors("aten.movedim.int", lambda h: h.movedim(-1, 1).flatten(1), each([0, 1, 2], 5), shape=TOKENS),
    "swapaxes": vectors("aten.swapaxes.default", lambda h: h.swapaxes(1, 2).flatten(1), each([0, 1, 2], 5), shape=TOKENS),
    "T": vectors("aten.numpy_T.default", lambda h: h.T.mul(2).T),
    "t": vectors("aten.t.default", lambda h: h.t().exp().t()),
    "mT": vectors("aten.mT.default", lambda h: h.mT.flatten(1), each([0, 1, 2], 5), shape=TOKENS),
    "transpose and back": vectors(
        "aten.transpose.int", lambda h: h.transpose(1, 2).exp().transpose(1, 2).flatten(1), [0, 1, 2] * 5, shape=TOKENS
    ),
    "channels last and back": maps("aten.permute.default", lambda h: h.permute(0, 2, 3, 1).exp().permute(0, 3, 1, 2)),
}
COPIES = {
    "expand": vectors("aten.expand.default", lambda h: h[:, :, None].expand(-1, -1, 4).flatten(1), FOUR),
    "expand to tokens": vectors("aten.expand.default", lambda h: h[:, None].expand(-1, 4, -1).flatten(1), [0, 1, 2] * 4),
    "expand_as": tokens("aten.expand_as.default", lambda h: h[:, :1].expand_as(h) + h),
    "broadcast_to": tokens("aten.broadcast_to.default", lambda h: h.mean(1, keepdim=True).broadcast_to(h.shape).exp() - h),
    "repeat channels": vectors("aten.repeat.default", lambda h: h.repeat(1, 2), [0, 1, 2] * 2),
    "repeat tokens": tokens("aten.repeat.default", lambda h: h.repeat(1, 2, 1)),
    "tile": vectors("aten.tile.default", lambda h: h.tile(1, 2), [0, 1, 2] * 2),
    "repeat_interleave channels": vectors("aten.repeat_interleave.self_int", lambda h: h.repeat_interleave(2, dim=1), each([0, 1, 2], 2)),
    "repeat_interleave tokens": tokens("aten.repeat_interleave.self_int", lambda h: h.repeat_interleave(2, 1)),
}


def parts_in_another_order(cut):
    """Cut channels and put the last part first."""
    return lambda h: torch.cat([(pieces := cut(h))[-1], *pieces[:-1]], 1)


CUTS = {
    "slice of channels": vectors("aten.slice.Tensor", lambda h: h[:, 1:], [1, 2]),
    "slice of the last channels": vectors("aten.slice.Tensor", lambda h: h[:, -2:], [3, 4], n=5),
    "slice without the last channels": vectors("aten.slice.Tensor", lambda h: h[:, :-2], [0, 1, 2], n=5),
    "slice of every second channel": vectors("aten.slice.Tensor", lambda h: h[:, ::2], [0, 2, 4], n=5),
    "slice of channels of maps": maps("aten.slice.Tensor", lambda h: h[:, 1:3], [1, 2], n=4),
    "slice of channels of tokens": tokens("aten.slice.Tensor", lambda h: h[..., 1:4:2], [1, 3], n=5),
    "slice of tokens": tokens("aten.slice.Tensor", lambda h: h[:, 1:-1]),
    "slice of positions": maps("aten.slice.Tensor", lambda h: h[:, :, ::2, 1:]),
    "select a token": vectors("aten.select.int", lambda h: h[:, -1], shape=TOKENS),
    "select a channel": vectors("aten.select.int", lambda h: h[..., 1], [1] * 5, shape=TOKENS),
    "select the last channel": vectors("aten.select.int", lambda h: h.select(2, -1), [2] * 5, shape=TOKENS),
    "narrow": vectors("aten.narrow.default", lambda h: h.narrow(1, 1, 2), [1, 2]),
    "split": vectors("aten.split.Tensor", parts_in_another_order(lambda h: h.split(2, 1)), [4, 0, 1, 2, 3], n=5),
    "split with sizes": vectors(
        "aten.split_with_sizes.default", parts_in_another_order(lambda h: h.split([1, 1, 3], 1)), [2, 3, 4, 0, 1], n=5
    ),
    "split of maps": maps("aten.split.Tensor", parts_in_another_order(lambda h: torch.split(h, 2, dim=1)), [4, 0, 1, 2, 3], n=5),
    "chunk": vectors("aten.chunk.default", parts_in_another_order(lambda h: h.chunk(2, 1)), [3, 4, 0, 1, 2], n=5),
    "chunk, one part unused": tokens("aten.chunk.default", lambda h: h.chunk(2, -1)[1], [3, 4, 5], n=6),
    "chunk and gate": tokens("aten.chunk.default", lambda h: (c := h.chunk(2, -1))[0] * c[1], [0, 1, 2], n=6, rows=[0, 1, 2] * 2),
    "chunk of tokens": tokens("aten.chunk.default", lambda h: h.chunk(2, 1)[1]),
    "tensor_split": vectors("aten.tensor_split.sections", parts_in_another_order(lambda h: h.tensor_split(3, 1)), [4, 0, 1, 2, 3], n=5),
    "unbind tokens": vectors("aten.unbind.int", lambda h: (t := h.unbind(1))[0] - t[3], shape=TOKENS),
    "unbind channels": vectors("aten.unbind.int", lambda h: h.unbind(-1)[2], [2] * 5, shape=TOKENS),
    "two kept of unbound channels": vectors(
        "aten.unbind.int", lambda h: torch.cat([(c := h.unbind(-1))[2], c[0]], 1), [2] * 5 + [0] * 5, shape=TOKENS
    ),
}


def two(op, f, groups, rows, b, shape=(4,), end=lambda y: y, merged=False):
    """Layers of 3 and 2 (or 3) units that are put together by `f`."""
    n = sum(groups.values())
    return OpCase(
        op,
        lambda: Net(
            lambda net, x: end(net.b(f(net.a(x), net.c(x), x))), a=nn.Linear(4, 3), c=nn.Linear(4, len(rows)), b=nn.Linear(len(b), 2)
        ),
        shape,
        {**groups, "b": 2},
        {"a.weight": ([0, 1, 2], [R] * 4), "c.weight": (rows, [R] * 4), "b.weight": ([n, n + 1], b)},
        merged=merged,
    )


APART, TIED = {"a": 3, "c": 2}, {"a": 3}
JOINS = {
    "cat": two("aten.cat.default", lambda h, g, x: torch.cat([h, g], 1), APART, [3, 4], [0, 1, 2, 3, 4]),
    "cat, other order": two("aten.cat.default", lambda h, g, x: torch.cat([g, h], -1), APART, [3, 4], [3, 4, 0, 1, 2]),
    "cat with itself and raw input": two(
        "aten.cat.default", lambda h, g, x: torch.cat([g, x, h, g], 1), APART, [3, 4], [3, 4, *[R] * 4, 0, 1, 2, 3, 4]
    ),
    "cat with zeros": two(
        "aten.cat.default", lambda h, g, x: torch.cat([h, h.new_zeros(x.shape[0], 1), g], 1), APART, [3, 4], [0, 1, 2, R, 3, 4]
    ),
    "cat of channels of tokens": two(
        "aten.cat.default", lambda h, g, x: torch.cat([g, h], 2), APART, [3, 4], [3, 4, 0, 1, 2], TOKENS, lambda y: y.mean(1)
    ),
    # Along another dimension than theirs, what stands at a place of the units is one unit.
    "cat of tokens": two(
        "aten.cat.default", lambda h, g, x: torch.cat([h, g], 1), TIED, [0, 1, 2], [0, 1, 2], TOKENS, lambda y: y.mean(1), None
    ),
    "stack as tokens": two("aten.stack.default", lambda h, g, x: torch.stack([h, g], 1).amax(1), TIED, [0, 1, 2], [0, 1, 2], merged=None),
    "stack, last": two("aten.stack.default", lambda h, g, x: torch.stack([h, g], -1).mean(-1), TIED, [0, 1, 2], [0, 1, 2], merged=None),
    "stack and flatten": vectors("aten.stack.default", lambda h: torch.stack([h, h.exp()], -1).flatten(1), each([0, 1, 2], 2)),
}
ORDER = {
    "flip channels": vectors("aten.flip.default", lambda h: h.flip(1), [2, 1, 0]),
    "flip tokens": tokens("aten.flip.default", lambda h: h + h.flip(1) * h.cumsum(1)),
    "flip positions": maps("aten.flip.default", lambda h: h * h.flip((2, 3))),
    "roll channels": vectors("aten.roll.default", lambda h: h.roll(1, 1), [2, 0, 1]),
    "roll channels of maps": maps("aten.roll.default", lambda h: torch.roll(h, -1, dims=1), [1, 2, 0]),
    "roll tokens": tokens("aten.roll.default", lambda h: h * h.roll(1, 1)),
    "roll positions": maps("aten.roll.default", lambda h: h * torch.roll(h, (1, -2), (2, 3))),
    "index_select channels": vectors(
        "aten.index_select.default", lambda n, h: h.index_select(1, n.i), [2, 0, 0, 1], parts=lambda: {"i": torch.tensor([2, 0, 0, 1])}
    ),
    "index_select tokens": tokens(
        "aten.index_select.default", lambda n, h: h.index_select(1, n.i), parts=lambda: {"i": torch.tensor([4, 0, 0])}
    ),
    "index of channels": vectors(
        "aten.index.Tensor", lambda n, h: h[:, n.i], [2, 0, 0, 1], parts=lambda: {"i": torch.tensor([2, 0, 0, 1])}
    ),
    "index of channels, turned": vectors(
        "aten.index.Tensor", lambda n, h: h[:, n.i.t().reshape(-1)], [2, 0, 0, 1], parts=lambda: {"i": torch.tensor([[2, 0], [0, 1]])}
    ),
    "index of channels of tokens": tokens("aten.index.Tensor", lambda n, h: h[..., n.i], [2, 0], parts=lambda: {"i": torch.tensor([2, 0])}),
    "index of tokens": tokens("aten.index.Tensor", lambda n, h: h[:, n.i], parts=lambda: {"i": torch.tensor([4, 0, 0])}),
    "index by a list": vectors("aten.index.Tensor", lambda h: h[:, [2, 0]], [2, 0]),
}
REARRANGED = {
    "pixel_shuffle": maps("aten.pixel_shuffle.default", lambda h: F.pixel_shuffle(h, 2), [0, 1, 2], n=12, rows=FOUR),
    "pixel_unshuffle": maps("aten.pixel_unshuffle.default", lambda h: F.pixel_unshuffle(h, 2), FOUR),
    "channel_shuffle": maps("aten.channel_shuffle.default", nn.ChannelShuffle(2), [0, 3, 1, 4, 2, 5], n=6),
    "channel shuffle by hand": maps(
        "aten.transpose.int",
        lambda h: h.view(h.shape[0], 2, 3, *h.shape[2:]).transpose(1, 2).reshape(h.shape[0], -1, *h.shape[2:]),
        [0, 3, 1, 4, 2, 5],
        n=6,
    ),
    "channel shuffle by hand, contiguous": maps(
        "aten.contiguous.default",
        lambda h: h.view(h.size(0), 3, 2, h.size(2), h.size(3)).transpose(1, 2).contiguous().view(h.size(0), 6, h.size(2), h.size(3)),
        [0, 2, 4, 1, 3, 5],
        n=6,
    ),
    "im2col": OpCase(
        "aten.im2col.default",
        lambda: Net(lambda n, x: n.b(F.unfold(n.a(x), 2)).mean(2), a=nn.Conv2d(2, 3, 1), b=nn.Conv1d(12, 2, 1)),
        (2, 4, 6),
        {"a": 3, "b": 2},
        {"a.weight": ([0, 1, 2], [R, R]), "b.weight": ([3, 4], FOUR)},
    ),
    "unfold of tokens": tokens("aten.unfold.default", lambda h: h.unfold(1, 2, 1).flatten(2), each([0, 1, 2], 2)),
    "unfold of positions": maps("aten.unfold.default", lambda h: h.unfold(2, 3, 2).amax(-1), n_dims=1),
    "windows of a map": maps(
        "aten.permute.default",
        lambda h: h.view(h.shape[0], 3, 2, 2, 3, 2).permute(0, 1, 3, 5, 2, 4).reshape(h.shape[0], 12, 2, 3),
        FOUR,
    ),
    "patches merged into channels": tokens("aten.cat.default", lambda h: torch.cat([h[:, 0:4:2], h[:, 1:4:2]], -1), [0, 1, 2] * 2),
}
OPS = {**SHAPES, **COPIES, **CUTS, **JOINS, **ORDER, **REARRANGED}
