"""The searches for settings, on validation data alone: one change at a time, and what came of it.

    python benchmarks/search.py                                    what there is to search
    python benchmarks/search.py permuted-mnist-ewc --data DIR      one of them, to benchmarks/results/search/permuted-mnist-ewc.json
    python benchmarks/search.py --show permuted-mnist-ewc          its table, for the docs

Test data are not read. Settings that are in the file already are not run again, so a killed search continues. The accuracy is that of all
tasks after the last one, so that forgetting counts; for methods that own units, the share of the fullest layer is shown beside it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from clnp import modes
from clnp.benchmarks import BENCHMARKS, get_benchmark
from clnp.errors import CapacityError
from clnp.experiment import accuracy, build_trunk, configure
from clnp.files import write_atomic
from clnp.inputs import cut
from clnp.methods import METHODS
from clnp.models import MODELS, mlp
from made import stamp
from plans import FIFTEEN, IMAGES, ONE_ROUND, QUICK, ZENKE, stages
from tables import fullest

RESULTS = Path(__file__).parent / "results" / "search"


@dataclass(frozen=True)
class Search:
    """What is tried of one method.

    Attributes:
        benchmark: a key of BENCHMARKS.
        method: a key of METHODS.
        n_tasks: so many of its tasks.
        changes: name -> settings that differ from the benchmark's own and from `base`; "model" is one of them.
        base: settings that are common to all.
        model: None is the benchmark's own.
    """

    benchmark: str
    method: str
    n_tasks: int
    changes: dict[str, dict[str, Any]]
    base: dict[str, Any] = field(default_factory=dict[str, Any])
    model: str | None = None


def _values(setting: str, *values: Any) -> dict[str, dict[str, Any]]:
    return {f"{setting} {value}": {setting: value} for value in values}


def _sgd(lr: float, **more: Any) -> dict[str, Any]:
    return {"optimizer": "sgd", "lr": lr, **more}


# A dense epoch of 784-2000-2000 takes a quarter to half a minute of one core: the search has 5 epochs a task, the table twice as many.
DENSE = {"epochs": 3, "rounds": 2, "finetune_epochs": 1, "batch_size": 512, "precision": "bfloat16"}
SMALL = {"epochs": 12, "rounds": 2, "finetune_epochs": 4, "batch_size": 128}
# What the benchmark was run with before these searches.
BEFORE = {"batch_size": 128, "l1": 2e-5, "margin": 0.002, "pool": 0.2, "claim_weight": 1.0}
CIFAR = {"epochs": 12, "rounds": 2, "finetune_epochs": 4, "batch_size": 128, "lr": 1e-3, "precision": "bfloat16", "channels_last": True}
# A third of the table's epochs, in which every image comes twice, once mirrored.
MIRRORED = {**CIFAR, "epochs": 3, "rounds": 1, "finetune_epochs": 2, "batch_size": 64, "label_smoothing": 0.1}
RESNET = {**CIFAR, "epochs": 6, "finetune_epochs": 2, "batch_size": 32}
THIRTY = {"epochs": 10, "rounds": 2, "finetune_epochs": 10, "l1": 2e-5, "margin": 0.0005, "pool": 500}
# Dropout on inputs, on hidden units.
DROPOUTS = {
    f"dropout {given}, {hidden}": partial(mlp, hidden=(2000, 2000), dropout_in=given, dropout=hidden)
    for given, hidden in ((0.1, 0.1), (0.2, 0.1), (0.2, 0.25))
}
SEARCHES: dict[str, Search] = {
    "permuted-mnist-dropout": Search(
        "permuted-mnist",
        "clnp",
        4,
        {name: {"model": name} for name in ("dropout 0.1, 0.1", "dropout 0.2, 0.1")},
        {"epochs": 6, "rounds": 2, "finetune_epochs": 2, "batch_size": 64, "l1": 2e-5, "margin": 0.0005, "pool": 0.3, "claim_weight": 1.0},
    ),
    "permuted-mnist": Search(
        "permuted-mnist",
        "clnp",
        2,
        {
            "as it is": {},
            "pool 0.3": {"pool": 0.3},
            "batch 64, pool 0.3": {"batch_size": 64, "pool": 0.3},
            "batch 64, pool 0.3, l1 5e-5": {"batch_size": 64, "pool": 0.3, "l1": 5e-5},
            "batch 64, pool 0.3, margin 0.0005": {"batch_size": 64, "pool": 0.3, "margin": 0.0005},
            "batch 64, pool 0.3, margin 0": {"batch_size": 64, "pool": 0.3, "margin": 0.0},
            "batch 64, pool 0.3, margin 0.0005, l1 1e-5": {"batch_size": 64, "pool": 0.3, "margin": 0.0005, "l1": 1e-5},
            "pool 0.4": {"pool": 0.4},
            "criterion: activity (the paper's)": {"criterion": "activity"},
            "criterion: std-weight": {"criterion": "std-weight"},
            "label smoothing 0.1": {"label_smoothing": 0.1},
            "label smoothing 0.2": {"label_smoothing": 0.2},
        },
        {**BEFORE, "epochs": 10, "rounds": 2, "finetune_epochs": 10},
    ),
    "permuted-mnist-10-epochs": Search(
        "permuted-mnist",
        "clnp",
        2,
        {
            "as it is": {},
            **_values("l1", 5e-5, 1e-4, 2e-4),
            "l1 1e-4, batch 128": {"l1": 1e-4, "batch_size": 128},
            "l1 5e-5, batch 64": {"l1": 5e-5, "batch_size": 64},
            "l1 1e-4, batch 64": {"l1": 1e-4, "batch_size": 64},
            "l1 1e-4, batch 128, 4 epochs + 2 x 3": {"l1": 1e-4, "batch_size": 128, "epochs": 4, "finetune_epochs": 3},
            "l1 1e-4, batch 128, lr 4e-3": {"l1": 1e-4, "batch_size": 128, "lr": 4e-3},
        },
        {**BEFORE, "epochs": 6, "rounds": 2, "finetune_epochs": 2, "batch_size": 256},
    ),
    # Six tasks, for it matters when there is much to reuse.
    "permuted-mnist-claim-weight": Search(
        "permuted-mnist",
        "clnp",
        6,
        _values("claim_weight", 0.1, 0.03, 0.3, 1.0),
        QUICK,
    ),
    # The row of thirty epochs: what keeps a task small, L1 or the margin, when it may claim as readily as reuse.
    "permuted-mnist-30-epochs": Search(
        "permuted-mnist",
        "clnp",
        6,
        {
            "l1 1e-5, margin 0.002": {"l1": 1e-5, "margin": 0.002},
            "l1 5e-6, margin 0.002": {"l1": 5e-6, "margin": 0.002},
            "l1 2e-5, margin 0.0005, 10 epochs + 2 x 20": {"finetune_epochs": 20},
        },
        {**THIRTY, "batch_size": 64, "claim_weight": 1.0},
    ),
    # How the epochs after pruning are spent: in two rounds, the first of which may prune beyond the margin, or in one.
    "permuted-mnist-rounds-30": Search(
        "permuted-mnist",
        "clnp",
        6,
        {"one round of 20": {"rounds": 1, "finetune_epochs": 20}},
        THIRTY,
    ),
    "permuted-mnist-rounds": Search(
        "permuted-mnist",
        "clnp",
        5,
        {
            "two rounds of 2": {},
            "one round of 4": {"rounds": 1, "finetune_epochs": 4},
            "one round of 5 after 5": ONE_ROUND,
            "one round of 5 after 5, margin 0.004": {**ONE_ROUND, "margin": 0.004},
            "one round of 6 after 4": {"epochs": 4, "rounds": 1, "finetune_epochs": 6},
            "one round of 7 after 3": {"epochs": 3, "rounds": 1, "finetune_epochs": 7},
            "one round of 4, l1 1e-4": {"rounds": 1, "finetune_epochs": 4, "l1": 1e-4},
        },
        QUICK,
    ),
    # The row of thirty epochs: with more steps, and with more dropout, since training data are learned to the last example.
    "permuted-mnist-steps": Search("permuted-mnist", "clnp", 3, _values("batch_size", 64, 32), THIRTY),
    "permuted-mnist-dropout-30": Search(
        "permuted-mnist",
        "clnp",
        3,
        {name: {"model": name} for name in ("dropout 0.2, 0.25", "dropout 0.2, 0.1")},
        {**THIRTY, "batch_size": 64},
    ),
    "permuted-mnist-single": Search(
        "permuted-mnist",
        "single",
        1,
        {
            "batch 512, lr 2e-3": {"batch_size": 512, "lr": 2e-3},
            "batch 512, lr 1e-3": {"batch_size": 512, "lr": 1e-3},
            "batch 512, lr 5e-4": {"batch_size": 512, "lr": 5e-4},
            "batch 256, lr 1e-3": {"batch_size": 256, "lr": 1e-3},
            "batch 512, lr 1e-3, float32": {"batch_size": 512, "lr": 1e-3, "precision": "float32"},
        },
        {"epochs": 6, "rounds": 2, "finetune_epochs": 2, "precision": "bfloat16"},
    ),
    # All ten tasks, for a setting that holds old tasks too firmly, or eats what is free, looks good for the first few.
    "permuted-mnist-ewc": Search("permuted-mnist", "ewc", 10, _values("strength", 1000.0, 3000.0, 10_000.0, 300.0), DENSE),
    "permuted-mnist-si": Search(
        "permuted-mnist",
        "si",
        10,
        {**_values("strength", 0.3, 1.0, 3.0, 10.0), "strength 3.0, sgd, lr 0.2": _sgd(0.2, strength=3.0)},
        {**DENSE, "damping": 0.1},
    ),
    "permuted-mnist-superposition": Search(
        "permuted-mnist",
        "superposition",
        10,
        {
            **_values("lr", 2e-4, 5e-4, 1e-3),
            "sgd, lr 0.05": _sgd(0.05),
            "sgd, lr 0.2": _sgd(0.2),
            "sgd, lr 0.5": _sgd(0.5),
        },
        DENSE,
    ),
    "permuted-mnist-hat": Search(
        "permuted-mnist",
        "hat",
        10,
        {
            **_values("strength", 0.75, 0.1),
            "sgd, lr 0.2, batch 256": _sgd(0.2, batch_size=256),
            "sgd, lr 0.05, batch 256": _sgd(0.05, batch_size=256),
        },
        DENSE,
    ),
    "permuted-mnist-packnet": Search("permuted-mnist", "packnet", 10, _values("share", 0.1, 0.2), DENSE),
    # The whole budget of the table on one task: how much of it after pruning.
    "permuted-mnist-packnet-epochs": Search(
        "permuted-mnist",
        "packnet",
        1,
        {
            "6 epochs + 4": {"epochs": 6, "finetune_epochs": 2},
            "4 epochs + 6": {"epochs": 4, "finetune_epochs": 3},
            "2 epochs + 8": {"epochs": 2, "finetune_epochs": 4},
            "4 epochs + 6, share 0.2": {"epochs": 4, "finetune_epochs": 3, "share": 0.2},
        },
        {**DENSE, "share": 0.1},
    ),
    "permuted-mnist-wsn": Search("permuted-mnist", "wsn", 10, _values("share", 0.1, 0.3), DENSE),
    # Fifty tasks have to fit: two units of a hundred a task.
    "permuted-mnist-50": Search(
        "permuted-mnist",
        "clnp",
        3,
        {
            "l1 1e-4": {"l1": 1e-4},
            "l1 5e-5": {"l1": 5e-5},
        },
        {"epochs": 10, "rounds": 2, "finetune_epochs": 5, "batch_size": 64, "pool": 0.2, "margin": 0.005, "claim_weight": 1.0},
    ),
    # A network so small that it is full after six tasks as the benchmark's settings have it.
    "permuted-mnist-100": Search(
        "permuted-mnist",
        "clnp",
        10,
        {
            "pool 0.1": {"pool": 0.1},
            "pool 0.1, l1 0, margin 0": {"pool": 0.1, "l1": 0.0, "margin": 0.0},
            "pool 0.2, l1 1e-4, margin 0.01": {"pool": 0.2, "l1": 1e-4, "margin": 0.01},
            "pool 0.2, l1 3e-4, margin 0.01": {"pool": 0.2, "l1": 3e-4, "margin": 0.01},
            "pool 0.2, margin 0.02": {"pool": 0.2, "margin": 0.02},
        },
        {**BEFORE, **SMALL, "claim_weight": 0.1},
        "mlp-100",
    ),
    "permuted-mnist-100-packnet": Search("permuted-mnist", "packnet", 10, _values("share", 0.1, 0.15, 0.2, 0.25), SMALL, "mlp-100"),
    "permuted-mnist-100-wsn": Search("permuted-mnist", "wsn", 10, _values("share", 0.1, 0.3, 0.5), SMALL, "mlp-100"),
    "permuted-mnist-100-hat": Search(
        "permuted-mnist",
        "hat",
        10,
        {
            **_values("strength", 0.1, 0.75, 2.0),
            **{f"sgd, lr 0.2, strength {strength}": _sgd(0.2, strength=strength) for strength in (0.75, 0.1, 2.0)},
        },
        SMALL,
        "mlp-100",
    ),
    # The small tasks alone: CIFAR-10 has ten times their examples.
    "cifar-single": Search(
        "split-cifar100-10x10",
        "single",
        2,
        {
            "as it is": {},
            "batch 64": {"batch_size": 64},
            "batch 32": {"batch_size": 32},
            "lr 2e-3": {"lr": 2e-3},
            "batch 64, lr 5e-4": {"batch_size": 64, "lr": 5e-4},
            "batch 64, label smoothing 0.1": {"batch_size": 64, "label_smoothing": 0.1},
        },
        CIFAR,
        "zenke",
    ),
    # All six tasks, as above: what the baselines hold on to must leave room for the last.
    "cifar-si": Search("cifar10-100-mirrored", "si", 6, _values("strength", 0.03, 0.1, 0.01), MIRRORED),
    "cifar-ewc": Search("cifar10-100-mirrored", "ewc", 6, _values("strength", 100.0, 1000.0, 10.0), MIRRORED),
    "cifar-packnet": Search("cifar10-100-mirrored", "packnet", 6, _values("share", 0.15, 0.3, 0.5), MIRRORED),
    "cifar-wsn": Search("cifar10-100-mirrored", "wsn", 6, _values("share", 0.5, 0.3, 0.7, 0.9), MIRRORED),
    "cifar-hat": Search(
        "cifar10-100-mirrored",
        "hat",
        6,
        {
            "sgd, lr 0.05": _sgd(0.05),
            "sgd, lr 0.02": _sgd(0.02),
            "adam": {},
            "sgd, lr 0.01": _sgd(0.01),
            # c weighs the mean over units: 0.1 presses on each of the 704 of this network about as 0.75 on each of the 4,544 of the authors' network.
            **{f"sgd, lr 0.02, strength {strength}": _sgd(0.02, strength=strength) for strength in (0.1, 0.02)},
            "sgd, lr 0.05, strength 0.02": _sgd(0.05, strength=0.02),
            "adam, strength 0.02": {"strength": 0.02},
        },
        MIRRORED,
    ),
    # At the 0.05 of the other images the network dies with the third task.
    "cifar-superposition": Search(
        "cifar10-100-mirrored",
        "superposition",
        6,
        {"sgd, lr 0.01": _sgd(0.01), "adam": {}, "sgd, lr 0.02": _sgd(0.02), "sgd, lr 0.005": _sgd(0.005)},
        MIRRORED,
    ),
    # The row of the table, and how its epochs after pruning are spent: in two rounds or in one.
    "cifar-clnp-rounds": Search(
        "cifar10-100-mirrored",
        "clnp",
        6,
        {
            "as it is": {},
            "one round of six epochs": {"rounds": 1, "finetune_epochs": 6},
            "one round of six epochs, label smoothing 0.1": {"rounds": 1, "finetune_epochs": 6, "label_smoothing": 0.1},
        },
        {**MIRRORED, "epochs": 9, "rounds": 2, "finetune_epochs": 3, "label_smoothing": 0.0, **ZENKE},
    ),
    # What CIFAR-10 may take of the later filters: the small tasks could grow some of their own.
    "cifar-clnp-filters": Search(
        "cifar10-100-mirrored",
        "clnp",
        6,
        {f"{share} of conv2_*": {"pool": {"conv2_*": share, **ZENKE["pool"]}} for share in (0.75, 0.85)},
        {**FIFTEEN, **IMAGES, **ZENKE},
    ),
    # A margin leaves dense units free for no accuracy: what more of them are worth to each task; and what more L1 is.
    "cifar-clnp-dense": Search(
        "cifar10-100-mirrored",
        "clnp",
        6,
        {
            "200 of dense, margin 0.02": {"pool": {"dense": 200, "*": "all"}, "margin": 0.02},
            "l1 1e-4": {"l1": 1e-4},
        },
        {**FIFTEEN, **IMAGES, **ZENKE},
    ),
    # Narrow early layers: what the first task leaves of them is too little for any other.
    "split-cifar100-clnp": Search(
        "split-cifar100-10x10",
        "clnp",
        3,
        {
            "as it is": {},
            "all of stages 1 to 3, 0.25 of stage 4": {"pool": stages(0.25)},
            "pool 0.5": {"pool": 0.5},
            "all of stages 1 to 3, 0.25 of stage 4, margin 0.01": {"pool": stages(0.25), "margin": 0.01},
        },
        RESNET,
    ),
    # All ten tasks: what one may take of the last stage must leave some of it to the others.
    "split-cifar100-10-clnp": Search(
        "split-cifar100-10x10",
        "clnp",
        10,
        {
            "0.1 of stage 4": {},
            "0.1 of stage 4, one round of five epochs": ONE_ROUND,
            "0.1 of stage 4, one round of five epochs, label smoothing 0.1": {**ONE_ROUND, "label_smoothing": 0.1},
            "0.25 of stage 3, 0.1 of stage 4, one round of five epochs": {**ONE_ROUND, "pool": {"block3*": 0.25, **stages(0.1)}},
            "0.1 of stage 4, label smoothing 0.1": {"label_smoothing": 0.1},
        },
        {**RESNET, "pool": stages(0.1)},
    ),
    "split-cifar100-10-hat": Search(
        "split-cifar100-10x10",
        "hat",
        10,
        {
            f"lr {lr}, strength {strength}": _sgd(lr, strength=strength)
            for lr, strength in ((0.02, 0.02), (0.05, 0.02), (0.05, 0.1), (0.05, 0.75))
        },
        {**RESNET, "label_smoothing": 0.1},
    ),
    "cifar-clnp": Search(
        "cifar10-100",
        "clnp",
        3,
        {
            "pool 0.8, l1 1e-5, margin 0.005": {"pool": 0.8, "l1": 1e-5, "margin": 0.005},
            "all units, l1 2e-5, margin 0.005": {"pool": "all", "l1": 2e-5, "margin": 0.005},
            "all units, l1 5e-5, margin 0.01": {"pool": "all", "l1": 5e-5, "margin": 0.01},
            "80 of dense, all others, l1 2e-5, margin 0.005": {"pool": {"dense": 80, "*": "all"}, "l1": 2e-5, "margin": 0.005},
            "80 of dense, 0.75 of others, l1 2e-5, margin 0.005": {"pool": {"dense": 80, "*": 0.75}, "l1": 2e-5, "margin": 0.005},
        },
        {**CIFAR, "batch_size": 64},
    ),
}


def kept(name: str) -> Path:
    """Return where what a search found is kept."""
    return RESULTS / f"{name}.json"


def measure(search: Search, data: Path | None, seed: int, change: dict[str, Any]) -> dict[str, Any]:
    """Learn the first tasks with changed settings and return validation accuracies, units claimed and CPU seconds."""
    MODELS.update(DROPOUTS)
    settings = {"threads": 1, **search.base, **change}
    model = settings.pop("model", search.model)
    config = configure(search.benchmark, method=search.method, model=model, n_tasks=search.n_tasks, seed=seed, settings=settings)
    made = stamp(config.learn.threads)
    tasks = get_benchmark(search.benchmark).tasks(data, seed, search.n_tasks)
    example = cut(tasks[0].validation[0], 0, 2)
    method = METHODS[search.method](partial(build_trunk, config, example), example, config.learn, seed)
    just_learned: list[float] = []
    cpu: list[float] = []
    with modes.threads(config.learn.threads):
        for task in tasks:
            start = time.process_time()
            try:
                learned = method.learn(task.name, task.train, task.validation, task.n_classes, lambda _: None)
            except CapacityError:  # the network is full: the table says so
                break
            cpu.append(time.process_time() - start)
            just_learned.append(learned["accuracy"])
        final = [accuracy(method, task, "validation") for task in tasks[: len(just_learned)]]
    return {
        "change": change,
        "learn": config.learn.model_dump(mode="json"),
        "validation": final,
        "validation_just_learned": just_learned,
        "fullest": fullest(method.capacity()),
        "capacity": method.capacity(),
        "cpu_seconds": cpu,
        "made": made,
    }


def table(found: dict[str, Any], n_tasks: int) -> str:
    """Return the table of a search over so many tasks, for the docs, the best first."""
    lines = ["| change | validation accuracy | just after learning | fullest layer | CPU time |", "|---|---|---|---|---|"]
    rows = sorted(found["settings"].items(), key=lambda row: -sum(row[1]["validation"]))
    for name, row in rows:
        mean, just = (100 * sum(row[key]) / len(row[key]) for key in ("validation", "validation_just_learned"))
        full = "" if row["fullest"] is None else f"{100 * row['fullest']:.0f} %"
        short = f", full after {len(row['validation'])}" if len(row["validation"]) < n_tasks else ""
        lines.append(f"| {name}{short} | {mean:.2f} % | {just:.2f} % | {full} | {sum(row['cpu_seconds']):.0f} s |")
    return "\n".join(lines)


def main() -> None:
    """Measure every change of a search, and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=SEARCHES)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", action="store_true", help="print the table of what was found, and measure nothing")
    options = parser.parse_args()
    if options.name is None:
        for name, search in SEARCHES.items():
            print(f"{name:32} {search.method}, {search.n_tasks} tasks of {search.benchmark}: {', '.join(search.changes)}")
        return
    search, out = SEARCHES[options.name], options.out or kept(options.name)
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))["settings"] if out.exists() else {}
    result = {
        "benchmark": search.benchmark,
        "model": search.model or BENCHMARKS[search.benchmark].model,
        "n_tasks": search.n_tasks,
        "method": search.method,
        "seed": options.seed,
        "command": shlex.join(["python", *sys.argv]),
        "settings": found,
    }
    for name, change in ({} if options.show else search.changes).items():
        if name not in found:
            found[name] = measure(search, options.data, options.seed, change)
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(out, json.dumps(result, indent=1) + "\n")
            print(f"{name}: {100 * sum(found[name]['validation']) / len(found[name]['validation']):.2f} %", flush=True)
    print(table(result, search.n_tasks))


if __name__ == "__main__":
    main()
