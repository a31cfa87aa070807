"""A wider network: free units are added to groups, and nothing that was there changes.

A new unit lies in every tensor behind the last unit of its group, wherever that one lies, and takes as many positions: a channel of a
map, a head of an attention with all its channels, a gate and what it gates. The captured graph is rewritten for the new sizes, as
`clnp.emit` does for smaller ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clnp.allocation import FREE, Allocation
from clnp.errors import WiringError
from clnp.wiring import Node, ParameterLabels, Ref, Size, Wiring
from clnp.wiring.labels import varying

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clnp.wiring.plan import Gather, Group

MOST = 1_000_000
"""Units that a group may get at a time: more is a slip of the finger, and would take hours and all memory before it fails."""
CLONED = ("aten.slice.Tensor", "aten.narrow.default", "aten.select.int")
KEPT = (
    "aten.transpose.int",
    "aten.t.default",
    "aten.permute.default",
    "aten.contiguous.default",
    "aten.clone.default",
    "aten.detach.default",
)


@dataclass(frozen=True)
class Stretch:
    """How a dimension grows: for each new position the old one that it is made like, its unit, and whether it is new."""

    origin: Tensor
    labels: Tensor
    copy: Tensor
    """0 for a position that was there, else the number of the new unit of its group that it belongs to."""


class Widening:
    """More units for some groups of one network.

    Args:
        wiring: of the network.
        more: group -> how many units are added.

    Raises:
        WiringError: there is no such group, it is shared, or a number is not positive.
    """

    def __init__(self, wiring: Wiring, more: Mapping[str, int]) -> None:
        known = {group.name: group for group in wiring.groups}
        for name, n in more.items():
            if name not in known:
                raise WiringError(f"cannot widen '{name}': no such group. The groups are: {', '.join(map(repr, known))}.")
            if known[name].shared:
                raise WiringError(f"cannot widen '{name}': it is one weight that all units read, and has no units to add.")
            if not isinstance(n, int) or isinstance(n, bool) or n < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise WiringError(f"cannot widen '{name}': expected a number of units to add, at least 1, found {n!r}.")
            if n > MOST:
                raise WiringError(f"cannot widen '{name}': expected at most {MOST:,} units to add, found {n:,}.")
        self.wiring = wiring
        self.groups: list[Group] = []
        self.number = torch.full((wiring.n_units + 1,), -1)  # old unit -> new unit
        self.last: dict[int, tuple[int, int]] = {}  # last unit of a group -> number of the first added, how many
        start = 0
        for group in wiring.groups:
            n = more.get(group.name, 0)
            self.number[group.start : group.start + group.n_units] = torch.arange(start, start + group.n_units)
            if n:
                self.last[group.start + group.n_units - 1] = start + group.n_units, n
            self.groups.append(replace(group, n_units=group.n_units + n, start=start))
            start += group.n_units + n

    def stretch(self, labels: Tensor) -> Stretch:
        """Return how a dimension with these labels (n,) grows: behind each run of a group's last unit come the new ones."""
        origin: list[int] = []
        units: list[int] = []
        copies: list[int] = []
        run: list[int] = []
        listed = labels.tolist()
        for place, label in enumerate(listed):
            origin.append(place)
            units.append(int(self.number[label]))
            copies.append(0)
            if label in self.last:
                run.append(place)
                if place + 1 == len(listed) or listed[place + 1] != label:
                    first, n = self.last[label]
                    for copy in range(n):
                        origin += run
                        units += [first + copy] * len(run)
                        copies += [copy + 1] * len(run)
                    run = []
        return Stretch(
            torch.tensor(origin, dtype=torch.long), torch.tensor(units, dtype=torch.long), torch.tensor(copies, dtype=torch.long)
        )

    def values(self, labels: Tensor) -> tuple[Tensor, int | None, Stretch | None]:
        """Return the labels of a value after it grew, and along which dimension it did, and how."""
        dims = varying(labels)
        if not dims:
            return self.number[labels], None, None
        grown = self.stretch(labels.flatten())
        return grown.labels.reshape([-1 if dim == dims[0] else 1 for dim in range(labels.dim())]), dims[0], grown

    def units(self, units: Tensor, fill: Any) -> Tensor:
        """Return a tensor over all old units (n_units, ...) over all new ones; new ones get a fixed value."""
        n = sum(group.n_units for group in self.groups)
        grown = torch.full((n, *units.shape[1:]), fill, dtype=units.dtype)
        grown[self.number[:-1]] = units
        return grown

    # ---- the network

    def widened(self) -> Wiring:
        """Return the wiring of the wider network."""
        wiring = self.wiring
        values: dict[str, Tensor] = {}
        how: dict[str, tuple[int, Stretch]] = {}
        for name, labels in wiring.values.items():
            values[name], dim, grown = self.values(labels)
            if dim is not None and grown is not None and bool(grown.copy.any()):
                how[name] = dim, grown
        nodes = tuple(self._node(node, how) for node in wiring.graph.nodes)
        origins = {name: wiring.origins[name][grown.origin] if name in wiring.origins else grown.origin for name, (_, grown) in how.items()}
        return replace(
            wiring,
            graph=replace(wiring.graph, nodes=nodes),
            groups=tuple(self.groups),
            values=values,
            parameters={name: self._labels(labels) for name, labels in wiring.parameters.items()},
            operands={name: self._operand(operand) for name, operand in wiring.operands.items()},
            norms=tuple((name, self.stretch(units).labels) for name, units in wiring.norms),
            gathers={name: self._gather(name, gather, how) for name, gather in wiring.gathers.items()},
            origins={**wiring.origins, **origins},
        )

    def _node(self, node: Node, how: Mapping[str, tuple[int, Stretch]]) -> Node:
        if node.name in self.wiring.operands or node.name not in how:
            return node
        dim, grown = how[node.name]
        shape, sizes = list(node.shape or ()), list(node.sizes)
        size = sizes[dim]
        if size is not None:
            n = len(grown.origin)
            sizes[dim] = Size("//", (Size("*", (size, n), size.hint * n), shape[dim]), size.hint * n // shape[dim])
        old, shape[dim] = shape[dim], len(grown.origin)
        args = list(node.args)
        source = args[0].name if args and isinstance(args[0], Ref) else ""
        if node.op in CLONED and source in how and self.wiring.kind(node) in ("slice", "select"):
            args = _moved_cut(args, how[source][0], how[source][1].origin)
        kind = self.wiring.kind(node)
        if kind == "own":
            place = {"aten.group_norm.default": 1}.get(node.op, 6 if node.op.startswith("aten.conv") else None)
            if place is not None:
                args[place] = args[place] * shape[dim] // old
        return replace(node, shape=tuple(shape), sizes=tuple(sizes), args=tuple(args))

    def _labels(self, labels: ParameterLabels) -> ParameterLabels:
        columns = None if labels.columns is None else self.stretch(labels.columns).labels
        return replace(labels, rows=self.stretch(labels.rows).labels, columns=columns)

    def _operand(self, operand: Any) -> Any:
        labels = self.wiring.parameters[operand.parameter]
        moves: list[Node] = []
        for move in operand.moves:
            if move.op in KEPT:
                moves.append(move)
            elif move.op in CLONED:
                dim = move.args[1] if len(move.args) > 1 else 0
                along = {labels.row_dim: labels.rows, labels.column_dim: labels.columns}.get(dim) if len(operand.moves) == 1 else None
                if along is None:
                    raise _unwidenable(operand.parameter, move)
                moves.append(replace(move, args=tuple(_moved_cut(list(move.args), dim, self.stretch(along).origin))))
            elif bool(self.stretch(labels.rows).copy.any()) or (
                labels.columns is not None and bool(self.stretch(labels.columns).copy.any())
            ):
                raise _unwidenable(operand.parameter, move)
            else:
                moves.append(move)
        rows = self.values(operand.rows)[0] if operand.row_dim is None else self.stretch(operand.rows).labels
        columns = None if operand.columns is None else self.stretch(operand.columns).labels
        return replace(operand, rows=rows, columns=columns, moves=tuple(moves))

    def _gather(self, name: str, gather: Gather, how: Mapping[str, tuple[int, Stretch]]) -> Gather:
        """Let new units follow the positions that they are made like."""
        places: dict[tuple[int, int], int] = {}
        start = new_start = 0
        for source in gather.sources:
            n = (self.wiring.node(source).shape or ())[gather.dim]
            grown = how[source][1] if source in how else Stretch(torch.arange(n), torch.arange(n), torch.zeros(n, dtype=torch.long))
            for place, (origin, copy) in enumerate(zip(grown.origin.tolist(), grown.copy.tolist(), strict=True)):
                places.setdefault((origin + start, copy), place + new_start)
            start, new_start = start + n, new_start + len(grown.origin)
        if name not in how:
            return replace(gather, positions=torch.tensor([places[int(place), 0] for place in gather.positions]))
        after = how[name][1]
        found = [
            places[int(gather.positions[origin]), copy] for origin, copy in zip(after.origin.tolist(), after.copy.tolist(), strict=True)
        ]
        return replace(gather, positions=torch.tensor(found))

    def tensor(self, name: str, tensor: Tensor) -> Tensor:
        """Return a full-width parameter or statistic of the wider network: new columns are 0, new rows are still nobody's."""
        labels = self.wiring.parameters.get(name)
        if labels is None or tensor.dim() == 0:
            return tensor.clone()
        rows = self.stretch(labels.rows)
        tensor = tensor.index_select(labels.row_dim, rows.origin)
        if labels.columns is not None:
            columns = self.stretch(labels.columns)
            tensor = tensor.index_select(labels.column_dim, columns.origin)
            self._labels(labels).matrix(tensor)[:, columns.copy > 0] = 0
        return tensor.contiguous()

    def allocation(self, allocation: Allocation) -> Allocation:
        """Return who owns what in the wider network: the new units are free, and nobody needs them."""
        more = {group.name: group.n_units - len(allocation.owner[group.name]) for group in self.groups}

        def grown(units: Mapping[str, Tensor], fill: int) -> dict[str, Tensor]:
            return {group: torch.cat([old, torch.full((more[group],), fill, dtype=old.dtype)]) for group, old in units.items()}

        needed = {task: grown(units, 0) for task, units in allocation.needed.items()}
        return Allocation(allocation.tasks, grown(allocation.owner, FREE), needed)

    @property
    def features(self) -> Tensor:
        """Where the trunk's old features lie among the new ones."""
        return (self.stretch(self.wiring.features).copy == 0).nonzero()[:, 0]


def _moved_cut(args: list[Any], dim: int, origin: Tensor) -> list[Any]:
    """Rewrite the numbers of a slice or a selection along a dimension that grew."""
    cut = (args[1] if len(args) > 1 else 0) % 8 if args[1:] and args[1] >= 0 else (args[1] if len(args) > 1 else 0)
    if cut not in (dim, dim - 8) and cut >= 0 and cut != dim:
        return args
    n = int(origin.max()) + 1

    def place(old: Any) -> Any:
        if not isinstance(old, int):
            return old
        old = old + n if old < 0 else min(old, n)
        return int((origin < old).sum())

    return [*args[:2], *(place(old) for old in args[2:4]), *args[4:]]


def _unwidenable(parameter: str, move: Node) -> WiringError:
    return WiringError(
        f"cannot widen: '{parameter}' is read through {move.op} at {move.place}, whose numbers cannot be rewritten. "
        f"Give that part of the network parameters of its own."
    )
