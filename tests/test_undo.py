"""A task is taken back exactly: its units are free again, no other predictor moves by a bit, here, on disk and after it is read."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch

import clnp
import clnp.describe
import clnp.persistence
import clnp.store
import clnp.undoing
import ledgers
import promises
import small
from clnp.allocation import FREE
from clnp.patches import make_patch
from ledgers import empty, learn, logits

sys.path.insert(0, str(Path(__file__).parent / "zoo"))  # the zoo's networks are modules there

from zoo_networks import ZOO, network

TASKS = ("one", "two", "three")
# Small networks here, and of the zoo those that tie units, norm over them, or read several inputs.
NETWORKS = ["mlp", "vgg", "zoo:norms", "zoo:two-inputs"]
SLOW = ["resnet", "zoo:vit-registers", "zoo:shufflenet", "zoo:llama-gqa", "zoo:gru", "zoo:t5", "zoo:reused"]
SLOWER = [pytest.param(name, marks=pytest.mark.slow) for name in SLOW]
HEADS = ["multi", "single"]


def zoo(name):
    wanted = name.removeprefix("zoo:")
    return next(entry for entry in ZOO.values() if entry.name == wanted)


@functools.cache
def captured(name):
    if not name.startswith("zoo:"):
        return clnp.Learner(small.network(name), torch.zeros(2, *small.SHAPE))
    entry = zoo(name)
    return clnp.Learner(network(entry), entry.example(2), head=entry.head)


def examples(name, number, n=60):
    """Inputs and labels of one task."""
    if not name.startswith("zoo:"):
        return small.task(number, n)
    x = zoo(name).example(n + number)
    first = x[0] if isinstance(x, tuple) else x
    flat = first.flatten(1).float()
    score = flat @ torch.randn(flat.shape[1], generator=torch.Generator().manual_seed(number))
    return x, (score > score.median()).long()  # what can be learned


def teach(learner, name, task, number, **settings):
    data = examples(name, number)
    learner.learn(task, data, data, config=clnp.LearnConfig(**{**ledgers.SETTINGS, "epochs": 1, "margin": 0.0, "pool": 0.3, **settings}))


@functools.cache
def _learned(name, head):
    learner = copy.deepcopy(captured(name))
    for number, task in enumerate(TASKS):
        teach(learner, name, task, number, head=head, private=task == "two", reuse=task != "two")  # it has units of its own
    return learner


def learned(name, head="multi"):
    return copy.deepcopy(_learned(name, head))


def answers(learner, name):
    x = examples(name, 7, 20)[0]
    return {task: learner.predict(x, task=task) for task in learner.tasks}


def weights_of(learner):
    """Every tensor of every predictor, and the claimed rows in the full-width network."""
    found = {task: dict(learner.predictor(task).state_dict()) for task in learner.tasks}
    for task in learner.tasks:
        for key in learner.wiring.parameters:
            found[task][f"full {key}"] = rows_of(learner, key, learner.allocation.number(task))
    return found


def rows_of(learner, key, number):
    """The rows of a parameter whose units a task owns."""
    labels = learner.wiring.parameters[key]
    owner = torch.cat([learner.wiring.join(learner.allocation.owner), torch.tensor([FREE - 1])])
    return labels.matrix(learner._state[key])[owner[labels.rows] == number].clone()


def load(directory, name):
    found = copy.deepcopy(captured(name))
    clnp.persistence.load_(found, directory, *description(directory))
    return found


def description(directory):
    ledger, found = clnp.describe.open_ledger(directory)
    return found, ledger.widened


FAST = [(name, "multi") for name in NETWORKS] + [("mlp", "single"), ("zoo:two-inputs", "single")]
EACH_WITH_HEADS = [
    *small.sampled(FAST),
    *(pytest.param(name, head, marks=pytest.mark.slow) for name in [*NETWORKS, *SLOW] for head in HEADS if (name, head) not in FAST),
]


@pytest.mark.parametrize(("name", "head"), EACH_WITH_HEADS)
def test_a_private_task_in_the_middle_is_taken_back_and_nothing_else_moves(name, head, tmp_path):
    learner = learned(name, head)
    learner.save(tmp_path)
    before, free = answers(learner, name), {group: learner.allocation.n_free(group) for group in learner.allocation.owner}
    mine = {group: learner.allocation.n_claimed("two", group) for group in free}
    weights = {task: weights_of(learner)[task] for task in ("one", "three")}
    assert sum(mine.values())
    learner.undo("two")
    assert learner.tasks == ("one", "three")
    assert {group: learner.allocation.n_free(group) for group in free} == {group: free[group] + mine[group] for group in free}
    promises.assert_same({"one": before["one"], "three": before["three"]}, answers(learner, name))
    promises.assert_same(weights, weights_of(learner))
    learner.save(tmp_path)
    promises.assert_same({"one": before["one"], "three": before["three"]}, answers(learner, name))
    found = load(tmp_path, name)
    assert found.tasks == ("one", "three")
    promises.assert_same({"one": before["one"], "three": before["three"]}, answers(found, name))
    promises.assert_same(weights, weights_of(found))
    teach(found, name, "four", 4, head=head)
    teach(learner, name, "four", 4, head=head)
    promises.assert_same(answers(learner, name), answers(found, name))
    promises.assert_same({"one": before["one"], "three": before["three"]}, answers(found, name))
    with pytest.raises(clnp.TaskError, match="no task 'two'"):
        found.predict(examples(name, 7, 20)[0], task="two")


@pytest.mark.parametrize("name", [*small.sampled(NETWORKS, 2), *SLOWER])
def test_what_is_learned_after_the_last_was_undone_is_what_it_would_have_been(name, tmp_path):
    learner = learned(name)
    for task in ("three", "two"):
        learner.undo(task)
    teach(learner, name, "new", 5)
    never = copy.deepcopy(captured(name))
    teach(never, name, "one", 0)
    teach(never, name, "new", 5)
    assert learner.tasks == never.tasks
    promises.assert_same(answers(never, name), answers(learner, name))
    promises.assert_same(weights_of(never), weights_of(learner))


def test_rows_of_an_undone_task_are_gone_from_memory():
    learner = learned("mlp")
    owner = learner.wiring.join(learner.allocation.owner)
    mine = torch.cat([owner == learner.allocation.number("two"), torch.tensor([False])])
    learner.undo("two", purge=True)
    for key, labels in learner.wiring.parameters.items():
        assert not learner._state[key][mine[labels.rows]].any(), f"free rows of {key} still tell of the task"


def test_undo_is_refused_while_later_tasks_read_the_units():
    learner = empty()
    learn(learner, "base", 0)
    learn(learner, "reads it", 1)
    learn(learner, "so does this", 2)
    before, reading = logits(learner), learner.allocation.readers("base")
    assert reading, "the test must have something to check"
    with pytest.raises(clnp.TaskError, match=r"cannot undo task 'base'.*Undo those first") as caught:
        learner.undo("base")
    assert all(task in str(caught.value) for task in reading)
    assert learner.tasks == ("base", "reads it", "so does this")
    promises.assert_same(before, logits(learner))
    for task in ("so does this", "reads it", "base"):
        learner.undo(task)
    assert learner.tasks == ()
    assert all(learner.allocation.n_free(group) == n for group, n in learner.allocation.n_units.items())


@pytest.mark.parametrize("purge", [False, True])
def test_a_file_is_deleted_when_and_only_when_it_is_purged(purge, tmp_path):
    learner = learned("mlp")
    learner.save(tmp_path)
    before = ledgers.snapshot(tmp_path)
    learner.undo("two", purge=purge)
    assert ledgers.snapshot(tmp_path) == before, "nothing happens before it is saved"
    learner.save(tmp_path)
    after = ledgers.snapshot(tmp_path)
    assert set(before) - set(after) == ({"tasks/001.safetensors"} if purge else set())
    assert {name for name in after if after[name] != before[name]} == {"log.jsonl", "HEAD"}
    last = ledgers.records_of(tmp_path)[-1]
    assert (last["kind"], last["record"], last["task"], last["purged"]) == ("undone", 2, "two", purge)
    assert load(tmp_path, "mlp").tasks == ("one", "three")
    learner.save(tmp_path)
    assert ledgers.snapshot(tmp_path) == after, "and once"


def test_an_undone_task_can_be_purged_later(tmp_path):
    learner = learned("mlp")
    learner.save(tmp_path)
    learner.undo("two")
    learner.save(tmp_path)
    found = load(tmp_path, "mlp")
    with pytest.raises(clnp.TaskError):
        found.undo("two", purge=True)
    clnp.undoing.undo(tmp_path, "two", purge=True)
    assert not (tmp_path / "tasks" / "001.safetensors").exists()
    assert [record["purged"] for record in ledgers.records_of(tmp_path) if record["kind"] == "undone"] == [False, True]
    assert load(tmp_path, "mlp").tasks == ("one", "three")
    learner.save(tmp_path)
    assert load(tmp_path, "mlp").tasks == ("one", "three")


@pytest.mark.parametrize("purge", [False, True])
def test_an_undone_task_is_learned_again(purge, tmp_path):
    learner = learned("mlp")
    learner.save(tmp_path)
    before = answers(learner, "mlp")
    learner.undo("three", purge=purge)
    learner.undo("two", purge=purge)
    for order in (("two", 1, True), ("three", 2, False)):
        teach(learner, "mlp", order[0], order[1], private=order[2], reuse=not order[2])
    promises.assert_same(before, answers(learner, "mlp"))
    learner.save(tmp_path)
    found = load(tmp_path, "mlp")
    assert found.tasks == TASKS
    promises.assert_same(before, answers(found, "mlp"))


def test_another_task_of_an_undone_ones_name_is_another(tmp_path):
    learner = learned("mlp")
    learner.save(tmp_path)
    before = answers(learner, "mlp")
    learner.undo("three")
    teach(learner, "mlp", "three", 6)
    after = answers(learner, "mlp")
    assert not torch.equal(before.pop("three"), after["three"])
    promises.assert_same(before, after)
    learner.save(tmp_path)
    promises.assert_same(after, answers(load(tmp_path, "mlp"), "mlp"))


@pytest.mark.parametrize("purge", [False, True])
def test_the_same_task_learned_again_after_its_tombstone_is_there(purge, tmp_path):
    learner = learned("mlp")
    learner.save(tmp_path)
    before = answers(learner, "mlp")
    learner.undo("three", purge=purge)
    learner.save(tmp_path)
    teach(learner, "mlp", "three", 2)
    promises.assert_same(before, answers(learner, "mlp"))
    learner.save(tmp_path)
    assert [record["file"] for record in ledgers.records_of(tmp_path) if record["kind"] == "learned"] == [0, 1, 2, 3]
    found = load(tmp_path, "mlp")
    promises.assert_same(before, answers(found, "mlp"))
    found.save(tmp_path)
    for again in (learner, found):
        again.undo("three")
        again.save(tmp_path)
        assert load(tmp_path, "mlp").tasks == ("one", "two")


def test_a_learner_that_still_has_an_undone_task_is_refused(tmp_path):
    learner = learned("mlp")
    learner.save(tmp_path)
    stale = load(tmp_path, "mlp")
    for task in ("three", "two"):
        learner.undo(task)
        learner.save(tmp_path)
        before = ledgers.snapshot(tmp_path)
        with pytest.raises(clnp.StoreError, match=f"it holds another learner, in which task '{task}' was undone|is not the task"):
            stale.save(tmp_path)
        assert ledgers.snapshot(tmp_path) == before
    stale = learned("mlp")
    stale.undo("three")
    with pytest.raises(clnp.StoreError, match="in which task 'two' was undone"):
        stale.save(tmp_path)


def test_what_was_undone_leaves_no_trace_in_a_new_directory(tmp_path):
    learner = learned("mlp")
    learner.save(tmp_path / "old")
    learner.undo("two", purge=True)
    learner.save(tmp_path / "new")
    records = ledgers.records_of(tmp_path / "new")
    assert [(record["kind"], record.get("task")) for record in records] == [("created", None), ("learned", "one"), ("learned", "three")]
    assert [record["file"] for record in records[1:]] == [0, 1]
    assert b"two" not in b"".join(ledgers.snapshot(tmp_path / "new").values())
    promises.assert_same(answers(learner, "mlp"), answers(load(tmp_path / "new", "mlp"), "mlp"))
    learner.save(tmp_path / "old")
    promises.assert_same(answers(learner, "mlp"), answers(load(tmp_path / "old", "mlp"), "mlp"))


def test_a_task_is_undone_once(tmp_path):
    learner = learned("mlp")
    learner.undo("two")
    for wrong in ("two", "never"):
        with pytest.raises(clnp.TaskError, match=f"no task '{wrong}' is learned: expected one of 'one', 'three'"):
            learner.undo(wrong)
    learner.save(tmp_path)
    assert load(tmp_path, "mlp").tasks == ("one", "three")


def test_a_widened_network_takes_tasks_back(tmp_path):
    learner = empty()
    learn(learner, "a", 0, private=True)
    learner = clnp.widen(learner, {"2": 5})
    learn(learner, "b", 1, private=True)
    learner.save(tmp_path)
    before = logits(learner)
    learner.undo("a", purge=True)
    learner.save(tmp_path)
    learner = clnp.widen(learner, {"5": 2})
    learn(learner, "c", 2)
    learner.save(tmp_path)
    promises.assert_same({"b": before["b"]}, logits(learner))
    found = clnp.Learner.load(tmp_path, small.network("mlp", 5))
    assert found.tasks == ("b", "c")
    promises.assert_same(logits(learner), logits(found))
    kinds = [record["kind"] for record in ledgers.records_of(tmp_path)]
    assert kinds == ["created", "learned", "widened", "learned", "undone", "widened", "learned"]


@pytest.mark.parametrize(("how", "purge"), [("full", True), ("killed", True), ("torn", True), ("killed", False)])
def test_a_crash_at_every_call_of_an_undo_is_made_good_by_the_next(how, purge, tmp_path, monkeypatch):
    learner = learned("mlp")
    learner.save(tmp_path)
    wiring, before = learner.wiring, ledgers.snapshot(tmp_path)
    learner.undo("two", purge=purge)
    seen = set()
    for n_calls in ledgers.faults(monkeypatch, lambda: learner.save(tmp_path), lambda: ledgers.restore(tmp_path, before), how):  # noqa: B007
        seen.add(clnp.store.read(tmp_path, wiring).allocation.tasks)
        file = tmp_path / "tasks" / "001.safetensors"
        assert file.exists() or ledgers.records_of(tmp_path)[-1]["kind"] == "undone", "no file goes before its tombstone"
        learner.save(tmp_path)
        assert clnp.store.read(tmp_path, wiring).allocation.tasks == ("one", "three")
        assert file.exists() != purge
        assert [record["kind"] for record in ledgers.records_of(tmp_path)].count("undone") == 1
    assert n_calls >= (8 if purge else 6)
    assert seen == {TASKS, ("one", "three")}


def test_a_learner_read_beside_goes_on_where_a_crash_of_an_undo_left_it(tmp_path, monkeypatch):
    """Another process reads what a crash left, whichever of the two states it is, and learns on."""
    learner = learned("mlp")
    learner.save(tmp_path)
    before = ledgers.snapshot(tmp_path)
    learner.undo("three", purge=True)
    for stop in itertools.islice(
        ledgers.faults(monkeypatch, lambda: learner.save(tmp_path), lambda: ledgers.restore(tmp_path, before), "killed"), 0, None, 3
    ):
        found = load(tmp_path, "mlp")
        assert found.tasks in (TASKS, TASKS[:2]), stop
        teach(found, "mlp", "four", 4, epochs=1)
        found.save(tmp_path)
        assert load(tmp_path, "mlp").tasks == found.tasks
        assert json.loads((tmp_path / "HEAD").read_text())["record"] == len(ledgers.records_of(tmp_path)) - 1


def test_an_interrupted_undo_leaves_the_task_whole(monkeypatch):
    """Wiped rows of a task that is still there would be committed by the next save."""
    name = "mlp"
    learner = learned(name)
    before = answers(learner, name)

    def interrupted(*args):
        forget(*args)
        raise KeyboardInterrupt

    forget = clnp.persistence.forget_
    monkeypatch.setattr(clnp.persistence, "forget_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learner.undo("two")
    after = answers(copy.deepcopy(learner), name)
    assert all(torch.equal(after[task], before[task]) for task in TASKS)


def test_a_name_is_the_same_however_it_is_composed(tmp_path):
    """As macOS types it: a letter, and the accent after it."""
    learner = copy.deepcopy(captured("mlp"))
    teach(learner, "mlp", "caf\u00e9", 0)
    learner.save(tmp_path / "model")
    assert make_patch(tmp_path / "model", "cafe\u0301")
    assert clnp.undoing.undo(tmp_path / "model", "cafe\u0301").task == "caf\u00e9"
