"""Damage from outside: bits that flip, files that are cut, swapped, missing, extra, replayed, old, or made by somebody with ideas.

A directory that is damaged may be refused, or read as exactly what it was. A refusal names what is damaged, and restoring that file
from a copy (or taking away what is too much) heals the directory: else it counts as a state that needs a person.
"""

from __future__ import annotations

import functools
import os
import time
from typing import TYPE_CHECKING

from faulty.board import Verdict
from faulty.oracle import Problem, check_message, look
from faulty.processes import Case, some
from faulty.stage import MODEL, Files, Stage, State, clone, lay

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path


CANARY = "canary"
"""A file beside the model directory that malicious content would make if it were run."""
SLOW = 5.0
"""Seconds within which anything must be refused."""
MUCH = 400 * 2**20
"""Bytes of memory that refusing anything may take."""


def judge_damage(whole: Files, state: State, root: Path, *, healable: bool = True) -> Verdict:
    """Judge whether a damaged directory is refused by name, or read as what it was."""
    verdict, directory = Verdict(), root / MODEL
    found: State | Problem = ()
    for attempt in range(attempts := len(whole) + 2):
        start = time.perf_counter()
        found = look(directory)
        if time.perf_counter() - start > SLOW:
            verdict.blame("person", "it takes forever")
        if (root / CANARY).exists():
            verdict.blame("wrong", "code in a file was run")
        if not isinstance(found, Problem):
            break
        check_message(verdict, found, *(name.rpartition("/")[2] for name in [*whole, *_present(directory)]))
        named = _named(found.message, directory, whole)
        if not named or attempt == attempts - 1 or not healable:
            verdict.blame("person", f"the message does not tell what to restore: {found.message[:200]}") if healable else None
            return verdict
        for name in named:
            _restore(directory, name, whole)
    if isinstance(found, Problem):
        return verdict
    if found != state:
        names = [name for name, _ in found]
        verdict.blame("wrong", f"it is read as something else: tasks {names}")
        for name, sha in found:
            if name in dict(state) and dict(state)[name] != sha:
                verdict.blame("drift", f"task '{name}' answers otherwise")
    return verdict


def _present(directory: Path) -> list[str]:
    """Return the names of everything below a directory, but for locks and temporary files."""
    found = [str(path.relative_to(directory)) for path in directory.rglob("*")] if directory.is_dir() else []
    return [name for name in found if not name.rpartition("/")[2].startswith(".") and name != "tasks"]


def _named(message: str, directory: Path, whole: Files) -> list[str]:
    """Return which files a message names."""
    known = sorted({*whole, *_present(directory)}, key=len, reverse=True)
    found = [name for name in known if f"{directory}/{name}'" in message or f"'{name}'" in message]
    return found or [name for name in known if f"no {name}" in message or f"{name} is missing" in message]


def _restore(directory: Path, name: str, whole: Files) -> None:
    """Do what a message asks for: put the copy of a file in its place, or take away what does not belong there."""
    path = directory / name
    if path.is_dir() and not path.is_symlink():
        for inner in sorted(path.rglob("*"), reverse=True):
            inner.rmdir() if inner.is_dir() else inner.unlink()
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    if name in whole:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(whole[name])


def damaged(stage: Stage, label: str, change: Callable[[Path], object], *, base: Files | None = None, state: State | None = None) -> Case:
    """Return the case of a directory that something was done to."""
    whole = stage.rich if base is None else base
    expected = stage.rich_state if state is None else state

    def prepare(root: Path) -> None:
        lay(root / MODEL, whole)
        change(root / MODEL)

    return Case(label, prepare, functools.partial(judge_damage, whole, expected))


def put(name: str, content: bytes) -> Callable[[Path], object]:
    """Return the change that gives a file another content."""

    def change(directory: Path) -> None:
        (directory / name).write_bytes(content)

    return change


# ---- accidents


def bit_flips(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """One flipped bit anywhere in any file."""
    names, sizes = list(stage.rich), [len(content) for content in stage.rich.values()]
    for number in range(2500 if n is None else n):
        # Large files take most hits, as on a disk; every third one goes to any file, so that the small ones are hit as well.
        name = rng.choices(names, sizes)[0] if number % 3 else rng.choice([name for name, size in zip(names, sizes, strict=True) if size])
        content = bytearray(stage.rich[name])
        bit = rng.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        yield damaged(stage, f"bit {bit} of {name} flipped", put(name, bytes(content)))


def truncations(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """A file cut to a random length; in a third of the cases filled up again with zeros, or with what followed something else."""
    names = [name for name, content in stage.rich.items() if content]
    for _ in range(1200 if n is None else n):
        name = rng.choice(names)
        content = stage.rich[name]
        length = rng.choice([rng.randrange(len(content)), max(0, len(content) - rng.randrange(1, 4)), 0])
        how = rng.choice(["cut", "cut", "zeros", "noise", "longer"])
        rest = {"cut": b"", "zeros": bytes(len(content) - length), "noise": rng.randbytes(len(content) - length)}.get(how)
        changed = content + rng.randbytes(rng.randrange(1, 50)) if rest is None else content[:length] + rest
        yield damaged(stage, f"{name}: {how} from byte {length}", put(name, changed))


def exchanged(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """Swapped, missing, extra, replayed, old and foreign files."""
    cases = [*_missing(stage), *_swapped(stage), *_extra(stage), *_replayed(stage, rng), *_old(stage), *_links(stage)]
    yield from some(rng, cases, n)


def _missing(stage: Stage) -> Iterator[Case]:
    names = list(stage.rich)
    for name in names:
        yield damaged(stage, f"{name} is missing", lambda directory, name=name: (directory / name).unlink())
        for other in names:
            if other > name:
                yield damaged(
                    stage,
                    f"{name} and {other} are missing",
                    lambda directory, name=name, other=other: [(directory / each).unlink() for each in (name, other)],
                )
    for name in ("tasks",):
        yield damaged(
            stage,
            "all task files are missing",
            lambda directory, name=name: [file.unlink() for file in (directory / name).iterdir()],
        )


def _swapped(stage: Stage) -> Iterator[Case]:
    for one in stage.rich:
        for two in stage.rich:
            if one < two:
                yield damaged(
                    stage,
                    f"{one} and {two} are swapped",
                    lambda directory, one=one, two=two: ([put(one, stage.rich[two])(directory), put(two, stage.rich[one])(directory)]),
                )
        for name, content in stage.other.items():
            if name.rpartition(".")[2] == one.rpartition(".")[2] and content != stage.rich[one]:
                yield damaged(stage, f"{one} is {name} of another model", put(one, content))


def _extra(stage: Stage) -> Iterator[Case]:
    some_task = stage.rich["tasks/000.safetensors"]
    for name in ("tasks/notes.txt", "tasks/copy of 000.safetensors", "tasks/00.safetensors", "tasks/0000.safetensors", "notes.txt", "events.jsonl", "HEAD~", "log.jsonl.bak", "tasks/0\u0661\u0662.safetensors", "tasks/-01.safetensors"):  # fmt: skip
        yield damaged(stage, f"an extra file {name!r}", put(name, some_task))
    for name in ("tasks/999.safetensors", "tasks/006.safetensors", ".hidden", "HEAD.new", "tasks/000.safetensors.new", ".DS_Store"):
        yield damaged(stage, f"an extra file {name!r} that nothing reads", put(name, some_task))
    for name in ("tasks/more", "more"):
        yield damaged(stage, f"an extra directory {name!r}", lambda directory, name=name: (directory / name).mkdir())


def _replayed(stage: Stage, rng: random.Random) -> Iterator[Case]:
    lines = stage.rich["log.jsonl"].splitlines(keepends=True)
    for number in range(len(lines)):
        yield damaged(stage, f"record {number} is replayed at the end", put("log.jsonl", b"".join([*lines, lines[number]])))
        yield damaged(stage, f"record {number} stands twice", put("log.jsonl", b"".join([*lines[: number + 1], *lines[number:]])))
        yield damaged(stage, f"record {number} is left out", put("log.jsonl", b"".join([*lines[:number], *lines[number + 1 :]])))
        yield damaged(stage, f"the log ends before record {number}", put("log.jsonl", b"".join(lines[:number])))
        other = number - 1
        changed = [*lines]
        changed[number], changed[other] = changed[other], changed[number]
        yield damaged(stage, f"records {number} and {other} are exchanged", put("log.jsonl", b"".join(changed)))
    for _ in range(20):
        changed = [*lines]
        rng.shuffle(changed)
        if changed != lines:
            yield damaged(stage, "the records are shuffled", put("log.jsonl", b"".join(changed)))
    yield damaged(stage, "the log is repeated", put("log.jsonl", stage.rich["log.jsonl"] * 2))


def _old(stage: Stage) -> Iterator[Case]:
    """Single files of an earlier state of the same directory. (All of them together are for the class of receipts.)"""
    for now in range(1, len(stage.bases)):
        for then in range(now):
            for name, content in stage.bases[then].items():
                if content != stage.bases[now][name]:
                    yield damaged(
                        stage,
                        f"{name} is as after {then} of {now} tasks",
                        put(name, content),
                        base=stage.bases[now],
                        state=stage.states[now],
                    )


def _links(stage: Stage) -> Iterator[Case]:
    def link(name: str, target: str, content: bytes | None = None) -> Callable[[Path], object]:
        def change(directory: Path) -> None:
            (directory / name).unlink()
            if content is not None:
                (directory.parent / "elsewhere").write_bytes(content)
            (directory / name).symlink_to(target.replace("ROOT", str(directory.parent)))

        return change

    for name, content in stage.rich.items():
        yield damaged(stage, f"{name} is a link out of the directory", link(name, "ROOT/elsewhere", content))
        yield damaged(stage, f"{name} is a link to /dev/zero", link(name, "/dev/zero"))
        yield damaged(stage, f"{name} is a link to itself", link(name, name.rpartition("/")[2]))
        yield damaged(stage, f"{name} is a link to nothing", link(name, "nowhere"))
        yield damaged(stage, f"{name} is a pipe", lambda directory, name=name: [(directory / name).unlink(), os.mkfifo(directory / name)])
        yield damaged(
            stage, f"{name} is a directory", lambda directory, name=name: [(directory / name).unlink(), (directory / name).mkdir()]
        )
        yield damaged(stage, f"{name} has a terabyte", lambda directory, name=name: os.truncate(directory / name, 2**40))


# ---- what is damaged while somebody goes on


def commits_on_damage(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """A learner is saved to a directory that was damaged meanwhile: it is refused, and nothing more is broken by it."""
    names = [name for name, content in stage.bases[2].items() if content]
    for _ in range(400 if n is None else n):
        name = rng.choice(names)
        content = bytearray(stage.bases[2][name])
        bit = rng.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        if rng.random() < 0.3:
            del content[bit // 8 :]

        def prepare(root: Path, name: str = name, content: bytes = bytes(content)) -> None:
            lay(root / MODEL, stage.bases[2])
            (root / MODEL / name).write_bytes(content)

        def judge(root: Path, name: str = name) -> Verdict:
            verdict, learner = Verdict(), clone(stage.learners[3])
            try:
                learner.save(root / MODEL)
            except Exception as error:  # whatever it is, it is judged
                problem = Problem(type(error).__name__, hasattr(error, "args") and "clnp" in type(error).__module__, str(error))
                check_message(verdict, problem, name)
            (root / MODEL / name).write_bytes(stage.bases[2][name]) if name.startswith(("tasks", "cons", "model.json")) else None
            found = look(root / MODEL)
            if isinstance(found, Problem):
                for each in _named(found.message, root / MODEL, stage.bases[2]):
                    _restore(root / MODEL, each, stage.bases[2])
                found = look(root / MODEL)
            if found not in stage.states[2:4]:
                verdict.blame("lost", f"after restoring {name}: {found}")
                return verdict
            learner.save(root / MODEL)
            if look(root / MODEL) != stage.states[3]:
                verdict.blame("person", "it cannot go on")
            return verdict

        yield Case(f"save to a directory whose {name} is damaged at bit {bit}", prepare, judge)
