"""Who owns each unit, and which units each task needs: the only state of the method.

Everything else (masks, counts, frozen rows, forecasts) is derived from it. Values never change: committing a task or
undoing one returns a new allocation.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clnp.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

FREE = -1


@dataclass(frozen=True)
class Allocation:
    """Owner and needed units of a network whose groups have fixed numbers of units.

    Attributes:
        tasks: names of the committed tasks, oldest first. A task's number is its place here.
        owner: group -> int64 (n_units,), the number of the task that claimed each unit, or `FREE`.
        needed: task -> group -> bool (n_units,), the units that the task's predictor reads: those it claimed and those
            of earlier tasks that it reuses.

    >>> import torch
    >>> empty = Allocation.empty({"fc": 3})
    >>> one = empty.commit("a", {"fc": torch.tensor([True, False, False])})
    >>> two = one.commit("b", {"fc": torch.tensor([True, True, False])})
    >>> two.owner["fc"].tolist(), two.n_free("fc"), two.n_reused("b", "fc")
    ([0, 1, -1], 1, 1)
    """

    tasks: tuple[str, ...]
    owner: Mapping[str, Tensor]
    needed: Mapping[str, Mapping[str, Tensor]]

    @classmethod
    def empty(cls, n_units: Mapping[str, int]) -> Allocation:
        """Return the allocation of a network in which every unit is free."""
        return cls((), {group: torch.full((n,), FREE) for group, n in n_units.items()}, {})

    def commit(self, task: str, needed: Mapping[str, Tensor]) -> Allocation:
        """Return the allocation after a task: free units that it needs are claimed, owned ones are reused.

        Raises:
            TaskError: the name is taken.
        """
        if task in self.tasks:
            raise TaskError(f"cannot commit task '{task}': a task of that name is learned already. Choose another name.")
        owner = {group: torch.where(needed[group] & (owner == FREE), len(self.tasks), owner) for group, owner in self.owner.items()}
        kept = {group: needed[group].clone() for group in self.owner}
        return Allocation((*self.tasks, task), owner, {**self.needed, task: kept})

    def undo(self, task: str) -> Allocation:
        """Return the allocation without a task: its units are free again, later tasks move up one number.

        Raises:
            TaskError: there is no such task, or later tasks read its units (they are named).
        """
        number = self.number(task)
        readers = self.readers(task)
        if readers:
            raise TaskError(f"cannot undo task '{task}': its units are read by {', '.join(readers)}. Undo those first.")
        owner = {
            group: torch.where(owner == number, FREE, torch.where(owner > number, owner - 1, owner)) for group, owner in self.owner.items()
        }
        return Allocation(
            tuple(name for name in self.tasks if name != task), owner, {name: kept for name, kept in self.needed.items() if name != task}
        )

    def number(self, task: str) -> int:
        """Return a task's place in the order of learning.

        Raises:
            TaskError: there is no such task; the message lists those there are.
        """
        check_known(task, self.tasks)
        return self.tasks.index(task)

    def readers(self, task: str) -> list[str]:
        """Return the other tasks that need units which `task` claimed."""
        number = self.number(task)
        return [
            name
            for name in self.tasks
            if name != task and any(bool((self.needed[name][group] & (owner == number)).any()) for group, owner in self.owner.items())
        ]

    @property
    def n_units(self) -> dict[str, int]:
        """How many units each group has."""
        return {group: len(owner) for group, owner in self.owner.items()}

    def free(self, group: str) -> Tensor:
        """Return which units of a group no task owns: bool (n_units,)."""
        return self.owner[group] == FREE

    def n_free(self, group: str) -> int:
        """Return how many units of a group no task owns."""
        return int(self.free(group).sum())

    def n_claimed(self, task: str, group: str) -> int:
        """Return how many units of a group the task claimed."""
        return int((self.owner[group] == self.number(task)).sum())

    def n_reused(self, task: str, group: str) -> int:
        """Return how many units of earlier tasks in a group the task reads."""
        return int((self.needed[task][group] & (self.owner[group] != self.number(task))).sum())

    def __post_init__(self) -> None:
        """Make the mappings read-only."""
        object.__setattr__(self, "owner", MappingProxyType(dict(self.owner)))
        object.__setattr__(self, "needed", MappingProxyType({task: MappingProxyType(dict(kept)) for task, kept in self.needed.items()}))

    def __reduce__(self) -> tuple[type[Allocation], tuple[object, ...]]:
        """Copy and pickle through plain dictionaries, which a read-only view does not allow."""
        return Allocation, (self.tasks, dict(self.owner), {task: dict(kept) for task, kept in self.needed.items()})


def check_known(task: str, tasks: Collection[str]) -> None:
    """Check that a task was learned.

    Raises:
        TaskError: it was not; the message lists those that were.
    """
    if task not in tasks:
        raise TaskError(f"no task '{task}' is learned: expected one of {', '.join(map(repr, tasks)) or '(none yet)'}.")
