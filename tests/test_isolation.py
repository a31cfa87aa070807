"""Frozen, severed, trainable and closed, each against a naive loop over every single weight."""

from __future__ import annotations

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clnp.allocation import FREE, Allocation
from clnp.isolation import closure, severed, trainable

FAST = settings(deadline=None, max_examples=120, derandomize=True)
RAW = -1


@st.composite
def networks(draw):
    """A network in layers with its history: owner, needed, and for each weight the labels of rows and columns."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    n = sum(sizes)
    edges = []
    for layer, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        rows = torch.arange(start, start + size)
        sources = list(range(start)) if draw(st.booleans()) else list(range(starts[layer - 1], start)) if layer else []
        columns = [RAW] * draw(st.integers(0, 2)) + sources
        repeat = draw(st.integers(1, 2))  # a flattened map: each channel has several columns
        edges.append((rows, torch.tensor(columns or [RAW]).repeat_interleave(repeat)))
    allocation = Allocation.empty({"all": n})
    for number in range(draw(st.integers(0, 3))):
        wanted = torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        needed = naive_closure(wanted, allocation.owner["all"], stack(allocation, n), edges)
        allocation = allocation.commit(f"t{number}", {"all": needed})
    return edges, allocation.owner["all"], stack(allocation, n)


def stack(allocation, n):
    rows = [allocation.needed[task]["all"] for task in allocation.tasks]
    return torch.stack(rows) if rows else torch.zeros(0, n, dtype=torch.bool)


def naive_closure(units, owner, needed, edges):
    closed = set(units.nonzero()[:, 0].tolist())
    todo = list(closed)
    while todo:
        unit = todo.pop()
        if owner[unit] == FREE:
            continue
        for rows, columns in edges:
            if unit not in rows.tolist():
                continue
            for source in columns.tolist():
                if source != RAW and needed[owner[unit]][source] and source not in closed:
                    closed.add(source)
                    todo.append(source)
    return torch.tensor([unit in closed for unit in range(len(units))])


@FAST
@given(networks())
def test_every_weight_is_frozen_severed_or_trainable_as_the_table_says(case):
    edges, owner, needed = case
    for rows, columns in edges:
        cut, train = severed(owner, needed, rows, columns), trainable(owner, rows)
        assert cut.dtype == train.dtype == torch.bool
        assert cut.shape == (len(rows), len(columns))
        for i, u in enumerate(rows.tolist()):
            assert bool(train[i]) == (owner[u] == FREE)
            for j, v in enumerate(columns.tolist()):
                if owner[u] == FREE:
                    kind = "trainable"
                elif v == RAW or needed[owner[u]][v]:
                    kind = "frozen"
                else:
                    kind = "severed"
                assert bool(cut[i, j]) == (kind == "severed"), (u, v, kind)
                assert not (cut[i, j] and train[i]), "what trains is not cut"


@FAST
@given(networks(), st.data())
def test_closure_is_the_smallest_closed_set(case, data):
    edges, owner, needed = case
    units = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(owner), max_size=len(owner))))
    before = units.clone()
    closed = closure(units, owner, needed, edges)
    assert torch.equal(units, before), "the argument is left as it was"
    assert torch.equal(closed, naive_closure(units, owner, needed, edges))
    assert bool((closed | ~units).all()), "it holds what it was given"
    assert torch.equal(closure(closed, owner, needed, edges), closed), "twice is once"
    assert bool((owner[closed & ~units] != FREE).all()), "it adds no free unit"


@FAST
@given(networks(), st.data())
def test_closure_grows_with_its_units(case, data):
    edges, owner, needed = case
    flags = st.lists(st.booleans(), min_size=len(owner), max_size=len(owner))
    one, two = torch.tensor(data.draw(flags)), torch.tensor(data.draw(flags))
    together = closure(one | two, owner, needed, edges)
    assert torch.equal(together, closure(one, owner, needed, edges) | closure(two, owner, needed, edges))


@FAST
@given(networks())
def test_what_a_task_needs_is_closed(case):
    """What allocation keeps of a closed selection stays closed whatever is committed later."""
    edges, owner, needed = case
    for units in needed:
        assert torch.equal(closure(units, owner, needed, edges), units)


@FAST
@given(networks())
def test_no_signal_reaches_a_claimed_unit_from_what_its_task_does_not_need(case):
    """The promise itself: with severed weights at zero, later and free units cannot change a claimed unit's output."""
    edges, owner, needed = case
    weights = [torch.rand(len(rows), len(columns)) + 0.5 for rows, columns in edges]
    for weight, (rows, columns) in zip(weights, edges, strict=True):
        weight[severed(owner, needed, rows, columns)] = 0

    def run(silenced):
        value = torch.zeros(len(owner))
        for weight, (rows, columns) in zip(weights, edges, strict=True):
            inputs = torch.where(columns == RAW, torch.tensor(1.0), value[columns.clamp(min=0)])
            value[rows] = torch.where(silenced[rows], torch.tensor(0.0), torch.tanh(weight @ inputs))
        return value

    everything = run(torch.zeros(len(owner), dtype=torch.bool))
    for task, units in enumerate(needed):
        alone = run(~units)
        assert torch.equal(alone[owner == task], everything[owner == task])


@FAST
@example(owner=[0, FREE], rows=[1, 0, 1])
@given(owner=st.lists(st.integers(-1, 2), min_size=2, max_size=5), rows=st.lists(st.integers(0, 1), max_size=6))
def test_rows_may_repeat_and_come_in_any_order(owner, rows):
    expected = [owner[row] == FREE for row in rows]
    assert trainable(torch.tensor(owner), torch.tensor(rows, dtype=torch.long)).tolist() == expected


def test_before_the_first_task_nothing_is_cut():
    owner, needed = torch.full((3,), FREE), torch.zeros(0, 3, dtype=torch.bool)
    rows, columns = torch.tensor([0, 1]), torch.tensor([RAW, 2])
    assert not severed(owner, needed, rows, columns).any()
    assert trainable(owner, rows).all()
    units = torch.tensor([True, False, False])
    assert torch.equal(closure(units, owner, needed, [(rows, columns)]), units)


def test_closure_follows_chains_over_several_layers_and_tasks():
    # unit 0 <- 1 <- 2 <- 3; task 1 owns 3 and reads 2 of task 0, which reads 1 but not 0.
    owner = torch.tensor([0, 0, 0, 1, FREE])
    needed = torch.tensor([[True, True, True, False, False], [False, True, True, True, False]])
    edges = [(torch.tensor([2]), torch.tensor([1])), (torch.tensor([3]), torch.tensor([2])), (torch.tensor([4]), torch.tensor([0, 3]))]
    assert closure(torch.tensor([False, False, False, True, False]), owner, needed, edges).tolist() == [False, True, True, True, False]
    assert closure(torch.tensor([False, False, False, False, True]), owner, needed, edges).tolist() == [False, False, False, False, True]
