"""Stand-ins for `os` at the one place through which `clnp` changes the disk: `clnp.files.system`.

They count the calls, and at the Nth one they kill, tear, fail, or only write down. Opening for reading and for fsync goes through
`clnp.files.os`, which is counted with them.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

from clnp import files

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

import contextlib

CALLS = ("open", "write", "fsync", "rename", "unlink", "ftruncate", "mkdir", "close")


class Saboteur:
    """Counts calls; what happens at one of them is the business of `before`."""

    def __init__(self) -> None:
        self.n = 0
        self.names: list[str] = []

    def __getattr__(self, name: str) -> Any:
        """Be `os` in everything that does not change the disk."""
        if name not in CALLS:
            return getattr(os, name)

        def call(*arguments: Any, **more: Any) -> Any:
            return self.call(name, *arguments, **more)

        return call

    def call(self, name: str, *arguments: Any, **more: Any) -> Any:
        """Make a call, after whatever `before` does."""
        self.n += 1
        self.names.append(name)
        self.before(name, arguments)
        return getattr(os, name)(*arguments, **more)

    def before(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Do nothing: a plain saboteur only counts."""


class Killer(Saboteur):
    """Kills its own process before the Nth call (from 1); with `tear`, a write is done by half first."""

    def __init__(self, at: int, *, tear: bool = False) -> None:
        super().__init__()
        self.at, self.tear = at, tear

    def before(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Kill, if it is time."""
        if self.n == self.at:
            if self.tear and name == "write":
                os.write(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)


class Failer(Saboteur):
    """Raises an OSError at the Nth call, or at each one from there on.

    Args:
        at: from 1.
        code: of the error.
        forever: whether calls after that fail, too: a disk that is full stays full while one cleans up.
        only: the calls that are counted and fail.
        tear: whether a write that fails has written half of it.
    """

    def __init__(self, at: int, code: int, *, forever: bool = False, only: Iterable[str] = CALLS, tear: bool = False) -> None:
        super().__init__()
        self.at, self.code, self.forever, self.only, self.tear = at, code, forever, frozenset(only), tear
        self.counted = 0
        self.failed = 0

    def before(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Fail, if it is time. A close that fails has closed all the same."""
        if name not in self.only:
            return
        self.counted += 1
        if self.counted == self.at or (self.forever and self.counted > self.at):
            self.failed += 1
            if name == "close":
                os.close(arguments[0])
            if name == "write" and self.tear:
                os.write(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            raise OSError(self.code, os.strerror(self.code), *[str(a) for a in arguments[:1] if not isinstance(a, int)])


class Exhausted(Saboteur):
    """Raises a MemoryError at the Nth call."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def before(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Fail, if it is time."""
        del arguments
        if self.n == self.at:
            if name == "close":
                return
            raise MemoryError


class _Reading:
    """`os` for `clnp.files`, whose `open` is counted by a saboteur, too."""

    def __init__(self, saboteur: Saboteur) -> None:
        self._saboteur = saboteur

    def __getattr__(self, name: str) -> Any:
        return getattr(self._saboteur if name == "open" else os, name)


def install(saboteur: Saboteur) -> Saboteur:
    """Put a saboteur in place, for good: call this in a process that is to end."""
    files.system = saboteur
    files.os = _Reading(saboteur)  # pyright: ignore[reportAttributeAccessIssue]
    return saboteur


@contextlib.contextmanager
def installed(saboteur: Saboteur) -> Generator[Saboteur]:
    """Put a saboteur in place for a while."""
    before = files.system, files.os
    install(saboteur)
    try:
        yield saboteur
    finally:
        files.system, files.os = before
