"""The promises, over optimizers, networks and ways of carrying a learner from one task to the next."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import clnp
import promises
from small import NETWORKS, OPTIMIZERS, RESNET_IN_CI, SHAPE, config, learn, learned, network, task

CARRY = ["continue", "deepcopy", "save and load", "pickle"]


@pytest.fixture
def carry(request, tmp_path):
    def carried(learner):
        if request.param == "deepcopy":
            return copy.deepcopy(learner)
        if request.param == "pickle":
            return pickle.loads(pickle.dumps(learner))
        if request.param == "save and load":
            learner.save(tmp_path / "model")
            return clnp.Learner.load(tmp_path / "model", network(carried.network, seed=77))
        return learner

    return carried


def suite(optimizer: str, name: str) -> list[pytest.MarkDecorator]:
    """The small network meets every optimizer in the fast suite; the dearer ones meet in CI what `thorough` says, and the rest in the slow suite."""
    if name == "mlp":
        return []
    return [pytest.mark.thorough if name == "vgg" or optimizer == "adamw" else pytest.mark.slow]


# Every two of optimizer, network and way meet, as far as `suite` lets them; in the slow suite all three do.
WAYS = [
    pytest.param(optimizer, name, way, marks=suite(optimizer, name) if (i + j + k) % 3 == 0 else pytest.mark.slow)
    for i, optimizer in enumerate(OPTIMIZERS)
    for j, name in enumerate(NETWORKS)
    for k, way in enumerate(CARRY)
]


@pytest.mark.parametrize(("optimizer", "name", "carry"), WAYS, indirect=["carry"])
def test_nothing_is_forgotten(optimizer, name, carry):
    carry.network = name
    promises.nothing_forgotten(name, carry, **OPTIMIZERS[optimizer])


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [pytest.param(optimizer, name, marks=suite(optimizer, name)) for optimizer in OPTIMIZERS for name in NETWORKS],
)
def test_the_training_network_itself_holds_still(optimizer, name):
    promises.training_network_holds_still(name, **OPTIMIZERS[optimizer])


@pytest.mark.parametrize("name", RESNET_IN_CI)
def test_no_claimed_unit_reads_what_is_not_needed(name):
    learner = learned(name, 3)
    promises.interference_is_zero(learner)
    promises.full_width_agrees(learner)


@pytest.mark.parametrize("name", ["mlp", pytest.param("vgg", marks=pytest.mark.thorough), pytest.param("resnet", marks=pytest.mark.slow)])
def test_later_tasks_learn_too(name):
    learner = learned(name, 3, epochs=20, lr=5e-3)
    for number in range(3):
        x, y = task(number)
        accuracy = float((learner.predict(x[180:], task=f"task-{number}").argmax(1) == y[180:]).float().mean())
        assert accuracy > 0.9, f"task {number}: {accuracy}"


@pytest.mark.parametrize("name", RESNET_IN_CI)
def test_single_head_forgets_nothing_and_gates_by_task(name):
    learner = clnp.Learner(network(name), torch.zeros(2, *SHAPE))
    learn(learner, 0, head="single")
    before = promises.logits_of(learner)
    learn(learner, 1, head="single")
    learn(learner, 2, head="single", reuse=False)
    promises.assert_same(before, promises.logits_of(learner))
    # A shared row: the second task's head holds the first one's columns, bit for bit, wherever it reuses its units.
    first, second = learner.head_of("task-0")[0], learner.head_of("task-1")[0]
    features = learner.wiring.features
    owner = learner.wiring.join(learner.allocation.owner)[features]
    assert torch.equal(first[:, owner == 0], second[:, owner == 0])
    assert not first[:, owner != 0].any()
    assert not second[:, owner > 1].any()
    # The third reads no earlier unit, so it must have claimed features and columns of its own.
    assert learner.head_of("task-2")[0][:, owner == 2].any()


def test_a_diverging_task_leaves_the_learner_as_it_was():
    learner = learned("mlp", 1)
    logits, allocation = promises.logits_of(learner), learner.allocation
    x, y = task(1)
    with pytest.raises(clnp.TrainingError, match=r"task 'broken' was abandoned.*Earlier tasks are untouched"):
        learner.learn("broken", (x[:180], y[:180]), (x[180:], y[180:]), config=config(lr=1e38, optimizer="sgd"))
    assert learner.allocation is allocation
    promises.assert_same(logits, promises.logits_of(learner))
    learn(learner, 1)
    promises.assert_same(logits, promises.logits_of(learner))


def test_same_seed_same_bits_whatever_else_draws_random_numbers():
    one = learned("vgg", 2)
    torch.rand(1000)
    two = learned("vgg", 2)
    promises.assert_same(promises.logits_of(one), promises.logits_of(two))
    other = learned("vgg", 2, seed=1)
    assert not torch.equal(promises.logits_of(one)["task-0"], promises.logits_of(other)["task-0"])


def test_later_tasks_cannot_read_a_private_one():
    learner = learned("mlp", 1, private=True)
    learn(learner, 1)
    assert all(learner.allocation.n_reused("task-1", group) == 0 for group in learner.capacity())
    assert learner.allocation.readers("task-0") == []


def test_a_task_without_reuse_reads_no_earlier_unit():
    learner = learned("mlp", 1)
    learn(learner, 1, reuse=False)
    assert all(learner.allocation.n_reused("task-1", group) == 0 for group in learner.capacity())


def test_the_users_model_is_left_as_it_was():
    model = network("vgg")
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    learner = clnp.Learner(model, torch.zeros(2, *SHAPE))
    learn(learner, 0)
    promises.assert_same(before, model.state_dict())
    assert not any(module.training for module in model.modules())
    assert model[6].momentum is None
