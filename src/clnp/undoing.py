"""Take a task back from a model directory, without the network's code: whose units it has, and who reads them, stands in the files.

Undo appends a tombstone; the task's units are free again, and no other predictor changes, for none of them reads those units. Purging
deletes the task's file as well, after the tombstone is on the disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clnp.describe import open_ledger, upgrade
from clnp.entries import Learned, Undone
from clnp.errors import StoreError, TaskError, damaged
from clnp.ledger import Addition, Ledger, chained, extend, task_file
from clnp.locks import WAIT, locked
from clnp.names import composed
from clnp.tensorfile import index_arrays

if TYPE_CHECKING:
    from os import PathLike


Units = dict[str, set[int]]


def claimed_and_needed(ledger: Ledger, record: Learned) -> tuple[Units, Units]:
    """Return, by group, the units that a task claimed and those that its predictor reads.

    Raises:
        DamageError: its file is damaged.
    """
    try:
        arrays = index_arrays(ledger.content(record))
    except ValueError as error:
        raise damaged(task_file(ledger.path, record.file), str(error), f"record {record.number}") from None
    claimed, needed = (
        {name.removeprefix(what): set(np.asarray(units).ravel().tolist()) for name, units in arrays.items() if name.startswith(what)}
        for what in ("claimed/", "needed/")
    )
    return claimed, needed


def check_units(ledger: Ledger, groups: dict[str, int]) -> None:
    """Check that every task claims units that were free, and reads no others than its own and earlier ones.

    Args:
        ledger: any.
        groups: group -> units, as many as the network has now.

    Raises:
        DamageError: a task's units do not fit those of the tasks before it.
    """
    owned: Units = {group: set() for group in groups}
    for record in ledger.tasks:
        claimed, needed = claimed_and_needed(ledger, record)
        for group, n_units in groups.items():
            mine, read = claimed.get(group), needed.get(group)
            fits = mine is not None and read is not None and all(0 <= unit < n_units for unit in read) and mine == read - owned[group]
            if not fits:
                file = task_file(ledger.path, record.file)
                raise damaged(file, f"its units of '{group}' do not fit the tasks before it", f"record {record.number}")
            owned[group] |= mine or set()


def readers(ledger: Ledger, record: Learned) -> list[str]:
    """Return the names of the other tasks that read units which a task claimed."""
    claimed, _ = claimed_and_needed(ledger, record)
    found: list[str] = []
    for other in ledger.tasks:
        if other.number == record.number:
            continue
        _, needed = claimed_and_needed(ledger, other)
        if any(needed.get(group, set()) & units for group, units in claimed.items()):
            found.append(other.task)
    return found


def undo(directory: str | PathLike[str], task: str | None = None, *, purge: bool = False) -> Undone:
    """Remove a task from a model directory exactly: its units are free again, every other predictor stays what it is, bit for bit.

    Args:
        directory: a model directory.
        task: its name; the newest one by default.
        purge: delete its file, too. A task that was undone before can be purged later.

    Returns: the tombstone.

    Raises:
        TaskError: there is no such task, or later tasks read its units (they are named).
        StoreError: the directory is in use, or cannot be written.
        DamageError: it is damaged.
    """
    path = Path(directory)
    open_ledger(path)  # nothing is made where there is none
    named = "" if task is None else f" '{task}'"
    try:
        with locked(path, "undo a task of", timeout=WAIT):
            ledger, _ = open_ledger(path)
            record = _find(ledger, task)
            named = f" '{record.task}'"
            gone = ledger.gone
            if record.number not in gone:
                reading = readers(ledger, record)
                if reading:
                    raise TaskError(
                        f"cannot undo task '{record.task}': its units are read by {', '.join(map(repr, reading))}. Undo those first."
                    )
            if ledger.head < 0:
                ledger = upgrade(ledger)
            done = [r for r in ledger.records if isinstance(r, Undone) and r.record == record.number and (r.purged or not purge)]
            additions = [] if done else [Addition(Undone, {"record": record.number, "task": record.task, "purged": purge})]
            ledger = extend(ledger, *chained(ledger, additions), {})
            return next(r for r in reversed(ledger.records) if isinstance(r, Undone) and r.record == record.number)
    except OSError as error:
        again = f" and name the task{named}" if task is None and named else ""
        raise StoreError(f"cannot undo task{named} of '{path}': {error.strerror or error}. Give the same command again{again}.") from error


def _find(ledger: Ledger, task: str | None) -> Learned:
    """Return the record of the task to undo: one that there is, or the newest undone one of that name."""
    tasks = ledger.tasks
    task = task if task is None else composed(task)
    if task is None:
        if not tasks:
            raise TaskError(f"cannot undo a task of '{ledger.path}': it has none.")
        return tasks[-1]
    found = [record for record in tasks if record.task == task] or [record for record in ledger.learned if record.task == task]
    if not found:
        names = ", ".join(repr(record.task) for record in tasks) or "(none)"
        raise TaskError(f"cannot undo task '{task}' of '{ledger.path}': expected one of {names}.")
    return found[-1]
