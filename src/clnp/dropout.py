"""Dropout that costs a third: several elements share one random number.

On a CPU, torch draws a random number for every element that may be dropped, which took a quarter of the time of a training step of
784-2000-2000. Here one number of 63 bits decides about four elements, with 15 bits each, so that p is kept to within 1/65536. It
draws from torch's global generator, as torch's own does: `clnp.seeds.seeded` holds for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

BITS = 15
"""Random bits an element is decided by: the sign bits of 16-bit integers are left out, for torch draws 63 bits, not 64."""
LOW_BITS = 0x7FFF7FFF7FFF7FFF


class _Drop(torch.autograd.Function):
    """x times a mask of 0 and 1 / (1 - p), which is kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        """Draw the mask and multiply."""
        n = x.numel()
        drawn = torch.empty((n + 3) // 4, dtype=torch.int64).random_().bitwise_and_(LOW_BITS).view(torch.int16)[:n]
        n_dropped = round(p * 2**BITS)
        mask = (drawn >= n_dropped).view(x.shape).to(x.dtype).mul_(2**BITS / (2**BITS - n_dropped))
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Multiply the gradient by the same mask."""
        (mask,) = ctx.saved_tensors
        return gradients[0] * mask, None


def drop(x: Tensor, p: float) -> Tensor:
    """Set elements of x to 0 with probability p and divide the others by 1 - p.

    Args:
        x: (B, ...). On a device other than the CPU, torch's own dropout is as cheap, and is used.
        p: the probability, from 0 to 1; kept to within 1/65536 (for 0.1: 0.100006), and what is left is divided by 1 minus that, rounded to the precision of x.

    >>> torch.unique(drop(torch.ones(1000), 0.5)).tolist()
    [0.0, 2.0]
    """
    if x.device.type != "cpu" or not x.is_floating_point() or round(p * 2**BITS) in (0, 2**BITS):
        return F.dropout(x, p)
    return _Drop.apply(x, p)  # pyright: ignore[reportReturnType]


class CheapDropout(TorchFunctionMode):
    """Within this block, `nn.Dropout` and `F.dropout` of any network are `drop`. Other operations are as they are."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Stand in for dropout, in training and out of place; call anything else."""
        del types
        given = dict(kwargs or {})
        if func is F.dropout:
            x, p, training, inplace = _arguments(*args, **given)
            if not inplace:
                return drop(x, p) if training else x
        return func(*args, **given)


def _arguments(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> tuple[Tensor, float, bool, bool]:
    """Return the arguments of `F.dropout` in their order."""
    return x, p, training, inplace
