"""Several processes at one directory, and directories that are odd places: read-only, oddly named, of other versions."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import clnp
from clnp import store
from clnp.entries import digest
from faulty.board import Verdict
from faulty.crashes import dry_run, some
from faulty.damage import judge_damage
from faulty.processes import Case, fork, wait
from faulty.saboteur import Killer, install
from faulty.stage import (
    MODEL,
    Problem,
    Stage,
    acknowledge,
    check_message,
    clone,
    compare,
    finish,
    judge_commits,
    lay,
    load,
    look,
    said,
    say,
    state_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from faulty.stage import Files

NOBODY = 65534


# ---- several writers, readers


def writers(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """2 to 8 concurrent writers, of one learner or of several, some of which are killed; readers meanwhile."""
    for number in range(240 if n is None else n):
        count, kind = rng.randrange(2, 9), ("alike", "in turn", "rivals")[number % 3]
        victim = rng.choice([None, rng.uniform(0, 0.06)])
        yield _together(stage, count, kind, victim, readers=rng.randrange(0, 3))


def _together(stage: Stage, count: int, kind: str, victim: float | None, readers: int) -> Case:
    def write(root: Path, number: int) -> None:
        rival = number % 2 and kind == "rivals"
        learners = stage.learners[1:4] if kind == "in turn" else [stage.learners[3]]
        for learner in learners:
            if rival:
                learner = clone(learner)  # noqa: PLW2901  # a rival is another learner
                learner.seed = 5
            try:
                learner.save(root / MODEL)
            except BaseException as error:  # noqa: BLE001  # it is judged
                say(root, error)
                continue
            if not rival:
                acknowledge(root, len(learner.tasks), state_of(learner))
            else:
                (root / "rival").touch()

    def read(root: Path) -> None:
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

    def act(root: Path) -> None:
        children = [fork(functools.partial(write, root, number)) for number in range(count)]
        others = [fork(functools.partial(read, root), quiet=root / "crash") for _ in range(readers)]
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
                lambda directory, holder=holder: [(directory / ".lock").touch(), (directory / ".lock.pid").write_bytes(holder)] and None,
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
            child = fork(lambda: (install(Killer(at)), scenario.commit(root)) and None)
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
            except Exception as error:  # noqa: BLE001  # it is judged
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


# ---- odd places


ODD = (
    "with space", " ", "ünïcödé 任务 🦆", "e\u0301", "quote'\"", "new\nline", "tab\t", "-rf", "--out", "$(touch canary)", "`x`", "a;b", "%s", "*", "?", "[x]", "{a,b}",
    "~", "#", "&", "\\", "\x1b[31m", "CON", "a" * 255, "/".join(["d" * 200] * 12), "...", "model.json", "HEAD", "\udcff\udcfe",
)  # fmt: skip


def places(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """Paths with spaces, unicode and worse; a read-only home; a read-only directory; a file where a directory should be."""
    cases = [_odd(stage, name, relative) for name in ODD for relative in (False, True)]
    cases += [_long(stage), _file_in_the_way(stage, ""), _file_in_the_way(stage, "below"), _nothing(stage)]
    if os.geteuid() == 0:
        cases += [_unwritable(stage, what) for what in ("directory", "tasks", "file", "home", "parent")]
    yield from some(rng, cases, n)


def _odd(stage: Stage, name: str, relative: bool) -> Case:
    def judge(root: Path) -> Verdict:
        verdict = Verdict()
        os.chdir(root)
        directory = Path(name) / MODEL if relative else root / name / MODEL
        stage.learners[2].save(directory)
        compare(verdict, look(directory), stage.states, 2)
        (directory / "tasks" / "000.safetensors").write_bytes(b"x" * len(stage.bases[2]["tasks/000.safetensors"]))
        found = look(directory)
        if not isinstance(found, Problem):
            verdict.blame("wrong", "damage is not noticed")
        else:
            check_message(verdict, found, "000.safetensors")
        (directory / "tasks" / "000.safetensors").write_bytes(stage.bases[2]["tasks/000.safetensors"])
        stage.learners[3].save(directory)
        compare(verdict, look(directory), stage.states, 3)
        if (root / "canary").exists():
            verdict.blame("wrong", "a name was run")
        os.chdir("/")
        return verdict

    return Case(f"a directory named {name[:30]!r}{', relative' if relative else ''}", lambda _: None, judge)


def _refused(stage: Stage, label: str, prepare: Callable[[Path], object], where: str) -> Case:
    def judge(root: Path) -> Verdict:
        verdict = Verdict()
        for act in (lambda: stage.learners[2].save(root / where), lambda: load(root / where)):
            try:
                act()
            except Exception as error:  # noqa: BLE001  # it is judged
                check_message(verdict, (type(error).__name__, isinstance(error, clnp.ClnpError), str(error)), where[:50])
            else:
                verdict.blame("wrong", "it is not refused")
        return verdict

    return Case(label, lambda root: prepare(root) and None, judge)


def _long(stage: Stage) -> Case:
    return _refused(stage, "a name that is too long", lambda _: None, "x" * 300)


def _file_in_the_way(stage: Stage, below: str) -> Case:
    return _refused(
        stage,
        f"a file where the directory {'above it ' if below else ''}should be",
        lambda root: (root / "file").write_text("mine"),
        f"file/{below}".rstrip("/"),
    )


def _nothing(stage: Stage) -> Case:
    return (
        _refused(
            stage, "a link to nothing where the directory should be", lambda root: (root / "link").symlink_to("/nowhere/at/all"), "link"
        )
        if os.geteuid()
        else _file_in_the_way(stage, "deep/er")
    )


def _unwritable(stage: Stage, what: str) -> Case:
    """Return the case of a user who may not write: reading works, writing is refused, and nothing is changed."""

    def prepare(root: Path) -> None:
        lay(root / MODEL, stage.bases[2])
        (root / "home").mkdir()
        for path in (root, *root.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)
        locked = {
            "directory": [root / MODEL],
            "tasks": [root / MODEL / "tasks"],
            "file": [path for path in (root / MODEL).rglob("*") if path.is_file()],
            "home": [root / "home"],
            "parent": [root],
        }[what]
        for path in locked:
            path.chmod(0o555 if path.is_dir() else 0o444)
        root.parent.chmod(0o755)

    def act(root: Path) -> None:
        os.environ["HOME"] = str(root / "home")
        os.chdir(root / "home")
        os.setuid(NOBODY)
        verdict = Verdict()
        compare(verdict, look(root / MODEL), stage.states, 2)
        target = root / "new" if what == "parent" else root / MODEL
        try:
            stage.learners[3].save(target)
        except Exception as error:  # noqa: BLE001  # it is judged
            check_message(verdict, (type(error).__name__, isinstance(error, clnp.ClnpError), str(error)), str(target))
            if what == "home":
                verdict.blame("person", f"a read-only home: {error}")
        else:
            if what not in ("home",) and what != "file":
                verdict.blame("wrong", "it is not refused")
        if verdict.notes:
            raise AssertionError(str(verdict.notes))

    def judge(root: Path) -> Verdict:
        verdict = Verdict()
        for path in (root, *root.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)
        compare(verdict, look(root / MODEL), stage.states, 2)
        stage.learners[3].save(root / MODEL)
        compare(verdict, look(root / MODEL), stage.states, 3)
        return verdict

    return Case(f"a user who may not write: {what}", prepare, judge, act)


# ---- other versions


def versions(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """Directories of older and newer formats, with fields, records and kinds of records that this version does not know."""
    cases: list[Case] = []
    for version, whole in stage.legacy.items():
        cases.append(
            Case(
                f"format {version}",
                lambda root, whole=whole: lay(root / MODEL, whole),
                functools.partial(judge_damage, whole, stage.states[2]),
            )
        )
        names = [name for name, content in whole.items() if content]
        for _ in range(60):
            name = rng.choice(names)
            content = bytearray(whole[name])
            bit = rng.randrange(8 * len(content))
            content[bit // 8] ^= 1 << bit % 8
            if name == "model.json" and bytes(content).split() == whole[name].split():
                continue
            cases.append(_version(stage, f"format {version}, bit {bit} of {name} flipped", {**whole, name: bytes(content)}, whole))
    base = stage.bases[2]
    description = json.loads(base["model.json"])
    for version in (0, 4, 99, -1, 2**70, "3", 3.0, None, True, [3], "../3"):
        cases.append(_newer(stage, f"format {version!r}", {**base, "model.json": _json({**description, "format": version})}))
    cases.append(
        _newer(stage, "no format", {**base, "model.json": _json({key: value for key, value in description.items() if key != "format"})})
    )
    cases.append(_newer(stage, "an unknown field", {**base, "model.json": _json({**description, "surprise": 1})}))
    for change in (
        {"kind": "merged"},
        {"surprise": 1},
        {"number": 2.0},
        {"number": True},
        {"time": "now"},
        {"n_classes": -1},
        {"file": -1},
        {"task": "a\nb"},
        {"task": ""},
    ):
        cases.append(_newer(stage, f"a record with {change}", _rewritten(base, change)))
    cases.append(_newer(stage, "a HEAD of format 4", {**base, "HEAD": base["HEAD"].replace(b'"format":3', b'"format":4')}))
    yield from some(rng, cases, n)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _rewritten(base: Files, change: dict[str, object]) -> Files:
    """Return a directory whose last record says something else, its hash in HEAD made right: another program may have meant it."""
    lines = base["log.jsonl"].splitlines()
    record = {**json.loads(lines[-1]), **change}
    lines[-1] = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    head = json.loads(base["HEAD"])
    head["sha256"] = digest(lines[-1])
    return {
        **base,
        "log.jsonl": b"\n".join(lines) + b"\n",
        "HEAD": json.dumps(head, sort_keys=True, separators=(",", ":")).encode() + b"\n",
    }


def _version(stage: Stage, label: str, content: Files, whole: Files) -> Case:
    return Case(label, lambda root: lay(root / MODEL, content), functools.partial(judge_damage, whole, stage.states[2]))


def _newer(stage: Stage, label: str, content: Files) -> Case:
    """Return the case of a directory that this version cannot read: it says so, and leaves it alone."""

    def judge(root: Path) -> Verdict:
        verdict = Verdict()
        before = {path: path.read_bytes() for path in (root / MODEL).rglob("*") if path.is_file() and not path.name.startswith(".")}
        found = look(root / MODEL)
        if not isinstance(found, Problem):
            verdict.blame("wrong", "it is read")
        else:
            check_message(verdict, found, "model.json", "log.jsonl", "HEAD")
        try:
            stage.learners[3].save(root / MODEL)
        except Exception as error:  # noqa: BLE001  # it is judged
            check_message(verdict, (type(error).__name__, isinstance(error, clnp.ClnpError), str(error)), MODEL)
        else:
            verdict.blame("wrong", "it is written to")
        if any(path.read_bytes() != data for path, data in before.items()):
            verdict.blame("lost", "what cannot be read was changed")
        return verdict

    return Case(label, lambda root: lay(root / MODEL, content), judge)
