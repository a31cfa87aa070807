"""All tasks at once: what one network could do if no data were ever lost (the upper bound).

An epoch of task t goes through the data of all tasks up to t, so that the last task has as many passes as in the other methods, and earlier ones more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clnp.dropout import CheapDropout
from clnp.inputs import join, parts
from clnp.methods.guards import Guard
from clnp.methods.shared import Shared
from clnp.sources import TensorExamples

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clnp.config import LearnConfig
    from clnp.data.task import Task
    from clnp.inputs import Inputs

FAR = -1e9
"""The logit of a class of another task."""


class ManyHeads(nn.Module):
    """A trunk and the heads of all tasks: (x, task numbers) -> logits of all classes, those of other tasks far below."""

    def __init__(self, trunk: nn.Module, heads: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.trunk, self.heads = trunk, nn.ModuleList(heads)
        self.task_of = torch.cat([torch.full((head.out_features,), task) for task, head in enumerate(heads)])
        self.out_features = len(self.task_of)

    @property
    def head_bias(self) -> Tensor:
        """A head's bias: it tells `fit` the device."""
        return self.heads[0].get_parameter("bias")

    def weights(self) -> list[nn.Parameter]:
        """Return the weights under the L1 penalty: none."""
        return []

    def forward(self, x: Inputs, meets: None = None) -> Tensor:
        """Return logits (B, all classes)."""
        del meets
        *seen, tasks = parts(x)
        with CheapDropout():
            features = self.trunk(*seen)
        logits = torch.cat([head(features) for head in self.heads], 1)
        return logits.masked_fill(self.task_of.to(logits.device) != tasks[:, None], FAR)


class Joint(Shared):
    """One dense network is trained on the data of all tasks so far, which the others do not have (the upper bound).

    Each epoch has the examples of all tasks so far: with every task it costs more.
    """

    def __init__(self, make_trunk: Callable[[], nn.Module], example: Inputs, config: LearnConfig, seed: int) -> None:
        super().__init__(make_trunk, example, config, seed, Guard())
        self._seen: list[tuple[TensorExamples, TensorExamples]] = []

    def revisit(self, tasks: Sequence[Task]) -> None:
        """Take the data of the earlier tasks: a run that is continued does not have them."""
        self._seen = [(TensorExamples(*task.train), TensorExamples(*task.validation)) for task in tasks]

    def _train(self, index: int, head: nn.Linear, examples: TensorExamples, held_out: TensorExamples, fit: Callable[..., float]) -> float:
        """Train on this task and all before it."""
        del head  # one of all
        seen = [*self._seen[:index], (examples, held_out)]
        is_single = self.config.head == "single"
        heads = [head for head in self.heads if isinstance(head, nn.Linear)]
        starts = [0, *torch.tensor([head.out_features for head in heads]).cumsum(0).tolist()]

        def all_of(part: int, tasks: Sequence[int]) -> TensorExamples:
            numbers = torch.cat([torch.full((len(seen[task][part]),), 0 if is_single else task) for task in tasks])
            x = join([seen[task][part].x for task in tasks])
            y = torch.cat([seen[task][part].y + (0 if is_single else starts[task]) for task in tasks])
            return TensorExamples((*parts(x), numbers), y)

        # The accuracy is that of this task, as in the other methods.
        accuracy = fit(ManyHeads(self.trunk, heads).to(self.config.device), all_of(0, range(len(seen))), all_of(1, [index]))
        self._seen = seen
        return accuracy
