r"""Elastic weight consolidation: weights that earlier tasks need are held by springs.

After task t with weights :math:`\theta_t^*` the diagonal of its Fisher information is estimated,

.. math:: F_{t,i} = E_x E_{y \sim p_\theta(y|x)} [ (\partial \log p_\theta(y|x) / \partial \theta_i)^2 ],

and later tasks are trained with the loss :math:`L(\theta) + \frac{\lambda}{2} \sum_t \sum_i F_{t,i} (\theta_i - \theta_{t,i}^*)^2`. The sum over
tasks is a quadratic of its own, so that two tensors hold it, however many tasks there are. The online form keeps one spring,
:math:`F \leftarrow \gamma F + F_t`, anchored at the newest weights.

Reference: Kirkpatrick et al. 2017, equation 3; the online form is Schwarz et al. 2018, equation 9. The squared gradient is taken for each
example and not for the mean of a batch, which many implementations do and which is no Fisher information. The expectation over labels is
the whole sum over classes, not one label drawn from it: a network that is sure of its answers draws the others too rarely. The expectation
over examples is the mean of 2,048 training examples, drawn from the seed. The online form does not
bring each task's F to the same length, as Schwarz et al. do. Running statistics of batch norms are no weights: no spring holds them.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from clnp import seeds
from clnp.inputs import cut, length, parts, take, to_device
from clnp.methods.guards import Guard, GuardedNetwork, key
from clnp.methods.shared import Shared

if TYPE_CHECKING:
    from collections.abc import Callable

    from clnp.config import LearnConfig
    from clnp.inputs import Inputs
    from clnp.sources import TensorExamples

FISHER_EXAMPLES = 2048
"""Training examples that the Fisher information is estimated on."""
CHUNK_BYTES = 2**28
"""Memory that the gradients of the examples in one chunk may take."""
LINEAR_CHUNK = 256
"""Examples at a time where no gradient of a weight is written down."""


def fisher_diagonal(network: nn.Module, names: list[str], x: Inputs) -> dict[str, Tensor]:
    """Return the diagonal of the Fisher information, the mean over examples of sum_y p(y|x) (d log p(y|x) / d theta)^2, by parameter.

    The gradient of a linear layer's weight is an outer product, delta h^T, so that the sum of its squares over examples and classes is
    a product of two matrices, (delta^2)^T h^2: no gradient of it is ever written down. Other parameters' gradients are, for each example and class.

    Args:
        network: (B, ...) -> logits (B, classes), in evaluation mode.
        names: of the parameters that it is taken of.
        x: examples (n, ...).
    """
    layers = _linear_layers(network, names, cut(x, 0, 2))
    in_layers = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    others = [name for name in names if name not in in_layers]
    n = length(x)
    sums = _of_linear_layers(network, layers, x) | (_of_any(network, others, x) if others else {})
    return {name: sums[name] / n for name in names}


def _linear_layers(network: nn.Module, names: list[str], x: Inputs) -> dict[str, nn.Linear]:
    """Return the linear layers that a network passes once, with one vector for each example."""
    linear = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear) and f"{name}.weight" in names}
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in linear}

    def note(name: str, _module: nn.Module, given: tuple[Tensor, ...]) -> None:
        shapes[name].append(tuple(given[0].shape))

    hooks = [module.register_forward_pre_hook(partial(note, name)) for name, module in linear.items()]
    with torch.no_grad(), Uses() as uses:
        network(*parts(x))
    for hook in hooks:
        hook.remove()
    a_vector_each = {name for name, seen in shapes.items() if len(seen) == 1 and len(seen[0]) == 2 and seen[0][0] == length(x)}
    return {name: module for name, module in linear.items() if name in a_vector_each and uses.of[id(module.weight)] == 1}


class Uses(TorchFunctionMode):
    """Count how often each tensor is given to an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[int] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and do it."""
        self.of.update(id(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor))
        return func(*args, **(kwargs or {}))


def _of_linear_layers(network: nn.Module, layers: dict[str, nn.Linear], x: Inputs) -> dict[str, Tensor]:
    """Return the sums over examples for linear layers, in one vectorised pass over classes for each chunk of examples."""
    sums = {f"{name}.{part}": torch.zeros_like(tensor) for name, layer in layers.items() for part, tensor in layer.named_parameters()}
    for start in range(0, length(x) if layers else 0, LINEAR_CHUNK):
        read, deltas, p = _deltas(network, layers, parts(cut(x, start, start + LINEAR_CHUNK)))
        for name in layers:
            squares = (deltas[name].square() * p.T[:, :, None]).sum(0)  # (C, B, out) -> (B, out)
            sums[f"{name}.weight"] += squares.T @ read[name].square()  # (out, B) (B, in)
            if f"{name}.bias" in sums:
                sums[f"{name}.bias"] += squares.sum(0)
    return sums


def _deltas(
    network: nn.Module, layers: dict[str, nn.Linear], examples: tuple[Tensor, ...]
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Return what each layer reads (B, in), the gradients of each class's log p by its output (C, B, out), and p (B, C)."""
    read: dict[str, Tensor] = {}

    def log_probabilities(taps: dict[str, Tensor]) -> Tensor:
        """Add zeros to the output of each layer, to differentiate by."""

        def tap(name: str, _module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
            read[name] = given[0].detach()
            return out + taps[name]

        hooks = [layer.register_forward_hook(partial(tap, name)) for name, layer in layers.items()]
        logits = network(*examples)
        for hook in hooks:
            hook.remove()
        return F.log_softmax(logits, 1)

    zeros = {name: layer.weight.detach().new_zeros(len(examples[0]), layer.out_features) for name, layer in layers.items()}
    log_p, back = vjp(log_probabilities, zeros)[:2]
    each_class = torch.eye(log_p.shape[1], device=log_p.device)[:, None].expand(-1, len(log_p), -1)  # (C, B, C)
    (deltas,) = vmap(back)(each_class)
    return read, deltas, log_p.detach().exp()


def _of_any(network: nn.Module, names: list[str], x: Inputs) -> dict[str, Tensor]:
    """Return the sums over examples for any parameters, whose gradients are written down for each example and class."""
    parameters = {name: tensor.detach() for name, tensor in network.named_parameters()}
    chosen = {name: parameters[name] for name in names}

    def log_probabilities(values: dict[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        logits = functional_call(network, {**parameters, **values}, tuple(part[None] for part in example))
        return F.log_softmax(logits[0], 0)

    def of_one(values: dict[str, Tensor], *example: Tensor) -> dict[str, Tensor]:
        """Return the sum over classes of p times the squared gradient, for one example."""
        log_p, back = vjp(partial(log_probabilities, example=example), values)[:2]
        (gradients,) = vmap(back)(torch.eye(len(log_p), device=log_p.device))
        return {name: torch.tensordot(log_p.exp(), gradient.square(), 1) for name, gradient in gradients.items()}

    of_each = vmap(of_one, in_dims=(None, *(0 for _ in parts(x))))
    n_classes = len(log_probabilities(chosen, tuple(part[0] for part in parts(x))))
    n_bytes = n_classes * sum(tensor.numel() * tensor.element_size() for tensor in chosen.values())
    chunk = max(1, min(length(x), CHUNK_BYTES // max(n_bytes, 1)))
    total = {name: torch.zeros_like(tensor) for name, tensor in chosen.items()}
    try:
        of_each(chosen, *parts(cut(x, 0, 1)))
    except RuntimeError:  # an operation that cannot be vectorised, such as a GRU's
        return _one_by_one(network, names, x)
    for start in range(0, length(x), chunk):
        for name, squares in of_each(chosen, *parts(cut(x, start, start + chunk))).items():
            total[name] += squares.sum(0)
    return total


def _one_by_one(network: nn.Module, names: list[str], x: Inputs) -> dict[str, Tensor]:
    """Return the same sums with one backward pass for each example and class."""
    chosen = [network.get_parameter(name) for name in names]
    total = [torch.zeros_like(parameter) for parameter in chosen]
    with torch.enable_grad():
        for place in range(length(x)):
            log_p = F.log_softmax(network(*parts(cut(x, place, place + 1))), 1)[0]
            for of_class in log_p:
                gradients = torch.autograd.grad(of_class, chosen, retain_graph=True, materialize_grads=True)
                for whole, gradient in zip(total, gradients, strict=True):
                    whole.add_(of_class.detach().exp() * gradient.square())
    return dict(zip(names, total, strict=True))


class Springs(Guard):
    """Hold each weight of the trunk where earlier tasks had it, as strongly as they need it.

    Args:
        strength: lambda.
        decay: gamma of the online form; None keeps a spring for each task.
    """

    shields_heads = False

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
                stiffness, pull = getattr(self.stiffness, key(name)), getattr(self.pull, key(name))
                parameter.grad.addcmul_(stiffness, parameter.detach(), value=self.strength).sub_(pull, alpha=self.strength)

    @torch.no_grad()
    def learned_(self, network: GuardedNetwork, train: TensorExamples, index: int, *place: int | str) -> None:
        """Estimate the Fisher information of the task, and tie springs to its weights."""
        network.eval()
        rows = torch.randperm(len(train), generator=seeds.generator(*place))[:FISHER_EXAMPLES]
        x = to_device(take(train.x, rows), network.head_bias.device)
        names = [f"trunk.{name}" for name, parameter in network.trunk.named_parameters() if parameter.requires_grad]
        for name, fisher in fisher_diagonal(network, names, x).items():
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
