r"""Hard attention to the task: each task learns how much it uses each unit, and what earlier tasks use hardly moves.

Task t has an embedding e per unit; a unit's output is multiplied by :math:`a = \sigma(s e)`. Within each epoch s is annealed from
:math:`1/s_{max}` to :math:`s_{max}`; prediction uses :math:`s_{max}`, where attention is all but binary. With the largest attention of earlier
tasks, :math:`a^{<t}`, the update of a weight from unit j to unit i is multiplied by :math:`1 - \min(a_i^{<t}, a_j^{<t})`, and the loss gains
:math:`c \sum_i a_i (1 - a_i^{<t}) / \sum_i (1 - a_i^{<t})`. Gradients of embeddings are rescaled for the annealing (equation 6 of the paper).

Reference: Serra et al. 2018. Departures: units are those of our wiring, so that tied layers share their attention, and any network that it
understands will do; attention multiplies a unit's weights and bias, which for ReLU and linear layers is to multiply its output, and for others that put out 0 where they get 0 (tanh, GELU) comes to the same where attention is 0 or 1; the update is
scaled, not the gradient, for Adam would undo the scaling of a gradient. Adam moves every parameter by about the learning rate in a step, however large
its gradient; with the few and large steps of our training an embedding would hardly move from where it was drawn. So under Adam what is trained is
e / 10. SGD, which the authors have, moves embeddings by their rescaled gradients, and weighs the sparsity term by c, which Adam does not.
Its momentum is 0.9 by default, which they do without, and gradients are not clipped. With fewer than eight
steps in an epoch s is annealed over several epochs, and reaches its highest in the last step. Each task keeps its own running statistics of batch norms, which no attention shields.
Units that put out something without attention, a sigmoid's 0.5 say, cannot be shielded: networks in which other units read them are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clnp import seeds
from clnp.emit import with_everyone
from clnp.errors import ConfigError
from clnp.inputs import parts
from clnp.methods.guards import GuardedNetwork, OwnTensors, check_plain
from clnp.methods.shared import Shared
from clnp.narrow import joined
from clnp.wiring import EVERYONE, Ref, noisy, trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from clnp.config import LearnConfig
    from clnp.inputs import Inputs
    from clnp.sources import TensorExamples
    from clnp.wiring import Wiring

LARGEST = 400.0
"""s_max, as in the paper."""
SPEED = 10.0
"""How many times faster than a weight an embedding moves under Adam."""
CLAMP_EMBEDDING, CLAMP_COSH = 6.0, 50.0
"""Limits of e and of s e, as in the authors' code."""
SCALE_OF_NORM = {
    "aten.batch_norm.default": 1,
    "aten.instance_norm.default": 1,
    "aten.group_norm.default": 2,
    "aten.layer_norm.default": 2,
    "aten.rms_norm.default": 2,
}
"""Operations that normalise, and the place of their weights among the arguments."""
STEPS = 8
"""Annealing takes at least so many steps: with one or two, attention would be one half while it is trained, and never in between."""
LEAST = 1e-10
"""Weights are multiplied by at least this much attention: with what less would make of them a processor is many times slower, and it is no more than rounding.
The gradient is that of the attention itself."""


class Attention(OwnTensors):
    """Attend to units.

    Args:
        wiring: of the trunk.
        strength: c.
        seed: of the embeddings.
        speed: how many times faster than a weight an embedding moves.
        example: a batch of the trunk's input, on which `check` tries whether units without attention are silent.
    """

    shields_heads = False
    used: Tensor
    """a of earlier tasks, the largest: (n_units + 1,); the last place answers for raw input, which everybody uses."""
    step: Tensor

    def __init__(self, wiring: Wiring, strength: float, seed: int, speed: float = SPEED, example: Inputs | None = None) -> None:
        super().__init__()
        self.wiring, self.strength, self.seed, self.speed, self.example = wiring, strength, seed, speed, example
        self.embeddings = nn.ParameterList()  # e / speed
        used = torch.zeros(wiring.n_units + 1)
        used[-1] = 1.0
        self.register_buffer("used", used)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._left: dict[str, Tensor] = {}  # name -> how much of its updates earlier tasks leave
        self._before: dict[str, Tensor] = {}
        self._s = LARGEST

    def check(self, trunk: nn.Module) -> None:
        """Check that attention to a unit is attention to its output.

        Raises:
            ConfigError: a layer's weights are made of others, or a norm without weights follows.
        """
        check_plain(trunk, "HAT")
        shared = with_everyone(self.wiring.shared)
        for node in self.wiring.graph.nodes:
            units = self.wiring.values.get(node.name)
            if node.op not in SCALE_OF_NORM or units is None or bool((units == EVERYONE).all()):
                continue
            scale = node.args[SCALE_OF_NORM[node.op] :][:1]
            if not any(isinstance(part, Ref) and not bool(shared[self.wiring.operands[part.name].rows].all()) for part in scale):
                raise ConfigError(
                    f"cannot learn with HAT: the norm at {node.place} has no weights for each unit, and undoes whatever attention does before it. "
                    f"Use a norm with a weight for each unit (affine=True, elementwise_affine=True), or choose another method."
                )
        for group in self.wiring.claimable:
            if self.example is not None and not self._silent(trunk, group.mask(self.wiring.n_units)):
                raise ConfigError(
                    f"cannot learn with HAT: units of '{group.name}' put out something when they get no attention (a sigmoid's 0.5, say), and other units read it: "
                    f"old answers would change. Use activations that are 0 at 0 (ReLU, tanh, GELU), or choose another method."
                )

    @torch.no_grad()
    def _silent(self, trunk: nn.Module, units: Tensor) -> bool:
        """Tell whether it makes no difference what other weights read of some units that get no attention."""
        attention = torch.cat([1.0 - units.float(), torch.ones(1)])
        once = self._masked({name: parameter.detach().cpu() for name, parameter in trunk.named_parameters()}, attention)
        other = dict(once)
        for name, labels in self.wiring.parameters.items():
            if name in once and labels.columns is not None:
                read = _along(torch.cat([units, torch.zeros(1, dtype=torch.bool)])[labels.columns], labels.column_dim, once[name])
                other[name] = torch.where(read, once[name] + 1, once[name])
        assert self.example is not None
        answers = [joined(functional_call(trunk.eval(), tensors, parts(noisy(self.example, 2)))) for tensors in (once, other)]
        return torch.allclose(*answers, rtol=1e-4, atol=1e-6)

    def begin_(self, trunk: nn.Module, index: int) -> None:
        """Draw an embedding; the others are trained no more."""
        if index == 0:
            self.embeddings = nn.ParameterList()
        super().begin_(trunk, index)
        for embedding in self.embeddings:
            embedding.requires_grad_(False)
        values = torch.randn(self.wiring.n_units, generator=seeds.generator(self.seed, "task", index, "embedding"))
        self.embeddings.append(nn.Parameter(values.to(self.used.device) / self.speed))
        self.step.zero_()
        if index:
            self._left = {name: self._left_of(name, parameter) for name, parameter in trunk.named_parameters()}
            self._before = {name: torch.empty_like(parameter) for name, parameter in trunk.named_parameters()}

    def _left_of(self, name: str, parameter: Tensor) -> Tensor:
        labels = self.wiring.parameters.get(name)
        if labels is None:
            return torch.zeros((), device=self.used.device)
        used = _along(self.used[labels.rows], labels.row_dim, parameter)
        if labels.columns is not None:
            used = torch.minimum(used, _along(self.used[labels.columns], labels.column_dim, parameter))
        return 1 - used

    def attention(self, index: int, s: float) -> Tensor:
        """Return a, (n_units + 1,)."""
        a = torch.sigmoid(s * self.speed * self.embeddings[index])
        a = a + (a.clamp_min(LEAST) - a).detach()
        return torch.cat([a, torch.ones(1, device=self.used.device)])

    def _masked(self, parameters: Mapping[str, Tensor], attention: Tensor) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        for name, parameter in parameters.items():
            labels = self.wiring.parameters.get(name)
            seen[name] = parameter if labels is None else parameter * _along(attention[labels.rows], labels.row_dim, parameter)
        return seen

    def effective(self, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return weights times attention, at the temperature of this step; in evaluation at the highest."""
        self._s = LARGEST
        if self.training:
            period = max(self.steps_per_epoch, STEPS)
            part = ((int(self.step) - self.n_epochs * self.steps_per_epoch) % period) / (period - 1)
            self._s = 1 / LARGEST + (LARGEST - 1 / LARGEST) * part
        return self._masked(parameters, self.attention(len(self.embeddings) - 1, self._s))

    def view(self, parameters: Mapping[str, Tensor], index: int) -> Mapping[str, Tensor]:
        """Return weights times the attention of a task, and its statistics."""
        return {**super().view(parameters, index), **self._masked(parameters, self.attention(index, LARGEST))}

    def before_step_(self, trunk: nn.Module) -> None:
        """Add the gradient of the sparsity term, and rescale that of the embedding."""
        for name, before in self._before.items():
            before.copy_(trunk.get_parameter(name).detach())
        trained = self.embeddings[-1]
        assert trained.grad is not None
        free = 1 - self.used[:-1]
        with torch.no_grad():
            embedding = self.speed * trained
            a = torch.sigmoid(self._s * embedding)
            trained.grad += self.speed * self.strength * self._s * a * (1 - a) * free / free.sum().clamp_min(1e-8)
            inner = (self._s * embedding).clamp(-CLAMP_COSH, CLAMP_COSH)
            trained.grad *= LARGEST / self._s * (torch.cosh(inner) + 1) / (torch.cosh(embedding) + 1)

    @torch.no_grad()
    def after_step_(self, trunk: nn.Module) -> None:
        """Scale the update of each weight by what earlier tasks leave of it."""
        self.step += 1
        self.embeddings[-1].clamp_(-CLAMP_EMBEDDING / self.speed, CLAMP_EMBEDDING / self.speed)
        for name, before in self._before.items():
            parameter = trunk.get_parameter(name)
            torch.lerp(before, parameter, self._left[name], out=parameter)

    @torch.no_grad()
    def learned_(self, network: GuardedNetwork, train: TensorExamples, index: int, *place: int | str) -> None:
        """Add what the task uses to what is used, and keep its statistics."""
        super().learned_(network, train, index, *place)
        self.used.copy_(torch.maximum(self.used, self.attention(index, LARGEST)))


def _along(values: Tensor, dim: int, like: Tensor) -> Tensor:
    """Return values that lie along one dimension of a tensor, so that they multiply it."""
    if like.dim() == 0:
        return values.reshape(())
    return values.view([-1 if place == dim else 1 for place in range(like.dim())])


def hat(make_trunk: Callable[[], nn.Module], example: Inputs, config: LearnConfig, seed: int) -> Shared:
    """Hard attention to the task (Serra et al. 2018): learned attention to units, which shields what earlier tasks use."""
    wiring, strength = trace(make_trunk(), example), 0.75 if config.strength is None else config.strength
    speed = 1.0 if config.optimizer == "sgd" else SPEED
    return Shared(make_trunk, example, config, seed, Attention(wiring, strength, seed, speed, example))
