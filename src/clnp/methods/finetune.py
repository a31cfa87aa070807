"""Plain fine-tuning: what happens without any protection, and what one dense network costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clnp.inputs import parts, to_device
from clnp.methods.dense import (
    DenseNetwork,
    count_features,
    fit_dense_,
    load_into_,
    make_head,
    read_state,
    read_tensors,
    write_state,
    write_tensors,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from clnp.config import LearnConfig
    from clnp.inputs import Inputs


class Finetune:
    """The whole dense network is trained on each task in turn, with nothing to protect the earlier ones (the lower bound).

    With `head="multi"` each task has its own output rows; with "single" all tasks share one row per class.
    """

    def __init__(self, make_trunk: Callable[[], nn.Module], example: Inputs, config: LearnConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.trunk = make_trunk().to(config.device)
        self.n_features = count_features(self.trunk, to_device(example, config.device))
        self.heads = nn.ModuleList()
        self.n_classes: dict[str, int] = {}

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks learned, in order."""
        return tuple(self.n_classes)

    def learn(
        self,
        task_name: str,
        train: tuple[Inputs, Tensor],
        validation: tuple[Inputs, Tensor],
        n_classes: int,
        progress: Callable[[dict[str, Any]], None],
        work: Path | None = None,
    ) -> dict[str, Any]:
        """Train everything on one task."""
        index = len(self.n_classes)
        head = self._head(index, n_classes)
        network = DenseNetwork(self.trunk, head)
        accuracy = fit_dense_(
            network, train, validation, self.config, seed=self.seed, index=index, task=task_name, progress=progress, work=work
        )
        self.n_classes[task_name] = n_classes
        return {"accuracy": accuracy}

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
        """Return the logits of a task from the network as it is now."""
        head = self.heads[self.tasks.index(task) if self.config.head == "multi" else 0]
        return head(self.trunk.eval()(*parts(to_device(x, self.config.device))))[:, : self.n_classes[task]]

    def save(self, directory: Path) -> None:
        """Write the network beside the last one, then make it count, then remove the last one."""
        directory.mkdir(parents=True, exist_ok=True)
        file = f"network-{len(self.n_classes)}.safetensors"
        both = nn.ModuleDict({"trunk": self.trunk, "heads": self.heads})
        sha256 = write_tensors(directory / file, both.state_dict())
        write_state(directory, {"file": file, "sha256": {file: sha256}, "n_classes": self.n_classes})
        for old in directory.glob("network-*.safetensors"):
            if old.name != file:
                old.unlink()

    def load(self, directory: Path) -> None:
        """Read the network that counts."""
        state = read_state(directory)
        if not state["n_classes"]:
            return
        widths = list(state["n_classes"].values()) if self.config.head == "multi" else [max(state["n_classes"].values())]
        self.heads = nn.ModuleList(nn.Linear(self.n_features, width) for width in widths).to(self.config.device)
        path = directory / state["file"]
        load_into_(nn.ModuleDict({"trunk": self.trunk, "heads": self.heads}), read_tensors(path, state["sha256"][path.name]), path)
        self.n_classes = state["n_classes"]

    def capacity(self) -> None:
        """Return None: no task owns units."""

    def forecast(self) -> None:
        """Return None: there is always room, at the cost of what was learned."""
