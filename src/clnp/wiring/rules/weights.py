"""Layers: operations that make new units, whose rows read the units of their input through a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clnp.wiring.labels import along, varying
from clnp.wiring.rules.base import Labels, Value, refusal, refuse_mixture

if TYPE_CHECKING:
    from torch import Tensor

    from clnp.wiring.graph import Node
    from clnp.wiring.tracer import Tracer


def linear(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Make new units: one per row of the weight (O, I); its columns belong to the units of the input's last dimension.

    A weight that acts along a dimension without units (the positions of a token mixer) is shared by all units.
    """
    value, weight, bias = arguments[0], arguments[1], arguments[2] if len(arguments) > 2 else None
    last = len(value.shape) - 1
    value = tracer.plain(node, value)
    if not _is_layer(weight, bias, 2):
        return tracer.merge(node, [value, weight, bias], "has a weight that is computed")
    if varying(value.labels) and last not in varying(value.labels):
        refuse_mixture(node, value)
        tracer.share(node, [weight, bias])
        return value.labels
    rows = layer(tracer, node, value, last, weight, bias, row_dim=0, column_dim=1)
    return rows.reshape((1,) * last + (-1,))


def convolution(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Make new units: one per output channel of the weight (O, I, ...); columns belong to the input's channels."""
    value, weight, bias = arguments[0], arguments[1], arguments[2] if len(arguments) > 2 else None
    value = tracer.plain(node, value)
    transposed = "transpose" in node.op
    groups = arguments[6] if len(arguments) > 6 else 1
    channels = len(value.shape) - len(weight.shape) + 1  # 1, or 0 without a batch
    if not _is_layer(weight, bias, len(weight.shape)) or channels != 1:
        return tracer.merge(node, [value, weight, bias], "has a weight that is computed, or no batch")
    one_by_one = all(size == 1 for size in weight.shape[2:]) and value.shape[2:] == (node.shape or ())[2:]
    if groups == 1 and one_by_one and varying(value.labels) and 1 not in varying(value.labels):
        refuse_mixture(node, value)
        tracer.share(node, [weight, bias])
        return value.labels
    if groups != 1:
        tracer.kinds[node.name] = "own"
        rows = _grouped(tracer, node, value, weight, bias, groups, transposed)
    else:
        rows = layer(tracer, node, value, 1, weight, bias, row_dim=int(transposed), column_dim=int(not transposed))
    return rows.reshape((1, -1) + (1,) * (len(value.shape) - 2))


def _is_layer(weight: Value, bias: Value | None, n_dims: int) -> bool:
    """Tell whether a weight and a bias are parameters."""
    return weight.is_parameter and len(weight.shape) == n_dims and (bias is None or bias.is_parameter)


def layer(
    tracer: Tracer, node: Node, value: Value, dim: int, weight: Value, bias: Value | None, *, row_dim: int, column_dim: int
) -> Tensor:
    """Make new units of a weight's rows, and give its columns to the units along a dimension of the input. Returns the units (O,)."""
    columns = along(tracer.only_along(node, value, {dim}, lost="reads several units as if they were one"), dim, value.shape[dim])
    rows = tracer.weight(node, weight, row_dim, column_dim, columns, value.node)
    if bias is not None:
        tracer.own(node, bias, 0, rows, 0.0)
    return rows


def _grouped(tracer: Tracer, node: Node, value: Value, weight: Value, bias: Value | None, groups: int, transposed: bool) -> Tensor:
    """Make one unit of each group of a grouped convolution: its input and its output channels."""
    n_out = (node.shape or (0, 0))[1]
    read = along(tracer.only_along(node, value, {1}), 1, value.shape[1])
    if bool((read < 0).any()) and bool((read >= 0).any()):
        raise refusal(node, "reads raw input beside units. Let it read them apart.")
    if transposed:  # the rows (I, O / g, ...) are input channels
        rows = tracer.weight(node, weight, 0, None, None, value.node).reshape(groups, -1)  # (g, I / g)
        made = rows[:, :1].expand(groups, n_out // groups)
    else:
        rows = tracer.weight(node, weight, 0, None, None, value.node).reshape(groups, -1)  # (g, O / g)
        made = rows
    tracer.tie(node, rows, rows[:, :1])
    tracer.tie(node, read.reshape(groups, -1), rows[:, :1])
    if bias is not None:
        tracer.own(node, bias, 0, made.reshape(-1), 0.0)
    return made.reshape(-1)


def embedding(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Make new units: one per column of the table (entries, D)."""
    weight, index = arguments[0], arguments[1]
    if not index.is_raw:
        return tracer.merge(node, [weight, index], "is looked up by what units compute")
    if not weight.is_parameter:
        return weight.labels.new_full((1,) * len(node.shape or ()), -1) if weight.is_raw else tracer.merge(node, [weight], "is computed")
    rows = tracer.weight(node, weight, 1, None, None, "", deviation=1.0)
    return rows.reshape((1,) * (len(node.shape or ()) - 1) + (-1,))


def recurrent(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Make one unit of each hidden unit: its gates (blocks of rows), what they read of the input, and of each other."""
    value, w_ih, w_hh, b_ih, b_hh, h0, c0 = arguments[:7]
    value = tracer.plain(node, value)
    n = w_hh.shape[1]
    if not all(part is None or part.is_parameter for part in (w_ih, w_hh, b_ih, b_hh)):
        raise refusal(node, "has a weight that is computed.")
    columns = along(tracer.only_along(node, value, {2}), 2, value.shape[2])
    rows = tracer.weight(node, w_ih, 0, 1, columns, value.node).reshape(-1, n)  # (gates, H)
    tracer.tie(node, rows, rows[:1])
    units = rows[0]
    again = tracer.weight(node, w_hh, 0, 1, units, node.name)
    tracer.tie(node, again.reshape(-1, n), units)
    for bias in (b_ih, b_hh):
        if bias is not None:
            tracer.own(node, bias, 0, rows.reshape(-1), 0.0)
    for start in (h0, c0):
        if start is not None:
            tracer.tie(node, tracer.plain(node, start).labels, units)
    return [units.reshape(1, 1, -1), units.reshape(1, -1)]


def prelu(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Give a slope to the unit of its channel (dimension 1), or one to all."""
    value, weight = tracer.plain(node, arguments[0]), arguments[1]
    if not weight.is_parameter:
        return tracer.merge(node, [value, weight], "has a weight that is computed")
    refuse_mixture(node, value)
    if weight.shape in ((), (1,)):
        tracer.share(node, [weight], 0.25)
        return value.labels if not value.is_raw else tracer.share(node, [weight], 0.25)[0].labels.reshape((1,) * len(value.shape))
    dim = 1 if len(value.shape) > 1 else 0
    labels = tracer.only_along(node, value, {dim})
    units = along(labels, dim, value.shape[dim])
    if value.is_raw:
        units = tracer.weight(node, weight, 0, None, None, "", deviation=0.0, initial=0.25)
    else:
        tracer.own(node, weight, 0, units, 0.25)
    return units.reshape([-1 if d == dim else 1 for d in range(len(value.shape))])


def batch_norm(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Give scale, shift and running statistics to the unit of their channel; channels of raw input become units here."""
    value, *stored = arguments[:5]
    value = tracer.plain(node, value)
    if stored[2] is None or stored[3] is None:
        raise refusal(node, "keeps no running statistics, so its outputs depend on the rest of the batch. Use track_running_stats=True.")
    channels = per_channel(tracer, node, value, 1)
    for tensor, initial in zip(stored, (1.0, 0.0, 0.0, 1.0), strict=True):  # scale, shift, mean, variance
        if tensor is not None:
            tracer.own(node, tensor, 0, channels, initial)
    return channels.reshape((1, -1) + (1,) * (len(value.shape) - 2))


def per_channel(tracer: Tracer, node: Node, value: Value, dim: int) -> Tensor:
    """Return the unit of each position along a dimension; positions of raw input become units here."""
    channels = along(tracer.only_along(node, value, {dim}), dim, value.shape[dim])
    raw = channels < 0
    if bool(raw.any()):
        if not bool(raw.all()):
            raise refusal(node, "norms raw input beside units. Norm them apart.")
        channels = tracer.fresh(node, len(channels))
    return channels
