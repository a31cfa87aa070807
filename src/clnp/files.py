"""The one place through which state is written to disk: whole or not at all, and on the disk before anything counts on it.

A file is replaced by a temporary file beside it, fsync, rename and fsync of the directory; a log is appended to and fsynced.
Whatever fails leaves the old content. Every call that changes the disk goes through `system`, so that faults can be injected there.
Reading is here as well: bounded, and never through a link out of the directory that is read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

system: Any = os
"""Where the calls come from that change the disk. `tests/faults` and `benchmarks/faults.py` put a saboteur here, and nowhere else."""

TEMPORARY = ".new"
"""The suffix of a temporary file. One that a killed process left is overwritten by the next."""


def write_atomic(path: Path, data: bytes | str, *, durable: bool = True) -> None:
    """Replace a file as a whole: a temporary file beside it, fsync, rename, fsync of the directory.

    Args:
        path: of the file; its directory exists.
        data: the whole content; text is written as UTF-8.
        durable: whether it must outlive a power loss; without, there is no fsync, for state that can be made anew.

    Raises:
        OSError: it cannot be written; the old content is still there, and nothing beside it.
    """
    with replacing(path, durable=durable) as beside:
        descriptor = system.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            _write(descriptor, data.encode() if isinstance(data, str) else data)
        finally:
            system.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Generator[Path]:
    """Give the name of a temporary file beside `path`; what the block wrote there is put in place when it ends without an error.

    Whatever the block raises leaves the old content, and nothing beside it. A process that is killed leaves the temporary file,
    which the next one overwrites.

    Args:
        path: of the file that is replaced; its directory exists.
        durable: see `write_atomic`.
    """
    beside = path.with_name(path.name + TEMPORARY)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EEXIST, "it is a device or a pipe, and no file that could be replaced")
    try:
        yield beside
        if durable:
            _sync(beside)
        system.rename(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            system.unlink(beside)
        raise
    if durable:
        _sync(path.parent)


def append(path: Path, data: bytes, *, at: int | None = None, again: bytes = b"", durable: bool = True) -> None:
    """Add to the end of a file, made if need be, and cut off what stands there beyond `at`.

    Args:
        path: of the file; its directory exists.
        data: what is added, in one piece.
        at: how long the file is as far as it counts; what a crash left beyond is cut off. None: all of it counts.
        again: what stands directly before `at` and may not be on the disk: it is written once more. After an fsync that failed, the
            system may hold pages to be written that are not, and a later fsync that succeeds does not write them.
        durable: see `write_atomic`.

    Raises:
        OSError: it cannot be written; the file is as long as before, unless that cannot be done either.
    """
    is_new = not path.exists()
    descriptor = system.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        start = size if at is None else at
        try:
            if start != size:
                system.ftruncate(descriptor, start)
            os.lseek(descriptor, start - len(again), os.SEEK_SET)
            _write(descriptor, again + data)
            if durable:
                system.fsync(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                system.ftruncate(descriptor, start)
            raise
    finally:
        system.close(descriptor)
    if is_new and durable:
        _sync(path.parent)


def remove(path: Path) -> None:
    """Delete a file for good; one that is not there is no error.

    Raises:
        OSError: it cannot be deleted.
    """
    with contextlib.suppress(FileNotFoundError):
        system.unlink(path)
        _sync(path.parent)


def make_directory(path: Path) -> None:
    """Make a directory and those above it, where they are missing, so that they outlive a power loss."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was faster
            system.mkdir(folder, 0o777)
        _sync(folder.parent)


def anchor(path: Path) -> None:
    """Wait until the names that lead to a directory are on the disk.

    It may have been made by hand, or by a process that was killed, or whose fsync failed, before they were. Directories above that are
    not ours to open are left to whoever made them.

    Raises:
        OSError: the disk says that it cannot be done.
    """
    for folder in path.absolute().parents:
        with contextlib.suppress(PermissionError):
            _sync(folder)


def confirm(*paths: Path) -> None:
    """Fsync files and directories that are there already: an earlier attempt may have failed between writing and fsync."""
    for path in paths:
        _sync(path)


def read_bounded(path: Path, limit: int, within: Path) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Args:
        path: of the file.
        limit: in bytes; nothing is allocated for a larger one.
        within: the directory that the file must lie in, whatever links say.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, too large, or a link that leads out of the directory; the message says which.
    """
    if leads_out(path, within):
        msg = "it is a symbolic link that leads out of the directory"
        raise ValueError(msg)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # not to wait for what a pipe may never say
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            msg = "it is no regular file"
            raise ValueError(msg)
        if status.st_size > limit:
            msg = f"expected at most {limit:,} bytes, found {status.st_size:,}"
            raise ValueError(msg)
        return file.read(status.st_size)  # not `limit`: as much as is asked for would be allocated


def leads_out(path: Path, within: Path) -> bool:
    """Tell whether links, of the file itself or of a directory on the way to it, lead out of a directory, or nowhere at all."""
    try:
        return not path.resolve().is_relative_to(within.resolve())
    except (OSError, RuntimeError):  # links that lead in a circle
        return True


def digest(content: bytes | memoryview) -> str:
    """Return the SHA-256 of some bytes, in hexadecimal.

    >>> digest(b"")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(content).hexdigest()


def _write(descriptor: int, data: bytes) -> None:
    """Write all of it, however many calls that takes."""
    rest = memoryview(data)
    while rest:
        rest = rest[system.write(descriptor, rest) :]


def _sync(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        system.fsync(descriptor)
    finally:
        os.close(descriptor)
