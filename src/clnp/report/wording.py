"""Numbers and verdicts in words. Nothing is rounded to a stronger claim: a used layer is never "100 % free", a loss never "0 points"."""

from __future__ import annotations

import shlex
from math import floor, isfinite
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clnp.report.run import Run

UNKNOWN = "n/a"


def verdict(run: Run) -> str:
    """Say in one sentence, without a full stop, how a run went: tasks, forgetting, room left, what still fits.

    Only what the run measured is said: nothing about forgetting before there is a second task, nothing about room for methods that
    claim no units, no forecast before the run is finished.

    Args:
        run: as `read_run` returns it.
    Returns: for example "10 tasks, nothing forgotten, 41 % of the units free, about 9 more such tasks fit".
    """
    parts = [_extent(run), _forgetting(run), _room(run), _forecast(run)]
    return ", ".join(part for part in parts if part)


def continuing(run: Run) -> str:
    """Return the command that goes on with a run where it lies today: the one it was started with, with another --out if it was moved."""
    words = shlex.split(run.command)
    given = next((place for place, word in enumerate(words) if word == "--out" or word.startswith("--out=")), None)
    if given is None:
        place, rest = f"runs/{run.benchmark}-{run.method}-seed{run.seed}", words
    else:
        width = 1 if "=" in words[given] else 2
        place, rest = (
            words[given].partition("=")[2] if width == 1 else "".join(words[given + 1 :][:1]),
            words[:given] + words[given + width :],
        )
    if Path(place).resolve() == run.directory.resolve():
        return run.command
    return shlex.join([*rest, "--out", str(run.directory)])


def _extent(run: Run) -> str:
    """Say how many tasks were learned, and how many of them were undone."""
    undone = sum(task.undone for task in run.tasks)
    gone = f" ({undone} of them undone since)" if undone else ""
    if run.finished:
        return count(len(run.tasks), "task") + gone
    if not run.tasks:
        return f"unfinished: none of {count(run.n_tasks, 'task')} learned yet"
    return f"unfinished: {len(run.tasks)} of {count(run.n_tasks, 'task')} learned{gone}"


def _forgetting(run: Run) -> str:
    """Say what was forgotten; empty when nothing could be: fewer than two tasks measured."""
    if run.forgetting is None or len(run.matrix) < 2:
        return ""
    worst = max(run.drops, default=0.0)
    if worst > 0 and run.forgetting <= 0:
        return f"nothing forgotten on average, but {points(worst)} of accuracy on one task"
    if run.forgetting > 0:
        several = len(run.drops) > 1
        return f"{points(run.forgetting)} of accuracy forgotten" + (f" on average (up to {points(worst)} on one task)" if several else "")
    gained = f" (earlier tasks gained {points(-run.forgetting)})" if run.forgetting < 0 else ""
    return f"nothing forgotten{gained}"


def _room(run: Run) -> str:
    """Say how many units are free; the tightest layer is named where it is much tighter than the whole."""
    tightest, fraction = run.tightest, run.fraction_free
    if tightest is None or fraction is None:
        return "room not known yet" if run.claims_units is None else f"room not counted (method {run.method} claims no units)"
    if fraction == 0:
        return "no unit free"
    text = f"{share(fraction)} of the units free"
    if tightest.free == 0:
        return f"{text} (layer {tightest.name} is full)"
    if share(tightest.fraction_free) != share(fraction):
        return f"{text} ({share(tightest.fraction_free)} in the tightest layer)"
    return text


def _forecast(run: Run) -> str:
    """Say how many more tasks fit; rounded down, because a part of a task is no task."""
    if run.forecast is None or run.forecast.tasks is None or not isfinite(run.forecast.tasks):
        return ""
    fit = floor(run.forecast.tasks)
    if fit < 1:
        return "no further such task fits"
    if fit > 99:
        return "more than 99 more such tasks fit"
    return f"about {fit} more such {'task fits' if fit == 1 else 'tasks fit'}"


def count(n: int, noun: str) -> str:
    """Return a number and its noun, which takes an s.

    >>> count(1, "task"), count(10, "task")
    ('1 task', '10 tasks')
    """
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def percent(fraction: float | None) -> str:
    """Return an accuracy with the two decimals that ten thousand test images resolve.

    >>> percent(0.9855), percent(None)
    ('98.55 %', 'n/a')
    """
    return UNKNOWN if fraction is None or not isfinite(fraction) else f"{100 * fraction:.2f} %"


def points(fraction: float | None) -> str:
    """Return a difference of accuracies in percentage points.

    >>> points(0.0031), points(0.3141), points(-0.0005), points(0.0), points(0.00001)
    ('0.31 points', '31.41 points', '-0.05 points', '0 points', 'less than 0.01 points')
    """
    if fraction is None or not isfinite(fraction):
        return UNKNOWN
    if fraction == 0:
        return "0 points"
    if abs(fraction) < 0.00005:
        return ("less than " if fraction > 0 else "more than -") + "0.01 points"
    return f"{100 * fraction:.2f} points"


def share(fraction: float) -> str:
    """Return a part of a whole in whole percents; only none is "0 %" and only all is "100 %".

    >>> share(0.41), share(0.0), share(0.001), share(0.9999), share(1.0)
    ('41 %', '0 %', 'under 1 %', 'over 99 %', '100 %')
    """
    if 0 < fraction < 0.01:
        return "under 1 %"
    if 0.99 < fraction < 1:
        return "over 99 %"
    return f"{100 * fraction:.0f} %"


def duration(seconds: float | None) -> str:
    """Return a time in the units that people would use.

    >>> duration(0.84), duration(42.4), duration(252), duration(7380), duration(None)
    ('0.8 s', '42 s', '4 min 12 s', '2 h 03 min', 'n/a')
    """
    if seconds is None or not isfinite(seconds):
        return UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def magnitude(n: int | None) -> str:
    """Return a large count in three digits.

    >>> magnitude(5_594_010), magnitude(81_200), magnitude(640)
    ('5.59 million', '81.2 thousand', '640')
    """
    if n is None:
        return UNKNOWN
    for scale, word in ((1e9, " billion"), (1e6, " million"), (1e4, " thousand")):
        if n >= scale:
            return f"{n / (1e3 if scale == 1e4 else scale):.3g}{word}"
    return f"{n:,}"
