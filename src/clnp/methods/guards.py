"""What protects earlier tasks in a dense network that all tasks share: a guard watches the training of each task.

A guard is a module, so that what it knows (importances, anchors, masks) lies in its buffers: it is saved in the middle of a task and at
its end with the network, and moves to a device with it. Before and after each step of the optimizer it may change gradients and weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from clnp.dropout import CheapDropout
from clnp.errors import ConfigError
from clnp.inputs import parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clnp.config import LearnConfig
    from clnp.inputs import Inputs
    from clnp.sources import TensorExamples


NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class Guard(nn.Module):
    """The guard of plain fine-tuning: it protects nothing. The others change what they need to.

    Attributes:
        shields_heads: whether a head that all tasks share is as safe with it as the trunk; else every task must have its own.
        steps_per_epoch: of the task under way, for guards that change with the step.
        n_epochs: as many epochs it has at most.

    Buffers are named after parameters of the trunk, whose dots they cannot have: see `key`.
    """

    shields_heads: bool = True
    steps_per_epoch: int = 1
    n_epochs: int = 1

    def stages(self, config: LearnConfig) -> list[int]:
        """Return how many epochs each stage of a task's training has; `trained_` comes after each."""
        return [config.total_epochs]

    @property
    def facts(self) -> dict[str, Any]:
        """What predictions depend on beside the buffers: it is saved with them, and must be the same where they are loaded."""
        return {}

    def check(self, trunk: nn.Module) -> None:
        """Check that the guard can protect this trunk.

        Raises:
            ConfigError: it cannot; the message names the layer.
        """

    def begin_(self, trunk: nn.Module, index: int) -> None:
        """Prepare for the training of task number `index`; with the first task the guard begins anew."""

    def effective(self, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """Return what the trunk computes with while it is trained, made of its parameters; None: the parameters themselves."""
        return None

    def view(self, parameters: Mapping[str, Tensor], index: int) -> Mapping[str, Tensor] | None:
        """Return what the trunk computes with to predict task `index`; None: the parameters themselves."""
        return None

    def context(self, x: Inputs, index: int) -> Any:
        """Return the examples as task `index` sees them."""
        return x

    def n_read(self, n_features: int) -> int:
        """Return how many numbers a head reads where the trunk puts out so many."""
        return n_features

    def features(self, features: Tensor) -> Tensor:
        """Return what the head reads of the trunk's output, for the task whose `context` was asked for last."""
        return features

    def before_step_(self, trunk: nn.Module) -> None:
        """Change the gradients, before the optimizer moves the weights."""

    def after_step_(self, trunk: nn.Module) -> None:
        """Change the weights, after the optimizer has moved them."""

    def trained_(self, trunk: nn.Module, stage: int) -> None:
        """Change the weights after a stage of a task's training."""

    def learned_(self, network: GuardedNetwork, train: TensorExamples, index: int, *place: int | str) -> None:
        """Take a note of what task `index` needs, once it is trained."""


class OwnTensors(Guard):
    """A guard that keeps some tensors of the trunk for each task, because later tasks move them: running statistics of batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.ModuleList()

    def owned(self, trunk: nn.Module) -> dict[str, Tensor]:
        """Return what each task has of its own, by name."""
        return {name: buffer for name, buffer in trunk.named_buffers() if name.rpartition(".")[2].startswith("running_")}

    def begin_(self, trunk: nn.Module, index: int) -> None:
        """Make room for the task's tensors, which go on from those of the last one."""
        if index == 0:
            self.own = nn.ModuleList()
        self.own.append(nn.Module())
        for name, tensor in self.owned(trunk).items():
            self.own[index].register_buffer(key(name), tensor.detach().clone())

    @torch.no_grad()
    def learned_(self, network: GuardedNetwork, train: TensorExamples, index: int, *place: int | str) -> None:
        """Keep the task's tensors."""
        for name, tensor in self.owned(network.trunk).items():
            self.own[index].get_buffer(key(name)).copy_(tensor)

    def view(self, parameters: Mapping[str, Tensor], index: int) -> Mapping[str, Tensor]:
        """Return the parameters, and what the task has of its own."""
        return {**parameters, **{name.replace("/", "."): tensor for name, tensor in self.own[index].named_buffers()}}


def check_plain(trunk: nn.Module, what: str) -> None:
    """Check that every weight of a trunk is a parameter of its own, and not made of others.

    Raises:
        ConfigError: a layer is parametrized, with weight norm say.
    """
    for name, module in trunk.named_modules():
        hooks = module._forward_pre_hooks.values()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # the older form of both norms
        if parametrize.is_parametrized(module) or any(isinstance(hook, WeightNorm | SpectralNorm) for hook in hooks):
            raise ConfigError(
                f"cannot learn with {what}: it needs weights that are parameters, and those of layer '{name}' are computed from others "
                f"(weight norm or the like). Remove the parametrization, or choose another method."
            )


def weights_of(trunk: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters whose numbers tasks share out among themselves.

    Not those of norms and no biases, whatever shape they have: where one is zero its unit is silent, and stays so. And none that is frozen.
    """
    of_norms = {id(parameter) for module in trunk.modules() if isinstance(module, NORMS) for parameter in module.parameters()}
    return tuple(
        name
        for name, parameter in trunk.named_parameters()
        if parameter.dim() > 1
        and parameter.requires_grad
        and id(parameter) not in of_norms
        and not name.rpartition(".")[2].startswith("bias")
    )


def restart_averages_(trunk: nn.Module) -> None:
    """Let batch norms that average over all batches (`momentum=None`) average over those from here on: the earlier ones are another task's."""
    for module in trunk.modules():
        if isinstance(module, _NormBase) and module.momentum is None and module.num_batches_tracked is not None:
            module.num_batches_tracked.zero_()


class Holding(OwnTensors):
    """A guard that holds some weights where they are.

    A weight is put back after each step: a zero gradient does not keep it under momentum or weight decay. What the optimizer does to one weight does
    not depend on the others, so that the gradients of held weights may stay.
    """

    shields_heads = False
    title: str
    """Of the method, for messages."""

    def check(self, trunk: nn.Module) -> None:
        """Check that every weight is a parameter of its own.

        Raises:
            ConfigError: one is made of others.
        """
        check_plain(trunk, self.title)

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[str, tuple[Tensor, Tensor]] = {}  # name -> 1 for each weight that is trained, and what the others are, else 0

    def hold(self, name: str, parameter: Tensor, trained: Tensor) -> None:
        """Hold a parameter but for the weights that are trained, bool of its shape, as it is now."""
        # Numbers, not bools: to multiply and add takes a sixth of the time of torch.where.
        self._held[name] = trained.to(parameter.dtype), parameter.detach().masked_fill(trained, 0.0)

    @torch.no_grad()
    def after_step_(self, trunk: nn.Module) -> None:
        """Put back what is held."""
        for name, parameter in trunk.named_parameters():
            trained, held = self._held[name]
            torch.addcmul(held, parameter, trained, out=parameter)


def key(name: str) -> str:
    """Return the name of a buffer for a parameter.

    >>> key("hidden1.weight")
    'hidden1/weight'
    """
    return name.replace(".", "/")


class GuardedNetwork(nn.Module):
    """A trunk, one head and a guard, (B, *shape) -> (B, n_classes), in the form that `clnp.training.fit` trains.

    Args:
        trunk: the network without a head.
        head: of the task, or of all tasks: then it may have more rows than the task has classes.
        guard: protects earlier tasks.
        index: number of the task.
        n_classes: of the task; by default all of the head's.
    """

    def __init__(self, trunk: nn.Module, head: nn.Linear, guard: Guard, index: int, n_classes: int | None = None) -> None:
        super().__init__()
        self.trunk, self.head, self.guard, self.index = trunk, head, guard, index
        self.out_features = head.out_features if n_classes is None else n_classes

    @property
    def head_bias(self) -> Tensor:
        """The head's bias: it tells `fit` the device."""
        return self.head.bias

    def weights(self) -> list[nn.Parameter]:
        """Return the weights under the L1 penalty: none."""
        return []

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the guard watch every step of an optimizer."""

        def before(*_: Any) -> None:
            self.guard.before_step_(self.trunk)

        def after(*_: Any) -> None:
            self.guard.after_step_(self.trunk)

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    def forward(self, x: Inputs, meets: None = None) -> Tensor:
        """Return logits; there are no claimed units to meet."""
        del meets
        seen = parts(self.guard.context(x, self.index))
        effective = self.guard.effective(dict(self.trunk.named_parameters()))
        with CheapDropout():
            features = self.trunk(*seen) if effective is None else functional_call(self.trunk, dict(effective), seen)
        logits = self.head(self.guard.features(features))
        return logits if self.out_features == self.head.out_features else logits[:, : self.out_features]
