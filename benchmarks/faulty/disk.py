"""A disk that may lose power: only what was fsynced is certain, and of the rest anything may have reached it.

A file's content is certain up to the last fsync of that file; a directory's entries (created, renamed, deleted) up to the last fsync of
that directory: POSIX promises no more, and file systems differ beyond. Of later writes a prefix may be there, or some of the 512-byte
sectors while others are zero or old; of later entries any subset. After an fsync that failed, what it should have written may be gone for
good though later ones succeed, as on Linux, which marks such pages clean.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from faulty.saboteur import Saboteur

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

SECTOR = 512
Operation = tuple[Any, ...]
ROOT = "."


class Recorder(Saboteur):
    """Writes down what reaches the disk below a directory.

    Args:
        root: of the case; paths are relative to it.
        failing: another saboteur that is asked before each call, and may raise.
    """

    def __init__(self, root: Path, failing: Saboteur | None = None) -> None:
        super().__init__()
        self.root, self.failing = root, failing
        self.operations: list[Operation] = []
        self.files: dict[str, int] = {}
        self.count = 0
        self.first: dict[str, tuple[int, bytes]] = {}
        for path in sorted(root.rglob("*")):
            if path.is_file():
                self.first[self._name(path)] = (self._new(self._name(path)), path.read_bytes())
        self.directories = [self._name(path) for path in sorted(root.rglob("*")) if path.is_dir()]

    def _new(self, name: str) -> int:
        self.count += 1
        self.files[name] = self.count
        return self.count

    def _name(self, path: Any) -> str:
        return os.path.relpath(os.path.realpath(path), os.path.realpath(self.root))

    def _of(self, descriptor: int) -> str:
        return self._name(os.readlink(f"/proc/self/fd/{descriptor}"))

    def acknowledge(self, index: int) -> None:
        """Write down that a commit was acknowledged."""
        self.operations.append(("acknowledge", index))

    def call(self, name: str, *arguments: Any, **more: Any) -> Any:
        """Make a call and write it down."""
        self.n += 1
        self.names.append(name)
        try:
            if self.failing is not None:
                self.failing.n += 1
                self.failing.before(name, arguments)
        except OSError:
            if name == "fsync" and os.path.isfile(f"/proc/self/fd/{arguments[0]}"):
                self.operations.append(("failed", self.files[self._of(arguments[0])]))
            raise
        return getattr(self, f"_{name}", getattr(os, name))(*arguments, **more)

    def _open(self, path: Any, flags: int, *rest: Any, **more: Any) -> int:
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        is_new = writes and not os.path.exists(path)
        descriptor = os.open(path, flags, *rest, **more)
        if is_new:
            self.operations.append(("link", self._name(path), self._new(self._name(path))))
        elif writes and flags & os.O_TRUNC:
            self.operations.append(("cut", self.files[self._name(path)], 0))
        return descriptor

    def _write(self, descriptor: int, data: Any) -> int:
        at = os.lseek(descriptor, 0, os.SEEK_CUR)
        written = os.write(descriptor, data)
        self.operations.append(("write", self.files[self._of(descriptor)], at, bytes(data)[:written]))
        return written

    def _ftruncate(self, descriptor: int, length: int) -> None:
        os.ftruncate(descriptor, length)
        self.operations.append(("cut", self.files[self._of(descriptor)], length))

    def _fsync(self, descriptor: int) -> None:
        name = self._of(descriptor)
        os.fsync(descriptor)
        self.operations.append(("sync", self.files[name]) if name in self.files else ("sync directory", name))

    def _rename(self, old: Any, new: Any) -> None:
        os.rename(old, new)
        a, b = self._name(old), self._name(new)
        self.files[b] = self.files.pop(a)
        self.operations.append(("rename", a, b, self.files[b]))

    def _unlink(self, path: Any) -> None:
        os.unlink(path)
        self.files.pop(self._name(path), None)
        self.operations.append(("unlink", self._name(path)))

    def _mkdir(self, path: Any, *rest: Any) -> None:
        os.mkdir(path, *rest)
        self.operations.append(("mkdir", self._name(path)))


@dataclass
class _File:
    """A file on the disk: what it was, and what has happened to it since: [operation, how certain that is]."""

    first: bytes = b""
    done: list[tuple[Operation, str]] = field(default_factory=list)


def survivors(recorder: Recorder, k: int, rng: random.Random, mode: str = "any") -> tuple[dict[str, bytes], list[str], int]:
    """Return what is on the disk when the power fails after the first k operations.

    Args:
        recorder: what was written down.
        k: how many operations had been made.
        rng: chooses what survives of what is not certain.
        mode: "none" and "all" of it, or "any".

    Returns: files, directories, and the number of the last commit that had been acknowledged.
    """
    files = {number: _File(content) for number, content in recorder.first.values()}
    entries: dict[str, dict[str, int | None]] = {ROOT: {}}
    pending: dict[str, list[Operation]] = {}
    for name in recorder.directories:
        entries[os.path.dirname(name) or ROOT][os.path.basename(name)] = None
        entries[name] = {}
    for name, (number, _) in recorder.first.items():
        entries[os.path.dirname(name) or ROOT][os.path.basename(name)] = number
    sure = 0
    for operation in recorder.operations[:k]:
        kind = operation[0]
        if kind == "acknowledge":
            sure = operation[1]
        elif kind in ("write", "cut"):
            files.setdefault(operation[1], _File()).done.append((operation, "pending"))
        elif kind in ("sync", "failed"):
            file = files.setdefault(operation[1], _File())
            after = "certain" if kind == "sync" else "doubtful"
            file.done = [(op, after if was == "pending" and (kind == "sync" or op[0] == "write") else was) for op, was in file.done]
        elif kind == "sync directory":
            for op in pending.pop(operation[1], []):
                _enter(entries, op)
        else:
            pending.setdefault(os.path.dirname(operation[1]) or ROOT, []).append(operation)
    for operations in pending.values():
        for op in _chosen(operations, rng, mode):
            _enter(entries, op)
    return _reachable(entries, lambda number: _content(files.get(number, _File()), rng, mode)), _directories(entries), sure


def _enter(entries: dict[str, dict[str, int | None]], op: Operation) -> None:
    """Let an operation on a directory reach the disk."""
    folder = entries.setdefault(os.path.dirname(op[1]) or ROOT, {})
    name = os.path.basename(op[1])
    if op[0] == "mkdir":
        folder[name] = None
        entries.setdefault(op[1], {})
    elif op[0] == "link":
        folder[name] = op[2]
    elif op[0] == "unlink":
        folder.pop(name, None)
    else:
        folder.pop(name, None)
        folder[os.path.basename(op[2])] = op[3]


def _chosen(operations: list[Operation], rng: random.Random, mode: str) -> list[Operation]:
    """Return which of the uncertain operations on a directory survive: none, all, the first ones, or any."""
    how = mode if mode != "any" else rng.choice(["none", "all", "first", "some"])
    if how == "first":
        return operations[: rng.randrange(len(operations) + 1)]
    if how == "some":
        return [op for op in operations if rng.random() < 0.5]
    return operations if how == "all" else []


def _content(file: _File, rng: random.Random, mode: str) -> bytes:
    """Return what is in a file."""
    how = mode if mode != "any" else rng.choice(["none", "all", "first", "sectors"])
    content = bytearray(file.first)
    n = sum(certainty == "pending" for _, certainty in file.done)
    left = {"none": 0, "all": n, "sectors": n}.get(how, rng.randrange(n + 1))
    for op, certainty in file.done:
        if certainty == "certain":
            _apply(content, op)
        elif certainty == "doubtful":
            _apply(content, op, (lambda: rng.random() < 0.5) if mode == "any" else (lambda: mode == "all"))
        elif left > 0:
            left -= 1
            _apply(content, op, (lambda: rng.random() < 0.5) if how == "sectors" else None)
        elif how == "first" and op[0] == "write":
            _apply(content, (*op[:3], op[3][: rng.randrange(len(op[3]) + 1)]))
            break
    return bytes(content)


def _apply(content: bytearray, op: Operation, survives: Callable[[], bool] | None = None) -> None:
    """Cut or write; of a write only those sectors that survive, while its length always does."""
    if op[0] == "cut":
        length = op[2]
        del content[length:]
        content.extend(bytes(length - len(content)))
        return
    _, _, at, data = op
    content.extend(bytes(max(0, at + len(data) - len(content))))
    place = at
    while place < at + len(data):
        stop = min((place // SECTOR + 1) * SECTOR, at + len(data))
        if survives is None or survives():
            content[place:stop] = data[place - at : stop - at]
        place = stop


def _reachable(entries: dict[str, dict[str, int | None]], content: Callable[[int], bytes]) -> dict[str, bytes]:
    """Return the files that a path leads to."""
    reached = set(_directories(entries)) | {ROOT}
    return {
        os.path.normpath(os.path.join(folder, name)): content(number)
        for folder, names in entries.items()
        if folder in reached
        for name, number in names.items()
        if number is not None
    }


def _directories(entries: dict[str, dict[str, int | None]]) -> list[str]:
    """Return the directories that a path leads to, outer ones first."""
    found: list[str] = []
    waiting = [ROOT]
    while waiting:
        folder = waiting.pop()
        for name, number in entries.get(folder, {}).items():
            if number is None:
                found.append(os.path.normpath(os.path.join(folder, name)))
                waiting.append(found[-1])
    return found


def materialise(root: Path, files: dict[str, bytes], directories: list[str]) -> None:
    """Write what survived below a directory."""
    for name in directories:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / name).write_bytes(content)
