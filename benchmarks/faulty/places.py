"""Directories that are odd places: oddly named, read-only, of other versions."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import clnp
from clnp.files import digest
from faulty.board import Verdict
from faulty.damage import judge_damage
from faulty.oracle import Problem, check_message, compare, look
from faulty.processes import Case, some
from faulty.stage import MODEL, Files, Stage, lay, load

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Mapping


NOBODY = 65534

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
            except Exception as error:  # it is judged
                check_message(verdict, (type(error).__name__, isinstance(error, clnp.ClnpError), str(error)), where[:50])
            else:
                verdict.blame("wrong", "it is not refused")
        return verdict

    return Case(label, prepare, judge)


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
        except Exception as error:  # it is judged
            check_message(verdict, (type(error).__name__, isinstance(error, clnp.ClnpError), str(error)), str(target))
            if what == "home":
                verdict.blame("person", f"a read-only home: {error}")
        else:
            if what not in {"home", "file"}:
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


def _rewritten(base: Files, change: Mapping[str, object]) -> Files:
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
        except Exception as error:  # it is judged
            check_message(verdict, (type(error).__name__, isinstance(error, clnp.ClnpError), str(error)), MODEL)
        else:
            verdict.blame("wrong", "it is written to")
        if any(path.read_bytes() != data for path, data in before.items()):
            verdict.blame("lost", "what cannot be read was changed")
        return verdict

    return Case(label, lambda root: lay(root / MODEL, content), judge)
