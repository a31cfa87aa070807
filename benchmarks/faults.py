"""Inject faults into `clnp` by the thousand and count what they cost: commits lost, wrong answers, states that need a person.

    python benchmarks/faults.py                    everything, at least 10,000 injections, some 12 minutes on one core
    python benchmarks/faults.py --short            what CI runs: a few of each class, under a minute
    python benchmarks/faults.py --only bit-flips   one class (may be repeated)
    python benchmarks/faults.py --show results/faults.json --markdown     the table for the docs
    python benchmarks/faults.py --peers            torch.save, safetensors and Avalanche under the same faults beside it

Each injection happens in a forked process, and a fresh one judges what it left against an oracle outside: a separate file of what was
acknowledged. Every column but the last must be 0, or the exit status is 1. 0 of n is not never: the last column gives the upper bound of
the share that may fail, at 95 % confidence (the rule of three: 3 / n).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import shlex
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked child has one thread
sys.path.insert(0, str(Path(__file__).parent))

import torch

import clnp
from faulty import commands, crashes, damage, exhaustion, learning, malice, naming, places, runs, sharing, syscalls
from faulty.board import COLUMNS, Row, markdown, rule_of_three, table, total
from faulty.processes import play
from faulty.stage import prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from faulty.processes import Case
    from faulty.stage import Stage

RESULTS = Path(__file__).parent / "results" / "faults.json"


@dataclass(frozen=True)
class FaultClass:
    """A class of faults.

    Attributes:
        what: for the table.
        cases: gives the injections: of the stage, a source of chance, and how many (None: all).
        short: how many of them CI runs.
    """

    what: str
    cases: Callable[[Stage, random.Random, int | None], Iterable[Case]]
    short: int


CLASSES: dict[str, FaultClass] = {
    "kill-training": FaultClass("SIGKILL at random moments of training", crashes.killed_training, 2),
    "kill-commit": FaultClass("SIGKILL at random moments of a commit", crashes.killed_commit, 20),
    "kill-call": FaultClass("SIGKILL before every call of a commit and in every write, also twice", crashes.killed_call, 30),
    "kill-syscall": FaultClass("SIGKILL at real system calls of a commit, by strace", syscalls.killed_syscall, 6),
    "power-loss": FaultClass("power loss: fsynced prefixes and random subsets of the rest survive", crashes.power, 60),
    "power-loss-again": FaultClass("power loss while another process goes on after a kill or a power loss", crashes.power_again, 16),
    "failing-calls": FaultClass("ENOSPC, EIO, EROFS, EMFILE at every call of a commit, once or ever after", crashes.failing_calls, 16),
    "failing-fsync": FaultClass("failing fsync, then success, then power loss", crashes.failing_fsync, 12),
    "limits": FaultClass("the kernel's own limits: file size, open files", exhaustion.limits, 16),
    "memory": FaultClass("memory errors in learning and in commits", exhaustion.memory, 6),
    "bit-flips": FaultClass("one flipped bit anywhere in any file", damage.bit_flips, 80),
    "truncations": FaultClass("files cut, filled with zeros or noise, or too long", damage.truncations, 40),
    "exchanged": FaultClass("swapped, missing, extra, replayed, old and foreign files, links, pipes", damage.exchanged, 40),
    "hostile": FaultClass(
        "malicious pickles, zip and header bombs, deep JSON, YAML aliases in the place of every file", malice.hostile, 40
    ),
    "commits-on-damage": FaultClass("commits to a directory that was damaged", damage.commits_on_damage, 20),
    "examples": FaultClass("NaN, inf, bad labels, shapes, dtypes; empty, single-class, single-example tasks", learning.examples, 10),
    "names": FaultClass("duplicate, unknown, unprintable names; path traversal and markup", naming.names, 10),
    "data-files": FaultClass("NPZ, PNG, CSV, IDX and gzip files that are bombs, malicious or damaged", learning.data_files, 30),
    "writers": FaultClass("2 to 8 concurrent writers, readers during writes, one of them killed", sharing.writers, 3),
    "locks": FaultClass("stale, foreign and sleeping locks", sharing.locks, 12),
    "places": FaultClass("spaces, unicode and worse in paths; read-only homes and directories", places.places, 20),
    "versions": FaultClass("version skew: older formats, newer formats, unknown fields and records", places.versions, 40),
    "stopped-runs": FaultClass("`clnp run` stopped by SIGKILL, SIGTERM, Ctrl-C, and continued by the same command", runs.stopped_runs, 2),
    "damaged-runs": FaultClass("every command on a run with one damaged file", runs.damaged_runs, 5),
    "receipts": FaultClass("rollback, exchange and forgery of whole directories against kept receipts", commands.receipts, 10),
    "patches": FaultClass("damaged, replayed, foreign patches; undo of what is gone", commands.patches, 20),
    "misuse": FaultClass("commands that cannot be understood, bad configurations, names that are markup", commands.misuse, 12),
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a few of each class")
    parser.add_argument("--seed", type=int, default=0, help="of every choice")
    parser.add_argument("--cases", type=int, help="at most so many of each class")
    parser.add_argument("--only", action="append", choices=sorted(CLASSES), metavar="CLASS", help=f"one of {', '.join(CLASSES)}")
    parser.add_argument("--peers", action="store_true", help="the same faults against torch.save, safetensors and Avalanche")
    parser.add_argument("--markdown", action="store_true", help="print the table for the docs")
    parser.add_argument("--show", type=Path, metavar="JSON", help="print the tables of earlier results, and inject nothing")
    parser.add_argument(
        "--join",
        type=Path,
        nargs="+",
        metavar="JSON",
        help="put results of several runs with --only together (in --out), and inject nothing",
    )
    parser.add_argument("--out", type=Path, help="where the JSON goes; of a full run benchmarks/results/faults.json by default")
    return parser.parse_args(arguments)


def inject(
    stage: Stage, names: Iterable[str], seed: int, limit: Callable[[FaultClass], int | None], *, show: Callable[[str], object] = print
) -> list[Row]:
    """Inject the faults of some classes and count."""
    gc.collect()
    gc.freeze()  # children that collect garbage would copy every page
    memory = Path("/dev/shm")  # fsync costs nothing there, and what it promises is simulated
    scratch = Path(tempfile.mkdtemp(prefix="clnp-faults-", dir=memory if os.access(memory, os.W_OK) else None))
    rows: list[Row] = []
    try:
        for name in names:
            row = Row(name, CLASSES[name].what)
            rng = random.Random(f"{seed} {name}")  # the same faults again, for whoever looks for one
            play(row, CLASSES[name].cases(stage, rng, limit(CLASSES[name])), scratch)
            if not row.injected:
                row.skipped.append("not possible here: strace, or a command, is missing")
            rows.append(row)
            counts = ", ".join(f"{n} {column}" for column, n in row.counts.items() if n) or "nothing"
            show(f"{name}: {row.injected:,} injected in {row.seconds:.0f} s: {counts}")
            for note in row.notes:
                show(f"    {note}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return rows


def content(rows: list[Row], peers: dict[str, list[Row]], seed: int, seconds: float) -> dict[str, Any]:
    """Return what is written down."""
    whole = total(rows)
    return {
        "command": shlex.join(["python", "benchmarks/faults.py", *sys.argv[1:]]),
        "seed": seed,
        "injected": whole.injected,
        **whole.counts,
        "upper_bound_95": rule_of_three(whole.injected),
        "rule_of_three": "0 of n: with 95 % confidence, fewer than 3 / n of such faults do harm",
        "seconds": round(seconds, 1),
        "classes": {row.name: row.as_json() for row in rows},
        **({"peers": {peer: {row.name: row.as_json() for row in found} for peer, found in peers.items()}} if peers else {}),
        "versions": {"clnp": clnp.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
    }


def show(rows: list[Row], peers: dict[str, list[Row]], *, as_markdown: bool) -> None:
    """Print the tables."""

    def shown(some: list[Row]) -> str:
        return markdown(some, {row.name: row.what for row in some}) if as_markdown else table(some)

    print(shown(rows))
    for peer, others in peers.items():
        print(f"\n{peer}\n\n{shown(others)}")


def earlier(file: Path) -> tuple[list[Row], dict[str, list[Row]]]:
    """Return the rows of earlier results, and those of the peers."""

    def rows(classes: dict[str, Any]) -> list[Row]:
        return [Row(name, row["what"], row["injected"], {column: row[column] for column in COLUMNS}) for name, row in classes.items()]

    found = json.loads(file.read_text(encoding="utf-8"))
    return rows(found["classes"]), {peer: rows(classes) for peer, classes in found.get("peers", {}).items()}


def joined(files: list[Path]) -> dict[str, Any]:
    """Put parts of one scoreboard together: runs of different classes, of one seed, with one version, on one machine."""
    parts = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for part in parts[1:]:
        for what in ("seed", "versions", "machine"):
            if part[what] != parts[0][what]:
                sys.exit(f"cannot join: {what} is {parts[0][what]} in one part and {part[what]} in another")
    if len(set().union(*(part["classes"] for part in parts))) < sum(len(part["classes"]) for part in parts):
        sys.exit("cannot join: a class is in two parts")
    rows = {row.name: row for file in files for row in earlier(file)[0]}
    peers = {peer: rows for file in files for peer, rows in earlier(file)[1].items()}
    whole = content([rows[name] for name in CLASSES if name in rows], peers, parts[0]["seed"], sum(part["seconds"] for part in parts))
    return whole | {"command": [part["command"] for part in parts], "versions": parts[0]["versions"], "machine": parts[0]["machine"]}


def main(arguments: list[str] | None = None) -> int:
    """Inject, count, print, write down; return the exit status."""
    given, start = parse(arguments), time.perf_counter()
    if given.show is not None:
        show(*earlier(given.show), as_markdown=given.markdown)
        return 0

    if given.join:
        (given.out or RESULTS).write_text(json.dumps(joined(given.join), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        show(*earlier(given.out or RESULTS), as_markdown=given.markdown)
        return 0

    def limit(faults: FaultClass) -> int | None:
        return faults.short if given.short and given.cases is None else given.cases

    stage = prepare()
    rows = inject(stage, given.only or CLASSES, given.seed, limit, show=lambda text: print(text, file=sys.stderr, flush=True))
    peers: dict[str, list[Row]] = {}
    if given.peers:
        from faulty.peers import compete

        peers = compete(given.seed, 40 if given.short else given.cases)
    found = content(rows, peers, given.seed, time.perf_counter() - start)
    show(rows, peers, as_markdown=given.markdown)
    whole = total(rows)
    print(f"\n{whole.injected:,} injections, seed {given.seed}, {found['seconds']:.0f} s; 0 of n leaves, at 95 %, fewer than 3 / n")
    out = given.out or (None if given.short or given.only or given.cases else RESULTS)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"written: {out}")
    return int(not all(row.is_good for row in rows))


if __name__ == "__main__":
    sys.exit(main())
