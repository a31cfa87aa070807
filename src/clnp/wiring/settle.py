"""From provisional labels to units: tied labels become one unit, tied layers one group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clnp.errors import WiringError
from clnp.wiring.graph import Node, Ref, references
from clnp.wiring.labels import EVERYONE, compact, components, varying
from clnp.wiring.plan import Gather, Group, ParameterLabels, Wiring
from clnp.wiring.rules import RULES, Value
from clnp.wiring.rules.base import moved
from clnp.wiring.rules.pointwise import index, move
from clnp.wiring.tracer import Operand, Tracer

if TYPE_CHECKING:
    from collections.abc import Mapping


def settle(tracer: Tracer) -> Wiring:
    """Return the wiring of a network. Where units lie in a tensor so that none can be left out alone, they are merged first."""
    for _ in range(1 + len(tracer.graph.nodes) + len(tracer.stored)):
        numbered = _number(tracer)
        gathers, hidden, unfit = _order(tracer, numbered)
        if unfit is None:
            return _wiring(tracer, numbered, gathers, hidden)
        node, value = unfit
        dims = varying(numbered.of(value.labels))
        # Keep the dimension along which most units can be told apart.
        counts = [len(numbered.of(value.labels).transpose(0, dim).flatten(1)[:, 0].unique()) for dim in dims]
        keep = {dims[counts.index(max(counts))]} if len(dims) > 1 else set[int]()
        tracer.only_along(node, value, keep, lost="lays units out so that none can be left out alone")
    message = "units could not be told apart"
    raise WiringError(f"cannot isolate tasks in this network: {message}.")


@dataclass(frozen=True)
class _Numbers:
    """The units so far: the number of each label (the last place answers for EVERYONE = -1), and the groups."""

    number: Tensor
    groups: tuple[Group, ...]

    def of(self, labels: Tensor) -> Tensor:
        """Return units for labels."""
        return compact(self.number[labels])


def _number(tracer: Tracer) -> _Numbers:
    pairs = torch.cat([torch.zeros(0, 2, dtype=torch.long), *(pair for _, pair in tracer.ties), *tracer.links])
    root = components(tracer.n_labels, pairs)
    sizes = [len(labels) for _, labels in tracer.blocks]
    block = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.long))
    roots = root[torch.cat([labels for _, labels in tracer.blocks])] if sizes else torch.zeros(0, dtype=torch.long)
    first = torch.full((tracer.n_labels,), len(sizes)).scatter_reduce_(0, roots, block, "amin")  # root -> its first block
    group_of = components(len(sizes), torch.stack([block, first[roots]], 1).unique(dim=0))  # block -> the group's first block
    number = torch.full((tracer.n_labels + 1,), EVERYONE)
    tied = [(node, torch.unique(root[pair[:, 0]])) for node, pair in tracer.ties]
    lost = [(node, why, torch.unique(root[labels]), len(labels)) for node, why, labels in tracer.lost]
    shared = root[torch.cat(list(tracer.shared_by.values()))] if tracer.shared_by else torch.zeros(0, dtype=torch.long)
    groups: list[Group] = []
    start = 0
    for head in torch.unique(group_of).tolist():
        members = torch.unique(roots[group_of[block] == head])
        number[members] = torch.arange(start, start + len(members))
        names = dict.fromkeys(name for index, (name, _) in enumerate(tracer.blocks) if int(group_of[index]) == head)
        ties = dict.fromkeys(
            f"{node.op.removeprefix('aten.')} at {node.place}" for node, tied_roots in tied if bool(torch.isin(tied_roots, members).any())
        )
        gone = dict.fromkeys(
            f"{node.op} at {node.place} {why}; {n} units became {len(found)}"
            for node, why, found, n in lost
            if n > len(found) and bool(torch.isin(found, members).any())
        )
        name = _unique(tracer.blocks[head][0], groups)
        is_shared = bool(torch.isin(members, shared).any())
        groups.append(Group(name, len(members), start, tuple(names), tuple(ties), is_shared, tuple(gone)))
        start += len(members)
    number[:-1] = number[root]
    return _Numbers(number, tuple(groups))


def _unique(name: str, groups: list[Group]) -> str:
    taken = {group.name for group in groups}
    return next(candidate for candidate in (name, *(f"{name}#{i}" for i in range(2, len(groups) + 3))) if candidate not in taken)


def _order(tracer: Tracer, numbered: _Numbers) -> tuple[dict[str, Gather], set[str], tuple[Node, Value] | None]:
    """Find the values whose units only changed places, and the first one in which units cannot be left out alone.

    Returns: how the former are gathered, names of nodes that need not be computed, and a node and its value, or None.
    """
    gathers: dict[str, Gather] = {}
    hidden = {name for name, value in tracer.values.items() if isinstance(value, Value) and value.is_parameter}
    ragged: set[str] = set()
    for name, stored in tracer.stored.items():
        if stored.elements is not None and len(varying(numbered.of(stored.elements))) > 1:
            node = next(node for node in tracer.graph.nodes if node.args and node.args[0] == name)
            return gathers, hidden, (node, Value(stored.elements, stored.shape))
    for node in tracer.graph.nodes:
        value = tracer.values.get(node.name)
        if not isinstance(value, Value) or value.is_parameter or node.name in tracer.operands:
            continue
        units = numbered.of(value.labels)
        moves = RULES.get(node.op) is not None and RULES[node.op].label in (move, index)
        reads_ragged = [name for name in references([list(node.args), dict(node.kwargs)]) if name in ragged]
        if len(varying(units)) > 1:
            if not moves:
                return gathers, hidden, (node, value)
            ragged.add(node.name)
        elif moves and (reads_ragged or not _commutes(tracer, numbered, node, value)):
            found = _gather(tracer, numbered, node, ragged)
            if found is None:
                source = node.args[0].name
                return gathers, hidden, (node, tracer.values[source])
            gathers[node.name] = found
        elif reads_ragged:
            return gathers, hidden, (node, tracer.values[reads_ragged[0]])
    return gathers, hidden | ragged, None


def _applied(tracer: Tracer, node: Node, tensor: Tensor) -> Tensor:
    """Move elements as a node does, along with fixed index tensors."""

    def fixed(argument: object) -> object:
        if isinstance(argument, Ref):
            return tracer.fixed[tracer.graph.by_name[argument.name].args[0]]
        return [fixed(item) for item in argument] if isinstance(argument, (list, tuple)) else argument

    if tracer.kind(node) == "shape":
        return tensor.reshape(node.shape or ())
    if tracer.kind(node) == "expand":
        return tensor.expand(node.shape or ())
    return moved(Node(node.name, node.op, (node.args[0], *(fixed(argument) for argument in node.args[1:]))), tensor)


def _commutes(tracer: Tracer, numbered: _Numbers, node: Node, value: Value) -> bool:
    """Tell whether leaving units out before an operation that only moves them is the same as leaving them out after it."""
    source = tracer.values[node.args[0].name]
    if not isinstance(source, Value) or (node.args[0].name in tracer.operands and source.is_parameter):
        return True
    before, after = numbered.of(source.labels), numbered.of(value.labels)
    if not varying(before) or tracer.kind(node) in ("shape", "expand", "slice", "select"):
        return True  # their numbers are rewritten
    if tracer.kind(node) == "gather":
        return False  # positions are chosen, unless the units' own dimension is left alone: `_gather` tells
    (dim,) = varying(before)
    labels = before.flatten()
    for keep in (labels != labels[0], labels == labels[-1]):
        if not bool(keep.any()):
            continue
        cut = before.expand(source.shape).index_select(dim, keep.nonzero()[:, 0])
        there = after.flatten()
        kept_after = there[(there == EVERYONE) | torch.isin(there, labels[keep])]
        try:
            found = _applied(tracer, node, cut + 1) - 1
        except RuntimeError:
            return False
        line = compact(torch.where(found == EVERYONE, found.amax(), found) if not bool((after == EVERYONE).any()) else found)
        if not torch.equal(line.flatten().expand_as(kept_after) if line.numel() == 1 else line.flatten(), kept_after):
            return False
    return True


def _gather(tracer: Tracer, numbered: _Numbers, node: Node, ragged: set[str]) -> Gather | None:
    """Return where the positions of a value come from: a value before it, and positions along the dimension of its units.

    None where more changes than the order of units.
    """
    chain = [node]
    while (source := chain[0].args[0].name) in ragged:
        chain.insert(0, tracer.graph.by_name[source])
    anchor = tracer.values[source]
    units = numbered.of(anchor.labels)
    dims = varying(units)
    if len(dims) != 1 or any(size is not None for size in tracer.graph.by_name[source].sizes[dims[0] : dims[0] + 1]):
        return None
    result: Tensor | None = None
    for dim, size in enumerate(anchor.shape):
        if size == 1:
            continue
        places = torch.arange(size).reshape([-1 if d == dim else 1 for d in range(len(anchor.shape))]).expand(anchor.shape)
        for step in chain:
            try:
                places = _applied(tracer, step, places)
            except (RuntimeError, KeyError):
                return None
        places = compact(places)
        if places.dim() != len(anchor.shape) or varying(places) not in ([dim], []):
            return None
        along_dim = places.transpose(0, dim).reshape(-1)
        if dim == dims[0]:
            result = along_dim.expand((node.shape or ())[dim])
        elif not torch.equal(along_dim, torch.arange(size)):
            return None
    return None if result is None else Gather(source, dims[0], result.clone())


def _wiring(tracer: Tracer, numbered: _Numbers, gathers: Mapping[str, Gather], hidden: set[str]) -> Wiring:
    of, number = numbered.of, numbered.number
    values: dict[str, Tensor] = {}
    for name, value in tracer.values.items():
        first = value[0] if isinstance(value, list) else value
        if not first.is_parameter:
            values[name] = of(first.labels)
    parameters: dict[str, ParameterLabels] = {}
    for name, stored in tracer.stored.items():
        if stored.elements is not None:
            units = of(stored.elements)
            dim = (varying(units) or [0])[0]
            size = stored.shape[dim] if stored.shape else 1
            rows = units.transpose(0, dim).reshape(-1).expand(size) if stored.shape else units.reshape(1)
            parameters[name] = ParameterLabels(rows.clone(), None, stored.initial, dim, -1, stored.deviation)
        elif stored.row is not None:
            columns = None if stored.column is None else number[stored.axes[stored.column]]
            initial = stored.initial
            parameters[name] = ParameterLabels(
                number[stored.axes[stored.row]],
                columns,
                initial,
                stored.row,
                -1 if stored.column is None else stored.column,
                stored.deviation,
            )
    operands = {
        name: Operand(
            found.parameter,
            found.moves,
            number[found.rows] if found.row_dim is not None else of(found.rows),
            found.row_dim,
            None if found.columns is None else number[found.columns],
            found.column_dim,
        )
        for name, found in tracer.operands.items()
    }
    return Wiring(
        graph=tracer.graph,
        groups=numbered.groups,
        values=values,
        parameters=parameters,
        operands=operands,
        reads=tuple(dict.fromkeys(tracer.reads)),
        norms=tuple((node.name, number[units]) for node, units in tracer.norms),
        kinds=dict(tracer.kinds),
        gathers=gathers,
        hidden=frozenset(hidden),
    )
