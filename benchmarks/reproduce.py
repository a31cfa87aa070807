"""Run the experiments of the tables, in the background and for as long as it takes, and print the tables from what was kept.

    python benchmarks/reproduce.py                                       the experiments, and how far each is
    python benchmarks/reproduce.py permuted-mnist --data DIR --jobs 2    run what is missing, two runs at a time
    python benchmarks/reproduce.py permuted-mnist --show                 the table, from benchmarks/results/permuted-mnist/*.json

Each run is a process of `clnp run` in a directory below --runs: stopped with Ctrl-C or SIGTERM or killed, it goes on where it was when the
same command is given again. When a run is finished, its summary and its configuration become one JSON file in benchmarks/results/; what
is there already is not run again. All runs have one thread, so that two of them side by side get the same bits as one alone.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Any

from clnp.files import write_atomic
from clnp.report.compare import p_value
from plans import EXPERIMENTS, Entry, Experiment

if TYPE_CHECKING:
    from collections.abc import Mapping

RESULTS = Path(__file__).parent / "results"
MAIN = [sys.executable, "-c", "from clnp.cli import main; main()"]


def slug(label: str) -> str:
    """Return a label as part of a file name.

    >>> slug("clnp, 30 epochs")
    'clnp-30-epochs'
    """
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-")


def run_name(entry: Entry, seed: int) -> str:
    """Return the name of a run in its experiment."""
    return f"{slug(entry.label)}-seed{seed}"


def kept(name: str, entry: Entry, seed: int) -> Path:
    """Return where the result of a run is kept."""
    return RESULTS / name / f"{run_name(entry, seed)}.json"


def arguments(experiment: Experiment, entry: Entry, seed: int, data: Path | None, out: Path) -> list[str]:
    """Return what is given to `clnp` for a run."""
    return [
        *("run", experiment.benchmark, "--until-full", "--method", entry.method, "--model", entry.model or experiment.model),
        *("--tasks", str(experiment.n_tasks), "--seed", str(seed)),
        *(part for key, value in experiment.settings_of(entry).items() for part in ("--set", f"{key}={json.dumps(value)}")),
        *(() if data is None else ("--data", str(data))),
        *("--out", str(out)),
    ]


def keep(out: Path, to: Path) -> None:
    """Put the summary of a finished run and its configuration into one file."""
    import yaml

    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    config = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    to.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(to, json.dumps({**summary, "config": config}, indent=1) + "\n")


def run(names: list[str], data: Path | None, runs: Path, jobs: int, only: str | None) -> int:
    """Run what is missing, and return how many runs failed. A signal is passed on, and ends it."""
    waiting = [
        (name, entry, seed)
        for name in names
        for entry, seed in EXPERIMENTS[name].runs()
        if not kept(name, entry, seed).exists() and (only is None or re.fullmatch(only, run_name(entry, seed)))
    ]
    going: dict[subprocess.Popen[bytes], tuple[str, Entry, int]] = {}
    stopped, n_failed = False, 0

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        for process in going:
            process.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while going or (waiting and not stopped):
        while waiting and len(going) < jobs and not stopped:
            name, entry, seed = waiting.pop(0)
            out = runs / name / run_name(entry, seed)
            given = arguments(EXPERIMENTS[name], entry, seed, data, out)
            print(f"{time.strftime('%H:%M:%S')} {shlex.join(['clnp', *given])}", flush=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            with (out.parent / f"{out.name}.log").open("ab") as log:
                going[subprocess.Popen([*MAIN, *given], stdout=log, stderr=log, start_new_session=True)] = name, entry, seed
        time.sleep(0.5)
        for process in [process for process in going if process.poll() is not None]:
            name, entry, seed = going.pop(process)
            out = runs / name / run_name(entry, seed)
            if process.returncode == 0:
                keep(out, kept(name, entry, seed))
            elif not stopped:
                n_failed += 1
            print(f"{time.strftime('%H:%M:%S')} exit {process.returncode}: {out}", flush=True)
    return n_failed


def found(name: str) -> dict[str, list[dict[str, Any]]]:
    """Return the kept results of an experiment: label -> runs, by seed."""
    experiment = EXPERIMENTS[name]
    rows: dict[str, list[dict[str, Any]]] = {}
    for entry in experiment.entries:
        files = [kept(name, entry, seed) for seed in range(100)]
        runs = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
        if runs:
            rows[entry.label] = runs
    return rows


def spread(values: list[float]) -> str:
    """Return mean and standard deviation in per cent.

    >>> spread([0.5, 0.7]), spread([0.5])
    ('60.00 ± 14.14', '50.00')
    """
    mean = 100 * math.fsum(values) / len(values)
    return f"{mean:.2f} ± {100 * stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def fullest(capacity: Mapping[str, Any] | None) -> float | None:
    """Return the share of units that are claimed in the layer that has the fewest left; None for methods that own none."""
    return None if capacity is None else max(1 - group["free"] / group["n_units"] for group in capacity.values())


def written_p(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    """Return the p-value of a paired permutation test over tasks and seeds that both have."""
    p = p_value(*({run["seed"]: run["accuracy_matrix"][-1] for run in runs} for runs in (one, other)))
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def table(name: str) -> str:
    """Return the table of an experiment in Markdown, in the order of the plan."""
    rows, entries = found(name), {entry.label: entry for entry in EXPERIMENTS[name].entries}
    best = max(rows, key=lambda label: math.fsum(run["average_accuracy"] for run in rows[label]) / len(rows[label]))
    lines = [
        "| method | average accuracy, % | forgetting, points | fullest layer | CPU time of a run | p against the best | published, % | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label, runs in rows.items():
        forgetting = [run["forgetting"] for run in runs]
        full = [share for run in runs if (share := fullest(run["capacity"])) is not None]
        cpu = math.fsum(sum(run["cpu_seconds_per_task"]) for run in runs) / len(runs)
        lines.append(
            f"| {label} | {spread([run['average_accuracy'] for run in runs])} | {'0' if not any(forgetting) else spread(forgetting)} | "
            f"{f'{100 * max(full):.0f} %' if full else ''} | {cpu:,.0f} s | {'' if label == best else written_p(rows[best], runs)} | "
            f"{entries[label].published} | {len(runs)} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run experiments, or show what was kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="*", metavar="EXPERIMENT", help=f"of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run directories lie")
    parser.add_argument("--jobs", type=int, default=1, help="so many runs at a time")
    parser.add_argument("--only", help="a pattern that the whole name of a run must match, e.g. 'ewc-seed[01]'")
    parser.add_argument("--show", action="store_true", help="print the tables, and run nothing")
    options = parser.parse_args()
    for name in options.experiment:
        if name not in EXPERIMENTS:
            parser.error(f"unknown experiment '{name}': expected one of {', '.join(EXPERIMENTS)}")
    if not options.experiment:
        for name, experiment in EXPERIMENTS.items():
            whole = list(experiment.runs())
            print(f"{name:24} {sum(kept(name, entry, seed).exists() for entry, seed in whole)} of {len(whole)} runs   {experiment.title}")
        return 0
    if options.show:
        for name in options.experiment:
            print(f"**{EXPERIMENTS[name].title}**\n\n{table(name)}\n")
        return 0
    return 1 if run(options.experiment, options.data, options.runs, options.jobs, options.only) else 0


if __name__ == "__main__":
    sys.exit(main())
