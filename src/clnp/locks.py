"""One process at a time writes to a directory; another is told which one does. A killed process lets go by dying.

DIRECTORY/.lock       held by the process at work
DIRECTORY/.lock.pid   says which one it is; it may be dead
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import filelock

from clnp.errors import StoreError
from clnp.files import make_directory, read_bounded

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

LOCK, HOLDER = ".lock", ".lock.pid"
WAIT = 10.0
"""Seconds that a commit waits for another process: one takes much less."""


@contextlib.contextmanager
def locked(directory: Path, doing: str = "run in", *, timeout: float = 0.5) -> Generator[None]:
    """Hold a directory, made if need be.

    Args:
        directory: what is written to.
        doing: for messages, as in "cannot run in 'DIRECTORY'".
        timeout: seconds to wait for another process; `clnp status` holds a lock for a moment to see whether it can.

    Raises:
        StoreError: another process holds it (the message says which one), or it cannot be written to.
    """
    try:
        make_directory(directory)
        lock = filelock.FileLock(directory / LOCK, timeout=timeout)
        lock.acquire()
    except filelock.Timeout as error:
        raise StoreError(
            f"cannot {doing} '{directory}': process {holder(directory) or 'unknown'} is at work there. Wait for it, or choose another directory."
        ) from error
    except (OSError, NotImplementedError) as error:
        raise StoreError(
            f"cannot {doing} '{directory}': {getattr(error, 'strerror', None) or error}. Choose a directory that can be written to."
        ) from error
    try:
        with contextlib.suppress(OSError):  # it is only for messages
            _sign(directory / HOLDER)
        yield
    finally:
        with contextlib.suppress(OSError):
            (directory / HOLDER).unlink(missing_ok=True)
        lock.release()


def _sign(file: Path) -> None:
    """Write down which process it is, without waiting for whoever might read a pipe of that name."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        os.write(descriptor, str(os.getpid()).encode())
    finally:
        os.close(descriptor)


def holder(directory: Path) -> int | None:
    """Return the id of the process that last said it was at work; it may be dead."""
    try:
        return int(read_bounded(directory / HOLDER, 20, directory))
    except (OSError, ValueError):
        return None


def is_locked(directory: Path) -> bool:
    """Tell whether a living process is at work in a directory."""
    if not (directory / LOCK).exists():
        return False
    try:
        with filelock.FileLock(directory / LOCK, blocking=False):
            return False
    except filelock.Timeout:
        return True
    except (OSError, NotImplementedError):  # a directory that we may not write to is not ours to work in
        return False
