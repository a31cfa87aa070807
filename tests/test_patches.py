"""A copy of a model is brought up to date by one small file: as a whole, verified, or not at all."""

from __future__ import annotations

import functools
import json
import shutil

import pytest
import torch

import clnp
import ledgers
import small
from clnp.ledger import read_ledger
from clnp.patches import MAGIC, apply_patch, make_patch, read_patch
from ledgers import empty, learn, logits

TASKS = ("one", "two", "three")


@functools.cache
def learner_of(n, seed=0):
    learner = empty(seed=seed)
    for number, task in enumerate(TASKS[:n]):
        learn(learner, task, number, private=True)
    return learner


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The directory of three tasks, and copies of it as it was after none, one and two."""
    path = tmp_path_factory.mktemp("patches")
    for n in range(4):
        learner_of(n).save(path / "full")
        shutil.copytree(path / "full", path / f"after-{n}")
    return path


@pytest.fixture
def device(source, tmp_path):
    def copy(n):
        shutil.copytree(source / f"after-{n}", tmp_path / "device", dirs_exist_ok=True)
        return tmp_path / "device"

    return copy


def state(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def load(directory):
    return clnp.Learner.load(directory, small.network("mlp", 77))


@pytest.mark.parametrize("n", [1, 2])
def test_a_copy_that_is_behind_becomes_the_same_directory(source, device, n):
    copy = device(n)
    done = apply_patch(copy, make_patch(source / "full", TASKS[n - 1]))
    assert state(copy) == state(source / "full")
    assert done.learned == TASKS[n:]
    assert done.record == 3


def test_it_answers_as_the_original(source, device):
    copy = device(1)
    apply_patch(copy, make_patch(source / "full", "one"))
    expected = logits(learner_of(3))
    found = logits(load(copy))
    assert list(found) == list(TASKS)
    assert all(torch.equal(found[task], expected[task]) for task in TASKS)


def test_a_patch_holds_only_what_is_new(source):
    patch = make_patch(source / "full", "two")
    assert len(patch) < len(make_patch(source / "full", "one")) < len(make_patch(source / "full"))
    held = read_patch(patch)
    assert [record.task for record in held.records] == ["three"]
    assert list(held.contents) == [2]
    assert (source / "full" / "tasks" / "000.safetensors").read_bytes() not in patch


def test_a_directory_is_made_of_a_patch_that_begins_with_it(source, tmp_path):
    apply_patch(tmp_path / "new" / "deep", make_patch(source / "full"))
    assert state(tmp_path / "new" / "deep") == state(source / "full")


def test_applied_twice_it_changes_nothing(source, device):
    copy, patch = device(1), make_patch(source / "full", "one")
    assert not apply_patch(copy, patch).was_there
    before = state(copy)
    assert apply_patch(copy, patch).was_there
    assert state(copy) == before


def test_a_copy_that_has_a_part_of_it_gets_the_rest(source, device):
    done = apply_patch(device(2), make_patch(source / "full", "one"))
    assert done.learned == ("three",)


def test_undone_and_purged_tasks_travel_as_tombstones(source, device, tmp_path):
    shutil.copytree(source / "full", tmp_path / "mine")
    learner = load(tmp_path / "mine")
    learner.undo("two", purge=True)
    learner.save(tmp_path / "mine")
    for n, since in ((3, "three"), (1, "one"), (2, "two")):
        shutil.rmtree(tmp_path / "device", ignore_errors=True)
        copy, patch = device(n), make_patch(tmp_path / "mine", since)
        assert (source / "full" / "tasks" / "001.safetensors").read_bytes() not in patch
        assert apply_patch(copy, patch).undone == ("two",)
        assert state(copy) == state(tmp_path / "mine")
        assert not (copy / "tasks" / "001.safetensors").exists()


def test_a_widened_network_travels(source, device, tmp_path):
    shutil.copytree(source / "full", tmp_path / "mine")
    wider = clnp.widen(load(tmp_path / "mine"), {next(iter(learner_of(0).capacity())): 4})
    learn(wider, "four", 3)
    wider.save(tmp_path / "mine")
    copy = device(2)
    apply_patch(copy, make_patch(tmp_path / "mine", "two"))
    assert state(copy) == state(tmp_path / "mine")
    assert torch.equal(load(copy).predict(ledgers.X, task="four"), wider.predict(ledgers.X, task="four"))


# ---- what does not fit


def refused(directory, patch, match, error=clnp.StoreError):
    before = state(directory)
    with pytest.raises(error, match=match):
        apply_patch(directory, patch)
    assert state(directory) == before


def test_a_patch_for_a_newer_copy_is_refused_and_says_which_one_is_needed(source, device):
    refused(device(1), make_patch(source / "full", "two"), r"follows record 2.*ends with record 1.*--since 'one'")


def test_a_patch_of_another_model_is_refused(source, device, tmp_path):
    other = empty(seed=5)
    for number, task in enumerate(TASKS):
        learn(other, task, number)
    other.save(tmp_path / "other")
    refused(device(1), make_patch(tmp_path / "other", "one"), "another model")
    refused(device(1), make_patch(tmp_path / "other"), "records of its own")


def test_a_copy_that_has_learned_something_itself_is_refused(source, device):
    copy = device(1)
    mine = load(copy)
    learn(mine, "own", 7)
    mine.save(copy)
    refused(copy, make_patch(source / "full", "one"), "records of its own")
    assert load(copy).tasks == ("one", "own")


def test_a_patch_without_the_model_makes_no_directory(source, tmp_path):
    with pytest.raises(clnp.StoreError, match="no such directory"):
        apply_patch(tmp_path / "nowhere", make_patch(source / "full", "one"))
    assert not (tmp_path / "nowhere").exists()


def test_there_is_no_patch_since_a_task_that_never_was(source):
    with pytest.raises(clnp.TaskError, match="expected one of 'one', 'two', 'three'"):
        make_patch(source / "full", "zero")


@pytest.mark.parametrize("place", ["magic", "header", "record", "file", "end"])
def test_one_flipped_bit_anywhere_is_refused(source, device, place):
    patch = bytearray(make_patch(source / "full", "two"))
    at = {"magic": 3, "header": len(MAGIC) + 12, "record": len(MAGIC) + 200, "file": len(patch) - 200, "end": len(patch) - 10}[place]
    patch[at] ^= 1
    refused(device(2), bytes(patch), "cannot read the patch", clnp.DamageError)


def test_every_shortened_or_lengthened_patch_is_refused(source, device):
    copy, patch = device(2), make_patch(source / "full", "two")
    for size in [*range(0, len(patch), 97), len(patch) - 1]:
        refused(copy, patch[:size], "cannot read the patch", clnp.DamageError)
    refused(copy, patch + b"x", "cannot read the patch", clnp.DamageError)


def resealed(patch, change):
    """A patch with a changed body under a right SHA-256: what somebody sends who knows how."""
    body = change(patch[:-65])
    return body + ledgers.sha256(body).encode() + b"\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body[:-1] + bytes([body[-1] ^ 1]),
        lambda body: body + b"more",
        lambda body: body[:-5],
        lambda body: body.replace(b'"records":1', b'"records":2'),
        lambda body: body.replace(b'"records":1', b'"records":0'),
        lambda body: body.replace(b'"records":1', b'"records":99999999999'),
        lambda body: body.replace(b'"file":2', b'"file":0'),
        lambda body: body.replace(b'"task":"three"', b'"task":"../x"'),
        lambda body: body.replace(b'"task":"three"', b'"task":"one"'),
        lambda body: body.replace(b'"number":3', b'"number":4'),
        lambda body: body.replace(b'"base_record":2', b'"base_record":1'),
        lambda body: body.replace(b'"n_classes":', b'"n_classes":-'),
    ],
    ids=lambda change: "",
)
def test_a_patch_that_was_made_up_is_refused(source, device, change):
    """But for a name, which a record may change like anything that no hash outside of it fixes: then a patch is one of its own."""
    copy = device(2)
    patch = resealed(make_patch(source / "full", "two"), change)
    before = state(copy)
    try:
        apply_patch(copy, patch)
    except clnp.StoreError:
        assert state(copy) == before
    else:
        assert read_ledger(copy).tasks[-1].task == "../x"
        assert sorted(path.name for path in copy.parent.iterdir()) == ["device"]


def test_units_that_do_not_fit_are_taken_back(source, device, tmp_path):
    """The file of another task, with records to match: its units are another task's."""
    record = read_ledger(source / "full").tasks[0]
    patch = make_patch(source / "full", "two")
    lines = read_patch(patch).lines
    forged = ledgers.spell(
        {
            **json.loads(lines[0]),
            "content": record.content.model_dump(),
            "tensors": {name: entry.model_dump() for name, entry in record.tensors.items()},
        }
    )
    head = patch[: patch.index(b"\n", len(MAGIC)) + 1]
    body = head + forged + b"\n" + (source / "full" / "tasks" / "000.safetensors").read_bytes()
    refused(device(2), body + ledgers.sha256(body).encode() + b"\n", "do not fit the tasks before it", clnp.DamageError)


@pytest.mark.parametrize("how", ["full", "killed", "torn"])
def test_cut_short_anywhere_the_copy_is_the_old_or_the_new_one(source, device, monkeypatch, how):
    patch, expected = make_patch(source / "full", "one"), state(source / "full")
    copy = device(1)
    seen = set()

    def again():
        shutil.rmtree(copy)
        device(1)

    for _ in ledgers.faults(monkeypatch, lambda: apply_patch(copy, patch), again, how):
        names = tuple(record.task for record in read_ledger(copy).tasks)
        assert names in (("one",), TASKS), "all of it, or nothing"
        seen.add(names)
        apply_patch(copy, patch)
        assert state(copy) == expected
    assert seen == {("one",), TASKS}
