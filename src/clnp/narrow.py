"""The narrowed network: the captured graph and a set of units in, a smaller dense network out.

Every size in the graph is rewritten and every tensor holds the chosen units only: no masks. What the chosen units do not
read is not computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, fx, nn

from clnp.errors import WiringError
from clnp.wiring import EVERYONE, Node, Ref, Wiring, kind_of, noisy
from clnp.wiring.graph import CONSTANT, INPUT, OUTPUT, PARAMETER, mode, resolve
from clnp.wiring.labels import varying

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def with_everyone(units: Tensor, everyone: bool = True) -> Tensor:
    """Append the answer for raw input (label -1), so that `result[labels]` answers for every position."""
    return torch.cat([units, torch.tensor([everyone])])


def kept_positions(wiring: Wiring, name: str, member: Tensor) -> tuple[int, Tensor] | None:
    """Return the dimension along which a value's units lie and its positions whose units are members, in order.

    Args:
        wiring: of the network.
        name: of the node whose value is meant.
        member: bool (n_units + 1,), see `with_everyone`.

    Returns: None where the value has one label throughout; `present` tells whether it is there at all.
    """
    labels = wiring.values[name]
    dims = varying(labels)
    if not dims:
        return None
    return dims[0], member[labels.flatten()].nonzero()[:, 0]


def present(wiring: Wiring, name: str, member: Tensor) -> bool:
    """Tell whether any position of a value belongs to a member."""
    return bool(member[wiring.values[name]].any())


def size_of(wiring: Wiring, node: Node, member: Tensor) -> list[int]:
    """Return the sizes of a node's value when only members are left."""
    sizes = list(node.shape or ())
    kept = kept_positions(wiring, node.name, member)
    if kept is not None:
        sizes[kept[0]] = len(kept[1])
    return sizes


@overload
def positions(member: Tensor, labels: Tensor) -> Tensor: ...
@overload
def positions(member: Tensor, labels: None) -> None: ...
def positions(member: Tensor, labels: Tensor | None) -> Tensor | None:
    """Return the places in a list of labels that are members; None for a parameter without columns."""
    return None if labels is None else member[labels].nonzero()[:, 0]


def take(tensor: Tensor, rows: Tensor, columns: Tensor | None) -> Tensor:
    """Copy the given rows, and of them the given columns, of a parameter."""
    chosen = tensor.detach()[rows.to(tensor.device)]
    return chosen if columns is None else chosen[:, columns.to(tensor.device)]


def substitute(argument: Any, operand: Callable[[str], Any]) -> Any:
    """Replace every reference in an argument, or in a nest of arguments, by the value it refers to."""
    if isinstance(argument, Ref):
        return operand(argument.name)
    if isinstance(argument, (list, tuple)):
        return [substitute(item, operand) for item in argument]
    if isinstance(argument, dict):
        return {key: substitute(item, operand) for key, item in argument.items()}
    return argument


RESERVED = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))
"""Names that a module of a graph has itself: no layer can be stored under them."""


class Emitter:
    """Writes operations, restricted to a set of units, into an fx graph."""

    def __init__(self, wiring: Wiring, state: Mapping[str, Tensor]) -> None:
        """Begin an empty graph for a network whose full-width parameters and buffers are `state`."""
        self.wiring = wiring
        self.state = state
        self.device = next(iter(state.values())).device if state else torch.device("cpu")
        self.graph = fx.Graph()
        self.root = nn.Module()

    def store(self, name: str, tensor: Tensor | nn.Parameter) -> fx.Node:
        """Put a tensor into the module under a dotted name (with "_" behind a part that is taken) and return the node that reads it."""
        *path, last = name.split(".")
        module, places = self.root, list[str]()
        for part in path:
            place = part
            while (not places and place in RESERVED) or not isinstance(getattr(module, place, self.root), nn.Module):
                place += "_"
            if not hasattr(module, place):
                module.add_module(place, nn.Module())
            module = getattr(module, place)
            places.append(place)
        while (not places and last in RESERVED) or hasattr(module, last):
            last += "_"
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(last, tensor)
        else:
            module.register_buffer(last, tensor)
        return self.graph.get_attr(".".join([*places, last]))

    def constant(self, node: Node) -> fx.Node:
        """Emit a buffer that belongs to no unit."""
        return self.store(node.args[0], self.state[node.args[0]].detach().clone())

    def call(self, node: Node, member: Tensor, operand: Callable[[str], Any]) -> fx.Node:
        """Emit one operation that is neither weight nor norm, for the members only.

        Args:
            node: the operation.
            member: bool (n_units + 1,).
            operand: name of a node -> its value in this graph, restricted to the members; None when it has none.
        """
        args, kwargs = list(node.args), dict(node.kwargs)
        kind = kind_of(node)
        if kind == "view":
            sizes = size_of(self.wiring, node, member)
            full = node.shape or ()
            args[1] = [old if new == size else new for old, new, size in zip(args[1], sizes, full, strict=True)]
        elif kind == "cat":
            args[0] = [ref for ref in args[0] if operand(ref.name) is not None]
        return self.graph.call_function(resolve(node.op), tuple(substitute(args, operand)), substitute(kwargs, operand))

    def norm(self, node: Node, operand: Callable[[str], Any]) -> fx.Node:
        """Emit a batch norm that uses its stored statistics."""
        args = substitute(node.args, operand)
        args[5] = False
        return self.graph.call_function(resolve(node.op), tuple(args))

    def is_raw(self, name: str) -> bool:
        """Tell whether a node's value is a tensor that belongs to no unit: raw input, or what is computed from it alone."""
        labels = self.wiring.values.get(name)
        return labels is not None and name not in self.wiring.parameter_nodes and bool((labels == EVERYONE).all())

    def align(self, value: fx.Node | None, name: str, target: Node, member: Tensor) -> fx.Node | None:
        """Cut raw input that meets units in the target to the positions where the target has members; leave all else as it is.

        Args:
            value: of the node `name` in this graph; None when it has none.
            name: of the operand.
            target: the operation that reads it.
            member: bool (n_units + 1,).
        """
        if value is None or kind_of(target) not in ("pointwise", "norm") or not self.is_raw(name):
            return value
        kept = kept_positions(self.wiring, target.name, member)
        shape, full = self.wiring.node(name).shape, target.shape or ()
        if kept is None or shape is None:
            return value
        dim = kept[0] - len(full) + len(shape)
        if dim < 0 or shape[dim] == 1 or len(kept[1]) == full[kept[0]]:
            return value
        index = self.store(f"positions.{target.name}", kept[1].to(self.device))
        return self.graph.call_function(torch.index_select, (value, dim, index))

    def finish(self, outputs: Any) -> fx.GraphModule:
        """Close the graph: what the outputs do not need is removed, kept values of the claimed graph (`meet_*`) too."""
        self.graph.output(outputs)
        for node in reversed(self.graph.nodes):
            unused_input = node.op == "placeholder" and str(node.target).startswith("meet_")
            if not node.users and node.op != "output" and (node.op != "placeholder" or unused_input):
                self.graph.erase_node(node)
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph)


def narrow(
    wiring: Wiring,
    state: Mapping[str, Tensor],
    units: Tensor,
    *,
    outputs: Sequence[str] | None = None,
    buffers: bool = False,
    head: tuple[Tensor, Tensor] | None = None,
) -> fx.GraphModule:
    """Build the dense network of some units, in evaluation mode for ever.

    Args:
        wiring: of the network.
        state: its full-width parameters and buffers by name.
        units: the units to keep, bool (n_units,). Weights between kept units are copied as they are.
        outputs: names of nodes to return (a tuple) instead of the trunk's output.
        buffers: keep the weights as buffers, so that no optimizer can ever be given them.
        head: weight (classes, F) and bias (classes,) of a linear head on the trunk's F features.

    Returns: a module from input (B, ...) to logits (B, classes), to features, or to the tuple of `outputs`. Its
        parameters keep the names that they have in the model; none of them asks for a gradient.
    """
    emitter = Emitter(wiring, state)
    member = with_everyone(units)
    values: dict[str, fx.Node | None] = {}
    for node in wiring.graph.nodes:
        if node.op == OUTPUT:
            continue
        if node.op == PARAMETER or (node.op == CONSTANT and node.args[0] in wiring.parameters):
            labels = wiring.parameters[node.args[0]]
            tensor = take(state[node.args[0]], positions(member, labels.rows), positions(member, labels.columns))
            stored = nn.Parameter(tensor, requires_grad=False) if node.op == PARAMETER and not buffers else tensor
            values[node.name] = emitter.store(node.args[0], stored) if tensor.numel() else None
        elif node.op == CONSTANT:
            values[node.name] = emitter.constant(node)
        elif node.op == INPUT:
            values[node.name] = emitter.graph.placeholder(node.name)
        else:
            values[node.name] = _emit(emitter, node, member, values)
    if outputs is not None:
        return emitter.finish(tuple(values[name] for name in outputs))
    result = values[wiring.graph.output]
    if head is not None:
        columns = positions(member, wiring.features).to(head[0].device)
        name = next(name for name in ("head", "task_head", "head_of_the_task") if not hasattr(emitter.root, name))
        weight = emitter.store(f"{name}.weight", nn.Parameter(head[0].detach()[:, columns], requires_grad=False))
        bias = emitter.store(f"{name}.bias", nn.Parameter(head[1].detach().clone(), requires_grad=False))
        result = emitter.graph.call_function(torch.ops.aten.linear.default, (result, weight, bias))
    return emitter.finish(result)


def _emit(emitter: Emitter, node: Node, member: Tensor, values: Mapping[str, fx.Node | None]) -> fx.Node | None:
    """Emit one operation in evaluation mode, or return None when none of its value's units is kept."""
    if node.shape is not None and not present(emitter.wiring, node.name, member):
        return None

    def operand(name: str) -> fx.Node | None:
        return emitter.align(values[name], name, node, member)

    kind = kind_of(node)
    if kind == "noise":
        return operand(node.args[0].name)
    if kind == "norm":
        return emitter.norm(node, operand)
    return emitter.call(node, member, operand)


CHECKED_BATCHES = (1, 3, 17)
"""Batch sizes that a network is tried with: the capture saw 2, and the code may ask how large a batch is."""


def check_narrowing(wiring: Wiring, state: Mapping[str, Tensor], trunk: nn.Module, example: Tensor) -> None:
    """Check that the captured network, with all its units, does what the trunk does, at several batch sizes.

    Raises:
        WiringError: it does not: the code of the trunk depends on something that the capture could not see.
    """
    network = narrow(wiring, state, torch.ones(wiring.n_units, dtype=torch.bool))
    for n in CHECKED_BATCHES:
        x = noisy(example, n)
        with mode(trunk, training=False), torch.no_grad():
            expected, found = trunk(x), network(x.cpu())
        if not isinstance(expected, Tensor):
            raise WiringError(f"cannot use this network as a trunk: expected one tensor as its output, found {type(expected).__name__}.")
        expected = expected.cpu()
        tolerance = 1e-4 * max(1.0, float(expected.abs().max()))
        if expected.shape != found.shape or float((expected - found).abs().max()) > tolerance:
            raise WiringError(
                f"cannot use this network: what was captured does not compute what it computes (batch of {n}). "
                f"Its forward pass may depend on the mode, the batch or an in-place change that a capture cannot see."
            )
