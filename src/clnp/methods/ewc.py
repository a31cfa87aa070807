r"""Elastic weight consolidation: weights that earlier tasks need are held by springs.

After task t with weights :math:`\theta_t^*` the diagonal of its Fisher information is estimated,

.. math:: F_{t,i} = E_x E_{y \sim p_\theta(y|x)} [ (\partial \log p_\theta(y|x) / \partial \theta_i)^2 ],

and later tasks are trained with the loss :math:`L(\theta) + \frac{\lambda}{2} \sum_t \sum_i F_{t,i} (\theta_i - \theta_{t,i}^*)^2`. The sum over
tasks is a quadratic of its own, so that two tensors hold it, however many tasks there are. The online form keeps one spring,
:math:`F \leftarrow \gamma F + F_t`, anchored at the newest weights.

Reference: Kirkpatrick et al. 2017, equation 3; the online form is Schwarz et al. 2018, equation 9. The squared gradient is taken for each
example and not for the mean of a batch, which many implementations do and which is no Fisher information. Labels are drawn from the
network's own prediction, as the definition asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from clnp import seeds
from clnp.inputs import cut, parts, take, to_device
from clnp.methods.guards import Guard, GuardedNetwork, key
from clnp.methods.shared import Shared

if TYPE_CHECKING:
    from collections.abc import Callable

    from clnp.config import LearnConfig
    from clnp.inputs import Inputs
    from clnp.sources import TensorExamples

FISHER_EXAMPLES = 1024
"""Training examples that the Fisher information is estimated on; of a linear model twice as many change it by a few per cent."""
CHUNK_BYTES = 2**28
"""Memory that the gradients of the examples in one chunk may take."""


def fisher_diagonal(network: nn.Module, names: list[str], x: Inputs, y: Tensor) -> dict[str, Tensor]:
    """Return the mean over examples of the squared gradient of log p(y|x), by parameter, in one vectorised pass.

    Args:
        network: (B, ...) -> logits (B, classes), in evaluation mode.
        names: of the parameters that it is taken of.
        x: examples (n, ...).
        y: labels (n,), drawn from the network's own prediction.
    """
    parameters = {name: tensor.detach() for name, tensor in network.named_parameters()}
    chosen = {name: parameters[name] for name in names}

    def log_likelihood(values: dict[str, Tensor], label: Tensor, *example: Tensor) -> Tensor:
        logits = functional_call(network, {**parameters, **values}, tuple(part[None] for part in example))
        return F.log_softmax(logits[0], 0).gather(0, label[None])[0]

    of_each = vmap(grad(log_likelihood), in_dims=(None, 0, *(0 for _ in parts(x))))
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in chosen.values())
    chunk = max(1, min(len(y), CHUNK_BYTES // max(n_bytes, 1)))
    total = {name: torch.zeros_like(tensor) for name, tensor in chosen.items()}
    for start in range(0, len(y), chunk):
        for name, gradient in of_each(chosen, y[start : start + chunk], *parts(cut(x, start, start + chunk))).items():
            total[name] += gradient.square_().sum(0)
    return {name: value / len(y) for name, value in total.items()}


class Springs(Guard):
    """Hold each weight of the trunk where earlier tasks had it, as strongly as they need it.

    Args:
        strength: lambda.
        decay: gamma of the online form; None keeps a spring for each task.
    """

    def __init__(self, strength: float, decay: float | None) -> None:
        super().__init__()
        self.strength, self.decay = strength, decay
        self.stiffness = nn.Module()  # sum of F
        self.pull = nn.Module()  # sum of F theta*

    def begin_(self, trunk: nn.Module, index: int) -> None:
        """Make the springs, slack, before the first task."""
        for name, parameter in trunk.named_parameters():
            if not hasattr(self.stiffness, key(name)):
                self.stiffness.register_buffer(key(name), torch.zeros_like(parameter.detach()))
                self.pull.register_buffer(key(name), torch.zeros_like(parameter.detach()))

    def before_step_(self, trunk: nn.Module) -> None:
        """Add the springs' force to the gradients: lambda (sum F theta - sum F theta*)."""
        for name, parameter in trunk.named_parameters():
            if parameter.grad is not None:
                force = torch.addcmul(-getattr(self.pull, key(name)), getattr(self.stiffness, key(name)), parameter.detach())
                parameter.grad.add_(force, alpha=self.strength)

    @torch.no_grad()
    def learned_(self, network: GuardedNetwork, train: TensorExamples, index: int, *place: int | str) -> None:
        """Estimate the Fisher information of the task, and tie springs to its weights."""
        network.eval()
        generator = seeds.generator(*place)
        rows = torch.randperm(len(train), generator=generator)[:FISHER_EXAMPLES]
        device = network.head_bias.device
        x = to_device(take(train.x, rows), device)
        labels = torch.multinomial(network(x).softmax(1).cpu(), 1, generator=generator)[:, 0].to(device)
        names = [f"trunk.{name}" for name, _ in network.trunk.named_parameters()]
        for name, fisher in fisher_diagonal(network, names, x, labels).items():
            short = name.removeprefix("trunk.")
            stiffness, pull = getattr(self.stiffness, key(short)), getattr(self.pull, key(short))
            theta = network.trunk.get_parameter(short).detach()
            if self.decay is None:
                stiffness += fisher
                pull += fisher * theta
            else:
                stiffness.mul_(self.decay).add_(fisher)
                pull.copy_(stiffness * theta)


def ewc(make_trunk: Callable[[], nn.Module], example: Inputs, config: LearnConfig, seed: int) -> Shared:
    """Elastic weight consolidation (Kirkpatrick et al. 2017): springs as stiff as the Fisher information of earlier tasks."""
    return Shared(make_trunk, example, config, seed, Springs(config.strength if config.strength is not None else 100.0, None))


def online_ewc(make_trunk: Callable[[], nn.Module], example: Inputs, config: LearnConfig, seed: int) -> Shared:
    """Online EWC (Schwarz et al. 2018): one spring for each weight, at its newest place; older tasks fade (gamma 0.95)."""
    return Shared(make_trunk, example, config, seed, Springs(config.strength if config.strength is not None else 100.0, 0.95))
