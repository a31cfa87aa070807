"""The modules of the pool graph that do something else in training than in evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clnp.dropout import drop
from clnp.wiring.graph import MASK, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping


class Noise(nn.Module):
    """Dropout of any kind: the captured operation in training, nothing in evaluation; a random mask is its mean there."""

    def __init__(self, op: str, p: float) -> None:
        super().__init__()
        self.op = op
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop parts of x, (B, ...) -> (B, ...), or draw a mask of its shape."""
        if self.op == MASK:
            return resolve(MASK)(x, self.p) if self.training else torch.full_like(x, self.p)
        if not self.training or self.p == 0:
            return x
        return drop(x, self.p) if self.op == "aten.dropout.default" else resolve(self.op)(x, self.p, True)


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


class Attention(nn.Module):
    """Attention with dropout in training, without in evaluation."""

    def __init__(self, op: str, p: float, causal: bool, others: Mapping[str, Any]) -> None:
        super().__init__()
        self.op = op
        self.p = p
        self.causal = causal
        self.others = dict(others)

    def forward(self, *tensors: Tensor | None) -> Tensor:
        """Attend: query, key, value and mask."""
        return resolve(self.op)(*tensors, self.p if self.training else 0.0, self.causal, **self.others)
