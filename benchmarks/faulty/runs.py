"""Runs that are stopped and go on, and runs with damaged files, at the command line."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from faulty.board import Verdict
from faulty.calls import TINY, Counter, call, check_call, commands, counted, finished_run
from faulty.malice import CONTENTS
from faulty.processes import Case, fork, some, wait
from faulty.stage import Files, Stage, lay, snapshot

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator


START = 0.005
"""Seconds until the command is surely there: before, it is the benchmark that would be stopped."""


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

    def command(root: Path, ready: int) -> None:
        os.write(ready, b"!")
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the handler of signals writes there
        with counted(counter):
            code, _, err = call(["run", "digits", *TINY, "--out", str(root / "run")])
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what comes now is too late
        with (root / "codes").open("a", encoding="utf-8") as file:
            file.write(json.dumps([code, err[-300:]]) + "\n")

    def act(root: Path) -> None:
        for how, delay in stops:
            ready = os.pipe()
            child = fork(functools.partial(command, root, ready[1]), quiet=root / "crash")
            os.read(ready[0], 1)
            time.sleep(START + delay)
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
        lay(
            root / "run",
            {key: value for key, value in whole.items() if key != name or content is not None}
            | ({} if content is None else {name: content}),
        )
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
