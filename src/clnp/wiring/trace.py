"""Run labels through a captured network: which unit does every position of every tensor belong to?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clnp.errors import WiringError
from clnp.wiring.graph import CONSTANT, INPUT, OUTPUT, PARAMETER, Graph, Node, Ref, capture
from clnp.wiring.labels import EVERYONE, along, compact, components
from clnp.wiring.rules import RULES, Rule, Value, check_separable, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Group:
    """Tied layers: they share their units. `start` is the first of the group's `n_units` numbers in the whole network."""

    name: str
    n_units: int
    start: int
    layers: tuple[str, ...]
    ties: tuple[str, ...]
    """Where in the user's code the layers are tied, for a person to read."""

    @property
    def slice(self) -> slice:
        """The group's places in a tensor over all units."""
        return slice(self.start, self.start + self.n_units)


@dataclass(frozen=True)
class ParameterLabels:
    """The units of a parameter's rows (dimension 0) and, for weights, columns (dimension 1); `EVERYONE` is raw input.

    `initial` is the value that a new row starts from; weights have none: they start from random values.
    """

    rows: Tensor
    columns: Tensor | None = None
    initial: float = 0.0


@dataclass(frozen=True)
class Wiring:
    """What is tied to what in one network, as plain data.

    Units are numbered through the whole network, group after group; a set of units is a boolean tensor (n_units,).
    """

    graph: Graph
    groups: tuple[Group, ...]
    values: Mapping[str, Tensor]
    """Node name -> labels of its value, see `clnp.wiring.labels`."""
    parameters: Mapping[str, ParameterLabels]
    reads: Mapping[str, str]
    """Weight -> name of the node whose value it reads."""

    @property
    def n_units(self) -> int:
        """How many units the network has."""
        return sum(group.n_units for group in self.groups)

    @cached_property
    def parameter_nodes(self) -> frozenset[str]:
        """The names of the nodes whose values are parameters or statistics of units."""
        return frozenset(n.name for n in self.graph.nodes if n.op in (PARAMETER, CONSTANT) and n.args[0] in self.parameters)

    @property
    def features(self) -> Tensor:
        """The units of the trunk's output (F,), which the heads read."""
        return along(self.values[self.graph.output], 1, (self.node(self.graph.output).shape or (0, 0))[1])

    def node(self, name: str) -> Node:
        """Return the node of that name."""
        return self.graph.by_name[name]

    def split(self, units: Tensor) -> dict[str, Tensor]:
        """Cut a tensor over all units (n_units, ...) into one per group."""
        return {group.name: units[group.slice] for group in self.groups}

    def join(self, by_group: Mapping[str, Tensor]) -> Tensor:
        """Join one tensor per group into one over all units."""
        return torch.cat([by_group[group.name] for group in self.groups])

    def explain(self) -> str:
        """Say what is tied to what and why: a text for people."""
        lines = [f"{self.n_units} units in {len(self.groups)} groups"]
        for group in self.groups:
            lines.append(f"  {group.name}: {group.n_units} units")
            if len(group.layers) > 1:
                lines.append(f"    one group of {len(group.layers)} layers: {', '.join(group.layers)}")
                lines += [f"    tied by {tie}" for tie in group.ties]
            elif group.ties:
                lines += [f"    units merged by {tie}" for tie in group.ties]
        features = self.features
        raw = int((features == EVERYONE).sum())
        lines.append(f"heads read {len(features)} features" + (f", {raw} of them raw input" if raw else ""))
        return "\n".join(lines)


class Tracer:
    """The state of one run of labels through a graph. Rules call `fresh`, `tie`, `use` and `only_along`."""

    def __init__(self, graph: Graph) -> None:
        """Begin with a captured graph."""
        self.graph = graph
        self.values: dict[str, Value] = {}
        self.parameters: dict[str, ParameterLabels] = {}
        self.reads: dict[str, str] = {}
        self.blocks: list[tuple[str, int, int]] = []
        self.ties: list[tuple[Node, Tensor]] = []
        self.n_labels = 0

    def fresh(self, node: Node, n_units: int) -> Tensor:
        """Make new units that `node` computes, and return their labels (n_units,)."""
        start, self.n_labels = self.n_labels, self.n_labels + n_units
        self.blocks.append((node.module or node.name, start, self.n_labels))
        return torch.arange(start, self.n_labels)

    def tie(self, node: Node, a: Tensor, b: Tensor) -> None:
        """Declare that labels at the same position of `a` and `b` (broadcast) are one unit, because of `node`."""
        a, b = torch.broadcast_tensors(a, b)
        different = (a != EVERYONE) & (b != EVERYONE) & (a != b)
        if bool(different.any()):
            self.ties.append((node, torch.unique(torch.stack([a[different], b[different]], 1), dim=0)))

    def only_along(self, node: Node, value: Value, dims: set[int]) -> Tensor:
        """Tie the labels of a value along every dimension but `dims`, and return them with size 1 there."""
        labels = value.labels
        for dim in range(labels.dim()):
            if dim not in dims and labels.shape[dim] > 1:
                speaker = labels.amax(dim, keepdim=True)
                if bool(((labels == EVERYONE) & (speaker != EVERYONE)).any()):
                    raise WiringError(f"cannot isolate tasks in this network: {node.op} at {node.place} mixes raw input with units.")
                self.tie(node, labels, speaker)
                labels = speaker
        return labels

    def use(self, node: Node, parameter: str, rows: Tensor, columns: Tensor | None = None, *, initial: float = 0.0) -> None:
        """Declare the units of a parameter's rows and columns; a parameter used twice ties the units of both uses."""
        before = self.parameters.get(parameter)
        if before is None:
            self.parameters[parameter] = ParameterLabels(rows, columns, initial)
        else:
            self.tie(node, before.rows, rows)
            if columns is not None and before.columns is not None:
                self.tie(node, before.columns, columns)
                if bool(((columns == EVERYONE) != (before.columns == EVERYONE)).any()):
                    raise WiringError(
                        f"cannot isolate tasks in this network: '{parameter}' at {node.place} reads raw input in one use, units in another."
                    )
        if columns is not None:
            self.reads.setdefault(parameter, node.args[0].name)

    def node(self, name: str) -> Node:
        """Return the node of that name."""
        return self.graph.by_name[name]

    def run(self) -> None:
        """Run labels through all nodes."""
        for node in self.graph.nodes:
            if node.op == OUTPUT:
                continue
            if node.op in (PARAMETER, CONSTANT):
                name, trainable = node.args[0], node.args[0] in self.graph.trainable
                self.values[node.name] = Value(_everyone(node), node.shape or (), name, trainable)
            elif node.op == INPUT:
                self.values[node.name] = Value(_everyone(node), node.shape or ())
            elif node.shape is not None:
                labels = RULES.get(node.op, Rule(refuse)).label(self, node, self._arguments(node))
                check_separable(node, labels)
                self.values[node.name] = Value(labels, node.shape)
            elif node.op != "aten.sym_size.int" and not node.op.startswith("operator."):
                refuse(self, node, [])

    def _arguments(self, node: Node) -> list[Any]:
        def value(argument: Any) -> Any:
            if isinstance(argument, Ref):
                return self.values.get(argument.name, argument)
            return [value(item) for item in argument] if isinstance(argument, (list, tuple)) else argument

        named = [value(argument) for argument in node.kwargs.values()]
        return [*(value(argument) for argument in node.args), *(argument for argument in named if isinstance(argument, Value))]


def _everyone(node: Node) -> Tensor:
    return torch.full((1,) * len(node.shape or ()), EVERYONE)


def trace(model: nn.Module, example: Tensor) -> Wiring:
    """Capture a network and find out which units it has and what ties them.

    Args:
        model: the network, or the trunk of one; it is left as it was.
        example: a batch of its input (B, ...); only its shape and dtype matter, and B may be any number.

    Raises:
        WiringError: the network cannot be captured, or holds an operation whose units cannot be told apart; the message
            names the operation, the module and the source line.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> print(trace(net, torch.zeros(1, 4)).explain())
    5 units in 2 groups
      0: 3 units
      2: 2 units
    heads read 2 features
    """
    graph = capture(model, example)
    tracer = Tracer(graph)
    tracer.run()
    output = graph.by_name[graph.output]
    if len(output.shape or ()) != 2:
        raise WiringError(
            f"cannot use this network as a trunk: expected an output of shape (B, features), found {output.shape}. Flatten it."
        )
    return _settle(tracer)


def _settle(tracer: Tracer) -> Wiring:
    """Turn provisional labels into units: tied labels become one, tied layers one group, numbered group after group."""
    pairs = torch.cat([pair for _, pair in tracer.ties]) if tracer.ties else torch.zeros(0, 2, dtype=torch.long)
    root = components(tracer.n_labels, pairs)
    block_of = torch.empty(tracer.n_labels, dtype=torch.long)
    for index, (_, start, stop) in enumerate(tracer.blocks):
        block_of[start:stop] = index
    tied_blocks = torch.stack([block_of, block_of[root]], 1)
    group_of = components(len(tracer.blocks), tied_blocks)[block_of]  # label -> the group's first block
    number = torch.full((tracer.n_labels,), EVERYONE)
    groups: list[Group] = []
    start = 0
    for first in torch.unique(group_of).tolist():
        members = torch.unique(root[group_of == first])
        number[members] = torch.arange(start, start + len(members))
        names = dict.fromkeys(name for name, a, _ in tracer.blocks if int(group_of[a]) == first)
        ties = dict.fromkeys(
            f"{node.op.removeprefix('aten.')} at {node.place}"
            for node, pairs in tracer.ties
            if bool((group_of[pairs[:, 0]] == first).any())
        )
        groups.append(Group(_unique(tracer.blocks[first][0], groups), len(members), start, tuple(names), tuple(ties)))
        start += len(members)
    number = torch.cat([number[root], torch.tensor([EVERYONE])])  # the last place answers for EVERYONE = -1
    return Wiring(
        graph=tracer.graph,
        groups=tuple(groups),
        values={name: compact(number[value.labels]) for name, value in tracer.values.items()},
        parameters={
            name: replace(labels, rows=number[labels.rows], columns=None if labels.columns is None else number[labels.columns])
            for name, labels in tracer.parameters.items()
        },
        reads=tracer.reads,
    )


def _unique(name: str, groups: list[Group]) -> str:
    taken = {group.name for group in groups}
    return next(candidate for candidate in (name, *(f"{name}#{i}" for i in range(2, len(groups) + 3))) if candidate not in taken)
