"""What training and predicting cost, beside plain PyTorch and the peers: CPU time, taken in turns.

    python benchmarks/speed.py --out benchmarks/results/speed.json                      without peers
    bash benchmarks/peers.sh DIR && python benchmarks/speed.py --peers DIR/bin/python --out ...
    python benchmarks/speed.py --phases 3 --data DATA --out ...                         where a task's time goes, with --threads
    python benchmarks/speed.py --show benchmarks/results/speed.json                     the tables

Everyone is a process of its own that waits for its turn; a round is one turn of each, the first of all again after the last. A turn's CPU time (user + system) is divided by
that of the two turns of the first contestant around it in the same round; the table shows the median of these ratios over the rounds, after one turn to warm up. Two threads.
Take no other work beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

THREADS = 2
HERE = Path(__file__).parent


def contests() -> dict[str, Mapping[str, Callable[[], Callable[[], None]]]]:
    """Return all contests: name -> contestants, the first of which the others are compared with."""
    from speedy import predictions, steps

    return {"training": steps.CONTESTANTS, "predicting 1": predictions.contestants(1), "predicting 256": predictions.contestants(256)}


def take_turns(contest: str, name: str) -> None:
    """Be a contestant: say that you are ready, and what each turn took, until standard input ends."""
    import torch

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # peers print what they do
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        turn = contests()[contest][name]()
        turn()
    except Exception as error:  # it does not install here, or has changed
        print(json.dumps({"absent": f"{type(error).__name__}: {error}"[:200]}), file=out, flush=True)
        return
    print(json.dumps({"ready": True}), file=out, flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        turn()
        seconds = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"seconds": seconds, "peak_mb": peak / 1024, "before_mb": base / 1024}), file=out, flush=True)


class Contestant:
    """A process that waits for its turn."""

    def __init__(self, python: str, contest: str, name: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "PYTHONPATH": os.pathsep.join([str(HERE.parent / "src"), str(HERE)])}
        command = [python, str(HERE / "speed.py"), "--be", contest, name]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        self.absent = self.read().get("absent")

    def read(self) -> dict[str, Any]:
        """Read one answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"absent": "the process ended"}

    def turn(self) -> dict[str, Any]:
        """Let it work once."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.read()

    def end(self) -> None:
        """Let it go."""
        self.process.kill()
        self.process.wait()


def hold(contest: str, names: list[str], rounds: int, pythons: Mapping[str, str]) -> dict[str, Any]:
    """Hold a contest and return, for each contestant, the median ratio to the first and all its times."""
    from speedy.steps import EPOCHS, N_BATCHES

    everyone = {name: Contestant(pythons.get(name, sys.executable), contest, name) for name in names}
    present = [name for name, one in everyone.items() if one.absent is None]
    first, others = present[0], present[1:]
    assert first == names[0], everyone[names[0]].absent
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in present}
    ratios: dict[str, list[float]] = {name: [] for name in others}
    for _ in range(rounds):
        for name in others:
            before = everyone[first].turn()
            own = everyone[name].turn()
            after = everyone[first].turn()
            turns[first] += [before, after]
            turns[name].append(own)
            ratios[name].append(2 * own["seconds"] / EPOCHS.get(name, 1) / (before["seconds"] + after["seconds"]))
    for one in everyone.values():
        one.end()
    found: dict[str, Any] = {}
    for name, one in everyone.items():
        if one.absent is not None:
            found[name] = {"absent": one.absent}
            continue
        seconds = [turn["seconds"] / EPOCHS.get(name, 1) for turn in turns[name]]
        found[name] = {
            "ratio": median(ratios[name]) if name in ratios else 1.0,
            "ratios": ratios.get(name, []),
            "seconds": seconds,
            "peak_mb": max(turn["peak_mb"] for turn in turns[name]),
            "before_mb": max(turn["before_mb"] for turn in turns[name]),
        }
        print(f"{contest}: {name}: {found[name]['ratio']:.3f}", flush=True)
    return {"steps_a_turn": N_BATCHES, "rounds": rounds, "contestants": found}


def phases(data: Path | None, n_tasks: int, n_threads: int) -> dict[str, Any]:
    """Learn the first tasks of permuted MNIST and say which phase took how much CPU time."""
    import torch

    from clnp.benchmarks import get_benchmark
    from clnp.experiment import build_trunk, configure
    from clnp.inputs import cut
    from clnp.learner import Learner
    from made import stamp

    torch.set_num_threads(n_threads)
    made = stamp(n_threads)
    config = configure("permuted-mnist", n_tasks=n_tasks)
    tasks = get_benchmark("permuted-mnist").tasks(data, 0, n_tasks)
    example = cut(tasks[0].validation[0], 0, 2)
    learner = Learner(build_trunk(config, example), example, seed=0)
    rows: list[dict[str, float]] = []
    for task in tasks:
        train, validation = task.train, task.validation
        spent: dict[str, float] = {}
        at = ["train", time.process_time()]  # its first epoch has what the task needs before it

        def follow(event: dict[str, Any], spent: dict[str, float] = spent, at: list[Any] = at) -> None:
            now = time.process_time()
            spent[at[0]] = spent.get(at[0], 0.0) + now - at[1]
            # An epoch is told at its end, a phase at its beginning: what follows an epoch is training until something else begins.
            at[:] = [event["phase"] if event["event"] in {"phase", "epoch"} else at[0], now]

        learner.learn(task.name, train, validation, n_classes=task.n_classes, config=config.learn, progress=follow)
        follow({"event": "end"})
        rows.append(spent)
        print({name: round(seconds, 2) for name, seconds in spent.items()}, flush=True)
    return {"tasks": rows, "learn": config.learn.model_dump(mode="json"), "made": made}


def optimizer_bytes() -> dict[str, int]:
    """Return the bytes of Adam's state (two numbers a parameter), for the dense network and for a pool at 50 % claimed."""
    from speedy.steps import dense, split_network

    network, _ = split_network(0.5)
    return {
        "dense": 8 * sum(p.numel() for p in dense().parameters()),
        "clnp, 50 % claimed": 8 * sum(p.numel() for p in network.parameters()),
    }


def directory_bytes(directory: Path) -> dict[str, Any]:
    """Return the bytes of a model directory and of each of its files."""
    files = {str(path.relative_to(directory)): path.stat().st_size for path in sorted(directory.rglob("*")) if path.is_file()}
    return {"total": sum(files.values()), "files": files}


def contest_table(contestants: Mapping[str, Any]) -> str:
    """Return the table of a contest in Markdown."""
    lines = ["| | CPU time, ratio | smallest and largest ratio | peak memory over that before, MB |", "|---|---|---|---|"]
    for name, row in contestants.items():
        if "absent" in row:
            lines.append(f"| {name} | not measured: {row['absent']} | | |")
            continue
        span = f"{min(row['ratios']):.3f} to {max(row['ratios']):.3f}" if row["ratios"] else ""
        lines.append(f"| {name} | {row['ratio']:.3f} | {span} | {row['peak_mb'] - row['before_mb']:.0f} |")
    return "\n".join(lines)


def phases_table(measured: Mapping[str, Any]) -> str:
    """Return where a task's time goes in Markdown, with so many threads each."""
    parts = {"training": "train", "fine-tuning": "finetune", "scoring": "score", "selection": "select", "commit": "commit"}
    lines = [
        f"| threads | task | in all | {' | '.join(parts)} | scoring, selection and commit |",
        "|---" * (len(parts) + 4) + "|",
    ]
    for n_threads, found in sorted(measured.items()):
        for place, row in enumerate(found["tasks"], start=1):
            whole, spent = sum(row.values()), {part: row.get(name, 0.0) for part, name in parts.items()}
            chosen = sum(spent[part] for part in ("scoring", "selection", "commit"))
            seconds = " | ".join(f"{value:.0f} s" if value >= 20 else f"{value:.1f} s" for value in spent.values())
            lines.append(f"| {n_threads} | {place} | {whole:.0f} s | {seconds} | {100 * chosen / whole:.1f} % |")
    return "\n".join(lines)


def tables(found: dict[str, Any]) -> dict[str, str]:
    """Return all tables in Markdown: name -> table."""
    shown = {contest: contest_table(result["contestants"]) for contest, result in found.get("contests", {}).items()}
    return {**shown, **({"phases": phases_table(found["phases"])} if "phases" in found else {})}


def show(found: dict[str, Any]) -> str:
    """Return all tables in Markdown, under their names."""
    return "\n".join(f"**{name}**\n\n{table}\n" for name, table in tables(found).items())


def main() -> None:
    """Hold the contests, or be a contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="one contest")
    parser.add_argument("--peers", help="the python of an environment that has the peers")
    parser.add_argument("--phases", type=int, metavar="TASKS", help="say where the time of the first so many tasks of permuted MNIST goes")
    parser.add_argument("--threads", type=int, default=THREADS, help="of --phases; contests have two")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", type=Path, help="a model directory whose bytes are counted")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", type=Path)
    parser.add_argument("--be", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.be:
        take_turns(*given.be)
        return
    if given.show:
        print(show(json.loads(given.show.read_text(encoding="utf-8"))))
        return
    found: dict[str, Any] = json.loads(given.out.read_text(encoding="utf-8")) if given.out and given.out.exists() else {}
    if given.phases:
        found.setdefault("phases", {})[str(given.threads)] = phases(given.data, given.phases, given.threads)
    elif given.model:
        found["directory"] = directory_bytes(given.model)
    else:
        from made import stamp

        peers = {name: given.peers for name in contests()["training"] if given.peers and name.startswith(("Avalanche", "CLArena"))}
        for contest, names in contests().items():
            if given.only in (None, contest):
                wanted = [name for name in names if name in peers or not name.startswith(("Avalanche", "CLArena"))]
                made = stamp(THREADS, given.peers if peers.keys() & set(wanted) else None)
                found.setdefault("contests", {})[contest] = {
                    **hold(contest, wanted, given.rounds, peers),
                    "made": made,
                }
        found["optimizer_bytes"] = optimizer_bytes()
        print(show(found))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
