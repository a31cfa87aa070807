"""Faults at the command line: exit codes, messages of one line, and runs that are stopped and go on.

0 done, 1 a failure that the message explains, 2 a command that cannot be understood, 3 a file is damaged, 4 a task answers otherwise than
its receipt says, 5 a directory was set back, 130 and 143 stopped.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from clnp import cli
from clnp.data.task import Task
from clnp.entries import digest
from faulty.board import Verdict
from faulty.crashes import some
from faulty.damage import CONTENTS
from faulty.processes import Case, fork, wait
from faulty.stage import MODEL, Stage, lay, look, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from faulty.stage import Files

TINY = ["--tasks", "3", "--set", "epochs=2", "--set", "rounds=1", "--set", "finetune_epochs=1"]
NEW = {"verify", "undo", "diff", "apply", "audit"}
"""Commands that an older version does not have: their cases are skipped there."""
STATUS_OF_SIGNAL = {signal.SIGTERM: 143, signal.SIGINT: 130}


def commands() -> set[str]:
    """Return the names of the commands that there are."""
    return {command.name or (command.callback.__name__ if command.callback else "") for command in cli.app.registered_commands}


def call(arguments: list[str], given: bytes = b"") -> tuple[int, str, str]:
    """Give a command line: exit code, stdout, stderr."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(given))
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main(arguments)
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1 if stopped.code else 0
    finally:
        sys.stdin = before
    texts: list[str] = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(errors="replace"))  # pyright: ignore[reportAttributeAccessIssue]
    return code, *texts  # pyright: ignore[reportReturnType]


def check_call(verdict: Verdict, arguments: list[str], codes: set[int], *names: str, given: bytes = b"") -> tuple[int, str, str]:
    """Give a command line and judge how it ends."""
    try:
        code, out, err = call(arguments, given)
    except BaseException as error:  # noqa: BLE001  # nothing may come out of it
        verdict.blame("unclear", f"clnp {' '.join(arguments)[-90:]}: {type(error).__name__}: {error}")
        return 1, "", str(error)
    shown = f"clnp {' '.join(arguments)[-90:]}: exit {code}: {err.strip()[-200:]!r}"
    if code not in codes:
        verdict.blame("wrong" if code == 0 else "unclear", f"{shown}, expected {sorted(codes)}")
    elif "Traceback" in out + err or "internal error" in err:
        verdict.blame("unclear", shown)
    elif code in (1, 3) and (err.count("clnp: ") != 1 or not err.strip().splitlines()[-1].startswith("clnp: ")):
        verdict.blame("unclear", f"not one line: {shown}")
    elif code in (1, 3) and names and not any(name in err for name in names):
        verdict.blame("unclear", f"it does not say which: {shown}")
    return code, out, err


def finished_run() -> tuple[Files, int]:
    """Return a finished run, and how many optimiser steps it took."""
    with tempfile.TemporaryDirectory(prefix="clnp-run-") as scratch:
        counter = Counter()
        with counted(counter):
            code, _, err = call(["run", "digits", *TINY, "--out", f"{scratch}/run"])
        if code:
            raise AssertionError(err)
        return snapshot(Path(scratch) / "run"), counter.value


class Counter:
    """A number that outlives the processes that count."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    @property
    def value(self) -> int:
        """What was counted."""
        return struct.unpack("<q", self._memory[:8])[0]

    def add(self) -> None:
        """Count one."""
        self._memory[:8] = struct.pack("<q", self.value + 1)


@contextlib.contextmanager
def counted(counter: Counter) -> Iterator[None]:
    """Count the steps that Adam makes."""
    real = torch.optim.Adam.step

    def step(self: Any, *arguments: Any, **more: Any) -> Any:
        counter.add()
        return real(self, *arguments, **more)

    torch.optim.Adam.step = step
    try:
        yield
    finally:
        torch.optim.Adam.step = real


# ---- stopped runs


def stopped_runs(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """`clnp run` killed at random moments, up to three times, and continued by the same command: the same parameters, few steps lost."""
    del stage
    start = time.perf_counter()
    whole, steps = finished_run()
    seconds = time.perf_counter() - start
    for number in range(120 if n is None else n):
        signals = [rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]) for _ in range(rng.randrange(1, 4))]
        delays = [rng.uniform(0, 0.9 * seconds) for _ in signals]
        yield _stopped(number, list(zip(signals, delays, strict=True)), whole, steps)


def _stopped(number: int, stops: list[tuple[signal.Signals, float]], whole: Files, steps: int) -> Case:
    counter = Counter()

    def command(root: Path) -> None:
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with counted(counter):
            code, _, err = call(["run", "digits", *TINY, "--out", str(root / "run")])
        with (root / "codes").open("a", encoding="utf-8") as file:
            file.write(json.dumps([code, err[-300:]]) + "\n")

    def act(root: Path) -> None:
        for how, delay in stops:
            child = fork(functools.partial(command, root), quiet=root / "crash")
            time.sleep(delay)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, how)
            ended = wait(child)
            if how == signal.SIGTERM and ended not in (0, -signal.SIGTERM):
                (root / "crash").write_text(f"SIGTERM ended it with {ended}")

    def judge(root: Path) -> Verdict:
        verdict = Verdict()
        for line in (root / "codes").read_text(encoding="utf-8").splitlines() if (root / "codes").exists() else []:
            code, err = json.loads(line)
            if code not in (0, 130, 143) or "Traceback" in err:
                verdict.blame("unclear", f"exit {code}: {err}")
        with counted(counter):
            check_call(verdict, ["run", "digits", *TINY, "--out", str(root / "run")], {0})
        verdict.steps = max(0, counter.value - steps)
        found = snapshot(root / "run")
        for name, content in whole.items():
            if name.endswith(".safetensors") and found.get(name) != content:
                verdict.blame("drift" if name in found else "lost", f"{name} is not that of a run that was not stopped")
        if {name for name in found if "work" not in name} != {name for name in whole if "work" not in name}:
            verdict.blame("wrong", f"other files: {set(found) ^ set(whole)}")
        one, two = (json.loads(files.get("summary.json", b"{}")) for files in (whole, found))
        if one.get("accuracy_matrix") != two.get("accuracy_matrix"):
            verdict.blame("wrong", "another summary")
        if "verify" in commands():
            check_call(verdict, ["verify", str(root / "run")], {0})
        return verdict

    label = ", then ".join(f"{how.name} after {delay:.3f} s" for how, delay in stops)
    return Case(f"run {number}: {label}", lambda _: None, judge, act)


# ---- damaged runs


def damaged_runs(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """Every command on a run with one damaged, missing or malicious file: damage has exit code 3, and no command shows a traceback."""
    del stage
    whole, _ = finished_run()
    names = [name for name, content in whole.items() if content]
    cases: list[Case] = []
    for name in names:
        cases.append(_damaged(f"{name} is missing", whole, name, None))
        for what in ("deep JSON", "a malicious pickle", "YAML aliases", "zeros", "null", "a list", "no UTF-8", "newlines"):
            cases.append(_damaged(f"{name} is {what}", whole, name, CONTENTS[what](Path("/nowhere"))))
    for _ in range(160 if n is None else n):
        name = rng.choice(names)
        content = bytearray(whole[name])
        if rng.random() < 0.7:
            bit = rng.randrange(8 * len(content))
            content[bit // 8] ^= 1 << bit % 8
            cases.append(_damaged(f"bit {bit} of {name} flipped", whole, name, bytes(content)))
        else:
            del content[(length := rng.randrange(len(content))) :]
            cases.append(_damaged(f"{name} cut to {length} bytes", whole, name, bytes(content)))
    yield from some(rng, cases, n)


def _damaged(label: str, whole: Files, name: str, content: bytes | None) -> Case:
    def prepare(root: Path) -> None:
        lay(root / "run", {key: value for key, value in whole.items() if key != name or content is not None} | ({} if content is None else {name: content}))
        with contextlib.suppress(OSError):
            (root / "run" / "tasks").rmdir()

    def judge(root: Path) -> Verdict:
        verdict, run = Verdict(), str(root / "run")
        told = name.rpartition("/")[2]
        in_model = name.startswith("model/")
        hurt = {1, 3} if not in_model else {3}
        log = {"log.jsonl", "HEAD"} if told in ("log.jsonl", "HEAD") else {told}
        if "verify" in commands() and in_model:
            # A record may be torn away and healed: then everything is what was committed, and 0 is right.
            code, _, _ = check_call(verdict, ["verify", f"{run}/model"], hurt if told != "HEAD" else {0, 3, 1}, *log)
            if code == 0 and look_files(root / "run") != {key: value for key, value in whole.items() if key.endswith(".safetensors")}:
                verdict.blame("wrong", "verify says that all is well")
            check_call(verdict, ["audit", f"{run}/model"], {0, 1, 3}, *log)
        for arguments in (["status", run], ["report", run], ["widen", run]):
            check_call(verdict, arguments, {0, 1, 3})
        code, _, _ = check_call(verdict, ["run", "digits", *TINY, "--out", run], {0, 1, 3})
        if code == 0:
            found = look_files(root / "run")
            if any(found.get(key) not in (value, content) for key, value in whole.items() if key.endswith(".safetensors")):
                verdict.blame("drift", "the run went on to other parameters")
        return verdict

    return Case(label, prepare, judge)


def look_files(run: Path) -> Files:
    """Return the tensors of a run as they stand on the disk."""
    return {name: content for name, content in snapshot(run).items() if name.endswith(".safetensors")}


# ---- receipts, patches, undo


def receipts(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """A directory set back as a whole, another one in its place, a predictor that answers otherwise: what hashes alone cannot tell."""
    if "verify" not in commands():
        return
    cases: list[Case] = []
    for then in range(1, 5):
        for now in range(1, 5):
            cases.append(_receipt(f"the receipt of {then} tasks, the directory after {now}", stage.bases[then], stage.bases[now], 0 if now >= then else 5))
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
    changed = {name: forged, "log.jsonl": b"\n".join(lines) + b"\n", "HEAD": json.dumps(head, sort_keys=True, separators=(",", ":")).encode() + b"\n"}
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
    cases = [_misuse(arguments, codes) for arguments, codes in MISUSE if arguments[:1] == [""] or arguments[0] not in NEW or arguments[0] in there]
    cases += [_markup(name) for name in ("<script>alert(1)</script>", "'\"><img src=x onerror=alert(1)>", "[bold red]x[/bold red]", "{{7*7}}", "</title><script>", "../../x", "[/nothing]")]
    for config in ("benchmark: &a digits\nmodel: *a\n", "- 1\n", "!!python/object/apply:os.system ['touch canary']\n", "learn: {lr: .nan}\n", "a: " * 200, "[" * 5000, "learn: [1]\n", "x" * 2**21, "\0", "lr: 1\n"):
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
            for arguments in (["status", str(run)], ["report", str(run)], ["verify", str(run), "--out", str(root / "x.html")], ["audit", str(run)]):
                if arguments[0] in commands():
                    code, out, _ = check_call(verdict, arguments, {0})
                    if arguments[0] == "verify" and not code and name.split()[0][:8] not in out.replace("\n", ""):
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


