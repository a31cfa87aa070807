"""The curves of the docs are those of the results that are kept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from typing import TYPE_CHECKING

import figures
import plans
import small

if TYPE_CHECKING:
    import tables

PAGE = (Path(__file__).parent.parent / "docs" / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", figures.drawn())
def test_a_figure_is_that_of_the_results_and_stands_on_the_page(name):
    assert (figures.FIGURES / f"{name}.svg").read_text(encoding="utf-8") == figures.svg(figures.drawn()[name]), (
        "run: python benchmarks/figures.py"
    )
    assert f"(figures/{name}.svg)" in PAGE


def run(average: float, free: int = 5, *, margin: float = 0.0, seed: int = 0) -> tables.Run:
    matrix = [[average, None], [average, average]]
    units = {"n_units": 10, "free": free, "claimed": {"a": 3, "b": 7 - free}, "reused": {"a": 0, "b": 2}}
    return {
        "tasks": ["a", "b"],
        "seed": seed,
        "accuracy_matrix": matrix,
        "average_accuracy": average,
        "capacity": {"early": units, "late": units},
        "config": {"learn": {"margin": margin, "l1": 5e-5, "pool": 0.2, "claim_weight": 0.1}},
        "cpu_seconds_per_task": [1.0, 1.0],
    }


def every_ablation() -> tables.Rows:
    return {entry.label: [run(0.9 + 0.001 * place)] for place, entry in enumerate(plans.EXPERIMENTS["ablations"].entries)}


DRAWINGS = {
    "methods": lambda: figures.methods({"clnp": [run(0.9), run(0.92, seed=1)], "ewc": [run(0.8)]}, "title"),
    "long run": lambda: figures.long_run(run(0.9)),
    "margins": lambda: figures.margins({"clnp": [run(0.9)], "clnp, margin 1 %": [run(0.8, margin=0.01)]}),
    "ablations": lambda: figures.ablations(every_ablation()),
}


@pytest.mark.parametrize("draw", small.sampled(DRAWINGS.values(), 2), ids=DRAWINGS)
def test_a_figure_is_the_same_bytes_each_time(draw):
    first = figures.svg(draw)
    assert first.startswith("<?xml")
    assert first == figures.svg(draw)


def test_curves_are_means_over_seeds_of_the_tasks_so_far():
    one = {**run(0.9), "accuracy_matrix": [[0.5, None], [0.6, 0.8]]}
    other = {**run(0.9), "accuracy_matrix": [[0.7, None], [0.8, 1.0]]}
    assert figures.so_far([one, other]) == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize(
    ("averages", "bottom"),
    [
        ([0.98, 0.97, 0.95, 0.9, 0.53, 0.48], 0.89),  # two that forget
        ([0.98, 0.97, 0.95, 0.94, 0.48], 0.93),
        ([0.98, 0.97, 0.96, 0.95], None),
        ([0.96, 0.62], None),  # both are what the figure is about
    ],
)
def test_what_forgets_most_does_not_flatten_the_other_lines(averages, bottom):
    axes = figures.methods({f"row {place}": [run(average)] for place, average in enumerate(averages)}, "title").axes[0]
    if bottom is None:
        assert axes.get_ylim()[0] < min(averages)
    else:
        assert axes.get_ylim()[0] == pytest.approx(bottom)
        assert axes.get_ylim()[1] > max(averages)
