"""Command lines as a user gives them, and what comes of them."""

from __future__ import annotations

import contextlib
import functools
import io
import mmap
import signal
import struct
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clnp import cli
from faulty.stage import Files, snapshot

if TYPE_CHECKING:
    from collections.abc import Generator

    from faulty.board import Verdict

TINY = ["--tasks", "3", "--set", "epochs=2", "--set", "rounds=1", "--set", "finetune_epochs=1"]
NEW = {"verify", "undo", "diff", "apply", "audit"}
"""Commands that an older version does not have: their cases are skipped there."""
STATUS_OF_SIGNAL = {signal.SIGTERM: 143, signal.SIGINT: 130}


def commands() -> set[str]:
    """Return the names of the commands that there are."""
    return {command.name or (command.callback.__name__ if command.callback else "") for command in cli.app.registered_commands}


def call(arguments: list[str], given: bytes = b"") -> tuple[int, str, str]:
    """Give a command line: exit code, stdout, stderr."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(given))
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main(arguments)
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1 if stopped.code else 0
    finally:
        sys.stdin = before
    texts: list[str] = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(errors="replace"))  # pyright: ignore[reportAttributeAccessIssue]
    return code, *texts  # pyright: ignore[reportReturnType]


def check_call(verdict: Verdict, arguments: list[str], codes: set[int], *names: str, given: bytes = b"") -> tuple[int, str, str]:
    """Give a command line and judge how it ends."""
    try:
        code, out, err = call(arguments, given)
    except BaseException as error:  # nothing may come out of it
        verdict.blame("unclear", f"clnp {' '.join(arguments)[-90:]}: {type(error).__name__}: {error}")
        return 1, "", str(error)
    shown = f"clnp {' '.join(arguments)[-90:]}: exit {code}: {err.strip()[-200:]!r}"
    if code not in codes:
        verdict.blame("wrong" if code == 0 else "unclear", f"{shown}, expected {sorted(codes)}")
    elif "Traceback" in out + err or "internal error" in err:
        verdict.blame("unclear", shown)
    elif code in (1, 3) and (err.count("clnp: ") != 1 or not err.strip().splitlines()[-1].startswith("clnp: ")):
        verdict.blame("unclear", f"not one line: {shown}")
    elif code in (1, 3) and names and not any(name in err for name in names):
        verdict.blame("unclear", f"it does not say which: {shown}")
    return code, out, err


@functools.cache
def finished_run() -> tuple[Files, int]:
    """Return a finished run, and how many optimiser steps it took."""
    with tempfile.TemporaryDirectory(prefix="clnp-run-") as scratch:
        counter = Counter()
        with counted(counter):
            code, _, err = call(["run", "digits", *TINY, "--out", f"{scratch}/run"])
        if code:
            raise AssertionError(err)
        return snapshot(Path(scratch) / "run"), counter.value


class Counter:
    """A number that outlives the processes that count."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    @property
    def value(self) -> int:
        """What was counted."""
        return struct.unpack("<q", self._memory[:8])[0]

    def add(self) -> None:
        """Count one."""
        self._memory[:8] = struct.pack("<q", self.value + 1)


@contextlib.contextmanager
def counted(counter: Counter) -> Generator[None]:
    """Count the steps that Adam makes."""
    real = torch.optim.Adam.step

    def step(self: Any, *arguments: Any, **more: Any) -> Any:
        counter.add()
        return real(self, *arguments, **more)

    torch.optim.Adam.step = step
    try:
        yield
    finally:
        torch.optim.Adam.step = real
