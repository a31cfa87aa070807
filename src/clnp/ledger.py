"""A model directory is a ledger: it is only ever added to, every record knows the hash of the one before, and HEAD knows the last.

MODEL/model.json              the network: hash of its graph, groups and units, inputs; written once
MODEL/constants.safetensors   tensors of the network that belong to no unit; written once
MODEL/probe.safetensors       only where the user named examples for receipts; written once
MODEL/tasks/000.safetensors   one task each; written once
MODEL/log.jsonl               one record for each commit, see `clnp.entries`
MODEL/HEAD                    number and hash of the newest record

A commit writes the task's file (temporary file, fsync, rename, fsync of the directory), then appends the record to the log and waits
until it is on the disk, then replaces HEAD the same way. Whatever HEAD points to is certain, and damage up to it is refused. Beyond it
there may be what an interrupted commit left: a whole record is taken over, for everything it counts on was on the disk before it; a torn
one is left out, and the next commit writes over it. This module knows nothing of networks or of torch: see `clnp.store`.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from clnp import files
from clnp.chain import check_record, read_log
from clnp.entries import MODEL, START, Created, FileEntry, Head, Learned, Undone, Widened, read_head, read_record, spelled
from clnp.errors import DamageError, StoreError, damaged, first_line
from clnp.files import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

CONSTANTS, PROBE, TASKS, LOG, HEAD = "constants.safetensors", "probe.safetensors", "tasks", "log.jsonl", "HEAD"
FILES = (MODEL, CONSTANTS, PROBE, TASKS, LOG, HEAD)
MAX_MODEL, MAX_LOG, MAX_HEAD = 2**26, 2**30, 512
"""Bytes; larger files are refused unread."""
TASK_FILE = re.compile(r"^(\d{3,})\.safetensors$")
RETRIES = 50
notices = logging.getLogger("clnp")
"""What a person should know and need not act on, such as a commit that a crash cut short."""


@dataclass(frozen=True)
class Ledger:
    """What a model directory says, its chain verified.

    Attributes:
        path: of the directory.
        records: all that count, the first one `Created`.
        hashes: theirs.
        size: bytes of the log up to the end of the last of them.
        head: the number in HEAD; smaller than the last record's where a commit was cut short, -1 where nothing is written yet.
        model: the content of model.json.
        n_widened: how often the network was widened.
    """

    path: Path
    records: tuple[Any, ...]
    hashes: tuple[str, ...]
    size: int
    head: int
    model: bytes
    said: tuple[str, ...] = field(default=(), compare=False)

    @property
    def learned(self) -> list[Learned]:
        """The records of all tasks ever learned, undone ones too."""
        return [record for record in self.records if isinstance(record, Learned)]

    @property
    def gone(self) -> dict[int, bool]:
        """Numbers of the records of undone tasks; whether each was purged."""
        found: dict[int, bool] = {}
        for record in self.records:
            if isinstance(record, Undone):
                found[record.record] = record.purged
        return found

    @property
    def tasks(self) -> list[Learned]:
        """The records of the tasks that there are, oldest first."""
        gone = self.gone
        return [record for record in self.learned if record.number not in gone]

    @property
    def widened(self) -> list[dict[str, int]]:
        """What was added each time that the network was widened."""
        return [record.added for record in self.records if isinstance(record, Widened)]

    def task(self, name: str) -> Learned:
        """Return the record of a task that there is.

        Raises:
            StoreError: there is none of that name.
        """
        found = next((record for record in self.tasks if record.task == name), None)
        if found is None:
            names = ", ".join(repr(record.task) for record in self.tasks) or "(none)"
            raise StoreError(f"there is no task '{name}' in '{self.path}': expected one of {names}.")
        return found

    def content(self, entry: Learned | str) -> bytes:
        """Return the content of a task's file, or of one of the files that describe the network, its size and hash verified.

        Raises:
            DamageError: it is missing or is not what was committed.
        """
        if isinstance(entry, str):
            return verified(self.path, self.path / entry, self.records[0].files[entry], "record 0")
        return verified(self.path, task_file(self.path, entry.file), entry.content, f"record {entry.number}, task '{entry.task}'")


def task_file(path: Path, number: int) -> Path:
    """Return where a task's file lies: names of tasks are data, never paths."""
    return path / TASKS / f"{number:03d}.safetensors"


def verified(path: Path, file: Path, entry: FileEntry, record: str) -> bytes:
    """Return the content of a file that was committed; see `Ledger.content`."""
    try:
        content = files.read_bounded(file, entry.bytes, path)
    except FileNotFoundError:
        raise damaged(file, "it is missing", record) from None
    except OSError as error:
        raise StoreError(f"cannot read '{file}' ({record}): {error.strerror or error}.") from error
    except ValueError as error:
        raise damaged(file, str(error), record) from None
    if len(content) != entry.bytes or digest(content) != entry.sha256:
        raise damaged(file, "its SHA-256 is not the one that was written down", record)
    return content


def read_small(path: Path, name: str, limit: int) -> bytes:
    """Return the content of one of the ledger's own files.

    Raises:
        DamageError: it is missing, too large, or no plain file.
        StoreError: it cannot be read.
    """
    try:
        return files.read_bounded(path / name, limit, path)
    except FileNotFoundError:
        raise damaged(path / name, "it is missing") from None
    except OSError as error:
        raise StoreError(f"cannot read '{path / name}': {error.strerror or error}.") from error
    except ValueError as error:
        raise damaged(path / name, str(error)) from None


# ---- reading


def consistently(path: Path, read: Callable[[], Any]) -> Any:
    """Read a directory; anew when another process has committed to it meanwhile."""
    for attempt in range(RETRIES):
        before = _stamp(path)
        try:
            return read()
        except StoreError:
            if attempt == RETRIES - 1 or _stamp(path) == before:
                raise
    raise AssertionError


def _stamp(path: Path) -> list[tuple[int, ...] | None]:
    """Return what changes when something is committed."""
    found: list[tuple[int, ...] | None] = []
    for name in (HEAD, LOG, MODEL):
        try:
            status = (path / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return found


def read_ledger(path: Path) -> Ledger:
    """Read a directory of the present format and verify its chain, and that its files are those that were committed, by size.

    What `Ledger.content` returns is verified by hash when it is asked for.

    Raises:
        DamageError: something is missing, damaged, or there though it was never committed; the message names the file.
        StoreError: it cannot be read.
    """
    return consistently(path, lambda: _read(path))


def _read(path: Path) -> Ledger:
    try:
        head = read_head(read_small(path, HEAD, MAX_HEAD))
    except (ValidationError, ValueError) as error:
        raise damaged(path / HEAD, first_line(error)) from None
    content = read_small(path, LOG, MAX_LOG)
    records, hashes, size, said = read_log(path / LOG, content, head)
    model = verified(path, path / MODEL, records[0].files[MODEL], "record 0")
    ledger = Ledger(path, tuple(records), tuple(hashes), size, head.record, model)
    said += check_files(ledger)
    for text in said:
        notices.warning("%s: %s", path, text)
    return replace(ledger, said=tuple(said))


def check_files(ledger: Ledger) -> list[str]:
    """Check that every file is there that should be, of the size that was written down, and no other; see `read_ledger`."""
    path, gone, said = ledger.path, ledger.gone, list[str]()
    for name, entry in ledger.records[0].files.items():
        _check_size(path, path / name, entry, "record 0")
    for record in ledger.learned:
        file = task_file(path, record.file)
        if not gone.get(record.number, False):
            _check_size(path, file, record.content, f"record {record.number}, task '{record.task}'")
        elif file.exists():
            said.append(f"the file of the purged task '{record.task}' is still there: give `clnp undo --purge` for it again")
    expected = {name for name in FILES if name in ledger.records[0].files or name in (TASKS, LOG, HEAD)}
    n_files = len(ledger.learned)
    for file in [*sorted(path.iterdir()), *(sorted((path / TASKS).iterdir()) if (path / TASKS).is_dir() else [])]:
        if file.name.startswith(".") or file.name.endswith(files.TEMPORARY):
            continue  # a lock, what the system keeps for itself, or what a killed process was writing: never read
        if file.parent == path:
            known = file.name in expected
        else:
            number = TASK_FILE.match(file.name)
            known = number is not None and file == task_file(path, int(number[1]))
            if known and number is not None and int(number[1]) >= n_files:
                said.append(f"'{TASKS}/{file.name}' belongs to a commit that is under way or was cut short; it is not read")
        if not known:
            raise DamageError(
                f"cannot read '{path}': expected the files that were committed, found another: {str(file.relative_to(path))!r}. "
                f"Nothing reads it; move it elsewhere."
            )
    return said


def _check_size(path: Path, file: Path, entry: FileEntry, record: str) -> None:
    try:
        status = file.stat()
    except OSError:
        raise damaged(file, "it is missing", record) from None
    if status.st_size != entry.bytes:
        raise damaged(file, f"expected {entry.bytes:,} bytes, found {status.st_size:,}", record)
    if files.leads_out(file, path):
        raise damaged(file, "it is a symbolic link that leads out of the directory", record)


# ---- writing: call these while the directory is locked


@dataclass(frozen=True)
class Addition:
    """A record to append, but for number, time and hash of the one before; and the content of its file."""

    kind: type[Learned | Undone | Widened]
    fields: Mapping[str, Any]
    content: bytes | None = None


def chained(ledger: Ledger, additions: Sequence[Addition]) -> tuple[list[Any], list[bytes]]:
    """Return the records that additions become, and their lines."""
    records, hashes, lines = list(ledger.records), list(ledger.hashes), list[bytes]()
    for addition in additions:
        record = addition.kind(number=len(records), time=time.time(), previous=hashes[-1], **addition.fields)
        check_record(record, records, hashes)
        line = spelled(record)
        records.append(record)
        hashes.append(digest(line))
        lines.append(line)
    return records[len(ledger.records) :], lines


def create(path: Path, contents: Mapping[str, bytes], line: bytes | None = None) -> Ledger:
    """Begin a ledger in an empty directory; model.json is written last: without it there is none.

    Args:
        path: the directory.
        contents: of the files that describe the network, model.json among them.
        line: the first record as a patch brings it; by default it is made here.

    Raises:
        StoreError: the directory holds somebody's files.
        OSError: it cannot be written.
    """
    files.make_directory(path)
    for file in path.iterdir():
        if file.name not in FILES and not file.name.startswith(".") and not file.name.endswith(files.TEMPORARY):
            raise StoreError(
                f"cannot save to '{path}': expected a new, an empty or a model directory, found {file.name!r}. Choose another."
            )
    files.make_directory(path / TASKS)
    files.anchor(path)
    for name, content in contents.items():
        if name != MODEL:
            files.write_atomic(path / name, content)
    entries = {name: FileEntry(bytes=len(content), sha256=digest(content)) for name, content in contents.items()}
    record = Created(number=0, time=time.time(), previous=START, files=entries)  # pyright: ignore[reportArgumentType]
    record = record if line is None else read_record(line)
    line = line or spelled(record)
    files.write_atomic(path / LOG, line + b"\n")
    files.write_atomic(path / HEAD, Head(record=0, sha256=digest(line)).line())
    files.write_atomic(path / MODEL, contents[MODEL])
    return Ledger(path, (record,), (digest(line),), len(line) + 1, 0, contents[MODEL])


def extend(
    ledger: Ledger,
    records: Sequence[Any],
    lines: Sequence[bytes],
    contents: Mapping[int, bytes],
    check: Callable[[Ledger], None] | None = None,
) -> Ledger:
    """Commit records to a ledger: files first, then the log, then HEAD; then files of purged tasks are deleted.

    Args:
        ledger: as it was read under the lock that is held.
        records: what `chained` returned, or what a patch holds.
        lines: theirs, which are written as they are.
        contents: file number -> content.
        check: looks at the outcome before HEAD is replaced; when it raises, everything is taken back.

    Raises:
        OSError: nothing is committed, unless it is HEAD that cannot be replaced: then the next one takes the records over.
    """
    path = ledger.path
    hashes = (*ledger.hashes, *map(digest, lines))
    whole = replace(ledger, records=(*ledger.records, *records), hashes=hashes, head=len(hashes) - 1)
    files.make_directory(path / TASKS)
    for number, content in contents.items():
        files.write_atomic(task_file(path, number), content)
    # The name of model.json may not be on the disk, where its directory's fsync failed: a log without it would be taken for damage.
    files.confirm(path)
    # Whole records beyond HEAD were never confirmed: the fsync of them may have failed.
    again = b"".join(spelled(record) + b"\n" for record in ledger.records[ledger.head + 1 :])
    if lines or again:
        added = b"".join(line + b"\n" for line in lines)
        if len(lines) > 1:
            # An append of several records, cut short between two of them, would be taken for a commit of the first ones.
            known = read_small(path, LOG, MAX_LOG)[: ledger.size]
            files.write_atomic(path / LOG, known + added)
        else:
            files.append(path / LOG, added, at=ledger.size, again=again)
        whole = replace(whole, size=ledger.size + len(added))
    if not lines:
        # An earlier attempt may have failed between a rename and the fsync of its directory.
        files.confirm(path / LOG, path / TASKS, path)
    if check is not None:
        try:
            check(whole)
        except BaseException:
            files.append(path / LOG, b"", at=ledger.size)
            for number in contents:
                files.remove(task_file(path, number))
            raise
    if whole.head != ledger.head:
        files.write_atomic(path / HEAD, Head(record=whole.head, sha256=hashes[-1]).line())
    _sweep(whole)
    return whole


def _sweep(ledger: Ledger) -> None:
    """Delete the files of purged tasks, and what interrupted commits left."""
    gone = ledger.gone
    for record in ledger.learned:
        if gone.get(record.number, False):
            files.remove(task_file(ledger.path, record.file))
    for file in (ledger.path / TASKS).iterdir():
        number = TASK_FILE.match(file.name)
        if (number is not None and int(number[1]) >= len(ledger.learned)) or file.name.endswith(files.TEMPORARY):
            files.remove(file)
