"""What `model.json` says: which network a directory is of. Formats 1 and 2, which were rewritten with every task, are read as well."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, field_validator, model_serializer
from safetensors import SafetensorError
from safetensors.torch import load

from clnp import ledger as ledgers
from clnp.entries import START, Created, FileEntry, Learned, Strict, Widened, spelled
from clnp.errors import DamageError, StoreError, damaged, first_line
from clnp.files import digest
from clnp.inputs import Form
from clnp.ledger import CONSTANTS, LOG, MAX_MODEL, MODEL, TASKS, Ledger
from clnp.parsing import parse_json
from clnp.tensorfile import tensor_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from os import PathLike

    from torch import Tensor

    from clnp.inputs import Forms, Inputs

FORMATS = (1, 2, 3)
"""What this version reads. It writes 3, and makes an older directory into one of it when it adds to it."""
MAX_INPUT = 2**26
"""Numbers in one example: more than 4,000 x 4,000 pixels in three colours."""
MAX_FILE = 2**40
"""Bytes of one file of format 1 or 2, which do not write sizes down."""


def _known(dtype: str) -> str:
    """Check that a dtype is one."""
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        msg = f"no such dtype: {dtype[:40]!r}"
        raise ValueError(msg)  # noqa: TRY004  # what a file says is no matter of types
    return dtype


Dtype = Annotated[str, AfterValidator(_known)]


class InputEntry(Strict):
    """What `model.json` says of one input of the network: shape and dtype of one example."""

    shape: list[int] = Field(max_length=16)
    dtype: Dtype

    @field_validator("shape")
    @classmethod
    def _fits_memory(cls, shape: list[int]) -> list[int]:
        if any(size < 0 for size in shape) or math.prod(shape) > MAX_INPUT:
            msg = f"an example of shape {shape} is none that a network reads"
            raise ValueError(msg)
        return shape

    @property
    def form(self) -> Form:
        """The same, as tensors have it."""
        return Form(tuple(self.shape), getattr(torch, self.dtype))


class TensorForm(Strict):
    """Shape and dtype of one tensor of the network."""

    shape: list[int] = Field(max_length=16)
    dtype: Dtype


class Description(Strict):
    """The content of `model.json`: which network, made how. It is written once and never changes.

    Attributes:
        format: of the directory.
        graph: hash of the captured graph.
        groups: group -> units, when the directory was made; records tell what was added.
        inputs: of the network.
        seed: of every draw.
        head: path of the layer that heads replace; None for a trunk.
        tensors: name -> form of every parameter and buffer, when the directory was made.
        versions: of what wrote it.
    """

    format: int = 3
    graph: str
    groups: dict[str, int]
    inputs: list[InputEntry] = Field(min_length=1)
    seed: int
    head: str | None
    tensors: dict[str, TensorForm] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)

    def content(self) -> bytes:
        """Return the file."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()

    def units(self, widened: Iterable[Mapping[str, int]]) -> dict[str, int]:
        """Return group -> units, after the network was widened."""
        groups = dict(self.groups)
        for more in widened:
            groups |= {name: groups.get(name, 0) + n for name, n in more.items()}
        return groups

    @property
    def n_bytes(self) -> int:
        """How many bytes the whole network's tensors have."""
        return sum(
            torch.Size(form.shape).numel() * torch.empty(0, dtype=getattr(torch, form.dtype)).element_size()
            for form in self.tensors.values()
        )

    def example(self) -> Inputs:
        """Return an input of the network, (2, ...), or a tuple of them."""
        return zeros([entry.form for entry in self.inputs])

    def is_of(self, other: Description) -> bool:
        """Tell whether two directories are of one learner: software and tensors' names aside, everything is the same."""
        return all(getattr(self, name) == getattr(other, name) for name in ("graph", "groups", "inputs", "seed", "head"))


def units_before(groups: Mapping[str, int], widened: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Return group -> units, before the network was widened: what `Description.units` adds is taken away."""
    return {name: n - sum(more.get(name, 0) for more in widened) for name, n in groups.items()}


def zeros(forms: Sequence[Form]) -> Inputs:
    """Return an input of a network, (2, ...), or a tuple of them."""
    found = tuple(torch.zeros(2, *form.shape, dtype=form.dtype) for form in forms)
    return found if len(forms) > 1 else found[0]  # pyright: ignore[reportGeneralTypeIssues]


def input_entries(forms: Forms) -> list[InputEntry]:
    """Return what a `Description` says of a network's inputs."""
    return [InputEntry(shape=list(form.shape), dtype=dtype_name(form.dtype)) for form in forms]


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype, without its module."""
    return str(dtype).removeprefix("torch.")


def tensor_forms(state: Mapping[str, Tensor]) -> dict[str, TensorForm]:
    """Return what a `Description` says of a network's tensors."""
    return {name: TensorForm(shape=list(tensor.shape), dtype=dtype_name(tensor.dtype)) for name, tensor in state.items()}


# ---- reading a directory of any format


def is_there(path: Path) -> bool:
    """Tell whether a directory holds a model: what was cut short while it was made is none.

    Raises:
        DamageError: there are learned tasks, but model.json is gone.
        StoreError: nobody can tell: the path is too long, or leads through a directory that is closed to us.
    """
    try:
        if (path / MODEL).exists():
            return True
        has_log = (path / LOG).exists()
        has_tasks = any(ledgers.TASK_FILE.match(file.name) for file in (path / TASKS).iterdir()) if (path / TASKS).is_dir() else False
    except OSError as error:
        raise StoreError(f"cannot read '{path}': {error.strerror or error}.") from error
    if has_tasks:  # no task is written before model.json is there
        raise damaged(path / MODEL, "it is missing")
    if has_log and ledgers.read_small(path, LOG, ledgers.MAX_LOG).count(b"\n") > 1:
        raise damaged(path / MODEL, "it is missing")
    return False


def open_ledger(directory: str | PathLike[str]) -> tuple[Ledger, Description]:
    """Read a model directory of any format that this version knows, its chain verified.

    Raises:
        StoreError: there is none, or it is of a newer format.
        DamageError: something is missing, damaged or foreign; the message names the file.
    """
    path = Path(directory)
    if not is_there(path):
        what = "there is no such directory" if not path.exists() else f"it holds no {MODEL}"
        raise StoreError(f"cannot load a model from '{path}': {what}. Pass a directory that Learner.save wrote.")
    return ledgers.consistently(path, lambda: _open(path))


def _open(path: Path) -> tuple[Ledger, Description]:
    content = ledgers.read_small(path, MODEL, MAX_MODEL)
    file = path / MODEL
    try:
        raw = parse_json(content)
        version = raw.get("format") if isinstance(raw, dict) else None
        if isinstance(version, int) and version not in FORMATS:
            raise StoreError(
                f"cannot load '{file}': expected format {FORMATS[0]} to {FORMATS[-1]}, found {version}. Install the clnp version that wrote it."
            )
        if version != FORMATS[-1]:
            return _legacy(path, content)
        found = ledgers.read_ledger(path)
        description = Description.model_validate_json(found.model)
    except ValueError as error:
        raise damaged(file, first_line(error)) from None
    return found, description


# ---- formats 1 and 2


class LegacyTask(Strict):
    """What a `model.json` of format 1 or 2 says of one task."""

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


class Legacy(Strict):
    """The content of a `model.json` of format 1, or of format 2, which has several inputs."""

    graph: str
    groups: dict[str, int]
    seed: int
    head: str | None
    shape: list[int]
    dtype: Dtype
    more_inputs: list[InputEntry] = Field(default_factory=list)
    widened: list[dict[str, int]] = Field(default_factory=list)
    constants: str = ""
    tasks: list[LegacyTask] = Field(default_factory=list)
    format: int = 1
    checksum: str = ""

    @model_serializer(mode="wrap")
    def _without_nothing(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in fields(self).items() if key not in ("more_inputs", "widened") or value}

    def is_whole(self) -> bool:
        """Tell whether the checksum is that of the content."""
        bare = self.model_copy(update={"checksum": ""})
        return digest(bare.model_dump_json().encode()) == self.checksum


def _legacy(path: Path, content: bytes) -> tuple[Ledger, Description]:
    """Read a directory of format 1 or 2 as the ledger that it becomes when something is added to it."""
    legacy = Legacy.model_validate_json(content)
    if not legacy.is_whole():
        raise damaged(path / MODEL, "its checksum is not that of its content")
    groups = units_before(legacy.groups, legacy.widened)
    inputs = [InputEntry(shape=legacy.shape, dtype=legacy.dtype), *legacy.more_inputs]
    description = Description(graph=legacy.graph, groups=groups, inputs=inputs, seed=legacy.seed, head=legacy.head)
    model = description.content()
    constants = _legacy_file(path, path / CONSTANTS, legacy.constants)
    entries: dict[str, FileEntry] = {
        name: FileEntry(bytes=len(c), sha256=digest(c)) for name, c in ((MODEL, model), (CONSTANTS, constants))
    }
    records: list[Any] = [Created(number=0, time=0.0, previous=START, files=entries)]  # pyright: ignore[reportArgumentType]
    hashes = [digest(spelled(records[0]))]

    def add(kind: type[Learned | Widened], **fields: Any) -> None:
        records.append(kind(number=len(records), time=0.0, previous=hashes[-1], **fields))
        hashes.append(digest(spelled(records[-1])))

    widened = list(legacy.widened)
    for number, task in enumerate(legacy.tasks):
        while widened and len(legacy.widened) - len(widened) < task.width:
            add(Widened, added=widened.pop(0))
        file = path / TASKS / task.file
        data = _legacy_file(path, file, task.sha256)
        if task.file != f"{number:03d}.safetensors":
            raise damaged(path / MODEL, f"the file of task {number} is '{task.file}'")
        try:
            table = tensor_table(data)
            load(data)
        except (ValueError, SafetensorError) as error:
            raise damaged(file, f"it is no safetensors file ({first_line(error)})") from None
        add(
            Learned,
            task=task.name,
            file=number,
            content=FileEntry(bytes=len(data), sha256=task.sha256),
            tensors=table,
            n_classes=task.n_classes,
            head=task.head,
            private=task.private,
            width=task.width,
        )
    for more in widened:
        add(Widened, added=more)
    return Ledger(path, tuple(records), tuple(hashes), 0, -1, model), description


def _legacy_file(path: Path, file: Path, sha256: str) -> bytes:
    """Return the content of a file whose hash, but not its size, was written down."""
    try:
        content = ledgers.files.read_bounded(file, MAX_FILE, path)
    except FileNotFoundError:
        raise damaged(file, "it is missing") from None
    except (OSError, ValueError) as error:
        raise DamageError(f"cannot read '{file}': {error}.") from error
    if digest(content) != sha256:
        raise damaged(file, "its SHA-256 is not the one that was written down")
    return content


def upgrade(old: Ledger) -> Ledger:
    """Write the log and HEAD of a directory of format 1 or 2, then the new `model.json`, which makes it one of format 3.

    A crash before that leaves the old one, and a log that nothing reads.

    Raises:
        OSError: it cannot be written.
    """
    lines = b"".join(spelled(record) + b"\n" for record in old.records)
    ledgers.files.write_atomic(old.path / LOG, lines)
    ledgers.files.write_atomic(old.path / ledgers.HEAD, ledgers.Head(record=len(old.records) - 1, sha256=old.hashes[-1]).line())
    ledgers.files.write_atomic(old.path / MODEL, old.model)
    return ledgers.read_ledger(old.path)
