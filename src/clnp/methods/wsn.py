r"""Winning subnetworks: each task finds the weights that it reads, old ones too, and trains those of them that are still its own.

Every weight has a score. A task reads the `share` c of each layer's weights with the largest scores,

.. math:: m_i = [\, s_i \text{ is among the } c \text{ largest of its layer} \,], \qquad \theta^{(t)} = m \odot \theta,

scores are trained through the mask as if it were not there (straight through, :math:`\partial m_i / \partial s_i := 1`), weights only where no earlier task reads them:
:math:`\Delta\theta \leftarrow \Delta\theta \odot (1 - M_{t-1})` with :math:`M_{t-1} = m_1 \lor \dots \lor m_{t-1}`. The mask of each task is kept.

Reference: Kang et al. 2022, equations 3 to 5. Departures: scores begin anew with each task, as in the authors' runs on CIFAR; those on permuted MNIST go on from the last task's. They are ranked
as they are, where the authors' code ranks their size. Biases and the weights of norms are trained by the first task alone; each task keeps its own running statistics of batch norms, where the authors'
norms use those of the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from clnp import seeds
from clnp.methods.guards import GuardedNetwork, Holding, key, weights_of
from clnp.methods.shared import Shared

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from clnp.config import LearnConfig
    from clnp.inputs import Inputs
    from clnp.sources import TensorExamples


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """Return the k-th smallest value, counted from 1. On a CPU numpy finds it, in a tenth of torch's time.

    >>> kth_smallest(torch.tensor([3.0, 1.0, 2.0]), 2)
    tensor(2.)
    """
    if values.device.type == "cpu":
        return torch.tensor(np.partition(values.detach().numpy().ravel(), k - 1)[k - 1])
    return values.flatten().kthvalue(k).values


class TopShare(torch.autograd.Function):
    """Return 1 where a score is among the largest, else 0; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, share: float) -> Tensor:
        """Compare with the threshold."""
        del ctx
        n_left_out = scores.numel() - max(1, round(share * scores.numel()))
        if not n_left_out:
            return torch.ones_like(scores)
        return (scores > kth_smallest(scores, n_left_out)).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient on."""
        del ctx
        return gradients[0], None


class Subnetworks(Holding):
    """Let each task choose the weights that it reads.

    Args:
        share: of each layer's weights.
        seed: of the scores.
    """

    title = "WSN"

    def __init__(self, share: float, seed: int) -> None:
        super().__init__()
        self.share, self.seed = share, seed
        self.scores = nn.ParameterDict()
        self.masks = nn.ModuleList()
        self._index = 0

    @torch.no_grad()
    def begin_(self, trunk: nn.Module, index: int) -> None:
        """Draw new scores, and hold the weights that earlier tasks read."""
        self._index = index
        super().begin_(trunk, index)
        if index == 0:
            self.masks = nn.ModuleList()
        self.masks.append(nn.Module())
        self._held, weights = {}, weights_of(trunk)
        for place, (name, parameter) in enumerate(trunk.named_parameters()):
            if name not in weights:
                self.hold(name, parameter, torch.full_like(parameter, index == 0, dtype=torch.bool))
                continue
            generator = seeds.generator(self.seed, "task", index, "scores", place)
            scores = torch.empty(parameter.shape)
            nn.init.kaiming_uniform_(scores, a=5**0.5, generator=generator)
            self.scores[key(name)] = nn.Parameter(scores.to(parameter.device))
            self.masks[index].register_buffer(key(name), torch.zeros_like(parameter, dtype=torch.bool))
            read = torch.zeros_like(parameter, dtype=torch.bool)
            for earlier in list(self.masks)[:index]:
                read |= getattr(earlier, key(name))
            self.hold(name, parameter, ~read)

    def effective(self, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weights of the subnetwork."""
        return {
            name: parameter * TopShare.apply(self.scores[key(name)], self.share) if key(name) in self.scores else parameter
            for name, parameter in parameters.items()
        }

    @torch.no_grad()
    def learned_(self, network: GuardedNetwork, train: TensorExamples, index: int, *place: int | str) -> None:
        """Keep the mask of the task."""
        super().learned_(network, train, index, *place)
        for name, scores in self.scores.items():
            getattr(self.masks[index], name).copy_(TopShare.apply(scores, self.share) > 0)

    def view(self, parameters: Mapping[str, Tensor], index: int) -> Mapping[str, Tensor]:
        """Return the weights that a task reads; the others are zero."""
        masks = self.masks[index]
        return {
            name: parameter * getattr(masks, key(name)) if hasattr(masks, key(name)) else parameter
            for name, parameter in super().view(parameters, index).items()
        }


def wsn(make_trunk: Callable[[], nn.Module], example: Inputs, config: LearnConfig, seed: int) -> Shared:
    """Winning subnetworks (Kang et al. 2022): each task learns which share of the weights it reads (--set share)."""
    return Shared(make_trunk, example, config, seed, Subnetworks(config.share if config.share is not None else 0.3, seed))
