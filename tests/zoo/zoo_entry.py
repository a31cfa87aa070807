"""What the zoo says about one of its networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Input = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Entry:
    """A network, and what was worked out about it by hand.

    Attributes:
        name: in the table `ZOO`.
        build: makes the network, with whatever random weights torch draws.
        example: n -> a batch of n inputs: a tensor, or a tuple of tensors.
        groups: group -> number of units.
        shared: names of the groups that are shared: one unit each, claimed by the first task.
        varying: other inputs that the code of the network allows (another image size or sequence length), as functions n -> batch.
        head: the path of the layer that is the network's head; None for a trunk.
        merged: group -> why its units are coarser than one output row each.
    """

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[int], Input]
    groups: Mapping[str, int]
    shared: tuple[str, ...] = ()
    varying: tuple[Callable[[int], Input], ...] = ()
    head: str | None = None
    merged: Mapping[str, str] = field(default_factory=dict)

    @property
    def n_units(self) -> int:
        """How many units the network has."""
        return sum(self.groups.values())


def network(entry: Entry, seed: int = 0) -> nn.Module:
    """Build a network with weights that depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return entry.build()


def trunk(entry: Entry, model: nn.Module) -> nn.Module:
    """Return the network without its head (changed in place): input -> features."""
    if entry.head is not None:
        model.set_submodule(entry.head, nn.Identity())
    return model


def images(*shape: int) -> Callable[[int], Tensor]:
    """Make batches of numbers: the same for every call with the same n."""
    return lambda n: torch.randn(n, *shape, generator=torch.Generator().manual_seed(n))


def tokens(length: int, vocabulary: int) -> Callable[[int], Tensor]:
    """Make batches of tokens: the same for every call with the same n."""
    return lambda n: torch.randint(vocabulary, (n, length), generator=torch.Generator().manual_seed(n))
