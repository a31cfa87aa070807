"""Which units to keep: as few as possible, while the accuracy stays within the margin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

Keep = Mapping[str, Tensor]
SWEEPS = 2


@dataclass(frozen=True)
class Selection:
    """The outcome of a search.

    Attributes:
        keep: group -> bool (n_units,), the units to keep, before closure.
        correct: validation examples that the network of exactly these units answers correctly.
        n_measured: how many networks were measured.
    """

    keep: dict[str, Tensor]
    correct: int
    n_measured: int


def allowed_loss(margin: float, n_validation: int) -> int:
    """Return how many validation examples a margin lets a task lose: whole examples, rounded down.

    >>> allowed_loss(0.002, 5000), allowed_loss(0.002, 100)
    (10, 0)
    """
    return int(margin * n_validation + 1e-9)


def select(
    scores: Mapping[str, Tensor],
    visible: Keep,
    measure: Callable[[Keep], int],
    *,
    correct: int,
    allowed: int,
    may_empty: AbstractSet[str] = frozenset(),
    screen: Callable[[Keep], int] | None = None,
) -> Selection:
    """Release, per group, the most units whose loss the margin covers.

    Each group has a threshold of its own: units are released in the order of their scores, and the number of released
    ones is found by bisection with all other groups held. Groups take turns from the last to the first, twice, and each
    turn may use only its share of the margin, or the first would spend it all. The accuracy of a network need not
    fall steadily with its units; bisection then finds a good number, not the best, but whatever is returned was
    measured and lies within the margin. One unit of a group stays, but in groups that the network can do without.

    Args:
        scores: group -> importance of each unit (n_units,), computed once.
        visible: group -> bool (n_units,), the units that may be kept; the search starts from them all.
        measure: units kept -> correct validation answers of exactly that network, after closure.
        correct: correct validation answers that the margin is counted from.
        allowed: how many of them may be lost, see `allowed_loss`.
        may_empty: groups of which no unit need stay: what they are a branch of goes on without it.
        screen: cheaper than `measure`, and answers nothing less: what it refuses need not be measured. It bisects in place of `measure`,
            whose word is final: from where the screen ends, the search goes back in growing steps to what `measure` accepts.

    Returns: the smallest selection met; all visible units where even the mildest pruning breaks the margin.
    """
    order = {group: _ranked(scores[group], visible[group]) for group in visible}
    keep = {group: units.clone() for group, units in visible.items()}
    known: dict[tuple[int, ...], int] = {}
    screened: dict[tuple[int, ...], int] = {}
    released = dict.fromkeys(order, 0)

    def kept_after(group: str, n_released: int) -> Tensor:
        units = visible[group].clone()
        units[order[group][:n_released]] = False
        return units

    def within(answers: dict[tuple[int, ...], int], ask: Callable[[Keep], int], group: str, n_released: int, budget: int) -> bool:
        key = tuple(n_released if other == group else n for other, n in released.items())
        if key not in answers:
            answers[key] = ask({**keep, group: kept_after(group, n_released)})
        return correct - answers[key] <= budget

    turns = [group for _ in range(SWEEPS) for group in reversed(order)]
    for turn, group in enumerate(turns):
        budget = allowed * (turn + 1) // len(turns)
        low, high = released[group], len(order[group]) if group in may_empty else max(len(order[group]) - 1, 0)
        measured = partial(within, known, measure, group, budget=budget)
        if screen is None:
            low = _bisect(measured, low, high)
        else:
            high = _bisect(partial(within, screened, screen, group, budget=budget), low, high)
            low = _go_back(measured, low, high)
        if low != released[group]:
            released[group], keep[group] = low, kept_after(group, low)
    key = tuple(released.values())
    return Selection(keep, known.get(key, correct), len(known))


def _bisect(within: Callable[[int], bool], low: int, high: int) -> int:
    """Return a number from `low` to `high` that is within, or `low`."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if within(middle) else (low, middle - 1)
    return low


def _go_back(within: Callable[[int], bool], low: int, high: int) -> int:
    """Return a number from `low` to `high` that is within, or `low`: `high` is asked first, and its neighbours before those far from it."""
    step, tried = 1, high
    while tried > low and not within(tried):
        high, tried, step = tried - 1, max(tried - step, low), 2 * step
    return _bisect(within, max(tried, low), high)


def _ranked(scores: Tensor, visible: Tensor) -> Tensor:
    """Return the visible units, the least important first; equal scores in the order of the units."""
    units = visible.nonzero()[:, 0]
    return units[torch.argsort(scores[units], stable=True)]
