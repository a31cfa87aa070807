r"""All tasks at once: what one network could do if no data were ever lost (the upper bound).

After task t it minimises the mean over all examples so far, :math:`\frac{1}{\sum_{k \le t} n_k} \sum_{k \le t} \sum_{(x, y) \in D_k} -\log p_\theta(y|x, k)`, where an
example counts against the classes of its own task alone. An epoch of task t goes through the data of all tasks up to t, so that the last task has as many passes as in the other methods, and earlier ones more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clnp.dropout import CheapDropout
from clnp.errors import TaskError
from clnp.inputs import join, parts
from clnp.methods.guards import Guard
from clnp.methods.shared import Shared
from clnp.sources import TensorExamples
from clnp.training import IMPOSSIBLE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clnp.config import LearnConfig
    from clnp.data.task import Task
    from clnp.inputs import Inputs


class ManyHeads(nn.Module):
    """A trunk and the heads of all tasks: (x, task numbers) -> logits of all classes, those that the task does not have far below.

    Args:
        trunk: the network without heads.
        heads: one for each task, or one for all.
        n_classes: of each task.
    """

    def __init__(self, trunk: nn.Module, heads: Sequence[nn.Linear], n_classes: Sequence[int]) -> None:
        super().__init__()
        self.trunk, self.heads = trunk, nn.ModuleList(heads)
        self.starts = [0] * len(n_classes) if len(heads) == 1 else [sum(n_classes[:task]) for task in range(len(n_classes))]
        """The first class of each task."""
        self.out_features = sum(head.out_features for head in heads)
        classes = torch.arange(self.out_features)
        ends = zip(self.starts, n_classes, strict=True)
        self.possible = torch.stack([(classes >= start) & (classes < start + n) for start, n in ends])

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
        return logits.masked_fill(~self.possible.to(logits.device)[tasks], IMPOSSIBLE)


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

    def _check_ready(self, doing: str) -> None:
        """Check that the data of all tasks are here.

        Raises:
            TaskError: earlier tasks were loaded, and nobody has given their data again.
        """
        super()._check_ready(doing)
        if len(self._seen) < len(self.tasks):
            raise TaskError(
                f"{doing}: all tasks are learned together, and the data of those that were loaded are missing. Give them to revisit() first."
            )

    def _train(
        self,
        index: int,
        head: nn.Linear,
        n_classes: int,
        examples: TensorExamples,
        held_out: TensorExamples,
        fit: Callable[..., float],
    ) -> float:
        del head  # one of all
        seen = [*self._seen[:index], (examples, held_out)]
        heads = [head for head in self.heads if isinstance(head, nn.Linear)]
        network = ManyHeads(self.trunk, heads, [*self.n_classes.values(), n_classes])

        def all_of(part: int, tasks: Sequence[int]) -> TensorExamples:
            numbers = torch.cat([torch.full((len(seen[task][part]),), task) for task in tasks])
            x = join([seen[task][part].x for task in tasks])
            y = torch.cat([seen[task][part].y + network.starts[task] for task in tasks])
            return TensorExamples((*parts(x), numbers), y)

        # The accuracy is that of this task, as in the other methods.
        accuracy = fit(network.to(self.config.device), all_of(0, range(len(seen))), all_of(1, [index]))
        self._seen = seen
        return accuracy
