"""The search for the settings of permuted MNIST, on validation data: accuracy against units claimed, one change at a time.

    python benchmarks/search.py permuted-mnist --data DIR --tasks 2 --seed 0 --out benchmarks/results/permuted-mnist-search.json

Test data are not read. Settings that are in the file already are not run again, so a killed search continues.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from clnp.benchmarks import get_benchmark
from clnp.experiment import build_trunk, configure, versions
from clnp.files import write_atomic
from clnp.learner import Learner

# Each row is one change to the settings that the benchmark has today.
CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "criterion: activity (the paper's)": {"criterion": "activity"},
    "criterion: std-weight": {"criterion": "std-weight"},
    "l1 5e-5": {"l1": 5e-5},
    "l1 1e-5": {"l1": 1e-5},
    "margin 0": {"margin": 0.0},
    "margin 0.003": {"margin": 0.003},
    "8 epochs + 2 x 6": {"epochs": 8, "finetune_epochs": 6},
    "one round of 20": {"rounds": 1, "finetune_epochs": 20},
    "batch 256": {"batch_size": 256},
    "pool 0.3": {"pool": 0.3},
    "pool 0.12": {"pool": 0.12},
    "lr 1e-3": {"lr": 1e-3},
}


def measure(benchmark: str, data: Path | None, n_tasks: int, seed: int, change: dict[str, Any]) -> dict[str, Any]:
    """Learn the first tasks with changed settings and return validation accuracies and units claimed."""
    config = configure(benchmark, n_tasks=n_tasks, seed=seed, settings=change)
    tasks = get_benchmark(benchmark).tasks(data, seed, n_tasks)
    example = tasks[0].validation[0][:2]
    learner = Learner(build_trunk(config, example), example, seed=seed)
    rows: list[dict[str, Any]] = []
    for task in tasks:
        start = time.process_time()
        result = learner.learn(task.name, task.train, task.validation, n_classes=task.n_classes, config=config.learn)
        seconds = time.process_time() - start
        rows.append(
            {
                "validation_unpruned": result.accuracy_unpruned,
                "validation": result.accuracy,
                "claimed": result.claimed,
                "reused": result.reused,
                "cpu_seconds": seconds,
            }
        )
    return {"change": change, "learn": config.learn.model_dump(mode="json"), "tasks": rows, "versions": versions()}


def main() -> None:
    """Measure every change and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tasks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(options.out.read_text())["settings"] if options.out.exists() else {}
    for name, change in CHANGES.items():
        if name not in found:
            found[name] = measure(options.benchmark, options.data, options.tasks, options.seed, change)
            command = "python " + " ".join(sys.argv)
            result = {"benchmark": options.benchmark, "seed": options.seed, "command": command, "settings": found}
            write_atomic(options.out, json.dumps(result, indent=1) + "\n")
        rows = found[name]["tasks"]
        accuracy = sum(row["validation"] for row in rows) / len(rows)
        claimed = " ".join("+".join(str(n) for n in row["claimed"].values()) for row in rows)
        print(f"{name:36} validation {accuracy:.4f}  claimed {claimed}  CPU {sum(row['cpu_seconds'] for row in rows):.0f} s", flush=True)


if __name__ == "__main__":
    main()
