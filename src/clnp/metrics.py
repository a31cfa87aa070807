"""What a run of many tasks achieved, from its accuracy matrix.

Row t of the matrix holds the test accuracies right after task t was learned, one column for each task. Entries above the
diagonal are accuracies on tasks that are yet to come: most runs do not measure them and leave them `None`.

Notation: a[t][j] is the accuracy on task j after task t; there are T tasks, counted from 0; accuracies are fractions.
"""

from __future__ import annotations

from math import fsum
from typing import TYPE_CHECKING

from clnp.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    AccuracyMatrix = Sequence[Sequence[float | None]]


def average_accuracy(matrix: AccuracyMatrix) -> float:
    """Return the mean accuracy over all tasks after the last one was learned: (1/T) Σ_j a[T-1][j].

    Args:
        matrix: T rows; row t has at least the entries 0..t.
    Returns: a fraction between the smallest and the largest final accuracy.

    Raises:
        DataError: the matrix is empty, a row is too short, or an accuracy that is needed is missing.
    Reference: Lopez-Paz & Ranzato 2017 (arXiv:1706.08840), section 2, "ACC".

    >>> average_accuracy([[0.75, None], [0.75, 0.5]])
    0.625
    """
    n_tasks = _check(matrix)
    return fsum(_at(matrix, n_tasks - 1, j) for j in range(n_tasks)) / n_tasks


def forgetting(matrix: AccuracyMatrix) -> float:
    """Return how much of the best earlier accuracy is gone in the end: mean over j < T-1 of max_{j <= t < T-1} a[t][j] - a[T-1][j].

    Exactly 0.0 when no accuracy changed, and for a single task. Negative when old tasks became better. Rows before a task was
    learned are left out of its maximum: what was never learned cannot be forgotten.

    Args:
        matrix: T rows; row t has at least the entries 0..t.
    Returns: a fraction in [-1, 1].

    Raises:
        DataError: the matrix is empty, a row is too short, or an accuracy that is needed is missing.
    Reference: Chaudhry et al. 2018 (arXiv:1801.10112), section 3; its maximum also runs over the rows before task j, which most runs do not measure.

    >>> forgetting([[0.75, None], [0.25, 0.5]])
    0.5
    >>> forgetting([[0.9855]])
    0.0
    """
    n_tasks = _check(matrix)
    return _mean([max(_at(matrix, t, j) for t in range(j, n_tasks - 1)) - _at(matrix, n_tasks - 1, j) for j in range(n_tasks - 1)])


def backward_transfer(matrix: AccuracyMatrix) -> float:
    """Return what later tasks did to earlier ones: mean over j < T-1 of a[T-1][j] - a[j][j].

    Negative means forgetting; positive means that learning new tasks made old ones better. 0.0 for a single task.

    Args:
        matrix: T rows; row t has at least the entries 0..t.
    Returns: a fraction in [-1, 1].

    Raises:
        DataError: the matrix is empty, a row is too short, or an accuracy that is needed is missing.
    Reference: Lopez-Paz & Ranzato 2017 (arXiv:1706.08840), section 2, "BWT".

    >>> backward_transfer([[0.75, None], [0.25, 0.5]])
    -0.5
    """
    n_tasks = _check(matrix)
    return _mean([_at(matrix, n_tasks - 1, j) - _at(matrix, j, j) for j in range(n_tasks - 1)])


def forward_transfer(matrix: AccuracyMatrix, baseline: Sequence[float]) -> float:
    """Return what earlier tasks did for a task before it was learned: mean over j > 0 of a[j-1][j] - baseline[j].

    Args:
        matrix: T rows; row t has at least the entries 0..t+1 (0..t in the last row).
        baseline: the accuracy of the untrained network on each task, T entries.
    Returns: a fraction in [-1, 1]; 0.0 for a single task.

    Raises:
        DataError: the matrix is empty, a row is too short, an accuracy that is needed is missing, or the baseline has another length.
    Reference: Lopez-Paz & Ranzato 2017 (arXiv:1706.08840), section 2, "FWT".

    >>> forward_transfer([[0.9, 0.75], [0.9, 0.8]], [0.5, 0.5])
    0.25
    """
    n_tasks = _check(matrix)
    if len(baseline) != n_tasks:
        raise DataError(
            f"cannot compute forward transfer: expected one baseline accuracy for each of {n_tasks} tasks, found {len(baseline)}."
        )
    return _mean([_at(matrix, j - 1, j) - baseline[j] for j in range(1, n_tasks)])


def _check(matrix: AccuracyMatrix) -> int:
    """Return the number of tasks of a matrix that has any."""
    if len(matrix) == 0:
        raise DataError("cannot compute a metric: the accuracy matrix has no row; learn and evaluate a task first.")
    return len(matrix)


def _at(matrix: AccuracyMatrix, after: int, task: int) -> float:
    """Return one accuracy that is there."""
    accuracy = matrix[after][task] if task < len(matrix[after]) else None
    if accuracy is None:
        raise DataError(f"cannot compute a metric: the accuracy of task {task} after task {after} is missing; evaluate it there.")
    return accuracy


def _mean(changes: list[float]) -> float:
    """Return the mean, 0.0 for none; adding 0.0 turns a -0.0 into the 0.0 that people expect to read."""
    return fsum(changes) / len(changes) + 0.0 if changes else 0.0
