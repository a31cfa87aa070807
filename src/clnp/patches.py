r"""Bring a copy of a model directory up to date by one small file: the new records, and the files of the new tasks.

A patch is

    clnp patch 1\n                                   what it is
    {"base": ..., "base_record": ..., "records": n}\n   the hash and number of the record that it follows ("" and -1: none)
    n records, a line each, as they stand in log.jsonl
    the files of those records, one after the other: their sizes stand in the records
    the SHA-256 of all that, 64 hexadecimal digits, and a newline

so that nothing in it names a path, and every byte of it is under a hash.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clnp.chain import check_record
from clnp.describe import Description, is_there, open_ledger, upgrade
from clnp.entries import MODEL, Created, FileEntry, Learned, Undone, read_record, spelled
from clnp.errors import DamageError, StoreError, TaskError, first_line
from clnp.files import digest
from clnp.ledger import Ledger, create, extend
from clnp.locks import WAIT, locked
from clnp.names import composed
from clnp.parsing import parse_json
from clnp.tensorfile import tensor_table
from clnp.undoing import check_units

if TYPE_CHECKING:
    from os import PathLike

MAGIC = b"clnp patch 1\n"
MAX_PATCH = 2**34
MAX_RECORDS = 1_000_000
_TAIL = 65


@dataclass(frozen=True)
class Patch:
    """What a patch holds: records and their lines, the record that they follow, and the content of each file by its place.

    Attributes:
        base: hash of the record before the first; "" where the patch begins with the directory itself.
        base_record: its number; -1 likewise.
        records: the new ones.
        lines: theirs.
        described: name -> content of the files that describe the network; empty unless the patch begins with them.
        contents: number of a task's file -> its content.
    """

    base: str
    base_record: int
    records: tuple[Any, ...]
    lines: tuple[bytes, ...]
    described: dict[str, bytes]
    contents: dict[int, bytes]


@dataclass(frozen=True)
class Applied:
    """What applying a patch has done: the tasks learned and undone by it, and the newest record now."""

    learned: tuple[str, ...]
    undone: tuple[str, ...]
    record: int
    sha256: str
    was_there: bool


def make_patch(directory: str | PathLike[str], since: str | None = None) -> bytes:
    """Return the patch that brings a copy of a directory, as it was when a task was learned, to what the directory is now.

    Args:
        directory: a model directory.
        since: the name of the newest task that the copy has; None makes a patch from which a directory is made anew.

    Raises:
        TaskError: there is no such task.
        StoreError: the directory is missing.
        DamageError: it is damaged.
    """
    ledger, _ = open_ledger(directory)
    base = -1
    if since is not None:
        since = composed(since)
        known = [record for record in ledger.learned if record.task == since]
        if not known:
            names = ", ".join(repr(record.task) for record in ledger.learned) or "(none)"
            raise TaskError(f"cannot make a patch since task '{since}': expected one of {names}.")
        base = known[-1].number
    records = ledger.records[base + 1 :]
    purged = {number for number, is_purged in ledger.gone.items() if is_purged}
    header = {"base": ledger.hashes[base] if base >= 0 else "", "base_record": base, "records": len(records)}
    parts = [MAGIC, _header(header), *(spelled(record) + b"\n" for record in records)]
    for record in records:
        if isinstance(record, Created):
            parts += [ledger.model if name == MODEL else ledger.content(name) for name in sorted(record.files)]
        elif isinstance(record, Learned) and record.number not in purged:
            parts.append(ledger.content(record))
    whole = b"".join(parts)
    return whole + digest(whole).encode() + b"\n"


def _header(header: dict[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def read_patch(content: bytes) -> Patch:
    """Return what a patch holds, every byte of it checked.

    Raises:
        DamageError: it is none, is torn, or was changed.
    """
    try:
        return _read_patch(content)
    except ValueError as error:
        raise DamageError(f"cannot read the patch: {first_line(error)}. Send it again, as `clnp diff` wrote it.") from None


def _read_patch(content: bytes) -> Patch:
    if not content.startswith(MAGIC):
        msg = "it is no patch: expected it to begin with 'clnp patch 1'"
        raise ValueError(msg)
    body, tail = content[:-_TAIL], content[-_TAIL:]
    if len(content) < len(MAGIC) + _TAIL or tail != digest(body).encode() + b"\n":
        msg = "it is damaged or incomplete: its SHA-256 is not the one at its end"
        raise ValueError(msg)
    place = body.find(b"\n", len(MAGIC))
    header = parse_json(body[len(MAGIC) : place]) if place >= 0 else None
    if not isinstance(header, dict) or set(header) != {"base", "base_record", "records"} or body[len(MAGIC) : place + 1] != _header(header):
        msg = "its header is damaged"
        raise ValueError(msg)
    base, base_record, n_records = header["base"], header["base_record"], header["records"]
    if type(base) is not str or type(base_record) is not int or type(n_records) is not int or not 0 <= n_records <= MAX_RECORDS:
        msg = "its header is damaged"
        raise ValueError(msg)
    records: list[Any] = []
    lines: list[bytes] = []
    start = place + 1
    for number in range(n_records):
        place = body.find(b"\n", start)
        line = body[start:place] if place >= 0 else b""
        record = read_record(line)
        if record.number != base_record + 1 + number or record.previous != (digest(lines[-1]) if lines else base or record.previous):
            msg = f"record {record.number} does not follow the one before it"
            raise ValueError(msg)
        records.append(record)
        lines.append(line)
        start = place + 1
    described, contents, end = _contents(body, start, records)
    if end != len(body):
        msg = f"{len(body) - end:,} bytes of it belong to no record"
        raise ValueError(msg)
    return Patch(base, base_record, tuple(records), tuple(lines), described, contents)


def _contents(body: bytes, start: int, records: list[Any]) -> tuple[dict[str, bytes], dict[int, bytes], int]:
    """Return the files that follow the records, each checked against its record, and where they end."""
    purged = {record.record for record in records if isinstance(record, Undone) and record.purged}
    described: dict[str, bytes] = {}
    contents: dict[int, bytes] = {}

    def take(entry: FileEntry, what: str) -> bytes:
        nonlocal start
        content = body[start : start + entry.bytes]
        start += len(content)
        if len(content) != entry.bytes or digest(content) != entry.sha256:
            msg = f"{what} is not what its record says"
            raise ValueError(msg)
        return content

    for record in records:
        if isinstance(record, Created):
            described = {name: take(record.files[name], name) for name in sorted(record.files)}
        elif isinstance(record, Learned) and record.number not in purged:
            contents[record.file] = take(record.content, f"the file of task '{record.task}'")
            if tensor_table(contents[record.file]) != record.tensors:
                msg = f"the file of task '{record.task}' holds other tensors than its record says"
                raise ValueError(msg)
    return described, contents, start


def apply_patch(directory: str | PathLike[str], content: bytes) -> Applied:
    """Bring a model directory up to date by a patch: as a whole, or not at all.

    Args:
        directory: whose newest record is the one that the patch follows, or one of those in it; a new or empty one for a patch that
            begins with the directory itself.
        content: of the patch.

    Raises:
        StoreError: the patch does not fit the directory, which is left as it was.
        DamageError: the patch or the directory is damaged.
    """
    patch, path = read_patch(content), Path(directory)
    if patch.base_record >= 0:
        open_ledger(path)  # nothing is made where there is none
    try:
        with locked(path, "apply a patch to", timeout=WAIT):
            if not is_there(path):
                return _begin(path, patch)
            ledger, _ = open_ledger(path)
            if ledger.head < 0:
                ledger = upgrade(ledger)
            n_known = _fit(ledger, patch)
            return _applied(_go_on(ledger, patch, n_known), patch.records[n_known:])
    except OSError as error:
        raise StoreError(
            f"cannot apply the patch to '{path}': {error.strerror or error}. Nothing has changed; give the command again."
        ) from error


def _fit(ledger: Ledger, patch: Patch) -> int:
    """Return how many records of a patch a directory has already.

    Raises:
        StoreError: the patch follows another record than one that the directory has, or it has gone another way since.
    """
    last = len(ledger.records) - 1
    refused = f"cannot apply the patch to '{ledger.path}'"
    if patch.base_record > last:
        newest = ledger.learned[-1].task if ledger.learned else None
        since = f"--since '{newest}'" if newest is not None else "no --since"
        raise StoreError(
            f"{refused}: it follows record {patch.base_record}, but the directory ends with record {last}. Make one with {since}."
        )
    if patch.base_record >= 0 and ledger.hashes[patch.base_record] != patch.base:
        raise StoreError(f"{refused}: it is of another model: record {patch.base_record} is not the one that it follows.")
    here = ledger.hashes[patch.base_record + 1 :]
    there = tuple(map(digest, patch.lines))
    n = min(len(here), len(there))
    if here[:n] != there[:n] or len(here) > len(there):
        raise StoreError(
            f"{refused}: the directory has records of its own after record {patch.base_record}. A patch fits a copy that learned nothing itself."
        )
    return len(here)


def _go_on(ledger: Ledger, patch: Patch, n_known: int) -> Ledger:
    """Add what a directory lacks of a patch: all but its first `n_known` records."""
    records, lines = patch.records[n_known:], patch.lines[n_known:]
    before, hashes = list(ledger.records), list(ledger.hashes)
    for record, line in zip(records, lines, strict=True):
        try:
            check_record(record, before, hashes)
        except ValueError as error:
            raise DamageError(f"cannot apply the patch: record {record.number}: {error}.") from None
        before.append(record)
        hashes.append(digest(line))
    new = {record.file for record in records if isinstance(record, Learned)}
    contents = {number: content for number, content in patch.contents.items() if number in new}
    return extend(ledger, records, lines, contents, check=verify_units)


def verify_units(ledger: Ledger) -> None:
    """Read back what was written, and check that tasks' units fit each other.

    Raises:
        DamageError: they do not, or the disk did not keep what was written.
    """
    check_units(ledger, Description.model_validate_json(ledger.model).units(ledger.widened))


def _begin(path: Path, patch: Patch) -> Applied:
    """Make a directory of a patch that begins with it. Cut short, it is one without tasks, which the same patch completes."""
    if patch.base_record >= 0 or not patch.records or MODEL not in patch.described:
        raise StoreError(f"cannot apply the patch to '{path}': it holds no model. Make a patch without --since, or copy the directory.")
    ledger = create(path, patch.described, patch.lines[0])
    return _applied(_go_on(ledger, patch, 1), patch.records)


def _applied(ledger: Ledger, records: tuple[Any, ...]) -> Applied:
    return Applied(
        learned=tuple(record.task for record in records if isinstance(record, Learned)),
        undone=tuple(record.task for record in records if isinstance(record, Undone)),
        record=len(ledger.records) - 1,
        sha256=ledger.hashes[-1],
        was_there=not records,
    )
