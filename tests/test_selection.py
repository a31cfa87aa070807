"""The margin holds on every way out, for any measure; and the search releases all that it can find cheaply."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clnp.selection import SWEEPS, allowed_loss, select

FAST = settings(deadline=None, max_examples=150, derandomize=True)


@st.composite
def problems(draw):
    """Scores, visible units, and how many answers may be lost; the measure is any function of the kept units at all."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    scores, visible = {}, {}
    for number, n in enumerate(sizes):
        # Few different values: ties must do no harm.
        scores[f"g{number}"] = torch.tensor(draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)), dtype=torch.float32)
        visible[f"g{number}"] = torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=torch.bool)
    correct = draw(st.integers(0, 60))
    return scores, visible, correct, draw(st.integers(0, 12)), draw(st.integers(0, 2**32))


def plain(keep):
    return tuple((group, tuple(units.tolist())) for group, units in keep.items())


class Measure:
    """Counts its calls and remembers every network that it was shown; `answers` maps kept units to correct answers."""

    def __init__(self, answers):
        self.answers = answers
        self.seen = {}
        self.n_calls = 0

    def __call__(self, keep):
        self.n_calls += 1
        self.seen[plain(keep)] = found = self.answers(keep)
        return found


def arbitrary(seed, correct):
    """A measure that follows no order: fewer units may answer better."""

    def answers(keep):
        return max(correct - random.Random(f"{seed}{plain(keep)}").randint(-3, 15), 0)

    return Measure(answers)


@FAST
@given(problems())
def test_the_margin_is_never_exceeded_whatever_the_measure_says(problem):
    scores, visible, correct, allowed, seed = problem
    measure = arbitrary(seed, correct)
    found = select(scores, visible, measure, correct=correct, allowed=allowed)
    everything = plain(found.keep) == plain(visible)
    if not everything:
        assert plain(found.keep) in measure.seen, "only what was measured may be returned"
        assert found.correct == measure.seen[plain(found.keep)], "and what is told of it is what was measured"
    assert correct - found.correct <= allowed
    assert found.n_measured == measure.n_calls


@FAST
@given(problems())
def test_what_is_kept_is_visible_and_no_group_is_emptied(problem):
    scores, visible, correct, _, seed = problem
    for answers in (arbitrary(seed, correct), Measure(lambda _: correct)):
        found = select(scores, visible, answers, correct=correct, allowed=60)
        assert list(found.keep) == list(visible)
        for group, units in found.keep.items():
            assert units.dtype == torch.bool
            assert not (units & ~visible[group]).any(), "a unit that was not visible cannot be kept"
            assert units.any() or not visible[group].any(), "one unit of a group always stays"


@FAST
@given(problems())
def test_units_are_released_in_the_order_of_their_scores(problem):
    scores, visible, correct, allowed, seed = problem
    found = select(scores, visible, arbitrary(seed, correct), correct=correct, allowed=allowed)
    for group, units in found.keep.items():
        released = visible[group] & ~units
        if released.any() and units.any():
            assert scores[group][released].max() <= scores[group][units].min()


@FAST
@given(problems())
def test_the_arguments_are_left_as_they_were_and_the_outcome_is_repeatable(problem):
    scores, visible, correct, allowed, seed = problem
    before = {group: units.clone() for group, units in visible.items()}, {group: score.clone() for group, score in scores.items()}
    one = select(scores, visible, arbitrary(seed, correct), correct=correct, allowed=allowed)
    two = select(scores, visible, arbitrary(seed, correct), correct=correct, allowed=allowed)
    assert plain(one.keep) == plain(two.keep)
    for units in one.keep.values():
        units.fill_(True)
    assert plain(visible) == plain(before[0])
    assert all(torch.equal(scores[group], before[1][group]) for group in scores)


@FAST
@given(problems())
def test_the_search_costs_the_logarithm_of_the_units_per_group(problem):
    scores, visible, correct, allowed, seed = problem
    measure = arbitrary(seed, correct)
    found = select(scores, visible, measure, correct=correct, allowed=allowed)
    bound = SWEEPS * sum(math.ceil(math.log2(max(int(units.sum()), 1))) for units in visible.values())
    assert found.n_measured == measure.n_calls <= bound
    assert len(measure.seen) == measure.n_calls, "no network is measured twice"


def test_two_thousand_units_in_three_groups_take_few_measurements():
    scores = {group: torch.rand(2000, generator=torch.Generator().manual_seed(1)) for group in "abc"}
    visible = {group: torch.ones(2000, dtype=torch.bool) for group in "abc"}
    measure = Measure(lambda keep: 1000 - sum(max(0, 300 - int(units.sum())) for units in keep.values()))
    found = select(scores, visible, measure, correct=1000, allowed=3)
    assert found.n_measured <= SWEEPS * 3 * 11
    assert all(297 <= int(units.sum()) <= 300 for units in found.keep.values()), "and it finds the edge"
    assert sum(300 - int(units.sum()) for units in found.keep.values()) == 3


@FAST
@given(st.integers(1, 30), st.integers(0, 29), st.integers(0, 5))
def test_one_group_with_a_steady_measure_is_pruned_as_far_as_the_margin_goes(n, useful, allowed):
    """Each of the `useful` best units is worth one answer: what may be lost is lost, and nothing more."""
    useful = min(useful, n)
    scores = {"a": torch.arange(n, 0, -1, dtype=torch.float32)}
    visible = {"a": torch.ones(n, dtype=torch.bool)}
    measure = Measure(lambda keep: 50 + int(keep["a"][:useful].sum()))
    found = select(scores, visible, measure, correct=50 + useful, allowed=allowed)
    assert int(found.keep["a"].sum()) == max(useful - allowed, 1)
    assert found.keep["a"][: int(found.keep["a"].sum())].all(), "the most important ones stay"


def test_when_the_mildest_pruning_breaks_the_margin_everything_is_kept():
    visible = {"a": torch.tensor([True, True, False]), "b": torch.ones(4, dtype=torch.bool)}
    scores = {"a": torch.zeros(3), "b": torch.arange(4.0)}
    measure = Measure(lambda _: 0)
    found = select(scores, visible, measure, correct=10, allowed=9)
    assert plain(found.keep) == plain(visible)
    assert found.correct == 10


def test_without_a_margin_only_harmless_units_go():
    visible = {"a": torch.ones(8, dtype=torch.bool), "b": torch.ones(8, dtype=torch.bool)}
    scores = {"a": torch.arange(8.0), "b": torch.arange(8.0)}
    measure = Measure(lambda keep: 20 - 5 * (int(keep["a"][5:].sum()) < 3) - 5 * (int(keep["b"][6:].sum()) < 2))
    found = select(scores, visible, measure, correct=20, allowed=0)
    assert found.correct == 20
    assert found.keep["a"].tolist() == [False] * 5 + [True] * 3
    assert found.keep["b"].tolist() == [False] * 6 + [True] * 2


def test_the_group_that_comes_first_does_not_spend_the_margin_of_the_others():
    """Every released unit costs one answer; four may be lost in two groups."""
    visible = {"a": torch.ones(9, dtype=torch.bool), "b": torch.ones(9, dtype=torch.bool)}
    scores = {"a": torch.arange(9.0), "b": torch.arange(9.0)}
    measure = Measure(lambda keep: int(keep["a"].sum() + keep["b"].sum()))
    found = select(scores, visible, measure, correct=18, allowed=4)
    assert [int(units.sum()) for units in found.keep.values()] == [7, 7]


def by_released(good):
    """A measure that answers well only where so many units of a and b are released."""
    return Measure(lambda keep: 10 if (4 - int(keep["a"].sum()), 4 - int(keep["b"].sum())) in good else 0)


def test_a_second_sweep_releases_what_only_then_became_harmless_and_gives_nothing_back():
    visible = {"a": torch.ones(4, dtype=torch.bool), "b": torch.ones(4, dtype=torch.bool)}
    scores = {"a": torch.arange(4.0), "b": torch.arange(4.0)}
    for good, released in (
        ({(0, 1), (2, 1), (3, 1), (3, 2), (3, 3)}, (3, 3)),  # b can do without a second unit only when a has lost its own
        ({(0, 2), (0, 3), (2, 3)}, (2, 3)),  # (2, 1) and (2, 2) would be worse again: they must not lead back to (2, 0)
    ):
        found = select(scores, visible, by_released(good), correct=10, allowed=0)
        assert tuple(4 - int(units.sum()) for units in found.keep.values()) == released
        assert found.correct == 10


def test_the_last_group_is_pruned_first():
    shown = []
    visible = {"near the input": torch.ones(4, dtype=torch.bool), "near the output": torch.ones(4, dtype=torch.bool)}
    select({group: torch.arange(4.0) for group in visible}, visible, lambda keep: shown.append(keep) or 10, correct=10, allowed=0)
    assert shown[0]["near the input"].all()
    assert not shown[0]["near the output"].all()


def test_equal_scores_are_released_in_the_order_of_the_units():
    visible = {"a": torch.tensor([False, True, True, True, True])}
    found = select({"a": torch.zeros(5)}, visible, lambda keep: int(keep["a"].sum()), correct=4, allowed=2)
    assert found.keep["a"].tolist() == [False, False, False, True, True]


def test_a_single_unit_a_group_without_units_and_no_group_at_all_are_not_measured():
    measure = Measure(lambda _: 5)
    visible = {"one": torch.tensor([False, True]), "none": torch.zeros(3, dtype=torch.bool)}
    found = select({"one": torch.zeros(2), "none": torch.zeros(3)}, visible, measure, correct=5, allowed=5)
    assert plain(found.keep) == plain(visible)
    assert select({}, {}, measure, correct=5, allowed=5).keep == {}
    assert measure.n_calls == 0


def test_a_score_that_is_not_a_number_is_not_released_first():
    scores = {"a": torch.tensor([math.nan, 1.0, 2.0])}
    found = select(scores, {"a": torch.ones(3, dtype=torch.bool)}, lambda keep: int(keep["a"].sum()), correct=3, allowed=1)
    assert found.keep["a"].tolist() == [True, False, True]


@FAST
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 10**6))
def test_a_margin_allows_whole_examples_rounded_down(margin, n):
    assert 0 <= allowed_loss(margin, n) <= n
    assert allowed_loss(margin, n) <= margin * n + 1e-6
    assert allowed_loss(margin, n) > margin * n - 1 - 1e-6


@FAST
@given(st.data(), st.integers(1, 10**6))
def test_a_margin_of_exactly_so_many_examples_is_not_lost_to_rounding(data, n):
    k = data.draw(st.integers(0, n - 1))
    assert allowed_loss(k / n, n) == k


@pytest.mark.parametrize(("margin", "n", "allowed"), [(0.29, 100, 29), (0.002, 499, 0), (0.002, 500, 1), (0.0, 10**6, 0), (0.57, 100, 57)])
def test_margins_by_hand(margin, n, allowed):
    assert allowed_loss(margin, n) == allowed


@pytest.mark.parametrize(("may_empty", "left"), [(frozenset(), (1, 1)), ({"a"}, (0, 1)), ({"b"}, (1, 0)), ({"a", "b"}, (0, 0))])
def test_only_a_group_that_the_network_can_do_without_loses_all_units(may_empty, left):
    visible = {"a": torch.tensor([True, True, False]), "b": torch.ones(4, dtype=torch.bool)}
    shown = []
    found = select(
        {"a": torch.arange(3.0), "b": torch.arange(4.0)},
        visible,
        lambda keep: shown.append(keep) or 5,
        correct=5,
        allowed=0,
        may_empty=may_empty,
    )
    assert tuple(int(units.sum()) for units in found.keep.values()) == left
    assert all(bool(units.any()) or group in may_empty for keep in shown for group, units in keep.items()), "nothing else is even tried"


def optimistic(measure, by):
    """A screen that answers no less than a measure, and asks it without being counted."""
    return Measure(lambda keep: measure.answers(keep) + by)


@FAST
@given(problems(), st.integers(-5, 20), st.booleans())
def test_with_a_screen_the_margin_still_holds_for_what_was_measured(problem, by, sparing):
    scores, visible, correct, allowed, seed = problem
    measure = arbitrary(seed, correct)
    found = select(scores, visible, measure, correct=correct, allowed=allowed, screen=optimistic(measure, by), sparing=sparing)
    if plain(found.keep) != plain(visible):
        assert plain(found.keep) in measure.seen, "the screen's word is not enough"
        assert found.correct == measure.seen[plain(found.keep)]
    assert correct - found.correct <= allowed


def falling(n_units, n_needed):
    """Three groups of which so many units are needed: each one less costs an answer."""
    scores = {group: torch.rand(n_units, generator=torch.Generator().manual_seed(1)) for group in "abc"}
    visible = {group: torch.ones(n_units, dtype=torch.bool) for group in "abc"}
    return scores, visible, lambda keep: 1000 - sum(max(0, n_needed - int(units.sum())) for units in keep.values())


@pytest.mark.parametrize(
    ("n_units", "n_needed", "sparing", "by", "n_measured"),
    [
        (2000, 300, False, 0, SWEEPS * 3),
        (2000, 300, False, 1, SWEEPS * 3 * 2),
        (2000, 300, False, 40, SWEEPS * 3 * 12),
        (200, 30, True, 0, SWEEPS),
        (200, 30, True, 1, SWEEPS + SWEEPS * 3 * 2),
    ],
)
def test_a_screen_finds_the_same_units_with_a_measurement_or_two_for_each_turn_or_sweep(n_units, n_needed, sparing, by, n_measured):
    scores, visible, answers = falling(n_units, n_needed)
    alone = select(scores, visible, answers, correct=1000, allowed=6)
    measure = Measure(answers)
    found = select(scores, visible, measure, correct=1000, allowed=6, screen=optimistic(measure, by), sparing=sparing)
    assert plain(found.keep) == plain(alone.keep)
    assert measure.n_calls <= n_measured, f"a screen that is too kind by {by}"


def test_a_sparing_search_asks_once_about_what_the_first_sweep_left():
    scores, visible, answers = falling(200, 30)
    screen = Measure(answers)
    select(scores, visible, answers, correct=1000, allowed=0, screen=screen, sparing=True)
    assert screen.n_calls <= 3 * 8 + 3, "nothing more can go"


def test_a_sparing_search_takes_back_what_all_examples_refuse():
    scores, visible = {"a": torch.arange(8.0)}, {"a": torch.ones(8, dtype=torch.bool)}
    measure = Measure(lambda keep: 10 if int(keep["a"].sum()) >= 6 else 0)
    found = select(scores, visible, measure, correct=10, allowed=0, screen=lambda _: 10, sparing=True)
    assert int(found.keep["a"].sum()) == 6
    assert found.correct == 10


def test_a_sweep_of_a_sparing_search_has_its_share_of_the_margin():
    scores, visible = {"a": torch.arange(8.0)}, {"a": torch.ones(8, dtype=torch.bool)}
    measure = Measure(lambda keep: {1: 9, 2: 0, 3: 0, 4: 0, 5: 0}.get(int(keep["a"].sum()), 10))
    found = select(scores, visible, measure, correct=10, allowed=1, screen=lambda _: 10, sparing=True)
    shown = [sum(units) for ((_, units),) in measure.seen]
    assert shown[0] == 1
    assert 6 in shown, "the first sweep may spend half of one answer, which is none"
    assert int(found.keep["a"].sum()) == 1, "and the second the whole"
