"""Resources that run out: the kernel's own limits, and memory."""

from __future__ import annotations

import functools
import os
import resource
import signal
from typing import TYPE_CHECKING, Any

from torch.overrides import TorchFunctionMode

import clnp
from faulty.board import Verdict
from faulty.crashes import dry_run
from faulty.oracle import check_message, judge_commits, look
from faulty.processes import Case
from faulty.saboteur import Exhausted, installed
from faulty.stage import MODEL, Scenario, Stage, acknowledge, clone, lay, learn, say, state_of

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path


def limits(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """The kernel itself refuses: no file may grow beyond a limit (EFBIG, after a short write), or no more files may be open (EMFILE)."""
    for number in range(300 if n is None else n):
        scenario = stage.scenarios[rng.randrange(len(stage.scenarios))]
        if number % 3:
            size = rng.randrange(0, 6000)
            kind, limit, what = resource.RLIMIT_FSIZE, size, f"files of at most {size} bytes"
        else:
            kind, limit, what = resource.RLIMIT_NOFILE, number // 3 % 12, f"only {number // 3 % 12} more open files"

        def act(root: Path, scenario: Scenario = scenario, kind: int = kind, limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            more = 1 + max(int(name) for name in os.listdir("/proc/self/fd")) if kind == resource.RLIMIT_NOFILE else 0
            before = resource.getrlimit(kind)
            errors: list[BaseException] = []
            for learner, index in scenario.steps:
                resource.setrlimit(kind, (limit + more, before[1]))
                try:
                    learner.save(root / MODEL)
                except BaseException as error:  # it is judged
                    errors.append(error)
                finally:
                    resource.setrlimit(kind, before)
                if errors:
                    say(root, errors[0])
                    return
                acknowledge(root, index, state_of(learner))

        yield Case(f"{scenario.name}, {what}", scenario.prepare, functools.partial(judge_commits, scenario), act)


# ---- out of memory


class _Exhausted(TorchFunctionMode):
    """Raises at the Nth operation of torch, as the allocator does."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        super().__init__()
        self.at, self.error, self.n = at, error, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A switch, such as that of gradients, takes no memory; one that fails stays as it is, for torch has no way to try again.
        self.n += not getattr(func, "__name__", "").startswith("_set_")
        if self.n == self.at:
            self.n += 1
            raise self.error("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return func(*args, **(kwargs or {}))


def memory(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """Memory runs out at a random operation of learning, or at any call of a commit; the same learner goes on."""
    for number in range(400 if n is None else n):
        if number % 2:
            scenario = stage.scenarios[number // 2 % len(stage.scenarios)]
            at = rng.randrange(1, len(dry_run(scenario)[0]) + 1)
            yield _memory_commit(scenario, at)
        else:
            yield _memory_learning(stage, rng.randrange(1, 1500), rng.choice([MemoryError, RuntimeError]))


def _memory_commit(scenario: Scenario, at: int) -> Case:
    def act(root: Path) -> None:
        with installed(Exhausted(at)):
            for learner, index in scenario.steps:
                try:
                    learner.save(root / MODEL)
                except MemoryError:
                    return  # as clear as it can be
                acknowledge(root, index, state_of(learner))

    return Case(f"{scenario.name}, no memory at call {at}", scenario.prepare, functools.partial(judge_commits, scenario), act)


def _memory_learning(stage: Stage, at: int, kind: type[BaseException]) -> Case:
    def judge(root: Path) -> Verdict:
        verdict = Verdict()
        learner = clone(stage.learners[2])
        try:
            with _Exhausted(at, kind):
                learn(learner, "three")
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, kind) and not isinstance(error, clnp.ClnpError):
                verdict.blame("unclear", repr(error)[:200])
        except clnp.ClnpError as error:
            check_message(verdict, (type(error).__name__, True, str(error)))
        else:
            learner = clone(stage.learners[2])  # it was over before
        if state_of(learner) != stage.states[2]:
            verdict.blame("drift", "the learner is not what it was")
        learn(learner, "three")
        learner.save(root / MODEL)
        if look(root / MODEL) != stage.states[3]:
            verdict.blame("wrong", "it learned something else afterwards")
        return verdict

    return Case(f"no memory at operation {at} of learning ({kind.__name__})", lambda root: lay(root / MODEL, stage.bases[2]), judge)
