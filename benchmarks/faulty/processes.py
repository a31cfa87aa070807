"""Every fault happens in a process of its own, and another fresh one looks at what it left.

Processes are forked from one that has imported everything and learned the tasks: a fork takes milliseconds, an import of torch seconds.
Nothing that a child does reaches its parent but through files, so a `SIGKILL` in it is as real as any.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from faulty.board import Row, Verdict

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable
    from pathlib import Path

PATIENCE = 60
"""Seconds that a process may take: what hangs is killed, and counted as a state that needs a person."""
BATCH = 12
"""Directories that one fresh process looks at, one after another: each is loaded into a new learner."""
CRASHED = 70
"""Exit code of a child that raised what nobody expected."""


@dataclass(frozen=True)
class Case:
    """One injection.

    Attributes:
        label: what is injected, for a person who wants to see it again.
        prepare: makes the directory as it is before the fault, or as a fault from outside has left it.
        judge: looks at the directory in a fresh process.
        act: what happens in a process of its own, which may be killed; None where the fault comes from outside.
        kill_after: seconds after the beginning of `act` at which it is sent SIGKILL.
        kill_with: the signal.
    """

    label: str
    prepare: Callable[[Path], object]
    judge: Callable[[Path], Verdict]
    act: Callable[[Path], None] | None = None
    kill_after: float | None = None
    kill_with: signal.Signals = signal.SIGKILL


def fork(act: Callable[[], object], *, seconds: int = PATIENCE, quiet: Path | None = None) -> int:
    """Start a child, and return its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = CRASHED
    try:
        signal.alarm(seconds)  # kills, for nobody handles it
        act()
        code = 0
    except BaseException:  # a child must never run on as its parent
        text = traceback.format_exc()
        if quiet is None:
            sys.stderr.write(text)
        else:
            quiet.write_text(text, encoding="utf-8", errors="replace")
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """Wait for a child; return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(case: Case, root: Path) -> None:
    """Let the fault of a case happen."""
    if case.act is None:
        return
    act, ready = case.act, os.pipe()

    def begin() -> None:
        os.write(ready[1], b"!")
        act(root)

    pid = fork(begin, quiet=root / "crash")
    if case.kill_after is not None:
        os.read(ready[0], 1)
        time.sleep(case.kill_after)
        os.kill(pid, case.kill_with)
    os.close(ready[0])
    os.close(ready[1])
    ended = wait(pid)
    if ended == -signal.SIGALRM:
        (root / "crash").write_text("it hung")


def judge_all(cases: list[tuple[Case, Path]], results: Path) -> list[Verdict]:
    """Judge cases in one fresh process; in another one again from the case on that the judge itself did not outlive."""
    verdicts: list[Verdict] = []
    while len(verdicts) < len(cases):
        rest = cases[len(verdicts) :]
        results.unlink(missing_ok=True)

        def judge(rest: list[tuple[Case, Path]] = rest) -> None:
            with results.open("w", encoding="utf-8") as file:
                for case, root in rest:
                    signal.alarm(PATIENCE)
                    file.write(json.dumps(asdict(judged(case, root))) + "\n")
                    file.flush()

        ended = wait(fork(judge))
        lines = results.read_text(encoding="utf-8").split("\n")[:-1] if results.exists() else []
        verdicts += [Verdict(**json.loads(line)) for line in lines]
        if len(lines) < len(rest):
            verdict = Verdict()
            verdict.blame("person" if ended == -signal.SIGALRM else "unclear", f"the process that reads it ended with {ended}")
            verdicts.append(verdict)
    return verdicts


def judged(case: Case, root: Path) -> Verdict:
    """Judge one case; what the judge itself cannot cope with counts against the class."""
    try:
        verdict = case.judge(root)
    except Exception:  # everything is told
        verdict = Verdict()
        verdict.blame("unclear", "the judge failed: " + " | ".join(traceback.format_exc().strip().splitlines()[-3:]))
    crash = root / "crash"
    if crash.exists():
        verdict.blame("unclear", "the process failed: " + " | ".join(crash.read_text(encoding="utf-8").strip().splitlines()[-2:]))
    return verdict


def play(row: Row, cases: Iterable[Case], scratch: Path, *, batch: int = BATCH) -> Row:
    """Inject all cases of a class and count."""
    start = time.perf_counter()
    waiting: list[tuple[Case, Path]] = []

    def finish() -> None:
        for (case, root), verdict in zip(waiting, judge_all(waiting, scratch / "verdicts"), strict=True):
            row.add(case.label, verdict)
            shutil.rmtree(root)
        waiting.clear()

    for number, case in enumerate(cases):
        root = scratch / f"{row.name}-{number}"
        root.mkdir()
        case.prepare(root)
        run(case, root)
        waiting.append((case, root))
        if len(waiting) == batch:
            finish()
    finish()
    row.seconds += time.perf_counter() - start
    return row


def some(rng: random.Random, cases: list[Case], n: int | None) -> list[Case]:
    """Return all of them, or n of them in their order."""
    if n is None or n >= len(cases):
        return cases
    return [cases[place] for place in sorted(rng.sample(range(len(cases)), n))]
