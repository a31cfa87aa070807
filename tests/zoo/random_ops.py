"""Operations that random networks are put together from: a step of a plan, the module that does it, the shape that comes out.

A step is a tuple: the name of an operation in `OPS` and its arguments. A sequence is a tuple of steps; some operations
have sequences among their arguments. `clnp` is not used here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_language import HandRMSNorm

if TYPE_CHECKING:
    from collections.abc import Callable

Shape = tuple[int, ...]
"""Of one example: (C, H, W) a map, (T, D) tokens, (F,) flat features."""
Step = tuple[Any, ...]
Steps = tuple[Step, ...]


class Does(nn.Module):
    """A module whose forward pass is `run(self, x)`; parts are modules, parameters or buffers."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **parts: nn.Module | nn.Parameter | Tensor) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def sequence(steps: Steps, shape: Shape) -> nn.Sequential:
    """The modules of some steps."""
    modules = nn.Sequential()
    for number, step in enumerate(steps):
        modules.add_module(f"{number}_{step[0]}", module(step, shape))
        shape = shape_after((step,), shape)
    return modules


def module(step: Step, shape: Shape) -> nn.Module:
    """The module of one step."""
    return OPS[step[0]](shape, *step[1:])


@torch.no_grad()
def shape_after(steps: Steps, shape: Shape) -> Shape:
    """The shape of the result of some steps."""
    for step in steps:
        ids = shape[-1] < 0
        x = torch.zeros(2, shape[0], dtype=torch.long) if ids else torch.zeros(2, *shape)
        with torch.random.fork_rng(devices=[]):
            shape = tuple(module(step, shape).eval()(x).shape[1:])
    return shape


# ---- what is done at every kind of shape


def channel(shape: Shape) -> int:
    """The dimension of a batch along which channels lie."""
    return 2 if len(shape) == 2 else 1


def param(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.5 + 0.3 * torch.randn(shape))


def mix(shape: Shape, out: int, bias: bool = True) -> nn.Module:
    """A layer that acts on each position."""
    return nn.Conv2d(shape[0], out, 1, bias=bias) if len(shape) == 3 else nn.Linear(shape[-1], out, bias)


def norm(shape: Shape, kind: str, groups: int = 1) -> nn.Module:
    c, last = shape[channel(shape) - 1], {"ln": nn.LayerNorm, "rms": nn.RMSNorm, "hand": HandRMSNorm}
    if kind in last:
        made = last[kind](c) if kind == "hand" else last[kind](c, eps=1e-3)
        return Does(lambda m, x: m.n(x.movedim(1, -1)).movedim(-1, 1), n=made) if len(shape) == 3 else made
    if kind == "group":
        made = nn.GroupNorm(groups, c, eps=1e-3)
    elif kind == "instance":
        made = (nn.InstanceNorm2d if len(shape) == 3 else nn.InstanceNorm1d)(c, eps=1e-3, affine=bool(groups))
    else:
        made = (nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d)(c, eps=1e-3)
    return Does(lambda m, x: m.n(x.transpose(1, 2)).transpose(1, 2), n=made) if len(shape) == 2 else made


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky": lambda x: F.leaky_relu(x, 0.1),
    "hardswish": F.hardswish,
    "softplus": F.softplus,
    "square": lambda x: torch.relu(x).square(),
    "shifted": lambda x: 0.5 - torch.cos(x),
    "clamp": lambda x: x.clamp(-1, 1),
}


def act(shape: Shape, name: str) -> nn.Module:
    return Does(lambda _, x: ACTIVATIONS[name](x))


def branches(run: Callable[[list[Tensor]], Tensor]) -> Callable[..., nn.Module]:
    def make(shape: Shape, *plans: Steps) -> nn.Module:
        return Does(lambda m, x: run([part(x) for part in m.parts]), parts=nn.ModuleList(sequence(steps, shape) for steps in plans))

    return make


def across(run: Callable[[list[Tensor], int], Tensor]) -> Callable[..., nn.Module]:
    return lambda shape, *plans: branches(lambda parts: run(parts, channel(shape)))(shape, *plans)


def interleaved(parts: list[Tensor], dim: int) -> Tensor:
    """a0 b0 a1 b1 ..."""
    return torch.stack(parts, dim + 1).flatten(dim, dim + 1)


def chunk_gate(shape: Shape, form: str) -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        if form == "glu":
            return F.glu(x, channel(shape))
        a, b = x.chunk(2, channel(shape))
        return a * F.silu(b) if form == "silu" else torch.sigmoid(a) + b

    return Does(run)


def split_cat(shape: Shape, size: int, first: Steps, second: Steps) -> nn.Module:
    """Cut the channels in two, let each part go its way, and put them back in the other order."""
    dim, c = channel(shape), shape[channel(shape) - 1]

    def run(m: Any, x: Tensor) -> Tensor:
        a, b = x.split([size, c - size], dim)
        return torch.cat([m.second(b), m.first(a)], dim)

    sizes = [tuple(n if d == dim else s for d, s in enumerate(shape, 1)) for n in (size, c - size)]
    return Does(run, first=sequence(first, sizes[0]), second=sequence(second, sizes[1]))


def shuffle(shape: Shape, groups: int) -> nn.Module:
    dim = channel(shape)
    return Does(lambda _, x: x.unflatten(dim, (groups, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1))


def squeeze_excite(shape: Shape, inner: int) -> nn.Module:
    c = shape[0]

    def run(m: Any, x: Tensor) -> Tensor:
        return x * torch.sigmoid(m.up(torch.relu(m.down(x.mean((2, 3)))))).view(-1, c, 1, 1)

    return Does(run, down=nn.Linear(c, inner), up=nn.Linear(inner, c))


def pad(shape: Shape, left: int, right: int, value: float) -> nn.Module:
    amounts = (left, right) if len(shape) < 3 else (0, 0, 0, 0, left, right)
    return Does(lambda _, x: F.pad(x, amounts, value=value))


def cut(shape: Shape, start: int, stop: int, stride: int) -> nn.Module:
    index = [slice(None)] * channel(shape) + [slice(start, stop, stride)]
    return Does(lambda _, x: x[tuple(index)])


def permuted(shape: Shape, *order: int) -> nn.Module:
    return Does(lambda m, x: x.index_select(channel(shape), m.order), order=torch.tensor(order))


def scale(shape: Shape, kind: str) -> nn.Module:
    c, wide = shape[channel(shape) - 1], [1] * (len(shape) - 2) if len(shape) == 3 else []
    per_channel = (c, *wide, 1) if len(shape) == 3 else (c,)
    if kind == "channel":
        return Does(lambda m, x: x * m.g, g=param(*per_channel))
    if kind == "affine":
        return Does(lambda m, x: m.g * x + m.b, g=param(*per_channel), b=param(*per_channel))
    if kind == "number":
        return Does(lambda m, x: x * m.g, g=param(1))
    return Does(lambda m, x: x + m.p, p=param(1, *shape))  # a position


def prelu(shape: Shape, each: bool) -> nn.Module:
    return nn.PReLU(shape[0] if each and len(shape) != 2 else 1)


MERGING: dict[str, Callable[[Tensor, int], Tensor]] = {
    "fft": lambda x, dim: torch.fft.fft(x, dim=dim).real,
    "sort": lambda x, dim: x.sort(dim).values,
    "softmax": torch.softmax,
    "cumsum": torch.cumsum,
    "centred": lambda x, dim: x - x.mean(dim, keepdim=True),
    "largest": lambda x, dim: x * torch.sigmoid(x.amax(dim, keepdim=True)),
}


def merging(shape: Shape, kind: str) -> nn.Module:
    """Operations that mix channels without a weight."""
    return Does(lambda _, x: MERGING[kind](x, channel(shape)))


def twice(shape: Shape, steps: Steps) -> nn.Module:
    return Does(lambda m, x: m.f(m.f(x)), f=sequence(steps, shape))


def siamese(shape: Shape, steps: Steps) -> nn.Module:
    return Does(lambda m, x: torch.cat([m.f(x), m.f(torch.tanh(x))], channel(shape)), f=sequence(steps, shape))


def swiglu(shape: Shape, inner: int) -> nn.Module:
    return Does(
        lambda m, x: m.out(F.silu(m.gate(x)) * m.up(x)), gate=mix(shape, inner), up=mix(shape, inner), out=nn.Linear(inner, shape[-1])
    )


# ---- maps


def conv(shape: Shape, out: int, k: int, stride: int, groups: int, mode: str, bias: bool) -> nn.Module:
    return nn.Conv2d(shape[0], out, k, stride, k // 2, groups=groups, padding_mode=mode, bias=bias)


def spatial_gate(shape: Shape) -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        return x * torch.sigmoid(m.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))

    return Does(run, conv=nn.Conv2d(2, 1, 3, 1, 1))


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda x: F.max_pool2d(x, 2),
    "avg": lambda x: F.avg_pool2d(x, 2),
    "max-same": lambda x: F.max_pool2d(x, 3, 1, 1),
    "avg-same": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2.0),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "pixel-shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel-unshuffle": lambda x: F.pixel_unshuffle(x, 2),
}


def moved(shape: Shape, how: str, dim: int) -> nn.Module:
    return Does(lambda _, x: x.flip(dim) if how == "flip" else x.roll(1, dim))


# ---- tokens


def extra_tokens(shape: Shape, n: int, front: bool) -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        more = m.tokens.expand(x.shape[0], -1, -1)
        return torch.cat([more, x] if front else [x, more], 1)

    return Does(run, tokens=param(1, n, shape[1]))


def heads_of(x: Tensor, n: int) -> Tensor:
    return x.unflatten(2, (n, -1)).transpose(1, 2)


def attended(form: str, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    if form == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=k.shape[1] < q.shape[1])
    if k.shape[1] < q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) if form == "einsum" else q @ k.transpose(2, 3)
    scores = scores * q.shape[3] ** -0.5
    if causal:
        keep = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~keep, float("-inf"))
    weights = scores.softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v) if form == "einsum" else weights @ v


def attention(shape: Shape, form: str, n: int, n_kv: int, size: int, causal: bool, normed: bool) -> nn.Module:
    d = shape[1]
    if form == "mha":
        return Does(lambda m, x: m.attn(x, x, x, need_weights=False)[0], attn=nn.MultiheadAttention(d, n, batch_first=True))
    parts = {"q_norm": nn.LayerNorm(size), "k_norm": nn.RMSNorm(size, eps=1e-3)} if normed else {}

    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).split([n * size, n_kv * size, n_kv * size], 2)
        q, k, v = heads_of(q, n), heads_of(k, n_kv), heads_of(v, n_kv)
        if normed:
            q, k = m.q_norm(q), m.k_norm(k)
        return m.out(attended(form, q, k, v, causal).transpose(1, 2).flatten(2))

    return Does(run, qkv=nn.Linear(d, (n + 2 * n_kv) * size), out=nn.Linear(n * size, d), **parts)


def token_mix(shape: Shape, out: int) -> nn.Module:
    return Does(lambda m, x: m.f(x.transpose(1, 2)).transpose(1, 2), f=nn.Linear(shape[0], out))


def spatial_unit(shape: Shape) -> nn.Module:
    """The gate of gMLP."""

    def run(m: Any, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return a * m.f(m.n(b).transpose(1, 2)).transpose(1, 2)

    return Does(run, f=nn.Linear(shape[0], shape[0]), n=nn.LayerNorm(shape[1] // 2, eps=1e-3))


def recurrent(shape: Shape, kind: str, hidden: int, layers: int, both: bool, last: bool) -> nn.Module:
    made = getattr(nn, kind.upper())(shape[1], hidden, layers, batch_first=True, bidirectional=both)

    def run(m: Any, x: Tensor) -> Tensor:
        out, state = m.rnn(x)
        return out if not last else (state[0] if kind == "lstm" else state)[-1]

    return Does(run, rnn=made)


def along_tokens(shape: Shape, out: int, k: int, groups: int) -> nn.Module:
    made = nn.Conv1d(shape[1], out, k, groups=groups)
    return Does(lambda m, x: m.f(F.pad(x.transpose(1, 2), (k - 1, 0))).transpose(1, 2), f=made)


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(1) if x.dim() == 3 else x.mean((2, 3)),
    "max": lambda x: x.amax(1) if x.dim() == 3 else F.adaptive_max_pool2d(x, 1).flatten(1),
    "flatten": lambda x: x.flatten(1),
    "first": lambda x: x[:, 0] if x.dim() == 3 else x[:, :, 0, 0],
    "last": lambda x: x[:, -1] if x.dim() == 3 else x[..., -1, -1],
    "view": lambda x: x.contiguous().view(x.shape[0], -1),
    "pool": lambda x: F.adaptive_avg_pool1d(x.transpose(1, 2), 1).squeeze(2) if x.dim() == 3 else F.avg_pool2d(x, 2).flatten(1),
    "tokens": lambda x: x.flatten(2).transpose(1, 2),  # of a map
}

OPS: dict[str, Callable[..., nn.Module]] = {
    "mix": mix,
    "norm": norm,
    "act": act,
    "prelu": prelu,
    "dropout": lambda _, p: nn.Dropout(p),
    "residual": lambda shape, steps: Does(lambda m, x: x + m.f(x), f=sequence(steps, shape)),
    "sum": branches(lambda parts: sum(parts[1:], parts[0])),
    "product": branches(lambda parts: parts[0] * torch.sigmoid(parts[1])),
    "cat": across(torch.cat),
    "interleave": across(interleaved),
    "chunk-gate": chunk_gate,
    "split-cat": split_cat,
    "shuffle": shuffle,
    "squeeze-excite": squeeze_excite,
    "pad": pad,
    "cut": cut,
    "permute": permuted,
    "scale": scale,
    "merging": merging,
    "twice": twice,
    "siamese": siamese,
    "swiglu": swiglu,
    "conv": conv,
    "conv-transpose": lambda shape, out, k, groups: nn.ConvTranspose2d(shape[0], out, k, 2, groups=groups),
    "einsum": lambda shape, out: Does(lambda m, x: torch.einsum("bchw,oc->bohw", x, m.w), w=nn.Parameter(torch.randn(out, shape[0]))),
    "spatial-gate": spatial_gate,
    "pool": lambda _, kind: Does(lambda _, x: POOLS[kind](x)),
    "move": moved,
    "extra-tokens": extra_tokens,
    "attention": attention,
    "token-mix": token_mix,
    "spatial-unit": spatial_unit,
    "recurrent": recurrent,
    "along-tokens": along_tokens,
    "some-tokens": lambda _, start, stop: Does(lambda _, x: x[:, start:stop]),
    "reduce": lambda _, kind: Does(lambda _, x: REDUCTIONS[kind](x)),
    "to-map": lambda _, c, h, w: Does(lambda _, x: x.view(-1, c, h, w) if x.dim() == 2 else x.transpose(1, 2).unflatten(2, (h, w))),
    "to-tokens": lambda _, t, d: Does(lambda _, x: x.reshape(x.shape[0], t, d)),
    "embed": lambda shape, d: nn.Embedding(-shape[1], d),
}
"""name -> a function of the shape of an example and the step's arguments that makes the module."""
