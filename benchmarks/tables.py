"""What was kept of the experiments, and the tables of it. `benchmarks/reproduce.py --show` prints them; a test holds docs/results.md to them."""

from __future__ import annotations

import json
import math
import re
from itertools import accumulate
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Any

from clnp.allocation import Allocation
from clnp.forecast import forecast
from clnp.report.compare import p_value
from plans import EXPERIMENTS, Entry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

RESULTS = Path(__file__).parent / "results"
Run = dict[str, Any]
Rows = dict[str, list[Run]]
"""label -> its runs, by seed."""


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


def found(name: str) -> Rows:
    """Return the kept results of an experiment, in the order of the plan."""
    rows: Rows = {}
    for entry in EXPERIMENTS[name].entries:
        files = [kept(name, entry, seed) for seed in range(100)]
        runs = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
        if runs:
            rows[entry.label] = runs
    return rows


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return math.fsum(values) / len(values)


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation in per cent.

    >>> spread([0.5, 0.7]), spread([0.5])
    ('60.00 ± 14.14', '50.00')
    """
    return f"{100 * mean(values):.2f} ± {100 * stdev(values):.2f}" if len(values) > 1 else f"{100 * mean(values):.2f}"


def just_learned(run: Run) -> float:
    """Return the mean over tasks of the accuracy right after each was learned: what was reached, whether it was kept or not."""
    return mean([row[task] for task, row in enumerate(run["accuracy_matrix"])])


def fullest(capacity: Mapping[str, Any] | None) -> float | None:
    """Return the share of units that are claimed in the layer that has the fewest left; None for methods that own none."""
    return None if capacity is None else max(claimed_in_the_end(capacity).values())


def claimed_in_the_end(capacity: Mapping[str, Any]) -> dict[str, float]:
    """Return the share of each layer's units that is claimed."""
    return {group: 1 - units["free"] / units["n_units"] for group, units in capacity.items()}


def written_p(one: list[Run], other: list[Run]) -> str:
    """Return the p-value of a paired permutation test over tasks and seeds that both have."""
    p = p_value(*({run["seed"]: run["accuracy_matrix"][-1] for run in runs} for runs in (one, other)))
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table.

    >>> print(markdown(["a", "b"], [[1, ""]]))
    | a | b |
    |---|---|
    | 1 |  |
    """
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def written_forgetting(runs: list[Run]) -> str:
    """Return the mean forgetting in points; "0" where no accuracy has changed at all."""
    forgetting = [run["forgetting"] for run in runs]
    return spread(forgetting) if any(forgetting) else "0"


def written_fullest(runs: list[Run]) -> str:
    """Return how full the fullest layer of any run is; nothing for methods that own no units."""
    shares = [share for run in runs if (share := fullest(run["capacity"])) is not None]
    return f"{100 * max(shares):.0f} %" if shares else ""


def full_before(runs: list[Run], n_tasks: int) -> str:
    """Say after how many tasks the network was full, if it was before the last: the averages are of those that were learned."""
    learned = [len(run["tasks"]) for run in runs]
    if min(learned) == n_tasks:
        return ""
    after = " to ".join(str(n) for n in sorted({min(learned), max(learned)}))
    return f" (full after {after} of {n_tasks} tasks)"


def written_cpu(runs: list[Run]) -> str:
    """Return the mean CPU time of a run."""
    return f"{mean([sum(run['cpu_seconds_per_task']) for run in runs]):,.0f} s"


def main_table(name: str) -> str:
    """Return the table of an experiment in the order of the plan, a row an entry."""
    rows = found(name)
    best = max(rows, key=lambda label: mean([run["average_accuracy"] for run in rows[label]]))
    lines: list[list[object]] = []
    for label, runs in rows.items():
        lines.append(
            [
                label + full_before(runs, EXPERIMENTS[name].n_tasks),
                spread([run["average_accuracy"] for run in runs]),
                spread([just_learned(run) for run in runs]),
                written_forgetting(runs),
                written_fullest(runs),
                written_cpu(runs),
                "" if label == best else written_p(rows[best], runs),
                EXPERIMENTS[name].entry(label).published,
                len(runs),
            ]
        )
    head = "method|average accuracy, %|just after learning, %|forgetting, points|fullest layer|CPU time of a run|p against the best|published, %|seeds"
    return markdown(head.split("|"), lines)


PAPER = {
    "single": "single-task SGD",
    "ewc": "EWC",
    "si": "synaptic intelligence",
    "superposition": "superposition",
    "clnp, 30 epochs": "CLNP",
    "clnp, 30 epochs, more units": "CLNP, with more units",
}
"""The rows of the paper's table: our label -> the paper's name."""


def paper_table() -> str:
    """Return the paper's table on permuted MNIST with our column beside each of its rows."""
    rows = found("permuted-mnist")
    lines: list[list[object]] = []
    for label, name in PAPER.items():
        runs, published = rows.get(label, []), EXPERIMENTS["permuted-mnist"].entry(label).published.split(" (")[0]
        if runs:
            ours = spread([run["average_accuracy"] for run in runs])
            lines.append([name, published, ours, written_forgetting(runs), written_fullest(runs), len(runs)])
        else:
            lines.append([name, published, "not run yet", "", "", 0])
    return markdown(["method", "the paper, %", "here, %", "forgetting, points", "fullest layer", "seeds"], lines)


def per_task(name: str) -> str:
    """Return the final test accuracy of each task: means over seeds."""
    rows = found(name)
    n_tasks = EXPERIMENTS[name].n_tasks
    lines = [
        [
            label,
            *(f"{100 * mean([run['accuracy_matrix'][-1][task] for run in runs]):.2f}" for task in range(len(runs[0]["tasks"]))),
            f"{100 * mean([run['average_accuracy'] for run in runs]):.2f}",
        ]
        for label, runs in rows.items()
    ]
    return markdown(["method", *(f"task {task + 1}" for task in range(n_tasks)), "mean"], lines)


ALONE = {"clnp": "single", "clnp, twice as wide": "single, twice as wide"}
"""Rows of `clnp`, and those of the same network trained on each task alone."""


def beside_alone(name: str) -> str:
    """Return, by task, how many points a row of `clnp` lies above the same network trained on that task alone: means over the seeds of each."""
    rows = found(name)
    lines: list[list[object]] = []
    for label, alone in ALONE.items():
        if label in rows and alone in rows:
            of = [
                [100 * mean(task) for task in zip(*(run["accuracy_matrix"][-1] for run in rows[row]), strict=True)]
                for row in (label, alone)
            ]
            above = [ours - theirs for ours, theirs in zip(*of, strict=True)]
            lines.append([label, *(f"{points:+.2f}" for points in above), f"{mean(above):+.2f}"])
    return markdown(["method", *(f"task {task + 1}" for task in range(EXPERIMENTS[name].n_tasks)), "mean"], lines) if lines else ""


def orders(name: str) -> str:
    """Return, for each row and seed, which draws an order of the tasks, the final accuracy over all tasks and over those of each data set."""
    lines: list[list[object]] = []
    sources: list[str] = []
    for label, runs in found(name).items():
        for run in runs:
            of: dict[str, list[float]] = {}
            for task, accuracy in zip(run["tasks"], run["accuracy_matrix"][-1], strict=True):
                of.setdefault(task.rpartition("-")[0], []).append(accuracy)
            sources = sources or sorted(of)
            first = ", ".join(run["tasks"][:3])
            means = [f"{100 * mean(of[source]):.2f}" if source in of else "" for source in sources]
            lines.append([label, run["seed"], first, f"{100 * run['average_accuracy']:.2f}", *means, written_fullest([run])])
    return markdown(["method", "order", "its first three tasks", "average accuracy, %", *sources, "fullest layer"], lines)


def layers(runs: list[Run]) -> str:
    """Return what happened in each layer: units that the first task claimed, that later ones did, and what they read of those that were there."""
    lines: list[list[object]] = []
    for group, first in runs[0]["capacity"].items():
        n, tasks = first["n_units"], runs[0]["tasks"]
        claimed = [[run["capacity"][group]["claimed"][task] / n for task in tasks] for run in runs]
        reused = [
            run["capacity"][group]["reused"][task] / max(sum(run["capacity"][group]["claimed"][other] for other in tasks[:k]), 1)
            for run in runs
            for k, task in enumerate(tasks)
            if k > 0
        ]
        lines.append(
            [
                group,
                n,
                f"{100 * mean([row[0] for row in claimed]):.0f} %",
                f"{100 * mean([mean(row[1:]) for row in claimed]):.1f} %",
                f"{100 * mean(reused):.0f} %",
                f"{100 * mean([sum(row) for row in claimed]):.0f} %",
            ]
        )
    head = "layer|units|claimed by the first task|by each later task|share of claimed units that a later task reads|claimed in the end"
    return markdown(head.split("|"), lines)


def of_margins(rows: Mapping[str, list[Run]]) -> dict[float, list[Run]]:
    """Return the runs of `clnp` as it is and with other margins, by margin: the rows that differ in nothing else."""
    found_at = {
        runs[0]["config"]["learn"]["margin"]: runs for label, runs in rows.items() if label == "clnp" or label.startswith("clnp, margin")
    }
    return dict(sorted(found_at.items()))


def margins(rows: Mapping[str, list[Run]]) -> str:
    """Return what each margin costs, and the units that it leaves in the last layer, which fills up, and before it."""
    found_at = of_margins(rows)
    if len(found_at) < 2:
        return ""
    last = list(next(iter(found_at.values()))[0]["capacity"])[-1]
    lines: list[list[object]] = []
    for margin, runs in found_at.items():
        first = mean([run["accuracy_matrix"][-1][0] for run in runs])
        others = mean([mean(run["accuracy_matrix"][-1][1:]) for run in runs])
        claimed = [[run["capacity"][last]["claimed"][task] for task in run["tasks"]] for run in runs]
        left = [{group: units["free"] for group, units in run["capacity"].items()} for run in runs]
        lines.append(
            [
                f"{100 * margin:g} %",
                spread([run["average_accuracy"] for run in runs]),
                f"{100 * first:.2f}",
                f"{100 * others:.2f}",
                f"{mean([row[0] for row in claimed]):.0f}",
                f"{mean([mean(row[1:]) for row in claimed]):.0f}",
                f"{mean([free[last] for free in left]):.0f}",
                f"{mean([sum(free.values()) - free[last] for free in left]):.0f}",
                len(runs),
            ]
        )
    head = f"margin|average accuracy, %|first task|mean of the others|units of {last} claimed by the first task|by each other|{last} units free in the end|free in all other layers|seeds"
    return markdown(head.split("|"), lines)


def changes(name: str) -> str:
    """Return what each change does beside the first row: difference over the seeds that both have, and what is claimed of each layer."""
    rows = found(name)
    base = next(iter(rows))
    of_base = {run["seed"]: run["average_accuracy"] for run in rows[base]}
    groups = list(rows[base][0]["capacity"])
    lines: list[list[object]] = []
    for label, runs in rows.items():
        away = [run["average_accuracy"] - of_base[run["seed"]] for run in runs if run["seed"] in of_base]
        claimed = [mean([claimed_in_the_end(run["capacity"])[group] for run in runs]) for group in groups]
        lines.append(
            [
                label + full_before(runs, EXPERIMENTS[name].n_tasks),
                spread([run["average_accuracy"] for run in runs]),
                "" if label == base or not away else f"{100 * mean(away):+.2f}",
                *(f"{100 * share:.0f} %" for share in claimed),
                written_cpu(runs),
                len(runs),
            ]
        )
    head = [
        "change",
        "average accuracy, %",
        f"beside '{base}', points",
        *(f"{group} claimed" for group in groups),
        "CPU time of a run",
        "seeds",
    ]
    return markdown(head, lines)


def forecasts(run: Run) -> list[int | None]:
    """Return, after each task, how many more were forecast to fit: the library's own forecast, from what each task claimed."""
    allocation = Allocation.empty({group: units["n_units"] for group, units in run["capacity"].items()})
    result: list[int | None] = []
    for task in run["tasks"]:
        needed: dict[str, Tensor] = {}
        for group, units in run["capacity"].items():
            free = allocation.free(group)
            needed[group] = free & (free.cumsum(0) <= units["claimed"][task])
        allocation = allocation.commit(task, needed)
        result.append(forecast(allocation).tasks)
    return result


def claimed_so_far(run: Run) -> dict[str, list[float]]:
    """Return, for each layer, the share of its units that is claimed after each task."""
    return {
        group: [claimed / units["n_units"] for claimed in accumulate(units["claimed"][task] for task in run["tasks"])]
        for group, units in run["capacity"].items()
    }


def full_after(run: Run) -> int | None:
    """Return after how many tasks some layer had no free unit left; None, if none was full at the end."""
    fullest_after = [max(shares) for shares in zip(*claimed_so_far(run).values(), strict=True)]
    return next((n for n, share in enumerate(fullest_after, start=1) if share == 1), None)


def course(run: Run, every: int = 5) -> str:
    """Return how a long run went: accuracies, room and forecast after every few tasks."""
    n_tasks, claimed, forecast_after, full = len(run["tasks"]), claimed_so_far(run), forecasts(run), full_after(run)
    lines: list[list[object]] = []
    end, came = (n_tasks, "at least {}") if full is None else (full, "{}")
    for after in sorted({1, *range(every, n_tasks + 1, every), n_tasks}):
        rows = run["accuracy_matrix"]
        lines.append(
            [
                after,
                f"{100 * rows[after - 1][after - 1]:.2f} %",
                f"{100 * mean(rows[after - 1][:after]):.2f} %",
                *(f"{100 * shares[after - 1]:.0f} %" for shares in claimed.values()),
                *((forecast_after[after - 1], came.format(end - after)) if after < end else ("", "")),  # a forecast leaves full layers out
                f"{run['cpu_seconds_per_task'][after - 1]:.0f} s",
            ]
        )
    groups = [f"{group} claimed" for group in run["capacity"]]
    return markdown(
        [
            "tasks learned",
            "accuracy of the newest",
            "mean so far",
            *groups,
            "forecast: tasks before a layer is full",
            "what came",
            "CPU time of the task",
        ],
        lines,
    )


def disk(name: str) -> str:
    """Return what lies on the disk after the last task: the whole model directory, and the files of one task, if it has its own."""
    lines: list[list[object]] = []
    for label, runs in found(name).items():
        whole = [sum(run["bytes"].values()) for run in runs]
        tasks = [size for run in runs for file, size in run["bytes"].items() if file.startswith("tasks/")]
        one = f"{min(tasks) / 1e6:.2f} to {max(tasks) / 1e6:.2f}" if tasks else ""
        lines.append([label, f"{mean(whole) / 1e6:.1f}", one])
    return markdown(["method", "model directory, MB", "file of one task, MB"], lines)


def show(name: str) -> dict[str, str]:
    """Return all tables of an experiment that has results."""
    rows = found(name)
    if not rows:
        return {}
    if name == "ablations":
        return {"changes": changes(name)}
    tables = {"main": main_table(name)}
    if name == "permuted-mnist":
        tables |= {"disk": disk(name)}
    if name == "cifar":
        places = {"layers": "clnp", "wide layers": "clnp, twice as wide"}
        tables |= {"per task": per_task(name)} | {place: layers(rows[label]) for place, label in places.items() if label in rows}
        tables |= {"margins": at_margins} if (at_margins := margins(rows)) else {}
        tables |= {"beside alone": beside} if (beside := beside_alone(name)) else {}
    if name == "mixed":
        tables |= {"orders": orders(name)}
    if name == "permuted-mnist-50":
        tables |= {"course": course(next(iter(rows.values()))[0])}
    return tables
