"""The curves of the results, as SVG for the docs.

    python benchmarks/figures.py             every figure that there are results for, to docs/figures/
    python benchmarks/figures.py ablations   one of them

Needs matplotlib (`pip install '.[figures]'`). The same results give the same bytes, so that a test can hold the figures to the results.
"""

from __future__ import annotations

import argparse
import io
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator, PercentFormatter

from plans import ABLATIONS, EXPERIMENTS
from tables import Rows, Run, claimed_in_the_end, claimed_so_far, forecasts, found, full_after, fullest, mean, of_margins

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
STYLE: dict[str, Any] = {
    "svg.hashsalt": "clnp",
    "svg.fonttype": "path",  # the same everywhere, whatever fonts a reader has
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "figure.facecolor": "white",  # pages may be dark
}
# Okabe & Ito 2008: colours that the colour-blind tell apart. Ours is the strongest line.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442")
OURS = "#000000"
STYLES = ("-", "--", ":", "-.")


def average(runs: list[Run]) -> float:
    """Return the average accuracy, mean over seeds."""
    return mean([run["average_accuracy"] for run in runs])


def full(runs: list[Run]) -> float:
    """Return how full the fullest layer is, mean over seeds; 0 for methods that own no units."""
    return mean([fullest(run["capacity"]) or 0.0 for run in runs])


def so_far(runs: list[Run]) -> list[float]:
    """Return, after each task, the mean accuracy over the tasks learned by then: mean over seeds."""
    n_tasks = len(runs[0]["tasks"])
    return [mean([mean(run["accuracy_matrix"][after][: after + 1]) for run in runs]) for after in range(n_tasks)]


def methods(rows: Rows, title: str) -> Figure:
    """Draw the mean accuracy over the tasks learned so far, a line a method."""
    figure, axes = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    rows = dict(sorted(rows.items(), key=lambda row: -average(row[1])))
    ours_in = ((OURS, style) for style in STYLES)
    others_in = ((colour, style) for style in STYLES for colour in COLOURS)
    for label, runs in rows.items():
        ours = label.startswith("clnp")
        colour, style = next(ours_in if ours else others_in)
        values = so_far(runs)
        axes.plot(
            range(1, len(values) + 1), values, style, color=colour, lw=2.2 if ours else 1.3, label=f"{label} ({100 * average(runs):.2f})"
        )
    low = sorted(average(runs) for runs in rows.values())
    # What forgets most of what it learns, fine-tuning say, would flatten all others into one line.
    above = [value for below, value in pairwise(low[:-2]) if value - below > 0.1]
    if above:
        axes.set_ylim(bottom=above[-1] - 0.01, top=1.0 if low[-1] > 0.99 else low[-1] + 0.004)
    axes.set(xlabel="tasks learned", ylabel="mean test accuracy so far", title=textwrap.fill(title, 70))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="at the end, %")
    return figure


def long_run(run: Run) -> Figure:
    """Draw the course of a run until the network is full: accuracy, room, forecast."""
    figure, (above, middle, below) = plt.subplots(3, 1, figsize=(7.5, 7.0), sharex=True, layout="constrained")
    n_tasks = len(run["tasks"])
    after = range(1, n_tasks + 1)
    newest = [run["accuracy_matrix"][task][task] for task in range(n_tasks)]
    above.plot(after, newest, ".", color=COLOURS[0], label="the newest task")
    above.plot(after, so_far([run]), color=OURS, label="mean over all tasks so far")
    above.set(ylabel="test accuracy", title=EXPERIMENTS["permuted-mnist-50"].title)
    below.xaxis.get_major_locator().set_params(integer=True)
    claimed = claimed_so_far(run)
    for colour, (group, units) in zip(COLOURS, run["capacity"].items(), strict=False):
        read = [(units["claimed"][task] + units["reused"][task]) / units["n_units"] for task in run["tasks"]]
        middle.plot(after, claimed[group], color=colour, label=f"{group}: claimed")
        middle.plot(after, read, ":", color=colour, label=f"{group}: read by the task")
    middle.set(ylabel="share of the layer")
    full_at = full_after(run)
    end = full_at or len(after)
    told = [(n, n + more) for n, more in zip(after, forecasts(run), strict=True) if more is not None and n < end]
    below.plot(*zip(*told, strict=True), color=COLOURS[5], label="forecast: tasks until a layer is full")
    below.axhline(end, color=OURS, lw=1, label="what came" if full_at else "the run ended, no layer full")
    below.set_ylim(bottom=0)
    below.set(ylabel="tasks", xlabel="tasks learned")
    for axes in (above, middle):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    for axes in (above, middle, below):
        axes.legend(loc="best", fontsize=8)
    return figure


def two_scales(
    axes: Axes,
    x: list[float],
    rows: list[list[Run]],
    *,
    room: Callable[[list[Run]], float] = full,
    named: str = "fullest layer",
    logarithmic: bool = False,
) -> Axes:
    """Draw accuracy (left) and how full some layer is (right) over a setting's values; return the right scale."""
    other = axes.twinx()
    other.grid(visible=False)
    other.spines["right"].set_visible(True)
    axes.plot(x, [average(runs) for runs in rows], "o-", color=COLOURS[0])
    other.plot(x, [room(runs) for runs in rows], "s--", color=COLOURS[1])
    for scale, colour, decimals in ((axes, COLOURS[0], 1), (other, COLOURS[1], 0)):
        scale.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=decimals))
        scale.tick_params(axis="y", colors=colour)
    if logarithmic:
        axes.set_xscale("symlog", linthresh=min(value for value in x if value > 0))
        axes.set_xticks(x, [f"{value:g}" for value in x], rotation=60)
        axes.minorticks_off()
    axes.set_ylabel("average accuracy", color=COLOURS[0])
    other.set_ylabel(named, color=COLOURS[1])
    return other


def span(values: list[float]) -> tuple[float, float]:
    """Return limits that leave a little room around all values."""
    room = 0.06 * (max(values) - min(values)) + 1e-4
    return min(values) - room, max(values) + room


def margins(rows: Rows) -> Figure:
    """Draw what the margin costs and what it leaves: graceful forgetting."""
    figure, axes = plt.subplots(figsize=(6.0, 3.4), layout="constrained")
    points = of_margins(rows)
    last = list(next(iter(points.values()))[0]["capacity"])[-1]

    def claimed_of_last(runs: list[Run]) -> float:
        return mean([claimed_in_the_end(run["capacity"])[last] for run in runs])

    two_scales(axes, list(points), list(points.values()), room=claimed_of_last, named=f"claimed of '{last}'")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axes.set_xticks(list(points))
    axes.set(xlabel="margin", title="What a margin costs, and the room that it leaves")
    return figure


def ablations(rows: Rows) -> Figure:
    """Draw each ablation: settings with numbers as curves on the same two scales, the others as points."""
    base = rows["as it is"]
    numbers = {f"{setting} {value}" for setting, values in ABLATIONS.items() for value in values}
    others = dict(reversed([(label, runs) for label, runs in rows.items() if label not in numbers]))
    heights = (3.2, 4.3) if len(others) > 1 else (3.2,)  # there may be nothing yet but settings with numbers
    figure = plt.figure(figsize=(2.8 * len(ABLATIONS), sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), len(ABLATIONS), height_ratios=heights)
    settings = base[0]["config"]["learn"]
    drawn = [runs for label, runs in rows.items() if label in numbers or runs is base]
    for place, (setting, values) in enumerate(ABLATIONS.items()):
        axes = figure.add_subplot(grid[0, place])
        points = {settings[setting]: base} | {value: rows[f"{setting} {value}"] for value in values if f"{setting} {value}" in rows}
        x = sorted(points)
        right = two_scales(axes, x, [points[value] for value in x], logarithmic=setting in ("l1", "claim_weight"))
        axes.set_ylim(span([average(runs) for runs in drawn]))
        right.set_ylim(span([full(runs) for runs in drawn]))
        if place > 0:  # they share their scales
            axes.set_ylabel("")
            axes.tick_params(labelleft=False)
        if place < len(ABLATIONS) - 1:
            right.set_ylabel("")
            right.tick_params(labelright=False)
        axes.set(title=setting)
    if len(others) > 1:
        left, right = figure.add_subplot(grid[1, :-1]), figure.add_subplot(grid[1, -1])
        for axes, measure, colour in ((left, average, COLOURS[0]), (right, full, COLOURS[1])):
            axes.plot([measure(runs) for runs in others.values()], range(len(others)), "o", color=colour)
            axes.axvline(measure(base), color=OURS, lw=1)
            seeds = [measure([run]) for run in base]
            axes.axvspan(min(seeds), max(seeds), color=OURS, alpha=0.12, lw=0)  # what chance alone does
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
        left.set_yticks(range(len(others)), others)
        right.set_yticks(range(len(others)), [""] * len(others))
        left.set(xlabel="average accuracy", title="what has no number")
        right.set(xlabel="fullest layer")
    return figure


def drawn() -> dict[str, Callable[[], Figure]]:
    """Return the figures that there are results for: name -> what draws it."""
    rows = {name: found(name) for name in EXPERIMENTS}
    result: dict[str, Callable[[], Figure]] = {}
    for name in ("permuted-mnist", "permuted-mnist-100", "cifar"):
        if len(rows[name]) > 1:
            result[name] = lambda name=name: methods(_without_variants(rows[name]), EXPERIMENTS[name].title)
    if rows["permuted-mnist-50"]:
        result["permuted-mnist-50"] = lambda: long_run(next(iter(rows["permuted-mnist-50"].values()))[0])
    if sum("margin" in label for label in rows["cifar"]) > 1:
        result["cifar-margins"] = lambda: margins(rows["cifar"])
    if len(rows["ablations"]) > len(EXPERIMENTS["ablations"].entries) // 2:
        result["ablations"] = lambda: ablations(rows["ablations"])
    return result


def _without_variants(rows: Rows) -> Rows:
    return {label: runs for label, runs in rows.items() if "margin" not in label}


def svg(draw: Callable[[], Figure]) -> str:
    """Return a figure as SVG, without the date and the version that would make each drawing another one."""
    with mpl.rc_context(STYLE):
        figure, out = draw(), io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def main() -> None:
    """Draw what was asked for, or everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    figures = drawn()
    parser.add_argument("name", nargs="*", help=f"of {', '.join(figures) or '(there are no results)'}")
    names = parser.parse_args().name or list(figures)
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name not in figures:
            parser.error(f"cannot draw '{name}': expected one of {', '.join(figures)}")
        (FIGURES / f"{name}.svg").write_text(svg(figures[name]), encoding="utf-8")
        print(FIGURES / f"{name}.svg")


if __name__ == "__main__":
    main()
