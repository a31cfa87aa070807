"""What the command line shows: progress on stderr, results on stdout."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from clnp.report import verdict
from clnp.report.wording import UNKNOWN, duration, percent, share

if TYPE_CHECKING:
    from rich.console import RenderableType

    from clnp.report import Run
    from clnp.report.compare import Comparison

PLAIN_INTERVAL = 15.0  # seconds between two lines about the same task where stderr is no terminal


def bar(fraction: float, width: int = 20) -> str:
    """Draw a fraction as text.

    >>> bar(0.5, 4)
    '██░░'
    """
    filled = round(min(max(fraction, 0.0), 1.0) * width)
    return "█" * filled + "░" * (width - filled)


def exact(value: float | None) -> str:
    """Write forgetting so that an exact zero can be told from a small number.

    >>> exact(0.0), exact(0.0000001)
    ('0.0', '1e-07')
    """
    return UNKNOWN if value is None else "0.0" if value == 0.0 else f"{value:.4g}"


@dataclass
class Display:
    """Show the events of a run as they come: a moving bar on a terminal, plain lines anywhere else.

    A context manager that is called with each event. `epochs` is what one task takes at most, so the ETA is an upper bound where
    training stops early.
    """

    epochs: int
    n_tasks: int
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    n_units: int = 0
    index: int = 0  # the task in training
    done: int = 0  # its epochs so far
    began: tuple[float, int] = (0.0, 0)  # when this process began, and after how many epochs of the run
    last_line: float = 0.0  # when a line was last printed
    accuracy: float | None = None
    free: float | None = None
    bars: Progress | None = None

    def __enter__(self) -> Self:
        """Start the moving bar where there is a terminal."""
        self.last_line = time.monotonic()
        self.began = (self.last_line, 0)
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn(), TextColumn("{task.fields[state]}"))
            self.bars = Progress(*columns, console=self.console, transient=True)
            self.bars.add_task("starting", total=self.epochs * self.n_tasks, state="")
            self.bars.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Take the moving bar away."""
        if self.bars is not None:
            self.bars.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        match event["event"]:
            case "run_started":
                self.n_units = sum((event.get("groups") or {}).values())
                self.began = (time.monotonic(), 0)
            case "run_resumed":
                self.index = event["index"]
                self.began = (time.monotonic(), self.index * self.epochs)
                self._line(f"continuing: {self.index} of {self.n_tasks} tasks are learned")
            case "task_resumed" if event["phase"]:
                self.done = event["epochs_done"]
                self.began = (time.monotonic(), self._completed())
                self._line(
                    f"  task {self.index + 1}/{self.n_tasks} {event['task']}: going on in phase {event['phase']}, epoch {event['epoch']}"
                )
            case "notice":
                self._line(f"  note: {event['message']}")
            case "epoch":
                self.done += 1
                self._epoch(f"{event['task']}: {event['phase']} epoch {event['epoch']}/{event['epochs']}, loss {event['loss']:.4f}")
            case "phase":
                self._redraw(f"{event['task']}: {event['phase']}")
            case "task_learned":
                self._learned(event)
            case "evaluated":
                self.accuracy = sum(event["accuracies"]) / len(event["accuracies"])
                self._line(f"  test accuracy so far, mean of {len(event['accuracies'])}: {percent(self.accuracy)}")
            case "already_finished":
                self._line("this run is already finished: nothing was trained")
            case _:
                pass

    def _epoch(self, text: str) -> None:
        """Show an epoch: always in the moving bar, now and then as a line."""
        self._redraw(text)
        if self.bars is None and time.monotonic() - self.last_line > PLAIN_INTERVAL:
            self._line(f"  task {self.index + 1}/{self.n_tasks} {text}, ETA {self._eta()}")

    def _learned(self, event: dict[str, Any]) -> None:
        """Say what a task took and what it left."""
        parts = [f"task {event['index'] + 1}/{self.n_tasks} {event['task']}: learned in {duration(event['seconds'])}"]
        if self.n_units and "free" in event:
            self.free = sum(event["free"].values()) / self.n_units
            parts.append(f"units free {bar(self.free, 10)} {share(self.free)}")
        self.index, self.done = event["index"] + 1, 0
        if self.index < self.n_tasks:
            parts.append(f"ETA {self._eta()}")
        self._line(", ".join(parts))
        for notice in event.get("notices", ()):
            self._line(f"  note: {notice}")

    def _eta(self) -> str:
        """Extrapolate from the epochs that this process has done."""
        start, first = self.began
        completed = self._completed()
        here = completed - first
        return duration((time.monotonic() - start) / here * (self.epochs * self.n_tasks - completed)) if here else "?"

    def _completed(self) -> int:
        """Return the epochs of the run that are done, each task counted as the most it can take."""
        return self.index * self.epochs + min(self.done, self.epochs)

    def _redraw(self, text: str) -> None:
        """Move the bar."""
        if self.bars is None:
            return
        accuracy = "" if self.accuracy is None else f"  accuracy {percent(self.accuracy)}"
        free = "" if self.free is None else f"  free {bar(self.free, 10)} {share(self.free)}"
        completed = self._completed()
        place = f"task {min(self.index + 1, self.n_tasks)}/{self.n_tasks}"
        self.bars.update(TaskID(0), completed=completed, description=place, state=f"ETA {self._eta()}{accuracy}{free}  {text}")

    def _line(self, text: str) -> None:
        """Print a line that stays."""
        self.last_line = time.monotonic()
        self.console.print(text, soft_wrap=True, markup=False)


def results(run: Run) -> RenderableType:
    """Return the table of a run, finished or not: one row a task, then the totals and the room that is left."""
    state = "" if run.finished else f" · {len(run.tasks)} of {run.n_tasks} tasks learned"
    title = f"{run.benchmark} · {run.method} · {run.model} · seed {run.seed}{state}"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("task", overflow="fold")  # a name cut short could be any task's
    has_units = bool(run.groups)
    last = run.matrix[-1] if run.matrix else ()
    # A column for what was forgotten, only where something was: the table must fit a terminal of 80 characters.
    changed = any(row[task.index] != now for task, row, now in zip(run.tasks, run.matrix, last, strict=False))
    columns = ["accuracy", *(["at first"] if changed else []), *(["new units", "reused", "points paid"] if has_units else []), "time"]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for task in run.tasks:
        cells = [percent(last[task.index] if task.index < len(last) else None)]
        if changed:
            cells.append(percent(run.matrix[task.index][task.index] if task.index < len(run.matrix) else None))
        if has_units:
            cells += [str(sum(getattr(group, kind).get(task.name, 0) for group in run.groups)) for kind in ("claimed", "reused")]
            cells.append(f"{100 * task.margin.paid:.2f}" if task.margin else UNKNOWN)
        table.add_row(Text(task.name + (" (undone)" if task.undone else "")), *cells, duration(task.seconds))
    totals = Table.grid(padding=(0, 2))
    totals.add_row("average accuracy", percent(run.average_accuracy))
    totals.add_row("forgetting", exact(run.forgetting))
    for number, group in enumerate(sorted(run.groups, key=lambda group: group.fraction_free)):  # the bottleneck first
        label = "units free" if number == 0 else ""
        totals.add_row(label, f"{bar(group.fraction_free)} {share(group.fraction_free)} of {group.n_units} in", Text(group.name))
    return Group(table, totals, Text(f"{verdict(run)}."), *(Text(f"note: {notice}") for notice in run.notices))


def comparison(found: Comparison) -> RenderableType:
    """Return the table of a comparison: one row a method, the best first."""
    title = f"{found.benchmark} · {found.model} · {found.n_tasks} tasks"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("method", overflow="fold")
    for column in ("seeds", "accuracy", "±", "forgetting", "CPU time", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in found.rows:
        spread = UNKNOWN if row.spread is None else f"{100 * row.spread:.2f}"
        p = ("" if row is found.rows[0] else UNKNOWN) if row.p is None else "< 0.001" if row.p < 0.001 else f"{row.p:.3f}"
        forgetting = "0" if row.forgetting == 0 else f"{100 * row.forgetting:.2f}"
        cells = [str(len(row.seeds)), percent(row.mean), spread, forgetting, duration(row.cpu_seconds), p]
        table.add_row(Text(row.label), *cells)
    notes = [
        (
            "± is the standard deviation over seeds; forgetting is in points of accuracy; p that the difference to the first row is chance "
            "(paired over seeds and tasks)"
        )
    ]
    if any(row.p is None for row in found.rows[1:]):
        notes.append(f"{UNKNOWN}: it has no seed in common with the first row, so that nothing can be paired")
    notes += [f"{key} differs: {', '.join(values)}" for key, values in found.differing.items()]
    notes += found.notices
    return Group(table, *(Text(note, style="dim") for note in notes))
