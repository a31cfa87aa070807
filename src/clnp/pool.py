"""The pool graph: the rows of the pool's units, and where they meet raw input and the claimed graph's values."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from clnp.emit import Emitter, kept_positions, operand_places, operand_view, positions, present, take, unit_dim, with_everyone
from clnp.kinds import Step, attention_arguments, emit, normalised, nothing_read, recurrent_layer, scale_and_shift, weight_of
from clnp.layers import Attention, Noise, PoolNorm
from clnp.pieces import TINY, Piece, row_norms
from clnp.wiring import EVERYONE, Node, Wiring
from clnp.wiring.graph import CONSTANT, INPUT, OUTPUT, references
from clnp.wiring.labels import along
from clnp.wiring.rules import RULES
from clnp.wiring.rules.base import aligned
from clnp.wiring.rules.norms import norm_form

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clnp.kinds import Part


MEETING = frozenset({"aten.instance_norm.default", "aten.group_norm.default", "aten.prelu.default"})
"""Operations with parameters of each unit that read each position by itself."""


class PoolBuilder:
    """Writes the pool graph: for every node the version of raw input and claimed units, and that of the pool's units."""

    def __init__(self, wiring: Wiring, state: Mapping[str, Tensor], claimed: Tensor, pool: Tensor, norms: Sequence[Part]) -> None:
        self.wiring = wiring
        self.state = state
        self.emitter = Emitter(wiring, state, portable=False)
        self.claimed = with_everyone(claimed, everyone=False)
        self.given_member = with_everyone(claimed)
        self.pool_member = with_everyone(pool, everyone=False)
        self.norm_parts = norms
        self.given: dict[str, Any] = {}
        self.pool: dict[str, Any] = {}
        self.noisy: set[str] = set()
        self.meets: list[str] = []
        self.pieces: list[Piece] = []
        self.norms: dict[str, str] = {}
        self.placed: dict[tuple[str, str], Any] = {}

    def build(self) -> fx.GraphModule:
        """Write the graph. Its inputs are the network's, then the `meets`; its outputs the features: given ones, and the pool's."""
        self.given |= self.emitter.take_inputs()
        for node in self.wiring.graph.nodes:
            if node.op in (OUTPUT, INPUT) or node.name in self.wiring.hidden or node.name in self.wiring.operands:
                continue
            if node.op == CONSTANT:
                self.given[node.name] = self.emitter.constant(node)
            else:
                self._place(node)
        output = self.wiring.graph.output
        module = self.emitter.finish((self._given_operand(output), self._pool_value(output)))
        self.meets = [n.target.removeprefix("meet_") for n in module.graph.nodes if n.op == "placeholder" and n.target.startswith("meet_")]
        return module

    # ---- operands

    def _given_operand(self, name: str) -> Any:
        """Return the version of raw input and claimed units; of a parameter its claimed rows, frozen."""
        if name not in self.wiring.operands:
            return self.given.get(name)
        if (name, "frozen") not in self.placed:
            found = self.wiring.operands[name]
            places = operand_places(self.wiring, name, self.claimed, self.given_member)
            tensor = take(operand_view(self.wiring, self.state, name), places)
            self.placed[name, "frozen"] = self.emitter.store(f"frozen.{found.parameter}", tensor) if tensor.numel() else None
        return self.placed[name, "frozen"]

    def _pool_value(self, name: str) -> Any:
        """Return the version of the pool's units; of a parameter its pool rows, to be trained."""
        if name not in self.wiring.operands:
            return self.pool.get(name)
        return self.piece(name, "own", None)

    def piece(self, name: str, part: str, columns: Tensor | None) -> Any:
        """Make the pool rows of a parameter trainable, of them the columns that are members; None when there are none."""
        if (name, part) not in self.placed:  # else a layer that is used twice
            found = self.wiring.operands[name]
            places = operand_places(self.wiring, name, self.pool_member, columns)
            owned = bool(self.pool_member[found.rows].any())
            tensor = nn.Parameter(take(operand_view(self.wiring, self.state, name), places))
            if owned and tensor.numel():
                self.pieces.append(Piece(name, places, tensor, penalised=self._is_penalised(name)))
                self.placed[name, part] = self.emitter.store(f"{part}.{found.parameter}", tensor)
            else:
                self.placed[name, part] = None
        return self.placed[name, part]

    def _is_penalised(self, name: str) -> bool:
        labels = self.wiring.parameters[self.wiring.operands[name].parameter]
        return labels.initial is None and labels.deviation is None

    def _pool_operand(self, name: str, node: Node) -> Any:
        """Return what a pool operation reads: the pool's version, with raw input where it meets pool units.

        Claimed units reach the pool through weights alone; but a shared parameter that an earlier task learned is read as it is.
        """
        value = self._pool_value(name)
        if name in self.wiring.operands:
            return value if value is not None else self._given_operand(name)
        if name not in self.wiring.values:
            return self.given.get(name)
        dim = unit_dim(self.wiring.values[name])
        if dim is not None and self._meets(node):
            return self._with_raw(name, value, node, dim)
        units = self.wiring.values[name][self.wiring.values[name] != EVERYONE]
        if value is None and len(units) and not bool(self.wiring.shared[units].all()):
            return None
        value = self.given.get(name) if value is None else value
        return self.emitter.align(value, name, node, self.pool_member) if self._meets(node) else value

    def _meets(self, node: Node) -> bool:
        """Tell whether what an operation reads meets position by position: there raw input may stand beside pool units."""
        kind = self.wiring.kind(node)
        return kind in ("pointwise", "attention", "norm", "cat") or (kind == "own" and node.op in MEETING)

    def _with_raw(self, name: str, value: Any, node: Node, dim: int) -> Any:
        """Return the pool units of a value, and raw input that stands beside them, where an operation has pool units."""
        size = self.wiring.node(name).size(dim)
        wanted = kept_positions(self.wiring, node.name, self.pool_member)
        place = aligned(dim, len(self.wiring.node(name).shape or ()), len(node.shape or ()))
        if (wanted is not None and wanted[0] != place) or (self.wiring.kind(node) == "attention" and size != node.size(place)):
            return value  # heads of keys stand beside more heads of queries
        places = torch.arange(size) if wanted is None else wanted[1]
        if size != node.size(place) and node.name in self.wiring.origins:
            places = self.wiring.origins[node.name][places]
        return self._picked(name, value, dim, places)

    def _picked(self, name: str, value: Any, dim: int, places: Tensor) -> Any:
        """Return some positions of a value, of raw input and claimed units or of the pool's units (`value`), wherever they are; None if they are not all there."""
        labels = self.wiring.values[name].flatten()
        own, given = (positions(member, labels) for member in (self.pool_member, self.given_member))
        for part, there in ((own, value), (given, self.given.get(name))):
            if there is not None and torch.equal(part, places):
                return there
        held = torch.cat([part for part, there in ((given, self.given.get(name)), (own, value)) if there is not None])
        if not bool(torch.isin(places, held).all()):
            return None
        read = [part for part in (self.given.get(name), value) if part is not None]
        both = read[0] if len(read) == 1 else self.emitter.run("cat.default", read, dim)
        order = torch.argsort(held)
        return self.emitter.index(both, dim, order[torch.searchsorted(held[order], places)])

    # ---- operations

    def _place(self, node: Node) -> None:
        """Emit both versions of one operation."""
        if self._passes_noise(node):
            self.noisy.add(node.name)
        if present(self.wiring, node.name, self.given_member):
            self.given[node.name] = self._given(node)
        if present(self.wiring, node.name, self.pool_member):
            writer = {
                "noise": self._pool_noise,
                "norm": self._pool_norm,
                "weight": self._pool_weight,
                "over": self._pool_over,
                "recurrent": self._pool_recurrent,
                "attention": self._pool_attention,
                "cat": self._pool_cat,
            }.get(self.wiring.kind(node), self._pool_plain)
            self.pool[node.name] = writer(node)

    def _passes_noise(self, node: Node) -> bool:
        """Tell whether dropout reaches this node: until the next weight, and until values of several positions are mixed."""
        kind = self.wiring.kind(node)
        if kind == "noise":
            return True
        pools = node.op in RULES and RULES[node.op].label.__qualname__.startswith("spatial")
        passes = pools or kind in ("pointwise", "shape", "expand", "slice", "select", "cat", "gather", "norm")
        return passes and any(name in self.noisy for name in references([list(node.args), dict(node.kwargs)]))

    def _given(self, node: Node) -> Any:
        """Emit the version of raw input and claimed units: a value of the claimed graph, where examples have one."""
        claimed = present(self.wiring, node.name, self.claimed)
        dim = self.wiring.graph.batch_dim(node)
        if claimed and dim is not None and node.name not in self.noisy:
            value = self.emitter.graph.placeholder(f"meet_{node.name}")
            value = value if dim == 0 else self.emitter.run("movedim.int", value, 0, dim)
            return (value, None) if self.wiring.kind(node) == "recurrent" else value
        if self.wiring.kind(node) == "noise":
            return self._noise(node, self.given[node.args[0].name])
        return emit(Step(self.emitter, node, self.given_member, self._given_operand, self.norm_parts))

    def _step(self, node: Node) -> Step:
        return Step(self.emitter, node, self.pool_member, lambda name: self._pool_operand(name, node), cut=True)

    def _pool_plain(self, node: Node) -> Any:
        return emit(self._step(node))

    def _pool_cat(self, node: Node) -> Any:
        """Leave raw input out: it is no unit of the pool; but where units lie along another dimension, it is one of the operands."""
        kept = kept_positions(self.wiring, node.name, self.pool_member)
        dim = (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % len(node.shape or ())
        if kept is None or kept[0] != dim:
            return emit(self._step(node))
        return emit(Step(self.emitter, node, self.pool_member, self._pool_value))

    def _noise(self, node: Node, value: Any) -> fx.Node:
        name = f"noise_{node.name}_{len(self.emitter.graph.nodes)}"
        self.emitter.root.add_module(name, Noise(node.op, float(node.args[1])))
        return self.emitter.graph.call_module(name, (value,))

    def _pool_noise(self, node: Node) -> fx.Node:
        return self._noise(node, self.pool[node.args[0].name])

    def _pool_attention(self, node: Node) -> fx.Node:
        tensors, p, causal, others = attention_arguments(self._step(node))
        name = f"attention_{node.name}"
        self.emitter.root.add_module(name, Attention(node.op, p, causal, others))
        return self.emitter.graph.call_module(name, tuple(tensors))

    def _pool_norm(self, node: Node) -> fx.Node:
        names: list[str | None] = [None if ref is None else ref.name for ref in node.args[1:5]]
        assert names[2] is not None
        name = self.norms.get(names[2], f"norm_{node.name}")
        if names[2] not in self.norms:  # else a norm that is used twice
            self.norms[names[2]] = name
            places = operand_places(self.wiring, names[2], self.pool_member)
            weight, bias, mean, var = (
                None if operand is None else take(operand_view(self.wiring, self.state, operand), places) for operand in names
            )
            assert mean is not None
            assert var is not None
            module = PoolNorm(weight, bias, mean, var, float(node.args[6]), float(node.args[7]))
            self.emitter.root.add_module(name, module)
            pairs = zip(names, (module.weight, module.bias, module.mean, module.var), strict=True)
            self.pieces += [Piece(full, places, tensor) for full, tensor in pairs if full is not None and tensor is not None]
        return self.emitter.graph.call_module(name, (self._step(node).aligned(node.args[0]),))

    def _pool_weight(self, node: Node) -> fx.Node:
        """Emit the pool rows of a layer: what they read of raw input and claimed units, plus what they read of the pool."""
        weight, source, bias = weight_of(self._step(node))
        parts: list[tuple[Any, Any]] = []
        terms: list[fx.Node] = []
        for part, value, member in (
            ("given", self._given_operand(source), self.given_member),
            ("pool", self._pool_value(source), self.pool_member),
        ):
            rows = None if value is None else self.piece(weight, part, member)
            if value is None or rows is None:
                continue
            parts.append((value, rows))
        weights = self._under_weight_norm(weight, [rows for _, rows in parts])
        for (value, _), rows in zip(parts, weights, strict=True):
            known = {
                source: value,
                weight: rows,
                **({} if bias is None else {bias: None if terms else self.piece(bias, "own", None)}),
            }
            step = Step(self.emitter, node, self.pool_member, known.get)
            terms.append(self.emitter.call(node, step.value(node.args), step.value(dict(node.kwargs))))
        if not terms:  # it reads nothing that is left
            return emit(Step(self.emitter, node, self.pool_member, lambda name: self.piece(name, "own", None) if name == bias else None))
        return terms[0] if len(terms) == 1 else self.emitter.run("add.Tensor", *terms)

    def _under_weight_norm(self, weight: str, directions: list[Any]) -> list[Any]:
        """Return the weights of a layer's pool rows: what is trained, or under weight norm its direction times the row's length."""
        found = self.wiring.operands[weight]
        if not directions or found.moves or self.wiring.normed.get(found.parameter) != found.row_dim or found.row_dim is None:
            return directions
        mine = [index for index, piece in enumerate(self.pieces) if piece.name == weight]
        if (weight, "length") not in self.placed:
            length = nn.Parameter(row_norms([self.pieces[index].tensor.detach() for index in mine], found.row_dim))
            self.placed[weight, "length"] = self.emitter.store(f"length.{found.parameter}", length)
            for index in mine:
                self.pieces[index] = replace(self.pieces[index], length=length, row_dim=found.row_dim)
        dims = [dim for dim in range(len(self.wiring.node(weight).shape or ())) if dim != found.row_dim]
        run = self.emitter.run
        squares = [run("sum.dim_IntList", run("square.default", direction), dims, True) for direction in directions]
        square = squares[0] if len(squares) == 1 else run("add.Tensor", *squares)
        scale = run("div.Tensor", self.placed[weight, "length"], run("clamp_min.default", run("sqrt.default", square), TINY))
        return [run("mul.Tensor", direction, scale) for direction in directions]

    def _pool_over(self, node: Node) -> fx.Node:
        """Emit a norm over units: the pool's units, over all visible ones."""
        source = node.args[0].name
        given, pool = kept_positions(self.wiring, source, self.given_member), kept_positions(self.wiring, source, self.pool_member)
        if given is None or pool is None or not len(given[1]) or self.emitter.is_raw(source):
            return emit(self._step(node))
        form = norm_form(node, len(node.shape or ()))
        step = self._step(node)
        (dim, own), n_given = pool, len(given[1])
        sizes = step.sizes
        sizes[dim] = n_given + len(own)
        read = normalised(self.emitter, form, self.emitter.run("cat.default", [self.given[source], self.pool[source]], dim), sizes)
        return scale_and_shift(step, form, self.emitter.run("slice.Tensor", read, dim, n_given, sizes[dim]))

    def _pool_recurrent(self, node: Node) -> tuple[Any, Any]:
        """Emit the pool's hidden units beside the claimed ones that they read, whose rows are frozen.

        A gate acts on what it reads of hidden units and input together, so that claimed hidden units run along, step by step.
        """
        source, w_ih, w_hh = (ref.name for ref in node.args[:3])
        hidden = along(self.wiring.values[node.name], 2, node.size(2))
        own, claimed = positions(self.pool_member, hidden), positions(self.claimed, hidden)
        given, pool = self._given_operand(source), self._pool_value(source)
        values = [value for value in (given, pool) if value is not None]
        weights: list[Any] = []
        for name, of_given, of_pool in ((w_ih, given is not None, pool is not None), (w_hh, bool(len(claimed)), True)):
            of_columns = (("given", self.given_member, of_given), ("pool", self.pool_member, of_pool))
            rows = [self.piece(name, part, member) for part, member, is_there in of_columns if is_there]
            rows = [part for part in rows if part is not None]
            if not rows:  # it reads nothing but itself
                values = [nothing_read(self.emitter, node)]
                n_rows = (len(own) + len(claimed)) * self.wiring.node(w_ih).size(0) // node.size(2)
                weights.append(self.emitter.full([n_rows, 1], 0.0))
                continue
            trained = self.emitter.run("cat.default", rows, 1) if len(rows) > 1 else rows[0]
            weights.append(self._gates(trained, name, len(claimed), len(own), [member for _, member, is_there in of_columns if is_there]))
        biases = [ref.name for ref in node.args[3:5] if ref is not None]
        weights += [self._gates(self.piece(name, "own", None), name, len(claimed), len(own), None) for name in biases]
        start: list[Any] = []
        for ref in node.args[5:7]:
            parts = [] if ref is None else [self._start(ref.name, units) for units in (claimed, own) if len(units)]
            start.append(self.emitter.run("cat.default", parts, 1) if parts else None)
        value = self.emitter.run("cat.default", values, 2) if len(values) > 1 else values[0]
        out, last = recurrent_layer(self.emitter, node, value, weights, start, len(claimed) + len(own))
        if len(claimed):
            first, stop = len(claimed), len(claimed) + len(own)
            out, last = (self.emitter.run("slice.Tensor", part, dim, first, stop) for part, dim in ((out, 2), (last, 1)))
        return out, last

    def _gates(self, trained: Any, name: str, n_claimed: int, n_own: int, members: list[Tensor] | None) -> Any:
        """Put frozen rows of claimed units before the trained rows, gate by gate."""
        if not n_claimed:
            return trained
        view = operand_view(self.wiring, self.state, name)
        row_place = operand_places(self.wiring, name, self.claimed, self.given_member)[:1]
        frozen = take(view, row_place)
        if members is not None:
            labels = self.wiring.operands[name].columns
            assert labels is not None
            # Claimed rows read claimed columns and raw input; what they would read of the pool is zero.
            blocks = [frozen.index_select(1, positions(member, labels)) * float(member is self.given_member) for member in members]
            frozen = torch.cat(blocks, 1)
        held = self.emitter.store(f"frozen_rows.{name}", frozen.reshape(-1, n_claimed, *frozen.shape[1:]))
        split = self.emitter.run("reshape.default", trained, [-1, n_own, *frozen.shape[1:]])
        return self.emitter.run("flatten.using_ints", self.emitter.run("cat.default", [held, split], 1), 0, 1)

    def _start(self, name: str, units: Tensor) -> Any:
        """Return the first state of some hidden units: raw input, or what was computed for them."""
        if self.emitter.is_raw(name):
            value = self.given[name]
            return self.emitter.index(value, 1, units) if (self.wiring.node(name).shape or (0, 0))[1] > 1 else value
        return self._picked(name, self.pool.get(name), 1, units)
