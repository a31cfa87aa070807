r"""Synaptic intelligence: what a weight contributed to the fall of the loss says how much a task needs it.

While a task is trained, each weight gathers the path integral :math:`\omega_i = -\sum_{steps} g_i \Delta\theta_i`, with the gradient g of
the task's own loss. Afterwards its importance grows by :math:`\Omega_i \mathrel{+}= \max(\omega_i, 0) / ((\theta_i - \theta_i^{start})^2 + \xi)`,
and later tasks are trained with the loss :math:`L + c \sum_i \Omega_i (\theta_i - \tilde\theta_i)^2`, anchored at the newest weights.

Reference: Zenke, Poole & Ganguli 2017, equations 3 to 5. Departures: negative contributions of a task count as none; running statistics of batch norms, which are no weights, are held by nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clnp.methods.guards import Guard, GuardedNetwork, key
from clnp.methods.shared import Shared

if TYPE_CHECKING:
    from collections.abc import Callable

    from clnp.config import LearnConfig
    from clnp.inputs import Inputs
    from clnp.sources import TensorExamples

DAMPING = 1e-3
"""xi of CIFAR and of split MNIST in the paper; that of permuted MNIST is 0.1 (--set damping)."""


class PathIntegral(Guard):
    """Hold each weight of the trunk as strongly as it contributed to earlier tasks.

    Args:
        strength: c.
        damping: xi.
    """

    shields_heads = False

    def __init__(self, strength: float, damping: float = DAMPING) -> None:
        super().__init__()
        self.strength, self.damping = strength, damping
        self.importance = nn.Module()  # Omega
        self.anchor = nn.Module()  # theta~: the weights when the task began
        self.contribution = nn.Module()  # omega of the task under way
        self._before: dict[str, tuple[Tensor, Tensor]] = {}

    def begin_(self, trunk: nn.Module, index: int) -> None:
        """Begin a path at the weights as they are."""
        for name, parameter in trunk.named_parameters():
            now = parameter.detach()
            if not hasattr(self.importance, key(name)):
                self.importance.register_buffer(key(name), torch.zeros_like(now))
            self.anchor.register_buffer(key(name), now.clone())
            self.contribution.register_buffer(key(name), torch.zeros_like(now))

    def before_step_(self, trunk: nn.Module) -> None:
        """Take a note of the task's own gradient, then add that of the penalty: 2 c Omega (theta - theta~)."""
        for name, parameter in trunk.named_parameters():
            if parameter.grad is None:
                continue
            now, own = parameter.detach(), parameter.grad
            self._before[name] = (own, now.clone())
            away = now - getattr(self.anchor, key(name))
            parameter.grad = torch.addcmul(own, getattr(self.importance, key(name)), away, value=2 * self.strength)

    @torch.no_grad()
    def after_step_(self, trunk: nn.Module) -> None:
        """Gather what each weight contributed in this step."""
        for name, (gradient, before) in self._before.items():
            back = before.sub_(trunk.get_parameter(name).detach())
            getattr(self.contribution, key(name)).addcmul_(gradient, back)
        self._before = {}

    @torch.no_grad()
    def learned_(self, network: GuardedNetwork, train: TensorExamples, index: int, *place: int | str) -> None:
        """Turn contributions into importance."""
        for name, parameter in network.trunk.named_parameters():
            moved = parameter.detach() - getattr(self.anchor, key(name))
            getattr(self.importance, key(name)).add_(getattr(self.contribution, key(name)).relu() / (moved.square() + self.damping))


def si(make_trunk: Callable[[], nn.Module], example: Inputs, config: LearnConfig, seed: int) -> Shared:
    """Synaptic intelligence (Zenke et al. 2017): springs as stiff as the contribution of each weight to earlier tasks."""
    strength = config.strength if config.strength is not None else 0.1
    return Shared(make_trunk, example, config, seed, PathIntegral(strength, config.damping if config.damping is not None else DAMPING))
