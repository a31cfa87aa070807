"""The units a new task may see: claimed ones to reuse, and a pool of free ones to train."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from clnp.allocation import FREE, Allocation
from clnp.errors import CapacityError, ConfigError
from clnp.narrow import reaches

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from torch import Tensor

    from clnp.config import LearnConfig
    from clnp.wiring import Wiring


def room(
    wiring: Wiring, allocation: Allocation, name: str, config: LearnConfig, private: AbstractSet[str], notices: list[str]
) -> tuple[Tensor, Tensor]:
    """Choose what a task may see, before any training.

    Args:
        wiring: of the network.
        allocation: before the task.
        name: of the task, for messages.
        config: `pool` and `reuse` matter.
        private: names of tasks whose units no other task may read.
        notices: a full group is noted here: the task crosses it on reused units.

    Returns: the claimed units and the pool's units that are visible, each bool (n_units,).

    Raises:
        ConfigError: `pool` names sizes by group, and forgets a group or names one that is not there.
        CapacityError: no group has a free unit (and reuse alone was not asked for), or some group would be empty.
    """
    claimed = _claimed(wiring, allocation, config, private)
    check_pool(wiring, config, f"cannot learn task '{name}'")
    pool = wiring.join(
        {group.name: _pool(allocation, group.name, config, whole=group.name in wiring.input_columns) for group in wiring.groups}
    )
    # What all units read is always there: free for the first task to learn, claimed for the others to read.
    owner = wiring.join(allocation.owner)
    pool |= wiring.shared & (owner == FREE)
    claimed |= wiring.shared & (owner != FREE)
    groups = wiring.claimable
    full = [group.name for group in groups if allocation.n_free(group.name) == 0]
    first = max(groups or wiring.groups, key=lambda group: len(group.layers))  # a residual stream, say: most layers wait for it
    reuse_alone = all(config.pool_of(group.name) == 0 for group in groups or wiring.groups)
    if len(full) == len(groups) and not reuse_alone:
        raise CapacityError(
            f"cannot learn task '{name}': layer '{first.name}' has 0 of {first.n_units} units free, and so have all other groups. "
            f"Widen the network (clnp widen, clnp.widen), or undo the newest task and learn it again with a larger margin. "
            f"A head on reused units alone is possible with pool=0."
        )
    if reuse_alone and not allocation.tasks:
        raise CapacityError(f"cannot learn task '{name}' with pool=0: there are no units of earlier tasks to reuse yet.")
    for group in groups:
        if not (pool | claimed)[group.slice].any() and not reaches(wiring, pool | claimed):
            raise CapacityError(
                f"cannot learn task '{name}': layer '{group.name}' has {allocation.n_free(group.name)} of {group.n_units} units free and "
                f"none that this task may reuse, so that nothing gets through. Allow reuse or a pool, or widen the network (clnp widen)."
            )
    if bool((pool & wiring.shared).any()) and config.private:
        raise CapacityError(
            f"cannot learn task '{name}' as private: it is the first, and would own weights that all tasks read "
            f"({', '.join(group.name for group in wiring.groups if group.shared)}). Learn a task that is not private first."
        )
    if full:
        notices.append(f"no unit is free in {', '.join(full)}: this task crosses there on reused units alone. clnp.widen adds units.")
    return claimed, pool


def _claimed(wiring: Wiring, allocation: Allocation, config: LearnConfig, private: AbstractSet[str]) -> Tensor:
    """Return the claimed units that the task may read: those of tasks that are not private."""
    owner = wiring.join(allocation.owner)
    visible = owner != FREE
    for number, task in enumerate(allocation.tasks):
        if task in private:
            visible &= owner != number
    return visible & config.reuse


def check_pool(wiring: Wiring, config: LearnConfig, doing: str) -> None:
    """Refuse sizes by group that forget a group, or name one that is not there.

    Args:
        wiring: of the network.
        config: its pool.
        doing: "cannot learn task 'a'", for the message.

    Raises:
        ConfigError: one that the pool forgets, or that is not there.
    """
    if not isinstance(config.pool, dict):
        return
    groups = [group.name for group in wiring.claimable]
    idle = [pattern for pattern in config.pool if not any(fnmatchcase(group, pattern) for group in groups)]
    bare = [group for group in groups if config.pool_of(group) is None]
    if idle or bare:
        found = f"'{idle[0]}' matches none of the groups" if idle else f"no size is given for '{bare[0]}', one of the groups"
        raise ConfigError(f"{doing} with this pool: {found} {', '.join(groups)}. Name each, or use patterns: '*' matches what is left.")


def _pool(allocation: Allocation, group: str, config: LearnConfig, *, whole: bool) -> Tensor:
    """Return the free units of a group that the task may train in: the first ones; `whole`: all, since a share of an input is no input."""
    free = allocation.free(group)
    size = config.pool_of(group) or 0  # what all units read may be named by no pattern; it is added in any case
    if whole and size and not isinstance(config.pool, dict):
        size = "all"
    if size == "all":
        return free
    if isinstance(size, float):
        size = max(round(size * len(free)), 1 if size > 0 else 0)
    return free & (free.cumsum(0) <= size)
