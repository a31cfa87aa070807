"""Random networks: plans, the networks that they describe, and a hypothesis strategy whose every plan can be built."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from hypothesis import strategies as st
from random_ops import ACTIVATIONS, MERGING, OPS, channel, sequence, shape_after
from torch import Tensor, nn
from zoo_entry import Entry

if TYPE_CHECKING:
    from random_ops import Shape, Step, Steps

MOST = {3: (16, 8, 8), 2: (16, 24), 1: (72,)}
"""The largest sizes of a map, of tokens, of flat features."""


@dataclass(frozen=True)
class Plan:
    """A network: each input runs through steps of its own to flat features; these, side by side, through the trunk; then each output.

    An input is a shape, or ("ids", length, vocabulary).
    """

    inputs: tuple[tuple[Any, ...], ...]
    stems: tuple[Steps, ...]
    trunk: Steps = ()
    outputs: tuple[Steps, ...] = ((),)


class Planned(nn.Module):
    """The network of a plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        sizes = [shape_after(steps, shape_of(given)) for given, steps in zip(plan.inputs, plan.stems, strict=True)]
        self.stems = nn.ModuleList(sequence(steps, shape_of(given)) for given, steps in zip(plan.inputs, plan.stems, strict=True))
        flat = (sum(size for (size,) in sizes),)
        self.trunk = sequence(plan.trunk, flat)
        flat = shape_after(plan.trunk, flat)
        self.outputs = nn.ModuleList(sequence(steps, flat) for steps in plan.outputs)

    def forward(self, *inputs: Tensor) -> Any:
        parts = [stem(x) for stem, x in zip(self.stems, inputs, strict=True)]
        x = self.trunk(parts[0] if len(parts) == 1 else torch.cat(parts, 1))
        outputs = [output(x) for output in self.outputs]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def shape_of(given: tuple[Any, ...]) -> Shape:
    """The shape of an input; tokens that are no embeddings yet have a negative size: the vocabulary's."""
    return (given[1], -given[2]) if given[0] == "ids" else given


def entry_of(plan: Plan) -> Entry:
    """The network as one of the zoo's."""

    def batch(n: int) -> Any:
        draws = torch.Generator().manual_seed(n)
        parts = [
            torch.randint(given[2], (n, given[1]), generator=draws) if given[0] == "ids" else torch.randn(n, *given, generator=draws)
            for given in plan.inputs
        ]
        return parts[0] if len(parts) == 1 else tuple(parts)

    return Entry(repr(plan), lambda: Planned(plan), batch, {})


class Drawing:
    """Draws steps; keeps track of how deep sequences are nested."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw

    def one(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def maybe(self) -> bool:
        return self.draw(st.booleans())

    def divisor(self, n: int, *, least: int = 1) -> int:
        return self.one(*[k for k in range(least, n + 1) if n % k == 0])

    # ---- sequences

    def steps(self, shape: Shape, most: int, depth: int, *, keep: bool = False) -> tuple[Steps, Shape]:
        """Draw some steps on a shape; with `keep` only the number of channels may change."""
        found: list[Step] = []
        for _ in range(self.number(1, most)):
            step = self.step(shape, depth)
            if step is None:
                continue
            after = shape_after((step,), shape)
            small = len(after) in MOST and all(size <= limit for size, limit in zip(after, MOST[len(after)], strict=True))
            kept = len(after) == len(shape) and _positions(after) == _positions(shape)
            if small and min(after) > 0 and (kept or not keep):
                found.append(step)
                shape = after
        return tuple(found), shape

    def same(self, shape: Shape, depth: int) -> Steps:
        """Draw steps after which the shape is what it was."""
        return self.ending(shape, depth, shape[channel(shape) - 1])

    def ending(self, shape: Shape, depth: int, channels: int) -> Steps:
        """Draw steps that end with so many channels, at the same positions."""
        steps, after = self.steps(shape, 3, depth, keep=True)
        return steps if after[channel(after) - 1] == channels else (*steps, ("mix", channels, self.maybe()))

    def step(self, shape: Shape, depth: int) -> Step | None:
        """Draw one step; None where the one that was chosen does not fit."""
        if shape[-1] < 0:
            return ("embed", self.number(2, 8))
        table = [*ANYWHERE, *{3: ON_MAPS, 2: ON_TOKENS, 1: ON_FLAT}[len(shape)], *(NESTED if depth else ())]
        name, make = self.one(*table)
        arguments = make(self, shape, depth - 1)
        return None if arguments is None else (name, *arguments)

    def flat(self, shape: Shape, most: int, depth: int) -> tuple[Steps, Shape]:
        """Draw steps that end with flat features."""
        steps, after = self.steps(shape, most, depth)
        for _ in range(2):
            if len(after) > 1:
                kinds = ["mean", "max", "flatten", "first", "last", "view", *(("tokens",) if len(after) == 3 else ())]
                last = ("reduce", self.one(*kinds))
                if len(after) == 3 and shape_after((last,), after)[0] > MOST[1][0]:
                    last = ("reduce", "mean")
                steps, after = (*steps, last), shape_after((last,), after)
        return (steps, after) if len(after) == 1 else ((*steps, ("reduce", "mean")), after[1:])


def _positions(shape: Shape) -> Shape:
    return tuple(size for dim, size in enumerate(shape, 1) if dim != channel(shape))


def _out(d: Drawing) -> int:
    return d.number(2, 8)


def _c(shape: Shape) -> int:
    return shape[channel(shape) - 1]


def _norm(d: Drawing, shape: Shape, _: int) -> Step | None:
    kind = d.one("batch", "ln", "rms", "group", "hand", "instance")
    if kind == "instance":
        return (kind, d.number(0, 1)) if len(shape) > 1 and min(_positions(shape)) > 1 else ("batch",)
    if kind == "group":
        groups = d.divisor(_c(shape))
        return (kind, groups) if prod(shape) > groups else ("batch",)  # torch asks for two numbers in a group
    return (kind,)


def _several(d: Drawing, shape: Shape, depth: int) -> Step:
    return tuple(d.steps(shape, 3, depth, keep=True)[0] for _ in range(d.number(2, 3)))


def _like(d: Drawing, shape: Shape, depth: int) -> Step:
    """Branches of equal shape."""
    n = _c(shape) if d.maybe() else _out(d)
    return tuple(d.ending(shape, depth, n) for _ in range(2))


def _split(d: Drawing, shape: Shape, depth: int) -> Step | None:
    if _c(shape) < 2:
        return None
    size = d.number(1, _c(shape) - 1)
    parts = [tuple(n if dim == channel(shape) else s for dim, s in enumerate(shape, 1)) for n in (size, _c(shape) - size)]
    return size, *(d.steps(part, 2, depth, keep=True)[0] if d.maybe() else () for part in parts)


def _gate(d: Drawing, shape: Shape, _: int) -> Step | None:
    return None if _c(shape) % 2 else (d.one("silu", "sum", "glu"),)


def _cut(d: Drawing, shape: Shape, _: int) -> Step:
    start = d.number(0, _c(shape) - 1)
    return start, d.number(start + 1, _c(shape)), d.number(1, 2)


def _conv(d: Drawing, shape: Shape, _: int) -> Step:
    mode = d.one("zeros", "zeros", "reflect", "circular") if min(shape[1:]) > 2 else "zeros"
    return _out(d), d.one(1, 3), d.number(1, 2), 1, mode, d.maybe()


def _grouped(d: Drawing, shape: Shape, _: int) -> Step:
    groups = d.divisor(shape[0])
    return groups * d.number(1, 2), d.one(1, 3), 1, groups, "zeros", d.maybe()


def _transposed(d: Drawing, shape: Shape, _: int) -> Step:
    groups = d.divisor(shape[0]) if d.maybe() else 1
    return groups * d.number(1, 3), d.number(2, 3), groups


def _pool(d: Drawing, shape: Shape, _: int) -> Step | None:
    kind = d.one("max", "avg", "max-same", "avg-same", "adaptive", "nearest", "bilinear", "reflect", "pixel-shuffle", "pixel-unshuffle")
    even = all(size % 2 == 0 for size in shape[1:])
    fits = {
        "max": min(shape[1:]) > 1,
        "avg": min(shape[1:]) > 1,
        "reflect": min(shape[1:]) > 1,
        "pixel-shuffle": shape[0] % 4 == 0,
        "pixel-unshuffle": even,
    }
    return (kind,) if fits.get(kind, True) else None


def _attention(d: Drawing, shape: Shape, _: int) -> Step:
    form = d.one("sdpa", "einsum", "matmul", "mha")
    if form == "mha":
        return form, d.divisor(shape[1]), 0, 0, False, False
    n = d.number(1, 4)
    return form, n, d.divisor(n), d.number(1, 3), d.maybe(), d.maybe()


def _recurrent(d: Drawing, _shape: Shape, _: int) -> Step:
    return d.one("lstm", "gru", "rnn"), d.number(2, 5), d.number(1, 2), d.maybe(), d.number(0, 3) == 3


def _along_tokens(d: Drawing, shape: Shape, _: int) -> Step:
    groups = d.divisor(shape[1]) if d.maybe() else 1
    return groups * d.number(1, 2), d.number(1, 3), groups


def _some_tokens(d: Drawing, shape: Shape, _: int) -> Step:
    start = d.number(0, shape[0] - 1)
    return start, d.number(start + 1, shape[0])


def _tokens_to_map(d: Drawing, shape: Shape, _: int) -> Step:
    h = d.divisor(shape[0])
    return shape[1], h, shape[0] // h


def _flat_to_map(d: Drawing, shape: Shape, _: int) -> Step:
    c = d.divisor(shape[0])
    h = d.divisor(shape[0] // c)
    return c, h, shape[0] // c // h


def _flat_to_tokens(d: Drawing, shape: Shape, _: int) -> Step:
    t = d.divisor(shape[0])
    return t, shape[0] // t


ANYWHERE: list[tuple[str, Any]] = [
    ("mix", lambda d, _, __: (_out(d), d.maybe())),
    ("act", lambda d, _, __: (d.one(*ACTIVATIONS),)),
    ("norm", _norm),
    ("mix", lambda d, _, __: (_out(d), d.maybe())),
    ("scale", lambda d, _, __: (d.one("channel", "affine", "number", "position"),)),
    ("chunk-gate", _gate),
    ("shuffle", lambda d, shape, _: (d.divisor(_c(shape)),)),
    ("cut", _cut),
    ("permute", lambda d, shape, _: tuple(d.draw(st.permutations(range(_c(shape)))))),
    ("pad", lambda d, _, __: (d.number(0, 2), d.number(0, 2), d.one(0.0, 0.5))),
    ("prelu", lambda d, _, __: (d.maybe(),)),
    ("dropout", lambda _, __, ___: (0.3,)),
    ("merging", lambda d, _, __: (d.one(*MERGING),)),
]
NESTED: list[tuple[str, Any]] = [
    ("residual", lambda d, shape, depth: (d.same(shape, depth),)),
    ("sum", _like),
    ("cat", _several),
    ("product", _like),
    ("interleave", _like),
    ("split-cat", _split),
    ("twice", lambda d, shape, depth: (d.same(shape, depth),)),
    ("siamese", lambda d, shape, depth: (d.same(shape, depth),)),
]
ON_MAPS: list[tuple[str, Any]] = [
    ("conv", _conv),
    ("conv", _grouped),
    ("pool", _pool),
    ("conv-transpose", _transposed),
    ("einsum", lambda d, _, __: (_out(d),)),
    ("squeeze-excite", lambda d, _, __: (_out(d),)),
    ("spatial-gate", lambda _, __, ___: ()),
    ("move", lambda d, _, __: (d.one("flip", "roll"), d.number(1, 3))),
    ("reduce", lambda _, __, ___: ("tokens",)),
    ("reduce", lambda d, _, __: (d.one("mean", "max", "flatten"),)),
]
ON_TOKENS: list[tuple[str, Any]] = [
    ("attention", _attention),
    ("attention", _attention),
    ("swiglu", lambda d, _, __: (_out(d),)),
    ("recurrent", _recurrent),
    ("along-tokens", _along_tokens),
    ("token-mix", lambda d, _, __: (_out(d),)),
    ("spatial-unit", lambda _, shape, __: None if shape[1] % 2 else ()),
    ("extra-tokens", lambda d, _, __: (d.number(1, 2), d.maybe())),
    ("some-tokens", _some_tokens),
    ("move", lambda d, _, __: (d.one("flip", "roll"), d.number(1, 2))),
    ("to-map", _tokens_to_map),
    ("reduce", lambda d, _, __: (d.one("mean", "max", "first", "last", "flatten", "pool"),)),
]
ON_FLAT: list[tuple[str, Any]] = [
    ("swiglu", lambda d, _, __: (_out(d),)),
    ("to-map", _flat_to_map),
    ("to-tokens", _flat_to_tokens),
]


@st.composite
def plans(draw: Any, most: int = 7, depth: int = 2) -> Plan:
    """Draw a plan."""
    d = Drawing(draw)
    kinds = [d.one("map", "tokens", "flat", "ids", "map", "tokens")]
    if d.number(0, 5) == 5:
        kinds.append(d.one("flat", "ids", "map"))
    inputs, stems, total = [], [], 0
    for kind in kinds:
        given = {
            "map": lambda: (d.number(1, 3), d.number(4, 6), d.number(4, 6)),
            "tokens": lambda: (d.number(3, 6), d.number(2, 4)),
            "flat": lambda: (d.number(2, 6),),
            "ids": lambda: ("ids", d.number(3, 6), 7),
        }[kind]()
        shape, first = shape_of(given), ()
        if kind != "ids" and d.number(0, 5) < 5:  # most networks begin with a layer
            first = (("conv", *_conv(d, shape, 0)),) if kind == "map" and d.maybe() else (("mix", _out(d), True),)
        elif kind == "ids":
            first = (("embed", d.number(2, 8)),)
        steps, (size,) = d.flat(shape_after(first, shape), most if len(kinds) == 1 else 3, depth)
        inputs.append(given)
        stems.append((*first, *steps))
        total += size
    trunk, after = d.steps((total,), 3, 1, keep=True) if d.maybe() else ((), (total,))
    outputs = tuple(d.steps(after, 2, 0, keep=True)[0] for _ in range(2)) if d.number(0, 7) == 7 else ((),)
    return Plan(tuple(inputs), tuple(stems), trunk, outputs)


assert {name for table in (ANYWHERE, NESTED, ON_MAPS, ON_TOKENS, ON_FLAT) for name, _ in table} | {"embed"} == set(OPS)
