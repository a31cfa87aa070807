"""Run the experiments of the tables, in the background and for as long as it takes, and print the tables from what was kept.

    python benchmarks/reproduce.py                                       the experiments, and how far each is
    python benchmarks/reproduce.py permuted-mnist --data DIR --jobs 2    run what is missing, two runs at a time
    python benchmarks/reproduce.py permuted-mnist --show                 the tables, from benchmarks/results/permuted-mnist/*.json
    python benchmarks/reproduce.py --write                               put all tables into the pages that have places for them

Each run is a process of `clnp run` in a directory below --runs: stopped with Ctrl-C or SIGTERM or killed, it goes on where it was when the
same command is given again. When a run is finished, its summary and its configuration become one JSON file in benchmarks/results/; what
is there already is not run again. All runs have one thread, so that two of them side by side get the same bits as one alone.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import yaml

from clnp.benchmarks import get_benchmark
from clnp.experiment import RunConfig, accuracy, build_trunk
from clnp.files import write_atomic
from clnp.inputs import cut
from clnp.methods import METHODS
from clnp.modes import threads
from clnp.rundir import MODEL
from made import ROOT, commit
from plans import EXPERIMENTS, Entry, Experiment
from run_examples import show as show_example
from search import SEARCHES
from search import kept as kept_search
from search import table as search_table
from speed import tables as speed_tables
from tables import RESULTS, kept, paper_table, run_name, show

PAGES = ("README.md", "docs/results.md", "docs/tuning.md", "docs/performance.md", "docs/examples.md")
PLACE = re.compile(r"(<!-- (?P<name>[\w-]+): (?P<key>[\w -]+) -->\n).*?(<!-- end -->)", re.DOTALL)
"""Where a table stands on a page: between `<!-- EXPERIMENT: TABLE -->`, `<!-- search: NAME -->`, `<!-- example: NAME -->` or `<!-- speed: NAME -->`, and `<!-- end -->`."""
MAIN = [sys.executable, "-c", "from clnp.cli import main; main()"]


def arguments(experiment: Experiment, entry: Entry, seed: int, data: Path | None, out: Path) -> list[str]:
    """Return what is given to `clnp` for a run."""
    return [
        *("run", experiment.benchmark, "--until-full", "--method", entry.method, "--model", entry.model or experiment.model),
        *("--tasks", str(experiment.n_tasks), "--seed", str(seed)),
        *(part for key, value in experiment.settings_of(entry).items() for part in ("--set", f"{key}={json.dumps(value)}")),
        *(() if data is None else ("--data", str(data))),
        *("--out", str(out)),
    ]


def keep(out: Path, to: Path, data: Path | None, code: str | None = None) -> None:
    """Put the summary of a finished run and its configuration into one file, with the accuracies and sizes of what was saved, and the commit that ran."""
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    config = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    files = {file.relative_to(out / MODEL).as_posix(): file.stat().st_size for file in sorted((out / MODEL).rglob("*")) if file.is_file()}
    again = {"reloaded": reloaded(RunConfig(**config), out / MODEL, data), "bytes": files, "commit": code}
    to.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(to, json.dumps({**summary, **again, "config": config}, indent=1) + "\n")


def reloaded(config: RunConfig, model: Path, data: Path | None) -> list[float]:
    """Return the test accuracy of each task, of a method that is loaded from the disk: what was saved is what was measured."""
    tasks = get_benchmark(config.benchmark).tasks(data, config.seed, config.n_tasks)
    example = cut(tasks[0].validation[0], 0, 2)
    method = METHODS[config.method](partial(build_trunk, config, example), example, config.learn, config.seed)
    method.load(model)
    with threads(config.learn.threads):
        return [accuracy(method, task) for task in tasks[: len(method.tasks)]]


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
    code = commit()  # now: the tree may be another one when a run ends

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
                keep(out, kept(name, entry, seed), data, code)
            elif not stopped:
                n_failed += 1
            print(f"{time.strftime('%H:%M:%S')} exit {process.returncode}: {out}", flush=True)
    return n_failed


def filled(page: str) -> str:
    """Return a page with every table that it has a place for as it follows from what was kept."""

    def table(place: re.Match[str]) -> str:
        name, key = place["name"], place["key"]
        if name == "search":
            found = json.loads(kept_search(key).read_text(encoding="utf-8"))
            text = search_table(found, SEARCHES[key].n_tasks)
        elif name == "paper":
            text = paper_table()
        elif name == "example":
            text = show_example(key)
        elif name == "speed":
            text = speed_tables(json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))).get(key, "")
        else:
            text = show(name).get(key, "")
        if not text:
            raise SystemExit(f"cannot fill '{name}: {key}': there is no such table, or nothing was kept for it yet")
        return f"{place[1]}{text}\n{place[4]}"

    text, n_begun = PLACE.subn(table, page)
    n_ended = page.count("<!-- end -->")
    if n_begun != n_ended:
        raise SystemExit(f"cannot fill a page: {n_ended} tables end in it, and {n_begun} begin with the name of one")
    return text


def main() -> int:
    """Run experiments, or show what was kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="*", metavar="EXPERIMENT", help=f"of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run directories lie")
    parser.add_argument("--jobs", type=int, default=1, help="so many runs at a time")
    parser.add_argument("--only", help="a pattern that the whole name of a run must match, e.g. 'ewc-seed[01]'")
    parser.add_argument("--show", action="store_true", help="print the tables, and run nothing")
    parser.add_argument("--write", action="store_true", help="put all tables into the pages, and run nothing")
    options = parser.parse_args()
    for name in options.experiment:
        if name not in EXPERIMENTS:
            parser.error(f"unknown experiment '{name}': expected one of {', '.join(EXPERIMENTS)}")
    if options.write:
        for page in PAGES:
            path = ROOT / page
            path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    if not options.experiment:
        for name, experiment in EXPERIMENTS.items():
            whole = list(experiment.runs())
            print(f"{name:24} {sum(kept(name, entry, seed).exists() for entry, seed in whole)} of {len(whole)} runs   {experiment.title}")
        return 0
    if options.show:
        for name in options.experiment:
            print(f"**{EXPERIMENTS[name].title}**\n\n" + "\n\n".join(show(name).values()) + "\n")
        return 0
    return 1 if run(options.experiment, options.data, options.runs, options.jobs, options.only) else 0


if __name__ == "__main__":
    sys.exit(main())
