"""The report page: what each section shows, computed here; how it looks stands in templates/."""

from __future__ import annotations

from datetime import UTC, datetime
from math import fsum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from clnp.errors import StoreError
from clnp.files import write_atomic
from clnp.report import wording
from clnp.report.charts import Segment, bar, heat_step, task_colours
from clnp.report.pages import pages
from clnp.report.run import read_run

if TYPE_CHECKING:
    from clnp.report.run import Group, LearnedTask, Run

SCENARIOS = {
    "task-incremental": "The network is told which task an example belongs to.",
    "domain-incremental": "The classes stay the same, what the examples look like changes with the task.",
    "class-incremental": "Every task brings new classes, and one head has to tell all of them apart.",
}
# The heat map spans at least this much accuracy, so that noise of a tenth of a point is not painted as a drama.
SMALLEST_HEAT_RANGE = 0.10

Row = dict[str, Any]


def write_report(run_dir: Path | str, out: Path | str | None = None) -> Path:
    """Write the report of a run as one HTML file that needs nothing else: no network, no script, no other file.

    Only the run directory is read, at whatever state the run is. The same directory gives the same bytes. The file appears
    in one step (temporary file, then rename), so a browser never sees half of it.

    Args:
        run_dir: the directory that `clnp run --out` wrote.
        out: the file to write, or a directory to write `report.html` into; by default the run directory.
    Returns: the file that was written.

    Raises:
        StoreError: the directory holds no run, or the file cannot be written.
    """
    run = read_run(run_dir)
    path = run.directory if out is None else Path(out)
    path = path / "report.html" if path.is_dir() else path
    write_page(path, render(run), "report")
    return path


def write_page(path: Path, html: str, what: str) -> None:
    """Write a page as a whole, and the directories that lead to it.

    Raises:
        StoreError: it cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, html)
    except OSError as error:
        raise StoreError(
            f"cannot write the {what} '{path}': expected a place that can be written to, found {error.strerror}. Choose another with --out."
        ) from error


def render(run: Run) -> str:
    """Return the report of a run as HTML; every text from the run is escaped."""
    environment = pages()
    environment.filters.update(
        percent=wording.percent, points=wording.points, share=wording.share, duration=wording.duration, utc=_utc, plain=_plain
    )
    verdict = wording.verdict(run)
    return environment.get_template("report.html").render(
        run=run,
        verdict=verdict,
        headline=verdict[0].upper() + verdict[1:].replace(" %", "\N{NO-BREAK SPACE}%"),  # a line never begins with a lonely %
        tiles=_tiles(run),
        heat=_heat(run),
        occupancy=_occupancy(run),
        reuse=_reuse(run),
        margins=_margins(run),
        times=_times(run),
        forecast=_forecast(run),
        scenario=SCENARIOS.get(run.scenario, ""),
        config=yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True).rstrip() if run.config else "",
        task_colours=task_colours(max(len(run.matrix), *(task.index + 1 for task in run.tasks), 0)),
    )


def _tiles(run: Run) -> list[Row]:
    """Return the key numbers: label, value, and one line on what the value is."""
    n_measured = len(run.matrix)
    tiles: list[Row] = [
        {
            "label": "Average accuracy",
            "value": wording.percent(run.average_accuracy),
            "note": f"on test data, mean of {wording.count(n_measured, 'task')}" if n_measured else "no task measured yet",
        }
    ]
    if n_measured > 1:
        worst = max(run.drops, default=0.0)
        note = f"worst task: {wording.points(worst)}" if worst > 0 else "no task lost any test accuracy"
        tiles.append({"label": "Forgetting", "value": wording.points(run.forgetting), "note": note})
    if run.tightest:
        group = run.tightest
        tiles.append(
            {
                "label": "Tightest layer",
                "value": f"{wording.share(group.fraction_free)} free",
                "note": f"{group.name}: {group.free:,} of {wording.count(group.n_units, 'unit')}",
            }
        )
    if run.n_parameters is not None:
        tiles.append(
            {"label": "Parameters", "value": wording.magnitude(run.n_parameters), "note": f"{run.n_parameters:,} numbers in the network"}
        )
    seconds = [task.seconds for task in run.tasks if task.seconds is not None]
    if seconds:
        cpu = [task.cpu_seconds for task in run.tasks if task.cpu_seconds is not None]
        note = f"processor time: {wording.duration(fsum(cpu))}" if cpu else f"for {wording.count(len(seconds), 'task')}"
        tiles.append({"label": "Time to learn", "value": wording.duration(fsum(seconds)), "note": note})
    return tiles


def _heat(run: Run) -> Row:
    """Return the accuracy matrix as rows of cells on one colour scale; a cell knows its change since its task was learned."""
    values = [a for row in run.matrix for a in row if a is not None]
    high = max(values, default=1.0)
    low = max(0.0, min([*values, high - SMALLEST_HEAT_RANGE]))
    rows: list[Row] = []
    for t, row in enumerate(run.matrix):
        cells: list[Row | None] = []
        for j, accuracy in enumerate(row):
            first = run.matrix[j][j] if j < len(run.matrix[j]) else None
            if accuracy is None:
                cells.append(None)
                continue
            change = accuracy - first if first is not None and j < t else 0.0
            cells.append({"accuracy": accuracy, "step": heat_step(accuracy, low, high), "change": change})
        measured = [a for a in row[: t + 1] if a is not None]
        rows.append({"index": t, "cells": cells, "mean": fsum(measured) / len(measured) if measured else None})
    return {"rows": rows, "low": low, "high": high, "names": _names(run)}


def _names(run: Run) -> dict[int, str]:
    """Return the task names by index: the planned ones, over them those that were learned."""
    return {index: info.name for index, info in enumerate(run.planned)} | {task.index: task.name for task in run.tasks}


def _occupancy(run: Run) -> list[Row]:
    """Return one bar a group, the tightest group first, the others in the network's order."""
    tightest = run.tightest
    groups = sorted(run.groups, key=lambda group: group is not tightest)  # stable: only the tightest moves
    return [
        {"group": group, "tightest": group is tightest and len(groups) > 1, "bar": _occupancy_bar(run, group), "other": _other(run, group)}
        for group in groups
    ]


def _occupancy_bar(run: Run, group: Group) -> Any:
    """Draw who owns the units of one group."""
    whole = max(group.n_units, 1)
    segments: list[Segment] = []
    for task in run.tasks:
        n = group.claimed.get(task.name, 0)
        segments.append(Segment(n / whole, f"t{task.index}", str(task.index + 1), f"{task.index + 1} {task.name}: {n:,} units claimed"))
    other = _other(run, group)
    segments.append(Segment(other / whole, "other", "", f"{other:,} units with another owner"))
    free = Segment(group.free / whole, "free", "free", f"{group.free:,} units free")
    owned = ", ".join(f"task {task.index + 1} {group.claimed.get(task.name, 0)}" for task in run.tasks)
    return bar([*segments, free], f"{group.name}, units: {owned + ', ' if owned else ''}free {group.free} of {group.n_units}")


def _other(run: Run, group: Group) -> int:
    """Return the units that are neither free nor claimed by a task of this run."""
    return max(0, group.n_units - group.free - sum(group.claimed.get(task.name, 0) for task in run.tasks))


def _reuse(run: Run) -> list[Row]:
    """Return for every group one cell a task: new units claimed, old units read, how many old ones there were, and a bar."""
    rows: list[Row] = []
    for group in run.groups:
        whole = max(group.n_units, 1)
        available = _other(run, group)  # units that were claimed before this run can be read too
        cells: list[Row] = []
        for task in run.tasks:
            new, old = group.claimed.get(task.name, 0), group.reused.get(task.name, 0)
            label = f"{group.name}, task {task.index + 1}: {old} old units read, {new} new units claimed, of {group.n_units}"
            segments = [
                Segment(old / whole, "old", "", f"{old:,} old units read"),
                Segment(new / whole, "new", "", f"{new:,} new units claimed"),
            ]
            cells.append({"new": new, "old": old, "available": available, "bar": bar(segments, label, height=8)})
            available += new
        rows.append({"group": group, "cells": cells})
    return rows


def _margins(run: Run) -> list[Row]:
    """Return what pruning cost each task, and which part of the allowance that was."""
    rows: list[Row] = []
    for task in run.tasks:
        margin = task.margin
        if margin is None:
            continue
        used = margin.paid / margin.allowed if margin.allowed > 0 else 0.0
        over = margin.paid > margin.allowed + 1e-9  # differences of fractions carry rounding
        label = f"task {task.index + 1}: {wording.points(margin.paid)} paid of {wording.points(margin.allowed)} allowed"
        segments = [Segment(max(used, 0.0), "over" if over else "paid", "", label)]
        rows.append({"task": task, "margin": margin, "over": over, "bar": bar(segments, label, height=10)})
    return rows


def _times(run: Run) -> list[Row]:
    """Return how long each task took, beside the slowest."""
    longest = max((task.seconds or 0.0 for task in run.tasks), default=0.0)
    return [{"task": task, "bar": _time_bar(task, longest)} for task in run.tasks if task.seconds is not None]


def _time_bar(task: LearnedTask, longest: float) -> Any:
    """Draw the time of one task as a part of the longest."""
    label = f"task {task.index + 1}: {wording.duration(task.seconds)}"
    return bar([Segment((task.seconds or 0.0) / longest if longest > 0 else 0.0, "time", "", label)], label, height=10)


def _forecast(run: Run) -> Row | None:
    """Return the forecast in words; None for methods without units."""
    if not run.groups:
        return None
    if run.forecast is None:
        text = "No forecast was recorded." if run.finished else "The forecast is made when the run is finished."
        return {"text": text, "assumption": ""}
    tasks, group = run.forecast.tasks, run.forecast.limiting_group
    if tasks is None:
        text = "No layer fills up at the rate of this run, so no number of further tasks can be named."
    elif tasks < 1:
        text = "No further task that needs as many new units fits."
        text += " What fits is a task that makes do with the units already there, or with fewer new ones."
    else:
        fit = int(tasks)
        text = f"About {wording.count(fit, 'more task')} like these {'fits' if fit == 1 else 'fit'}."
    return {
        "text": text + (f" The layer that fills up first is {group}." if group and tasks is not None else ""),
        "assumption": run.forecast.assumption,
    }


def _utc(time: float | None) -> str:
    """Return a point in time, in words that mean the same everywhere."""
    return wording.UNKNOWN if time is None else datetime.fromtimestamp(time, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _plain(value: object) -> str:
    """Return a value from a task's details or the versions as one line of text."""
    return (
        value
        if isinstance(value, str)
        else yaml.safe_dump(value, default_flow_style=True, allow_unicode=True).removesuffix("...\n").strip()
    )
