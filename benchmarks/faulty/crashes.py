"""Faults while something is being learned or committed: killed, out of power, out of space, out of memory."""

from __future__ import annotations

import errno
import functools
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import clnp
from faulty.board import Verdict
from faulty.disk import Recorder, materialise, survivors
from faulty.oracle import compare, judge_commits, look, walk
from faulty.processes import Case, some
from faulty.saboteur import Failer, Killer, Saboteur, install, installed
from faulty.stage import MODEL, NAMES, Scenario, Stage, acknowledge, acknowledged, clone, learn, load, said, state_of

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE)


def dry_run(scenario: Scenario, *, root: Path | None = None) -> tuple[list[str], float]:
    """Make the commits once with nothing wrong: the calls that it takes, and seconds."""
    with tempfile.TemporaryDirectory(prefix="clnp-dry-") as scratch:
        place = root or Path(scratch)
        scenario.prepare(place)
        counter, start = Saboteur(), time.perf_counter()
        with installed(counter):
            scenario.commit(place)
        if said(place):
            msg = f"the commits fail with nothing wrong: {said(place)}"
            raise AssertionError(msg)
        return counter.names, time.perf_counter() - start


# ---- killed


def killed_training(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """SIGKILL at a random moment while tasks are learned and committed; then the same program again."""
    final = stage.states[-1]

    def program(root: Path) -> None:
        learner = load(root / MODEL) if (root / MODEL / "model.json").exists() else clone(stage.learners[0])
        for name in NAMES[len(learner.tasks) :]:
            learn(learner, name)
            learner.save(root / MODEL)
            acknowledge(root, len(learner.tasks), state_of(learner))

    def judge(root: Path) -> Verdict:
        verdict = Verdict()
        sure, _ = acknowledged(root)
        states = [None if index == 0 else state for index, state in enumerate(stage.states)]
        compare(verdict, look(root / MODEL), [None, stage.states[0], *states[1:]] if not sure else states, sure)
        try:
            program(root)
        except Exception as error:  # whatever it is, it is judged
            verdict.blame("person", f"the same program fails: {error}")
        if look(root / MODEL) != final:
            verdict.blame("person", "the same program ends with something else")
        return verdict

    for number in range(150 if n is None else n):
        delay = rng.uniform(0, 0.35)
        yield Case(f"training {number}, killed after {delay:.3f} s", lambda _: None, judge, program, delay)


def killed_commit(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """SIGKILL at a random moment of a commit, from outside."""
    seconds = {scenario.name: dry_run(scenario)[1] for scenario in stage.scenarios}
    for number in range(1000 if n is None else n):
        scenario = stage.scenarios[number % len(stage.scenarios)]
        delay = rng.uniform(0, 1.2 * seconds[scenario.name])
        label = f"{scenario.name}, killed after {1000 * delay:.2f} ms"
        yield Case(label, scenario.prepare, functools.partial(judge_commits, scenario), scenario.commit, delay)


def killed_call(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """SIGKILL before every call of a commit that changes the disk, and in the middle of every write; then once more while it goes on."""
    cases: list[Case] = []

    def add(scenario: Scenario, at: int, tear: bool, again: int) -> None:
        def act(root: Path) -> None:
            if again and not os.fork():
                install(Killer(at, tear=tear))
                scenario.commit(root)
                os._exit(0)
            if again:
                os.wait()
            install(Killer(again or at, tear=tear))
            scenario.commit(root)

        label = f"{scenario.name}, killed {'in' if tear else 'before'} call {at}" + (f", then before call {again}" if again else "")
        cases.append(Case(label, scenario.prepare, functools.partial(judge_commits, scenario), act))

    for scenario in walk(stage):
        names = dry_run(scenario)[0]
        for at, name in enumerate([*names, "after the last"], 1):
            add(scenario, at, False, 0)
            if name == "write":
                add(scenario, at, True, 0)
        for _ in range(60):
            add(scenario, rng.randrange(1, len(names) + 1), rng.random() < 0.5, rng.randrange(1, len(names) + 1))
    yield from some(rng, cases, n)


# ---- out of power


def record(scenario: Scenario, before: Callable[[Path], None], failing: Saboteur | None = None, *, times: int = 1) -> Recorder:
    """Make the commits in a scratch directory and write down what reaches the disk; `times` how often it is tried when it fails."""
    with tempfile.TemporaryDirectory(prefix="clnp-record-") as scratch:
        root = Path(scratch)
        before(root)
        recorder = Recorder(root, failing)
        with installed(recorder):
            for _ in range(times):
                try:
                    for learner, index in scenario.steps:
                        learner.save(root / MODEL)
                        recorder.acknowledge(index)
                    break
                except clnp.ClnpError:
                    continue
        return recorder


def power_case(scenario: Scenario, recorder: Recorder, k: int, rng: random.Random, mode: str, label: str) -> Case:
    """Return the case of a power failure after k recorded operations."""
    files, directories, sure = survivors(recorder, k, rng, mode)

    def prepare(root: Path) -> None:
        materialise(root, files, directories)
        if sure:
            acknowledge(root, sure, scenario.states[sure] or ())

    return Case(label, prepare, functools.partial(judge_commits, scenario))


def power(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """Power loss after every operation of a commit; what was not fsynced survives by chance."""
    recorders = [(scenario, record(scenario, scenario.prepare)) for scenario in stage.scenarios]
    places = [(scenario, recorder, k) for scenario, recorder in recorders for k in range(len(recorder.operations) + 1)]
    rounds = 0
    given = 0
    while given < (3000 if n is None else n):
        for scenario, recorder, k in places if n is None or n > len(places) else rng.sample(places, n):
            mode = ("none", "all", "any")[min(rounds, 2)] if n is None else rng.choice(["none", "any", "any"])
            yield power_case(scenario, recorder, k, rng, mode, f"{scenario.name}, power lost after operation {k} ({mode}, round {rounds})")
            given += 1
        rounds += 1


def power_again(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """A process is killed or loses power in a commit, another one goes on, and the power fails (again)."""
    recorders = [(scenario, record(scenario, scenario.prepare)) for scenario in stage.scenarios]
    for number in range(600 if n is None else n):
        scenario, first = recorders[number % len(recorders)]
        k = rng.randrange(len(first.operations) + 1)
        killed = rng.random() < 0.5
        if killed:  # the page cache outlives the process: nothing is lost, and nothing more is certain than before
            second = replay(scenario, first, k)
        else:
            files, directories, _ = survivors(first, k, rng)
            second = record(scenario, functools.partial(materialise, files=files, directories=directories))
        j = rng.randrange(k if killed else 0, len(second.operations) + 1)
        label = f"{scenario.name}, {'killed' if killed else 'power lost'} after operation {k}, then power lost after operation {j}"
        mode = rng.choice(["none", "any"])
        later = power_case(scenario, second, j, rng, mode, label)
        sure = max([op[1] for op in first.operations[:k] if op[0] == "acknowledge"], default=0)

        def prepare(root: Path, later: Case = later, sure: int = sure, scenario: Scenario = scenario) -> None:
            if sure:
                acknowledge(root, sure, scenario.states[sure] or ())
            later.prepare(root)

        yield Case(label, prepare, later.judge)


def replay(scenario: Scenario, first: Recorder, k: int) -> Recorder:
    """Return the record of a process that was killed after k operations, and of the next one that goes on: nothing was fsynced between."""
    with tempfile.TemporaryDirectory(prefix="clnp-record-") as scratch:
        root = Path(scratch)
        scenario.prepare(root)
        recorder = Recorder(root)
        stop = StopAfter(k, recorder)
        with installed(stop):
            try:
                for learner, index in scenario.steps:
                    learner.save(root / MODEL)
                    recorder.acknowledge(index)
                    stop.check()
            except Stopped:
                pass
        del recorder.operations[k:]
        with installed(recorder):
            for learner, index in scenario.steps:
                try:
                    learner.save(root / MODEL)
                except clnp.StoreError as error:  # an earlier step of a program that is further on: it would not save that again
                    if "learned more" not in str(error):
                        raise
                    continue
                recorder.acknowledge(index)
        del first
        return recorder


class Stopped(BaseException):
    """Stands for SIGKILL in the process that records: nothing cleans up after it."""


class StopAfter(Saboteur):
    """Lets nothing through once so many operations were written down: not even what cleans up."""

    def __init__(self, k: int, recorder: Recorder) -> None:
        super().__init__()
        self.k, self.recorder = k, recorder

    def check(self) -> None:
        """Stop, if it is time."""
        if len(self.recorder.operations) >= self.k:
            raise Stopped

    def call(self, name: str, *arguments: Any, **more: Any) -> Any:
        """Make a call, unless it is too late; descriptors are closed, as a killed process's are."""
        if name == "close":
            return os.close(*arguments)
        self.check()
        return self.recorder.call(name, *arguments, **more)


# ---- calls that fail


def failing_calls(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """ENOSPC, EIO, EROFS and EMFILE at every call of a commit, once or from there on, until it passes clean."""
    cases: list[Case] = []
    for scenario in walk(stage):
        n_calls = len(dry_run(scenario)[0])
        for code in ERRORS:
            for at in range(1, n_calls + 1):
                for forever in (False, True):
                    what = f"{errno.errorcode[code]} at call {at}{' and ever after' if forever else ''}"
                    make = functools.partial(Failer, at, code, forever=forever, tear=code == errno.ENOSPC)
                    cases.append(failing_case(scenario, what, make))
    yield from some(rng, cases, n)


def failing_case(scenario: Scenario, what: str, make: Callable[[], Saboteur]) -> Case:
    """Return the case of a commit in which calls fail, then are mended, and the same process tries again."""

    def act(root: Path) -> None:
        saboteur = make()
        with installed(saboteur):
            scenario.commit(root)
        if getattr(saboteur, "failed", 1) and not said(root) and acknowledged(root)[0] != len(scenario.states) - 1:
            msg = "a call failed, and nobody was told"
            raise AssertionError(msg)
        sure, _ = acknowledged(root)
        verdict = Verdict()
        compare(verdict, look(root / MODEL), scenario.states, sure)
        for learner, index in scenario.steps:
            if index > sure:
                learner.save(root / MODEL)
                acknowledge(root, index, state_of(learner))
        if verdict.notes:
            raise AssertionError(str(verdict.notes))

    return Case(f"{scenario.name}, {what}", scenario.prepare, functools.partial(judge_commits, scenario), act)


def failing_fsync(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """Let fsync fail, alone or with what would clean up; the same process tries again and succeeds; then the power fails."""
    wanted: list[tuple[Scenario, int, tuple[str, ...]]] = []
    for scenario in walk(stage):
        for at in range(1, dry_run(scenario)[0].count("fsync") + 1):
            wanted += [(scenario, at, more) for more in ((), ("ftruncate",), ("unlink",), ("ftruncate", "unlink"))]
    if n is not None:
        rng.shuffle(wanted)
        del wanted[n // 4 + 1 :]
    for scenario, at, more in wanted:
        recorder = record(scenario, scenario.prepare, _Fsync(at, more), times=3)
        whole, what = len(recorder.operations), f"fsync {at} fails" + "".join(f", {name} too" for name in more)
        for k, mode in ((whole, "none"), (whole, "any"), (whole, "any"), (rng.randrange(whole + 1), "any")):
            yield power_case(scenario, recorder, k, rng, mode, f"{scenario.name}, {what}, power lost after operation {k} ({mode})")


class _Fsync(Failer):
    """Fails one fsync, and the calls that would clean up directly after it."""

    def __init__(self, at: int, more: tuple[str, ...]) -> None:
        super().__init__(at, errno.EIO, only=("fsync",))
        self.more, self.due = more, False

    def before(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Fail, if it is time."""
        if self.due and name in self.more:
            self.due = False
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self.due and name not in ("close", *self.more):
            self.due = False
        try:
            super().before(name, arguments)
        except OSError:
            self.due = True
            raise
