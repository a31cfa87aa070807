"""A learner on disk: its tasks as the files of a ledger, nothing pickled. The directory itself is the business of `clnp.ledger`.

tasks/000.safetensors holds `rows/PARAMETER` (the rows of the units that the task claimed, of them the needed columns), `claimed/GROUP` and
`needed/GROUP` (numbers of units), `head.weight`, `head.bias`, and `receipt.logits` (see `clnp.receipts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from clnp import ledger as ledgers
from clnp.allocation import FREE, Allocation
from clnp.describe import Description, is_there, open_ledger, upgrade
from clnp.emit import positions, with_everyone
from clnp.entries import FileEntry, Learned, Undone, Widened
from clnp.errors import DamageError, StoreError, first_line
from clnp.files import digest
from clnp.ledger import CONSTANTS, MODEL, PROBE, Addition, Ledger, consistently
from clnp.locks import WAIT, locked
from clnp.records import Receipt, TaskRecord, Undoing
from clnp.tensorfile import check_header, tensor_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from clnp.wiring import Wiring

LOGITS = "receipt.logits"


@dataclass(frozen=True)
class Stored:
    """What a model directory holds beside its description."""

    constants: Mapping[str, Tensor]
    allocation: Allocation
    records: Mapping[str, TaskRecord]
    rows: Mapping[str, Mapping[str, Tensor]]
    """Task -> parameter -> the claimed rows, of them the needed columns."""
    widened: Sequence[Mapping[str, int]] = ()
    undone: Sequence[Undoing] = ()
    probe: Mapping[str, Tensor] | None = None
    """Examples that the user named for receipts."""
    files: Mapping[str, Path] | None = None
    """Task -> its file, for messages."""


# ---- writing


def write(
    directory: str | PathLike[str], wiring: Wiring, state: Mapping[str, Tensor], description: Description, stored: Stored
) -> dict[str, str]:
    """Bring a directory up to a learner: what it lacks is committed, what is there stays as it is.

    Args:
        directory: new, empty, or holding an earlier state of this very learner.
        wiring: of the network.
        state: its full-width tensors, of which the claimed rows are written.
        description: of the network, as it was before it was widened.
        stored: the rest; its `rows` are not looked at.

    Returns: task -> SHA-256 of its file.

    Raises:
        StoreError: the directory holds another learner, is in use, or cannot be written.
        DamageError: it is damaged.
    """
    path = Path(directory)
    try:
        with locked(path, "save to", timeout=WAIT):
            if is_there(path):
                ledger, there = open_ledger(path)
                _check_same(path, ledger, there, description, stored)
                if ledger.head < 0:
                    ledger = upgrade(ledger)
            else:
                ledger = ledgers.create(path, _descriptive(description, stored))
            additions, contents = _missing(path, wiring, state, ledger, stored)
            ledger = ledgers.extend(ledger, *ledgers.chained(ledger, additions), contents)
    except OSError as error:
        raise StoreError(f"cannot save the model to '{path}': {error.strerror or error}.") from error
    return {record.task: record.content.sha256 for record in ledger.tasks}


def _descriptive(description: Description, stored: Stored) -> dict[str, bytes]:
    """Return the files that describe the network."""
    found = {MODEL: description.content(), CONSTANTS: save({name: tensor.contiguous() for name, tensor in stored.constants.items()})}
    if stored.probe is not None:
        found[PROBE] = save({name: tensor.contiguous() for name, tensor in stored.probe.items()})
    return found


def _another(path: Path, what: str) -> StoreError:
    return StoreError(f"cannot save to '{path}': it holds another learner, {what}. Choose another directory.")


def _check_same(path: Path, ledger: Ledger, there: Description, here: Description, stored: Stored) -> None:
    """Check that a directory is of this learner."""
    if not there.is_of(here):
        raise _another(path, "of another network, seed or head")
    contents = _descriptive(here, stored)
    files = ledger.records[0].files
    if set(contents) != set(files) or any(digest(contents[name]) != entry.sha256 for name, entry in files.items() if name != MODEL):
        raise _another(path, "whose constants or probe differ")
    if ledger.widened != [dict(more) for more in stored.widened][: len(ledger.widened)]:
        raise _another(path, "which was widened otherwise")


def _missing(
    path: Path, wiring: Wiring, state: Mapping[str, Tensor], ledger: Ledger, stored: Stored
) -> tuple[list[Addition], dict[int, bytes]]:
    """Return what a ledger lacks of a learner: tombstones first, for later tasks may claim the units they free."""
    names = stored.allocation.tasks
    known = {undoing.sha256: False for undoing in stored.undone}
    for undoing in stored.undone:
        known[undoing.sha256] |= undoing.purge
    # A task that was undone and learned again with the same outcome is there.
    undone = {sha256: purge for sha256, purge in known.items() if all(stored.records[name].sha256 != sha256 for name in names)}
    additions: list[Addition] = []
    tasks: list[Learned] = []
    for record in ledger.tasks:
        purge = undone.get(record.content.sha256)
        if purge is None:
            tasks.append(record)
        else:
            additions.append(Addition(Undone, {"record": record.number, "task": record.task, "purged": purge}))
    for number, purged in ledger.gone.items():
        record = ledger.records[number]
        if known.get(record.content.sha256, False) and not purged:
            additions.append(Addition(Undone, {"record": number, "task": record.task, "purged": True}))
    contents = {name: task_content(wiring, state, stored.allocation, name, stored.records[name]) for name in names[len(tasks) :]}
    for record, name in zip(tasks, names, strict=False):
        sha256 = stored.records[name].sha256 or digest(task_content(wiring, state, stored.allocation, name, stored.records[name]))
        mine = stored.records[name]
        there, here = ((one.n_classes, one.head, one.private, one.width) for one in (record, mine))
        if (record.task, record.content.sha256, there) != (name, sha256, here):
            raise _another(path, f"whose task '{record.task}' is not the task '{name}' of this one")
    if len(tasks) > len(names):
        raise _another(path, f"which has learned more: '{tasks[len(names)].task}'")
    gone = {ledger.records[number].content.sha256: ledger.records[number].task for number in ledger.gone}
    n_files, n_widened = len(ledger.learned), len(ledger.widened)
    files: dict[int, bytes] = {}
    for name in names[len(tasks) :]:
        record, content = stored.records[name], contents[name]
        if digest(content) in gone and digest(content) not in known:
            raise _another(path, f"in which task '{gone[digest(content)]}' was undone")
        while n_widened < record.width:
            additions.append(Addition(Widened, {"added": dict(stored.widened[n_widened])}))
            n_widened += 1
        additions.append(Addition(Learned, _metadata(name, record, content) | {"file": n_files}))
        files[n_files] = content
        n_files += 1
    additions += [Addition(Widened, {"added": dict(more)}) for more in stored.widened[n_widened:]]
    return additions, files


def _metadata(name: str, record: TaskRecord, content: bytes) -> dict[str, object]:
    """Return what a record says of a task beside the number of its file."""
    return {
        "task": name,
        "content": FileEntry(bytes=len(content), sha256=digest(content)),
        "tensors": tensor_table(content),
        "n_classes": record.n_classes,
        "head": record.head,
        "private": record.private,
        "width": record.width,
        "settings": None if record.receipt is None else dict(record.receipt.settings),
        "outcome": dict(record.outcome),
    }


def task_content(wiring: Wiring, state: Mapping[str, Tensor], allocation: Allocation, task: str, record: TaskRecord) -> bytes:
    """Return the file of a task."""
    rows_of = with_everyone(wiring.join(allocation.owner) == allocation.number(task), everyone=False)
    columns_of = with_everyone(wiring.join(allocation.needed[task]))
    tensors: dict[str, Tensor] = {"head.weight": record.weight.contiguous(), "head.bias": record.bias.contiguous()}
    if record.receipt is not None:
        tensors[LOGITS] = record.receipt.logits.contiguous()
    for name, labels in wiring.parameters.items():
        rows = labels.matrix(state[name])[positions(rows_of, labels.rows)]
        tensors[f"rows/{name}"] = (rows if labels.columns is None else rows[:, positions(columns_of, labels.columns)]).contiguous()
    for group in wiring.groups:
        tensors[f"claimed/{group.name}"] = (allocation.owner[group.name] == allocation.number(task)).nonzero()[:, 0]
        tensors[f"needed/{group.name}"] = allocation.needed[task][group.name].nonzero()[:, 0]
    return save(tensors)


# ---- reading


def read(directory: str | PathLike[str], wiring: Wiring, graph: str | None = None) -> Stored:
    """Read a learner and verify it: chain, hashes, the network, shapes, finiteness.

    Args:
        directory: that `write` wrote.
        wiring: of the network, as wide as it was when it was written.
        graph: the hash of the network as its code makes it; None takes that of `wiring`.

    Raises:
        StoreError: the directory is missing, or of another network.
        DamageError: it is damaged; the message names the file.
    """
    path = Path(directory)
    return consistently(path, lambda: _read(path, wiring, graph))


def _read(path: Path, wiring: Wiring, graph: str | None) -> Stored:
    ledger, description = open_ledger(path)
    groups = description.units(ledger.widened)
    check_network(path, wiring, graph or wiring.graph.hash, description, groups)
    allocation = Allocation.empty(groups)
    records: dict[str, TaskRecord] = {}
    rows: dict[str, Mapping[str, Tensor]] = {}
    files: dict[str, Path] = {}
    for entry in ledger.tasks:
        file = files[entry.task] = ledgers.task_file(path, entry.file)
        tensors = _load(file, ledger.content(entry))
        _check(file, entry, tensors, wiring, allocation)
        needed: dict[str, Tensor] = {}
        for group in wiring.groups:
            needed[group.name] = torch.zeros(group.n_units, dtype=torch.bool)
            needed[group.name][tensors[f"needed/{group.name}"]] = True
        allocation = allocation.commit(entry.task, needed)
        receipt = None if entry.settings is None else Receipt(tensors[LOGITS], entry.settings)
        records[entry.task] = TaskRecord(
            entry.n_classes,
            entry.head,
            tensors["head.weight"],
            tensors["head.bias"],
            entry.private,
            entry.width,
            receipt,
            entry.outcome,
            entry.content.sha256,
        )
        rows[entry.task] = {name: tensors[f"rows/{name}"] for name in wiring.parameters}
    gone = [(ledger.records[number], purged) for number, purged in ledger.gone.items()]
    return Stored(
        constants=_load(path / CONSTANTS, ledger.content(CONSTANTS)),
        allocation=allocation,
        records=records,
        rows=rows,
        widened=ledger.widened,
        undone=[Undoing(record.task, record.content.sha256, purged) for record, purged in gone],
        probe=_load(path / PROBE, ledger.content(PROBE)) if PROBE in ledger.records[0].files else None,
        files=files,
    )


def check_network(directory: str | PathLike[str], wiring: Wiring, graph: str, description: Description, groups: Mapping[str, int]) -> None:
    """Check that a directory is of a network.

    Args:
        directory: for the message.
        wiring: of the network.
        graph: the hash of the network as its code makes it.
        description: of the directory.
        groups: group -> units that the network should have.

    Raises:
        StoreError: it is of another network.
    """
    here = {group.name: group.n_units for group in wiring.groups}
    if groups == here and description.graph == graph:
        return
    found, hint = f"groups {here}", ""
    if groups == here:
        found = f"the same groups in another graph ({graph[:12]}, not {description.graph[:12]})"
        hint = ": an operation or one of its numbers differs, the rate of a dropout say"
    raise StoreError(
        f"cannot load '{directory}': it was made with another network. Expected groups {dict(groups)}, found {found}{hint}. "
        f"Pass the network that it was made with."
    )


def restore_(wiring: Wiring, state: Mapping[str, Tensor], stored: Stored) -> None:
    """Put stored rows into full-width tensors; of claimed rows everything else is zero (severed).

    Raises:
        DamageError: a stored tensor has another shape or dtype than the network gives it.
    """
    for name, tensor in stored.constants.items():
        if name not in state or state[name].shape != tensor.shape or state[name].dtype != tensor.dtype:
            raise DamageError(f"cannot load the model: its constant '{name}' does not fit the network. Restore {CONSTANTS} from a copy.")
        state[name].copy_(tensor)
    owner = wiring.join(stored.allocation.owner)
    for number, task in enumerate(stored.allocation.tasks):
        rows_of = with_everyone(owner == number, everyone=False)
        columns_of = with_everyone(wiring.join(stored.allocation.needed[task]))
        for name, labels in wiring.parameters.items():
            rows = positions(rows_of, labels.rows)
            matrix = labels.matrix(state[name])
            values = stored.rows[task][name]
            columns = None if labels.columns is None else positions(columns_of, labels.columns)
            expected = (len(rows), *matrix.shape[1:]) if columns is None else (len(rows), len(columns), *matrix.shape[2:])
            if tuple(values.shape) != expected or values.dtype != matrix.dtype:
                file = (stored.files or {}).get(task, Path(task))
                raise DamageError(
                    f"cannot load '{file}': expected rows of '{name}' of shape {list(expected)}, found {list(values.shape)} ({values.dtype})."
                )
            if columns is None:
                matrix[rows] = values
            else:
                matrix[rows] = 0
                matrix[rows[:, None], columns[None]] = values


def _load(file: Path, content: bytes) -> dict[str, Tensor]:
    """Read the content of a safetensors file, of which the header is judged first."""
    try:
        check_header(content)
        return load(content)
    except (SafetensorError, ValueError) as error:
        raise DamageError(f"cannot load '{file}': it is no safetensors file ({first_line(error)}). Restore it from a copy.") from error


def _check(file: Path, entry: Learned, tensors: Mapping[str, Tensor], wiring: Wiring, allocation: Allocation) -> None:
    """Check names, shapes, ranges and finiteness of a task's tensors."""
    expected = {"head.weight", "head.bias", *(f"rows/{name}" for name in wiring.parameters)}
    expected |= {f"{what}/{group.name}" for group in wiring.groups for what in ("claimed", "needed")}
    expected |= {LOGITS} if entry.settings is not None else set()
    if set(tensors) != expected:
        raise DamageError(f"cannot load '{file}': expected other tensors ({', '.join(sorted(set(tensors) ^ expected)[:5])}).")
    weight, bias = tensors["head.weight"], tensors["head.bias"]
    if weight.dim() != 2 or len(weight) != entry.n_classes or bias.shape != (entry.n_classes,):
        raise DamageError(f"cannot load '{file}': expected a head of {entry.n_classes} classes, found {list(weight.shape)}.")
    for group in wiring.groups:
        claimed, needed = tensors[f"claimed/{group.name}"], tensors[f"needed/{group.name}"]
        lists = all(units.dtype == torch.int64 and units.dim() == 1 for units in (claimed, needed))
        inside = lists and all(((units >= 0) & (units < group.n_units)).all() for units in (claimed, needed))
        in_order = inside and all(bool((units[1:] > units[:-1]).all()) for units in (claimed, needed))
        if not (in_order and torch.equal(needed[allocation.owner[group.name][needed] == FREE], claimed)):
            raise DamageError(f"cannot load '{file}': its units of '{group.name}' do not fit the tasks before it.")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point()):
        raise DamageError(f"cannot load '{file}': it holds NaN or infinite values.")
