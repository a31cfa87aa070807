"""Say whether a model directory is what was committed, with evidence: a receipt that a person and a pipeline can read and keep elsewhere.

Hashes tell that the files are those that were committed; the receipts of the tasks tell that they still compute what they computed; and a
receipt that was kept elsewhere tells that the directory as a whole was not set back or exchanged.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load

from clnp import __version__
from clnp.describe import open_ledger
from clnp.errors import StoreError, damaged
from clnp.files import read_bounded
from clnp.learner import Learner
from clnp.ledger import CONSTANTS, Ledger, consistently, task_file
from clnp.parsing import parse_json
from clnp.patches import verify_units
from clnp.receipts import TOLERANCE, Comparison
from clnp.tensorfile import tensor_table

if TYPE_CHECKING:
    from os import PathLike

    from torch import nn

KIND = "clnp receipt"
MAX_RECEIPT = 2**26
ROLLED_BACK, DIFFERS, GOOD = 5, 4, 0
"""Exit codes of `clnp verify`; damage is 3, see `clnp.cli`."""


@dataclass(frozen=True)
class TaskReceipt:
    """What is known of one task.

    Attributes:
        task: its name.
        record: the number of its record.
        file: its file, within the directory.
        bytes: of its file.
        sha256: of its file.
        logits: SHA-256 of what its predictor answered to the probe when it was committed; None where it has no receipt.
        settings: under which it answered.
        comparison: of that with what it answers now.
        outcome: accuracy on validation data when it was committed, and what it gave up.
        committed: when, seconds since 1970; 0 where that was not written down.
    """

    task: str
    record: int
    file: str
    bytes: int
    sha256: str
    logits: str | None
    settings: dict[str, str | int]
    comparison: Comparison
    outcome: dict[str, float]
    committed: float


@dataclass(frozen=True)
class Verification:
    """The outcome of `verify`: every file is what was committed, or it would have been refused; the rest stands here.

    Attributes:
        directory: as it was given.
        record: the number of the newest record.
        sha256: its hash.
        hashes: those of all records, oldest first.
        tasks: that there are.
        undone: names of undone tasks; whether their files were deleted.
        probe: "noise", or "named by the user".
        notices: what a person should know.
        kept: what a receipt that was kept elsewhere says; None where none was given.
        problem: why that receipt is not of this directory, or of a newer state of it; None otherwise.
        made: when this was found, seconds since 1970.
    """

    directory: str
    record: int
    sha256: str
    hashes: tuple[str, ...]
    tasks: tuple[TaskReceipt, ...]
    undone: tuple[tuple[str, bool], ...]
    probe: str
    notices: tuple[str, ...]
    kept: str | None
    problem: str | None
    made: float

    @property
    def differing(self) -> list[str]:
        """The tasks whose predictors answer otherwise than they did."""
        return [task.task for task in self.tasks if not task.comparison.is_good]

    @property
    def exit_code(self) -> int:
        """0 all is well, 4 a predictor answers otherwise, 5 the directory was set back or is another one."""
        return ROLLED_BACK if self.problem is not None else DIFFERS if self.differing else GOOD

    def content(self) -> dict[str, Any]:
        """Return the receipt as plain data: keep it elsewhere, and give it to `verify` later."""
        versions = {"clnp": __version__, "torch": torch.__version__}
        return {"kind": KIND, "format": 1, "versions": versions, "tolerance": TOLERANCE, **asdict(self)}


def verify(directory: str | PathLike[str], model: nn.Module | None = None, *, receipt: str | PathLike[str] | None = None) -> Verification:
    """Check every file of a model directory, and with the network's code every task's receipt.

    Args:
        directory: a model directory.
        model: the network that it was made with; without it predictors are not asked.
        receipt: a file that `clnp verify --out` wrote earlier, kept elsewhere: a directory that was set back is noticed.

    Raises:
        StoreError: the directory is missing, or of another network.
        DamageError: a file is not what was committed; the message names it, its record, and the way out.
    """
    path = Path(directory)
    return consistently(path, lambda: _verify(path, model, receipt))


def _verify(path: Path, model: nn.Module | None, receipt: str | PathLike[str] | None) -> Verification:
    ledger, _ = open_ledger(path)
    _check_contents(ledger)
    learner = None if model is None else Learner.load(path, model)
    tasks: list[TaskReceipt] = []
    for record in ledger.tasks:
        comparison = Comparison("not checked" if record.settings else "no receipt")
        if learner is not None:
            _, comparison = learner.receipt(record.task)
        logits = record.tensors.get("receipt.logits")
        tasks.append(
            TaskReceipt(
                task=record.task,
                record=record.number,
                file=str(task_file(Path(), record.file)),
                bytes=record.content.bytes,
                sha256=record.content.sha256,
                logits=None if logits is None else logits.sha256,
                settings=dict(record.settings or {}),
                comparison=comparison,
                outcome=dict(record.outcome),
                committed=record.time,
            )
        )
    return Verification(
        directory=str(path),
        record=len(ledger.records) - 1,
        sha256=ledger.hashes[-1],
        hashes=ledger.hashes,
        tasks=tuple(tasks),
        undone=tuple((ledger.records[number].task, purged) for number, purged in ledger.gone.items()),
        probe="named by the user" if "probe.safetensors" in ledger.records[0].files else "noise",
        notices=ledger.said,
        kept=None if receipt is None else str(receipt),
        problem=None if receipt is None else _compare_kept(ledger, Path(receipt)),
        made=time.time(),
    )


def _check_contents(ledger: Ledger) -> None:
    """Check every file by its hash, those of undone tasks too, every tensor by its own, and that all numbers that were learned are finite."""
    for name in ledger.records[0].files:
        if name != "model.json":
            # A mask of -inf is a constant as good as any; NaN is none.
            _check_finite(ledger.path / name, ledger.content(name), "record 0", infinite=name == CONSTANTS)
    for record in ledger.learned:
        if ledger.gone.get(record.number, False):
            continue
        file, of = task_file(ledger.path, record.file), f"record {record.number}, task '{record.task}'"
        content = ledger.content(record)
        try:
            table = tensor_table(content)
        except ValueError as error:
            raise damaged(file, str(error), of) from None
        if table != record.tensors:
            raise damaged(file, "it holds other tensors than its record says", of)
        _check_finite(file, content, of)
    verify_units(ledger)


def _check_finite(file: Path, content: bytes, of: str, *, infinite: bool = False) -> None:
    for name, tensor in load(content).items():
        if tensor.is_floating_point() and not bool((~tensor.isnan() if infinite else torch.isfinite(tensor)).all()):
            raise damaged(file, f"tensor '{name}' holds NaN or infinite values", of)


def _compare_kept(ledger: Ledger, file: Path) -> str | None:
    """Say why a receipt is not one of an earlier or of the present state of a directory.

    Raises:
        StoreError: the file is no receipt.
    """
    try:
        kept = parse_json(read_bounded(file, MAX_RECEIPT, file.parent))
        number, sha256 = kept["record"], kept["sha256"]
        if kept["kind"] != KIND or type(number) is not int or type(sha256) is not str:
            raise ValueError("its kind, record or hash are not those of a receipt")  # noqa: TRY301
    except OSError as error:
        raise StoreError(f"cannot read the receipt '{file}': {error.strerror or error}.") from None
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"cannot read the receipt '{file}': expected what `clnp verify --out` wrote, found: {error}.") from None
    if number >= len(ledger.hashes):
        return f"it was set back: the receipt is of record {number}, but the directory ends with record {len(ledger.hashes) - 1}"
    if ledger.hashes[number] != sha256:
        return f"it is not the directory of the receipt: record {number} is another one"
    return None
