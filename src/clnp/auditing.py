"""List what a model directory holds, to the last byte, so that a person can check that it holds no example."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clnp.describe import open_ledger
from clnp.entries import Learned
from clnp.errors import DamageError
from clnp.ledger import task_file
from clnp.tensorfile import tensor_table

if TYPE_CHECKING:
    from os import PathLike


@dataclass(frozen=True)
class Item:
    """One thing in a directory: a file, or a tensor of it, how many bytes it has, and what it is for."""

    name: str
    bytes: int
    purpose: str
    known: bool = True


PURPOSES = {
    "model.json": "hash of the network's graph, groups and units, form of its inputs; no weights",
    "constants.safetensors": "tensors of the network's code that belong to no unit",
    "probe.safetensors": "examples that the user named for receipts: these are data",
    "log.jsonl": "one record for each commit: names, counts, accuracies, hashes, versions",
    "HEAD": "number and hash of the newest record",
    ".lock": "held by a process while it writes",
    ".lock.pid": "which process writes",
}
TENSORS = (
    ("rows/", "weights of the units that the task claimed"),
    ("claimed/", "numbers of the units that the task claimed"),
    ("needed/", "numbers of the units that its predictor reads"),
    ("head.", "the task's output layer"),
    ("receipt.logits", "what its predictor answers to the probe"),
)


def audit(directory: str | PathLike[str]) -> list[Item]:
    """List every file of a model directory, every tensor and every byte, with its purpose; nothing is left out.

    Raises:
        StoreError: the directory is missing.
        DamageError: it is damaged.
    """
    path = Path(directory)
    ledger, _ = open_ledger(path)
    names = {task_file(path, record.file): record for record in ledger.learned}
    items: list[Item] = []
    for file in sorted(entry for entry in path.rglob("*") if not entry.is_dir()):
        record, name = names.get(file), str(file.relative_to(path))
        purpose = PURPOSES.get(name)
        if isinstance(record, Learned):
            state = " (undone)" if record.number in ledger.gone else ""
            items.append(Item(name, file.stat().st_size, f"task '{record.task}'{state}, its SHA-256 in record {record.number}"))
            items += _tensors(file, name)
        elif purpose is not None:
            items.append(Item(name, file.stat().st_size, purpose))
            items += _tensors(file, name) if name.endswith(".safetensors") else []
        else:
            items.append(Item(name, file.lstat().st_size, "unknown: not read by clnp", known=False))
    return items


def _tensors(file: Path, name: str) -> list[Item]:
    """List the tensors of a file, and the bytes that say what they are."""
    content = file.read_bytes()
    try:
        table = tensor_table(content)
    except ValueError as error:
        raise DamageError(f"cannot read '{file}': it is no safetensors file ({error}). Restore it from a copy.") from None
    items = [Item(f"{name}: {tensor}", entry.n_bytes, _purpose(tensor)) for tensor, entry in table.items()]
    header = len(content) - sum(item.bytes for item in items)
    return [Item(f"{name}: header", header, "names, shapes and places of the tensors"), *items]


def _purpose(tensor: str) -> str:
    return next((purpose for start, purpose in TENSORS if tensor.startswith(start)), "tensor of the network's code, or of the probe")
