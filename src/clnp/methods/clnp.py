"""Continual learning via neural pruning: the method of this library, as experiments run it.

A weight from unit v to unit u is frozen where u is claimed and the task that owns it needs v, zero for ever where u is claimed and that task does not
need v, and trained where u is free (`clnp.isolation`); what is pruned and how is `clnp.pruning`, the whole in docs/method.md.

Reference: Golkar, Kagan & Cho 2019. Where we depart from it stands on that page, too.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from clnp.describe import is_there
from clnp.learner import Learner
from clnp.room import check_pool
from clnp.training import check_device

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from clnp.config import LearnConfig
    from clnp.data.task import Task
    from clnp.inputs import Inputs


class Clnp:
    """Each task in units that no earlier task needs; nothing learned ever changes (this library's method)."""

    def __init__(self, make_trunk: Callable[[], nn.Module], example: Inputs, config: LearnConfig, seed: int) -> None:
        check_device(config.device)
        self.make_trunk, self.config = make_trunk, config
        self.learner = Learner(make_trunk(), example, seed=seed)
        check_pool(self.learner.wiring, config, "cannot run")  # before a run writes anything

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks learned, in order."""
        return self.learner.tasks

    def revisit(self, tasks: Sequence[Task]) -> None:
        """Look at nothing: old data are gone."""

    def learn(
        self,
        task_name: str,
        train: tuple[Inputs, Tensor],
        validation: tuple[Inputs, Tensor],
        n_classes: int,
        progress: Callable[[dict[str, Any]], None],
        work: Path | None = None,
    ) -> dict[str, Any]:
        """Learn one task; the event tells what it claimed and what the margin cost."""
        result = self.learner.learn(task_name, train, validation, n_classes=n_classes, config=self.config, progress=progress, work=work)
        event = asdict(result)
        # The experiment times every method in the same way and knows the name.
        for known in ("task", "n_classes", "seconds"):
            del event[known]
        return event | {"notices": list(result.notices)}

    def predict(self, x: Inputs, task: str) -> Tensor:
        """Return the logits of a task, from the units that it needs."""
        return self.learner.predict(x, task=task)

    def save(self, directory: Path) -> None:
        """Write the learner."""
        self.learner.save(directory)

    def load(self, directory: Path) -> None:
        """Read the learner. Its description is written last: without it the first save was cut short, and nothing is learned."""
        if is_there(directory):
            self.learner = Learner.load(directory, self.make_trunk())

    def capacity(self) -> dict[str, dict[str, Any]] | None:
        """Return the units of each group."""
        return {group: asdict(units) for group, units in self.learner.capacity().items()}

    def forecast(self) -> dict[str, Any] | None:
        """Return how many more tasks like the last ones fit."""
        return asdict(self.learner.forecast())
