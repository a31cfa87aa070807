"""The examples run from the command line to the last table, and forget nothing; tiny settings, so what they learn does not matter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Which examples the core can learn already; an example that is missing here is skipped.
CORE_READY = {"vit"}
EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = {"vit": ["--epochs", "1", "--limit", "48"], "llama_text": ["--epochs", "1", "--limit", "160"]}


@pytest.mark.parametrize("name", TINY)
def test_an_example_learns_three_tasks_and_forgets_nothing(name):
    if name not in CORE_READY:
        pytest.skip(f"the core cannot train examples/{name}.py yet")
    command = [sys.executable, EXAMPLES / f"{name}.py", *TINY[name], "--rounds", "2"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    assert "\nforgetting: 0.0; logits of all earlier tasks bit-identical: True\n" in run.stdout
    # After task n, the accuracy of n tasks; and each earlier accuracy is printed the same every time.
    accuracies = re.findall(r"^   (\S.*\S) +(\d+\.\d+)%   \(chance", run.stdout, re.MULTILINE)
    names = [task for task, _ in accuracies]
    assert len(set(names)) == 3
    assert [names[:1], names[1:3], names[3:]] == [names[3:4], names[3:5], names[3:6]]
    assert len(set(accuracies)) == 3
    # A task's own network is a part of the whole one.
    shares = [int(share) for share in re.findall(r"\( *(\d+)%\) +[\d,]+ \( *\d+%\) +[\d.]+ \( *\d+%\)", run.stdout)]
    assert len(shares) == 3
    assert all(0 < share < 100 for share in shares)
    # The bottleneck comes first.
    room = [int(free) / int(n) for free, n in re.findall(r"(\d+) of (\d+) units free", run.stdout)]
    assert len(room) >= 5
    assert room == sorted(room)


def test_the_text_tasks_share_no_text_between_their_parts(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import llama_text

    for task in llama_text.tasks_of(1000, 0):
        parts = [{tuple(row) for row in x.tolist()} for x, _ in (task.train, task.validation, task.test)]
        assert [len(part) for part in parts] == [len(task.train[0]), len(task.validation[0]), len(task.test[0])]
        assert len(set.union(*parts)) == sum(map(len, parts))
        for x, y in (task.train, task.validation, task.test):
            assert x.shape[1] == llama_text.LENGTH
            assert int(x.min()) >= 0
            assert int(x.max()) < 128
            counts = y.bincount(minlength=task.n_classes)
            assert int(counts.min()) == int(counts.max()) > 0
