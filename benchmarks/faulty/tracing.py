"""Faults at real system calls, through strace where it is installed: it kills a process, or lets a call fail, at the Nth call of some kinds.

It needs nothing of the program that it is used on, so it serves for `clnp` and for others alike.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from faulty.processes import fork, wait

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = (
    "openat", "write", "writev", "pwrite64", "pwritev", "fsync", "fdatasync", "msync", "ftruncate", "fallocate", "copy_file_range",
    "rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "close", "flock", "lseek", "sendfile",
)  # fmt: skip
"""The calls that are counted: all that change a disk, and some around them."""


def is_there() -> bool:
    """Tell whether strace is installed and may be used."""
    if shutil.which("strace") is None:
        return False
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return bool(traced(lambda: os.close(os.open("/", os.O_RDONLY)))[1])
    return False


def traced(act: Callable[[], None], inject: str | None = None, *, quiet: Path | None = None) -> tuple[int, list[str]]:
    """Let something happen in a traced process.

    Args:
        act: what happens.
        inject: what strace does to it, "KINDS:signal=KILL:when=3" without the kinds: "signal=KILL:when=3". Kinds may be named before.
        quiet: where a traceback goes.

    Returns: how the process ended (as of `wait`), and a line for each call.
    """
    kinds = ",".join(f"?{kind}" for kind in KINDS)
    with tempfile.NamedTemporaryFile(prefix="clnp-trace-") as file:

        def stopped() -> None:
            os.kill(os.getpid(), signal.SIGSTOP)
            act()

        pid = fork(stopped, quiet=quiet)
        os.waitpid(pid, os.WUNTRACED)
        chosen = [] if inject is None else ["-e", f"inject={inject if ':' in inject.partition('=')[0] else f'{kinds}:{inject}'}"]
        command = ["strace", "-f", "-p", str(pid), "-e", f"trace={kinds}", *chosen, "-s", "64", "-o", file.name]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
            assert tracer.stderr is not None
            tracer.stderr.readline()  # "attached"
            os.kill(pid, signal.SIGCONT)
            ended = wait(pid)
        lines = [
            line for line in Path(file.name).read_text(encoding="utf-8", errors="replace").splitlines() if "(" in line and "---" not in line
        ]
    return ended, lines
