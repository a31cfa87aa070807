"""The files of a run directory: read and append. It knows nothing of torch, so that `clnp status` answers at once.

RUN/config.yaml    what is run; written once, before anything else
RUN/events.jsonl   what happened, one JSON object a line, each with a check of itself and the line before; only ever appended to
RUN/model/         the learner's own files
RUN/work/          the training state of the task under way; disposable
RUN/summary.json   what came out; its presence says that the run is finished
RUN/.lock          held by the process at work, see `clnp.locks`
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from clnp.errors import DamageError, StoreError
from clnp.files import append, digest, read_bounded, write_atomic
from clnp.parsing import MAX_YAML, parse_json, parse_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG, EVENTS, MODEL, WORK, SUMMARY = "config.yaml", "events.jsonl", "model", "work", "summary.json"
MAX_EVENTS, MAX_SUMMARY = 2**30, 2**26
"""Bytes of files that are read; nothing is allocated for larger ones."""
_SEAL = re.compile(rb', "check": "([0-9a-f]{16})"\}$')

Json = dict[str, Any]


def around(directory: Path) -> Path:
    """Return the run directory that a model directory belongs to; any other directory as it is given."""
    model = Path(os.path.realpath(directory))  # it does not fail where links go in a circle
    of_run = model.name == MODEL and (model.parent / CONFIG).is_file() and not (model / CONFIG).is_file()
    return model.parent if of_run else directory


def read_config(run: Path) -> Json:
    """Return the configuration of a run.

    Raises:
        StoreError: the directory is missing, or is not a run directory.
        DamageError: its configuration is damaged.
    """
    path = run / CONFIG
    if not path.is_file():
        what = "there is no such directory" if not run.exists() else f"it holds no {CONFIG}"
        raise StoreError(f"cannot read run '{run}': expected a directory that `clnp run` wrote, but {what}.")
    try:
        content = read_bounded(path, MAX_YAML, run)
        config = parse_yaml(content)
    except (OSError, ValueError) as error:
        raise _kind(error)(f"cannot read run '{run}': its {CONFIG} is damaged ({error}). Restore it from a copy, or start anew.") from error
    if not isinstance(config, dict):
        raise DamageError(f"cannot read run '{run}': expected keys and values in its {CONFIG}, found {type(config).__name__}.")
    started = next((event for event in read_events(run) if event.get("event") == "run_started"), {})
    if started.get("config_sha256", digest(content)) != digest(content):
        raise DamageError(f"cannot read run '{run}': its {CONFIG} is not the one that the run was started with. Restore it from a copy.")
    return config


def _kind(error: Exception) -> type[StoreError]:
    """Return what an error is for the user: content that is wrong is damage, a file that the system does not give is not."""
    return StoreError if isinstance(error, OSError) else DamageError


def config_sha256(run: Path) -> str:
    """Return the SHA-256 of the configuration as it stands in the directory: a run writes it down when it starts."""
    return digest(read_bounded(run / CONFIG, MAX_YAML, run))


def claim(run: Path, config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
    """Make a directory the run of this configuration, or check that it already is.

    Args:
        run: an existing directory; call this under `locked`.
        config: plain data; compared key by key, one level into nested mappings.
        defaults: what counts for keys that the run's own configuration, perhaps of an older version, does not have.

    Raises:
        StoreError: the directory is the run of another configuration (the message names what differs), or holds other files.
    """
    if (run / CONFIG).is_file():
        there, here = _flat(defaults or {}) | _flat(read_config(run)), _flat(config)
        different = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
        if not different:
            return
        if not _came_to_nothing(run):
            listed = ", ".join(f"{key} ({there.get(key)!r} there, {here.get(key)!r} here)" for key in different)
            raise StoreError(
                f"cannot run in '{run}': it holds the run of another configuration: {listed}. Choose another directory with --out."
            )
        (run / EVENTS).unlink(missing_ok=True)
    else:
        # Hidden files are ours, or nobody's; a crash may have left a half-written configuration. Anything else is somebody's.
        foreign = sorted(entry.name for entry in run.iterdir() if not entry.name.startswith(".") and entry.name != CONFIG + ".new")
        if foreign:
            raise StoreError(
                f"cannot run in '{run}': expected a new, an empty or a run directory, found '{foreign[0]}'. Choose another with --out."
            )
    write_atomic(run / CONFIG, yaml.safe_dump(dict(config), sort_keys=False))


def _came_to_nothing(run: Path) -> bool:
    """Tell whether nothing is lost if a run of another configuration takes the directory: the first task was given up, or never begun."""
    if (run / MODEL).exists():
        return False
    events = read_events(run)
    return events[-1].get("event") == "failed" if events else not (run / WORK).exists()


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
        DamageError: a line before the last is damaged, or one is missing.
    """
    path = run / EVENTS
    if not path.exists():
        return []
    try:
        lines = read_bounded(path, MAX_EVENTS, run).split(b"\n")[:-1]  # after the last newline: nothing, or a torn line
    except (OSError, ValueError) as error:
        raise _kind(error)(f"cannot read run '{run}': its {EVENTS} cannot be read: {error}.") from error
    events = checked(lines)
    for number, event in enumerate(events, 1):
        if event is None:
            raise DamageError(
                f"cannot read run '{run}': line {number} of its {EVENTS} is damaged: expected an event with the check that was written "
                f"with it. Restore the file from a copy, or start anew in another directory."
            )
    return [event for event in events if event is not None]


def checked(lines: list[bytes]) -> list[Json | None]:
    """Return the events of some lines, without their checks; None for a line that is not what was written.

    Runs of clnp 0.1.0 as it was before checks have none: there they are not asked for.
    """
    sealed = any(_SEAL.search(line) for line in lines)
    found: list[Json | None] = []
    before: bytes | None = b""
    for line in lines:
        seal = _SEAL.search(line)
        body = line[: seal.start()] + b"}" if seal else line
        try:
            event = parse_json(body)
        except ValueError:
            event = None
        wrong = sealed and (seal is None or (before is not None and seal[1] != _check(before, body)))
        found.append(event if isinstance(event, dict) and not wrong else None)
        before = seal[1] if seal and not wrong else None if sealed else b""  # after a damaged line nobody knows
    return found


def _check(before: bytes, body: bytes) -> bytes:
    """Return the check of an event after the one whose check is `before`."""
    return digest(before + body)[:16].encode()


def append_event(run: Path, event: Mapping[str, Any]) -> Json:
    """Add one event with its time, cut off what a crash left of an earlier one, and return what was written.

    Raises:
        OSError: it cannot be written.
    """
    stamped = {**event, "time": time.time()}
    path = run / EVENTS
    content = read_bounded(path, MAX_EVENTS, run) if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    last = whole[:-1].rpartition(b"\n")[2]
    seal = _SEAL.search(last)
    line = json.dumps(stamped, allow_nan=False).encode()
    if seal or not whole:
        line = line[:-1] + b', "check": "' + _check(seal[1] if seal else b"", line) + b'"}'
    # The model that is saved next counts on what stands here; an epoch counts for nothing.
    append(path, line + b"\n", at=len(whole), durable=event["event"] != "epoch")
    return stamped


def write_summary(run: Path, summary: Mapping[str, Any]) -> None:
    """Write what came out; its presence says that the run is finished.

    Raises:
        OSError: it cannot be written.
    """
    bare = {key: value for key, value in summary.items() if key != "check"}
    write_atomic(run / SUMMARY, json.dumps({**bare, "check": _summary_check(bare)}, indent=2, allow_nan=False) + "\n")


def _summary_check(summary: Mapping[str, Any]) -> str:
    return digest(json.dumps(summary, sort_keys=True).encode())[:16]


def read_summary(run: Path) -> Json | None:
    """Return the summary of a finished run, or None.

    Raises:
        DamageError: the summary is damaged.
    """
    path = run / SUMMARY
    if not path.exists():
        return None
    try:
        summary = parse_json(read_bounded(path, MAX_SUMMARY, run))
        if not isinstance(summary, dict):
            raise ValueError("it is no object")  # noqa: TRY004, TRY301
        check = summary.pop("check", None)
        if check is not None and check != _summary_check(summary):
            raise ValueError("its content is not what was written")  # noqa: TRY301
    except (OSError, ValueError) as error:
        raise _kind(error)(
            f"cannot read run '{run}': its {SUMMARY} is damaged ({error}). Remove that file and give the command of the run again."
        ) from error
    else:
        return summary
