"""The small tensors that are trained, and where they lie in the full-width ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clnp.emit import put_

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clnp.wiring import Wiring

TINY = 1e-12
"""The smallest length of a direction under weight norm: a row of zeros stays zero."""


@dataclass(frozen=True)
class Piece:
    """Where a small tensor of the pool lies in the full-width one: chosen positions of an operand (or of a head's tensor)."""

    name: str
    places: list[tuple[int, Tensor]]
    tensor: Tensor
    of_head: bool = False
    penalised: bool = False
    """Whether the L1 penalty acts on it: weights, not biases, norms or embeddings."""
    length: nn.Parameter | None = None
    """Under weight norm, the length of each row; the tensor is then part of its direction."""
    row_dim: int = 0

    def value(self, directions: Sequence[Tensor]) -> Tensor:
        """Return the weights, given all parts of the rows' directions."""
        if self.length is None:
            return self.tensor.detach()
        return (self.tensor * self.length / row_norms(directions, self.row_dim)).detach()


def row_norms(parts: Sequence[Tensor], row_dim: int) -> Tensor:
    """Return the Euclidean norm of each row over several tensors that hold parts of it; (rows, 1, ...) with rows in dimension `row_dim`."""
    dims = [dim for dim in range(parts[0].dim()) if dim != row_dim]
    squares = [part.square().sum(dims, keepdim=True) for part in parts]
    return torch.stack(squares).sum(0).sqrt().clamp_min(TINY)


def write_back(wiring: Wiring, pieces: Sequence[Piece], state: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> None:
    """Put everything that was trained back into full-width tensors: those of the network, and those of the head."""
    for piece in pieces:
        if piece.of_head:
            full = head[piece.name]
            with torch.no_grad():
                full[tuple(index.to(full.device) for _, index in piece.places)] = piece.tensor.detach()
        else:
            directions = [other.tensor for other in pieces if other.name == piece.name] if piece.length is not None else []
            put_(wiring, state, piece.name, piece.places, piece.value(directions))
