"""What a whole run costs: CPU time of CLNP over that of plainly fine-tuning the dense network, at equal epochs.

    python benchmarks/cost.py permuted-mnist --entry "clnp, 30 epochs" --dense-epochs 1 --data DIR --out benchmarks/results/permuted-mnist-cost.json

The settings are those of a row of the tables (`benchmarks/plans.py`), for both methods. Both learn the same tasks in one process, alternated task by task, so that a slower or busier machine slows both.
CPU time is user + system time of the process over learning alone: CLNP's includes scoring, selection, fine-tuning and commit.
Fine-tuning costs the same in every task and every epoch (same network, same number of steps), so it may be measured in part:
`--dense-tasks` fine-tunes in the first few tasks only, `--dense-epochs` for so many epochs of each; the time is scaled up to all
epochs of all tasks, and the result says so. CLNP is always run in full. Its test accuracies come along.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path

from clnp import metrics
from clnp.benchmarks import get_benchmark
from clnp.experiment import accuracy, build_trunk, configure
from clnp.files import write_atomic
from clnp.methods import METHODS
from clnp.modes import threads
from made import stamp
from plans import EXPERIMENTS


def quiet(_event: dict[str, object]) -> None:
    """Show nothing."""


def main() -> None:
    """Run the comparison and write its JSON after every task, so that a killed run still tells what it measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--entry", help="the row; the first one by default")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tasks", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dense-tasks", type=int, help="fine-tune only so many tasks; all by default")
    parser.add_argument("--dense-epochs", type=int, help="fine-tune for so many epochs a task; as many as CLNP by default")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    experiment = EXPERIMENTS[options.experiment]
    try:
        entry = experiment.entry(options.entry or experiment.entries[0].label)
    except ValueError as error:
        parser.error(str(error))
    config = configure(
        experiment.benchmark,
        model=entry.model or experiment.model,
        n_tasks=options.tasks or experiment.n_tasks,
        seed=options.seed,
        settings={**experiment.settings_of(entry), "threads": options.threads},
    )
    tasks = get_benchmark(config.benchmark).tasks(options.data, config.seed, config.n_tasks)
    example = tasks[0].validation[0][:2]

    trunk = partial(build_trunk, config, example)
    dense_epochs = options.dense_epochs or config.learn.total_epochs
    dense_config = config.learn.model_copy(update={"epochs": dense_epochs, "rounds": 1, "finetune_epochs": 0})
    methods = {
        "clnp": METHODS["clnp"](trunk, example, config.learn, config.seed),
        "finetune": METHODS["finetune"](trunk, example, dense_config, config.seed),
    }
    cpu: dict[str, list[float]] = {name: [] for name in methods}
    matrices: dict[str, list[list[float | None]]] = {name: [] for name in methods}
    made = stamp(options.threads)
    with threads(options.threads):
        for index, task in enumerate(tasks):
            train, validation = task.train, task.validation
            for name, method in methods.items():
                if name == "finetune" and index >= (options.dense_tasks or len(tasks)):
                    continue
                start = time.process_time()
                method.learn(task.name, train, validation, task.n_classes, quiet)
                cpu[name].append(time.process_time() - start)
                row = [accuracy(method, earlier) for earlier in tasks[: index + 1]]
                matrices[name].append([*row, *[None] * (len(tasks) - len(row))])
            dense = sum(cpu["finetune"]) / len(cpu["finetune"]) * config.learn.total_epochs / dense_epochs
            ratio = sum(cpu["clnp"]) / (dense * (index + 1))
            print(
                f"{task.name}: { ({name: round(times[-1], 1) for name, times in cpu.items()}) } s of CPU, ratio so far {ratio:.3f}",
                flush=True,
            )
            result = {
                **config.model_dump(mode="json"),
                "tasks_done": index + 1,
                "epochs_per_task": config.learn.total_epochs,
                "cpu_seconds": cpu,
                "dense_epochs_measured": dense_epochs,
                "dense_cpu_seconds_per_task": dense,
                "ratio": ratio,
                "accuracy_matrix": matrices,
                "made": made,
                "capacity": methods["clnp"].capacity(),
            }
            if index + 1 == len(tasks):
                result["average_accuracy"] = metrics.average_accuracy(matrices["clnp"])
                result["forgetting"] = metrics.forgetting(matrices["clnp"])
            write_atomic(options.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
