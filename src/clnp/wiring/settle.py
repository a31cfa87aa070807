"""From provisional labels to units: tied labels become one unit, tied layers one group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clnp.errors import WiringError
from clnp.wiring.graph import PARAMETER, Node, Ref, references
from clnp.wiring.labels import EVERYONE, compact, components, varying
from clnp.wiring.plan import Gather, Group, ParameterLabels, Wiring
from clnp.wiring.rules import RULES, Value
from clnp.wiring.rules.base import SAME, filled, relabelled
from clnp.wiring.rules.pointwise import index, move, same
from clnp.wiring.tracer import PRODUCT, Operand, Tracer

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
        # Elements of a parameter that nothing meets are free to go with the others: nothing is lost.
        why = "" if node.op == PARAMETER else "lays units out so that none can be left out alone"
        tracer.only_along(node, value, keep, lost=why)
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
    root = components(tracer.n_labels, torch.cat([torch.zeros(0, 2, dtype=torch.long), *(pair for _, pair in tracer.ties), *tracer.links]))
    sizes = [len(labels) for _, labels in tracer.blocks]
    block = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.long))
    roots = root[torch.cat([labels for _, labels in tracer.blocks])] if sizes else torch.zeros(0, dtype=torch.long)
    first = torch.full((tracer.n_labels,), len(sizes)).scatter_reduce_(0, roots, block, "amin")  # root -> its first block
    group_of = components(len(sizes), torch.stack([block, first[roots]], 1).unique(dim=0))  # block -> the group's first block
    number = torch.full((tracer.n_labels + 1,), EVERYONE)
    tied = [(node, torch.unique(root[pair[:, 0]])) for node, pair in tracer.ties]
    lost = [(node, why, torch.unique(root[labels]), _before(tracer, node, labels)) for node, why, labels in tracer.lost]
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
            if n > len(found) and bool(torch.isin(found, members).any()) and (why != PRODUCT or len(found) == 1)
        )
        mine = [index for index in range(len(tracer.blocks)) if int(group_of[index]) == head]
        first_layer = next((index for index in mine if index not in tracer.direct_blocks), mine[0])
        name = _unique(tracer.blocks[first_layer][0], groups)
        is_shared = bool(torch.isin(members, shared).any())
        groups.append(Group(name, len(members), start, tuple(names), tuple(ties), is_shared, tuple(gone)))
        start += len(members)
    number[:-1] = number[root]
    return _Numbers(number, tuple(groups))


def _before(tracer: Tracer, node: Node, labels: Tensor) -> int:
    """Return how many units some labels were before a node: those that earlier nodes, and attention anywhere, had not tied."""
    order = {name: place for place, name in enumerate(tracer.graph.by_name)}
    here = order[node.name]
    attention = {other.name for other, why, _ in tracer.lost if why == PRODUCT and other.name != node.name}
    ties = [pair for other, pair in tracer.ties if order[other.name] < here or other.name in attention]
    pairs = torch.cat([torch.zeros(0, 2, dtype=torch.long), *ties, *tracer.links])
    return len(torch.unique(components(tracer.n_labels, pairs)[labels[labels != EVERYONE]]))


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
        moves = RULES.get(node.op) is not None and RULES[node.op].label in (move, index, same)
        reads_ragged = [name for name in references([list(node.args), dict(node.kwargs)]) if name in ragged]
        if len(varying(units)) > 1:
            if not moves and node.op != "aten.cat.default":
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
            found = tracer.content(argument.name)
            if found is None:
                raise KeyError(argument.name)
            return found
        return [fixed(item) for item in argument] if isinstance(argument, (list, tuple)) else argument

    if node.op in SAME:
        return tensor
    if tracer.kind(node) == "shape":
        return tensor.reshape(node.shape or ())
    if tracer.kind(node) == "expand":
        return tensor.expand(node.shape or ())
    return relabelled(Node(node.name, node.op, (node.args[0], *(fixed(argument) for argument in node.args[1:]))), tensor - 1) + 1


def _commutes(tracer: Tracer, numbered: _Numbers, node: Node, value: Value) -> bool:
    """Tell whether leaving units out before an operation that only moves them is the same as leaving them out after it."""
    source = tracer.values[node.args[0].name]
    if not isinstance(source, Value) or (node.args[0].name in tracer.operands and source.is_parameter):
        return True
    before, after = numbered.of(source.labels), numbered.of(value.labels)
    if not varying(before) or tracer.kind(node) in ("shape", "expand", "slice", "select"):
        return True  # their numbers are rewritten
    (dim,) = varying(before)
    if tracer.kind(node) == "gather":
        return varying(after) == [dim] and _spares(tracer, node, source.shape, dim)
    labels = before.flatten()
    for keep in (labels != labels[0], labels == labels[-1]):
        if not bool(keep.any()):
            continue
        cut = before.expand(source.shape).index_select(dim, keep.nonzero()[:, 0])
        there = after.flatten()
        put_in = (there == EVERYONE) & (labels != EVERYONE).all()  # zeros stay, whatever is left out
        kept_after = there[put_in | torch.isin(there, labels[keep])]
        try:
            found = _applied(tracer, node, cut + 1) - 1
        except (RuntimeError, KeyError):
            return False
        expected = kept_after.reshape([-1 if size > 1 else 1 for size in after.shape]) if after.numel() > 1 else kept_after[:1]
        if not torch.equal(filled(found).flatten(), filled(expected).flatten()):
            return False
    return True


def _spares(tracer: Tracer, node: Node, shape: tuple[int, ...], dim: int) -> bool:
    """Tell whether a node that chooses positions leaves those along a dimension alone, however many there are."""
    n = shape[dim]
    line = torch.arange(n).reshape([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape)
    try:
        all_of_them, fewer = (compact(_applied(tracer, node, part)) for part in (line, line.narrow(dim, 0, n - 1)))
    except KeyError:  # an index that is computed: the rule saw to it that it does not choose units
        chosen = node.args[1]
        return dim != chosen % len(shape) if isinstance(chosen, int) else dim >= len(chosen) or chosen[dim] is None
    except (RuntimeError, IndexError):
        return False
    alone = varying(all_of_them) == [dim] and torch.equal(all_of_them.flatten(), torch.arange(n))
    return alone and torch.equal(fewer.flatten(), torch.arange(n - 1))


def _gather(tracer: Tracer, numbered: _Numbers, node: Node, ragged: set[str]) -> Gather | None:
    """Return where the positions of a value come from: values before it, and positions along the dimension of their units.

    None where more changes than the order of units.
    """
    anchors: dict[str, int] = {}
    dims: set[int] = set()
    shapes: set[tuple[int, ...]] = set()

    def places(name: str, *, first: bool = False) -> list[Tensor]:
        """Return, for each dimension of the anchors, the place there of each position of a value."""
        step = tracer.graph.by_name[name]
        if step.op == "aten.cat.default" and (first or name in ragged):
            operands = [places(ref.name) for ref in step.args[0]]
            dim = step.args[1] if len(step.args) > 1 else 0
            return [torch.cat(parts, dim) for parts in zip(*operands, strict=True)]
        if first or name in ragged or name.endswith("_of_stack"):
            return [_applied(tracer, step, part) for part in places(step.args[0].name)]
        value = tracer.values[name]
        dims.update(varying(numbered.of(value.labels)))
        (dim,) = dims
        shapes.add((*value.shape[:dim], *value.shape[dim + 1 :]))
        start = anchors.setdefault(name, sum(tracer.values[other].shape[dim] for other in anchors))
        lines = [torch.arange(size).reshape([-1 if d == k else 1 for d in range(len(value.shape))]) for k, size in enumerate(value.shape)]
        lines[dim] = lines[dim] + start
        return [line.expand(value.shape) for line in lines]

    try:
        found = [compact(part) for part in places(node.name, first=True)]
    except (RuntimeError, KeyError, ValueError, AttributeError):
        return None
    (dim,) = dims
    if len(shapes) != 1 or len(found) != len(node.shape or ()) or any(node.sizes[dim : dim + 1]):
        return None
    for k, part in enumerate(found):
        if varying(part) not in ([k], []):
            return None
        line = part.transpose(0, k).reshape(-1)
        if k != dim and len(line) > 1 and not torch.equal(line, torch.arange((node.shape or ())[k])):
            return None
        if k != dim and len(line) == 1 and (node.shape or ())[k] != 1:
            return None
    along_dim = found[dim].transpose(0, dim).reshape(-1).expand((node.shape or ())[dim])
    return Gather(tuple(anchors), dim, along_dim.clone())


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
