"""Run the examples, keep what they print, and make of it what docs/examples.md shows.

    python benchmarks/run_examples.py --data DIR      run what is missing in benchmarks/results/example-*.json
    python benchmarks/reproduce.py --write            put it into the page

Each runs on one thread. Its times are ratios of two networks that take turns, so that other work beside it does no harm.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from clnp.experiment import versions
from clnp.files import write_atomic
from tables import RESULTS, markdown, spread

ROOT = Path(__file__).parent.parent
SEEDS = range(3)
RUNS: dict[str, tuple[str, ...]] = {
    **{
        f"{name}-seed{seed}": (f"examples/{name}.py", *(("--seed", str(seed)) if seed else ()))
        for name in ("vit", "llama_text")
        for seed in SEEDS
    },
    "vit-data-seed0": ("examples/vit.py", "--data", "DIR"),
}
"""name -> what is run; DIR is the folder of data."""
ACCURACY = re.compile(r"^   (\S.*\S) +(\d+\.\d+)%   \(chance")


def kept(name: str) -> Path:
    """Return where the output of an example is kept."""
    return RESULTS / f"example-{name}.json"


def lines(name: str) -> list[str]:
    """Return what an example printed."""
    return json.loads(kept(name).read_text(encoding="utf-8"))["lines"]


def end(name: str) -> str:
    """Return what an example printed after its last task, as a block of the page."""
    printed = lines(name)
    last = max(number for number, line in enumerate(printed) if re.match(r"\d+\. learned", line))
    return "\n".join(["```", *printed[last:], "```"])


def accuracies(name: str) -> dict[str, float]:
    """Return the test accuracy of each task after the last one.

    Raises:
        ValueError: the example did not end with the same bits.
    """
    printed = end(name).splitlines()
    if "forgetting: 0.0; logits of all earlier tasks bit-identical: True" not in printed:
        raise ValueError(f"{kept(name)} does not say that nothing was forgotten: run the example again")
    return {found[1]: float(found[2]) / 100 for line in printed if (found := ACCURACY.match(line))}


def over_seeds(name: str) -> str:
    """Return the table of an example's test accuracies over all seeds."""
    found = [accuracies(f"{name}-seed{seed}") for seed in SEEDS]
    rows = [[task, spread([one[task] for one in found])] for task in found[0]]
    return markdown(["task", f"test accuracy in %, {len(found)} seeds"], rows)


def show(key: str) -> str:
    """Return what stands on the page: the end of a run, or the table of an example over its seeds."""
    return end(key) if key in RUNS else over_seeds(key)


def main() -> int:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="what needs a folder of data is left out without it")
    options = parser.parse_args()
    for name, arguments in RUNS.items():
        if kept(name).exists() or ("DIR" in arguments and options.data is None):
            continue
        given = [str(options.data) if argument == "DIR" else argument for argument in arguments]
        done = subprocess.run(
            [sys.executable, *given], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            print(f"{name} failed:\n{done.stderr}", file=sys.stderr)
            return 1
        result: dict[str, Any] = {
            "command": " ".join(["OMP_NUM_THREADS=1 python", *arguments]),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, one thread; other work beside it",
            "versions": versions(),
            "lines": done.stdout.splitlines(),
        }
        write_atomic(kept(name), json.dumps(result, indent=1) + "\n")
        print(f"{name}: {accuracies(name)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
