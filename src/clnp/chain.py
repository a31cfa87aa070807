"""The chain of a ledger's records: each knows the hash of the one before it, and only some may follow others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from clnp.entries import MODEL, START, Created, Learned, Undone, Widened, read_record
from clnp.errors import DamageError, damaged, first_line
from clnp.files import digest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from clnp.entries import Head


def read_log(file: Path, content: bytes, head: Head) -> tuple[list[Any], list[str], int, list[str]]:
    """Verify the chain up to HEAD and take over whole records beyond it.

    Returns: the records, their hashes, the bytes that they take, and what a person should know.

    Raises:
        DamageError: a record up to HEAD is damaged or missing, or one beyond it is whole but does not follow.
    """
    *lines, rest = content.split(b"\n")
    records: list[Any] = []
    hashes: list[str] = []
    said: list[str] = []
    for number, line in enumerate(lines):
        try:
            record = read_record(line)
        except ValueError as error:
            # A record that never reached the disk as a whole is the last thing there; or, where several were appended at once and the
            # power failed, sectors of it are still zero, while later ones may be there.
            is_torn = (number + 1 == len(lines) and not rest) or b"\0" in line
            if number <= head.record or not is_torn or _is_json(line):
                raise damaged(file, first_line(error), f"record {number}") from None
            rest = line
            break
        try:
            check_record(record, records, hashes)
        except ValueError as error:
            raise damaged(file, str(error), f"record {number}") from None
        records.append(record)
        hashes.append(digest(line))
    if len(records) <= head.record:
        raise damaged(file, f"HEAD points to record {head.record}, but the log ends before it", f"record {len(records)}")
    if hashes[head.record] != head.sha256:
        raise DamageError(  # nobody can tell which of the two it is
            f"cannot read '{file}' (record {head.record}): its hash is not the one in '{file.with_name('HEAD')}': one of the two files is "
            f"damaged. Restore both from a copy of the directory."
        )
    if rest:  # nothing of a commit counts that was cut short
        said.append(f"a commit is under way or was cut short; what there is of it beyond record {head.record} is left out")
        del records[head.record + 1 :], hashes[head.record + 1 :]
    elif len(records) - 1 > head.record:
        said.append(f"a commit was cut short after its record was whole: taken over up to record {len(records) - 1}")
    return records, hashes, sum(len(line) + 1 for line in lines[: len(records)]), said


def _is_json(line: bytes) -> bool:
    """Tell whether a line is whole JSON: a torn one never is."""
    try:
        json.loads(line)
    except ValueError:
        return False
    except RecursionError:  # deeper than any record of ours: nothing that was torn
        return True
    return True


def check_record(record: Any, before: Sequence[Any], hashes: Sequence[str]) -> None:
    """Check that a record may follow those before it.

    Raises:
        ValueError: it may not; the message says why.
    """
    number = len(before)
    problem = None
    if record.number != number:
        problem = f"expected record {number}, found record {record.number}"
    elif record.previous != (hashes[-1] if hashes else START):
        problem = "it does not follow the record before it: the chain is broken"
    elif isinstance(record, Created) != (number == 0):
        problem = f"a record of kind '{record.kind}' cannot stand here"
    elif isinstance(record, Created) and MODEL not in record.files:
        problem = f"it says nothing of {MODEL}"
    elif isinstance(record, Learned):
        gone = {other.record for other in before if isinstance(other, Undone)}
        past = [other for other in before if isinstance(other, Learned)]
        if record.file != len(past):
            problem = f"expected file number {len(past)}, found {record.file}"
        elif any(other.task == record.task and other.number not in gone for other in past):
            problem = f"a task '{record.task}' is there already"
        elif record.width != sum(isinstance(other, Widened) for other in before):
            problem = f"its width is {record.width}, which is not how often the network was widened before it"
    elif isinstance(record, Undone):
        of = before[record.record] if record.record < number else None
        purged = [other.purged for other in before if isinstance(other, Undone) and other.record == record.record]
        if not isinstance(of, Learned) or of.task != record.task or any(purged) or (purged and not record.purged):
            problem = f"there is no task '{record.task}' in record {record.record} to undo"
    if problem is not None:
        raise ValueError(problem)
