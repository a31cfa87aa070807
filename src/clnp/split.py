"""The training form of a network: a claimed graph that never moves and a pool graph that learns.

The claimed graph is the narrowed network of all visible claimed units, in evaluation mode and without gradient. The pool
graph holds the rows of the pool's units only. They meet where pool rows read claimed units: there the claimed graph's
values enter the pool graph as inputs (`meets`). Since claimed units never read pool units, the meets are constants of an
example: they can be computed once and kept. A step costs pool x visible units, never claimed x claimed.

Only pool rows and the head are parameters of this module: nothing else can be given to an optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from clnp.narrow import Emitter, narrow, positions, present, take, with_everyone
from clnp.wiring import Node, Ref, Wiring, kind_of
from clnp.wiring.graph import CONSTANT, INPUT, OUTPUT, PARAMETER, references, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Head:
    """A linear head on the trunk's F features: weight (classes, F), bias (classes,).

    `shared` is the form of the single head: columns of claimed units are the earlier tasks' and stay as they are; raw
    input among the features is not read, for nobody could own its columns.
    """

    weight: Tensor
    bias: Tensor
    shared: bool = False


class Noise(nn.Module):
    """Dropout of any kind: the captured operation in training, nothing in evaluation."""

    def __init__(self, op: str, p: float) -> None:
        super().__init__()
        self.op = op
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop parts of x, (B, ...) -> (B, ...)."""
        return resolve(self.op)(x, self.p, True) if self.training and self.p > 0 else x


class PoolNorm(nn.Module):
    """Batch norm of the pool's channels.

    `estimating` gathers the statistics of all batches seen with equal weight, in evaluation mode too: they are
    estimated again in the narrowed network, whose units read other inputs than the whole pool did.
    """

    def __init__(self, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, momentum: float, eps: float) -> None:
        super().__init__()
        self.weight = None if weight is None else nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.mean, self.var = nn.Buffer(mean), nn.Buffer(var)
        self.momentum, self.eps = momentum, eps
        self.estimating = False
        self.n_batches = 0

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, ...) per channel."""
        if self.estimating:
            self.n_batches += 1
        momentum = 1 / self.n_batches if self.estimating else self.momentum
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, self.training or self.estimating, momentum, self.eps)


@dataclass(frozen=True)
class Piece:
    """Where a small tensor of the pool lies in the full-width one: its rows, and of them its columns."""

    name: str
    rows: Tensor
    columns: Tensor | None
    tensor: Tensor
    of_head: bool = False

    def write(self, state: Mapping[str, Tensor]) -> None:
        """Put the piece back into the full-width tensor."""
        full = state[self.name]
        index = (self.rows,) if self.columns is None else (self.rows[:, None], self.columns[None])
        with torch.no_grad():
            full[tuple(i.to(full.device) for i in index)] = self.tensor.detach()


class SplitNetwork(nn.Module):
    """See the module's docstring. Built by `split`."""

    head_given: Tensor | None
    """The head's columns for raw input and claimed units (classes, k): trained, or frozen in a single head."""
    head_pool: nn.Parameter | None
    """Its columns for the pool's units (classes, k)."""
    head_bias: nn.Parameter

    def __init__(
        self, wiring: Wiring, claimed_units: Tensor, pool_units: Tensor, claimed: fx.GraphModule | None, pool: fx.GraphModule
    ) -> None:
        super().__init__()
        self.wiring = wiring
        self.claimed_units = claimed_units
        self.pool_units = pool_units
        self.claimed = claimed
        self.pool = pool
        self.meets: tuple[str, ...] = ()
        self.pieces: list[Piece] = []

    @property
    def visible(self) -> Tensor:
        """The units that this network computes: bool (n_units,)."""
        return self.claimed_units | self.pool_units

    @property
    def norms(self) -> list[PoolNorm]:
        """The pool's batch norms."""
        return [module for module in self.pool.modules() if isinstance(module, PoolNorm)]

    @torch.no_grad()
    def claimed_values(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run the claimed graph: (B, ...) -> one tensor (B, ...) for each meet. They are constants of an example."""
        return self.claimed(x) if self.claimed is not None else ()

    def forward(self, x: Tensor, meets: tuple[Tensor, ...] | None = None) -> Tensor:
        """Return logits (B, classes); `meets` are kept values of the claimed graph, computed here when not given."""
        given, pool = self.pool(x, *(self.claimed_values(x) if meets is None else meets))
        logits = self.head_bias
        if given is not None:
            assert self.head_given is not None
            logits = logits + given @ self.head_given.t()
        if pool is not None and self.head_pool is not None:
            logits = logits + pool @ self.head_pool.t()
        return logits

    def weights(self) -> list[nn.Parameter]:
        """Return the trainable weights that the L1 penalty acts on: matrices, not biases or norm parameters."""
        return [parameter for parameter in self.parameters() if parameter.dim() > 1]

    def train(self, mode: bool = True) -> SplitNetwork:
        """Switch the pool graph; the claimed graph is always in evaluation mode."""
        super().train(mode)
        if self.claimed is not None:
            self.claimed.eval()
        return self

    def write(self, state: Mapping[str, Tensor], head: Head) -> None:
        """Put everything that was trained back into full-width tensors: those of the network and those of the head."""
        for piece in self.pieces:
            piece.write({"head.weight": head.weight.t(), "head.bias": head.bias} if piece.of_head else state)


def initialise_(wiring: Wiring, state: Mapping[str, Tensor], claimed: Tensor, pool: Tensor, generator: torch.Generator) -> None:
    """Start the pool's rows anew: weights from He's normal distribution over the visible columns, the rest from fixed values.

    Released units keep nothing of the task that released them.

    Reference: He et al. 2015. The fan-in counts visible units only: the others are not read.
    """
    visible, pooled = with_everyone(claimed | pool), with_everyone(pool, everyone=False)
    for name, labels in wiring.parameters.items():
        tensor = state[name]
        rows = positions(pooled, labels.rows)
        if labels.columns is None:
            tensor[rows.to(tensor.device)] = labels.initial
            continue
        columns = positions(visible, labels.columns)
        fan_in = max(len(columns) * tensor[0, 0].numel(), 1)
        values = torch.randn(len(rows), len(columns), *tensor.shape[2:], generator=generator) * (2 / fan_in) ** 0.5
        tensor[rows[:, None].to(tensor.device), columns[None].to(tensor.device)] = values.to(tensor)


def split(
    wiring: Wiring, state: Mapping[str, Tensor], claimed: Tensor, pool: Tensor, head: Head, *, values_kept: bool = False
) -> SplitNetwork:
    """Build the training form of a network.

    Args:
        wiring: of the network.
        state: full-width parameters and buffers; the pool's rows of it are where training starts.
        claimed: visible claimed units, bool (n_units,), closed (`clnp.isolation.closure`).
        pool: units that are trained, bool (n_units,), disjoint from `claimed`.
        head: where the head starts, at the trunk's full width.
        values_kept: the caller has the claimed graph's values and gives them with each batch; the graph is not built.
    """
    builder = _PoolBuilder(wiring, state, claimed, pool)
    graph = builder.build()
    frozen = narrow(wiring, state, claimed, outputs=builder.meets, buffers=True).eval() if builder.meets and not values_kept else None
    network = SplitNetwork(wiring, claimed, pool, frozen, graph)
    network.meets = tuple(builder.meets)
    network.pieces = builder.pieces
    _add_head(network, head)
    return network


def _add_head(network: SplitNetwork, head: Head) -> None:
    features = network.wiring.features
    given = positions(with_everyone(network.claimed_units), features)
    pool = positions(with_everyone(network.pool_units, everyone=False), features)
    columns = head.weight.detach().t()  # (F, classes): a feature's column of the head is a row here
    network.head_pool = None
    if not len(given):
        network.head_given = None
    elif head.shared:
        network.head_given = nn.Buffer(columns[given].t().contiguous())
    else:
        network.head_given = nn.Parameter(columns[given].t().contiguous())
        network.pieces.append(Piece("head.weight", given, None, network.head_given.t(), of_head=True))
    if len(pool):
        network.head_pool = nn.Parameter(columns[pool].t().contiguous())
        network.pieces.append(Piece("head.weight", pool, None, network.head_pool.t(), of_head=True))
    network.head_bias = nn.Parameter(head.bias.detach().clone())
    network.pieces.append(Piece("head.bias", torch.arange(len(head.bias)), None, network.head_bias, of_head=True))


class _PoolBuilder:
    """Writes the pool graph: for every node the version of raw input and claimed units, and that of the pool's units."""

    def __init__(self, wiring: Wiring, state: Mapping[str, Tensor], claimed: Tensor, pool: Tensor) -> None:
        self.wiring = wiring
        self.state = state
        self.emitter = Emitter(wiring, state)
        self.claimed = with_everyone(claimed, everyone=False)
        self.given_member = with_everyone(claimed)
        self.pool_member = with_everyone(pool, everyone=False)
        self.given: dict[str, fx.Node | None] = {}
        self.pool: dict[str, fx.Node | None] = {}
        self.noisy: set[str] = set()
        self.meets: list[str] = []
        self.pieces: list[Piece] = []
        self.norms: dict[str, str] = {}
        self.placed: dict[tuple[str, str], fx.Node] = {}

    def build(self) -> fx.GraphModule:
        for node in self.wiring.graph.nodes:
            self.given[node.name] = self.pool[node.name] = None
            if node.op in (PARAMETER, OUTPUT) or node.name in self.wiring.parameter_nodes:
                continue
            if node.op == CONSTANT:
                self.given[node.name] = self.emitter.constant(node)
            elif node.op == INPUT:
                self.given[node.name] = self.emitter.graph.placeholder(node.name)
            elif node.shape is None:
                self.given[node.name] = self.emitter.call(node, self.given_member, self.given.__getitem__)
            else:
                self._place(node)
        output = self.wiring.graph.output
        module = self.emitter.finish((self.given[output], self.pool[output]))
        self.meets = [n.target.removeprefix("meet_") for n in module.graph.nodes if n.op == "placeholder" and n.target.startswith("meet_")]
        return module

    def _place(self, node: Node) -> None:
        """Emit both versions of one operation."""
        kind = kind_of(node)
        source = node.args[0].name if isinstance(node.args[0], Ref) else ""
        # Noise reaches what follows until the next weight: claimed rows read their own inputs without it.
        if kind != "weight" and (kind == "noise" or any(name in self.noisy for name in self._operands(node))):
            self.noisy.add(node.name)
        if present(self.wiring, node.name, self.given_member):
            if present(self.wiring, node.name, self.claimed) and node.name not in self.noisy:
                self.given[node.name] = self.emitter.graph.placeholder(f"meet_{node.name}")
            elif kind == "noise":
                self.given[node.name] = self._noise(node, self.given[source])
            elif kind == "norm":
                self.given[node.name] = self._frozen_norm(node)
            else:
                self.given[node.name] = self.emitter.call(
                    node, self.given_member, lambda name: self.emitter.align(self.given[name], name, node, self.given_member)
                )
        if present(self.wiring, node.name, self.pool_member):
            if kind == "noise":
                self.pool[node.name] = self._noise(node, self.pool[source])
            elif kind == "norm":
                self.pool[node.name] = self._pool_norm(node, source)
            elif kind == "weight":
                self.pool[node.name] = self._weight(node, source)
            else:
                self.pool[node.name] = self.emitter.call(node, self.pool_member, lambda name: self._pool_operand(name, node))

    def _operands(self, node: Node) -> list[str]:
        return references([list(node.args), dict(node.kwargs)])

    def _pool_operand(self, name: str, node: Node) -> fx.Node | None:
        """Return what a pool operation reads: the pool's version, else raw input or a size; claimed units reach it through weights alone."""
        raw = self.emitter.is_raw(name)
        if self.pool[name] is not None or (raw and kind_of(node) == "cat"):
            return self.pool[name]
        return self.emitter.align(self.given[name], name, node, self.pool_member) if raw or name not in self.wiring.values else None

    def _noise(self, node: Node, value: fx.Node | None) -> fx.Node:
        name = f"noise_{node.name}_{len(self.emitter.graph.nodes)}"
        self.emitter.root.add_module(name, Noise(node.op, float(node.args[1])))
        return self.emitter.graph.call_module(name, (value,))

    def _frozen_norm(self, node: Node) -> fx.Node:
        """Emit a batch norm of claimed channels whose input is noisy: its stored statistics do not move."""

        def operand(name: str) -> fx.Node | None:
            if name not in self.wiring.parameter_nodes:
                return self.emitter.align(self.given[name], name, node, self.given_member)
            parameter = self.wiring.node(name).args[0]
            rows = positions(self.claimed, self.wiring.parameters[parameter].rows)
            return self.emitter.store(f"frozen.{parameter}", take(self.state[parameter], rows, None))

        return self.emitter.norm(node, operand)

    def _pool_norm(self, node: Node, source: str) -> fx.Node:
        names: list[str | None] = [None if ref is None else self.wiring.node(ref.name).args[0] for ref in node.args[1:5]]
        assert names[2] is not None
        name = self.norms.get(names[2], f"norm_{node.name}")
        if names[2] not in self.norms:  # else a norm that is used twice
            self.norms[names[2]] = name
            rows = positions(self.pool_member, self.wiring.parameters[names[2]].rows)
            weight, bias, mean, var = (None if name is None else take(self.state[name], rows, None) for name in names)
            assert mean is not None
            assert var is not None
            module = PoolNorm(weight, bias, mean, var, float(node.args[6]), float(node.args[7]))
            self.emitter.root.add_module(name, module)
            pairs = zip(names, (module.weight, module.bias, module.mean, module.var), strict=True)
            self.pieces += [Piece(full, rows, None, tensor) for full, tensor in pairs if full is not None and tensor is not None]
        return self.emitter.graph.call_module(name, (self._pool_operand(source, node),))

    def _weight(self, node: Node, source: str) -> fx.Node:
        """Emit the pool rows of a layer: what they read of raw input and claimed units, plus what they read of the pool."""
        weight = self.wiring.node(node.args[1].name).args[0]
        bias = node.args[2] if len(node.args) > 2 else None
        total: fx.Node | None = None
        for part, value, member in (("given", self.given[source], self.given_member), ("pool", self.pool[source], self.pool_member)):
            if value is None:
                continue
            args: list[Any] = [value, self._piece(weight, part, member), None, *node.args[3:]]
            if bias is not None and total is None:
                args[2] = self._piece(self.wiring.node(bias.name).args[0], "bias", member)
            term = self.emitter.graph.call_function(resolve(node.op), tuple(args), dict(node.kwargs))
            total = term if total is None else self.emitter.graph.call_function(torch.add, (total, term))
        assert total is not None, f"{node.name} reads nothing"
        return total

    def _piece(self, name: str, part: str, member: Tensor) -> fx.Node:
        """Make the pool rows of a parameter trainable, of them the columns that are members."""
        if (name, part) in self.placed:  # a layer that is used twice
            return self.placed[name, part]
        labels = self.wiring.parameters[name]
        rows, columns = positions(self.pool_member, labels.rows), positions(member, labels.columns)
        tensor = nn.Parameter(take(self.state[name], rows, columns))
        self.pieces.append(Piece(name, rows, columns, tensor))
        self.placed[name, part] = self.emitter.store(f"{part}.{name}", tensor)
        return self.placed[name, part]
