"""The examples run from the command line to the last table, and forget nothing; in small and short, so what they learn does not matter."""

from __future__ import annotations

import importlib
import re
from functools import partial
from pathlib import Path

import pytest
import torch

from small import sampled

# Which examples the core can learn already; one that is missing here is skipped.
CORE_READY = {"vit", "llama_text"}
EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = {
    "vit": ("ViT", {"width": 32, "depth": 1, "heads": 4, "hidden": 32}, ["--limit", "160"]),
    "llama_text": ("Llama", {"width": 32, "depth": 1, "heads": 8, "kv_heads": 4, "hidden": 32}, ["--limit", "160"]),
}


@pytest.fixture
def example(monkeypatch):
    """Import an example as running it does; whatever it sets in torch is undone."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        yield importlib.import_module
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", sampled(SMALL, 2))
def test_an_example_learns_three_tasks_and_forgets_nothing(name, example, monkeypatch, capsys):
    if name not in CORE_READY:
        pytest.skip(f"the core cannot train examples/{name}.py yet")
    module = example(name)
    network, sizes, arguments = SMALL[name]
    monkeypatch.setattr(module, network, partial(getattr(module, network), **sizes))
    module.main([*arguments, "--epochs", "1", "--rounds", "2"])
    output = capsys.readouterr().out
    assert "\nforgetting: 0.0; logits of all earlier tasks bit-identical: True\n" in output
    # After task n the accuracies of n tasks, and each is printed the same ever after.
    lines = re.findall(r"^   (\S.*\S) +(\d+\.\d+)%   \(chance", output, re.MULTILINE)
    first, second, third = lines[:1], lines[1:3], lines[3:]
    assert len({task for task, _ in third}) == len(third) == 3
    assert first == third[:1]
    assert second == third[:2]
    # A task's own network is a part of the whole one; times are not compared, the machine may be busy.
    shares = [int(share) for share in re.findall(r"\( *(\d+)%\) +[\d,]+ \( *\d+%\) +[\d.]+ \( *\d+%\)", output)]
    assert len(shares) == 3
    assert all(share < 100 for share in shares)
    # The bottleneck comes first.
    room = [int(free) / int(n) for free, n in re.findall(r"(\d+) of (\d+) units free", output)]
    assert len(room) == 3
    assert room == sorted(room)


@pytest.mark.thorough
def test_the_text_tasks_share_no_text_between_their_parts(example):
    text = example("llama_text")
    for task in text.tasks_of(1000, 0):
        parts = [{tuple(row) for row in x.tolist()} for x, _ in (task.train, task.validation, task.test)]
        assert [len(part) for part in parts] == [len(task.train[0]), len(task.validation[0]), len(task.test[0])]
        assert len(set.union(*parts)) == sum(map(len, parts))
        for x, y in (task.train, task.validation, task.test):
            assert x.shape[1] == text.LENGTH
            assert 0 <= int(x.min()) < int(x.max()) < 128
            counts = y.bincount(minlength=task.n_classes)
            assert int(counts.min()) == int(counts.max()) > 0
