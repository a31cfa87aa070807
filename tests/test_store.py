"""A learner on disk: bit for bit, appended to and never rewritten, verified when it is read."""

from __future__ import annotations

import copy
import os
import pickle
import random
import shutil
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import clnp
import clnp.files
import clnp.store
import ledgers
import small
from ledgers import X, empty, learn
from test_wiring import Net


def learned(network, tasks, seed=0):
    learner = empty(network, seed)  # captured once
    for number, (name, config) in enumerate(tasks.items()):
        learn(learner, name, number, **config)
    return learner


def load(directory, network="mlp", seed=77):
    return clnp.Learner.load(directory, small.network(network, seed))


def read(directory):
    """Verify an mlp's directory as `load` does, without capturing the network anew."""
    return clnp.store.read(directory, ledgers._empty("mlp", 0).wiring)


@pytest.fixture(scope="module")
def original():
    return learned("mlp", {"one": {}, "two": {"private": True}, "three": {"head": "single"}})


@pytest.fixture(scope="module")
def directory(original, tmp_path_factory):
    original.save(path := tmp_path_factory.mktemp("store") / "model")
    return path


@pytest.fixture
def saved(directory):
    """A directory that may be damaged: it is made whole again afterwards."""
    files = ledgers.snapshot(directory)
    yield directory
    ledgers.restore(directory, files)


def assert_same(one, two):
    assert one.tasks == two.tasks
    assert one.seed == two.seed
    for group in one.allocation.owner:
        assert torch.equal(one.allocation.owner[group], two.allocation.owner[group])
    for task in one.tasks:
        a, b = one._records[task], two._records[task]
        assert (a.n_classes, a.head, a.private) == (b.n_classes, b.head, b.private)
        assert torch.equal(a.weight, b.weight)
        assert torch.equal(a.bias, b.bias)
        assert all(torch.equal(one.allocation.needed[task][group], two.allocation.needed[task][group]) for group in one.allocation.owner)
        assert torch.equal(one.predict(X, task=task), two.predict(X, task=task))
        tensors = two.predictor(task).state_dict()
        assert all(torch.equal(value, tensors[key]) for key, value in one.predictor(task).state_dict().items())


HISTORIES = {
    "mlp": {"a": {}, "b": {"private": True}, "c": {"reuse": False}, "d": {}},
    "vgg": {"a": {"head": "single"}, "b": {"head": "single", "private": True}, "c": {}},
    "resnet": {"a": {}, "b": {"head": "single"}},
}


@pytest.mark.parametrize("network", small.RESNET_IN_CI)
def test_what_is_loaded_is_what_was_saved_and_learns_on_alike(network, tmp_path):
    learner = learned(network, HISTORIES[network], seed=5)
    before = copy.deepcopy(learner._state)
    learner.save(str(tmp_path / "deep" / "model"))
    assert all(torch.equal(before[key], value) for key, value in learner._state.items())
    found = load(tmp_path / "deep" / "model", network)
    assert_same(learner, found)
    assert found.capacity() == learner.capacity()
    one, two = learn(learner, "next", 7, head="single"), learn(found, "next", 7, head="single")
    assert (one.claimed, one.reused, one.accuracy) == (two.claimed, two.reused, two.accuracy)
    assert_same(learner, found)


def test_a_learner_without_tasks_can_be_saved(tmp_path):
    learned("mlp", {}, seed=3).save(tmp_path)
    found = load(tmp_path)
    assert (found.tasks, found.seed) == ((), 3)
    assert learn(found, "first").task == "first"


def test_the_head_is_remembered(tmp_path):
    model = nn.Sequential(small.network("mlp"), nn.Linear(16, 3))
    learner = clnp.Learner(model, torch.zeros(2, *small.SHAPE), head="1")
    learn(learner, "a")
    learner.save(tmp_path)
    assert_same(learner, clnp.Learner.load(tmp_path, nn.Sequential(small.network("mlp", 8), nn.Linear(16, 3))))


def stamps(directory):
    return {
        str(path.relative_to(directory)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def test_committed_files_are_written_once(tmp_path):
    learner = learned("vgg", {"a": {}})
    learner.save(tmp_path)
    before = stamps(tmp_path)
    assert set(before) == {"model.json", "constants.safetensors", "log.jsonl", "HEAD", "tasks/000.safetensors"}
    learn(learner, "b", 1)
    learner.save(tmp_path)
    learn(learner, "c", 2)
    learner.save(tmp_path)
    after = stamps(tmp_path)
    assert set(after) == {*before, "tasks/001.safetensors", "tasks/002.safetensors"}, "and nothing else is left"
    assert all(after[file] == before[file] for file in before.keys() - {"log.jsonl", "HEAD"})
    assert after["log.jsonl"][0] == before["log.jsonl"][0], "the log is the same file"
    assert after["log.jsonl"][2].startswith(before["log.jsonl"][2]), "and is only added to"
    found = load(tmp_path, "vgg")
    learn(found, "d", 3)
    found.save(tmp_path)
    assert all(stamps(tmp_path)[f"tasks/00{n}.safetensors"] == after[f"tasks/00{n}.safetensors"] for n in range(3))
    assert load(tmp_path, "vgg").tasks == ("a", "b", "c", "d")
    found.save(tmp_path)
    last = stamps(tmp_path)
    found.save(tmp_path)
    assert stamps(tmp_path) == last, "what is there is not written again"


def test_a_task_file_holds_the_claimed_rows_alone(original, saved):
    for number, task in enumerate(original.tasks):
        tensors = load_file(saved / "tasks" / f"00{number}.safetensors")
        owner, needed = original.allocation.owner, original.allocation.needed[task]
        mine = {group: owner[group] == number for group in owner}
        assert torch.equal(tensors["rows/2.weight"], original._state["2.weight"][mine["2"]])
        assert torch.equal(tensors["rows/5.weight"], original._state["5.weight"][mine["5"]][:, needed["2"]])
        assert tensors["claimed/5"].tolist() == mine["5"].nonzero()[:, 0].tolist()
        assert tensors["needed/5"].tolist() == needed["5"].nonzero()[:, 0].tolist()


def test_the_directory_of_another_learner_is_refused_and_left_alone(original, saved):
    before = stamps(saved)
    others = {
        "of another network, seed or head": learned("mlp", {"one": {}}, seed=9),
        "whose task 'one' is not the task 'uno' of this one": learned("mlp", {"uno": {}}),
        "of another network": learned("vgg", {"one": {}, "two": {}, "three": {}, "four": {}}),
        "whose task 'two' is not the task 'two'": learned("mlp", {"one": {}, "two": {}}),
        "which has learned more: 'two'": learned("mlp", {"one": {}}),
    }
    for why, other in others.items():
        with pytest.raises(clnp.StoreError, match=f"it holds another learner, {why}"):
            other.save(saved)
        assert stamps(saved) == before
    original.save(saved)


# ---- damage


def damage(kind, content, rng):
    if kind == "flipped":
        place = rng.randrange(len(content))
        return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
    if kind == "truncated":
        return content[: rng.randrange(len(content))]
    return {"empty": b"", "longer": content + b"\0", "zeroed": bytes(len(content)), "a pickle": pickle.dumps({"a": 1})}[kind]


KINDS = ["flipped", "truncated", "empty", "longer", "zeroed", "a pickle"]
TASKS = ["tasks/000.safetensors", "tasks/001.safetensors", "tasks/002.safetensors"]
FILES = ["model.json", "constants.safetensors", *TASKS, "log.jsonl", "HEAD"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_refused_by_name(file, kind, saved):
    rng, content = random.Random(kind + file), (saved / file).read_bytes()
    for _ in range(60 if kind in ("flipped", "truncated") else 1):
        damaged = damage(kind, content, rng)
        (saved / file).write_bytes(damaged)
        if (file, kind) == ("log.jsonl", "longer"):
            assert read(saved).allocation.tasks == ("one", "two", "three"), "beyond HEAD nothing counts that is not whole"
            continue
        with pytest.raises(clnp.StoreError) as caught:
            read(saved)
        is_other_format = file == "model.json" and "Install the clnp version that wrote it" in str(caught.value)
        assert is_other_format or isinstance(caught.value, clnp.DamageError), str(caught.value)
        assert str(saved / file) in str(caught.value), str(caught.value)
    (saved / file).write_bytes(content)
    read(saved)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_refused_by_name(file, saved):
    (saved / file).unlink()
    with pytest.raises(clnp.DamageError) as caught:
        read(saved)
    assert f"cannot read '{saved / file}'" in str(caught.value)
    assert "it is missing. Restore" in str(caught.value)


def test_swapped_files_are_refused(saved):
    one, two = (saved / file for file in TASKS[:2])
    a, b = one.read_bytes(), two.read_bytes()
    one.write_bytes(b)
    two.write_bytes(a)
    with pytest.raises(clnp.DamageError, match=r"000\.safetensors"):
        read(saved)


def fill(key, value):
    def change(tensors):
        tensors[key] = torch.full_like(tensors[key], value)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fill("rows/2.weight", float("nan")), "NaN or infinite"),
        (fill("head.bias", float("inf")), "NaN or infinite"),
        (fill("claimed/2", 99), "do not fit the tasks before it"),
        (fill("needed/5", -1), "do not fit the tasks before it"),
        (lambda t: t.pop("rows/5.bias"), r"expected other tensors \(rows/5.bias\)"),
        (lambda t: t.update(extra=torch.zeros(1)), r"expected other tensors \(extra\)"),
        (lambda t: t.update({"claimed/2": t["claimed/2"][:-1].clone()}), "do not fit"),
    ],
)
def test_content_that_cannot_be_is_refused_even_with_a_right_hash(change, message, saved):
    ledgers.forge(saved, 0, change)
    with pytest.raises(clnp.DamageError, match=message) as caught:
        read(saved)
    assert "000.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 4}, "expected format 1 to 3, found 4. Install the clnp version that wrote it"),
        ({"inputs": [{"shape": [1, 8, 8], "dtype": "load"}]}, "no such dtype: 'load'"),
        ({"inputs": []}, "it is damaged"),
        ({"inputs": [{"shape": [2**40], "dtype": "float32"}]}, "it is damaged"),
        ({"surprise": 1}, "it is damaged"),
        ({"groups": {"2": 20, "5": 17}}, "made with another network"),
        ({"graph": "0" * 64}, "made with another network"),
        ({"seed": "0"}, "it is damaged"),
        ({"seed": 0.0}, "it is damaged"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_description_that_cannot_be_is_refused_even_with_a_right_hash(changes, message, saved):
    ledgers.edit_model(saved, **changes)
    with pytest.raises(clnp.StoreError, match=message):
        read(saved)


@pytest.mark.parametrize("file", ["../../evil", "../../evil.safetensors", -1, 1, 2**60, 0.0, True, None])
def test_no_path_comes_from_a_record(file, saved):
    records = ledgers.records_of(saved)
    records[1]["file"] = file
    ledgers.rechain(saved, records)
    with pytest.raises(clnp.DamageError, match=r"log\.jsonl' \(record 1\)"):
        read(saved)


def test_another_network_is_refused(saved):
    wider = small.network("mlp")
    wider[2], wider[5] = nn.Linear(64, 21), nn.Linear(21, 16)
    other = small.network("mlp")
    other[3] = nn.Tanh()
    for model in (wider, other, small.network("vgg"), nn.Sequential(small.network("mlp"))):
        with pytest.raises(clnp.StoreError, match=r"made with another network\. Expected groups .* Pass the network that it was made with"):
            clnp.Learner.load(saved, model)


def test_what_is_no_model_directory_is_refused(tmp_path):
    with pytest.raises(clnp.StoreError, match=r"there is no such directory\. Pass a directory that Learner\.save wrote"):
        load(tmp_path / "nowhere")
    with pytest.raises(clnp.StoreError, match=r"it holds no model\.json"):
        load(tmp_path)
    (tmp_path / "file").write_text("a file")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(clnp.StoreError, match=r"cannot save (the model )?to"):
            empty("mlp", 0).save(directory)


@pytest.mark.parametrize("how", ["full", "killed", "torn"])
def test_a_crash_while_saving_leaves_what_was_there(how, original, tmp_path, monkeypatch):
    learned("mlp", {"one": {}}).save(tmp_path / "before")
    directory, seen = tmp_path / "model", set()

    def anew():
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(tmp_path / "before", directory)

    for n_calls in ledgers.faults(monkeypatch, lambda: original.save(directory), anew, how):  # noqa: B007
        tasks = read(directory).allocation.tasks
        assert tasks in (("one",), original.tasks), "both tasks are one commit"
        seen.add(tasks)
        original.save(directory)
        assert read(directory).allocation.tasks == original.tasks
        assert set(ledgers.snapshot(directory)) == {*FILES}, "nothing is left of the attempt"
    assert n_calls >= 10, "two files, the log and HEAD were written"
    assert len(seen) == 2
    assert_same(original, load(directory))


@pytest.mark.parametrize("how", small.sampled(["torn", "full", "killed"]))
def test_a_crash_of_the_first_save_leaves_nothing_or_a_model(how, original, tmp_path, monkeypatch):
    directory = tmp_path / "deep" / "model"
    for n_calls in ledgers.faults(  # noqa: B007
        monkeypatch, lambda: original.save(directory), lambda: shutil.rmtree(tmp_path / "deep", ignore_errors=True), how
    ):
        if clnp.describe.is_there(directory):
            assert read(directory).allocation.tasks in ((), original.tasks)
        original.save(directory)
        assert read(directory).allocation.tasks == original.tasks
        assert set(ledgers.snapshot(directory)) == {*FILES}
    assert n_calls >= 20


def test_a_full_disk_is_told(original, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(clnp.files, "system", SimpleNamespace(**{**vars(os), "write": full}))
    with pytest.raises(clnp.StoreError, match=r"cannot save the model to .* No space left on device"):
        original.save(tmp_path)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/b", "C:\\x", "Aufgabe ß 任务", '"quoted": 1', "..", "model.json", "x" * 200])
def test_no_path_comes_from_a_task_name(name, tmp_path):
    directory = tmp_path / "one" / "two" / "model"
    learner = learned("mlp", {name: {"epochs": 1}})
    learner.save(directory)
    everything = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith(".")}
    assert everything == {f"one/two/model/{file}" for file in ("model.json", "constants.safetensors", "log.jsonl", "HEAD", TASKS[0])}
    assert read(directory).allocation.tasks == (name,)


# ---- what was once broken


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("log.jsonl", '"one"', '"ona"'),
        ("log.jsonl", '"single"', '"sinfle"'),
        ("log.jsonl", '"single"', '"multi"'),
        ("log.jsonl", '"private":true', '"private":false'),
        ("log.jsonl", '"n_classes":3', '"n_classes":1'),
        ("log.jsonl", '"width":0', '"width": 0'),
        ("model.json", '"seed": 0', '"seed": 1'),
        ("HEAD", '"record":3', '"record":2'),
    ],
)
def test_a_flipped_bit_in_the_description_is_refused(file, old, new, saved):
    text = (saved / file).read_text()
    assert text.count(old)
    (saved / file).write_text(text.replace(old, new, 1))
    with pytest.raises(clnp.DamageError, match=file):
        read(saved)


def test_a_layer_may_be_called_format(tmp_path):
    def make():
        return nn.Sequential(OrderedDict(flat=nn.Flatten(), format=nn.Linear(64, 8)))

    clnp.Learner(make(), torch.zeros(2, *small.SHAPE)).save(tmp_path)
    clnp.Learner.load(tmp_path, make())


def test_buffers_are_restored_whatever_their_layout(tmp_path):
    """Views, which safetensors refuses, too; what the given model holds does not matter."""

    def make():
        return Net(lambda n, x: n.a((x * n.mask).flatten(1)), a=nn.Linear(64, 8), mask=torch.rand(8, 8).t())

    learner = clnp.Learner(make(), torch.zeros(2, *small.SHAPE))
    learn(learner, "a")
    learner.save(tmp_path)
    assert_same(learner, clnp.Learner.load(tmp_path, make()))


def test_another_rate_of_a_dropout_is_said_to_be_another_graph(tmp_path):
    def network(rate):
        return nn.Sequential(nn.Linear(3, 4), nn.Dropout(rate), nn.ReLU())

    clnp.Learner(network(0.1), torch.zeros(2, 3)).save(tmp_path)
    with pytest.raises(clnp.StoreError, match=r"the same groups in another graph .*the rate of a dropout say\. Pass the network"):
        clnp.Learner.load(tmp_path, network(0.2))
