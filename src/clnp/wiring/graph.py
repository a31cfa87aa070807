"""The captured network: a list of plain records, made by `clnp.wiring.capture`."""

from __future__ import annotations

import dataclasses
import hashlib
import operator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

INPUT, PARAMETER, CONSTANT, OUTPUT = "input", "parameter", "constant", "output"
SIZE_OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "+": operator.add,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
    "max": torch.sym_max,
    "min": torch.sym_min,
}
"""What sizes are computed with. An operation takes two numbers."""


@dataclass(frozen=True)
class Size:
    """A size that changes with the input: `input.shape[dim]`, or an operation on sizes and integers.

    `hint` is what it was when the network was captured.
    """

    op: str
    args: tuple[Any, ...]
    hint: int


@dataclass(frozen=True)
class Ref:
    """An argument that is the value of another node."""

    name: str


@dataclass(frozen=True)
class Node:
    """One step of the captured network.

    `shape` has the sizes that were traced (of a tuple: those of its first tensor); `sizes` says for each of them how it
    follows from the input's, None where it is fixed. `module` and `source` say where in the user's code the step comes from.
    """

    name: str
    op: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    shape: tuple[int, ...] | None = None
    sizes: tuple[Size | None, ...] = ()
    module: str = ""
    source: str = ""

    @property
    def place(self) -> str:
        """Where in the user's model this is, for messages."""
        return f"'{self.module or '(top level)'}' ({self.source or 'no source line'})"

    def size(self, dim: int) -> int:
        """Return the size that was traced along one dimension."""
        assert self.shape is not None, f"{self.name} has no shape"
        return self.shape[dim]


@dataclass(frozen=True)
class Graph:
    """A captured network: its nodes in the order of execution, and the values that it starts from."""

    nodes: tuple[Node, ...]
    trainable: frozenset[str]
    """Names of the parameters (the rest of the state are buffers)."""
    constants: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Tensors that the network's code makes itself, by name."""
    through_views: tuple[str, ...] = ()
    """Where the network's code changes a tensor in place through a view of it: for messages, for the capture does not see such a change."""

    @property
    def output(self) -> str:
        """The name of the node whose value the network returns."""
        return self.nodes[-1].args[0].name

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """The nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def inputs(self) -> tuple[Node, ...]:
        """The nodes that are the network's inputs, in the order of its arguments."""
        return tuple(node for node in self.nodes if node.op == INPUT)

    @property
    def batch(self) -> Size | None:
        """The size that counts the examples."""
        return self.inputs[0].sizes[0]

    def batch_dim(self, node: Node) -> int | None:
        """Return the dimension of a value that counts the examples, and nothing else; None when there is none."""
        return next((dim for dim, size in enumerate(node.sizes) if size is not None and size == self.batch), None)

    @property
    def hash(self) -> str:
        """SHA-256 of what the graph computes: equal for the same architecture, whatever its weights."""
        rows = [dataclasses.astuple(dataclasses.replace(node, source="")) for node in self.nodes]
        return hashlib.sha256(repr(rows).encode()).hexdigest()


MASK = "aten.bernoulli.p"
"""Draws a mask of zeros and ones, raw input whatever it is drawn into: stochastic depth drops whole branches by it. In evaluation it is its mean."""


def resolve(op: str) -> Callable[..., Any]:
    """Return the function that a node's `op` names, "aten.relu.default"."""
    if op == "operator.getitem":
        return operator.getitem
    packet: Any = torch.ops
    for part in op.split("."):
        packet = getattr(packet, part)
    return packet


def references(value: Any) -> list[str]:
    """Return the names of all nodes that an argument (or a nest of arguments) refers to."""
    if isinstance(value, Ref):
        return [value.name]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [name for item in value for name in references(item)]
    return []


def live(nodes: Sequence[Node]) -> list[Node]:
    """Leave out what the output does not need: unused parameters, counters of batch norms. The input stays."""
    needed: set[str] = set()
    for node in reversed(nodes):
        if node.op == OUTPUT or node.name in needed:
            needed |= set(references([list(node.args), dict(node.kwargs)]))
    return [node for node in nodes if node.name in needed or node.op in (INPUT, OUTPUT)]
