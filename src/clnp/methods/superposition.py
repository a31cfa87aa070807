r"""Parameter superposition: one set of weights holds many networks, each retrieved with a context of its own.

Before each layer the input is changed by the task's context, :math:`y = W (c_t \odot x)`. Contexts that are drawn at random are almost
orthogonal, so that what other tasks stored is noise of small size, and the weights are trained as in plain fine-tuning.

binary: :math:`c \in \{-1, 1\}^n`. complex: phases, :math:`y = \mathrm{Re}(W (e^{i \phi} \odot x))`, with weights that have an imaginary
part, twice as many numbers. rotation: an orthogonal matrix, :math:`y = W R_t x`.

Reference: Cheung et al. 2019, equations 2 to 4. Departures: in a convolution the context acts on channels; the complex form takes the real part after each layer, so
that nonlinearities are those of the network; contexts are not learned. Contexts are drawn from the seed and never stored. A head that all tasks share has a context before it, too; a task's own needs none. Biases and norms, which no context reaches, are kept
for each task: vectors beside the matrices that all tasks share. Layers of other kinds than linear ones and 2-d convolutions are refused.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clnp import seeds
from clnp.errors import ConfigError
from clnp.methods.guards import OwnTensors, key
from clnp.methods.shared import Shared

if TYPE_CHECKING:
    from collections.abc import Callable

    from clnp.config import LearnConfig
    from clnp.inputs import Inputs


LAYERS = (nn.Linear, nn.Conv2d)
"""What has contexts."""


class Contexts(OwnTensors):
    """Change the input of each layer as the task's context says.

    Args:
        kind: "binary", "complex" or "rotation".
        seed: of the contexts.
        shared_head: all tasks have the same head.
    """

    def __init__(self, kind: str, seed: int, *, shared_head: bool = False) -> None:
        super().__init__()
        self.kind, self.seed, self.shared_head = kind, seed, shared_head
        self.imaginary = nn.ParameterDict()
        self._index = 0
        self._drawn: dict[tuple[str, int], Tensor] = {}
        self._hooked = False
        self._input: dict[str, Tensor] = {}

    def owned(self, trunk: nn.Module) -> dict[str, Tensor]:
        """Return statistics and vectors, biases and the weights of norms, which no context reaches: later tasks train them on."""
        return {**super().owned(trunk), **{name: parameter for name, parameter in trunk.named_parameters() if parameter.dim() <= 1}}

    @property
    def facts(self) -> dict[str, Any]:
        """What the contexts are drawn from: they are never stored."""
        return {"contexts": self.kind, "seed": self.seed, **({"shared_head": True} if self.shared_head else {})}

    def check(self, trunk: nn.Module) -> None:
        """Check that every layer with weights has contexts.

        Raises:
            ConfigError: a layer has weights that no context would reach.
        """
        for name, module in trunk.named_modules():
            if not isinstance(module, LAYERS) and any(parameter.dim() > 1 for parameter in module.parameters(recurse=False)):
                raise ConfigError(
                    f"cannot learn by superposition: it has contexts for {' and '.join(kind.__name__ for kind in LAYERS)} layers, "
                    f"and layer '{name}' is {type(module).__name__}. Choose another network or method."
                )

    def begin_(self, trunk: nn.Module, index: int) -> None:
        """Watch every layer of the trunk, and make room for the task's vectors."""
        super().begin_(trunk, index)
        if self._hooked:
            return
        self._hooked = True
        for name, module in trunk.named_modules():
            if not isinstance(module, LAYERS):
                continue
            if self.kind == "complex":
                generator = seeds.generator(self.seed, "imaginary", name)
                bound = 1 / module.weight[0].numel() ** 0.5
                values = (torch.rand(module.weight.shape, generator=generator) * 2 - 1) * bound
                self.imaginary[key(name)] = nn.Parameter(values.to(module.weight.device))
            module.register_forward_pre_hook(partial(self._before, name))
            module.register_forward_hook(partial(self._after, name))

    def context(self, x: Inputs, index: int) -> Inputs:
        """Take a note of whose turn it is."""
        self._index = index
        return x

    def n_read(self, n_features: int) -> int:
        """Return how many numbers a shared head reads: in the complex form real and imaginary ones."""
        return 2 * n_features if self.shared_head and self.kind == "complex" else n_features

    def features(self, features: Tensor) -> Tensor:
        """Change what a shared head reads, as it changes the input of each layer."""
        if not self.shared_head:
            return features
        real, imaginary = self._turned("head", features, -1)
        return real if imaginary is None else torch.cat([real, imaginary], 1)  # the head's weights hold Re(W) and -Im(W) side by side

    def drawn(self, name: str, n: int) -> Tensor:
        """Return the context of the present task for a layer that reads n channels: (n,), or (n, n) for a rotation."""
        place = (name, self._index)
        if place not in self._drawn:
            generator = seeds.generator(self.seed, "task", self._index, "context", name)
            if self.kind == "binary":
                drawn = torch.randint(0, 2, (n,), generator=generator) * 2.0 - 1
            elif self.kind == "complex":
                drawn = torch.rand(n, generator=generator) * 2 * torch.pi
            else:
                q, r = torch.linalg.qr(torch.randn(n, n, generator=generator))
                drawn = q * r.diagonal().sign()  # uniform over all rotations and reflections
            self._drawn = {old: value for old, value in self._drawn.items() if old[1] == self._index} | {place: drawn}
        return self._drawn[place]

    def _turned(self, name: str, x: Tensor, dim: int) -> tuple[Tensor, Tensor | None]:
        """Return what a layer reads through the task's context: its real part, and the imaginary one of the complex form."""
        context = self.drawn(name, x.shape[dim]).to(x)
        shape = [1, -1, 1, 1] if dim == 1 else [-1]
        if self.kind == "rotation":
            return torch.einsum("nchw,dc->ndhw", x, context) if dim == 1 else x @ context.T, None
        if self.kind == "complex":
            return x * context.cos().view(shape), x * context.sin().view(shape)
        return x * context.view(shape), None

    def _before(self, name: str, module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        real, imaginary = self._turned(name, inputs[0], 1 if isinstance(module, nn.Conv2d) else -1)
        if imaginary is not None:
            self._input[name] = imaginary
        return (real,)

    def _after(self, name: str, module: Any, _inputs: Any, out: Tensor) -> Tensor:
        if self.kind != "complex":
            return out
        x, weight = self._input.pop(name), self.imaginary[key(name)]
        if isinstance(module, nn.Conv2d):
            return out - module._conv_forward(x, weight, None)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # whatever its padding
        return out - F.linear(x, weight)


def superposition(make_trunk: Callable[[], nn.Module], example: Inputs, config: LearnConfig, seed: int) -> Shared:
    """Parameter superposition (Cheung et al. 2019): many networks in the same weights, told apart by random contexts (--set contexts)."""
    return Shared(make_trunk, example, config, seed, Contexts(config.contexts, seed, shared_head=config.head == "single"))
