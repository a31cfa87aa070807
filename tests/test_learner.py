"""The Python API, word for word; and that whatever goes wrong leaves the learner as it was."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import re
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import clnp
import clnp.learner
import clnp.pruning
import small
from clnp.forecast import forecast
from test_pruning import nothing_released

FAST = {"epochs": 2, "finetune_epochs": 0, "rounds": 1, "batch_size": 32, "margin": 0.05, "pool": 0.5}


def data(number=0, n_classes=3):
    x, y = small.task(number, n_classes=n_classes)
    return (x[:180], y[:180]), (x[180:], y[180:])


def learn(learner, name="a", number=0, *, train=None, validation=None, n_classes=None, progress=None, **settings):
    good = data(number)
    config = clnp.LearnConfig(**{**FAST, **settings})
    return learner.learn(name, train or good[0], validation or good[1], n_classes=n_classes, config=config, progress=progress)


@functools.cache
def empty(name):
    return clnp.Learner(small.network(name), torch.zeros(2, *small.SHAPE))


def new(name="mlp"):
    return copy.deepcopy(empty(name))  # captured once


def snapshot(learner):
    """Everything that a learner is, so that nothing can change unseen."""
    logits = {task: learner.predict(data(1)[0][0], task=task) for task in learner.tasks}
    seen = (learner.tasks, learner._state, dict(learner.allocation.owner), logits, dict(learner._records))
    return copy.deepcopy(seen), learner.allocation


def assert_unchanged(learner, before):
    (tasks, state, owner, logits, records), allocation = before
    assert learner.tasks == tasks
    assert learner.allocation is allocation
    assert set(learner._records) == set(records)
    assert set(learner._predictors) <= set(tasks)
    for key, value in state.items():
        assert torch.equal(learner._state[key], value), key
    for group, value in owner.items():
        assert torch.equal(learner.allocation.owner[group], value)
    for task, value in logits.items():
        assert torch.equal(learner.predict(data(1)[0][0], task=task), value)


@pytest.fixture
def nothing_pruned(monkeypatch):
    monkeypatch.setattr(clnp.pruning, "select", nothing_released)


class Pictures(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, place):
        return self.x[place], int(self.y[place])


FORMS = {
    "tensors": lambda x, y: (x, y),
    "TensorDataset": TensorDataset,
    "Dataset": Pictures,
    "DataLoader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=20, shuffle=True),
    "DataLoader with t": lambda x, y: DataLoader(TensorDataset(x, y, y * 0), batch_size=20),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_readme_works_with_every_form_of_data(form, tmp_path):
    trunk, example_input = small.network("mlp"), torch.zeros(2, *small.SHAPE)
    learner = clnp.Learner(trunk, example_input, seed=0)
    train, validation = (FORMS[form](*part) for part in data())
    result = learner.learn("digits-0", train, validation, n_classes=3, config=clnp.LearnConfig(margin=0.002))
    x, y = data()[1]
    logits = learner.predict(x, task="digits-0")
    assert logits.shape == (60, 3)
    assert float((logits.argmax(1) == y).float().mean()) == pytest.approx(result.accuracy)
    assert result.accuracy > 0.8
    assert (result.task, result.n_classes, result.margin) == ("digits-0", 3, 0.002)
    assert result.seconds > 0
    capacity = learner.capacity()
    assert {group: (c.n_units, c.free, c.claimed, c.reused) for group, c in capacity.items()} == {
        group: (n, n - result.claimed[group], {"digits-0": result.claimed[group]}, {"digits-0": 0}) for group, n in (("2", 20), ("5", 16))
    }
    assert result.free == {group: c.free for group, c in capacity.items()}
    assert learner.predictor("digits-0")(x).shape == (60, 3)
    assert isinstance(learner.allocation, clnp.Allocation)
    assert "36 units in 2 groups" in clnp.wiring.trace(trunk, example_input).explain()
    assert learner.forecast() == forecast(learner.allocation)
    learner.save(tmp_path)
    assert torch.equal(clnp.Learner.load(tmp_path, trunk).predict(x, task="digits-0"), logits)


def test_the_number_of_classes_is_inferred():
    learner = new()
    assert learn(learner).n_classes == 3
    assert learn(learner, "b", n_classes=5).n_classes == 5
    assert learner.predict(data()[1][0], task="b").shape == (60, 5)
    assert learn(learner, "c", train=data(0, 4)[0], validation=data(0, 4)[1]).n_classes == 4


def whole_model():
    torch.manual_seed(3)
    parts = {"flat": nn.Flatten(), "one": nn.Linear(64, 20), "act": nn.ReLU(), "two": nn.Linear(20, 12), "fc": nn.Linear(12, 3)}
    return nn.Sequential(OrderedDict(parts))


def trained_model(number=0):
    model, ((x, y), _) = whole_model(), data(number)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def test_a_module_may_be_named_the_head():
    learner = clnp.Learner(whole_model(), torch.zeros(2, *small.SHAPE), head="fc")
    assert list(learner.capacity()) == ["one", "two"]
    for number, n_classes in enumerate((3, 7)):
        learn(learner, f"t{number}", number, n_classes=n_classes)
        assert learner.predict(data()[1][0], task=f"t{number}").shape == (60, n_classes)


@pytest.mark.parametrize("head", ["multi", "single"])
def test_an_adopted_model_keeps_its_own_bits_whatever_is_learned_later(head):
    model = trained_model()
    before = copy.deepcopy(model.state_dict())
    learner = clnp.Learner(model, torch.zeros(2, *small.SHAPE), head="fc")
    train, (x, y) = data()
    result = learner.adopt("base", train, (x, y), config=clnp.LearnConfig(margin=0.05, head=head))
    with torch.no_grad():
        own = float((model(x).argmax(1) == y).double().mean())
    assert result.accuracy_unpruned == pytest.approx(own)
    logits = learner.predict(x, task="base")
    assert float((logits.argmax(1) == y).double().mean()) == pytest.approx(result.accuracy)
    assert result.accuracy >= own - 0.05
    assert 0 < sum(result.claimed.values()) < 32, "pruned"
    one, two = (learner.allocation.needed["base"][group] for group in ("one", "two"))
    found = learner.predictor("base").state_dict()
    assert torch.equal(found["one.weight"], before["one.weight"][one])
    assert torch.equal(found["two.weight"], before["two.weight"][two][:, one])
    assert torch.equal(found["two.bias"], before["two.bias"][two])
    assert torch.equal(found["head.weight"], before["fc.weight"][:, two])
    assert torch.equal(found["head.bias"], before["fc.bias"])
    for number in (1, 2):
        assert learn(learner, f"t{number}", number, epochs=8, head=head).accuracy > 0.5
    assert torch.equal(learner.predict(x, task="base"), logits)
    assert all(torch.equal(found[key], value) for key, value in learner.predictor("base").state_dict().items())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_an_adopted_model_of_which_nothing_is_pruned_answers_as_before(nothing_pruned):
    model, x = trained_model(), data()[1][0]
    learner = clnp.Learner(model, torch.zeros(2, *small.SHAPE), head="fc")
    result = learner.adopt("base", *data())
    with torch.no_grad():
        assert torch.allclose(learner.predict(x, task="base"), model(x), atol=1e-5)
    assert (result.margin_paid, sum(result.free.values())) == (0, 0)


def test_adopting_comes_first_and_needs_a_head():
    with pytest.raises(clnp.TaskError, match="the network's own head is needed"):
        new().adopt("base", *data())
    learner = clnp.Learner(whole_model(), torch.zeros(2, *small.SHAPE), head="fc")
    learn(learner)
    before = snapshot(learner)
    with pytest.raises(clnp.TaskError, match="cannot adopt 'base': adopting comes first, but task 'a' is learned already"):
        learner.adopt("base", *data())
    assert_unchanged(learner, before)
    with pytest.raises(clnp.DataError, match="expected labels 0 to 2, found 3"):
        clnp.Learner(whole_model(), torch.zeros(2, *small.SHAPE), head="fc").adopt("base", *data(0, 4))


def test_a_learner_that_was_loaded_adopts_nothing_for_the_model_may_have_any_weights(tmp_path):
    learner = clnp.Learner(trained_model(), torch.zeros(2, *small.SHAPE), head="fc")
    learner.save(tmp_path)
    with pytest.raises(clnp.TaskError, match=r"cannot adopt 'base': .*the learner was loaded .*Make a new learner"):
        clnp.Learner.load(tmp_path, whole_model()).adopt("base", *data())
    assert copy.deepcopy(learner).adopt("base", *data()).accuracy > 0.5, "a copy has them"
    clnp.Learner(trained_model(), torch.zeros(2, *small.SHAPE), head="fc").save(tmp_path)


# ---- pool, capacity, reuse


@pytest.mark.parametrize(
    ("pool", "claimed"),
    [
        *[("all", [20, 16]), (1.0, [20, 16]), (3, [3, 3]), (400, [20, 16]), (0.25, [5, 4]), (0.01, [1, 1]), (18, [18, 16])],
        *[({"2": 3, "5": "all"}, [3, 16]), ({"5": 0.25, "*": 7}, [7, 4])],
    ],
)
def test_a_pool_is_a_count_or_a_fraction_per_group(pool, claimed, nothing_pruned):
    assert list(learn(new(), pool=pool).claimed.values()) == claimed


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({"2": 3, "fc*": 4}, r"cannot learn task 'a' with this pool: 'fc\*' matches none of the groups 2, 5\. Name each"),
        ({"2": 3}, r"cannot learn task 'a' with this pool: no size is given for '5', one of the groups 2, 5\. Name each"),
    ],
)
def test_sizes_by_group_name_groups_that_are_there_and_all_of_them(pool, message):
    learner = new()
    with pytest.raises(clnp.ConfigError, match=message):
        learn(learner, "a", pool=pool)
    assert not learner.tasks


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.deep = nn.Parameter(torch.ones(10)), nn.Linear(10, 12)

    def forward(self, x):
        return torch.relu(self.deep(x * self.scale))


@pytest.mark.parametrize("first", [nn.BatchNorm1d, partial(nn.BatchNorm1d, affine=False), nn.LayerNorm, None])
def test_a_norm_or_scale_of_the_input_hides_no_column_from_a_task(first, nothing_pruned):
    model = Scaled() if first is None else nn.Sequential(OrderedDict(scale=first(10), deep=nn.Linear(10, 12), relu=nn.ReLU()))
    learner = clnp.Learner(model, torch.zeros(2, 10))
    x = torch.randn(60, 10, generator=torch.Generator().manual_seed(0))
    given, config = ((x, (x[:, 0] > 0).long()),) * 2, {"epochs": 1, "finetune_epochs": 0}
    result = learner.learn("a", *given, config=clnp.LearnConfig(pool=0.25, **config))
    assert result.claimed == {"scale": 10, "deep": 3}
    assert "columns of the input" in learner.wiring.explain()
    assert learner.forecast().limiting_group == "deep", "tasks share what there is of the input"
    learner.undo("a")
    sizes = clnp.LearnConfig(pool={"scale": 2, "*": 3}, **config)
    assert learner.learn("b", *given, config=sizes).claimed == {"scale": 2, "deep": 3}, "sizes that are asked for count"
    learner.undo("b")
    with pytest.raises(clnp.CapacityError):
        learner.learn("c", *given, config=clnp.LearnConfig(pool=0, **config))


def test_an_embedding_is_no_column_of_the_input():
    model = nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(16, 12), nn.ReLU())
    assert clnp.Learner(model, torch.zeros(2, 2, dtype=torch.int64)).wiring.input_columns == frozenset()


class OneUnit(nn.Module):
    """Attention over positions, whose gate is one channel: it ties all."""

    def __init__(self):
        super().__init__()
        self.value, self.gate = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        h = torch.relu(self.value(x))
        return (torch.softmax(self.gate(h), 1) * h).sum(1)


class Picked(nn.Module):
    def __init__(self):
        super().__init__()
        self.value, self.deep = nn.Linear(4, 8), nn.Linear(8, 8)

    def forward(self, x):
        return torch.relu(self.deep(self.value(x)[torch.arange(x.shape[0]), x[:, 0, 0].long()]))


def test_merged_units_are_said_when_the_learner_is_made(caplog):
    clnp.Learner(OneUnit(), torch.zeros(2, 5, 4))
    clnp.Learner(Picked(), torch.zeros(2, 5, 4))
    new("resnet")
    clnp.Learner(nn.Sequential(nn.Linear(4, 1), nn.ReLU()), torch.zeros(2, 4))  # one unit, and none was merged
    one, picked = [record.getMessage() for record in caplog.records if record.name == "clnp"]
    assert "units of this network are merged, and only one task fits. In value: tied by mul.Tensor" in one
    assert "units of this network are merged. In value: aten.index.Tensor" in picked
    assert "8 units became 1" in picked


def test_frozen_parameters_are_said_when_the_learner_is_made(caplog):
    model = whole_model()
    model.one.requires_grad_(False)
    clnp.Learner(model, torch.zeros(2, *small.SHAPE), head="fc")  # to adopt it: it stays as it is
    model.fc = nn.Identity()
    clnp.Learner(model, torch.zeros(2, *small.SHAPE))
    (said,) = [record.getMessage() for record in caplog.records if record.name == "clnp"]
    assert said.startswith("'one.weight' and 1 more are frozen (requires_grad=False), but tasks are learned in weights that are drawn anew")


def test_an_example_of_another_kind_is_refused():
    with pytest.raises(clnp.WiringError, match=r"cannot run the network on an input of shape \(1, 4\) torch\.float64: .*dtype"):
        clnp.Learner(nn.Linear(4, 4), torch.zeros(2, 4, dtype=torch.float64))


@pytest.mark.parametrize("where", ["training", "validation"])
def test_a_token_that_there_is_not_is_told_of_as_data(where):
    learner = clnp.Learner(
        nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(16, 12), nn.ReLU()), torch.zeros(2, 2, dtype=torch.int64)
    )
    x = torch.randint(0, 9, (60, 2), generator=torch.Generator().manual_seed(0))
    y, other = (x[:, 0] > 4).long(), x.clone()
    other[7, 1] = 9
    given = {"training": ((other, y), (x, y)), "validation": ((x, y), (other, y))}[where]
    before = snapshot(learner)
    with pytest.raises(clnp.DataError, match=r"cannot learn task 'a': index out of range.*a token that the network has no embedding for"):
        learner.learn("a", *given, config=clnp.LearnConfig(epochs=1))
    assert_unchanged(learner, before)


def test_the_number_of_classes_may_be_any_whole_number():
    learner = new()
    n_classes = learn(learner, n_classes=np.int64(5)).n_classes
    assert (type(n_classes), n_classes) == (int, 5)
    with pytest.raises(clnp.DataError, match="expected a whole number as n_classes"):
        learn(learner, "b", n_classes=5.0)


def test_a_fraction_is_one_of_the_group_not_of_what_is_left(nothing_pruned):
    learner = new()
    sizes = [list(learn(learner, f"t{number}", number, pool=0.4).claimed.values()) for number in range(3)]
    assert sizes == [[8, 6], [8, 6], [4, 4]]


def test_a_full_group_is_crossed_by_reuse_with_a_notice_and_a_full_network_is_refused(nothing_pruned):
    learner = new()
    learn(learner, "a", 0, pool=16)
    result = learn(learner, "b", 1, pool=2)
    assert result.claimed == {"2": 2, "5": 0}
    assert result.reused["5"] == 16
    assert any(re.search("no unit is free in 5: this task crosses there on reused units alone", notice) for notice in result.notices)
    learn(learner, "c", 2, pool="all")
    before = snapshot(learner)
    told = []
    with pytest.raises(clnp.CapacityError, match=r"cannot learn task 'd': layer '2' has 0 of 20 units free, and so have all other groups"):
        learn(learner, "d", progress=told.append)
    assert told == [], "before any training"
    assert_unchanged(learner, before)
    result = learn(learner, "d", pool=0, epochs=20, lr=0.05)
    assert set(result.claimed.values()) == {0}
    assert result.accuracy > 0.4, "a head on reused units alone"


@pytest.mark.parametrize("settings", [{"private": True}, {"private": False}])
def test_where_nothing_may_be_read_there_is_no_way_through(settings, nothing_pruned):
    learner = new()
    learn(learner, "a", pool=16, **settings)
    before = snapshot(learner)
    with pytest.raises(clnp.CapacityError, match=r"layer '5' has 0 of 16 units free and none that this task may reuse"):
        learn(learner, "b", reuse=settings["private"])
    with pytest.raises(clnp.CapacityError):
        learn(learner, "b", reuse=False, pool=0)
    with pytest.raises(clnp.CapacityError, match="pool=0: there are no units of earlier tasks to reuse yet"):
        learn(new(), pool=0)
    assert_unchanged(learner, before)


def test_private_units_are_read_by_nobody_and_their_owner_reads_others():
    learner = new()
    learn(learner, "open", 0)
    learn(learner, "secret", 1, private=True)
    learn(learner, "after", 2)
    assert learner.allocation.readers("secret") == []
    secret = {group: learner.allocation.owner[group] == 1 for group in ("2", "5")}
    assert not any((learner.allocation.needed["after"][group] & mask).any() for group, mask in secret.items())
    assert "secret" in learner.allocation.readers("open")


def test_a_margin_that_the_validation_set_cannot_resolve_is_said_to_be_so():
    assert any("the margin 0.01 is finer than one of 60 validation examples" in n for n in learn(new(), margin=0.01).notices)
    assert not any("finer" in n for m in (0.0, 0.02) for n in learn(new(), margin=m).notices)


def test_a_task_that_learned_nothing_is_said_to_be_so():
    (x, y), _ = data()
    rare = torch.zeros_like(y)
    rare[0] = 1  # always naming class 0 is right but for one
    found = learn(new(), train=(x, rare), validation=(x, rare), epochs=1, finetune_epochs=0).notices
    assert any(
        re.match(rf"nothing was learned that accuracy shows: before pruning \d+ of {len(y)} .* and {len(y) - 1} would", n) for n in found
    )
    assert not any("nothing was learned" in notice for notice in learn(new(), epochs=20, lr=0.05).notices)


def test_a_training_of_few_steps_is_said_to_be_so():
    found = learn(new(), epochs=3, batch_size=60).notices
    n = len(data()[0][1]) // 60
    assert any(f"the whole pool is trained for {3 * n} steps only (3 epochs of {n})" in notice for notice in found)
    assert not any("steps only" in notice for notice in learn(new(), epochs=100, batch_size=60, finetune_epochs=0).notices)


def test_a_class_without_training_examples_is_said_to_be_there():
    (x, y), _ = data()
    found = learn(new(), train=(x[y != 1], y[y != 1]), n_classes=5).notices
    assert "no training example has label 1, 3, 4; the task has 5 classes." in found
    assert not any("no training example" in notice for notice in learn(new()).notices)


def test_what_is_no_network_no_setting_and_no_number_is_refused():
    x = torch.zeros(2, 12)
    with pytest.raises(clnp.WiringError, match=r"expected an nn.Module, found the class Linear\. Make one of it: Net\(\)"):
        clnp.Learner(nn.Linear, x)
    with pytest.raises(clnp.WiringError, match=r"expected an nn.Module, found list\. Put layers into nn.Sequential"):
        clnp.Learner([nn.Linear(12, 4)], x)
    with pytest.raises(clnp.WiringError, match=r"expected an nn\.Module, found the class Linear"):
        clnp.Learner(nn.Linear, x, head="fc")
    learner = new()
    before = snapshot(learner)
    with pytest.raises(clnp.ConfigError, match=r"expected a clnp.LearnConfig, found dict\. Write LearnConfig\(\*\*settings\)"):
        learner.learn("a", *data(), config={"epochs": 1})
    for n_classes in ("2", 2.0, [0, 1], True):
        with pytest.raises(clnp.DataError, match=re.escape(f"expected a whole number as n_classes, found {n_classes!r}")):
            learn(learner, n_classes=n_classes)
    with pytest.raises(clnp.WiringError, match=r"cannot widen by 8: expected units for each group, {'2': 8}"):
        clnp.widen(learner, 8)
    assert_unchanged(learner, before)


# ---- predictors


def test_a_predictor_is_independent_of_the_learner():
    learner, x = new("resnet"), data()[1][0]
    learn(learner)
    before, one, two = snapshot(learner), learner.predictor("a"), learner.predictor("a")
    expected = learner.predict(x, task="a")
    assert torch.equal(one(x), expected)
    with torch.no_grad():
        for tensor in one.state_dict().values():
            tensor.zero_()
    assert torch.equal(two(x), expected)
    assert_unchanged(learner, before)
    stored = io.BytesIO()
    pickle.Pickler(stored).dump(two)
    assert b"clnp" not in stored.getvalue(), "nothing of this library is needed to run it"
    n = sum(tensor.numel() * tensor.element_size() for tensor in two.state_dict().values())
    assert len(stored.getvalue()) < 2 * n + 40_000, "and nothing of the learner is inside"


def test_any_batch_can_be_predicted_and_a_wrong_one_is_refused():
    x = data()[1][0]
    learn(learner := new("resnet"))
    logits = learner.predict(x, task="a")
    assert not learner.predict(x.clone().requires_grad_(), task="a").requires_grad
    for n in (0, 1, 5):
        assert torch.allclose(learner.predict(x[:n], task="a"), logits[:n], atol=1e-5)
    with pytest.raises(clnp.TaskError, match=r"no task 'b' is learned: expected one of 'a'"):
        learner.predict(x, task="b")
    for ask in (learner.predictor, learner.head_of):
        with pytest.raises(clnp.TaskError, match="no task 'b'"):
            ask("b")
    for wrong in (x[:, :, :4], x[0], x.double()):
        with pytest.raises(
            clnp.DataError, match=r"cannot predict task 'a': expected examples of shape \(1, 8, 8\) and torch.float32, found"
        ):
            learner.predict(wrong, task="a")


# ---- whatever goes wrong


@pytest.fixture(scope="module")
def used():
    learner = new("vgg")
    learn(learner)
    learn(learner, "b", 1)
    return learner


X, Y = data()[0]
WRONG = {
    "duplicate name": ({"name": "a"}, clnp.TaskError, "a task of that name is learned already. Choose another name"),
    "empty name": ({"name": ""}, clnp.TaskError, "1 to 200 printable characters"),
    "line break in a name": ({"name": "a\nb"}, clnp.TaskError, "printable"),
    "long name": ({"name": "x" * 201}, clnp.TaskError, "printable"),
    "label too large": ({"n_classes": 2}, clnp.DataError, "training data of task 'new': expected labels 0 to 1, found 2"),
    "label too small": ({"train": (X, Y - 1)}, clnp.DataError, "expected labels 0 to 2, found -1"),
    "empty": ({"train": (X[:0], Y[:0])}, clnp.DataError, "training data of task 'new': it is empty"),
    "empty validation": ({"validation": (X[:0], Y[:0])}, clnp.DataError, "validation data of task 'new': it is empty"),
    "one class": ({"train": (X, Y * 0)}, clnp.DataError, "hold a single class"),
    "shape": ({"train": (X[..., :4], Y)}, clnp.DataError, r"expected examples of shape \(1, 8, 8\) .* found \(1, 8, 4\)"),
    "dtype": ({"train": (X.double(), Y)}, clnp.DataError, "expected torch.float32"),
    "NaN": ({"train": (X / X.gt(9), Y)}, clnp.DataError, "180 of 180 examples hold NaN or infinite"),
    "NaN in validation": ({"validation": (X * float("nan"), Y)}, clnp.DataError, "validation data .* NaN or infinite"),
    "loss": (
        {"lr": 1e38, "optimizer": "sgd"},
        clnp.TrainingError,
        "task 'new' was abandoned .* NaN or infinite. Earlier tasks are untouched",
    ),
    "a form": ({"train": "mnist.csv"}, clnp.DataError, "found str"),
    "late label": (
        {"train": DataLoader(TensorDataset(X, torch.where(torch.arange(180) > 170, 9, Y)), 20), "n_classes": 3},
        clnp.DataError,
        "found 9",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_after_an_error_the_learner_is_what_it_was_and_works(case, used):
    settings, error, message = WRONG[case]
    before, rng, n_threads, told = snapshot(used), torch.random.get_rng_state(), torch.get_num_threads(), []
    with pytest.raises(error, match=message) as caught:
        learn(used, **{"name": "new", "threads": n_threads + 1, "progress": told.append, **settings})
    assert told == [], "before any training, where it can be known"
    assert isinstance(caught.value, clnp.ClnpError)
    assert torch.get_num_threads() == n_threads
    # A user's own DataLoader draws from the global generator.
    assert torch.equal(torch.random.get_rng_state(), rng) or case == "late label"
    assert_unchanged(used, before)
    if case in ("duplicate name", "loss", "late label"):
        assert learn(copy.deepcopy(used), "new", 2).task == "new"
        assert_unchanged(used, before)


def test_a_task_that_is_interrupted_anywhere_leaves_nothing(used):
    learner = copy.deepcopy(used)
    before = snapshot(learner)
    events = []
    learn(new(), progress=events.append, rounds=2, finetune_epochs=1)
    assert len(events) > 7
    for stop in range(1, len(events) + 1):
        told = []

        def progress(event, stop=stop, told=told):
            told.append(event)
            if len(told) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            learn(learner, "new", 2, progress=progress, rounds=2, finetune_epochs=1)
        assert len(told) == stop
        assert_unchanged(learner, before)
    one, two = learn(learner, "new", 2), learn(copy.deepcopy(used), "new", 2)
    assert (one.claimed, one.accuracy) == (two.claimed, two.accuracy), "as if nothing had been"


def test_threads_are_those_asked_for_and_put_back():
    before, seen = torch.get_num_threads(), []
    learn(new(), threads=before + 1, epochs=1, pool=1, progress=lambda _: seen.append(torch.get_num_threads()))
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_outputs_need_not_be_kept():
    accuracies, logits = [], []
    for limit in (0, 4096):
        learn(learner := new("vgg"), "a", 0)
        accuracies.append(learn(learner, "b", 1, memory_limit=limit, epochs=6).accuracy)
        logits.append(learner.predict(data(1)[1][0], task="a"))
    assert torch.equal(*logits)
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.1)


def test_a_learner_is_float32_whatever_dtype_torch_makes_by_default(tmp_path):
    def network():
        return nn.Sequential(
            nn.Linear(8, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2, bias=False)
        ).float()

    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    given = x, (x[:, 0] > 0).long()
    config = clnp.LearnConfig(epochs=2, rounds=1, finetune_epochs=1)
    torch.set_default_dtype(torch.float64)
    try:
        learner = clnp.Learner(network(), x[:2], head="5")
        for number, criterion in enumerate(("activity-weight", "taylor")):
            learner.learn(f"task {number}", given, given, config=config.model_copy(update={"criterion": criterion}))
        learner.save(tmp_path)
        loaded = clnp.Learner.load(tmp_path, network())
        wider = clnp.widen(loaded, {"0": 2})
        for task in learner.tasks:
            logits = learner.predict(x, task=task)
            assert logits.dtype == learner.predictor(task)(x).dtype == torch.float32
            assert torch.equal(loaded.predict(x, task=task), logits)
            assert torch.equal(wider.predict(x, task=task), logits)
        trained = clnp.Learner(network(), x[:2], head="5")
        trained.adopt("whole", given, given, config=config.model_copy(update={"margin": 0.5}))
        assert trained.predict(x, task="whole").dtype == torch.float32
        for kept in (learner, loaded, wider, trained):
            assert {each.weight.dtype for each in kept._records.values()} | {each.bias.dtype for each in kept._records.values()} == {
                torch.float32
            }
    finally:
        torch.set_default_dtype(torch.float32)


# ---- what a caller does at the same time, or with what it was given


def test_two_tasks_that_are_learned_at_the_same_time_do_not_spoil_each_other():
    """From within a callback, say, or another thread: the one that comes second is refused, and the first stays what it is."""
    learner, before = new(), []

    def interfere(event):
        if not before:
            before.append(None)
            learn(learner, "b", 1)
            before[0] = learner.predict(data(1)[0][0], task="b")

    with pytest.raises(clnp.TaskError, match=r"cannot take over task 'a': another task was learned"):
        learn(learner, "a", 0, progress=interfere)
    assert learner.tasks == ("b",)
    assert torch.equal(copy.deepcopy(learner).predict(data(1)[0][0], task="b"), before[0])
    learn(learner, "a", 0)
    assert torch.equal(copy.deepcopy(learner).predict(data(1)[0][0], task="b"), before[0])


@pytest.mark.parametrize("head", ["multi", "single"])
def test_a_head_that_was_handed_out_is_the_callers(head):
    learner = new()
    learn(learner, head=head)
    x = data()[0][0]
    before = learner.predict(x, task="a")
    for tensor in learner.head_of("a"):
        tensor.add_(1.0)
    assert torch.equal(copy.deepcopy(learner).predict(x, task="a"), before)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "mode",
    [torch.no_grad, torch.inference_mode, partial(torch.autocast, "cpu", torch.bfloat16)],
    ids=["no-grad", "inference", "autocast"],
)
def test_learning_is_the_same_in_whatever_mode_the_caller_is(mode, precision):
    expected, learner = new(), new()
    learn(expected, precision=precision)
    with mode():
        learn(learner, precision=precision)
    x = data()[0][0]
    assert torch.equal(learner.predict(x, task="a"), expected.predict(x, task="a"))


class Masked(nn.Module):
    """Attention that adds a mask of -inf, as many write it."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(9, 16), nn.Linear(16, 16)
        self.register_buffer("mask", torch.triu(torch.full((4, 4), float("-inf")), 1))

    def forward(self, x):
        h = self.embed(x)
        return (h + self.mix((h @ h.transpose(1, 2) + self.mask).softmax(-1) @ h)).relu().mean(1)


def test_an_infinite_constant_is_no_damage(tmp_path):
    x = torch.randint(0, 9, (60, 4), generator=torch.Generator().manual_seed(0))
    both = (x, (x[:, 0] > 4).long())
    learner = clnp.Learner(Masked(), torch.zeros(2, 4, dtype=torch.int64))
    learner.learn("a", both, both, config=clnp.LearnConfig(**FAST))
    learner.save(tmp_path)
    assert clnp.verify(tmp_path, Masked()).exit_code == 0
    with pytest.raises(clnp.DataError, match="cannot predict"):
        learner.predict(x + 100, task="a")


@pytest.mark.parametrize(
    ("probe", "said"), [(torch.zeros(0, *small.SHAPE), "at least one"), (torch.full((2, *small.SHAPE), torch.nan), "NaN")]
)
def test_a_probe_that_says_nothing_is_refused(probe, said):
    with pytest.raises(clnp.DataError, match=rf"cannot use the probe: .*{said}"):
        clnp.Learner(small.network("mlp"), torch.zeros(2, *small.SHAPE), probe=probe)


def test_a_probe_is_copied(tmp_path):
    probe = torch.randn(2, *small.SHAPE).transpose(-1, -2)
    learner = clnp.Learner(small.network("mlp"), torch.zeros(2, *small.SHAPE), probe=probe)
    assert learner.probe.is_contiguous()
    learn(learner)
    learner.save(tmp_path)
    probe += 1.0
    learn(learner, "b", 1)
    learner.save(tmp_path)
    assert clnp.verify(tmp_path, small.network("mlp")).exit_code == 0


@pytest.mark.parametrize("label", [10**9, 2**62])
def test_a_label_that_is_no_number_of_a_class_is_refused(label):
    x, y = data()[0]
    with pytest.raises(clnp.DataError, match=r"at most 1,000,000 classes"):
        learn(new(), train=(x, torch.where(torch.arange(len(y)) == 3, label, y)))


def test_labels_may_be_of_any_integers():
    (x, y), validation = data()
    learn(new(), train=(x, y.to(torch.uint16)), validation=(validation[0], validation[1].to(torch.uint16)))
