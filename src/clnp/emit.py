"""Write operations, restricted to a set of units, into an fx graph: every size is rewritten, nothing is masked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from clnp.wiring import EVERYONE, Node, Ref, Size, Wiring
from clnp.wiring.graph import SIZE_OPERATIONS, resolve
from clnp.wiring.labels import varying
from clnp.wiring.rules.base import aligned, moved

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Member = Tensor
"""bool (n_units + 1,): which units are meant; the last place answers for raw input, see `with_everyone`."""


def with_everyone(units: Tensor, everyone: bool = True) -> Member:
    """Append the answer for raw input (label -1), so that `result[labels]` answers for every position."""
    return torch.cat([units, torch.tensor([everyone])])


def positions(member: Member, labels: Tensor) -> Tensor:
    """Return the places in a list of labels that are members."""
    return member[labels].nonzero()[:, 0]


def unit_dim(labels: Tensor) -> int | None:
    """Return the dimension along which a value's units lie; None where it has one label throughout."""
    return next(iter(varying(labels)), None)


def kept_positions(wiring: Wiring, name: str, member: Member) -> tuple[int, Tensor] | None:
    """Return the dimension along which a value's units lie and its positions whose units are members, in order.

    Returns: None where the value has one label throughout; `present` tells whether it is there at all.
    """
    labels = wiring.values[name]
    dim = unit_dim(labels)
    return None if dim is None else (dim, positions(member, labels.flatten()))


def present(wiring: Wiring, name: str, member: Member) -> bool:
    """Tell whether any position of a value belongs to a member."""
    return bool(member[wiring.values[name]].any())


def restricted_sizes(wiring: Wiring, node: Node, member: Member) -> list[int | Size]:
    """Return the sizes of a node's value when only members are left."""
    sizes = [full if size is None else size for full, size in zip(node.shape or (), node.sizes, strict=True)]
    kept = kept_positions(wiring, node.name, member)
    if kept is not None:
        dim, places = kept
        full, left = (node.shape or ())[dim], len(places)
        size = sizes[dim]
        if left != full:
            # A dimension that holds units and examples, say: its size stays in proportion.
            hint = left if isinstance(size, int) else size.hint * left // full
            sizes[dim] = left if isinstance(size, int) else Size("//", (Size("*", (size, left), size.hint * left), full), hint)
    return sizes


def substitute(argument: Any, operand: Callable[[str], Any], size: Callable[[Size], Any]) -> Any:
    """Replace every reference and every size in an argument, or in a nest of arguments, by its value."""
    if isinstance(argument, Ref):
        return operand(argument.name)
    if isinstance(argument, Size):
        return size(argument)
    if isinstance(argument, (list, tuple)):
        return [substitute(item, operand, size) for item in argument]
    if isinstance(argument, dict):
        return {key: substitute(item, operand, size) for key, item in argument.items()}
    return argument


# ---- parameters as operations see them


def operand_places(wiring: Wiring, name: str, rows: Member, columns: Member | None = None) -> list[tuple[int, Tensor]]:
    """Return which positions of an operand are chosen, for each dimension along which it is cut; an empty list is all of it.

    Args:
        wiring: of the network.
        name: of an operand.
        rows: whose rows are chosen.
        columns: whose columns are; None takes those of `rows`.
    """
    found = wiring.operands[name]
    places: list[tuple[int, Tensor]] = []
    if found.row_dim is None:
        dim = unit_dim(found.rows)
        if dim is not None:
            places.append((dim, positions(rows, found.rows.flatten())))
        elif not bool(rows[found.rows].any()) and found.rows.dim():
            places.append((0, torch.zeros(0, dtype=torch.long)))
    else:
        places.append((found.row_dim, positions(rows, found.rows)))
    if found.columns is not None and found.column_dim is not None:
        places.append((found.column_dim, positions(rows if columns is None else columns, found.columns)))
    return places


def operand_view(wiring: Wiring, state: Mapping[str, Tensor], name: str) -> Tensor:
    """Return an operand at its full width: a parameter, through views."""
    found = wiring.operands[name]
    tensor = state[found.parameter].detach()
    for move in found.moves:
        tensor = moved(move, tensor)
    return tensor


def take(tensor: Tensor, places: list[tuple[int, Tensor]]) -> Tensor:
    """Copy the chosen positions of a tensor."""
    for dim, index in places:
        tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor.detach().clone()


def put_(wiring: Wiring, state: Mapping[str, Tensor], name: str, places: list[tuple[int, Tensor]], values: Tensor) -> None:
    """Write values into the chosen positions of an operand, through its views, into the parameter."""
    found = wiring.operands[name]
    full = state[found.parameter]
    if not found.moves and places:
        dims = [dim for dim, _ in places]
        index = [place.to(full.device).reshape([-1 if k == n else 1 for k in range(len(places))]) for n, (_, place) in enumerate(places)]
        with torch.no_grad():
            full.movedim(dims, list(range(len(dims))))[tuple(index)] = values.detach().movedim(dims, list(range(len(dims))))
        return
    index = torch.arange(full.numel()).reshape(full.shape)
    for move in found.moves:
        index = moved(move, index)
    index = take(index, places).to(full.device)
    with torch.no_grad():
        full.view(-1)[index.flatten()] = values.detach().reshape(-1)


# ---- the graph

RESERVED = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))
"""Names that a module of a graph has itself: no layer can be stored under them."""


_AFTER_INPUT = {f"aten.{name}.default": f"aten.new_{name}.default" for name in ("full", "zeros", "ones")}


class Emitter:
    """Begins an fx graph for a network whose full-width parameters and buffers are `state`, and writes into it.

    Args:
        wiring: of the network.
        state: its parameters and buffers by name.
        portable: whether the module may be pickled: it is traced again when it is read, which some operations do not bear.
    """

    def __init__(self, wiring: Wiring, state: Mapping[str, Tensor], *, portable: bool = True) -> None:
        self.portable = portable
        self.wiring = wiring
        self.state = state
        self.device = next(iter(state.values())).device if state else torch.device("cpu")
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.sizes: dict[Size, fx.Node] = {}
        self.inputs: dict[str, fx.Node] = {}

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

    def take_input(self, node: Node) -> fx.Node:
        """Make a placeholder for an input of the network."""
        self.inputs[node.name] = self.graph.placeholder(node.name)
        return self.inputs[node.name]

    def take_inputs(self) -> dict[str, fx.Node]:
        """Make placeholders for all inputs of the network."""
        return {node.name: self.take_input(node) for node in self.wiring.graph.inputs}

    def constant(self, node: Node) -> fx.Node:
        """Emit a buffer that belongs to no unit."""
        return self.store(node.args[0], self.state[node.args[0]].detach().clone())

    def size(self, size: int | Size) -> Any:
        """Emit a size that follows from the inputs' sizes."""
        if isinstance(size, int):
            return size
        if size not in self.sizes:
            if size.op == "input":
                name, dim = size.args
                self.sizes[size] = self.graph.call_function(torch.ops.aten.sym_size.int, (self.inputs[name], dim))
            else:
                parts = tuple(self.size(part) for part in size.args)
                self.sizes[size] = self.graph.call_function(SIZE_OPERATIONS[size.op], parts)
        return self.sizes[size]

    def run(self, op: str, *args: Any, **kwargs: Any) -> fx.Node:
        """Emit an aten operation: `run("add.Tensor", a, b)`."""
        return self._emit(f"aten.{op}", args, kwargs)

    def full(self, sizes: Sequence[Any], fill: float, like: fx.Node | None = None) -> fx.Node:
        """Emit a tensor of one number; where a size is known only when the network runs, with the dtype of `like`, if there is such a value."""
        if self.portable and like is not None and any(isinstance(size, fx.Node) for size in sizes):
            return self.run("new_full.default", like, list(sizes), fill)
        return self.run("full.default", list(sizes), fill, device=self.device)

    def _emit(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        """Emit an operation. What makes a tensor of a size that is known only when the network runs makes it after an input.

        A module of a graph is traced again when it is unpickled, and torch cannot trace `full` or `zeros` with such a size. What is only
        trained is never pickled, and stays as it is: under autocast the dtype of an input is not that of the weights.
        """
        if self.portable and op in _AFTER_INPUT and any(isinstance(size, fx.Node) for size in args[0]):
            fill = args[1] if len(args) > 1 else 0.0
            made = torch.bool if isinstance(fill, bool) else torch.int64 if isinstance(fill, int) else torch.get_default_dtype()
            dtype = kwargs.get("dtype") or made  # as torch does where none is said
            args, kwargs = (next(iter(self.inputs.values())), *args), {"dtype": dtype}
            op = _AFTER_INPUT[op]
        return self.graph.call_function(resolve(op), args, kwargs)

    def call(self, node: Node, args: Any, kwargs: Any = None) -> fx.Node:
        """Emit a node's operation on arguments that are ready."""
        named = dict(kwargs or {})
        if "device" in named:
            named["device"] = self.device
        return self._emit(node.op, tuple(args), named)

    def index(self, value: fx.Node, dim: int, places: Tensor) -> fx.Node:
        """Emit the choice of positions along a dimension; a slice where they follow each other."""
        n = len(places)
        if n and torch.equal(places, torch.arange(int(places[0]), int(places[0]) + n)):
            return self.run("slice.Tensor", value, dim, int(places[0]), int(places[0]) + n)
        return self.run("index_select.default", value, dim, self.store(f"positions.p{len(self.graph.nodes)}", places.to(self.device)))

    def is_raw(self, name: str) -> bool:
        """Tell whether a node's value is a tensor that belongs to no unit: raw input, or what is computed from it alone."""
        labels = self.wiring.values.get(name)
        return labels is not None and name not in self.wiring.operands and bool((labels == EVERYONE).all())

    def held(self, name: str, dim: int, member: Member) -> Tensor:
        """Return the positions along a dimension that a value has when it is restricted to members."""
        labels, shape = self.wiring.values[name], self.wiring.node(name).shape or ()
        if labels.shape[dim] > 1:
            return positions(member, labels.transpose(0, dim).reshape(-1))
        return torch.arange(shape[dim])

    def align(self, value: Any, name: str, target: Node, member: Member) -> Any:
        """Cut what meets units in the target, raw input say, to the positions where the target has members.

        Args:
            value: of the node `name` in this graph; None when it has none.
            name: of the operand.
            target: the operation that reads it, position by position.
            member: which units are left.
        """
        if not isinstance(value, fx.Node) or name not in self.wiring.values or name in self.wiring.operands:
            return value
        wanted = kept_positions(self.wiring, target.name, member)
        shape, full = self.wiring.node(name).shape or (), target.shape or ()
        if wanted is None:
            return value
        dim = aligned(wanted[0], len(full), len(shape))
        if dim < 0 or shape[dim] == 1:
            return value
        held, places = self.held(name, dim, member), wanted[1]
        if shape[dim] != full[wanted[0]] and target.name in self.wiring.origins:
            places = self.wiring.origins[target.name][places]  # raw input meets a value that was widened
        if len(held) == len(places):
            return value
        return self.index(value, dim, torch.searchsorted(held, places))

    def finish(self, outputs: Any) -> fx.GraphModule:
        """Close the graph: what the outputs do not need is removed, kept values of the claimed graph (`meet_*`) too."""
        self.graph.output(outputs)
        for node in reversed(self.graph.nodes):
            unused_input = node.op == "placeholder" and str(node.target).startswith("meet_")
            if not node.users and node.op != "output" and (node.op != "placeholder" or unused_input):
                self.graph.erase_node(node)
        read = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        for name, _ in [*self.root.named_buffers(), *self.root.named_parameters()]:
            path, _, last = name.rpartition(".")
            owner = self.root.get_submodule(path)
            if name not in read and type(owner) is nn.Module:
                delattr(owner, last)
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph)
