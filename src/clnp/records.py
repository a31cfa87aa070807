"""What is kept and told of tasks: plain records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True)
class Receipt:
    """What a predictor answered to the probe, logits (n, classes), and under which settings; see `clnp.receipts`."""

    logits: Tensor
    settings: Mapping[str, str | int]


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
        receipt: what its predictor answered to the probe when it was committed.
        outcome: what it achieved and gave up on validation data, fractions, by the names of `LearnResult`.
        sha256: of its file, once it was written or read.
    """

    n_classes: int
    head: str
    weight: Tensor
    bias: Tensor
    private: bool
    width: int = 0
    receipt: Receipt | None = None
    outcome: Mapping[str, float] = field(default_factory=dict[str, float])
    sha256: str = ""


@dataclass(frozen=True)
class Undoing:
    """A task that was undone: the SHA-256 of its file, and whether that is to be deleted as well."""

    task: str
    sha256: str
    purge: bool


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
