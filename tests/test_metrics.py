from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clnp.errors import DataError
from clnp.metrics import average_accuracy, backward_transfer, forgetting, forward_transfer

ACCURACY = st.floats(0.0, 1.0)


def square(n_tasks):
    return st.lists(st.lists(ACCURACY, min_size=n_tasks, max_size=n_tasks), min_size=n_tasks, max_size=n_tasks)


MATRICES = st.integers(1, 6).flatmap(square)


def triangle(full):
    return [[value if j <= t else None for j, value in enumerate(row)] for t, row in enumerate(full)]


@given(MATRICES)
def test_the_average_lies_between_the_extremes_and_needs_only_the_last_row(matrix):
    last = matrix[-1]
    assert min(last) - 1e-12 <= average_accuracy(matrix) <= max(last) + 1e-12
    assert math.isclose(average_accuracy(matrix), sum(last) / len(last), abs_tol=1e-12)
    assert average_accuracy(triangle(matrix)) == average_accuracy(matrix)


@given(st.lists(ACCURACY, min_size=1, max_size=8))
def test_nothing_changed_is_exactly_zero(diagonal):
    matrix = [[*diagonal[: t + 1], *[None] * (len(diagonal) - t - 1)] for t in range(len(diagonal))]
    assert forgetting(matrix) == 0.0
    assert backward_transfer(matrix) == 0.0
    assert math.copysign(1.0, forgetting(matrix)) == 1.0
    assert math.copysign(1.0, backward_transfer(matrix)) == 1.0


@given(MATRICES)
def test_forgetting_is_bounded_and_at_least_the_loss_since_learning(matrix):
    matrix = triangle(matrix)
    assert -1.0 <= forgetting(matrix) <= 1.0
    assert forgetting(matrix) >= -backward_transfer(matrix) - 1e-12


@given(MATRICES)
def test_entries_before_a_task_was_learned_do_not_count(matrix):
    assert forgetting(matrix) == forgetting(triangle(matrix))
    assert backward_transfer(matrix) == backward_transfer(triangle(matrix))


@given(MATRICES, st.floats(0.0, 0.5))
def test_losing_more_of_an_old_task_is_more_forgetting(matrix, loss):
    if len(matrix) < 2:
        return
    worse = [list(row) for row in matrix]
    worse[-1][0] = max(0.0, worse[-1][0] - loss)
    assert forgetting(worse) >= forgetting(matrix) - 1e-12
    assert average_accuracy(worse) <= average_accuracy(matrix) + 1e-12


@given(MATRICES)
def test_two_tasks_forget_the_opposite_of_their_backward_transfer(matrix):
    two = [row[:2] for row in matrix[:2]]
    if len(two) == 2:
        assert forgetting(two) == -backward_transfer(two) + 0.0


def test_values_by_hand():
    matrix = [[0.9, None, None], [0.95, 0.8, None], [0.7, 0.85, 0.6]]
    assert average_accuracy(matrix) == pytest.approx((0.7 + 0.85 + 0.6) / 3)
    assert forgetting(matrix) == pytest.approx(((0.95 - 0.7) + (0.8 - 0.85)) / 2)
    assert backward_transfer(matrix) == pytest.approx(((0.7 - 0.9) + (0.85 - 0.8)) / 2)


@given(MATRICES)
def test_forward_transfer_compares_with_the_baseline(matrix):
    n_tasks = len(matrix)
    ahead = [matrix[j - 1][j] for j in range(1, n_tasks)]
    assert forward_transfer(matrix, [0.0, *ahead]) == 0.0
    assert math.isclose(forward_transfer(matrix, [0.0] * n_tasks), sum(ahead) / max(len(ahead), 1), abs_tol=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: average_accuracy([]), "no row"),
        (lambda: average_accuracy([[0.9, None], [0.9]]), "task 1 after task 1 is missing"),
        (lambda: forgetting([[None, None], [0.9, 0.9]]), "task 0 after task 0 is missing"),
        (lambda: forward_transfer([[0.9, None], [0.9, 0.9]], [0.1, 0.1]), "task 1 after task 0 is missing"),
        (lambda: forward_transfer([[0.9]], [0.1, 0.1]), "each of 1 tasks, found 2"),
    ],
)
def test_what_is_missing_is_named(call, words):
    with pytest.raises(DataError, match=words):
        call()
