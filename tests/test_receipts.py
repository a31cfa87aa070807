"""What a predictor answered when it was committed is evidence later: bit for bit here, within a tolerance elsewhere."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import replace

import pytest
import torch

import clnp
import ledgers
import small
from clnp.inputs import Form
from clnp.receipts import N_EXAMPLES, TOLERANCE, compare, make_receipt, noise, settings

FROZEN = {
    "float": (
        Form((3,), torch.float32),
        [-1.5823659896850586, -0.5684224367141724, 0.49129125475883484, -0.7652562856674194, 1.664120078086853, -1.2494003772735596],
    ),
    "double": (
        Form((3,), torch.float64),
        [-1.5823659991285883, -0.5684224203971827, 0.49129125874689256, -0.7652563151261395, 1.66412009402695, -1.2494003954840092],
    ),
    "half": (
        Form((2, 2), torch.float16),
        [-1.0615234375, 0.390869140625, 0.75439453125, 0.396484375, 1.044921875, -0.59130859375, 0.96435546875, 0.67138671875],
    ),
    "integers": (Form((8,), torch.int64), [1, 1, 0, 0, 1, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 0]),
    "bool": (
        Form((2, 4), torch.bool),
        [True, False, True, True, False, True, False, False, True, True, True, True, True, True, False, True],
    ),
    "scalar": (Form((), torch.float32), [0.846816897392273, 1.6957193613052368]),
}


@pytest.mark.parametrize("name", FROZEN)
def test_noise_never_changes(name):
    form, values = FROZEN[name]
    made = noise((form,), n=2)
    assert (made.dtype, made.shape) == (form.dtype, (2, *form.shape))
    assert made.flatten().tolist() == values


def test_noise_is_noise():
    made = noise((Form((1000,), torch.float32),))
    assert made.shape == (N_EXAMPLES, 1000)
    assert abs(float(made.mean())) < 0.02
    assert abs(float(made.var()) - 1) < 0.02
    assert torch.equal(noise((Form((1000,), torch.float32),)), made)
    one, two = noise((Form((9,), torch.float32), Form((9,), torch.float32)), n=3)
    assert not torch.equal(one, two), "every input has its own"
    assert torch.equal(noise((Form((9,), torch.float32),), n=3), one)
    whole = noise((Form((500,), torch.int64),))
    assert set(whole.unique().tolist()) == {0, 1}


@functools.cache
def _learned():
    learner = ledgers.empty()
    ledgers.learn(learner, "a", 0)
    ledgers.learn(learner, "b", 1)
    return learner


def learned():
    return copy.deepcopy(_learned())


def test_here_the_answers_are_the_same_bits(tmp_path):
    learner = learned()
    learner.save(tmp_path)
    for found in (learner, clnp.Learner.load(tmp_path, small.network("mlp", 9))):
        for task in ("a", "b"):
            receipt, comparison = found.receipt(task)
            assert (comparison.verdict, comparison.largest_difference, comparison.same_settings) == ("bitwise", 0.0, True)
            assert comparison.different == {}
            assert comparison.is_good
            assert torch.equal(receipt.logits, found.predict(found.probe, task=task))
            assert receipt.settings == settings(found.probe)
    with pytest.raises(clnp.TaskError):
        learner.receipt("c")


def test_a_changed_weight_is_noticed():
    for key in ("2.weight", "5.bias"):
        learner = learned()
        owner = learner.wiring.join(learner.allocation.owner)
        rows = (torch.cat([owner, torch.tensor([-1])])[learner.wiring.parameters[key].rows] == 0).nonzero()[:, 0]
        learner._state[key][rows] += 1e-4 * torch.randn(learner._state[key][rows].shape, generator=torch.Generator().manual_seed(0))
        learner._predictors.clear()
        _, comparison = learner.receipt("a")
        assert (comparison.verdict, comparison.is_good, comparison.same_settings) == ("differs", False, True)
        assert 0 < comparison.largest_difference < 0.1


def test_under_other_settings_a_rounding_is_allowed_and_no_more():
    learner = learned()
    receipt, _ = learner.receipt("a")
    predictor, probe = learner.predictor("a"), learner.probe
    elsewhere = replace(receipt, settings={**receipt.settings, "processor": "another", "torch": "1.0"})
    assert compare(elsewhere, predictor, probe).verdict == "bitwise"
    allowed = TOLERANCE * max(1.0, float(receipt.logits.abs().max()))
    for moved, verdict, of_here in ((0.5, "within tolerance", "differs"), (2.0, "differs", "differs")):
        logits = receipt.logits + moved * allowed
        comparison = compare(replace(elsewhere, logits=logits), predictor, probe)
        assert comparison.verdict == verdict
        assert not comparison.same_settings
        assert comparison.different == {"processor": ("another", receipt.settings["processor"]), "torch": ("1.0", torch.__version__)}
        assert compare(replace(receipt, logits=logits), predictor, probe).verdict == of_here, "here every bit counts"


def test_answers_of_another_form_or_without_numbers_differ():
    learner = learned()
    receipt, _ = learner.receipt("a")
    predictor, probe = learner.predictor("a"), learner.probe
    elsewhere = {**receipt.settings, "machine": "another"}
    for logits in (receipt.logits[:, :2], receipt.logits[:5], receipt.logits * math.nan, receipt.logits * math.inf):
        for where in (receipt.settings, elsewhere):
            comparison = compare(replace(receipt, logits=logits, settings=where), predictor, probe)
            assert comparison.verdict == "differs"
            assert not comparison.is_good
    assert compare(None, predictor, probe).verdict == "no receipt"
    assert compare(None, predictor, probe).is_good


def test_as_many_threads_are_used_as_then():
    learner = learned()
    receipt, _ = learner.receipt("a")
    used, before = [], torch.get_num_threads()

    def predictor(x):
        used.append(torch.get_num_threads())
        return receipt.logits

    compare(replace(receipt, settings={**receipt.settings, "threads": 2}), predictor, learner.probe)
    assert used == [2]
    assert torch.get_num_threads() == before


def test_the_users_probe_is_stored_and_used(tmp_path):
    probe = small.task(3, 5)[0]
    learner = clnp.Learner(small.network("mlp"), torch.zeros(2, *small.SHAPE), probe=probe)
    ledgers.learn(learner, "a", 0)
    learner.save(tmp_path)
    assert "probe.safetensors" in ledgers.snapshot(tmp_path)
    found = clnp.Learner.load(tmp_path, small.network("mlp", 9))
    assert torch.equal(found.probe, probe)
    receipt, comparison = found.receipt("a")
    assert (comparison.verdict, receipt.logits.shape, receipt.settings["batch"]) == ("bitwise", (5, 3), 5)
    ledgers.learn(found, "b", 1)
    found.save(tmp_path)
    assert found.receipt("b")[0].logits.shape == (5, 3)
    other = clnp.Learner(small.network("mlp"), torch.zeros(2, *small.SHAPE), probe=probe + 1)
    with pytest.raises(clnp.StoreError, match="whose constants or probe differ"):
        other.save(tmp_path)
    ledgers.empty().save(tmp_path / ".without")
    for one, where in ((ledgers.empty(), tmp_path), (learner, tmp_path / ".without")):
        with pytest.raises(clnp.StoreError, match="whose constants or probe differ"):
            one.save(where)
    with pytest.raises(clnp.DataError, match="cannot use the probe"):
        clnp.Learner(small.network("mlp"), torch.zeros(2, *small.SHAPE), probe=torch.zeros(2, 3))


def test_a_probe_of_several_inputs_is_stored(tmp_path):
    from stored_networks import Two, data

    probe = data("two", 5, 4)[0]
    learner = clnp.Learner(Two(), data("two", 0, 2)[0], probe=probe)
    learner.learn("a", data("two", 0), data("two", 0), config=clnp.LearnConfig(**ledgers.SETTINGS))
    learner.save(tmp_path)
    found = clnp.Learner.load(tmp_path, Two())
    assert isinstance(found.probe, tuple)
    assert all(torch.equal(a, b) for a, b in zip(found.probe, probe, strict=True))
    assert found.receipt("a")[1].verdict == "bitwise"


class Picky(torch.nn.Module):
    """A network that noise is nothing for: it takes roots, or looks words up."""

    def __init__(self, words):
        super().__init__()
        self.words, self.fc, self.table = words, torch.nn.Linear(64, 12), torch.nn.Embedding(1, 64)

    def forward(self, x):
        return torch.relu(self.fc(self.table(x[:, 0, 0, 0].long()) if self.words else torch.sqrt(x).flatten(1)))


def test_a_task_whose_predictor_has_no_answer_to_noise_is_saved_and_loaded(tmp_path):
    x, y = small.task(0)
    learner = clnp.Learner(Picky(words=False), torch.ones(2, *small.SHAPE))
    result = learner.learn("a", (x.abs(), y), (x.abs(), y), config=clnp.LearnConfig(**ledgers.SETTINGS))
    assert "has no receipt" in " ".join(result.notices)
    assert learner.receipt("a")[1].verdict == "no receipt"
    learner.save(tmp_path)
    found = clnp.Learner.load(tmp_path, Picky(words=False))
    assert torch.equal(found.predict(x.abs(), task="a"), learner.predict(x.abs(), task="a"))
    assert found.receipt("a")[1].verdict == "no receipt"
    named = clnp.Learner(Picky(words=False), torch.ones(2, *small.SHAPE), probe=x.abs()[:4])
    notices = named.learn("a", (x.abs(), y), (x.abs(), y), config=clnp.LearnConfig(**ledgers.SETTINGS)).notices
    assert "receipt" not in " ".join(notices)
    assert named.receipt("a")[1].verdict == "bitwise"


def test_a_predictor_that_refuses_the_probe_has_no_receipt():
    assert make_receipt(Picky(words=True), torch.ones(2, *small.SHAPE)) is None
    assert make_receipt(torch.nn.Linear(3, 2), torch.ones(2, 4)) is None


def test_what_is_raised_while_a_receipt_is_made_leaves_the_learner_as_it_was(monkeypatch):
    learner = ledgers.empty()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("clnp.commit.make_receipt", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ledgers.learn(learner, "a", 0, epochs=1)
    assert learner.tasks == ()
    ledgers.learn(learner, "a", 0, epochs=1)
    never = ledgers.empty()
    ledgers.learn(never, "a", 0, epochs=1)
    assert torch.equal(never.predict(ledgers.X, task="a"), learner.predict(ledgers.X, task="a"))


def test_a_receipt_says_what_bits_depend_on():
    made = make_receipt(torch.nn.Linear(3, 2), torch.zeros(4, 3))
    assert set(made.settings) == {"torch", "machine", "processor", "instructions", "threads", "batch"}
    assert made.settings["batch"] == 4
    assert not made.logits.requires_grad
