"""The training form of a network: a claimed graph that never moves and a pool graph that learns.

The claimed graph is the narrowed network of all visible claimed units, in evaluation mode and without gradient. The pool
graph holds the rows of the pool's units only. They meet where pool rows read claimed units: there the claimed graph's
values enter the pool graph as inputs (`meets`). Since claimed units never read pool units, the meets are constants of an
example: they can be computed once and kept. A step costs pool x visible units, never claimed x claimed.

Only pool rows and the head are parameters of this module: nothing else can be given to an optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from clnp.emit import positions, with_everyone
from clnp.inputs import Inputs, parts
from clnp.layers import PoolNorm
from clnp.narrow import narrow
from clnp.pieces import Piece, write_back
from clnp.pool import PoolBuilder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clnp.kinds import Part
    from clnp.wiring import Wiring


@dataclass(frozen=True)
class Head:
    """A linear head on the trunk's F features: weight (classes, F), bias (classes,).

    `shared` is the form of the single head: columns of claimed units are the earlier tasks' and stay as they are; raw
    input among the features is not read, for nobody could own its columns.
    """

    weight: Tensor
    bias: Tensor
    shared: bool = False


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
        self.pool: nn.Module = pool
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
    def claimed_values(self, x: Inputs) -> tuple[Tensor, ...]:
        """Run the claimed graph: (B, ...) -> one tensor (B, ...) for each meet. They are constants of an example."""
        return self.claimed(*parts(x)) if self.claimed is not None else ()

    def forward(self, x: Inputs, meets: tuple[Tensor, ...] | None = None) -> Tensor:
        """Return logits (B, classes); `meets` are kept values of the claimed graph, computed here when not given."""
        given, pool = self.pool(*parts(x), *(self.claimed_values(x) if meets is None else meets))
        logits = self.head_bias
        if given is not None:
            assert self.head_given is not None
            logits = logits + given @ self.head_given.t()
        if pool is not None and self.head_pool is not None:
            logits = logits + pool @ self.head_pool.t()
        return logits

    def weights(self) -> list[nn.Parameter]:
        """Return the trainable weights that the L1 penalty acts on: not biases, norm parameters or embeddings."""
        return [piece.tensor for piece in self.pieces if piece.penalised and isinstance(piece.tensor, nn.Parameter)]

    def train(self, mode: bool = True) -> SplitNetwork:
        """Switch the pool graph; the claimed graph is always in evaluation mode."""
        super().train(mode)
        if self.claimed is not None:
            self.claimed.eval()
        return self

    def write(self, state: Mapping[str, Tensor], head: Head) -> None:
        """Put everything that was trained back into full-width tensors: those of the network and those of the head."""
        write_back(self.wiring, self.pieces, state, {"head.weight": head.weight, "head.bias": head.bias})


def initialise_(wiring: Wiring, state: Mapping[str, Tensor], claimed: Tensor, pool: Tensor, generator: torch.Generator) -> None:
    """Start the pool's rows anew: weights from He's normal distribution over the visible columns, the rest from fixed values.

    Released units keep nothing of the task that released them.

    Reference: He et al. 2015. The fan-in counts visible units only: the others are not read.
    """
    visible, pooled = with_everyone(claimed | pool), with_everyone(pool, everyone=False)
    for name, labels in wiring.parameters.items():
        matrix = labels.matrix(state[name])
        rows = positions(pooled, labels.rows).to(matrix.device)
        if labels.initial is not None:
            matrix[rows] = labels.initial
            continue
        columns = None if labels.columns is None else positions(visible, labels.columns).to(matrix.device)
        shape = (len(rows), *matrix.shape[1:]) if columns is None else (len(rows), len(columns), *matrix.shape[2:])
        fan_in = max(torch.Size(shape[1:]).numel(), 1)
        deviation = (2 / fan_in) ** 0.5 if labels.deviation is None else labels.deviation
        values = (torch.randn(shape, generator=generator) * deviation).to(matrix)
        if columns is None:
            matrix[rows] = values
        else:
            matrix[rows[:, None], columns[None]] = values


def forget_(wiring: Wiring, state: Mapping[str, Tensor], units: Tensor) -> None:
    """Wipe the rows of some units: nothing of the task that owned them is left in memory.

    Args:
        wiring: of the network.
        state: full-width parameters and buffers, changed in place.
        units: bool (n_units,).
    """
    member = with_everyone(units, everyone=False)
    for name, labels in wiring.parameters.items():
        matrix = labels.matrix(state[name])
        matrix[positions(member, labels.rows)] = 0.0 if labels.initial is None else labels.initial


def split(
    wiring: Wiring,
    state: Mapping[str, Tensor],
    claimed: Tensor,
    pool: Tensor,
    head: Head,
    *,
    norms: Sequence[Part] = (),
    values_kept: bool = False,
) -> SplitNetwork:
    """Build the training form of a network.

    Args:
        wiring: of the network.
        state: full-width parameters and buffers; the pool's rows of it are where training starts.
        claimed: visible claimed units, bool (n_units,), closed (`clnp.isolation.closure`).
        pool: units that are trained, bool (n_units,), disjoint from `claimed`.
        head: where the head starts, at the trunk's full width.
        norms: for norms over units, what earlier tasks normalise over what; the pool's units are normalised over all visible ones.
        values_kept: the caller has the claimed graph's values and gives them with each batch; the graph is not built.
    """
    builder = PoolBuilder(wiring, state, claimed, pool, norms)
    graph = builder.build()
    frozen = None
    if builder.meets and not values_kept:
        frozen = narrow(wiring, state, claimed, norms=norms, outputs=builder.meets, buffers=True).eval()
    network = SplitNetwork(wiring, claimed, pool, frozen, graph)
    network.meets = tuple(builder.meets)
    network.pieces = builder.pieces
    _add_head(network, head)
    return network


def _add_head(network: SplitNetwork, head: Head) -> None:
    features = network.wiring.features
    given = positions(with_everyone(network.claimed_units), features)
    pool = positions(with_everyone(network.pool_units, everyone=False), features)
    n_classes = torch.arange(len(head.bias))[:, None]

    def trained(columns: Tensor) -> nn.Parameter:
        parameter = nn.Parameter(head.weight.detach()[:, columns.to(head.weight.device)].contiguous())
        network.pieces.append(Piece("head.weight", [(0, n_classes), (1, columns[None])], parameter, of_head=True, penalised=True))
        return parameter

    if not len(given):
        network.head_given = None
    elif head.shared:
        network.head_given = nn.Buffer(head.weight.detach()[:, given.to(head.weight.device)].contiguous())
    else:
        network.head_given = trained(given)
    network.head_pool = trained(pool) if len(pool) else None
    network.head_bias = nn.Parameter(head.bias.detach().clone())
    network.pieces.append(Piece("head.bias", [(0, n_classes[:, 0])], network.head_bias, of_head=True))
