"""Norms over units that are written by hand, found in a captured graph: x * rsqrt(mean(x^2) + eps), and with the mean taken off.

Taken step by step, a mean over channels would merge them all. As a norm, each unit is normalised over those its owner needs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from clnp.wiring.graph import Graph, Node, Ref, references

if TYPE_CHECKING:
    from collections.abc import Mapping

UNIT_NORM = "clnp.unit_norm.default"
"""What a norm by hand becomes: (x, dims, eps, whether the mean is taken off). It stands in captured graphs only."""
_CASTS = ("aten.to.", "aten._to_copy.", "aten.type_as.", "aten.contiguous.", "aten.clone.", "aten.float.")


def with_norms(graph: Graph) -> Graph:
    """Return the graph with one step for each norm that is written by hand."""
    nodes = dict(graph.by_name)
    for name, node in graph.by_name.items():
        found = _norm(nodes, node)
        if found is not None:
            nodes[name] = replace(node, op=UNIT_NORM, args=found, kwargs={})
    needed: set[str] = set()
    for node in reversed(list(nodes.values())):
        if node.op == "output" or node.name in needed:
            needed |= set(references([list(node.args), dict(node.kwargs)]))
    kept = tuple(node for node in nodes.values() if node.name in needed or node.op in ("input", "output"))
    return replace(graph, nodes=kept)


def _norm(nodes: Mapping[str, Node], node: Node) -> tuple[Ref, list[int], float, bool] | None:
    """Return the arguments of the norm that a node ends, if it does."""
    if len(node.args) != 2 or not all(isinstance(arg, Ref) for arg in node.args):
        return None
    a, b = node.args
    if node.op == "aten.div.Tensor":
        pairs = [(a, _inside(nodes, b, "aten.sqrt.default"))]
    elif node.op == "aten.mul.Tensor":
        pairs = [(x, _inside(nodes, r, "aten.rsqrt.default") or _minus_half(nodes, r)) for x, r in ((a, b), (b, a))]
    else:
        return None
    for x, under in pairs:
        found = None if under is None else _spread(nodes, x, under)
        if found is not None:
            return found
    return None


def _spread(nodes: Mapping[str, Node], x: Ref, under: Ref) -> tuple[Ref, list[int], float, bool] | None:
    """Match mean(x^2) + eps, or var(x0) + eps where x = x0 - mean(x0)."""
    plus = _plain(nodes, under)
    if not plus.op.startswith("aten.add.") or not isinstance(plus.args[0], Ref) or not isinstance(plus.args[1], float):
        return None
    eps, spread = plus.args[1], _plain(nodes, plus.args[0])
    value = _plain(nodes, x)
    centre = _centred(nodes, value)
    if spread.op == "aten.mean.dim" and _keeps(spread):
        squared = _plain(nodes, spread.args[0])
        of = _squared(nodes, squared)
        dims = _dims(spread)
        if of is None or not _same(nodes, of, value) or dims is None:
            return None
        if centre is not None and centre[1] == dims:
            return centre[0], dims, eps, True
        return x, dims, eps, False
    population = spread.op == "aten.var.correction" and spread.kwargs.get("correction") == 0 and _keeps(spread)
    population |= spread.op == "aten.var.dim" and len(spread.args) == 4 and spread.args[2] is False and spread.args[3] is True
    if population and centre is not None:
        dims = _dims(spread)
        if dims == centre[1] and _plain(nodes, spread.args[0]).name == _plain(nodes, centre[0]).name:
            return centre[0], centre[1], eps, True
    return None


def _same(nodes: Mapping[str, Node], a: Node, b: Node, depth: int = 4) -> bool:
    """Tell whether two nodes compute the same: one node, or the same operation written twice."""
    if a.name == b.name:
        return True
    if depth == 0 or a.op != b.op or len(a.args) != len(b.args) or dict(a.kwargs) != dict(b.kwargs):
        return False
    return all(
        _same(nodes, _plain(nodes, one), _plain(nodes, two), depth - 1) if isinstance(one, Ref) and isinstance(two, Ref) else one == two
        for one, two in zip(a.args, b.args, strict=True)
    )


def _plain(nodes: Mapping[str, Node], ref: Ref) -> Node:
    """Return the node behind changes of the number format."""
    node = nodes[ref.name]
    while node.op.startswith(_CASTS):
        node = nodes[node.args[0].name]
    return node


def _inside(nodes: Mapping[str, Node], ref: Ref, op: str) -> Ref | None:
    node = _plain(nodes, ref)
    return node.args[0] if node.op == op else None


def _minus_half(nodes: Mapping[str, Node], ref: Ref) -> Ref | None:
    node = _plain(nodes, ref)
    if node.op == "aten.reciprocal.default":
        return _inside(nodes, node.args[0], "aten.sqrt.default")
    return node.args[0] if node.op == "aten.pow.Tensor_Scalar" and node.args[1] == -0.5 else None


def _squared(nodes: Mapping[str, Node], node: Node) -> Node | None:
    """Return the node whose square a node is."""
    if node.op == "aten.square.default" or (node.op == "aten.pow.Tensor_Scalar" and node.args[1] == 2):
        return _plain(nodes, node.args[0])
    if node.op == "aten.mul.Tensor" and all(isinstance(arg, Ref) for arg in node.args):
        one, two = (_plain(nodes, arg) for arg in node.args)
        return one if one.name == two.name else None
    return None


def _centred(nodes: Mapping[str, Node], node: Node) -> tuple[Ref, list[int]] | None:
    """Return x0 and the dimensions where a node is x0 - mean(x0)."""
    if node.op != "aten.sub.Tensor" or not all(isinstance(arg, Ref) for arg in node.args):
        return None
    mean = _plain(nodes, node.args[1])
    if mean.op != "aten.mean.dim" or not _keeps(mean) or _plain(nodes, mean.args[0]).name != _plain(nodes, node.args[0]).name:
        return None
    dims = _dims(mean)
    return None if dims is None else (node.args[0], dims)


def _keeps(node: Node) -> bool:
    return bool(node.kwargs.get("keepdim", len(node.args) > 2 and node.args[2]))


def _dims(node: Node) -> list[int] | None:
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return None if not isinstance(dims, list) else [dim % len(node.shape or ()) for dim in dims]
