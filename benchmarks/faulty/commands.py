"""Faults at the command line: exit codes, messages of one line, and runs that are stopped and go on.

0 done, 1 a failure that the message explains, 2 a command that cannot be understood, 3 a file is damaged, 4 a task answers otherwise than
its receipt says, 5 a directory was set back, 130 and 143 stopped.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from clnp.files import digest
from faulty.board import Verdict
from faulty.calls import NEW, TINY, check_call, commands, finished_run
from faulty.malice import CONTENTS
from faulty.oracle import look
from faulty.processes import Case, some
from faulty.stage import MODEL, Files, Stage, lay, snapshot

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from clnp.data.task import Task


# ---- receipts, patches, undo


def receipts(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """A directory set back as a whole, another one in its place, a predictor that answers otherwise: what hashes alone cannot tell."""
    if "verify" not in commands():
        return
    cases: list[Case] = []
    for then in range(1, 5):
        for now in range(1, 5):
            cases.append(
                _receipt(
                    f"the receipt of {then} tasks, the directory after {now}", stage.bases[then], stage.bases[now], 0 if now >= then else 5
                )
            )
        cases.append(_receipt(f"the receipt of {then} tasks, another directory", stage.bases[then], stage.other, 5))
    whole, _ = finished_run()
    for number in range(3):
        for scale in (1.001, -1.0, 0.0):
            cases.append(_forged(f"task {number} forged, hashes made right, scale {scale}", whole, number, scale))
    base = stage.bases[2]
    for what, make in CONTENTS.items():
        cases.append(_bad_receipt(what, base, make(Path("/nowhere"))))
    yield from some(rng, cases, n)


def _receipt(label: str, then: Files, now: Files, expected: int) -> Case:
    def judge(root: Path) -> Verdict:
        verdict = Verdict()
        lay(root / "then", then)
        lay(root / MODEL, now)
        check_call(verdict, ["verify", str(root / "then"), "--out", str(root / "kept.json")], {0})
        check_call(verdict, ["verify", str(root / MODEL), "--receipt", str(root / "kept.json")], {expected})
        return verdict

    return Case(label, lambda _: None, judge)


def _bad_receipt(what: str, base: Files, content: bytes) -> Case:
    def judge(root: Path) -> Verdict:
        verdict = Verdict()
        lay(root / MODEL, base)
        (root / "kept.json").write_bytes(content)
        check_call(verdict, ["verify", str(root / MODEL), "--receipt", str(root / "kept.json")], {1, 3}, "kept.json")
        return verdict

    return Case(f"a receipt that is {what}", lambda _: None, judge)


def _forged(label: str, whole: Files, number: int, scale: float) -> Case:
    """Return the case of a task whose weights somebody changed who knows the format: every hash fits, the answers do not."""
    model = {name.removeprefix("model/"): content for name, content in whole.items() if name.startswith("model/")}
    name = f"tasks/{number:03d}.safetensors"
    tensors = load_tensors(model[name])
    tensors["head.weight"] = tensors["head.weight"] * scale
    forged = save_tensors(tensors)
    records, previous = [json.loads(line) for line in model["log.jsonl"].splitlines()], "0" * 64
    lines: list[bytes] = []
    for record in records:
        record["previous"] = previous
        if record.get("file") == number:
            record["content"] = {"bytes": len(forged), "sha256": digest(forged)}
            record["tensors"]["head.weight"]["sha256"] = digest(tensors["head.weight"].numpy().tobytes())
        lines.append(json.dumps(record, sort_keys=True, separators=(",", ":")).encode())
        previous = digest(lines[-1])
    head = {**json.loads(model["HEAD"]), "sha256": previous}
    changed = {
        name: forged,
        "log.jsonl": b"\n".join(lines) + b"\n",
        "HEAD": json.dumps(head, sort_keys=True, separators=(",", ":")).encode() + b"\n",
    }
    made = {**whole, **{f"model/{key}": value for key, value in changed.items()}}

    def judge(root: Path) -> Verdict:
        verdict = Verdict()
        lay(root / "run", made)
        (root / "run" / "tasks").rmdir()
        check_call(verdict, ["verify", str(root / "run")], {4})
        return verdict

    return Case(label, lambda _: None, judge)


def patches(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """Patches that are damaged, replayed, out of order or of another learner; undo of what is gone: refused whole, or nothing to do."""
    if not {"diff", "apply", "undo"} <= commands():
        return
    from clnp.patches import make_patch

    with tempfile.TemporaryDirectory(prefix="clnp-patch-") as scratch:
        made: dict[tuple[int, int], bytes] = {}
        for to in range(1, 5):
            lay(Path(scratch) / str(to), stage.bases[to])
            for since in range(to):
                made[since, to] = make_patch(Path(scratch) / str(to), None if since == 0 else ("one", "two", "three")[since - 1])
        lay(Path(scratch) / "other", stage.other)
        foreign = make_patch(Path(scratch) / "other", "two")
    cases = [_patch(stage, f"the patch from {since} to {to} tasks on {at}", at, content, to if since <= at < to else at, ({0} if at <= to else {0, 1}) if since <= at else {1, 3}) for (since, to), content in made.items() for at in range(1, 5)]  # fmt: skip
    cases += [_patch(stage, f"the patch of another learner on {at}", at, foreign, at, {1, 3}) for at in range(1, 5)]
    good = made[2, 4]
    for _ in range(200 if n is None else n):
        content = bytearray(good)
        if rng.random() < 0.6:
            bit = rng.randrange(8 * len(content))
            content[bit // 8] ^= 1 << bit % 8
            label = f"bit {bit} of a patch flipped"
        else:
            del content[(length := rng.randrange(len(content))) :]
            label = f"a patch cut to {length} bytes"
        cases.append(_patch(stage, label, 2, bytes(content), 2, {1, 3}))
    cases += [_patch(stage, f"a patch that is {what}", 2, make(Path("/nowhere")), 2, {1, 3}) for what, make in CONTENTS.items()]
    for task in ("three", "two", "one", "never", "../../x", "", "\x1b[31m"):
        for purge in (False, True):
            cases.append(_undo(stage, task, purge))
    yield from some(rng, cases, n)


def _patch(stage: Stage, label: str, at: int, content: bytes, then: int, codes: set[int]) -> Case:
    def judge(root: Path) -> Verdict:
        verdict = Verdict()
        lay(root / MODEL, stage.bases[at])
        (root / "patch").write_bytes(content)
        before = snapshot(root / MODEL)
        code, _, _ = check_call(verdict, ["apply", str(root / MODEL), str(root / "patch")], codes)
        if code and snapshot(root / MODEL) != before:
            verdict.blame("lost", "a patch that was refused has changed something")
        if look(root / MODEL) != stage.states[then]:
            verdict.blame("wrong", f"found {look(root / MODEL)}")
        return verdict

    return Case(label, lambda _: None, judge)


def _undo(stage: Stage, task: str, purge: bool) -> Case:
    def judge(root: Path) -> Verdict:
        verdict = Verdict()
        lay(root / MODEL, stage.bases[3])
        arguments = ["undo", str(root / MODEL), "--task", task, *(["--purge"] if purge else [])]
        code, _, _ = check_call(verdict, arguments, {0, 1} if task in ("one", "two", "three") else {1})
        found = look(root / MODEL)
        expected = tuple(pair for pair in stage.states[3] if code or pair[0] != task)
        if found != expected:
            verdict.blame("drift", f"after undo: {found}")
        if code == 0:
            check_call(verdict, arguments, {0, 1})  # undoing what is undone may be nothing to do
            check_call(verdict, ["verify", str(root / MODEL)], {0})
        return verdict

    return Case(f"undo of {task!r}{', purged' if purge else ''}", lambda _: None, judge)


# ---- misuse


MISUSE: list[tuple[list[str], set[int]]] = [
    (["run", "nonsense"], {2}), (["run", "digits", "--set", "lr=nan"], {2}), (["run", "digits", "--set", "lr"], {2}), (["run", "digits", "--set", "a=&a [*a]"], {2}),
    (["run", "digits", "--tasks", "0"], {2}), (["run", "digits", "--tasks", "99"], {2}), (["run", "digits", "--tasks", "x"], {2}), (["run", "digits", "--seed", "-1"], {2}), (["run", "digits", "--method", "magic"], {2}),
    (["run", "digits", "--model", "../x"], {2}), (["run", "digits", "--config", "/nowhere"], {2}), (["run", "digits", "--config", "/dev/zero"], {2}), (["run", "digits", "--out", "/dev/null"], {1}), (["run", "digits", "--out", "/proc/x"], {1}),
    (["run", "digits", "--out", "x" * 300], {1}), (["status", "/nowhere"], {1}), (["status", "/dev/null"], {1}), (["status", "/"], {1}), (["status", "x" * 300], {1}), (["status", "x\ny"], {1}), (["status", "\x1b[31m"], {1}), (["report", "/nowhere"], {1}),
    (["export", "/nowhere", "--task", "x"], {1}), (["export", "/nowhere", "--task", "x", "--to", "exe"], {2}), (["widen", "/nowhere"], {1}), (["widen", "/nowhere", "x"], {2}), (["widen", "/nowhere", "x=99999999999999"], {1, 2}), (["inspect", "nonsense"], {2}),
    (["inspect", "../../x"], {2}), (["demo", "--out", "/"], {1}), (["demo", "--out", "/dev/null"], {1}), (["nonsense"], {2}), (["--nonsense"], {2}), (["run"], {2}), ([""], {2}), (["verify", "/nowhere"], {1}), (["verify", "/dev/null"], {1}), (["verify", "/"], {1}),
    (["verify", "/nowhere", "--receipt", "/nowhere"], {1}), (["undo", "/nowhere"], {1}), (["diff", "/nowhere"], {1}), (["apply", "/nowhere/x", "/nowhere/y"], {1}), (["audit", "/nowhere"], {1}), (["audit", "/dev/null"], {1}), (["apply", "/dev/null", "/dev/null"], {1, 3}),
]  # fmt: skip


def misuse(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """Commands that cannot be understood, directories that are none, names of tasks that are markup: exit codes, and reports that hold no script."""
    there = commands()
    cases = [
        _misuse(arguments, codes)
        for arguments, codes in MISUSE
        if arguments[:1] == [""] or arguments[0] not in NEW or arguments[0] in there
    ]
    cases += [
        _markup(name)
        for name in (
            "<script>alert(1)</script>",
            "'\"><img src=x onerror=alert(1)>",
            "[bold red]x[/bold red]",
            "{{7*7}}",
            "</title><script>",
            "../../x",
            "[/nothing]",
        )
    ]
    for config in (
        "benchmark: &a digits\nmodel: *a\n",
        "- 1\n",
        "!!python/object/apply:os.system ['touch canary']\n",
        "learn: {lr: .nan}\n",
        "a: " * 200,
        "[" * 5000,
        "learn: [1]\n",
        "x" * 2**21,
        "\0",
        "lr: 1\n",
    ):
        cases.append(_config(config))
    del stage
    yield from some(rng, cases, n)


def _misuse(arguments: list[str], codes: set[int]) -> Case:
    def judge(root: Path) -> Verdict:
        verdict = Verdict()
        with contextlib.chdir(root):
            check_call(verdict, arguments, codes)
        return verdict

    return Case(f"clnp {' '.join(arguments)[:80]}", lambda _: None, judge)


def _config(text: str) -> Case:
    def judge(root: Path) -> Verdict:
        verdict = Verdict()
        (root / "config.yaml").write_text(text)
        with contextlib.chdir(root):
            check_call(verdict, ["run", "digits", "--config", "config.yaml", "--out", "run"], {2})
        if (root / "canary").exists() or (root / "run").exists():
            verdict.blame("wrong", "something was run")
        return verdict

    return Case(f"a configuration {text[:30]!r}", lambda _: None, judge)


def _markup(name: str) -> Case:
    """Return the case of a run whose tasks and classes have names that are markup."""

    def judge(root: Path) -> Verdict:
        from dataclasses import replace

        from clnp.benchmarks import BENCHMARKS

        verdict, run, real = Verdict(), root / "run", BENCHMARKS["digits"]

        def tasks(data: Any, seed: int, n_tasks: int) -> list[Task]:
            return [replace(task, name=f"{name} {n}", classes=(name, name)) for n, task in enumerate(real.tasks(data, seed, n_tasks))]

        BENCHMARKS["digits"] = replace(real, tasks=tasks)  # pyright: ignore[reportIndexIssue]
        try:
            check_call(verdict, ["run", "digits", *TINY, "--out", str(run)], {0})
            for arguments in (
                ["status", str(run)],
                ["report", str(run)],
                ["verify", str(run), "--out", str(root / "x.html")],
                ["audit", str(run)],
            ):
                if arguments[0] in commands():
                    code, out, _ = check_call(verdict, arguments, {0})
                    if arguments[0] == "verify" and not code and name.split(maxsplit=1)[0][:8] not in out.replace("\n", ""):
                        verdict.blame("unclear", f"the name is not shown as it is: {out[:300]}")
        finally:
            BENCHMARKS["digits"] = real  # pyright: ignore[reportIndexIssue]
        for page in root.rglob("*.html"):
            if any(evil in page.read_text(encoding="utf-8") for evil in ("<script>alert(1)", "<img src=x", "</title><script>")):
                verdict.blame("wrong", f"{page.name} holds markup of a name")
        outside = {path.name for path in root.iterdir()} - {"run", "x.html"}
        if outside:
            verdict.blame("wrong", f"files were made of a name: {outside}")
        return verdict

    return Case(f"tasks named {name!r}", lambda _: None, judge)
