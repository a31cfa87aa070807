"""A learner on disk: one description, one safetensors file per task that is written once, nothing pickled.

MODEL/model.json              format, hash of the graph, groups, tasks with the SHA-256 of their files
MODEL/constants.safetensors   tensors of the network that belong to no unit
MODEL/tasks/000.safetensors   rows of the units that the first task claimed (its needed columns), its head, claimed, needed

Tasks are numbered by their place; their names are data inside `model.json`, never paths.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from clnp.allocation import FREE, Allocation
from clnp.emit import positions, with_everyone
from clnp.errors import StoreError
from clnp.files import write_atomic
from clnp.inputs import Form
from clnp.records import TaskRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from clnp.inputs import Forms, Inputs
    from clnp.wiring import Wiring

FORMATS = (1, 2)
"""What this version reads and writes: 2 where the network has several inputs, which earlier versions cannot read."""
DESCRIPTION, CONSTANTS, TASKS = "model.json", "constants.safetensors", "tasks"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TaskEntry(_Strict):
    """What `model.json` says of one task."""

    name: str
    file: str = Field(pattern=r"^\d{3,}\.safetensors$")
    sha256: str
    n_classes: int
    head: str
    private: bool
    width: int = 0

    @model_serializer(mode="wrap")
    def _without_nothing(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in fields(self).items() if key != "width" or value}


class InputEntry(_Strict):
    """What `model.json` says of one more input."""

    shape: list[int]
    dtype: str


class Description(_Strict):
    """The content of `model.json`: which network, made how, and which tasks.

    `shape` and `dtype` are those of the first input. `more_inputs` are the others; where there are none nothing is written
    of them, and the file (with its checksum) is that of format 1.
    """

    graph: str
    groups: dict[str, int]
    seed: int
    head: str | None
    shape: list[int]
    dtype: str
    more_inputs: list[InputEntry] = []
    widened: list[dict[str, int]] = []
    """Units that were added to the model's own, group by group, each time that it was widened."""
    constants: str = ""
    tasks: list[TaskEntry] = []
    format: int = 1
    checksum: str = ""

    @model_serializer(mode="wrap")
    def _without_nothing(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in fields(self).items() if key not in ("more_inputs", "widened") or value}

    @property
    def inputs(self) -> tuple[InputEntry, ...]:
        """Every input of the network."""
        return (InputEntry(shape=self.shape, dtype=self.dtype), *self.more_inputs)

    def sealed(self) -> Description:
        """Return the description with the SHA-256 of all its other fields."""
        bare = self.model_copy(update={"checksum": ""})
        return bare.model_copy(update={"checksum": _sha256(bare.model_dump_json().encode())})

    def example(self) -> Inputs:
        """Return an input of the network, (2, ...), or a tuple of them."""
        return zeros([Form(tuple(entry.shape), getattr(torch, entry.dtype)) for entry in self.inputs])


def zeros(forms: Sequence[Form]) -> Inputs:
    """Return an input of a network, (2, ...), or a tuple of them."""
    found = tuple(torch.zeros(2, *form.shape, dtype=form.dtype) for form in forms)
    return found if len(forms) > 1 else found[0]  # pyright: ignore[reportGeneralTypeIssues]


def described(forms: Forms) -> dict[str, Any]:
    """Return what a `Description` says of a network's inputs, and the format that this takes."""
    first, *more = [InputEntry(shape=list(form.shape), dtype=str(form.dtype).removeprefix("torch.")) for form in forms]
    return {"shape": first.shape, "dtype": first.dtype, "more_inputs": more, "format": 2 if more else 1}


@dataclass(frozen=True)
class Stored:
    """What a model directory holds beside its description."""

    constants: Mapping[str, Tensor]
    allocation: Allocation
    records: Mapping[str, TaskRecord]
    rows: Mapping[str, Mapping[str, Tensor]]
    """Task -> parameter -> the claimed rows, of them the needed columns."""


def write(directory: str | PathLike[str], wiring: Wiring, state: Mapping[str, Tensor], description: Description, stored: Stored) -> None:
    """Write a learner. Files of tasks that are already there are left as they are.

    Args:
        directory: new, empty, or holding earlier tasks of this very learner.
        wiring: of the network.
        state: its full-width tensors, of which the claimed rows are written.
        description: without its hashes and tasks, which are filled in here.
        stored: the rest; its `rows` are not looked at.

    Raises:
        StoreError: the directory holds another learner, or cannot be written.
    """
    path = Path(directory)
    files: dict[Path, bytes] = {}
    entries: list[TaskEntry] = []
    for number, task in enumerate(stored.allocation.tasks):
        record = stored.records[task]
        content = save(_tensors(wiring, state, stored.allocation, task, record))
        name = f"{number:03d}.safetensors"
        files[path / TASKS / name] = content
        entries.append(
            TaskEntry(
                name=task,
                file=name,
                sha256=_sha256(content),
                n_classes=record.n_classes,
                head=record.head,
                private=record.private,
                width=record.width,
            )
        )
    constants = save({name: tensor.contiguous() for name, tensor in stored.constants.items()})
    description = description.model_copy(update={"constants": _sha256(constants), "tasks": entries}).sealed()
    try:
        before = describe(path).tasks if (path / DESCRIPTION).exists() else []
        if before != entries[: len(before)]:
            raise StoreError(f"cannot save to '{path}': it holds another learner, whose tasks differ. Choose another directory.")
        (path / TASKS).mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            if not file.exists() or file.read_bytes() != content:
                write_atomic(file, content)
        write_atomic(path / CONSTANTS, constants)
        write_atomic(path / DESCRIPTION, description.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise StoreError(f"cannot save the model to '{path}': {error.strerror or error}.") from error


def _tensors(wiring: Wiring, state: Mapping[str, Tensor], allocation: Allocation, task: str, record: TaskRecord) -> dict[str, Tensor]:
    """Return everything that a task's file holds, by name."""
    rows_of = with_everyone(wiring.join(allocation.owner) == allocation.number(task), everyone=False)
    columns_of = with_everyone(wiring.join(allocation.needed[task]))
    tensors: dict[str, Tensor] = {"head.weight": record.weight.contiguous(), "head.bias": record.bias.contiguous()}
    for name, labels in wiring.parameters.items():
        rows = labels.matrix(state[name])[positions(rows_of, labels.rows)]
        tensors[f"rows/{name}"] = (rows if labels.columns is None else rows[:, positions(columns_of, labels.columns)]).contiguous()
    for group in wiring.groups:
        tensors[f"claimed/{group.name}"] = (allocation.owner[group.name] == allocation.number(task)).nonzero()[:, 0]
        tensors[f"needed/{group.name}"] = allocation.needed[task][group.name].nonzero()[:, 0]
    return tensors


def read(directory: str | PathLike[str], wiring: Wiring, graph: str | None = None) -> Stored:
    """Read a learner and verify it: hashes, the network, shapes, finiteness.

    Args:
        directory: that `write` wrote.
        wiring: of the network, as wide as it was when it was written.
        graph: the hash of the network as its code makes it; None takes that of `wiring`.

    Raises:
        StoreError: the directory is missing, damaged, or of another network; the message names the file.
    """
    path = Path(directory)
    description = describe(path)
    groups = {group.name: group.n_units for group in wiring.groups}
    if description.graph != (graph or wiring.graph.hash) or description.groups != groups:
        raise StoreError(
            f"cannot load '{path}': it was made with another network. Expected groups {description.groups}, found {groups}. "
            f"Pass the network that it was made with."
        )
    constants = _open(path / CONSTANTS, description.constants)
    allocation = Allocation.empty(groups)
    records: dict[str, TaskRecord] = {}
    rows: dict[str, Mapping[str, Tensor]] = {}
    for entry in description.tasks:
        file = path / TASKS / entry.file
        tensors = _open(file, entry.sha256)
        _check(file, tensors, wiring, allocation)
        needed: dict[str, Tensor] = {}
        for group in wiring.groups:
            needed[group.name] = torch.zeros(group.n_units, dtype=torch.bool)
            needed[group.name][tensors[f"needed/{group.name}"]] = True
        allocation = allocation.commit(entry.name, needed)
        records[entry.name] = TaskRecord(
            entry.n_classes, entry.head, tensors["head.weight"], tensors["head.bias"], entry.private, entry.width
        )
        rows[entry.name] = {name: tensors[f"rows/{name}"] for name in wiring.parameters}
    return Stored(constants, allocation, records, rows)


def restore_(wiring: Wiring, state: Mapping[str, Tensor], stored: Stored) -> None:
    """Put stored rows into full-width tensors; of claimed rows everything else is zero (severed)."""
    for name, tensor in stored.constants.items():
        state[name].copy_(tensor)
    owner = wiring.join(stored.allocation.owner)
    for number, task in enumerate(stored.allocation.tasks):
        rows_of = with_everyone(owner == number, everyone=False)
        columns_of = with_everyone(wiring.join(stored.allocation.needed[task]))
        for name, labels in wiring.parameters.items():
            rows = positions(rows_of, labels.rows)
            matrix = labels.matrix(state[name])
            if labels.columns is None:
                matrix[rows] = stored.rows[task][name]
            else:
                matrix[rows] = 0
                matrix[rows[:, None], positions(columns_of, labels.columns)[None]] = stored.rows[task][name]


def describe(directory: str | PathLike[str]) -> Description:
    """Read and check `model.json`.

    Raises:
        StoreError: it is missing, damaged, or of a format that this version does not know.
    """
    file = Path(directory) / DESCRIPTION
    if not file.is_file():
        what = "there is no such directory" if not file.parent.exists() else f"it holds no {DESCRIPTION}"
        raise StoreError(f"cannot load a model from '{directory}': {what}. Pass a directory that Learner.save wrote.")
    try:
        content = file.read_text(encoding="utf-8")
        raw = json.loads(content)
        version = raw.get("format") if isinstance(raw, dict) else None
        if isinstance(version, int) and version not in FORMATS:
            known = " or ".join(map(str, FORMATS))
            raise StoreError(f"cannot load '{file}': expected format {known}, found {version}. Install the clnp version that wrote it.")
        description = Description.model_validate_json(content)
    except ValueError as error:
        first = str(error).splitlines()
        raise StoreError(f"cannot load '{file}': it is damaged ({' '.join(first[:3])}). Restore it from a copy.") from error
    if description != description.sealed():
        raise StoreError(f"cannot load '{file}': it is damaged: its checksum is not that of its content. Restore it from a copy.")
    for entry in description.inputs:
        if not isinstance(getattr(torch, entry.dtype, None), torch.dtype):
            raise StoreError(f"cannot load '{file}': it is damaged (no such dtype: {entry.dtype!r}). Restore it from a copy.")
    return description


def _open(file: Path, sha256: str) -> dict[str, Tensor]:
    """Read a safetensors file whose hash is known."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot load '{file}': {error.strerror or error}. Restore it from a copy.") from error
    if _sha256(content) != sha256:
        raise StoreError(f"cannot load '{file}': it is damaged: its SHA-256 is not the one that was written down. Restore it from a copy.")
    try:
        return load(content)
    except SafetensorError as error:
        raise StoreError(f"cannot load '{file}': it is no safetensors file ({error}). Restore it from a copy.") from error


def _check(file: Path, tensors: Mapping[str, Tensor], wiring: Wiring, allocation: Allocation) -> None:
    """Check names, ranges and finiteness of a task's tensors."""
    expected = {"head.weight", "head.bias", *(f"rows/{name}" for name in wiring.parameters)}
    expected |= {f"{what}/{group.name}" for group in wiring.groups for what in ("claimed", "needed")}
    if set(tensors) != expected:
        raise StoreError(f"cannot load '{file}': expected other tensors ({', '.join(sorted(set(tensors) ^ expected)[:5])}).")
    for group in wiring.groups:
        claimed, needed = tensors[f"claimed/{group.name}"], tensors[f"needed/{group.name}"]
        inside = all(((units >= 0) & (units < group.n_units)).all() for units in (claimed, needed))
        free = inside and torch.equal(needed[allocation.owner[group.name][needed] == FREE], claimed)
        if not free:
            raise StoreError(f"cannot load '{file}': its units of '{group.name}' do not fit the tasks before it.")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point()):
        raise StoreError(f"cannot load '{file}': it holds NaN or infinite values.")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
