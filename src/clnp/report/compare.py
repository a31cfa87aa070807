"""Several runs side by side: a method's mean over seeds, its spread, and whether the difference to the best is more than chance.

Only runs of the same benchmark, network and number of tasks can be compared; what else differs between methods' settings is said. The test is paired: for each
seed that both methods have, and each task, the difference of their final accuracies; its p-value is the share of all ways to flip the
signs of these differences (one sign a seed and task) whose mean is at least as far from zero (an exact permutation test up to 2^14 ways,
100,000 draws beyond).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from math import fsum
from statistics import stdev
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from clnp.config import LearnConfig, unread
from clnp.errors import DamageError, StoreError
from clnp.locks import holder, is_locked
from clnp.report.pages import pages
from clnp.report.run import read_run
from clnp.report.wording import continuing
from clnp.rundir import CONFIG

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from clnp.report.run import Run

EXACT = 14
"""Up to so many pairs every way to flip signs is tried."""
N_DRAWS = 100_000


@dataclass(frozen=True)
class Row:
    """One method over its seeds. Accuracies are fractions.

    Attributes:
        label: the method, and the settings by which it differs from others of the same method.
        method: its name.
        seeds: of its runs, in order.
        averages: average accuracy of each run, after its last task.
        forgettings: of each run.
        final: seed -> final accuracy of each task.
        cpu_seconds: mean over runs; None where it was not written down.
        p: that the difference to the best row is chance; None for the best row, or where they share no seed.
    """

    label: str
    method: str
    seeds: tuple[int, ...]
    averages: tuple[float, ...]
    forgettings: tuple[float, ...]
    final: dict[int, tuple[float, ...]]
    cpu_seconds: float | None
    p: float | None = None

    @property
    def mean(self) -> float:
        """The mean of the averages."""
        return fsum(self.averages) / len(self.averages)

    @property
    def spread(self) -> float | None:
        """The standard deviation of the averages over seeds; None for a single one."""
        return stdev(self.averages) if len(self.averages) > 1 else None

    @property
    def forgetting(self) -> float:
        """The mean of the forgettings."""
        return fsum(self.forgettings) / len(self.forgettings)


@dataclass(frozen=True)
class Comparison:
    """Rows, the best first, and what they have in common.

    `differing` are settings in which runs differ, and the values; `notices` are what a reader should know of single runs.
    """

    benchmark: str
    model: str
    n_tasks: int
    rows: tuple[Row, ...]
    differing: dict[str, tuple[str, ...]]
    notices: tuple[str, ...] = ()


def compare(directories: Sequence[Path]) -> Comparison:
    """Read finished runs and put them side by side.

    Raises:
        DamageError: the configuration of a run cannot be read.
        StoreError: a run is not finished, two of them are of other benchmarks, networks or numbers of tasks, or the same run is given twice.
    """
    runs = [read_run(directory) for directory in directories]
    for run in runs:
        if not run.finished or run.average_accuracy is None:
            what = f"process {holder(run.directory)} is at work there" if is_locked(run.directory) else f"to continue: {continuing(run)}"
            raise StoreError(f"cannot compare run '{run.directory}': it is not finished; {what}")
    first = runs[0]
    for run in runs[1:]:
        for what in ("benchmark", "model", "n_tasks"):
            here, there = getattr(first, what), getattr(run, what)
            if here != there:
                raise StoreError(
                    f"cannot compare '{first.directory}' with '{run.directory}': {what} is {here} in one and {there} in the other. Give runs of the same."
                )
    _check_tasks(runs)
    settings = [_settings(run) for run in runs]
    differing = {
        key: tuple(dict.fromkeys(str(each.get(key)) for each in settings))
        for key in sorted(set().union(*settings))
        if len({str(e.get(key)) for e in settings}) > 1
    }
    rows: dict[str, list[Run]] = {}
    for run, own in zip(runs, settings, strict=True):
        others = [each for each, of in zip(settings, runs, strict=True) if of.method == run.method]
        read = own.keys() - unread(run.method, own).keys()
        varied = [key for key in sorted(read) if len({str(each.get(key)) for each in others}) > 1]
        label = run.method + "".join(f" {key}={own[key]}" for key in varied if own[key] is not None)
        rows.setdefault(label, []).append(run)
    made = sorted((_row(label, group) for label, group in rows.items()), key=lambda row: -row.mean)
    best = made[0]
    tested = [row if row is best else replace(row, p=p_value(best.final, row.final)) for row in made]
    notices = tuple(f"{run.directory}: {notice}" for run in runs for notice in run.notices)
    return Comparison(first.benchmark, first.model, first.n_tasks, tuple(tested), differing, notices)


def _check_tasks(runs: Sequence[Run]) -> None:
    """Check that runs of one seed have the same tasks: where a task's data depend on how many were planned, their number is not enough.

    Raises:
        StoreError: two of them have not.
    """
    firsts: dict[int, Run] = {}
    for run in runs:
        first = firsts.setdefault(run.seed, run)
        for one, other in zip(first.tasks, run.tasks, strict=True):
            if one.info.details and other.info.details and (one.name, one.info) != (other.name, other.info):
                raise StoreError(
                    f"cannot compare '{first.directory}' with '{run.directory}': task '{one.name}' of one is not the task '{other.name}' of the other, "
                    f"though their seed is the same. Give runs that were started with the same number of tasks."
                )


def _settings(run: Run) -> dict[str, Any]:
    """Return the settings of learning that a run was made with; those that came after it count as they are by default.

    Raises:
        DamageError: its configuration cannot be read.
    """
    learn = run.config.get("learn")
    if not isinstance(learn, dict):
        raise DamageError(
            f"cannot compare run '{run.directory}': its {CONFIG} is missing, damaged or not the one that it was started with, so that nobody can tell its settings. Restore it from a copy."
        )
    return {**LearnConfig().model_dump(mode="json"), **learn}


def _row(label: str, runs: list[Run]) -> Row:
    """Gather the runs of one method."""
    runs = sorted(runs, key=lambda run: run.seed)
    seeds = [run.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise StoreError(
            f"cannot compare: two runs of {label} have the same seed ({', '.join(str(run.directory) for run in runs)}). Leave one out."
        )
    cpu = [fsum(task.cpu_seconds or 0.0 for task in run.tasks) for run in runs]
    return Row(
        label=label,
        method=runs[0].method,
        seeds=tuple(seeds),
        averages=tuple(run.average_accuracy or 0.0 for run in runs),
        forgettings=tuple(run.forgetting or 0.0 for run in runs),
        final={run.seed: tuple(value or 0.0 for value in run.matrix[-1]) for run in runs},
        cpu_seconds=fsum(cpu) / len(cpu) if all(cpu) else None,
    )


def p_value(one: Mapping[int, Sequence[float]], other: Mapping[int, Sequence[float]]) -> float | None:
    """Return the probability of a mean difference at least this large if methods made none; None where they share no seed.

    Args:
        one: seed -> final accuracy of each task.
        other: of the other method.
    """
    pairs = [a - b for seed in one if seed in other for a, b in zip(one[seed], other[seed], strict=True)]
    return flip_test(pairs) if pairs else None


def flip_test(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of a paired permutation test: signs are flipped.

    Reference: Fisher 1935, The Design of Experiments, section 21.

    >>> flip_test([0.1, 0.2, 0.3])
    0.25
    """
    values = np.asarray(differences)
    n = len(values)
    if n <= EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
        return float(np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-12))
    signs = np.random.default_rng(0).choice((1.0, -1.0), size=(N_DRAWS, n))
    return float((np.sum(np.abs(signs @ values) >= abs(values.sum()) - 1e-12) + 1) / (N_DRAWS + 1))


def render_comparison(found: Comparison) -> str:
    """Return a comparison as one HTML page that needs nothing else: a plot of every seed, and the table."""
    values = [value for row in found.rows for value in row.averages]
    low, high = min(values), max(values)
    beyond = 0.05 * (high - low or 0.01)  # on both sides, so that no dot lies on the edge
    plots = [_strip(row, low - beyond, high + beyond) for row in found.rows]
    return pages().get_template("compare.html").render(found=found, rows=list(zip(found.rows, plots, strict=True)), low=low, high=high)


def _strip(row: Row, low: float, high: float) -> Markup:
    """Draw the averages of a method on one line: a dot a seed, a tick at the mean."""

    def place(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    dots = Markup("").join(
        Markup('<circle class="new" cx="{}" cy="14" r="5"><title>seed {}: {:.2f} %</title></circle>').format(
            place(value), seed, 100 * value
        )
        for seed, value in zip(row.seeds, row.averages, strict=True)
    )
    tick = Markup('<line x1="{0}" x2="{0}" y1="3" y2="25" stroke="currentColor" stroke-width="2"/>').format(place(row.mean))
    spread = f", standard deviation {100 * row.spread:.2f}" if row.spread is not None else ""
    label = f"{row.label}: mean {100 * row.mean:.2f} %{spread}"
    return Markup('<svg class="strip" role="img" aria-label="{}" width="100%" height="28">{}{}</svg>').format(label, tick, dots)
