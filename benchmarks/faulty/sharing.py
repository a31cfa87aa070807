"""Several processes at one directory, and directories that are odd places: read-only, oddly named, of other versions."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import signal
import time
from typing import TYPE_CHECKING

import clnp
from clnp import store
from faulty.board import Verdict
from faulty.crashes import dry_run
from faulty.oracle import Problem, check_message, compare, finish, judge_commits, look
from faulty.processes import Case, fork, some, wait
from faulty.saboteur import Killer, install
from faulty.stage import MODEL, Stage, acknowledge, clone, load, said, say, state_of

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path


# ---- several writers, readers


def writers(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """2 to 8 concurrent writers, of one learner or of several, some of which are killed; readers meanwhile."""
    for number in range(240 if n is None else n):
        count, kind = rng.randrange(2, 9), ("alike", "in turn", "rivals")[number % 3]
        victim = rng.choice([None, rng.uniform(0, 0.06)])
        yield _together(stage, count, kind, victim, readers=rng.randrange(0, 3))


def _read_along(stage: Stage, root: Path) -> None:
    """Load again and again: what was read once never goes away, and nothing is ever half there."""
    newest = 0
    for _ in range(6):
        found = look(root / MODEL)
        if isinstance(found, Problem):
            if newest or ("no model.json" not in found.message and "no such directory" not in found.message):
                raise AssertionError(found)
            continue
        if found not in stage.states or stage.states.index(found) < newest:
            msg = f"a reader saw {found} after {newest} tasks"
            raise AssertionError(msg)
        newest = stage.states.index(found)


def _together(stage: Stage, count: int, kind: str, victim: float | None, readers: int) -> Case:
    def write(root: Path, number: int) -> None:
        rival = number % 2 and kind == "rivals"
        learners = stage.learners[1:4] if kind == "in turn" else [stage.learners[3]]
        if rival:
            learners = [clone(learners[-1])]
            learners[0].seed = 5  # another learner
        for learner in learners:
            try:
                learner.save(root / MODEL)
            except BaseException as error:  # it is judged
                say(root, error)
                continue
            if not rival:
                acknowledge(root, len(learner.tasks), state_of(learner))
            else:
                (root / "rival").touch()

    def act(root: Path) -> None:
        children = [fork(functools.partial(write, root, number)) for number in range(count)]
        others = [fork(functools.partial(_read_along, stage, root), quiet=root / "crash") for _ in range(readers)]
        if victim is not None:
            time.sleep(victim)
            os.kill(children[0], signal.SIGKILL)
        for child in (*children, *others):
            wait(child)

    def judge(root: Path) -> Verdict:
        verdict = Verdict()
        lines = (root / "oracle").read_text().splitlines() if (root / "oracle").exists() else []
        sure = max((json.loads(line)[0] for line in lines), default=0)
        for error in said(root):
            check_message(verdict, error, MODEL)
        found = look(root / MODEL)
        if sure and (root / "rival").exists():
            verdict.blame("wrong", "two learners were saved to one directory")
        compare(verdict, found, [None, *stage.states], sure + 1 if sure else 0)
        rival = not sure and not isinstance(found, Problem) and load(root / MODEL).seed == 5
        try:
            stage.learners[3].save(root / MODEL)
        except clnp.StoreError as error:
            if not rival:
                verdict.blame("person", str(error))
        return verdict

    return Case(f"{count} writers ({kind}), {readers} readers{', one killed' if victim is not None else ''}", lambda _: None, judge, act)


# ---- locks


def locks(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """Locks that dead processes left, locks that are no files, and locks of processes that sleep."""
    scenario = stage.scenarios[1]
    cases: list[Case] = []
    for holder in (b"", b"999999999", b"1", b"-1", b"0", b"x" * 10_000, bytes(100), b"\xff", str(os.getpid()).encode(), "\u0661".encode()):
        cases.append(
            _lock_case(
                stage,
                f"a stale lock of {holder[:12]!r}",
                lambda directory, holder=holder: [(directory / ".lock").touch(), (directory / ".lock.pid").write_bytes(holder)],
            )
        )
    cases.append(_lock_case(stage, "a lock that says something", lambda directory: (directory / ".lock").write_bytes(b"garbage")))
    cases.append(_lock_case(stage, "a directory for a process id", lambda directory: (directory / ".lock.pid").mkdir()))
    cases.append(_lock_case(stage, "a link for a lock", lambda directory: (directory / ".lock").symlink_to("nowhere"), refused=True))
    cases.append(_lock_case(stage, "a directory for a lock", lambda directory: (directory / ".lock").mkdir(), refused=True))
    cases.append(_lock_case(stage, "a pipe for a process id", lambda directory: os.mkfifo(directory / ".lock.pid")))
    for _ in range(6):
        cases.append(_asleep(stage))
    for at in range(1, len(dry_run(scenario)[0]) + 1):

        def act(root: Path, at: int = at) -> None:
            child = fork(lambda: (install(Killer(at)), scenario.commit(root)))
            wait(child)
            scenario.commit(root)

        cases.append(
            Case(f"the holder is killed at call {at}, another one waits", scenario.prepare, functools.partial(judge_commits, scenario), act)
        )
    yield from some(rng, cases, n)


def _lock_case(stage: Stage, label: str, change: Callable[[Path], object], *, refused: bool = False) -> Case:
    scenario = stage.scenarios[1]

    def prepare(root: Path) -> None:
        scenario.prepare(root)
        change(root / MODEL)

    def judge(root: Path) -> Verdict:
        store.WAIT = 0.2
        verdict = Verdict()
        compare(verdict, look(root / MODEL), scenario.states, 0)
        if refused:
            try:
                stage.learners[3].save(root / MODEL)
            except Exception as error:  # it is judged
                check_message(verdict, (type(error).__name__, isinstance(error, clnp.ClnpError), str(error)), MODEL)
                lock = root / MODEL / ".lock"  # a message that names the directory is all that can be said of a lock that is none
                lock.rmdir() if lock.is_dir() else lock.unlink()
        finish(verdict, scenario, root / MODEL)
        return verdict

    return Case(label, prepare, judge)


def _asleep(stage: Stage) -> Case:
    """Return the case of a holder that was stopped (SIGSTOP): it is named, and nothing is written meanwhile."""
    scenario = stage.scenarios[1]

    def judge(root: Path) -> Verdict:
        verdict = Verdict()
        store.WAIT = 0.1
        descriptor = os.open(root / MODEL / ".lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        (root / MODEL / ".lock.pid").write_text("4242")
        child = fork(lambda: scenario.commit(root))
        wait(child)
        errors = said(root)
        if not errors:
            verdict.blame("wrong", "two processes wrote at once")
        for error in errors:
            check_message(verdict, error, "4242")
        compare(verdict, look(root / MODEL), scenario.states, 0)
        os.close(descriptor)
        finish(verdict, scenario, root / MODEL)
        return verdict

    return Case("the holder of the lock sleeps", scenario.prepare, judge)
