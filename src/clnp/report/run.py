"""A run as its reader sees it: finished or not, one shape, from the files of the run directory alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clnp.errors import DataError, StoreError
from clnp.metrics import average_accuracy, forgetting
from clnp.report.records import ForecastSummary, Log, Started, Summary, TaskInfo, read_config, read_log, read_summary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clnp.report.records import Progress


@dataclass(frozen=True)
class Group:
    """The units of one group (a layer, or several that are tied): free ones, and by task those it claimed and the old ones it reads."""

    name: str
    n_units: int
    free: int
    claimed: Mapping[str, int]
    reused: Mapping[str, int]

    @property
    def fraction_free(self) -> float:
        """Free units over all units; a group without units counts as full."""
        return self.free / self.n_units if self.n_units else 0.0


@dataclass(frozen=True)
class Margin:
    """What pruning was allowed to cost one task and what it cost, fractions of validation accuracy; `paid` < 0 is a gain."""

    allowed: float
    paid: float
    accuracy_unpruned: float
    accuracy: float


@dataclass(frozen=True)
class LearnedTask:
    """One task that was learned; `index` counts from 0, times are in seconds, what was not recorded is None. `undone`: it is no more."""

    index: int
    name: str
    info: TaskInfo
    seconds: float | None
    cpu_seconds: float | None
    margin: Margin | None
    notices: tuple[str, ...]
    undone: bool = False


@dataclass(frozen=True)
class Run:
    """Everything that a run directory says.

    `matrix[t][j]` is the test accuracy of task j after task t, None where it was not measured. `groups` is empty for methods without units (`claims_units`
    is False) and before the first event (it is None).
    A run that is not `finished` is still running or was stopped: its directory cannot tell which; `progress` is what it did last, and
    `forecast` and `n_parameters` are not known yet. `failed` says why it gave up its last task, if it did.
    """

    directory: Path
    benchmark: str
    method: str
    model: str
    scenario: str
    seed: int
    finished: bool
    n_tasks: int
    planned: tuple[TaskInfo, ...]
    tasks: tuple[LearnedTask, ...]
    matrix: tuple[tuple[float | None, ...], ...]
    average_accuracy: float | None
    forgetting: float | None
    claims_units: bool | None
    groups: tuple[Group, ...]
    forecast: ForecastSummary | None
    n_parameters: int | None
    progress: Progress | None
    failed: str | None
    first_time: float | None
    last_time: float | None
    n_resumed: int
    notices: tuple[str, ...]
    versions: Mapping[str, Any]
    command: str
    config: Mapping[str, Any]

    @property
    def tightest(self) -> Group | None:
        """The group with the smallest fraction of free units (the first of equals): the one that decides how much more fits."""
        return min(self.groups, key=lambda group: group.fraction_free, default=None)

    @property
    def fraction_free(self) -> float | None:
        """Free units over all units of all groups; None for methods without units."""
        n_units = sum(group.n_units for group in self.groups)
        return sum(group.free for group in self.groups) / n_units if n_units else None

    @property
    def drops(self) -> tuple[float, ...]:
        """For each task but the last evaluated one: its best earlier accuracy minus its accuracy now; 0.0 where nothing changed."""
        if not self.matrix:
            return ()
        *rows, last = self.matrix
        drops: list[float] = []
        for j in range(len(rows)):
            earlier = [a for row in rows[j:] if j < len(row) and (a := row[j]) is not None]
            now = last[j] if j < len(last) else None
            if earlier and now is not None:
                drops.append(max(earlier) - now)
        return tuple(drops)


def read_run(run_dir: Path | str) -> Run:
    """Read a run directory: finished, still running, or killed.

    Only `config.yaml`, `events.jsonl` and `summary.json` are read, and any of them may be missing as long as one of them shows what
    was run. A summary that is older than the events (a run that was continued with more tasks) gives way to the events.

    Args:
        run_dir: the directory that `clnp run --out` wrote.
    Returns: the run.

    Raises:
        StoreError: the directory is missing or holds no run, or `summary.json` is damaged.
    """
    directory = Path(run_dir)
    if not directory.is_dir():
        found = "a file" if directory.exists() else "nothing there"
        raise StoreError(
            f"cannot read a run from '{directory}': expected a run directory, found {found}. Give the directory that `clnp run` wrote."
        )
    log = read_log(directory / "events.jsonl")
    summary = read_summary(directory / "summary.json")
    config = read_config(directory / "config.yaml", log.started and log.started.config_sha256)
    started = log.started or _started(summary, config or {})
    if started is None:
        raise StoreError(
            f"cannot read a run from '{directory}': expected events.jsonl with the event 'run_started' or a summary.json, found neither. "
            "Give the directory that `clnp run` wrote."
        )
    finished = summary is not None and len(summary.tasks) >= max(0 if summary.full else started.n_tasks, len(log.learned))
    notices = _notices(log, config)
    if summary is not None and finished:
        return _finished(directory, started, summary, log, config or {}, notices)
    return _unfinished(directory, started, log, config or {}, notices)


def _started(summary: Summary | None, config: Mapping[str, Any]) -> Started | None:
    """Return what the event `run_started` would have said, from the other two files; None when they do not say it."""
    if summary is not None:
        tasks = tuple(TaskInfo(name=name) for name in summary.tasks)
        return Started(
            benchmark=summary.benchmark,
            method=summary.method,
            model=summary.model,
            seed=summary.seed,
            scenario=summary.scenario,
            n_tasks=len(tasks),
            tasks=tasks,
        )
    try:
        return Started.model_validate(config)
    except ValueError:  # pydantic's ValidationError: this file is not the config of a run
        return None


def _notices(log: Log, config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return what the reader must know about the files themselves."""
    notices: list[str] = []
    if log.started is None:
        notices.append("events.jsonl does not say how the run was started: what stands only there is missing here.")
    if log.n_unreadable:
        lines = "1 line" if log.n_unreadable == 1 else f"{log.n_unreadable} lines"
        notices.append(
            f"{lines} of events.jsonl could not be read and were left out; a run that was killed while writing leaves such lines."
        )
    for name, purged in log.undone.items():
        what = "it was undone and its file deleted" if purged else "it was undone"
        notices.append(
            f"Task '{name}' is no more: {what} after it was measured, and averages still count it. "
            f"Its units are free again; the other tasks have not changed."
        )
    if log.n_widened:
        notices.append("The network was widened: it has more units and parameters than the command by which this run was started makes.")
    if config is None:
        notices.append(
            "config.yaml is missing, damaged or not the one that the run was started with: the settings of this run are not shown."
        )
    return tuple(notices)


def _finished(directory: Path, started: Started, summary: Summary, log: Log, config: Mapping[str, Any], notices: tuple[str, ...]) -> Run:
    """Return a finished run: the summary's numbers, and from the events what it leaves out."""
    infos = {info.name: info for info in started.tasks}
    learned = {record.task: record for record in log.learned.values()}
    tasks: list[LearnedTask] = []
    for index, name in enumerate(summary.tasks):
        margin = (summary.margin or {}).get(name)
        tasks.append(
            LearnedTask(
                index=index,
                name=name,
                info=infos.get(name, TaskInfo(name=name)),
                seconds=_get(summary.seconds_per_task, index),
                cpu_seconds=_get(summary.cpu_seconds_per_task, index),
                margin=Margin(**margin.model_dump()) if margin else None,
                notices=learned[name].notices if name in learned else (),
                undone=name in log.undone,
            )
        )
    capacity = summary.capacity or {}
    return Run(
        directory=directory,
        benchmark=summary.benchmark,
        method=summary.method,
        model=summary.model,
        scenario=summary.scenario or started.scenario,
        seed=summary.seed,
        finished=True,
        n_tasks=len(tasks),
        planned=started.tasks,
        tasks=tuple(tasks),
        matrix=summary.accuracy_matrix,
        average_accuracy=summary.average_accuracy,
        forgetting=summary.forgetting,
        claims_units=summary.capacity is not None,
        groups=tuple(Group(name, g.n_units, g.free, g.claimed, g.reused) for name, g in capacity.items()),
        forecast=summary.forecast,
        n_parameters=summary.n_parameters,
        progress=None,
        failed=None,
        first_time=log.first_time,
        last_time=log.last_time,
        n_resumed=log.n_resumed,
        notices=(*notices, f"The run ended here: {summary.full}") if summary.full else notices,
        versions=summary.versions or started.versions,
        command=summary.command or started.command,
        config=config,
    )


def _unfinished(directory: Path, started: Started, log: Log, config: Mapping[str, Any], notices: tuple[str, ...]) -> Run:
    """Return a run without a (current) summary, from its events alone."""
    infos = {info.name: info for info in started.tasks}
    tasks: list[LearnedTask] = []
    for index, record in sorted(log.learned.items()):
        margin = None
        if record.margin is not None and record.accuracy is not None and record.accuracy_unpruned is not None:
            paid = record.accuracy_unpruned - record.accuracy if record.margin_paid is None else record.margin_paid
            margin = Margin(record.margin, paid, record.accuracy_unpruned, record.accuracy)
        info = infos.get(record.task, TaskInfo(name=record.task))
        is_undone = record.task in log.undone
        tasks.append(LearnedTask(index, record.task, info, record.seconds, record.cpu_seconds, margin, record.notices, is_undone))
    matrix = _matrix(log)
    return Run(
        directory=directory,
        benchmark=started.benchmark,
        method=started.method,
        model=started.model,
        scenario=started.scenario,
        seed=started.seed,
        finished=False,
        n_tasks=started.n_tasks,
        planned=started.tasks,
        tasks=tuple(tasks),
        matrix=matrix,
        average_accuracy=_metric(average_accuracy, matrix),
        forgetting=_metric(forgetting, matrix),
        claims_units=None if log.started is None else log.started.groups is not None,
        groups=_groups(started, log),
        forecast=None,
        n_parameters=None,
        progress=log.progress,
        failed=log.failed,
        first_time=log.first_time,
        last_time=log.last_time,
        n_resumed=log.n_resumed,
        notices=notices,
        versions=started.versions,
        command=started.command,
        config=config,
    )


def _groups(started: Started, log: Log) -> tuple[Group, ...]:
    """Return the groups as the tasks learned so far left them."""
    records = [record for _, record in sorted(log.learned.items())]
    groups: list[Group] = []
    widened = log.widened
    for name, n_units in ((started.groups if widened is None else widened.groups) or {}).items():
        claimed = {record.task: record.claimed.get(name, 0) for record in records}
        reused = {record.task: record.reused.get(name, 0) for record in records}
        if widened is not None and log.widened_after == max(log.learned, default=-1):
            free = widened.free.get(name, n_units)
        else:
            free = records[-1].free.get(name, n_units - sum(claimed.values())) if records else n_units
        groups.append(Group(name, n_units, free, claimed, reused))
    return tuple(groups)


def _matrix(log: Log) -> tuple[tuple[float | None, ...], ...]:
    """Return the square accuracy matrix of the evaluations so far; a row that was never measured is all None."""
    size = max(log.evaluated, default=-1) + 1
    rows: list[tuple[float | None, ...]] = []
    for after in range(size):
        accuracies = log.evaluated[after].accuracies[:size] if after in log.evaluated else ()
        rows.append((*accuracies, *(None,) * (size - len(accuracies))))
    return tuple(rows)


def _metric(metric: Any, matrix: tuple[tuple[float | None, ...], ...]) -> float | None:
    """Return a metric of the matrix, None when accuracies that it needs were not measured."""
    try:
        return float(metric(matrix))
    except DataError:
        return None


def _get(values: tuple[float, ...], index: int) -> float | None:
    """Return one of the values, None past their end."""
    return values[index] if index < len(values) else None
