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
    sparing: bool = False,
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
        screen: cheaper than `measure`, and as a rule answers nothing less. It bisects in place of `measure`, whose word is final: from
            where the screen ends, the search goes back in growing steps to what `measure` accepts.
        sparing: for networks that are dear to ask about: where the second sweep cannot release even one unit more of a group, that question
            is the only one of a turn. With a screen, `measure` is asked at the end of a sweep and not of each turn; where it
            refuses what the screen let pass, the sweep is made once more, with its word at the end of each turn.

    Returns: the smallest selection met; all visible units where even the mildest pruning breaks the margin.
    """
    order = {group: _ranked(scores[group], visible[group]) for group in visible}
    most = {group: len(units) if group in may_empty else max(len(units) - 1, 0) for group, units in order.items()}
    measured = _Answers(measure, visible, order)
    screened = None if screen is None else _Answers(screen, visible, order)
    turns = list(reversed(order))

    def sweep(number: int, released: dict[str, int], *, final: bool) -> dict[str, int]:
        """Give every group its turn, and return how many units of each are released then; `final`: as `measure` says."""
        now = dict(released)
        for turn, group in enumerate(turns, number * len(turns) + 1):
            least = correct - allowed * turn // (SWEEPS * len(turns))
            find = _bisect_if_any if sparing and number else _bisect
            if screened is None:
                now[group] = find(partial(measured.reach, least, now, group), now[group], most[group])
                continue
            found = find(partial(screened.reach, least, now, group), now[group], most[group])
            now[group] = _go_back(partial(measured.reach, least, now, group), now[group], found) if final else found
        return now

    released = dict.fromkeys(order, 0)
    for number in range(SWEEPS):
        found = sweep(number, released, final=not sparing)
        if sparing and found != released and correct - measured(found) > allowed * (number + 1) // SWEEPS:
            found = sweep(number, released, final=True)
        released = found
    return Selection(measured.kept(released), measured.known.get(tuple(released.values()), correct), len(measured.known))


class _Answers:
    """What a measure said of networks: each is asked about once. They are known by how many units of each group are released."""

    def __init__(self, ask: Callable[[Keep], int], visible: Keep, order: Mapping[str, Tensor]) -> None:
        self.ask, self.visible, self.order = ask, visible, order
        self.known: dict[tuple[int, ...], int] = {}

    def __call__(self, released: Mapping[str, int]) -> int:
        """Return the correct answers with so many units released."""
        key = tuple(released.values())
        if key not in self.known:
            self.known[key] = self.ask(self.kept(released))
        return self.known[key]

    def reach(self, least: int, released: Mapping[str, int], group: str, n_released: int) -> bool:
        """Tell whether with another number of one group's units released so many answers are correct still."""
        return self({**released, group: n_released}) >= least

    def kept(self, released: Mapping[str, int]) -> dict[str, Tensor]:
        """Return the units that stay."""
        keep = {group: units.clone() for group, units in self.visible.items()}
        for group, n_released in released.items():
            keep[group][self.order[group][:n_released]] = False
        return keep


def _bisect(within: Callable[[int], bool], low: int, high: int) -> int:
    """Return a number from `low` to `high` that is within, or `low`."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if within(middle) else (low, middle - 1)
    return low


def _bisect_if_any(within: Callable[[int], bool], low: int, high: int) -> int:
    """Do as `_bisect`, but where `low + 1` is not within, that question is the only one."""
    return _bisect(within, low + 1, high) if low < high and within(low + 1) else low


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
