"""The heads: where a task's head starts, and which of its columns are the task's own.

With `head="multi"` each task has output rows of its own. With `head="single"` there is one row per class for all tasks, whose
columns belong to the task that claimed the unit they read: a task's head is the sum of what all tasks up to it gave.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clnp.allocation import FREE, Allocation
from clnp.emit import positions, with_everyone
from clnp.errors import TaskError
from clnp.split import Head

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clnp.config import LearnConfig
    from clnp.records import TaskRecord
    from clnp.wiring import Wiring


def whole_head(records: Sequence[TaskRecord]) -> tuple[Tensor, Tensor]:
    """Return the head of the last of some tasks at the trunk's full width: weight (classes, F), bias (classes,).

    Args:
        records: of the task and all before it, oldest first.
    """
    *earlier, own = records
    weight = own.weight.clone()
    if own.head == "single":
        weight += _shared_columns(earlier, weight)
    return weight, own.bias.clone()


def new_head(
    wiring: Wiring, allocation: Allocation, records: Sequence[TaskRecord], n_classes: int, config: LearnConfig, generator: torch.Generator
) -> Head:
    """Make the head that a new task starts from: small random columns, of a single head those of earlier tasks too.

    Args:
        wiring: of the network.
        allocation: before the task.
        records: of the earlier tasks, oldest first.
        n_classes: of the new task.
        config: its kind of head, and its device.
        generator: draws the random columns.
    """
    n_features = len(wiring.features)
    weight = torch.randn(n_classes, n_features, generator=generator, dtype=torch.float32) / n_features**0.5
    bias = torch.zeros(n_classes, dtype=torch.float32)
    if config.head == "single":
        owned = positions(with_everyone(wiring.join(allocation.owner) != FREE), wiring.features)
        weight[:, owned] = _shared_columns(records, weight)[:, owned]
        for record in records:
            if record.head == "single":
                n = min(n_classes, record.n_classes)
                bias[:n] = record.bias[:n]
    return Head(weight.to(config.device), bias.to(config.device), config.head == "single")


def own_columns(wiring: Wiring, allocation: Allocation, task: str, head: Head) -> Tensor:
    """Return a trained head (classes, F) with the columns of its task alone, the rest 0.

    They are those of units that the task needs; with a single head those of units that it claimed.
    """
    if head.shared:
        member = with_everyone(wiring.join(allocation.owner) == allocation.number(task), everyone=False)
    else:
        member = with_everyone(wiring.join(allocation.needed[task]))
    own = positions(member, wiring.features)
    weight = torch.zeros_like(head.weight, device="cpu")
    weight[:, own] = head.weight.detach().cpu()[:, own]
    return weight


def _shared_columns(records: Sequence[TaskRecord], like: Tensor) -> Tensor:
    """Sum, in task order, the columns that tasks gave to the single head, in the size of `like` (classes, F)."""
    total = torch.zeros_like(like)
    for record in records:
        if record.head == "single":
            n = min(len(like), record.n_classes)
            total[:n] += record.weight[:n]
    return total


def original(head: tuple[Tensor, Tensor] | None, path: str | None, tasks: Sequence[str], doing: str) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the head that a network came with, of which the whole network can be adopted.

    Args:
        head: the two, if the network is still as it came.
        path: of the layer, None of a learner that was made without.
        tasks: that are learned.
        doing: "cannot adopt 'a'", for the message.

    Raises:
        TaskError: the network has no head, is no longer as it came, or has learned a task.
    """
    if tasks:
        raise TaskError(f"{doing}: adopting comes first, but task '{tasks[0]}' is learned already.")
    if head is not None:
        return head
    if path is None:
        raise TaskError(f"{doing}: the network's own head is needed. Make the learner with head='path.of.the.layer'.")
    raise TaskError(
        f"{doing}: the network is no longer as it was given, since a task was undone, it was widened, or the learner was loaded "
        f"(weights that no task claimed are not stored). Make a new learner of it."
    )
