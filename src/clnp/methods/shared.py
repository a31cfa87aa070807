"""One dense network that all tasks share, and the guard that protects the earlier ones: the form of most methods that are compared with."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clnp.allocation import check_known
from clnp.errors import ConfigError, StoreError, TaskError
from clnp.inputs import forms, parts, to_device
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
from clnp.methods.guards import Guard, GuardedNetwork, restart_averages_
from clnp.training import batch_size_of, check_device, steps_per_epoch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from clnp.config import LearnConfig
    from clnp.data.task import Task
    from clnp.inputs import Inputs
    from clnp.sources import TensorExamples


class Shared:
    """A dense network, a head for each task (or one for all), and a guard.

    With `head="multi"` each task has its own output rows, which no later task touches; with "single" all tasks share one row per class.

    Args:
        make_trunk: builds the network without a head.
        example: a batch of its input.
        config: the settings.
        seed: of every draw.
        guard: protects earlier tasks.

    Raises:
        ConfigError: the guard protects a network and not a head that all tasks share, or not this network; or there is no such device.
    """

    def __init__(self, make_trunk: Callable[[], nn.Module], example: Inputs, config: LearnConfig, seed: int, guard: Guard) -> None:
        if config.head == "single" and not guard.shields_heads:
            raise ConfigError(
                "cannot learn with one head for all tasks: this method protects the network, and each new task would change the head of the earlier ones. "
                "Use head='multi' (--set head=multi)."
            )
        check_device(config.device)
        self.config, self.seed = config, seed
        trunk = make_trunk()
        guard.check(trunk)
        self.trunk, self._like = trunk.to(config.device), forms(example)
        self.n_features = guard.n_read(count_features(self.trunk, to_device(example, config.device)))
        self.heads = nn.ModuleList()
        self.n_classes: dict[str, int] = {}
        self.guard = guard.to(config.device)
        self._view: tuple[int, Mapping[str, Tensor] | None] | None = None  # of the task that was asked about last
        self._half: str | None = None  # the task whose learning was not finished

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks learned, in order."""
        return tuple(self.n_classes)

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
        """Train everything that the guard leaves free on one task; if it is not finished, nothing is used any more."""
        self._check_ready(f"cannot learn task '{task_name}'")
        examples, held_out = checked(task_name, self.tasks, train, validation, n_classes, self._like)
        index, self._view, self._half = len(self.n_classes), None, task_name
        head = self._head(index, n_classes)
        restart_averages_(self.trunk)
        fit = partial(fit_dense_, config=self.config, seed=self.seed, index=index, task=task_name, progress=progress, work=work)
        accuracy = self._train(index, head, n_classes, examples, held_out, fit)
        self.n_classes[task_name], self._half = n_classes, None
        return {"accuracy": accuracy}

    def _train(
        self,
        index: int,
        head: nn.Linear,
        n_classes: int,
        examples: TensorExamples,
        held_out: TensorExamples,
        fit: Callable[..., float],
    ) -> float:
        """Train on task number `index` and return its validation accuracy: `fit` is `fit_dense_`, which needs a network and examples yet."""
        network = GuardedNetwork(self.trunk, head.to(self.config.device), self.guard, index, n_classes)
        self.guard.steps_per_epoch = steps_per_epoch(examples, batch_size_of(examples, self.config))
        self.guard.n_epochs = self.config.total_epochs
        self.guard.begin_(self.trunk, index)
        stages = self.guard.stages(self.config)
        accuracy = fit(network, examples, held_out, stages=stages, between=partial(self.guard.trained_, self.trunk))
        self.guard.learned_(network, examples, index, self.seed, "task", index, "guard")
        return accuracy

    def _check_ready(self, doing: str) -> None:
        """Check that a task can be learned.

        Raises:
            TaskError: one was left half learned.
        """
        self._check_whole(doing)

    def _check_whole(self, doing: str) -> None:
        """Check that no task was left half learned: all share the weights that it has moved.

        Raises:
            TaskError: one was.
        """
        if self._half is not None:
            raise TaskError(
                f"{doing}: learning task '{self._half}' was not finished, and has changed the network that all tasks share. Make the method anew and load what was saved last."
            )

    def _head(self, index: int, n_classes: int) -> nn.Linear:
        """Return the head to train: a new one, or the shared one with rows for classes that are new."""
        if self.config.head == "multi" or not self.heads:
            head = make_head(self.n_features, n_classes, self.seed, "task", index)
            self.heads.append(head)
            return head
        shared = self.heads[0]
        assert isinstance(shared, nn.Linear)
        if n_classes > shared.out_features:
            wider = make_head(self.n_features, n_classes, self.seed, "task", index).to(shared.weight.device)
            with torch.no_grad():
                wider.weight[: shared.out_features], wider.bias[: shared.out_features] = shared.weight, shared.bias
            self.heads[0] = shared = wider
        return shared

    @torch.no_grad()
    def predict(self, x: Inputs, task: str) -> Tensor:
        """Return the logits of a task from the network as it is now, as the guard lets the task see it."""
        self._check_whole(f"cannot predict task '{task}'")
        check_known(task, self.tasks)
        index = self.tasks.index(task)
        head = self.heads[index if self.config.head == "multi" else 0]
        seen = parts(self.guard.context(to_device(x, self.config.device), index))
        self.trunk.eval()
        if self._view is None or self._view[0] != index:
            self._view = index, self.guard.view(dict(self.trunk.named_parameters()), index)
        view = self._view[1]
        features = self.trunk(*seen) if view is None else functional_call(self.trunk, dict(view), seen)
        return head(self.guard.features(features))[:, : self.n_classes[task]]

    def _whole(self) -> nn.ModuleDict:
        return nn.ModuleDict({"trunk": self.trunk, "heads": self.heads, "guard": self.guard})

    def save(self, directory: Path) -> None:
        """Write the network beside the last one, then make it count, then remove the last one."""
        self._check_whole(f"cannot save to '{directory}'")
        directory.mkdir(parents=True, exist_ok=True)
        file = _file(len(self.n_classes))
        sha256 = write_tensors(directory / file, self._whole().state_dict())
        write_state(directory, {"sha256": {file: sha256}, "n_classes": self.n_classes, "guard": self.guard.facts})
        for old in directory.glob("network-*.safetensors"):
            if old.name != file:
                old.unlink()

    def load(self, directory: Path) -> None:
        """Read the network that counts.

        Raises:
            StoreError: it was guarded otherwise, and would be seen in another way.
            DamageError: a file is missing or damaged.
        """
        self._view = None
        state = read_state(directory)
        if not state["n_classes"]:
            return
        there = state.get("guard", self.guard.facts)
        if there != self.guard.facts:
            raise StoreError(
                f"cannot load '{directory}': it was saved with {there}, and this method was made with {self.guard.facts}. Make it with the same."
            )
        widths = list(state["n_classes"].values()) if self.config.head == "multi" else [max(state["n_classes"].values())]
        self.heads = nn.ModuleList(nn.Linear(self.n_features, width) for width in widths).to(self.config.device)
        for index in range(len(state["n_classes"])):
            self.guard.begin_(self.trunk, index)  # it makes the buffers that are filled now
        path = directory / _file(len(state["n_classes"]))
        load_into_(self._whole(), read_tensors(path, state), path)
        self.n_classes, self._half = state["n_classes"], None

    def capacity(self) -> None:
        """Return None: no task owns units."""

    def forecast(self) -> None:
        """Return None: what fits depends on what may be forgotten."""


def _file(n_tasks: int) -> str:
    """Return the name of the file that holds the network after so many tasks."""
    return f"network-{n_tasks}.safetensors"
