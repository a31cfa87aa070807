"""A task: a name, its classes, and where its examples come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from clnp.inputs import Inputs

Split: TypeAlias = Literal["train", "validation", "test"]
JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"


@dataclass(frozen=True)
class Task:
    """Name one task of a benchmark and say how to load its examples.

    Examples are made on demand and not kept: ten permuted copies of MNIST would fill 1.9 GB. Hold on to what `train` returns
    for as long as the task is trained, and let it go after.

    Args:
        name: unique in its benchmark, for example "digits-0". Data, never a path.
        n_classes: how many classes; labels are 0 .. n_classes - 1.
        classes: their names, by label.
        load: a split -> x, float32 (n, ...) or a tuple of such for a network with several inputs, and y, int64 (n,). The same
            split always gives the same tensors.
        details: what else defines the task (seed, hash of the permutation, angle): written into the run.

    >>> import torch
    >>> task = Task("xor", 2, ("no", "yes"), lambda split: (torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)), {})
    >>> task.train[0].shape
    torch.Size([4, 2])
    """

    name: str
    n_classes: int
    classes: tuple[str, ...]
    load: Callable[[Split], tuple[Inputs, Tensor]]
    details: Mapping[str, JSON]

    @property
    def train(self) -> tuple[Inputs, Tensor]:
        """The examples to learn from: x and y."""
        return self.load("train")

    @property
    def validation(self) -> tuple[Inputs, Tensor]:
        """The held-out examples that decisions are made on (margin, stopping): x and y."""
        return self.load("validation")

    @property
    def test(self) -> tuple[Inputs, Tensor]:
        """The examples that only reports are made of: x and y."""
        return self.load("test")
