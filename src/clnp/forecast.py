"""How many more tasks fit, if the next ones are like the latest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from clnp.allocation import Allocation

RECENT = 3


@dataclass(frozen=True)
class Forecast:
    """How many more tasks fit.

    Attributes:
        tasks: the number; None when the latest tasks claimed nothing, so that nothing limits it, or none is learned.
        limiting_group: the group that is full first.
        assumption: what the number rests on, for people.
    """

    tasks: int | None
    limiting_group: str | None
    assumption: str


def forecast(allocation: Allocation, groups: Collection[str] | None = None) -> Forecast:
    """Say how many more tasks fit before some group has no free unit left.

    The next tasks are assumed to claim in each group what the latest tasks claimed on average. Later tasks tend to claim
    less, since they find more to reuse; so the number tends to be low. When a group is full, tasks still can be learned
    across it by reuse; `CapacityError` comes only when all are full. A full group limits nothing any more, and is named in the assumption.

    Args:
        allocation: who owns what.
        groups: those that count; None takes all. A weight that all tasks share is no room.
    """
    recent = allocation.tasks[-RECENT:]
    if not recent:
        return Forecast(None, None, "no task is learned yet")
    n = {group: sum(allocation.n_claimed(task, group) for task in recent) for group in (allocation.owner if groups is None else groups)}
    # Whole numbers: a mean in floating point could round a task away.
    fits = {group: allocation.n_free(group) * len(recent) // claimed for group, claimed in n.items() if claimed > 0}
    which = "the latest task" if len(recent) == 1 else f"the latest {len(recent)} tasks on average"
    assumption = f"each further task claims as many units per group as {which} ({', '.join(recent)})"
    full = [f"'{group}'" for group, claimed in n.items() if claimed == 0 and _is_full(allocation, group)]
    if full:
        assumption += f"; there is no room in {', '.join(full)}, where it reads what earlier tasks claimed"
    if not fits:
        return Forecast(None, None, assumption)
    tightest = min(fits, key=lambda group: fits[group])
    return Forecast(fits[tightest], tightest, assumption)


def _is_full(allocation: Allocation, group: str) -> bool:
    """Tell whether fewer units are free than a task claimed on average: a few may be left for ever."""
    return allocation.n_free(group) * len(allocation.tasks) < sum(allocation.n_claimed(task, group) for task in allocation.tasks)
