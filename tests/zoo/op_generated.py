"""Networks that are generated from the table of rules: every operation that acts position by position, called by its name.

Two layers of three units meet in the operation, or one layer and raw input: what meets is one unit, whatever the operation computes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from op_case import Net, OpCase, R
from torch import Tensor, nn

from clnp.wiring import RULES
from clnp.wiring.graph import resolve

if TYPE_CHECKING:
    from collections.abc import Collection

_BOOLEAN = ("logical_", "bitwise_", "__and__", "__or__")
_EQUAL = ("eq.", "ne.")
_POSITIVE = (
    "sqrt",
    "rsqrt",
    "log.",
    "log2",
    "log1p",
    "reciprocal",
    "pow.",
    "asin",
    "acos",
    "div.",
    "addcdiv",
    "floor_divide",
    "remainder",
    "fmod",
)
_SCALARS: dict[str, tuple[Any, ...]] = {
    "threshold": (0.1, -0.5),
    "clamp.default": (-0.3, 0.4),
    "hardtanh": (-0.3, 0.4),
    "where.Scalar": (0.5, 2.0),
}


def tensors_of(op: str) -> int:
    """Return how many tensors an operation reads, a list of them as many."""
    return sum("Tensor" in str(argument.type) for argument in resolve(op)._schema.arguments)


def _prepared(name: str, h: Tensor) -> Tensor:
    """Bring values to where the operation is defined and does something."""
    if name.startswith(_BOOLEAN):
        return h > 0
    if name.startswith(_EQUAL):
        return h.sign()
    return h.sigmoid() * 0.8 + 0.1 if name.startswith(_POSITIVE) else h * 2


def call(op: str, values: list[Tensor]) -> Tensor:
    """Call an operation on tensors, with sensible other arguments; returns real numbers."""
    name = op.removeprefix("aten.")
    given = [_prepared(name, value) for value in values]
    if name.startswith("where."):
        given[0] = given[0] > 0
    if name.startswith("masked_fill."):
        given[1] = given[1] > 0
    scalars = list(next((found for start, found in _SCALARS.items() if name.startswith(start)), (0.7, 1.3, 0.3)))
    arguments: list[Any] = []
    named: dict[str, Any] = {"rounding_mode": "floor"} if name.endswith("_mode") else {}
    for argument in resolve(op)._schema.arguments:
        kind = str(argument.type)
        if argument.kwarg_only:
            continue
        if "Tensor" in kind:
            if not given:
                break
            arguments.append(given.pop(0))
        elif not argument.has_default_value() or name.startswith(tuple(_SCALARS)):
            arguments.append(2.0 if name.startswith(("pow.", "mul.", "div.")) else scalars.pop(0))
    return resolve(op)(*arguments, **named).to(torch.float32)


def _network(op: str, n: int, raw: bool) -> OpCase:
    """Let the units of `a` meet those of `a2`, or raw input."""

    def run(net: Any, x: Tensor) -> Tensor:
        values = [net.a(x), *([x[:, :3], x[:, 1:]] if raw else [net.a2(x), net.a(-x)])]
        if op.startswith("aten.where.") and n > 1:
            values[:2] = values[1::-1]
        if op == "aten.masked_fill.Tensor":
            values[2:] = [net.fill]
        return net.b(call(op, values[:n]))

    tied = not raw and n > 1
    parts = {"a": (4, 3), **({"a2": (4, 3)} if tied else {}), "b": (3, 2)}

    def build() -> nn.Module:
        fill = {"fill": torch.tensor(-0.5)} if op == "aten.masked_fill.Tensor" else {}
        return Net(run, **{name: nn.Linear(*sizes) for name, sizes in parts.items()}, **fill)

    labels = {f"{name}.weight": ([0, 1, 2], [R] * 4) for name in parts if name != "b"}
    return OpCase(op, build, (4,), {"a": 3, "b": 2}, {**labels, "b.weight": ([3, 4], [0, 1, 2])})


def generated(known: Collection[str]) -> dict[str, OpCase]:
    """Return a network for each pointwise operation that no other has, and one with raw input where several tensors meet."""
    found: dict[str, OpCase] = {}
    for op in (op for op, rule in RULES.items() if rule.kind == "pointwise" and op.startswith("aten.")):
        n = tensors_of(op)
        if op not in known:
            found[f"generated {op}"] = _network(op, n, raw=False) if n > 1 else _network(op, n, raw=True)
        if n > 1:
            found[f"generated {op} with raw input"] = _network(op, n, raw=True)
    return found


def plain_name(op: str) -> str:
    """Return the name of an operation that does not work in place."""
    return re.sub(r"(?<=[a-z0-9])_\.", ".", op, count=1)
