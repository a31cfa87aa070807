"""Run the tasks of a benchmark in order, write down what happens, and go on where a killed run stopped.

Learning a task depends on nothing but the seed, the task's place and the model so far, so a run that was killed and
continued ends with the same numbers as one that was not.
"""

from __future__ import annotations

import contextlib
import platform
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from clnp import __version__, metrics, modes, rundir, seeds, stopping, training, work
from clnp.benchmarks import BENCHMARKS
from clnp.config import LearnConfig
from clnp.errors import CapacityError, ConfigError, DataError, StoreError, TrainingError
from clnp.inputs import Inputs, cut, parts
from clnp.locks import locked
from clnp.methods import METHODS
from clnp.models import MODELS, lookup

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from clnp.data.task import Split, Task
    from clnp.methods import Method

Json = dict[str, Any]


class RunConfig(BaseModel):
    """Everything that a run's numbers depend on, but for the data and the versions of the software."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    benchmark: str = Field(description="a key of clnp.benchmarks.BENCHMARKS")
    method: str = Field("clnp", description="a key of clnp.methods.METHODS")
    model: str = Field(description="a key of clnp.models.MODELS")
    seed: int = Field(0, description="the seed of the tasks, the network and the training")
    n_tasks: int = Field(description="how many tasks are learned, in order")
    learn: LearnConfig = Field(description="how each task is learned")


def configure(
    benchmark: str,
    *,
    method: str | None = None,
    model: str | None = None,
    seed: int | None = None,
    n_tasks: int | None = None,
    settings: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Fill in what was not said: first from `defaults` (a configuration file), then from the benchmark, then from LearnConfig.

    Args:
        benchmark: a key of BENCHMARKS.
        method: a key of METHODS.
        model: a key of MODELS; None takes the benchmark's own.
        seed: any integer.
        n_tasks: None takes the benchmark's own number.
        settings: fields of LearnConfig; they win over everything else.
        defaults: a mapping of the shape of a run's config.yaml, any part of which may be missing.

    Raises:
        ConfigError: a name or a setting is unknown (with the nearest one that exists), or a value cannot work.

    >>> configure("digits", settings={"epochs": 3}).learn.epochs
    3
    """
    given = {key: value for key, value in (defaults or {}).items() if value is not None}
    for key in given:
        if key in LearnConfig.model_fields:
            raise ConfigError(f"cannot use the configuration file: '{key}' is a setting of learning; put it under 'learn:'.")
        lookup("key in the configuration file", key, RunConfig.model_fields)
    chosen = lookup("benchmark", benchmark, BENCHMARKS)
    if given.get("benchmark", benchmark) != benchmark:
        raise ConfigError(f"cannot run '{benchmark}': the configuration file is for benchmark '{given['benchmark']}'.")
    from_file = given.get("learn", {})
    if not isinstance(from_file, dict):
        raise ConfigError(f"cannot use the configuration file: expected settings under 'learn:', found {from_file!r}.")
    learn = {**chosen.config, **from_file, **(settings or {})}
    for key in learn:
        lookup("setting", key, LearnConfig.model_fields)
    chosen_method, chosen_model = _first(method, given.get("method"), "clnp"), _first(model, given.get("model"), chosen.model)
    lookup("method", chosen_method, METHODS)
    lookup("model", chosen_model, MODELS)
    return RunConfig(
        benchmark=benchmark,
        method=chosen_method,
        model=chosen_model,
        seed=_whole("seed", _first(seed, given.get("seed"), 0)),
        n_tasks=_whole("n_tasks", _first(n_tasks, given.get("n_tasks"), chosen.n_tasks), 1),
        learn=LearnConfig(**learn),
    )


def _first(*values: Any) -> Any:
    """Return the first value that was said."""
    return next(value for value in values if value is not None)


def said(benchmark: str, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Return the settings of learning that somebody chose: those given, and those of a configuration file that are not the benchmark's own."""
    own = configure(benchmark).learn.model_dump(mode="json")
    return list(dict.fromkeys([*settings, *(key for key, value in (defaults.get("learn") or {}).items() if value != own[key])]))


def _whole(name: str, value: Any, least: int = 0) -> int:
    """Return a whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"cannot use this configuration: {name}: expected a whole number of at least {least}, found {value!r}.")
    return value


def _silent(_event: Json) -> None:
    """Show nothing."""


def run(
    config: RunConfig,
    out: Path,
    *,
    data: Path | None = None,
    command: str = "",
    progress: Callable[[Json], None] = _silent,
    until_full: bool = False,
) -> Json:
    """Learn the tasks of a run in order and return its summary; go on where it was if the run was killed.

    Args:
        config: from `configure`.
        out: the run directory: new, empty, or of this very configuration.
        data: where the data files lie; None downloads them to the user's cache.
        command: what the user typed; it is kept in the run.
        progress: called with every event that is written, with the learner's own `phase` events, and with
            {"event": "already_finished"} when there is nothing left to do.
        until_full: a network that has no room for the next task ends the run, whose summary is then of the tasks before it.

    Returns: the content of summary.json.

    Raises:
        CapacityError: a task finds no room, and `until_full` is not set. The tasks before it are kept.
        StoreError: the directory holds something else, another configuration or damaged files, or another process is at work in it.
        Stopped: a signal asked for it; nothing that was done is lost.
    """
    tasks = BENCHMARKS[config.benchmark].tasks(data, config.seed, config.n_tasks)
    example = cut(tasks[0].validation[0], 0, 2)
    with contextlib.ExitStack() as stack:
        # Training and testing alike: bits may depend on the number of threads.
        stack.enter_context(modes.threads(config.learn.threads))
        # Before anything is written: what cannot be run leaves no directory behind.
        make = partial(METHODS[config.method], lambda: build_trunk(config, example), example, config.learn, config.seed)
        made = None if (out / rundir.SUMMARY).exists() else make()
        stack.enter_context(locked(out))
        # What a setting that came later does by default is what was done before there was one.
        rundir.claim(out, config.model_dump(mode="json"), {"learn": LearnConfig().model_dump(mode="json")})
        finished = rundir.read_summary(out)
        if finished is not None:
            progress({"event": "already_finished"})
            return finished

        def record(event: Json) -> Json:
            written = rundir.append_event(out, event)
            progress(written)
            return written

        method = made or make()
        past = _past(out, method)
        if past.started:
            record({"event": "run_resumed", "index": len(method.tasks), "versions": versions()})
        else:
            past.started = record(_start(config, tasks, method, command) | {"config_sha256": rundir.config_sha256(out)})
        method.revisit(tasks[: len(method.tasks)])
        full = None
        for index, task in enumerate(tasks):
            stopping.check()
            if index >= len(method.tasks):
                try:
                    past.learned[index] = _learn(method, task, index, record, progress, out / rundir.WORK)
                except CapacityError as error:
                    if not until_full or not method.tasks:
                        raise
                    tasks, full = tasks[:index], str(error)
                    break
                method.save(out / rundir.MODEL)
                work.clear(out / rundir.WORK)
            if index >= len(past.rows):
                past.rows.append(_evaluate(method, tasks[: index + 1], record))
        work.clear(out / rundir.WORK)  # a kill may have come between the last save and this
        summary = _summary(config, tasks, method, past, n_parameters=sum(p.numel() for p in build_trunk(config, example).parameters()))
        if full is not None:
            summary["full"] = full
        record({"event": "run_finished", "average_accuracy": summary["average_accuracy"], "forgetting": summary["forgetting"]})
        rundir.write_summary(out, summary)
        return summary


@dataclass
class _Past:
    """What an earlier process has done of this run."""

    started: Json = field(default_factory=dict)  # its run_started event
    learned: dict[int, Json] = field(default_factory=dict)  # the task_learned event of each task in the model
    rows: list[list[float]] = field(default_factory=list)  # test accuracies after each task in the model


def _past(out: Path, method: Method) -> _Past:
    """Read what was done, and load the learned tasks into the method.

    The model counts, not the events: a kill between the two leaves a task_learned event whose task is learned again, and the newer event wins.
    """
    events = rundir.read_events(out)
    gone = [event["task"] for event in events if event["event"] == "undone"]
    if gone:
        raise StoreError(
            f"cannot continue run '{out}': {', '.join(map(repr, gone))} was undone in it, and a run learns its tasks in order. Go on in Python with "
            f"clnp.Learner.load('{out / rundir.MODEL}', model), or start another run with --out."
        )
    if (out / rundir.MODEL).exists():
        method.load(out / rundir.MODEL)
    n_learned = len(method.tasks)
    past = _Past()
    rows: dict[int, list[float]] = {}
    for event in events:
        if event["event"] == "run_started":
            past.started = event
        elif event["event"] == "task_learned" and event["index"] < n_learned:
            past.learned[event["index"]] = event
        elif event["event"] == "evaluated":
            rows[event["after"]] = event["accuracies"]
    past.rows = [rows[after] for after in sorted(rows)]
    # A task is evaluated when it is saved: only the evaluation of the last one may be missing.
    if len(past.learned) != n_learned or n_learned - len(past.rows) not in (0, 1):
        raise StoreError(
            f"cannot continue run '{out}': its model knows {n_learned} tasks, but {rundir.EVENTS} tells of {len(past.learned)} learned and "
            f"{len(past.rows)} evaluated. Start anew in another directory."
        )
    return past


def build_trunk(config: RunConfig, example: Inputs) -> nn.Module:
    """Build a run's network without a head, for examples like a batch (B, ...); its first weights depend on the seed alone.

    The builder of a network is given one shape for each input.
    """
    with seeds.seeded(config.seed, "model"):
        return MODELS[config.model](*(tuple(part.shape[1:]) for part in parts(example)))


def _start(config: RunConfig, tasks: Sequence[Task], method: Method, command: str) -> Json:
    """Return the event that opens a run."""
    capacity = method.capacity()
    return {
        "event": "run_started",
        **config.model_dump(mode="json", include={"benchmark", "method", "model", "seed", "n_tasks"}),
        "scenario": BENCHMARKS[config.benchmark].scenario,
        "tasks": [
            {"name": task.name, "n_classes": task.n_classes, "classes": list(task.classes), "details": dict(task.details)} for task in tasks
        ],
        **({} if capacity is None else {"groups": {group: row["n_units"] for group, row in capacity.items()}}),
        "versions": versions(),
        "command": command,
    }


def _learn(
    method: Method, task: Task, index: int, record: Callable[[Json], Json], progress: Callable[[Json], None], work_directory: Path
) -> Json:
    """Teach the method one task and return the event that says so."""
    train, validation = task.train, task.validation
    wall, cpu = time.perf_counter(), time.process_time()
    earlier = {"seconds": 0.0, "cpu_seconds": 0.0}  # of the processes that began this task

    def follow(event: Json) -> None:
        if event["event"] == "task_resumed":
            earlier.update({name: event[name] for name in earlier})
        # Epochs are part of the record; the finer phases only move the display.
        (record if event["event"] in {"epoch", "task_resumed"} else progress)(event)

    try:
        result = method.learn(task.name, train, validation, task.n_classes, follow, work_directory)
    except (ConfigError, DataError, TrainingError) as error:  # what stopped it stands in the run, for `clnp status` and the report
        record({"event": "failed", "task": task.name, "index": index, "message": str(error)})
        raise
    here = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    times = {name: earlier[name] + here[name] for name in here}
    return record({"event": "task_learned", "task": task.name, "index": index, **result, **times})


def accuracy(method: Method, task: Task, split: Split = "test") -> float:
    """Return a method's accuracy on a part of a task's data, the test data if nothing else is said, predicted as that task.

    The batches are always of one size: bits of the logits may depend on the shape of the batch.
    """
    x, y = task.load(split)
    correct = 0
    for start in range(0, len(y), training.EVALUATION_BATCH):
        stopping.check()
        stop = start + training.EVALUATION_BATCH
        correct += int((method.predict(cut(x, start, stop), task.name).argmax(1).cpu() == y[start:stop]).sum())
    return correct / len(y)


def _evaluate(method: Method, tasks: Sequence[Task], record: Callable[[Json], Json]) -> list[float]:
    """Return the test accuracy of every task learned so far."""
    row = [accuracy(method, task) for task in tasks]
    record({"event": "evaluated", "after": len(tasks) - 1, "accuracies": row})
    return row


def _summary(config: RunConfig, tasks: Sequence[Task], method: Method, past: _Past, *, n_parameters: int) -> Json:
    """Return what came out of a finished run."""
    learned = [past.learned[index] for index in range(len(tasks))]
    matrix = [[*row, *[None] * (len(tasks) - len(row))] for row in past.rows]
    return {
        **config.model_dump(mode="json", include={"benchmark", "method", "model", "seed"}),
        "scenario": BENCHMARKS[config.benchmark].scenario,
        "tasks": [task.name for task in tasks],
        "accuracy_matrix": matrix,
        "average_accuracy": metrics.average_accuracy(matrix),
        "forgetting": metrics.forgetting(matrix),
        "capacity": method.capacity(),
        "margin": {
            event["task"]: {
                "allowed": event["margin"],
                "paid": event["margin_paid"],
                "accuracy_unpruned": event["accuracy_unpruned"],
                "accuracy": event["accuracy"],
            }
            for event in learned
            if "margin" in event
        },
        "forecast": method.forecast(),
        "n_parameters": n_parameters,
        "seconds_per_task": [event["seconds"] for event in learned],
        "cpu_seconds_per_task": [event["cpu_seconds"] for event in learned],
        "versions": versions(),
        "command": past.started["command"],
    }


def versions() -> Json:
    """Return what the numbers of a run may depend on beside its configuration."""
    packages = {"clnp": __version__, "torch": torch.__version__, "numpy": np.__version__}
    return {**packages, "python": platform.python_version(), "machine": platform.machine(), "threads": torch.get_num_threads()}
