"""The files of a run directory, read and validated line by line; nothing here knows what they mean for a reader."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from clnp import rundir
from clnp.errors import StoreError
from clnp.files import digest, read_bounded
from clnp.parsing import parse_yaml
from clnp.rundir import checked

if TYPE_CHECKING:
    from pathlib import Path


class Record(BaseModel):
    """The base of all records: immutable, and keys from newer versions are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class TaskInfo(Record):
    """What a task is, known before it is learned."""

    name: str
    n_classes: int | None = None
    classes: tuple[str, ...] = ()
    details: dict[str, Any] = {}


class Started(Record):
    """The event `run_started`; `groups` is absent for methods without units."""

    benchmark: str
    method: str
    model: str
    seed: int
    n_tasks: int
    scenario: str = ""
    tasks: tuple[TaskInfo, ...] = ()
    groups: dict[str, int] | None = None
    versions: dict[str, Any] = {}
    command: str = ""
    config_sha256: str | None = None


class Progress(Record):
    """The newest event `epoch`, `phase` or `task_resumed`: what the task in training is at."""

    task: str
    phase: str
    epoch: int | None = None
    epochs: int | None = None
    loss: float | None = None


class Learned(Record):
    """The event `task_learned`; what concerns units and the margin is absent for methods without units."""

    task: str
    index: int
    seconds: float
    cpu_seconds: float | None = None
    accuracy_unpruned: float | None = None
    accuracy: float | None = None
    margin: float | None = None
    margin_paid: float | None = None
    claimed: dict[str, int] = {}
    reused: dict[str, int] = {}
    free: dict[str, int] = {}
    notices: tuple[str, ...] = ()


class Widened(Record):
    """The event `widened` or `undone`: the units of each group, and the free ones, after some were added or a task was taken back."""

    groups: dict[str, int]
    free: dict[str, int]


class Evaluated(Record):
    """The event `evaluated`: test accuracies of tasks 0..after."""

    after: int
    accuracies: tuple[float, ...]


class GroupSummary(Record):
    """The units of one group at the end."""

    n_units: int
    free: int
    claimed: dict[str, int] = {}
    reused: dict[str, int] = {}


class MarginSummary(Record):
    """What one task was allowed to give up, and gave up."""

    allowed: float
    paid: float
    accuracy_unpruned: float
    accuracy: float


class ForecastSummary(Record):
    """How many more tasks like the last ones fit; `tasks` is None where no group is used up."""

    tasks: float | None = None
    limiting_group: str | None = None
    assumption: str = ""


class Summary(Record):
    """The file `summary.json` of a finished run."""

    benchmark: str
    method: str
    model: str
    seed: int
    tasks: tuple[str, ...]
    accuracy_matrix: tuple[tuple[float | None, ...], ...]
    average_accuracy: float
    forgetting: float
    scenario: str = ""
    capacity: dict[str, GroupSummary] | None = None
    margin: dict[str, MarginSummary] | None = None
    forecast: ForecastSummary | None = None
    n_parameters: int | None = None
    seconds_per_task: tuple[float, ...] = ()
    cpu_seconds_per_task: tuple[float, ...] = ()
    versions: dict[str, Any] = {}
    command: str = ""
    full: str | None = None
    """Why no further task was learned."""


@dataclass
class Log:
    """What `events.jsonl` says, newest word first: a resumed run may report a task twice."""

    started: Started | None = None
    learned: dict[int, Learned] = field(default_factory=dict)
    evaluated: dict[int, Evaluated] = field(default_factory=dict)
    widened: Widened | None = None
    n_widened: int = 0
    widened_after: int = -1
    """The last task that was learned when the network was widened, or a task was undone."""
    undone: dict[str, bool] = field(default_factory=dict[str, bool])
    """Names of tasks that were undone; whether their files were deleted."""
    progress: Progress | None = None
    failed: str | None = None
    """Why the last task was given up, unless it was tried again."""
    n_resumed: int = 0
    first_time: float | None = None
    last_time: float | None = None
    n_unreadable: int = 0


def read_log(path: Path) -> Log:
    """Read `events.jsonl`, which may be missing, growing, or torn by a kill.

    A line without its newline is a write that never ended: dropped silently when it is unreadable. Unreadable lines before it are counted,
    so that the reader can be told.

    Args:
        path: the file; it need not exist.
    Returns: what the readable lines say.

    Raises:
        StoreError: the file is there and cannot be opened.
    """
    log = Log()
    *lines, rest = (_read_bytes(path) or b"").split(b"\n")
    *events, last = checked([*lines, rest])
    for line, event in zip(lines, events, strict=True):
        if line.strip() and not _apply_(log, event):
            log.n_unreadable += 1
    _apply_(log, last)
    return log


def read_summary(path: Path) -> Summary | None:
    """Read `summary.json`; None when the run has not written it yet.

    Raises:
        StoreError: the file is there and is not a summary. It is written in one step, so a kill is no excuse.
    """
    data = rundir.read_summary(path.parent)
    if data is None:
        return None
    try:
        return Summary.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise StoreError(
            f"cannot read the run summary '{path}': expected the summary that `clnp run` writes, found at {where}: {first['msg']}. "
            "Delete the file and give the same run command again: it rebuilds the summary."
        ) from error


def read_config(path: Path, sha256: str | None) -> dict[str, Any] | None:
    """Read `config.yaml`; None when it is missing, is no mapping or is not what it was: the events say enough to go on without it.

    Args:
        path: of the file.
        sha256: of what it was when the run was started, if the run wrote that down.
    """
    data = _read_bytes(path)
    if data is None or digest(data) != (sha256 or digest(data)):
        return None
    try:
        config: object = parse_yaml(data)
    except ValueError:
        return None
    return {str(key): value for key, value in cast("dict[Any, Any]", config).items()} if isinstance(config, dict) else None


def _read_bytes(path: Path) -> bytes | None:
    """Return the content of a file, None when there is none."""
    try:
        return read_bounded(path, rundir.MAX_EVENTS, path.parent)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or error
        raise StoreError(f"cannot read the run file '{path}': expected a readable file, found {found}. Check its permissions.") from error


def _apply_(log: Log, event: dict[str, Any] | None) -> bool:
    """Add one event to the log; False when it is not a readable one. Events of an unknown kind are readable and ignored."""
    if event is None:
        return False
    try:
        _apply_event_(log, event)
    except ValidationError:
        return False
    time = event.get("time")
    # What is done with the model of a finished run does not make it finish later.
    if isinstance(time, int | float) and event.get("event") not in ("widened", "undone"):
        log.first_time = time if log.first_time is None else log.first_time
        log.last_time = time
    return True


def _resume_(log: Log, index: object) -> None:
    """Forget what the resumed run does again: a task whose event was written, but not its model, is learned a second time."""
    log.n_resumed += 1
    log.progress = log.failed = None
    if isinstance(index, int):
        log.learned = {i: record for i, record in log.learned.items() if i < index}
        log.evaluated = {i: record for i, record in log.evaluated.items() if i < index}


def _apply_event_(log: Log, event: dict[str, Any]) -> None:
    """Add one event to the log; raise ValidationError, log unchanged, when its fields are not those of its kind."""
    match event.get("event"):
        case "run_started":
            log.started = Started.model_validate(event)
        case "run_resumed":
            _resume_(log, event.get("index"))
        case "task_resumed" if event.get("phase") is None:  # of an earlier process there is only the time it took
            log.progress = None
        case "epoch" | "phase" | "task_resumed":
            log.progress = Progress.model_validate(event)
        case "failed":
            log.failed, log.progress = str(event.get("message", "")), None
        case "task_learned":
            learned = Learned.model_validate(event)
            log.learned[learned.index] = learned
            log.progress = None
        case "widened" | "undone":
            log.widened = Widened.model_validate(event)
            log.n_widened += event["event"] == "widened"
            log.widened_after = max(log.learned, default=-1)
            if "task" in event:
                log.undone[str(event["task"])] = bool(event.get("purged"))
        case "evaluated":
            evaluated = Evaluated.model_validate(event)
            log.evaluated[evaluated.after] = evaluated
        case _:
            pass
