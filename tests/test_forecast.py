"""How many more tasks fit, and on what assumption."""

from __future__ import annotations

import dataclasses

import pytest

from clnp.allocation import Allocation
from clnp.forecast import RECENT, forecast


def allocation(n_units, *claims):
    """Commit tasks that claim so many units per group, reusing all owned ones."""
    made = Allocation.empty(n_units)
    for number, claim in enumerate(claims):
        needed = {}
        for group, n in n_units.items():
            free = made.free(group)
            needed[group] = ~free | (free & (free.cumsum(0) <= claim[group]))
            assert len(needed[group]) == n
        made = made.commit(f"t{number}", needed)
    return made


def test_nothing_is_known_before_the_first_task():
    found = forecast(Allocation.empty({"a": 4}))
    assert (found.tasks, found.limiting_group) == (None, None)
    assert "no task is learned yet" in found.assumption


def test_the_tightest_group_limits():
    found = forecast(allocation({"a": 100, "b": 20}, {"a": 10, "b": 5}))
    assert (found.tasks, found.limiting_group) == (3, "b")
    assert found.assumption == "each further task claims as many units per group as the latest task (t0)"


def test_only_full_tasks_count():
    assert forecast(allocation({"a": 11}, {"a": 4})).tasks == 1
    assert forecast(allocation({"a": 12}, {"a": 4})).tasks == 2
    assert forecast(allocation({"a": 4}, {"a": 4})).tasks == 0


def test_reused_units_do_not_count():
    # The second task reads all 10 units of the first and claims 2.
    found = forecast(allocation({"a": 30}, {"a": 10}, {"a": 2}))
    assert found.tasks == 3  # 18 free, 6 a task
    assert "the latest 2 tasks on average (t0, t1)" in found.assumption


def test_only_the_latest_tasks_count():
    claims = [{"a": 50}, {"a": 3}, {"a": 2}, {"a": 1}]
    found = forecast(allocation({"a": 100}, *claims))
    assert len(claims) == RECENT + 1
    assert found.tasks == 22  # 44 free, 2 a task
    assert "the latest 3 tasks on average (t1, t2, t3)" in found.assumption


def test_a_group_that_recent_tasks_do_not_touch_does_not_limit():
    found = forecast(allocation({"a": 10, "b": 10}, {"a": 5, "b": 10}, {"a": 1, "b": 0}, {"a": 1, "b": 0}, {"a": 1, "b": 0}))
    assert (found.tasks, found.limiting_group) == (2, "a")
    assert found.assumption.endswith("; there is no room in 'b', where it reads what earlier tasks claimed")


@pytest.mark.parametrize(("n", "is_full"), [(12, True), (14, True), (15, False), (100, False)])
def test_a_group_with_less_free_than_a_task_takes_is_full_when_it_is_left_alone(n, is_full):
    claims = [{"a": 1, "b": 4}, {"a": 1, "b": 8}, *({"a": 1, "b": 0} for _ in range(RECENT))]
    found = forecast(allocation({"a": 20, "b": n}, *claims))
    assert ("no room in 'b'" in found.assumption) == is_full  # 12 units of 5 tasks: 2.4 a task
    assert found.tasks == 15


def test_a_group_that_is_nearly_full_but_taken_from_still_limits():
    found = forecast(allocation({"a": 5}, {"a": 4}))
    assert (found.tasks, found.limiting_group) == (0, "a")
    assert "no room" not in found.assumption


def test_nothing_limits_when_nothing_is_claimed():
    found = forecast(allocation({"a": 10}, {"a": 0}))
    assert (found.tasks, found.limiting_group) == (None, None)
    assert "t0" in found.assumption


@pytest.mark.parametrize(("n_free", "claims"), [(8, (1, 2, 3)), (10, (1, 1, 3)), (50, (10, 7, 3))])
def test_averages_are_exact(n_free, claims):
    n = n_free + sum(claims)
    assert forecast(allocation({"a": n}, *({"a": claim} for claim in claims))).tasks == n_free * len(claims) // sum(claims)


def test_averages_are_exact_where_floats_are_not():
    assert forecast(allocation({"a": 42}, {"a": 2}, {"a": 2}, {"a": 3})).tasks == 15


def test_a_forecast_is_a_plain_record():
    found = forecast(allocation({"a": 10}, {"a": 5}))
    assert dataclasses.asdict(found) == {"tasks": 1, "limiting_group": "a", "assumption": found.assumption}
