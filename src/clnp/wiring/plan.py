"""What is tied to what in one network, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clnp.wiring.labels import EVERYONE, along
from clnp.wiring.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clnp.wiring.graph import Graph, Node
    from clnp.wiring.tracer import Operand


@dataclass(frozen=True)
class Group:
    """Tied layers: they share their units. `start` is the first of the group's `n_units` numbers in the whole network."""

    name: str
    n_units: int
    start: int
    layers: tuple[str, ...]
    ties: tuple[str, ...]
    """Where in the user's code the layers are tied, for a person to read."""
    shared: bool = False
    """Whether it is a weight that all units read: the first task learns it, later ones read it frozen."""
    lost: tuple[str, ...] = ()
    """Where in the user's code units were merged that could have stayed apart."""

    @property
    def slice(self) -> slice:
        """The group's places in a tensor over all units."""
        return slice(self.start, self.start + self.n_units)

    def mask(self, n_units: int) -> Tensor:
        """Return which units of a whole network are the group's: bool (n_units,)."""
        mask = torch.zeros(n_units, dtype=torch.bool)
        mask[self.slice] = True
        return mask


@dataclass(frozen=True)
class ParameterLabels:
    """The units of a parameter's rows and, for weights, columns; `EVERYONE` is raw input.

    Rows lie along dimension `row_dim`, columns along `column_dim`. `initial` is the value that a new row starts from; where it is None, rows
    start from random values of standard deviation `deviation`, or He's where that is None, too.
    """

    rows: Tensor
    columns: Tensor | None = None
    initial: float | None = 0.0
    row_dim: int = 0
    column_dim: int = 1
    deviation: float | None = None

    def matrix(self, tensor: Tensor) -> Tensor:
        """Return a view of the parameter whose dimension 0 are the rows and, for weights, dimension 1 the columns."""
        if tensor.dim() == 0:
            return tensor.reshape(1)
        if self.columns is None:
            return tensor.movedim(self.row_dim, 0)
        return tensor.movedim((self.row_dim, self.column_dim), (0, 1))


@dataclass(frozen=True)
class Gather:
    """A value that is others with their units in another order: positions of `sources`, side by side, along dimension `dim`."""

    sources: tuple[str, ...]
    dim: int
    positions: Tensor


@dataclass(frozen=True)
class Wiring:
    """What is tied to what in one network.

    Units are numbered through the whole network, group after group; a set of units is a boolean tensor (n_units,).
    """

    graph: Graph
    groups: tuple[Group, ...]
    values: Mapping[str, Tensor]
    """Node name -> labels of its value, see `clnp.wiring.labels`."""
    parameters: Mapping[str, ParameterLabels]
    operands: Mapping[str, Operand]
    """Node name -> labels of a parameter as the node's users see it."""
    reads: tuple[tuple[str, str], ...]
    """Pairs: an operand that is a weight, and the name of the node whose value it reads."""
    norms: tuple[tuple[str, Tensor], ...] = ()
    """Norms over units: the name of the node, and the unit of each channel."""
    kinds: Mapping[str, str] = field(default_factory=dict[str, str])
    gathers: Mapping[str, Gather] = field(default_factory=dict[str, Gather])
    normed: Mapping[str, int] = field(default_factory=dict[str, int])
    """Weights that the model has under weight norm, and the dimension of their lengths: their rows are trained as length and direction."""
    origins: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Of a widened network: node name -> for each position along the units' dimension, the position in the model's own code."""
    hidden: frozenset[str] = frozenset()
    """Names of nodes that are never computed: views of parameters, and steps of a shuffle."""

    @property
    def n_units(self) -> int:
        """How many units the network has."""
        return sum(group.n_units for group in self.groups)

    @property
    def features(self) -> Tensor:
        """The units of the trunk's output (F,), which the heads read."""
        return along(self.values[self.graph.output], 1, (self.node(self.graph.output).shape or (0, 0))[1])

    @cached_property
    def claimable(self) -> tuple[Group, ...]:
        """The groups whose units tasks claim: all but those that every task reads."""
        return tuple(group for group in self.groups if not group.shared)

    @cached_property
    def shared(self) -> Tensor:
        """The units that every task reads: bool (n_units,)."""
        return torch.cat([torch.full((group.n_units,), group.shared) for group in self.groups] or [torch.zeros(0, dtype=torch.bool)])

    @cached_property
    def input_columns(self) -> frozenset[str]:
        """Names of groups that are nothing but columns of the input: a norm or a scale reads them, and no weight makes them."""
        made = torch.zeros(self.n_units + 1, dtype=torch.bool)
        for labels in self.parameters.values():
            if labels.columns is not None or labels.initial is None:
                made[labels.rows] = True
        # A weight that is computed is merged, and says so.
        return frozenset(group.name for group in self.claimable if not (group.lost or bool(made[:-1][group.slice].any())))

    @cached_property
    def edges(self) -> list[tuple[Tensor, Tensor]]:
        """Which units read which: pairs of the units that read and the units that are read, through a weight or a norm."""
        weights = [(labels.rows, labels.columns) for labels in self.parameters.values() if labels.columns is not None]
        return [*weights, *((units, units) for _, units in self.norms)]

    def kind(self, node: Node) -> str:
        """Return how a node is written for fewer units, see `clnp.wiring.Rule`."""
        if node.name in self.gathers:
            return "gather"
        kind = self.kinds.get(node.name, RULES[node.op].kind if node.op in RULES else "plain")
        return "plain" if kind == "gather" else kind

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
        lines = [f"{self.n_units} unit{'s' * (self.n_units != 1)} in {len(self.groups)} group{'s' * (len(self.groups) != 1)}"]
        for group in self.groups:
            lines.append(f"  {group.name}: {group.n_units} unit{'s' if group.n_units > 1 else ''}")
            if group.shared:
                lines.append("    shared: all units read it; the first task learns it, later ones read it frozen")
                continue
            if group.name in self.input_columns:
                lines.append("    columns of the input: a task may train all that are free, unless sizes by group are asked for")
            if len(group.layers) > 1:
                lines.append(f"    one group of {len(group.layers)} layers: {', '.join(group.layers)}")
                lines += [f"    tied by {tie}" for tie in group.ties]
            elif group.ties:
                lines += [f"    units merged by {tie}" for tie in group.ties]
            lines += [f"    capacity lost here: {lost}" for lost in group.lost]
        features = self.features
        raw = int((features == EVERYONE).sum())
        lines.append(f"heads read {len(features)} features" + (f", {raw} of them raw input" if raw else ""))
        return "\n".join(lines)
