r"""PackNet: each task prunes itself to a share of the weights that are still free, and these are frozen.

A task is trained in all free weights (it reads the frozen ones, too); then, layer by layer, the smallest of them are set to zero until `share` of
them are left, which train on and belong to the task from then on. A task's predictor has the weights of all tasks up to it, zero elsewhere.
With F the weights of a layer that are free when task t begins, those that it keeps are the :math:`\lceil s |F| \rfloor` largest,

.. math:: M_t = \{ i \in F : |\theta_i| \text{ is among the } s |F| \text{ largest of } F \}, \qquad \theta^{(t)}_i = \theta_i \,[i \in M_1 \cup \dots \cup M_t].

Biases and the weights of norms are trained by the first task alone.

Reference: Mallya & Lazebnik 2018. Departures: each task keeps its own running statistics of batch norms, where theirs keep those of the first; the share is one of what is free,
not of the whole layer. The mask is one of weights, so that every task costs the whole network. Weights are put back after
each step of the optimizer: a zero gradient does not keep a weight under momentum or weight decay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clnp.methods.guards import Holding, key, restart_averages_, weights_of
from clnp.methods.shared import Shared

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from clnp.config import LearnConfig
    from clnp.inputs import Inputs

FREE = -1


class Packing(Holding):
    """Give each weight to the task that keeps it.

    Args:
        share: of the free weights of each layer that a task keeps.
    """

    title = "PackNet"

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.owner = nn.Module()
        self._index, self._pruned = 0, False

    def stages(self, config: LearnConfig) -> list[int]:
        """Train, prune, train on: in all as many epochs as the others have."""
        return [config.epochs, config.total_epochs - config.epochs] if config.total_epochs > config.epochs else [config.epochs]

    def begin_(self, trunk: nn.Module, index: int) -> None:
        """Hold what earlier tasks own."""
        self._index, self._pruned = index, False
        super().begin_(trunk, index)
        for name in weights_of(trunk):
            if not hasattr(self.owner, key(name)):
                parameter = trunk.get_parameter(name)
                self.owner.register_buffer(key(name), torch.full_like(parameter, FREE, dtype=torch.int16))
        self._hold(trunk)

    @torch.no_grad()
    def _hold(self, trunk: nn.Module) -> None:
        """Take a note of which weights are trained from here on, and of the others."""
        self._held, weights = {}, weights_of(trunk)
        for name, parameter in trunk.named_parameters():
            if name in weights:
                trained = getattr(self.owner, key(name)) == (self._index if self._pruned else FREE)
            else:
                trained = torch.full_like(parameter, self._index == 0, dtype=torch.bool)
            self.hold(name, parameter, trained)

    @torch.no_grad()
    def trained_(self, trunk: nn.Module, stage: int) -> None:
        """After the first stage: keep the largest of the free weights."""
        if stage > 0:
            return
        restart_averages_(trunk)
        for name in weights_of(trunk):
            parameter = trunk.get_parameter(name)
            owner = getattr(self.owner, key(name))
            free = owner == FREE
            n_kept = max(1, round(self.share * int(free.sum()))) if bool(free.any()) else 0
            sizes = torch.where(free, parameter.abs(), -1.0).flatten()
            kept = torch.zeros_like(sizes, dtype=torch.bool)
            kept[sizes.topk(n_kept).indices] = True
            kept = kept.view_as(parameter) & free
            owner[kept] = self._index
            parameter.copy_(torch.where(free & ~kept, 0.0, parameter))
        self._pruned = True
        self._hold(trunk)

    def view(self, parameters: Mapping[str, Tensor], index: int) -> Mapping[str, Tensor]:
        """Return the weights that tasks up to one own; the others are zero."""
        seen: dict[str, Tensor] = {}
        for name, parameter in super().view(parameters, index).items():
            owner = getattr(self.owner, key(name), None)
            seen[name] = parameter if owner is None else torch.where((owner >= 0) & (owner <= index), parameter, 0.0)
        return seen


def packnet(make_trunk: Callable[[], nn.Module], example: Inputs, config: LearnConfig, seed: int) -> Shared:
    """PackNet (Mallya & Lazebnik 2018): each task keeps a share of the free weights (--set share), which are frozen."""
    return Shared(make_trunk, example, config, seed, Packing(config.share if config.share is not None else 0.25))
