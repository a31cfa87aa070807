"""Operations that meet position by position, and those that move positions without computing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clnp.wiring.labels import EVERYONE, compact, varying
from clnp.wiring.rules.base import Labels, Value, aligned, filled, moved, refusal, relabelled, tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clnp.wiring.graph import Node
    from clnp.wiring.tracer import Tracer


def pointwise(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Tie what meets at a position: an addition, an activation, a gate. A parameter's elements belong to the units that they meet."""
    return meet(tracer, node, tensors(arguments), len(node.shape or ()))


def meet(tracer: Tracer, node: Node, values: Sequence[Value], n_dims: int) -> Tensor:
    """Tie tensors that are broadcast to `n_dims` dimensions, and return the labels of the result."""
    result = torch.full((1,) * n_dims, EVERYONE)
    later: list[Tensor] = []  # parameters that all units read have nothing to say where there are units
    plain = [value for value in values if not value.is_parameter]
    for value in [*plain, *(value for value in values if value.is_parameter)]:
        if value.is_parameter:
            multiplies = node.op.startswith(("aten.mul.", "aten.div."))
            labels = _elements(tracer, node, value, result, 1.0 if multiplies else None).labels
        else:
            labels = value.labels
        if tracer.is_shared(labels):
            later.append(labels)
            continue
        result, labels = torch.broadcast_tensors(result, labels)
        tracer.tie(node, result, labels)
        result = torch.where(result == EVERYONE, labels, result)
    for labels in later:
        result, labels = torch.broadcast_tensors(result, labels)  # noqa: PLW2901
        result = torch.where(result == EVERYONE, labels, result)
    return filled(result)


def _elements(tracer: Tracer, node: Node, value: Value, others: Tensor, initial: float | None) -> Value:
    """Take a parameter as a plain tensor whose elements belong to the units of `others` that they meet.

    A parameter that is broadcast over the units belongs to none of them: it is shared by all.
    """
    dims = varying(others)
    if dims:
        place = aligned(dims[0], others.dim(), len(value.shape))
        shared = place < 0 or value.shape[place] == 1
    else:
        shared = all(size == 1 for size in value.shape)
    return tracer.share(node, [value], initial)[0] if shared else tracer.direct(node, value, initial)


def dropout(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Pass the units through; the noise itself acts only in training, and only on what pool rows read."""
    return pointwise(tracer, node, arguments[:1])


def move(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Apply the operation to the labels themselves: a view, a permutation, a slice, a shuffle."""
    value: Value = arguments[0]
    if value.is_parameter:
        if tracer.is_static(node) and tracer.kind(node) != "pad":  # what is put in is no part of the parameter
            return value._replace(node=node.name, shape=node.shape or (), moves=(*value.moves, node))
        value = tracer.direct(node, value)
    labels = value.labels
    if tracer.kind(node) in ("shape", "expand"):
        full, shape = value.full(), node.shape or ()
        return compact(full.reshape(shape) if tracer.kind(node) == "shape" else full.expand(shape))
    simple = node.op in ("aten.permute.default", "aten.transpose.int")
    found = relabelled(node, labels if simple else value.full())
    return found if simple else _after(value, found, pads=tracer.kind(node) == "pad")


def _after(value: Value, labels: Tensor, *, pads: bool = False) -> Tensor:
    """Return the labels of a value whose positions moved; raw input beside units stays raw input where nothing was put in."""
    return filled(labels) if pads or len(varying(value.labels)) > 1 else compact(labels)


def same(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Leave every element where it is: a copy, another number format."""
    value: Value = arguments[0]
    if value.is_parameter and "to" not in node.op.split(".")[1].split("_") and "type" not in node.op:
        return value._replace(node=node.name, moves=(*value.moves, node))
    return tracer.plain(node, value).labels


def concatenate(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Put the units of the operands side by side."""
    values = [tracer.direct(node, value) if value.is_parameter else value for value in tensors(arguments[:1])]
    values = [value for value in values if len(value.shape) == len(node.shape or ())]  # torch lets empty ones of another shape pass
    dim = (arguments[1] if len(arguments) > 1 else node.kwargs.get("dim", 0)) % len(node.shape or ())
    across = _behind_each_other(tracer, node, values, dim)
    sizes = [max(value.labels.shape[d] for value in values) for d in range(len(node.shape or ()))]
    wide = [value.labels.expand(*sizes[:dim], value.shape[dim], *sizes[dim + 1 :]) for value in values]
    if across is not None:
        wide = [torch.where(labels == EVERYONE, labels, across) for labels in wide]
    return filled(torch.cat(wide, dim))


def _behind_each_other(tracer: Tracer, node: Node, values: Sequence[Value], dim: int) -> Tensor | None:
    """Tie what lies along another dimension, where it is the same for all positions along `dim`: tokens behind tokens.

    Class tokens are parameters of their own; whatever follows treats them like the others. Returns the labels of all, or None.
    """
    units = [value for value in values if value.labels.numel() > 1]
    if len(units) < 2 or len(node.shape or ()) == 1 or units[0].node.endswith("_of_stack"):
        return None
    lines: list[Tensor] = []
    for value in units:
        line = value.labels
        if line.shape[dim] > 1:
            if not tracer.is_direct(line):
                return None
            line = tracer.only_along(node, value, set(range(line.dim())) - {dim})
        lines.append(line)
    across = lines[0]
    for line in lines[1:]:
        tracer.tie(node, across, line)
        across = torch.where(across == EVERYONE, line, across)
    return across


def glu(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Tie each unit to its gate: the halves of a tensor along a dimension."""
    value: Value = arguments[0]
    dim = arguments[1] if len(arguments) > 1 else -1
    first, second = value.full().chunk(2, dim)
    if bool(((first == EVERYONE) != (second == EVERYONE)).any()):
        raise refusal(node, "reads raw input beside units: one would be gated by the other. Chunk it, and multiply.")
    tracer.tie(node, first, second)
    return compact(torch.where(first == EVERYONE, second, first))


def shuffled_pixels(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Tie the r * r channels that become one channel (dimension 1)."""
    labels = moved(node, arguments[0].full())
    value = Value(compact(labels), node.shape or ())
    return tracer.only_along(node, value, {len(value.shape) - 3})


def complex_view(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Tie the two numbers of a complex one."""
    value: Value = arguments[0]
    if node.op == "aten.view_as_real.default":
        return value.labels.unsqueeze(-1)
    return tracer.only_along(node, value, set(range(len(value.shape) - 1))).squeeze(-1)


def index(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Choose positions by index tensors; along the units' own dimension only by ones that are fixed."""
    value: Value = arguments[0]
    if value.is_parameter:
        value = tracer.direct(node, value)
    one = node.op == "aten.index_select.default"
    places = {arguments[1] % len(value.shape): arguments[2]} if one else {d: v for d, v in enumerate(arguments[1]) if v is not None}
    if any(not place.is_raw for place in places.values()):
        return tracer.merge(node, [value, *places.values()], "reads positions that units choose")
    known = {dim: tracer.content(place.node) for dim, place in places.items()}
    for dim, place in places.items():
        if known[dim] is None:
            if value.labels.shape[dim] > 1:
                return tracer.merge(node, [value], "chooses units by an index that is computed")
            known[dim] = torch.zeros(place.shape, dtype=torch.long)
    full = value.full()
    if one:
        return _after(value, full.index_select(next(iter(known)), next(iter(known.values()))))  # pyright: ignore[reportArgumentType]
    return _after(value, full[tuple(known.get(dim, slice(None)) for dim in range(full.dim()))])  # pyright: ignore[reportArgumentType]


def pick(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Take one of several results."""
    del tracer, node
    found = arguments[0]
    return found[arguments[1]].labels if isinstance(found, list) else found.labels
