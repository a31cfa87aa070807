"""What can be done with the model of a run: load it, export, widen, undo. `clnp.experiment` makes runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from clnp import experiment, rundir, undoing, wider
from clnp.benchmarks import BENCHMARKS
from clnp.describe import is_there, open_ledger
from clnp.entries import Undone
from clnp.errors import StoreError, first_line
from clnp.experiment import RunConfig
from clnp.learner import Learner
from clnp.locks import locked
from clnp.models import MODELS, lookup

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from clnp.export import ExportResult, Format

Json = dict[str, Any]


def _read_config(out: Path) -> RunConfig:
    """Return the configuration of a run of method clnp that has learned a task."""
    try:
        config = RunConfig(**rundir.read_config(out))
    except (TypeError, ValueError) as error:
        raise StoreError(f"cannot read run '{out}': its {rundir.CONFIG} is damaged ({first_line(error)}).") from error
    if config.method != "clnp":
        raise StoreError(f"cannot take a learner from run '{out}': expected a run of method clnp, found one of {config.method}.")
    if not is_there(out / rundir.MODEL):
        raise StoreError(f"cannot take a learner from run '{out}': no task of it is learned yet.")
    if config.model not in MODELS:
        raise StoreError(f"cannot take a learner from run '{out}': this version of clnp has no model '{config.model}'.")
    return config


def trunk_of(out: Path) -> nn.Module:
    """Build the network of a run of method clnp. No data are needed.

    Raises:
        StoreError: as of `load_learner`.
    """
    return experiment.build_trunk(_read_config(out), open_ledger(out / rundir.MODEL)[1].example())


def load_learner(out: Path) -> tuple[Learner, RunConfig]:
    """Return the learner of a run of method clnp, with all tasks learned so far, and the run's configuration. No data are needed.

    Raises:
        StoreError: the directory is no run, is damaged, has learned no task yet, or is the run of a method without a learner.
    """
    config = _read_config(out)
    return Learner.load(out / rundir.MODEL, trunk_of(out)), config


def undo(out: Path, task: str | None = None, *, purge: bool = False) -> Undone:
    """Remove a task from the model of a run, see `clnp.undoing.undo`; the run itself is a record and goes no further.

    Raises:
        StoreError: as of `load_learner`, or another process is at work in the run.
        TaskError: there is no such task, or later tasks read its units.
    """
    _read_config(out)
    with locked(out, "undo a task of"):
        task = task or _half_undone(out)
        tombstone = undoing.undo(out / rundir.MODEL, task, purge=purge)
        learner, _ = load_learner(out)
        named = {"task": tombstone.task, "purged": tombstone.purged, "record": tombstone.number}
        rundir.append_event(out, {"event": "undone", **named, **_room(learner)})
        _update_summary(out, learner)
        return tombstone


def _half_undone(out: Path) -> str | None:
    """Return the task whose tombstone stands in the model of a run, while the run does not know it yet: an undo was cut short."""
    told = {event.get("record") for event in rundir.read_events(out) if event["event"] == "undone"}
    tombstones = [record for record in open_ledger(out / rundir.MODEL)[0].records if isinstance(record, Undone)]
    return next((record.task for record in tombstones if record.number not in told), None)


def _room(learner: Learner) -> Json:
    """Return what an event says of the units of each group, and of the free ones."""
    capacity = learner.capacity()
    return {
        "groups": {group: units.n_units for group, units in capacity.items()},
        "free": {group: units.free for group, units in capacity.items()},
    }


def _n_parameters(learner: Learner) -> int:
    """Count the parameters of a learner's network as wide as it is today."""
    return sum(learner._state[name].numel() for name in learner.wiring.graph.trainable)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def _update_summary(out: Path, learner: Learner) -> None:
    """Bring the units, the parameters and the forecast in the summary of a finished run up to date."""
    summary = rundir.read_summary(out)
    if summary is not None:
        capacity = {group: asdict(units) for group, units in learner.capacity().items()}
        today: Json = {"capacity": capacity, "forecast": asdict(learner.forecast()), "n_parameters": _n_parameters(learner)}
        rundir.write_summary(out, summary | today)


def export(out: Path, task: str, *, to: Format | None = None, file: Path | None = None, data: Path | None = None) -> ExportResult:
    """Export the predictor of one task of a run, checked on the test examples of that task.

    Args:
        out: the run directory.
        task: its name.
        to: the format; by default what the suffix of `file` says, or ONNX.
        file: where to; by default into the run directory, under the task's number: names of tasks are data, never paths.
        data: where the data files lie; None downloads them to the user's cache.

    Raises:
        StoreError: as of `load_learner`.
        ConfigError: there is no such task; the message lists those there are.
        ExportError: it cannot be exported, or what was exported differs; no file is left.
    """
    learner, config = load_learner(out)
    lookup("task", task, dict.fromkeys(learner.tasks))
    tasks = BENCHMARKS[config.benchmark].tasks(data, config.seed, config.n_tasks)
    # Not its place among those not undone; tasks that were learned in Python come after those of the run.
    index = list(dict.fromkeys([*(each.name for each in tasks), *learner.tasks])).index(task)
    if file is None:
        to = to or "onnx"
        file = out / f"task-{index:03d}.{to}"
    return learner.export(file, task=task, to=to, inputs=tasks[index].test[0] if index < len(tasks) else None)


def widen(out: Path, more: Mapping[str, int]) -> Json:
    """Give the network of a run more free units; old predictors stay what they are, and the run goes on in the wider network.

    Args:
        out: the run directory.
        more: group -> how many units are added.

    Returns: the event that was written: the units of each group now, and the free ones.

    Raises:
        StoreError: as of `load_learner`, or another process is at work in the run.
        WiringError: there is no such group, or the network's code does not allow it to be wider.
    """
    with locked(out, "widen"):
        learner, _ = load_learner(out)
        learner = wider.widen(learner, more)
        learner.save(out / rundir.MODEL)
        written = rundir.append_event(out, {"event": "widened", "added": dict(more), **_room(learner)})
        _update_summary(out, learner)
        return written
