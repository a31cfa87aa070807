"""What a network reads: one tensor, or a tuple of tensors, each with the examples along dimension 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clnp.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Inputs = Tensor | tuple[Tensor, ...]
"""One tensor (B, ...) is one input. A tuple holds one tensor (B, ...) for each argument of the network, in their order."""


@dataclass(frozen=True)
class Form:
    """What the examples of one input look like."""

    shape: tuple[int, ...]
    """Of one example."""
    dtype: torch.dtype
    free: tuple[int, ...] = ()
    """Which of the sizes may be another one, since the network's code does not fix them: 0 is fixed, others are numbers of lengths.

    Sizes of one number are one length, in other inputs, too: a text and its mask.
    """

    def fits(self, shape: Sequence[int]) -> bool:
        """Tell whether an example of that shape can be read."""
        free = self.free or (0,) * len(self.shape)
        return len(shape) == len(self.shape) and all(
            size == expected or (is_free and size > 0) for size, expected, is_free in zip(shape, self.shape, free, strict=True)
        )


Forms = tuple[Form, ...]
"""The form of each input, in the order of the network's arguments."""


def parts(x: Inputs) -> tuple[Tensor, ...]:
    """Return one tensor for each input: what a network is called with.

    >>> len(parts(torch.zeros(3, 2))), len(parts((torch.zeros(3, 2), torch.zeros(3))))
    (1, 2)
    """
    return x if isinstance(x, tuple) else (x,)


def each(x: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Change every input in the same way."""
    return tuple(change(part) for part in x) if isinstance(x, tuple) else change(x)


def take(x: Inputs, places: Tensor) -> Inputs:
    """Return the examples at some places (k,)."""
    return each(x, lambda part: part[places])


def cut(x: Inputs, start: int, stop: int) -> Inputs:
    """Return the examples from one place to another."""
    return each(x, lambda part: part[start:stop])


def to_device(x: Inputs, device: torch.device | str) -> Inputs:
    """Return the inputs on a device."""
    return each(x, lambda part: part.to(device))


def length(x: Inputs) -> int:
    """Return the number of examples."""
    return len(parts(x)[0])


def join(batches: Sequence[Inputs]) -> Inputs:
    """Put batches of the same inputs together."""
    joined = tuple(torch.cat(same) for same in zip(*map(parts, batches), strict=True))
    return joined if isinstance(batches[0], tuple) else joined[0]


def forms(x: Inputs) -> Forms:
    """Return what the examples of each input look like."""
    return tuple(Form(tuple(part.shape[1:]), part.dtype) for part in parts(x))


def which(place: int, n: int) -> str:
    """Name an input in a message: "input 2 of 2"; "x" where it is the only one."""
    return "x" if n == 1 else f"input {place + 1} of {n}"


def check_forms(expected: Forms, x: Inputs, doing: str) -> None:
    """Check that inputs look as a network wants them.

    Raises:
        DataError: their number, shape or dtype is another one.
    """
    check_inputs(x, len(expected), doing)
    for place, (form, found) in enumerate(zip(expected, forms(x), strict=True)):
        if not form.fits(found.shape) or form.dtype != found.dtype:
            where = f" in {which(place, len(expected))}" if len(expected) > 1 else ""
            raise DataError(
                f"{doing}: expected examples of shape {form.shape} and {form.dtype}, found {found.shape} and {found.dtype}{where}."
            )
    check_lengths(expected, x, doing)


def check_lengths(expected: Forms, x: Inputs, doing: str) -> None:
    """Check that inputs that share a length, a text and its mask, have the same one. Their shapes fit.

    Raises:
        DataError: two of them differ.
    """
    first: dict[int, tuple[int, int]] = {}
    for place, (form, found) in enumerate(zip(expected, forms(x), strict=True)):
        for length, size in zip(form.free, found.shape, strict=False):
            before, expected_size = first.setdefault(length, (place, size)) if length else (place, size)
            if size != expected_size:
                names = f"{which(before, len(expected))} and {which(place, len(expected))}"
                raise DataError(
                    f"{doing}: expected one length in {names}, which share it, found {expected_size} and {size}. Pad them alike."
                )


def check_dense(tensor: Tensor, doing: str) -> None:
    """Check that a tensor holds its values one beside the other.

    Raises:
        DataError: it is sparse, or of the meta device.
    """
    if tensor.layout != torch.strided or tensor.is_meta:
        kind = "one of the meta device, which holds no values" if tensor.is_meta else f"a tensor of layout {tensor.layout}"
        raise DataError(f"{doing}: expected dense tensors, found {kind}.")


def check_inputs(x: Any, n: int | None, doing: str) -> None:
    """Check that something is one tensor, or a tuple of n tensors with as many examples each.

    Args:
        x: anything.
        n: how many inputs the network has; None while nobody knows.
        doing: "cannot predict task 'a'", for the message.

    Raises:
        DataError: what is wrong and how to write it.
    """
    if isinstance(x, list):
        raise DataError(f"{doing}: expected a tensor, or a tuple of tensors for several inputs, found a list. Make it a tuple: tuple(x).")
    tensors = x if isinstance(x, tuple) else (x,)
    if len(tensors) != (n or max(len(tensors), 1)):
        inputs, form = ("1 input", "one tensor") if n == 1 else (f"{n} inputs", f"a tuple of {n} tensors")
        what = f"{inputs} as in the example input" if n else "at least 1 input"
        raise DataError(f"{doing}: expected {what}, found {len(tensors)}. Pass {form if n else 'one tensor, or a tuple of tensors'}.")
    for place, part in enumerate(tensors):
        if not isinstance(part, Tensor):
            raise DataError(
                f"{doing}: expected a tensor as {which(place, len(tensors))}, found {type(part).__name__}. Convert it with torch.as_tensor."
            )
        check_dense(part, doing)
        if len(tensors) > 1 and part.dim() == 0:
            raise DataError(f"{doing}: expected a batch dimension, found {which(place, len(tensors))} of shape (). Stack its examples.")
    lengths = [len(part) for part in tensors] if len(tensors) > 1 else []
    if len(set(lengths)) > 1:
        found = " and ".join([", ".join(map(str, lengths[:-1])), str(lengths[-1])])
        raise DataError(f"{doing}: expected as many examples in each input, found {found}. Give every example all of its inputs.")
