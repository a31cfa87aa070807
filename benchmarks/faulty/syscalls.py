"""SIGKILL at real system calls of a commit, by strace: also at those that do not go through `clnp.files.system`, such as the lock's."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from faulty import tracing
from faulty.oracle import judge_commits
from faulty.processes import Case

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from faulty.stage import Scenario, Stage


def killed_syscall(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """SIGKILL at the Nth system call of a commit, N anything from the first to the last."""
    if not tracing.is_there():
        return
    counts: dict[str, int] = {}
    for number in range(600 if n is None else n):
        scenario = stage.scenarios[number % len(stage.scenarios)]
        if scenario.name not in counts:
            counts[scenario.name] = _count(scenario)
        at = rng.randrange(1, counts[scenario.name] + 1)

        def act(root: Path, scenario: Scenario = scenario, at: int = at) -> None:
            tracing.traced(functools.partial(scenario.commit, root), f"signal=KILL:when={at}", quiet=root / "crash")

        yield Case(f"{scenario.name}, killed at system call {at}", scenario.prepare, functools.partial(judge_commits, scenario), act)


def _count(scenario: Scenario) -> int:
    """Return how many system calls the commits of a scenario make."""
    with tempfile.TemporaryDirectory(prefix="clnp-trace-") as scratch:
        scenario.prepare(Path(scratch))
        return len(tracing.traced(functools.partial(scenario.commit, Path(scratch)))[1])
