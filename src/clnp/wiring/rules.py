"""The rules: for each operation, what it does to labels.

One small function per kind of operation, one visible table, `RULES`. A rule is called with the tracer, the node and its
arguments, in which each tensor is a `Value`; it returns the labels of the result. It may make new units
(`tracer.fresh`), tie labels (`tracer.tie`) and say how a parameter's rows and columns are labelled (`tracer.use`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from clnp.errors import WiringError
from clnp.wiring.labels import EVERYONE, along, compact, varying

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clnp.wiring.graph import Node
    from clnp.wiring.trace import Tracer


class Value(NamedTuple):
    """A tensor while labels run through the graph: its labels, its traced shape, and what it is called in the model's state."""

    labels: Tensor
    shape: tuple[int, ...]
    parameter: str | None = None
    trainable: bool = False


LabelRule = Callable[["Tracer", "Node", list[Any]], Tensor]


@dataclass(frozen=True)
class Rule:
    """How one operation treats units.

    `kind` tells `clnp.narrow` how to emit the operation for fewer units: "plain" (as it is), "pointwise" (operands
    meet at positions: raw input is cut to those that are left), "view" (its sizes are rewritten), "cat" (operands
    without units left are dropped), "weight" (rows and columns of a parameter are chosen), "norm" (statistics of each
    unit), "noise" (dropout: only in training).
    """

    label: LabelRule
    kind: Literal["plain", "pointwise", "view", "cat", "weight", "norm", "noise"] = "plain"


def tensors(arguments: Sequence[Any]) -> list[Value]:
    """Return the tensor arguments, those inside lists too."""
    found: list[Value] = []
    for argument in arguments:
        if isinstance(argument, Value):
            found.append(argument)
        elif isinstance(argument, list):
            found += tensors(argument)
    return found


def pointwise(tracer: Tracer, node: Node, arguments: list[Any]) -> Tensor:
    """Tie what meets at a position: an addition, an activation, a gate."""
    values = tensors(arguments)
    for value in values:
        if value.trainable:
            raise WiringError(
                f"cannot isolate tasks in this network: the parameter '{value.parameter}' enters {node.op} at {node.place} directly, "
                f"not through a layer; its elements cannot be assigned to units yet. Wrap it in a layer, or make it a buffer if it is fixed."
            )
    result = torch.full((1,) * len(node.shape or ()), EVERYONE)
    for value in values:
        result, labels = torch.broadcast_tensors(result, value.labels)
        tracer.tie(node, result, labels)
        result = torch.where(result == EVERYONE, labels, result)
    for value in values:
        mixed = (value.labels == EVERYONE).any() and (value.labels != EVERYONE).any()
        if mixed and ((value.labels == EVERYONE) & (result != EVERYONE)).any():
            raise WiringError(f"cannot isolate tasks in this network: {node.op} at {node.place} adds units to raw input inside one tensor.")
    return compact(result)


def dropout(tracer: Tracer, node: Node, arguments: list[Any]) -> Tensor:
    """Pass the units through; the noise itself acts only in training, and only on what pool rows read."""
    return pointwise(tracer, node, arguments[:1])


def flatten(tracer: Tracer, node: Node, arguments: list[Any]) -> Tensor:
    """Give every position of the flattened dimensions its own place: a unit of a (C, H, W) map gets H * W columns."""
    del tracer
    return compact(arguments[0].labels.expand(arguments[0].shape).reshape(node.shape or ()))


def permute(tracer: Tracer, node: Node, arguments: list[Any]) -> Tensor:
    """Move the dimensions of the labels like those of the tensor."""
    del tracer
    return (
        torch.permute(arguments[0].labels, arguments[1])
        if node.op == "aten.permute.default"
        else arguments[0].labels.transpose(*arguments[1:])
    )


def unsqueeze(tracer: Tracer, node: Node, arguments: list[Any]) -> Tensor:
    """Add a dimension of size 1."""
    del tracer, node
    return arguments[0].labels.unsqueeze(arguments[1])


def concatenate(tracer: Tracer, node: Node, arguments: list[Any]) -> Tensor:
    """Put the units of the operands side by side."""
    values = tensors(arguments[:1])
    dim = (arguments[1] if len(arguments) > 1 else 0) % len(node.shape or ())
    for value in values:
        if value.trainable:
            pointwise(tracer, node, [value])  # refuses it
    sizes = [max(value.labels.shape[d] for value in values) for d in range(len(node.shape or ()))]
    wide = [value.labels.expand(*sizes[:dim], value.shape[dim], *sizes[dim + 1 :]) for value in values]
    return compact(torch.cat(wide, dim))


def spatial(tracer: Tracer, node: Node, arguments: list[Any]) -> Tensor:
    """Pool over positions: each channel (dimension 1) stays what it is."""
    value: Value = arguments[0]
    return tracer.only_along(node, value, {0, 1} if len(value.shape) > 2 else {0})


def mean(tracer: Tracer, node: Node, arguments: list[Any]) -> Tensor:
    """Average over dimensions: whatever units lie along them are tied."""
    value: Value = arguments[0]
    n = len(value.shape)
    dims = arguments[1] if len(arguments) > 1 and arguments[1] else list(range(n))
    reduced = {dim % n for dim in dims}
    if any(tracer.node(node.args[0].name).dynamic[dim] for dim in reduced):
        raise WiringError(f"cannot isolate tasks in this network: {node.op} at {node.place} averages over the examples of a batch.")
    labels = tracer.only_along(node, value, set(range(n)) - reduced)
    keepdim = len(arguments) > 2 and arguments[2]
    return labels if keepdim else labels.squeeze(tuple(sorted(reduced)))


def linear(tracer: Tracer, node: Node, arguments: list[Any]) -> Tensor:
    """Make new units: one per row of the weight (O, I); its columns belong to the units of the input's last dimension."""
    value: Value = arguments[0]
    last = len(value.shape) - 1
    columns = along(tracer.only_along(node, value, {last}), last, value.shape[last])
    rows = _weighted(tracer, node, arguments, columns)
    return rows.reshape((1,) * last + (-1,))


def convolution(tracer: Tracer, node: Node, arguments: list[Any]) -> Tensor:
    """Make new units: one per output channel of the weight (O, I, ...); columns belong to the input's channels."""
    value: Value = arguments[0]
    groups = arguments[6] if len(arguments) > 6 else 1
    if groups != 1:
        raise WiringError(
            f"cannot isolate tasks in this network: {node.op} at {node.place} is a grouped convolution ({groups} groups), "
            f"whose units cannot be told apart yet."
        )
    columns = along(tracer.only_along(node, value, {1}), 1, value.shape[1])
    rows = _weighted(tracer, node, arguments, columns)
    return rows.reshape((1, -1) + (1,) * (len(value.shape) - 2))


def _weighted(tracer: Tracer, node: Node, arguments: list[Any], columns: Tensor) -> Tensor:
    weight: Value = arguments[1]
    bias: Value | None = arguments[2] if len(arguments) > 2 else None
    for what, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and not tensor.trainable:
            found = "computed" if tensor.parameter is None else f"the buffer '{tensor.parameter}'"
            raise WiringError(
                f"cannot isolate tasks in this network: the {what} of {node.op} at {node.place} is not a parameter but {found}."
            )
    assert weight.parameter is not None
    rows = tracer.fresh(node, weight.shape[0])
    tracer.use(node, weight.parameter, rows, columns)
    if bias is not None and bias.parameter is not None:
        tracer.use(node, bias.parameter, rows)
    return rows


def batch_norm(tracer: Tracer, node: Node, arguments: list[Any]) -> Tensor:
    """Give scale, shift and running statistics to the unit of their channel; channels of raw input become units here."""
    value, *stored = arguments[:5]
    if stored[2] is None or stored[3] is None:
        raise WiringError(
            f"cannot isolate tasks in this network: {node.op} at {node.place} keeps no running statistics, "
            f"so its outputs depend on the rest of the batch. Use track_running_stats=True."
        )
    channels = along(tracer.only_along(node, value, {1}), 1, value.shape[1])
    raw = channels == EVERYONE
    if bool(raw.any()):
        if not bool(raw.all()):
            raise WiringError(
                f"cannot isolate tasks in this network: {node.op} at {node.place} norms raw input beside units. Norm them apart."
            )
        channels = tracer.fresh(node, len(channels))
    for tensor, initial in zip(stored, (1.0, 0.0, 0.0, 1.0), strict=True):  # scale, shift, mean, variance
        if tensor is not None:
            tracer.use(node, tensor.parameter, channels, initial=initial)
    return channels.reshape((1, -1) + (1,) * (len(value.shape) - 2))


def pick(tracer: Tracer, node: Node, arguments: list[Any]) -> Tensor:
    """Take one of several results that have the same units: values or indices of a pooling."""
    del tracer, node
    return arguments[0].labels


def refuse(tracer: Tracer, node: Node, arguments: list[Any]) -> Tensor:
    """Say by name what cannot be isolated: never a silent guess."""
    del tracer, arguments
    raise WiringError(
        f"cannot isolate tasks in this network: no rule for the operation {node.op} at {node.place}. "
        f"clnp.wiring.RULES lists those that have one."
    )


_POINTWISE = (
    "relu relu6 gelu silu mish elu celu selu leaky_relu hardtanh hardswish hardsigmoid tanh sigmoid softplus "
    "add.Tensor sub.Tensor mul.Tensor div.Tensor add.Scalar mul.Scalar neg exp abs sqrt clamp pow.Tensor_Scalar clone contiguous detach alias"
)
_SPATIAL = (
    "max_pool1d max_pool2d avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_max_pool1d adaptive_max_pool2d max_pool2d_with_indices"
)


def _names(names: str) -> list[str]:
    return [f"aten.{name}" if "." in name else f"aten.{name}.default" for name in names.split()]


def kind_of(node: Node) -> str:
    """Return the kind of a node's rule; what has none (sizes, arithmetic on sizes) is plain."""
    return RULES[node.op].kind if node.op in RULES else "plain"


RULES: dict[str, Rule] = {
    **{op: Rule(pointwise, "pointwise") for op in _names(_POINTWISE)},
    **{op: Rule(dropout, "noise") for op in _names("dropout feature_dropout alpha_dropout feature_alpha_dropout")},
    **{op: Rule(spatial) for op in _names(_SPATIAL)},
    **{op: Rule(permute) for op in _names("permute transpose.int")},
    **{op: Rule(flatten, "view") for op in _names("view reshape _unsafe_view")},
    "aten.flatten.using_ints": Rule(flatten),
    "aten.unsqueeze.default": Rule(unsqueeze),
    "aten.cat.default": Rule(concatenate, "cat"),
    "aten.mean.dim": Rule(mean),
    **{op: Rule(linear, "weight") for op in _names("linear")},
    **{op: Rule(convolution, "weight") for op in _names("conv1d conv1d.padding conv2d conv2d.padding")},
    "operator.getitem": Rule(pick),
    "aten.batch_norm.default": Rule(batch_norm, "norm"),
}
"""What is done with labels, by operation. An operation that is not here is refused by name."""


def check_separable(node: Node, labels: Tensor) -> None:
    """Refuse labels that change along two dimensions: a subset of units would be no rectangle of the tensor."""
    if len(varying(labels)) > 1:
        raise WiringError(
            f"cannot isolate tasks in this network: after {node.op} at {node.place} the units lie along dimensions {varying(labels)} at once "
            f"(shape {node.shape}), so that none can be left out alone."
        )
