"""Directories that earlier versions wrote: read as they are, made into ledgers when something is added, never harmed on the way."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import clnp
import clnp.describe
import ledgers
from stored_networks import NETWORKS, TASKS, data, probe

STORED = Path(__file__).parent / "stored"
CONFIG = clnp.LearnConfig(epochs=1, finetune_epochs=0, rounds=1, batch_size=16, margin=0.5, pool=0.3)


@functools.cache
def _loaded(network):
    return clnp.Learner.load(STORED / network, NETWORKS[network]())


def loaded(network):
    return copy.deepcopy(_loaded(network))


def answers(learner, network):
    return {task: learner.predict(probe(network), task=task) for task in learner.tasks}


def learn(learner, network, name="fourth"):
    learner.learn(name, data(network, 4), data(network, 4), config=CONFIG)


@pytest.fixture
def directory(request, tmp_path):
    return Path(shutil.copytree(STORED / request.param, tmp_path / "model"))


EACH = pytest.mark.parametrize(("network", "directory"), [(name, name) for name in NETWORKS], indirect=["directory"])


@pytest.mark.parametrize("network", NETWORKS)
def test_a_directory_of_an_earlier_format_predicts_what_it_did(network):
    before = ledgers.snapshot(STORED / network)
    learner = loaded(network)
    assert learner.tasks == TASKS
    assert [learner._records[task].private for task in TASKS] == [False, True, False]
    assert [learner._records[task].head for task in TASKS] == ["multi", "multi", "single"]
    assert [learner._records[task].width for task in TASKS] == [0, 0, int(network == "widened")]
    for number, then in load_file(STORED / f"{network}.logits").items():
        torch.testing.assert_close(learner.predict(probe(network), task=TASKS[int(number)]), then, rtol=0, atol=1e-5)
    assert learner.receipt("first")[1].verdict == "no receipt"
    assert ledgers.snapshot(STORED / network) == before, "reading changes nothing"


@EACH
def test_it_becomes_a_ledger_when_a_task_is_added(network, directory):
    before, learner = ledgers.snapshot(directory), loaded(network)
    then = answers(learner, network)
    learn(learner, network)
    learner.save(directory)
    after = ledgers.snapshot(directory)
    assert json.loads(after["model.json"])["format"] == 3
    assert set(after) == {*before, "log.jsonl", "HEAD", "tasks/003.safetensors"}
    assert all(after[name] == content for name, content in before.items() if name != "model.json"), "old files are untouched"
    kinds = [record["kind"] for record in ledgers.records_of(directory)]
    widened = ["widened"] if network == "widened" else []
    assert kinds == ["created", "learned", "learned", *widened, "learned", "learned"]
    found = clnp.Learner.load(directory, NETWORKS[network]())
    assert found.tasks == (*TASKS, "fourth")
    now = answers(found, network)
    assert all(torch.equal(now[task], logits) for task, logits in then.items())
    assert torch.equal(now["fourth"], answers(learner, network)["fourth"])
    assert found.receipt("fourth")[1].verdict == "bitwise"
    found.undo("fourth", purge=True)
    found.save(directory)
    assert set(ledgers.snapshot(directory)) == {*before, "log.jsonl", "HEAD"}


FAST, IN_CI = {("plain", "torn")}, {("widened", "full"), ("two", "killed")}
CRASHES = [
    pytest.param(name, name, how, marks=[] if (name, how) in FAST else pytest.mark.thorough if (name, how) in IN_CI else pytest.mark.slow)
    for name in NETWORKS
    for how in ("full", "killed", "torn")
]


@pytest.mark.parametrize(("network", "directory", "how"), CRASHES, indirect=["directory"])
def test_a_crash_of_the_upgrade_leaves_a_directory_that_loads(network, directory, how, monkeypatch):
    before, learner = ledgers.snapshot(directory), loaded(network)
    wiring, graph = learner.wiring, learner._graph
    learn(learner, network)
    formats = set()
    for n_calls in ledgers.faults(monkeypatch, lambda: learner.save(directory), lambda: ledgers.restore(directory, before), how):  # noqa: B007
        formats.add(json.loads((directory / "model.json").read_text())["format"])
        assert clnp.store.read(directory, wiring, graph).allocation.tasks in (TASKS, (*TASKS, "fourth"))
        assert all((directory / name).read_bytes() == content for name, content in before.items() if name != "model.json")
        learner.save(directory)
        assert clnp.store.read(directory, wiring, graph).allocation.tasks == (*TASKS, "fourth")
        assert set(ledgers.snapshot(directory)) == {*before, "log.jsonl", "HEAD", "tasks/003.safetensors"}
    assert n_calls >= 15
    assert formats == {1 if network != "two" else 2, 3}


@EACH
def test_a_damaged_directory_of_an_earlier_format_is_refused(network, directory):
    for name, content in ledgers.snapshot(directory).items():
        for damage in (b"", content[:-1], content + b"\0", content[:-3] + bytes([content[-3] ^ 4]) + content[-2:], None):
            if name == "model.json" and damage is not None and damage.strip() == content.strip():
                continue  # its checksum is of what it says
            if damage is None:
                (directory / name).unlink()
            else:
                (directory / name).write_bytes(damage)
            with pytest.raises(clnp.StoreError, match=Path(name).name) as caught:
                clnp.describe.open_ledger(directory)
            assert isinstance(caught.value, clnp.DamageError) or damage is None
            (directory / name).write_bytes(content)
    clnp.describe.open_ledger(directory)


@EACH
@pytest.mark.parametrize(
    ("old", "new"), [('"seed": 3', '"seed": 2'), ('"private": true', '"private": false'), ('"single"', '"multi"'), ('"first"', '"First"')]
)
def test_a_changed_description_of_an_earlier_format_is_refused(network, directory, old, new):
    """Everything in it is as it could be: only its checksum tells."""
    text = (directory / "model.json").read_text()
    assert old in text
    (directory / "model.json").write_text(text.replace(old, new, 1))
    with pytest.raises(clnp.DamageError, match=r"model\.json.*checksum"):
        clnp.describe.open_ledger(directory)


def test_a_large_limit_allocates_nothing(tmp_path):
    """Sizes of earlier formats are not written down: their files are read with a limit that no memory has."""
    (tmp_path / "a").write_bytes(b"content")
    assert clnp.files.read_bounded(tmp_path / "a", 2**60, tmp_path) == b"content"
