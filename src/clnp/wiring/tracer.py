"""Run labels through a captured network: which unit does every position of every tensor belong to?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clnp.errors import WiringError
from clnp.wiring.graph import CONSTANT, INPUT, OUTPUT, PARAMETER, Graph, Node, Ref, Size
from clnp.wiring.labels import EVERYONE, compact, varying
from clnp.wiring.rules import RULES, Rule, Value, pointwise, unknown
from clnp.wiring.rules.base import SAME, moved, refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


PRODUCT = "sums products of units, and all of them meet"
"""Why an attention with a single head, or a matrix of channel by channel, is one unit."""


@dataclass
class Stored:
    """What is known of a parameter or a buffer while labels run: labels of its axes, or of its elements.

    A layer's weight has labels for each axis; `row` and `column` say which of them are units. A parameter that is used as a
    plain tensor has a label for each element.
    """

    shape: tuple[int, ...]
    axes: tuple[Tensor, ...] = ()
    elements: Tensor | None = None
    row: int | None = None
    column: int | None = None
    initial: float | None = None
    deviation: float | None = None
    raw_columns: list[Tensor] = field(default_factory=list[Tensor])
    """For each use as a weight: which columns read raw input."""
    place: str = ""


@dataclass(frozen=True)
class Operand:
    """A parameter as an operation sees it: through views, with its row labels and its column labels along dimensions of the view."""

    parameter: str
    moves: tuple[Node, ...]
    rows: Tensor
    row_dim: int | None
    columns: Tensor | None = None
    column_dim: int | None = None


class Tracer:
    """The state of one run of labels through a graph. Rules call its methods."""

    def __init__(self, graph: Graph, known: Mapping[str, Tensor]) -> None:
        """Begin with a captured graph, and with the buffers of the network that are fixed."""
        self.graph = graph
        self.fixed = known
        self.values: dict[str, Any] = {}
        self.stored: dict[str, Stored] = {}
        self.operands: dict[str, Operand] = {}
        self.reads: list[tuple[str, str]] = []
        self.blocks: list[tuple[str, Tensor]] = []
        self.direct_blocks: set[int] = set()
        """Places in `blocks` of parameters that are used as plain tensors: they give a group its name only where nothing else does."""
        self.ties: list[tuple[Node, Tensor]] = []
        self.links: list[Tensor] = []
        """What parameters belong to: nothing that a user would call a tie."""
        self.norms: list[tuple[Node, Tensor]] = []
        self.lost: list[tuple[Node, str, Tensor]] = []
        self.kinds: dict[str, str] = {}
        self.shared_by: dict[str, Tensor] = {}
        self.n_labels = 0

    # ---- labels

    def new(self, n: int) -> Tensor:
        """Return n labels that nobody has."""
        start, self.n_labels = self.n_labels, self.n_labels + n
        return torch.arange(start, self.n_labels)

    def fresh(self, node: Node, n_units: int) -> Tensor:
        """Make new units that `node` computes, and return their labels (n_units,)."""
        labels = self.new(n_units)
        self.blocks.append((node.module or node.name, labels))
        return labels

    def tie(self, node: Node, a: Tensor, b: Tensor) -> None:
        """Declare that labels at the same position of `a` and `b` (broadcast) are one unit, because of `node`."""
        a, b = torch.broadcast_tensors(a, b)
        different = (a != EVERYONE) & (b != EVERYONE) & (a != b)
        if bool(different.any()):
            self.ties.append((node, torch.unique(torch.stack([a[different], b[different]], 1), dim=0)))

    def _link(self, a: Tensor, b: Tensor) -> None:
        """Tie positions of a parameter to units: nothing that a user would call a tie."""
        a, b = torch.broadcast_tensors(a, b)
        self.links.append(torch.stack([a[b != EVERYONE], b[b != EVERYONE]], 1))

    def only_along(self, node: Node, value: Value, dims: set[int], lost: str = "") -> Tensor:
        """Tie the labels of a value along every dimension but `dims`, and return them with size 1 there.

        Args:
            node: the operation that asks for it.
            value: a plain tensor.
            dims: dimensions along which units may change.
            lost: why, where the units could have stayed apart; it is told to the user.
        """
        labels = value.labels
        for dim in range(labels.dim()):
            if dim not in dims and labels.shape[dim] > 1:
                speaker = labels.amax(dim, keepdim=True)
                if bool(((labels == EVERYONE) & (speaker != EVERYONE)).any()):
                    raise refusal(node, "mixes raw input with units.")
                self.tie(node, labels, speaker)
                if lost:
                    self.lost.append((node, lost, labels.unique()))
                labels = speaker
        return labels

    def is_shared(self, labels: Tensor) -> bool:
        """Tell whether labels are those of parameters that all units read."""
        return bool(self.shared_by) and bool(torch.isin(labels, torch.cat(list(self.shared_by.values()))).all())

    def is_direct(self, labels: Tensor) -> bool:
        """Tell whether labels are those of parameters that are used as plain tensors."""
        elements = [stored.elements.flatten() for stored in self.stored.values() if stored.elements is not None]
        return bool(elements) and bool(torch.isin(labels, torch.cat(elements)).all())

    def is_stack(self, name: str) -> bool:
        """Tell whether a node stacks tensors along a new dimension."""
        node = self.graph.by_name[name]
        return node.op == "aten.cat.default" and node.args[0][0].name.endswith("_of_stack")

    # ---- parameters

    def weight(
        self,
        node: Node,
        value: Value,
        row_dim: int,
        column_dim: int | None,
        columns: Tensor | None,
        source: str,
        *,
        deviation: float | None = None,
        initial: float | None = None,
    ) -> Tensor:
        """Make new units of a weight's rows, and give its columns to the units that they read. Returns the units of the rows.

        Args:
            node: the layer.
            value: the weight, a parameter or a view of one.
            row_dim: the dimension whose positions are new units.
            column_dim: the dimension whose positions are read; None for a weight that acts on its own unit alone.
            columns: the units of that dimension; EVERYONE for raw input.
            source: name of the node whose value is read.
            deviation: the standard deviation of new rows; None takes He's.
            initial: the value of new rows, instead of random ones.
        """
        stored = self._stored(node, value)
        axis, rows = self._axis(node, value, row_dim)
        self._role(node, value, "row", axis)
        self.blocks.append((node.module or str(value.parameter), rows))
        if stored.initial is None and stored.deviation is None:
            stored.initial, stored.deviation = initial, deviation
        if column_dim is None or columns is None:
            self._operand(value, rows, row_dim)
            return rows
        axis, labels = self._axis(node, value, column_dim)
        self._role(node, value, "column", axis)
        self._link(labels, columns)
        raw = torch.zeros(stored.shape[axis], dtype=torch.bool)
        raw[torch.isin(stored.axes[axis], labels[columns == EVERYONE])] = True
        units = torch.isin(stored.axes[axis], labels[columns != EVERYONE])
        if any(bool((before & units).any()) for before in stored.raw_columns):
            raise WiringError(
                f"cannot isolate tasks in this network: '{value.parameter}' at {node.place} reads raw input in one use, units in another."
            )
        stored.raw_columns.append(raw)
        self._operand(value, rows, row_dim, labels, column_dim)
        self.reads.append((value.node, source))
        return rows

    def own(self, node: Node, value: Value, dim: int, units: Tensor, initial: float) -> None:
        """Give a parameter's (or a buffer's) positions along a dimension to units: a bias, the scale of a norm."""
        stored = self._stored(node, value)
        axis, labels = self._axis(node, value, dim)
        self._role(node, value, "row", axis)
        self._link(labels, units)
        stored.initial = initial
        self._operand(value, labels, dim)

    def direct(self, node: Node, value: Value, initial: float | None = None) -> Value:
        """Take a parameter as a plain tensor, each of whose elements belongs to the unit that it meets."""
        stored = self.stored.setdefault(str(value.parameter), Stored(self._shape(value), place=node.place))
        if stored.axes:
            raise self._two_roles(node, value)
        if stored.elements is None:
            n = torch.Size(stored.shape).numel()
            stored.elements = self.new(n).reshape(stored.shape)
            self.direct_blocks.add(len(self.blocks))
            path, _, last = str(value.parameter).rpartition(".")
            self.blocks.append((path or last, stored.elements.flatten()))
            stored.initial, stored.deviation = initial, 0.02
        labels = stored.elements
        for move in value.moves:
            labels = moved(move, labels)
        plain = value._replace(labels=compact(labels), trainable=False, parameter=None, moves=())
        self.operands[value.node] = Operand(str(value.parameter), value.moves, plain.labels, None)
        self.values[value.node] = plain
        return plain

    def share(self, node: Node, values: Sequence[Value | None], initial: float | None = None) -> list[Value]:
        """Give whole parameters to one unit that every task reads: it is learned by the first task, and frozen after."""
        name = node.module or node.name
        if not any(value is not None and value.is_parameter for value in values):
            return []
        if name not in self.shared_by:
            self.shared_by[name] = self.new(1)
            self.blocks.append((name, self.shared_by[name]))
        found: list[Value] = []
        for value in values:
            if value is not None and value.is_parameter:
                plain = self.direct(node, value, initial)
                self.tie(node, plain.labels, self.shared_by[name].reshape((1,) * plain.labels.dim()))
                labels = self.shared_by[name].reshape((1,) * len(value.shape))
                self.values[value.node] = plain._replace(labels=labels)
                found.append(self.values[value.node])
        if node.op == "aten.linear.default" or node.op.startswith("aten.conv") or "matmul" in node.op or "einsum" in node.op:
            self.kinds[node.name] = "plain"
        return found

    def plain(self, node: Node, value: Value) -> Value:
        """Return a value as a plain tensor: a parameter by its elements."""
        return self.direct(node, value) if value.is_parameter else value

    def merge(self, node: Node, values: Sequence[Value | None], why: str) -> Tensor:
        """Make one unit of everything that an operation reads. Returns the labels of its result."""
        self.kinds[node.name] = "plain"
        read = [self.plain(node, value) for value in values if value is not None]
        labels = torch.cat([value.labels.flatten() for value in read]) if read else torch.empty(0, dtype=torch.long)
        units = labels[labels != EVERYONE].unique()
        shape = (1,) * len(node.shape or ())
        if not len(units):
            return torch.full(shape, EVERYONE)
        for value in read:
            if bool((value.labels == EVERYONE).any()) and not value.is_raw:
                raise refusal(node, "mixes raw input with units.")
        self.tie(node, units[:1], units)
        self.lost.append((node, why, units))
        return units[:1].reshape(shape)

    def multiplied(self, node: Node, labels: Sequence[Tensor]) -> None:
        """Note that units were multiplied with each other: a loss, where in the end all of them are one unit."""
        units = torch.cat([part.flatten() for part in labels]).unique()
        self.lost.append((node, PRODUCT, units[units != EVERYONE]))

    def spread(self, value: Value, dims: Sequence[int | None]) -> Tensor:
        """Return a value's labels with its dimensions in another order; None is a dimension of size 1."""
        kept = [dim for dim in dims if dim is not None]
        gone = tuple(dim for dim in range(value.labels.dim()) if dim not in kept)
        ranks = sorted(kept)
        labels = value.labels.squeeze(gone).permute([ranks.index(dim) for dim in kept])
        for place, dim in enumerate(dims):
            if dim is None:
                labels = labels.unsqueeze(place)
        return labels

    # ---- questions

    def kind(self, node: Node) -> str:
        """Return how a node is written for fewer units."""
        return self.kinds.get(node.name, RULES[node.op].kind if node.op in RULES else "plain")

    def content(self, name: str) -> Tensor | None:
        """Return what a node holds whatever the input is: a fixed buffer, or a view of one; None for what is computed."""
        node = self.graph.by_name.get(name)
        if node is None or node.op == CONSTANT:
            return None if node is None else self.fixed.get(node.args[0])
        views = node.op in RULES and RULES[node.op].label is pointwise.move and self.is_static(node)
        found = self.content(node.args[0].name) if node.op in SAME or views else None
        return moved(node, found) if views and found is not None else found

    def is_static(self, node: Node) -> bool:
        """Tell whether a node's arguments hold no size that changes with the input, and no tensor but the first."""
        return not any(isinstance(item, (Size, Ref)) for argument in node.args[1:] for item in _flat(argument))

    def refuse_batch(self, node: Node, value: Value, dims: set[int], what: str) -> None:
        """Refuse to mix the examples of a batch."""
        sizes = self.graph.by_name[value.node].sizes if value.node in self.graph.by_name else ()
        if any(dim < len(sizes) and sizes[dim] is not None and _counts(sizes[dim], self.graph.batch) for dim in dims):
            raise refusal(node, f"{what}.")

    # ---- the run

    def run(self) -> None:
        """Run labels through all nodes."""
        for node in self.graph.nodes:
            if node.op == OUTPUT:
                continue
            nobody = torch.full((1,) * len(node.shape or ()), EVERYONE)
            if node.op in (PARAMETER, CONSTANT):
                name = node.args[0]
                self.values[node.name] = Value(nobody, node.shape or (), node.name, name, name in self.graph.trainable)
            elif node.op == INPUT:
                self.values[node.name] = Value(nobody, node.shape or (), node.name)
            else:
                self._step(node)

    def _step(self, node: Node) -> None:
        found = RULES.get(node.op, Rule(unknown)).label(self, node, self._arguments(node))
        if isinstance(found, list):
            self.values[node.name] = [Value(labels, tuple(labels.shape), node.name) for labels in found]
        elif isinstance(found, Value):
            self.values[node.name] = found
        else:
            self.values[node.name] = Value(found, node.shape or (), node.name)

    def _arguments(self, node: Node) -> list[Any]:
        def value(argument: Any) -> Any:
            if isinstance(argument, Ref):
                return self.values[argument.name]
            return [value(item) for item in argument] if isinstance(argument, (list, tuple)) else argument

        named = [value(argument) for argument in node.kwargs.values()]
        return [*(value(argument) for argument in node.args), *(argument for argument in named if isinstance(argument, Value))]

    # ---- what is stored

    def _shape(self, value: Value) -> tuple[int, ...]:
        """Return the shape of the parameter of which a value is a view."""
        base = value.moves[0].args[0].name if value.moves else value.node
        return self.graph.by_name[base].shape or ()

    def _stored(self, node: Node, value: Value) -> Stored:
        """Return what is known of a parameter's axes."""
        if value.parameter is None:
            raise refusal(node, "has a scale, a shift or a weight that is computed.")
        stored = self.stored.setdefault(value.parameter, Stored(self._shape(value), place=node.place))
        if stored.elements is not None:
            raise self._two_roles(node, value)
        if not stored.axes:
            stored.axes = tuple(self.new(size) for size in stored.shape)
        return stored

    def _axis(self, node: Node, value: Value, dim: int) -> tuple[int, Tensor]:
        """Return which axis of the parameter lies along a dimension of a view of it, and its labels there."""
        stored = self.stored[str(value.parameter)]
        if not value.moves:
            return dim, stored.axes[dim]
        fitting: list[tuple[int, Tensor]] = []
        for axis, labels in enumerate(stored.axes):
            wide = labels.reshape([-1 if d == axis else 1 for d in range(len(stored.shape))]).expand(stored.shape)
            for move in value.moves:
                wide = moved(move, wide)
            wide = compact(wide)
            if varying(wide) == [dim] or (value.shape[dim] == 1 and stored.shape[axis] == 1):
                fitting.append((axis, wide.transpose(0, dim).reshape(-1)))
            elif dim in varying(wide):
                raise refusal(node, f"reads '{value.parameter}' through a view whose rows and columns are mixed.")
        if not fitting:
            raise refusal(node, f"reads '{value.parameter}' through a view in which no axis of it is left.")
        # Several axes laid out along one dimension: the outermost is the unit, the others lie inside it.
        axis, labels = fitting[0]
        return axis, labels

    def _role(self, node: Node, value: Value, role: str, axis: int) -> None:
        """Note what an axis is for."""
        stored = self.stored[str(value.parameter)]
        if getattr(stored, role) not in (None, axis) or (stored.column if role == "row" else stored.row) == axis:
            raise self._two_roles(node, value)
        setattr(stored, role, axis)

    def _operand(self, value: Value, rows: Tensor, row_dim: int, columns: Tensor | None = None, column_dim: int | None = None) -> None:
        self.operands[value.node] = Operand(str(value.parameter), value.moves, rows, row_dim, columns, column_dim)

    def _two_roles(self, node: Node, value: Value) -> WiringError:
        return WiringError(
            f"cannot isolate tasks in this network: '{value.parameter}' is used in two ways, at {self.stored[str(value.parameter)].place} and "
            f"at {node.place}: what is a row in one is a column, or a single number, in the other. Give each use a parameter of its own "
            f"(untie them: module.weight = nn.Parameter(module.weight.detach().clone()))."
        )


def _flat(argument: Any) -> list[Any]:
    """Return the items of a nest of lists."""
    if isinstance(argument, (list, tuple)):
        return [item for part in argument for item in _flat(part)]
    return [argument]


def _counts(size: Any, batch: Size | None) -> bool:
    """Tell whether a size depends on the number of examples."""
    return size == batch or (isinstance(size, Size) and size.op != "input" and any(_counts(part, batch) for part in size.args))
