"""What is kept and told of tasks: plain records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TaskRecord:
    """What is kept of a committed task beside its units: its head and its outcome.

    Attributes:
        n_classes: how many classes its predictor tells apart.
        head: "multi" (rows of its own) or "single" (rows shared over all tasks).
        weight: head rows (n_classes, F) of a multi head; for a single head the columns that this task added, zero elsewhere.
        bias: (n_classes,), in both forms the whole bias of this task's predictor.
        private: whether later tasks may not read its units.
        width: how often the network had been widened when the task was learned.
    """

    n_classes: int
    head: str
    weight: Tensor
    bias: Tensor
    private: bool
    width: int = 0


@dataclass(frozen=True)
class LearnResult:
    """What one task took and gave. Accuracies are on validation data, fractions.

    Attributes:
        task: its name.
        n_classes: how many classes it has.
        accuracy_unpruned: of the trained network before anything was pruned.
        accuracy: of the committed predictor.
        margin: how much accuracy the task was allowed to give up.
        margin_paid: how much it gave up; negative when it gained.
        claimed: group -> new units.
        reused: group -> units of earlier tasks that it reads.
        free: group -> units left for later tasks.
        seconds: wall time, of a resumed task over all processes.
        notices: what a person should know.
    """

    task: str
    n_classes: int
    accuracy_unpruned: float
    accuracy: float
    margin: float
    margin_paid: float
    claimed: dict[str, int]
    reused: dict[str, int]
    free: dict[str, int]
    seconds: float
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class GroupCapacity:
    """How full one group is: its units, the free ones, and by task those claimed and those reused."""

    n_units: int
    free: int
    claimed: dict[str, int] = field(default_factory=dict[str, int])
    reused: dict[str, int] = field(default_factory=dict[str, int])
