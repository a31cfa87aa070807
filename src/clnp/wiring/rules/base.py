"""What rules work with: values, the rule of an operation, and how labels move with the elements of a tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from clnp.errors import WiringError
from clnp.wiring.graph import Node, Size, resolve
from clnp.wiring.labels import EVERYONE, compact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clnp.wiring.tracer import Tracer


class Value(NamedTuple):
    """A tensor while labels run through the graph.

    A parameter that is nobody's operand yet has no labels, but the `moves` that made this view of it: whether its rows
    are units, or its elements, is decided by what uses it (`Tracer.weight`, `Tracer.own`, `Tracer.direct`).
    """

    labels: Tensor
    shape: tuple[int, ...]
    node: str = ""
    parameter: str | None = None
    trainable: bool = False
    moves: tuple[Node, ...] = ()

    @property
    def is_parameter(self) -> bool:
        """Whether it is a parameter, or a view of one, that no operation has taken as a plain tensor yet."""
        return self.trainable

    @property
    def is_raw(self) -> bool:
        """Whether it belongs to no unit."""
        return not self.trainable and bool((self.labels == EVERYONE).all())

    def full(self) -> Tensor:
        """Return a label for every position."""
        return self.labels.expand(self.shape)


Labels = Tensor | list[Tensor] | Value
LabelRule = Callable[["Tracer", Node, list[Any]], Labels]
Kind = Literal[
    "plain",
    "pointwise",
    "shape",
    "expand",
    "slice",
    "select",
    "cat",
    "pad",
    "weight",
    "own",
    "norm",
    "over",
    "noise",
    "attention",
    "recurrent",
    "gather",
]


@dataclass(frozen=True)
class Rule:
    """How one operation treats units.

    `kind` tells `clnp.emit` how to write the operation for fewer units: "plain" (as it is), "pointwise" (as it is; raw input is
    cut to the positions that are left), "shape" (a reshape to the sizes that are left), "expand", "slice", "select" (their numbers
    are rewritten), "cat" (operands without units left are dropped), "pad", "weight" (rows and columns of a parameter are chosen),
    "own" (each unit has parameters that act on itself alone: as "pointwise"; a number of groups is rewritten), "norm" (running
    statistics of each unit), "over" (a norm over the needed units), "noise" (dropout: only in training), "attention" (dropout inside),
    "recurrent", "gather" (positions are chosen from an earlier value).
    """

    label: LabelRule
    kind: Kind = "plain"


def tensors(arguments: Sequence[Any]) -> list[Value]:
    """Return the tensor arguments, those inside lists too."""
    found: list[Value] = []
    for argument in arguments:
        if isinstance(argument, Value):
            found.append(argument)
        elif isinstance(argument, (list, tuple)):
            found += tensors(argument)
    return found


def refusal(node: Node, what: str) -> WiringError:
    """Return the error that says what cannot be isolated, and where."""
    return WiringError(f"cannot isolate tasks in this network: {node.op} at {node.place} {what}")


def refuse_mixture(node: Node, value: Value) -> None:
    """Refuse a shared parameter that reads raw input beside units: what it makes of raw input would be nobody's."""
    if not value.is_raw and bool((value.labels == EVERYONE).any()):
        raise refusal(node, "reads raw input beside units. Let it read them apart.")


def concrete(argument: Any) -> Any:
    """Replace sizes by what they were when the network was traced."""
    if isinstance(argument, Size):
        return argument.hint
    if isinstance(argument, (list, tuple)):
        return [concrete(item) for item in argument]
    return argument


SAME = frozenset(
    f"aten.{name}"
    for name in [
        "clone.default",
        "contiguous.default",
        "detach.default",
        "to.dtype",
        "to.dtype_layout",
        "to.device",
        "to.other",
        "type_as.default",
        "lift_fresh_copy.default",
    ]
)
"""Operations after which every element is where it was."""


def moved(node: Node, tensor: Tensor) -> Tensor:
    """Move elements as an operation on one tensor does; integers too, where torch knows the operation for real numbers only."""
    if node.op in SAME:
        return tensor
    args = [concrete(argument) for argument in node.args[1:]]
    kwargs = {key: concrete(value) for key, value in node.kwargs.items()}
    function = resolve(node.op)
    try:
        return function(tensor, *args, **kwargs)
    except (RuntimeError, NotImplementedError):
        return function(tensor.double(), *args, **kwargs).to(tensor.dtype)


def relabelled(node: Node, labels: Tensor) -> Tensor:
    """Move labels as an operation moves elements: what it puts in belongs to nobody, whatever number that is."""
    if node.op == "aten.constant_pad_nd.default":
        node = replace(node, args=node.args[:2], kwargs={})
    elif node.op == "aten.pad.default":
        node = replace(node, args=node.args[:3], kwargs={key: value for key, value in node.kwargs.items() if key != "value"})
    return moved(node, labels + 1) - 1  # zeros become EVERYONE


def filled(labels: Tensor) -> Tensor:
    """Give positions of raw input the unit that lies beside them, where that leaves one dimension fewer along which units change.

    Zeros that pad an image belong to every unit; they can as well belong to the unit of their channel.
    """
    labels = compact(labels)
    for dim in range(labels.dim()):
        if labels.shape[dim] > 1 and bool((labels == EVERYONE).any()):
            beside = torch.where(labels == EVERYONE, labels.amax(dim, keepdim=True), labels)
            if bool((beside == beside.narrow(dim, 0, 1)).all()):
                labels = beside.narrow(dim, 0, 1)
    return labels


def aligned(dim: int, n_from: int, n_to: int) -> int:
    """Return a dimension of a tensor with `n_from` dimensions in one with `n_to`, when both are broadcast."""
    return dim - n_from + n_to
