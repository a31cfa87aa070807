"""Norms over several units: each is normalised over the units that its owner needs (DESIGN.md, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clnp.wiring.labels import varying
from clnp.wiring.patterns import UNIT_NORM
from clnp.wiring.rules.base import Labels, Value, refusal, refuse_mixture
from clnp.wiring.rules.weights import per_channel

if TYPE_CHECKING:
    from clnp.wiring.graph import Node
    from clnp.wiring.tracer import Tracer


@dataclass(frozen=True)
class NormForm:
    """What a norm over units computes: (x - mean) / sqrt(variance + eps) over `dims`, or without the mean, times scale, plus shift.

    `parameter_dim` is the dimension of x with which dimension 0 of scale and shift is aligned.
    """

    dims: tuple[int, ...]
    scale: Any
    shift: Any
    eps: float | None
    centred: bool
    parameter_dim: int


def norm_form(node: Node, n_dims: int) -> NormForm:
    """Read the arguments of layer_norm, rms_norm or group_norm with one group."""
    if node.op == UNIT_NORM:
        _, dims, eps, centred = node.args
        return NormForm(tuple(dims), None, None, eps, centred, dims[0])
    args = [*node.args, None, None, None]
    if node.op == "aten.group_norm.default":
        eps = args[4] if len(node.args) > 4 else 1e-5
        return NormForm(tuple(range(1, n_dims)), args[2], args[3], eps, True, 1)
    n = len(node.args[1])
    dims = tuple(range(n_dims - n, n_dims))
    if node.op == "aten.rms_norm.default":
        return NormForm(dims, args[2], None, args[3], False, n_dims - n)
    return NormForm(dims, args[2], args[3], args[4] if len(node.args) > 4 else 1e-5, True, n_dims - n)


def over_units(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Tie nothing: a unit is normalised over the units that its owner needs; its scale and shift are its own."""
    value = tracer.plain(node, arguments[0])
    form = norm_form(node, len(value.shape))
    stored: list[Value] = [part for part in arguments[2:4] if isinstance(part, Value)]
    if any(not part.is_parameter for part in stored):
        return tracer.merge(node, [value, *stored], "has a scale or a shift that is computed")
    inside = [dim for dim in varying(value.labels) if dim in form.dims]
    outside = {dim for dim in varying(value.labels) if dim not in form.dims}
    if outside:
        # Inside heads, or over positions: every unit has statistics of its own, and all of them the same scale.
        tracer.kinds[node.name] = "plain"
        if stored:
            refuse_mixture(node, value)
        tracer.share(node, stored, 1.0)
        return tracer.only_along(node, value, outside)
    if value.is_raw and not stored:
        tracer.kinds[node.name] = "plain"
        return value.labels
    # Raw input has its units along the channels: the first of several normalised dimensions.
    dim = inside[0] if inside else form.parameter_dim
    units = per_channel(tracer, node, value, dim)
    for part, initial in zip(arguments[2:4], (1.0, 0.0), strict=False):
        if isinstance(part, Value):
            tracer.own(node, part, dim - form.parameter_dim, units, initial)
    tracer.norms.append((node, units))
    return units.reshape([-1 if d == dim else 1 for d in range(len(value.shape))])


def group_norm(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Make one unit of each group of channels; one group alone is a norm over units."""
    value, groups = tracer.plain(node, arguments[0]), arguments[1]
    if groups == 1:
        return over_units(tracer, node, [value, None, *arguments[2:]])
    tracer.kinds[node.name] = "own"
    stored = [part for part in arguments[2:4] if isinstance(part, Value)]
    if any(not part.is_parameter for part in stored):
        return tracer.merge(node, [value, *stored], "has a scale or a shift that is computed")
    units = per_channel(tracer, node, value, 1)
    by_group = units.reshape(groups, -1)
    tracer.tie(node, by_group, by_group[:, :1])
    for part, initial in zip(arguments[2:4], (1.0, 0.0), strict=False):
        if isinstance(part, Value):
            tracer.own(node, part, 0, units, initial)
    return units.reshape((1, -1) + (1,) * (len(value.shape) - 2))


def instance_norm(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Give scale and shift to the unit of their channel."""
    value = tracer.plain(node, arguments[0])
    if arguments[3] is not None or arguments[4] is not None:
        raise refusal(node, "keeps running statistics of single examples. Use track_running_stats=False.")
    stored = [part for part in arguments[1:3] if isinstance(part, Value)]
    if any(not part.is_parameter for part in stored):
        return tracer.merge(node, [value, *stored], "has a scale or a shift that is computed")
    if value.is_raw and not stored:
        tracer.kinds[node.name] = "plain"
        return value.labels
    units = per_channel(tracer, node, value, 1)
    for part, initial in zip(arguments[1:3], (1.0, 0.0), strict=True):
        if isinstance(part, Value):
            tracer.own(node, part, 0, units, initial)
    return units.reshape((1, -1) + (1,) * (len(value.shape) - 2))
