"""The files of a run directory: read, append, lock. It knows nothing of torch, so that `clnp status` answers at once.

RUN/config.yaml    what is run; written once, before anything else
RUN/events.jsonl   what happened, one JSON object a line; only ever appended to
RUN/model/         the learner's own files
RUN/work/          the training state of the task under way; disposable
RUN/summary.json   what came out; its presence says that the run is finished
RUN/.lock          held by the process at work; RUN/.lock.pid says which one it is
"""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import filelock
import yaml

from clnp.errors import StoreError
from clnp.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

CONFIG, EVENTS, MODEL, WORK, SUMMARY = "config.yaml", "events.jsonl", "model", "work", "summary.json"
LOCK, HOLDER = ".lock", ".lock.pid"

Json = dict[str, Any]


def read_config(run: Path) -> Json:
    """Return the configuration of a run.

    Raises:
        StoreError: the directory is missing, is not a run directory, or its configuration is damaged.
    """
    path = run / CONFIG
    if not path.is_file():
        what = "there is no such directory" if not run.exists() else f"it holds no {CONFIG}"
        raise StoreError(f"cannot read run '{run}': expected a directory that `clnp run` wrote, but {what}.")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StoreError(
            f"cannot read run '{run}': its {CONFIG} is damaged ({' '.join(str(error).split())}). Start anew in another directory."
        ) from error
    if not isinstance(config, dict):
        raise StoreError(f"cannot read run '{run}': expected keys and values in its {CONFIG}, found {type(config).__name__}.")
    return config


def claim(run: Path, config: Mapping[str, Any]) -> None:
    """Make a directory the run of this configuration, or check that it already is.

    Args:
        run: an existing directory; call this under `locked`.
        config: plain data; compared key by key, one level into nested mappings.

    Raises:
        StoreError: the directory is the run of another configuration (the message names what differs), or holds other files.
    """
    if (run / CONFIG).is_file():
        there, here = _flat(read_config(run)), _flat(config)
        different = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
        if different:
            listed = ", ".join(f"{key} ({there.get(key)!r} there, {here.get(key)!r} here)" for key in different)
            raise StoreError(
                f"cannot run in '{run}': it holds the run of another configuration: {listed}. Choose another directory with --out."
            )
        return
    # Hidden files are ours, or nobody's; a crash may have left a half-written configuration. Anything else is somebody's.
    foreign = sorted(entry.name for entry in run.iterdir() if not entry.name.startswith(".") and entry.name != CONFIG + ".new")
    if foreign:
        raise StoreError(
            f"cannot run in '{run}': expected a new, an empty or a run directory, found '{foreign[0]}'. Choose another with --out."
        )
    write_atomic(run / CONFIG, yaml.safe_dump(dict(config), sort_keys=False))


def _flat(config: Mapping[str, Any]) -> Json:
    """Return {"learn": {"lr": 1}} as {"learn.lr": 1}."""
    flat: Json = {}
    for key, value in config.items():
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def read_events(run: Path) -> list[Json]:
    """Return the events in the order in which they happened, without a last line that a crash tore.

    A task that was interrupted leaves its epochs here. After `task_resumed` they count, but for those that are told again: of one
    task, phase, round and epoch the newest does. Without it the task began anew, and only what comes after `run_resumed` counts.

    Raises:
        StoreError: a line before the last is damaged.
    """
    path = run / EVENTS
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # after the last newline: nothing, or a torn line
    events: list[Json] = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except ValueError as error:
            raise StoreError(
                f"cannot read run '{run}': expected one JSON object a line in {EVENTS}, but line {number} is damaged. Start anew in another directory."
            ) from error
        events.append(event)
    return events


def append_event(run: Path, event: Mapping[str, Any]) -> Json:
    """Add one event with its time, cut off what a crash left of an earlier one, and return what was written."""
    stamped = {**event, "time": time.time()}
    with (run / EVENTS).open("a+b") as file:
        _cut_torn_line(file)
        file.write(json.dumps(stamped, allow_nan=False).encode() + b"\n")
        file.flush()
        if event["event"] != "epoch":  # the model that is saved next counts on what stands here
            os.fsync(file.fileno())
    return stamped


def _cut_torn_line(file: Any) -> None:
    """Shorten a file to its last newline."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.seek(0, os.SEEK_END)


def read_summary(run: Path) -> Json | None:
    """Return the summary of a finished run, or None.

    Raises:
        StoreError: the summary is damaged.
    """
    path = run / SUMMARY
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(
            f"cannot read run '{run}': its {SUMMARY} is damaged. Remove that file and give the command of the run again."
        ) from error


@contextmanager
def locked(run: Path) -> Generator[None]:
    """Hold a run directory, made if need be; a killed process lets go of it by dying.

    Raises:
        StoreError: another process holds it; the message says which one.
    """
    run.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(run / LOCK, timeout=0.5)  # `clnp status` holds it for a moment to see whether it can
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise StoreError(
            f"cannot run in '{run}': process {holder(run) or 'unknown'} is at work there. Wait for it, or choose another directory with --out."
        ) from error
    try:
        (run / HOLDER).write_text(str(os.getpid()), encoding="utf-8")
        yield
        (run / HOLDER).unlink(missing_ok=True)
    finally:
        lock.release()


def holder(run: Path) -> int | None:
    """Return the id of the process that last said it was at work; it may be dead."""
    try:
        return int((run / HOLDER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def is_locked(run: Path) -> bool:
    """Tell whether a living process is at work in a run directory."""
    if not (run / LOCK).exists():
        return False
    try:
        with filelock.FileLock(run / LOCK, blocking=False):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # a directory that we may not write to is not ours to work in
        return False
