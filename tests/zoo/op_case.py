"""What is said of the networks that are made for one operation each, and the small parts that they are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

R = -1  # raw input
Labels = Mapping[str, tuple[list[int], list[int] | None]]


@dataclass(frozen=True)
class OpCase:
    """A network through which units flow into an operation and on to a layer; everything about it was worked out by hand.

    Attributes:
        op: the operation, as torch.export names it in training mode.
        build: makes the network, with whatever random weights torch draws.
        shape: of one example, or a function: number of examples -> batch.
        groups: group -> number of units, in order of execution; units are numbered group after group.
        labels: parameter -> units of its rows and of its columns, `R` for raw input; None where it has no columns. All weights that read
            units are here. "features" are the units of the output; without it they are the rows of "b.weight".
        shared: groups that every task reads.
        merged: units had to be merged that a finer rule might have kept apart, which `explain` says; None where it may say so.
        dims: parameter -> dimensions of its rows and its columns, where they are not (0, 1).
        norms: module that is a norm over units -> dimension of its input along which they lie, and the units.
    """

    op: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] | Callable[[int], Tensor]
    groups: dict[str, int]
    labels: Labels
    shared: tuple[str, ...] = ()
    merged: bool | None = False
    dims: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    norms: Mapping[str, tuple[int, list[int]]] = field(default_factory=dict)

    def batch(self, n: int) -> Tensor:
        """n random examples."""
        return self.shape(n) if callable(self.shape) else torch.randn(n, *self.shape)

    @property
    def features(self) -> list[int]:
        return self.labels["features" if "features" in self.labels else "b.weight"][0]

    def dims_of(self, parameter: str) -> tuple[int, int | None]:
        """Return the dimensions of a parameter's rows and columns."""
        return self.dims.get(parameter, (0, None if self.labels[parameter][1] is None else 1))


class Net(nn.Module):
    """A network whose forward pass is `run(self, x)`; parts are modules, parameters or buffers."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **parts: nn.Module | nn.Parameter | Tensor) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Weight(nn.Module):
    """A module with one parameter, `weight`, that does `run(weight, x)` with it."""

    def __init__(self, run: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.run = run
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.weight, x)


CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POSITIONS = {1: (6,), 2: (4, 6), 3: (4, 4, 6)}
TOKENS = (5, 4)  # 5 tokens of 4 raw channels


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def span(start: int, n: int) -> list[int]:
    """n units from `start` on."""
    return list(range(start, start + n))


def each(units: list[int], n: int) -> list[int]:
    """Every unit n times: [0, 0, 1, 1]."""
    return [unit for unit in units for _ in range(n)]


def _around(
    op: str,
    f: Callable[..., Tensor],
    make: tuple[Callable[[int], nn.Module], Callable[[int], nn.Module]],
    end: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    n: int,
    rows: list[int] | None,
    read: list[int] | None,
    parts: Callable[[], dict[str, Any]] | None,
    norm: int | None,
    **more: Any,
) -> OpCase:
    """Put an operation between a layer `a` of n rows and a layer `b` of two, which reads the units `read`."""
    rows = span(0, n) if rows is None else rows
    read = span(0, n) if read is None else read
    n_units, n_read = max(rows) + 1, len(read)
    shared = more.get("shared", ())
    start = n_units + len(shared)  # what is shared is met between the two layers
    labels = {
        "a.weight": (rows, [R] * (shape[-1] if make[0](n).weight.dim() == 2 else shape[0])),
        **{f"{name}.weight": ([n_units + i], None) for i, name in enumerate(shared)},
        **more.pop("labels", {}),
        "b.weight": ([start, start + 1], read),
    }

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        return end(net.b(f(h) if parts is None else f(net, h)))

    return OpCase(
        op,
        lambda: Net(run, a=make[0](n), b=make[1](n_read), **({} if parts is None else parts())),
        shape,
        {"a": n_units, **dict.fromkeys(shared, 1), "b": 2},
        labels,
        norms={} if norm is None else {"n": (norm, rows)},
        **more,
    )


def vectors(op, f, read=None, n=3, rows=None, parts=None, shape=(4,), norm=None, **more) -> OpCase:
    """Put an operation between two linear layers; `f` returns (B, len(read)).

    Args:
        op: its name.
        f: h -> result, or with `parts` (network, h) -> result.
        read: the units in the columns of the second layer; all of the first by default.
        n: rows of the first layer.
        rows: the units of its rows; one each by default.
        parts: makes further parts of the network.
        shape: of an example.
        norm: the dimension along which the module `n` norms the units.
        more: fields of the case.
    """
    return _around(op, f, (lambda n: nn.Linear(4, n), lambda n: nn.Linear(n, 2)), lambda y: y, shape, n, rows, read, parts, norm, **more)


def tokens(op, f, read=None, n=3, rows=None, parts=None, norm=None, **more) -> OpCase:
    """Put an operation between two linear layers that act on each of 5 tokens; `f` returns (B, any, len(read))."""
    make = (lambda n: nn.Linear(4, n), lambda n: nn.Linear(n, 2))
    return _around(op, f, make, lambda y: y.mean(1), TOKENS, n, rows, read, parts, norm, **more)


def maps(op, f, read=None, n=3, rows=None, parts=None, norm=None, n_dims=2, **more) -> OpCase:
    """Put an operation between two convolutions; `f` returns (B, len(read), ...)."""
    make = (lambda n: CONV[n_dims](2, n, 1), lambda n: CONV[n_dims](n, 2, 1))
    return _around(op, f, make, lambda y: y.flatten(2).mean(2), (2, *POSITIONS[n_dims]), n, rows, read, parts, norm, **more)
