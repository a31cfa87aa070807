"""The only state of the method: who owns each unit, what each task needs. Values never change."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clnp.allocation import FREE, Allocation
from clnp.errors import TaskError

FAST = settings(deadline=None, max_examples=80, derandomize=True)


@st.composite
def needs(draw, groups):
    return {group: torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=torch.bool) for group, n in groups.items()}


@st.composite
def histories(draw, max_tasks=5):
    """Groups, and the units that each of some tasks needs in turn."""
    groups = draw(st.dictionaries(st.text(max_size=4), st.integers(1, 6), min_size=1, max_size=3))
    return groups, [draw(needs(groups)) for _ in range(draw(st.integers(0, max_tasks)))]


def build(groups, history):
    allocation = Allocation.empty(groups)
    for number, needed in enumerate(history):
        allocation = allocation.commit(f"t{number}", needed)
    return allocation


def plain(allocation):
    """The whole content as lists, to compare."""
    return (
        allocation.tasks,
        {group: owner.tolist() for group, owner in allocation.owner.items()},
        {task: {group: units.tolist() for group, units in kept.items()} for task, kept in allocation.needed.items()},
    )


def test_an_empty_network_is_free():
    allocation = Allocation.empty({"a": 3, "b": 1})
    assert plain(allocation) == ((), {"a": [FREE] * 3, "b": [FREE]}, {})
    assert allocation.n_units == {"a": 3, "b": 1}
    assert allocation.owner["a"].dtype == torch.int64


@FAST
@given(histories())
def test_a_unit_belongs_to_the_first_task_that_needed_it_for_ever(case):
    groups, history = case
    allocation = build(groups, history)
    for group in groups:
        for unit in range(groups[group]):
            first = next((number for number, needed in enumerate(history) if needed[group][unit]), FREE)
            assert allocation.owner[group][unit] == first


@FAST
@given(histories(), st.data())
def test_a_commit_changes_no_owned_unit_and_no_earlier_need(case, data):
    groups, history = case
    before = build(groups, history)
    content = plain(before)
    after = before.commit("new", data.draw(needs(groups)))
    assert plain(before) == content, "the old value is as it was"
    for group in groups:
        owned = before.owner[group] != FREE
        assert torch.equal(after.owner[group][owned], before.owner[group][owned])
        assert set(after.owner[group][~owned].tolist()) <= {FREE, len(history)}
    for task in before.tasks:
        for group in groups:
            assert torch.equal(after.needed[task][group], before.needed[task][group])
    assert after.tasks == (*before.tasks, "new")
    assert after.number("new") == len(history)


@FAST
@given(histories())
def test_a_task_claims_what_it_needs_of_the_free_units_and_reuses_the_rest(case):
    groups, history = case
    allocation = build(groups, history)
    for number, task in enumerate(allocation.tasks):
        for group in groups:
            needed, owner = allocation.needed[task][group], allocation.owner[group]
            assert torch.equal(needed, history[number][group])
            assert allocation.n_claimed(task, group) + allocation.n_reused(task, group) == int(needed.sum())
            assert bool(needed[owner == number].all()), "what a task claimed it needs"
            assert bool((owner[needed] <= number).all()), "it reads no unit of a later task"
            assert FREE not in owner[needed].tolist(), "and no free one"
    for group, n in groups.items():
        assert allocation.n_free(group) + sum(allocation.n_claimed(task, group) for task in allocation.tasks) == n
        assert torch.equal(allocation.free(group), allocation.owner[group] == FREE)


@FAST
@given(histories(), st.data())
def test_undoing_the_latest_task_gives_back_what_was(case, data):
    groups, history = case
    before = build(groups, history)
    assert plain(before.commit("new", data.draw(needs(groups))).undo("new")) == plain(before)


@FAST
@given(histories())
def test_readers_are_the_tasks_that_read_units_of_another(case):
    groups, history = case
    allocation = build(groups, history)
    for number, task in enumerate(allocation.tasks):
        expected = [
            other
            for other in allocation.tasks
            if other != task
            and any(
                allocation.owner[group][unit] == number and allocation.needed[other][group][unit]
                for group, n in groups.items()
                for unit in range(n)
            )
        ]
        assert allocation.readers(task) == expected


@FAST
@given(histories())
def test_undoing_any_task_frees_its_units_alone_and_is_refused_while_others_read_them(case):
    groups, history = case
    allocation = build(groups, history)
    content = plain(allocation)
    for number, task in enumerate(allocation.tasks):
        readers = allocation.readers(task)
        if readers:
            with pytest.raises(TaskError, match=f"cannot undo task '{task}'.*{', '.join(readers)}.*first"):
                allocation.undo(task)
            continue
        after = allocation.undo(task)
        assert after.tasks == tuple(name for name in allocation.tasks if name != task)
        for group in groups:
            for old, new in zip(allocation.owner[group].tolist(), after.owner[group].tolist(), strict=True):
                name = None if old in (FREE, number) else allocation.tasks[old]
                assert (None if new == FREE else after.tasks[new]) == name, "every other unit keeps its task, by name"
        assert plain(after)[2] == {name: kept for name, kept in content[2].items() if name != task}
    assert plain(allocation) == content


@FAST
@given(histories())
def test_copies_and_pickles_are_equal_and_independent(case):
    allocation = build(*case)
    content = plain(allocation)
    for other in (copy.copy(allocation), copy.deepcopy(allocation), pickle.loads(pickle.dumps(allocation))):
        assert plain(other) == content
        assert plain(other.commit("more", {group: torch.ones(n, dtype=torch.bool) for group, n in other.n_units.items()})) != content
    for other in (copy.deepcopy(allocation), pickle.loads(pickle.dumps(allocation))):
        for owner in other.owner.values():
            owner.fill_(99)
    assert plain(allocation) == content


def test_what_the_caller_does_with_its_tensors_later_does_not_matter():
    units = torch.tensor([True, False])
    allocation = Allocation.empty({"a": 2}).commit("t", {"a": units})
    units.fill_(True)
    assert allocation.needed["t"]["a"].tolist() == [True, False]
    assert allocation.owner["a"].tolist() == [0, FREE]


def test_a_value_cannot_be_changed():
    allocation = Allocation.empty({"a": 2}).commit("t", {"a": torch.tensor([True, False])})
    with pytest.raises(dataclasses.FrozenInstanceError):
        allocation.tasks = ()
    with pytest.raises(TypeError):
        allocation.owner["a"] = torch.zeros(2)
    with pytest.raises(TypeError):
        allocation.needed["u"] = {}
    with pytest.raises(TypeError):
        allocation.needed["t"]["a"] = torch.zeros(2)


def test_names_are_told_in_errors():
    empty = Allocation.empty({"a": 2})
    with pytest.raises(TaskError, match=r"no task 'x' is learned: expected one of \(none yet\)"):
        empty.number("x")
    one = empty.commit("first", {"a": torch.tensor([True, False])})
    with pytest.raises(TaskError, match=r"no task 'x' is learned: expected one of 'first'"):
        one.undo("x")
    with pytest.raises(TaskError, match=r"cannot commit task 'first': a task of that name is learned already. Choose another"):
        one.commit("first", {"a": torch.tensor([False, True])})
    for ask in (one.readers, lambda name: one.n_claimed(name, "a")):
        with pytest.raises(TaskError):
            ask("x")


def test_numbers_are_counted_per_group():
    allocation = build(
        {"a": 3, "b": 2},
        [
            {"a": torch.tensor([True, True, False]), "b": torch.tensor([False, True])},
            {"a": torch.tensor([False, True, True]), "b": torch.tensor([False, False])},
        ],
    )
    assert [allocation.n_claimed("t1", group) for group in "ab"] == [1, 0]
    assert [allocation.n_reused("t1", group) for group in "ab"] == [1, 0]
    assert [allocation.n_reused("t0", group) for group in "ab"] == [0, 0]
    assert [allocation.n_free(group) for group in "ab"] == [0, 1]
    assert allocation.readers("t0") == ["t1"]
