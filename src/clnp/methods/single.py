r"""Each task alone: what the tasks are worth without each other, at the price of one network per task.

Task t minimises its own loss, :math:`L_t(\theta_t) = E_{(x, y) \sim D_t} [-\log p_{\theta_t}(y|x)]`, in weights of its own, and all networks begin with the same
ones. It is the row "single-task SGD" of Golkar, Kagan & Cho 2019, and departs from it where the training of all methods does: Adam by default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clnp.allocation import check_known
from clnp.inputs import forms, to_device
from clnp.methods.dense import (
    checked,
    count_features,
    fit_dense_,
    load_into_,
    make_head,
    read_state,
    read_tensors,
    write_state,
    write_tensors,
)
from clnp.methods.guards import Guard, GuardedNetwork
from clnp.training import check_device

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from clnp.config import LearnConfig
    from clnp.data.task import Task
    from clnp.inputs import Inputs


class Single:
    """Each task has a fresh dense network of its own (no transfer, no forgetting, no shared room)."""

    def __init__(self, make_trunk: Callable[[], nn.Module], example: Inputs, config: LearnConfig, seed: int) -> None:
        check_device(config.device)
        self.make_trunk, self.config, self.seed = make_trunk, config, seed
        self.n_features, self._like = count_features(make_trunk(), example), forms(example)
        self.networks: dict[str, GuardedNetwork] = {}
        self._sha256: dict[str, str] = {}  # of the files that were written or read: of them alone it is known what they hold

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks learned, in order."""
        return tuple(self.networks)

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
        """Train a new network on one task."""
        examples, held_out = checked(task_name, self.tasks, train, validation, n_classes, self._like)
        index = len(self.networks)
        network = GuardedNetwork(self.make_trunk(), make_head(self.n_features, n_classes, self.seed, "task", index), Guard(), index)
        accuracy = fit_dense_(
            network, examples, held_out, self.config, seed=self.seed, index=index, task=task_name, progress=progress, work=work
        )
        self.networks[task_name] = network
        return {"accuracy": accuracy}

    @torch.no_grad()
    def predict(self, x: Inputs, task: str) -> Tensor:
        """Return the logits of a task from its own network."""
        check_known(task, self.networks)
        return self.networks[task].eval()(to_device(x, self.config.device))

    def save(self, directory: Path) -> None:
        """Write the networks that are not there yet, one file each, then make them count."""
        directory.mkdir(parents=True, exist_ok=True)
        there = read_state(directory)["sha256"]
        for index, network in enumerate(self.networks.values()):
            path = _file(directory, index)
            if path.name not in self._sha256 or there.get(path.name) != self._sha256[path.name]:
                self._sha256[path.name] = write_tensors(path, network.state_dict())
        n_classes = {task: network.head.out_features for task, network in self.networks.items()}
        write_state(directory, {"sha256": self._sha256, "n_classes": n_classes})

    def load(self, directory: Path) -> None:
        """Read all networks."""
        state = read_state(directory)
        self.networks, self._sha256 = {}, state["sha256"]
        for index, (task, n_classes) in enumerate(state["n_classes"].items()):
            path = _file(directory, index)
            network = GuardedNetwork(self.make_trunk(), nn.Linear(self.n_features, n_classes), Guard(), index).to(self.config.device)
            load_into_(network, read_tensors(path, state), path)
            self.networks[task] = network

    def capacity(self) -> None:
        """Return None: no task owns units."""

    def forecast(self) -> None:
        """Return None: each further task takes a further network."""


def _file(directory: Path, index: int) -> Path:
    """Return where a task's network lies: names of tasks are data, never paths."""
    return directory / f"network-{index}.safetensors"
