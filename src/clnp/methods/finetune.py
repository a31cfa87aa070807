r"""Plain fine-tuning: what happens without any protection, and what one dense network costs.

Task t minimises its own loss alone, :math:`L_t(\theta) = E_{(x, y) \sim D_t} [-\log p_\theta(y|x)]`, and begins where task t-1 ended. There is no source, and
nothing to depart from; the training is that of all methods (`clnp.training`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clnp.methods.guards import Guard
from clnp.methods.shared import Shared

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from clnp.config import LearnConfig
    from clnp.inputs import Inputs


def finetune(make_trunk: Callable[[], nn.Module], example: Inputs, config: LearnConfig, seed: int) -> Shared:
    """The whole dense network is trained on each task in turn, with nothing to protect the earlier ones (the lower bound)."""
    return Shared(make_trunk, example, config, seed, Guard())
