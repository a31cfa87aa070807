"""When, where, how and with what a measurement was made: what stands beside every number that is kept."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from clnp.experiment import versions

ROOT = Path(__file__).parent.parent
PEERS = ["avalanche-lib", "clarena"]


def stamp(n_threads: int | None, peers: str | None = None) -> dict[str, Any]:
    """Return the date, the command, the commit, the versions and the machine. To be taken first: the tree may be another one afterwards.

    Args:
        n_threads: of torch, in what is measured; None is as many as it takes.
        peers: the python of the environment of the peers, if they take part.
    """
    of_peers = "import json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in %r if any(m.distributions(name=n))}))"
    asked = peers and subprocess.run([peers, "-c", of_peers % (PEERS,)], capture_output=True, text=True, check=True).stdout
    found = {**versions(), "threads": n_threads, "platform": platform.platform(), "cores": os.cpu_count(), "processor": processor()}
    command = shlex.join(["python", *sys.argv])
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": command,
        "commit": commit(),
        **found,
        **({"peers": json.loads(asked)} if asked else {}),
    }


def processor() -> str:
    """Return the name of the processor, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def commit() -> str | None:
    """Return the commit of this working tree, with "-dirty" behind it where other files than results differ; None where it is not one of git."""
    git = partial(subprocess.run, capture_output=True, text=True, check=False)
    described = git(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]).stdout.strip()
    if not described:
        return None
    changed = git(["git", "-C", str(ROOT), "diff", "--quiet", "HEAD", "--", ".", ":(exclude)benchmarks/results"]).returncode
    return described + "-dirty" * bool(changed)
