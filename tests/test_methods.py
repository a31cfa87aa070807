"""One table of methods times one list of promises: a new method is tested by being listed."""

from __future__ import annotations

import hashlib
import itertools
import json
from functools import partial

import pytest
import torch
from torch import nn

from clnp.benchmarks import BENCHMARKS
from clnp.config import METHODS_OF, LearnConfig, unread
from clnp.errors import ConfigError, DamageError, DataError, StoreError, TaskError, TrainingError
from clnp.methods import METHODS, shared
from clnp.methods.dense import STATE
from clnp.methods.joint import ManyHeads
from clnp.models import MODELS
from clnp.seeds import seeded
from clnp.training import IMPOSSIBLE

CONFIG = LearnConfig(epochs=2, rounds=1, finetune_epochs=1, batch_size=64)


@pytest.fixture(scope="module")
def tasks():
    return BENCHMARKS["digits"].tasks(None, 0, 3)


def trunk(model="mlp-small"):
    with seeded(0, "model"):
        return MODELS[model]((1, 8, 8))


def make(name, config=CONFIG, seed=0, model="mlp-small"):
    return METHODS[name](partial(trunk, model), torch.zeros(2, 1, 8, 8), config, seed)


def teach(method, task, progress=lambda event: None):
    return method.learn(task.name, task.train, task.validation, task.n_classes, progress)


every_method = pytest.mark.parametrize("name", METHODS)


@every_method
def test_a_learned_task_is_predicted_far_better_than_by_chance(name, tasks):
    config = LearnConfig(epochs=10, batch_size=32)
    method = make(name, config)
    assert method.tasks == ()
    told = teach(method, tasks[0])
    x, y = tasks[0].test
    logits = method.predict(x, tasks[0].name)
    assert logits.shape == (len(x), 2)
    assert not logits.requires_grad
    assert (logits.argmax(1) == y).float().mean() > 0.9
    assert method.tasks == (tasks[0].name,)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert not {"task", "index", "seconds", "cpu_seconds", "event", "time"} & set(told), "these belong to the experiment"


@every_method
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(name, tasks):
    def logits(seed):
        method = make(name, seed=seed)
        teach(method, tasks[0])
        return method.predict(tasks[0].test[0], tasks[0].name)

    assert torch.equal(logits(0), logits(0))
    assert not torch.equal(logits(0), logits(1))


SGD = {"optimizer": "sgd", "lr": 0.05}
# Other optimizers and models than those of every other test, where a method keeps something of them.
OTHERS = [
    ("hat", SGD, "mlp-small"),
    ("hat", SGD, "resnet-small"),
    ("hat", {}, "vgg-small"),
    ("si", SGD, "mlp-small"),
    ("packnet", SGD, "resnet-small"),
]


@pytest.mark.parametrize(("name", "settings", "model"), [*((name, {}, "mlp-small") for name in METHODS), *OTHERS])
def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened(name, settings, model, tasks, tmp_path):
    build = partial(make, name, CONFIG.model_copy(update=settings), model=model)
    through = build()
    for task in tasks[:2]:
        teach(through, task)
        through.save(tmp_path / "through")
    resumed = build()
    teach(resumed, tasks[0])
    resumed.save(tmp_path / "model")
    torch.rand(7)  # a resumed process has drawn other numbers before
    resumed = build()
    resumed.load(tmp_path / "model")
    assert resumed.tasks == (tasks[0].name,)
    resumed.revisit(tasks[:1])
    teach(resumed, tasks[1])
    resumed.save(tmp_path / "model")
    reloaded = build()
    reloaded.load(tmp_path / "model")
    for task in tasks[:2]:
        x = task.test[0]
        expected = through.predict(x, task.name)
        assert torch.equal(resumed.predict(x, task.name), expected)
        assert torch.equal(reloaded.predict(x, task.name), expected)
    assert reloaded.capacity() == through.capacity()
    assert reloaded.forecast() == through.forecast()


EXACT = {"clnp", "single", "packnet", "wsn"}
"""Methods that promise that an earlier task answers as before, bit for bit."""


@every_method
def test_methods_that_promise_it_forget_nothing(name, tasks):
    method = make(name)
    teach(method, tasks[0])
    x = tasks[0].test[0]
    before = method.predict(x, tasks[0].name)
    teach(method, tasks[1])
    x_second = tasks[1].test[0]
    second = method.predict(x_second, tasks[1].name)
    teach(method, tasks[2])
    assert torch.equal(method.predict(x, tasks[0].name), before) == (name in EXACT)
    assert torch.equal(method.predict(x_second, tasks[1].name), second) == (name in EXACT)


@every_method
def test_a_name_that_is_taken_is_refused_and_nothing_changes(name, tasks):
    method = make(name)
    teach(method, tasks[0])
    before = method.predict(tasks[0].test[0], tasks[0].name)
    with pytest.raises(TaskError, match=f"'{tasks[0].name}'.*learned already"):
        teach(method, tasks[0])
    assert torch.equal(method.predict(tasks[0].test[0], tasks[0].name), before)


@every_method
def test_labels_that_are_no_classes_are_refused_before_anything_is_changed(name, tasks):
    method = make(name)
    teach(method, tasks[0])
    before = method.predict(tasks[0].test[0], tasks[0].name)
    (x, y), validation = tasks[1].train, tasks[1].validation
    for wrong, right in (((x, y + 5), validation), ((x, y), (validation[0], validation[1] - 1))):
        with pytest.raises(DataError, match=r"expected labels 0 to 1, found (6|-1)"):
            method.learn("wrong", wrong, right, 2, lambda _: None)
    assert torch.equal(method.predict(tasks[0].test[0], tasks[0].name), before)
    teach(method, tasks[1])
    x, y = tasks[1].validation
    assert method.predict(x, tasks[1].name).shape == (len(x), 2)


SHARE_ALL = {"finetune", "joint", "ewc", "online-ewc", "si", "superposition", "packnet", "hat", "wsn"}
"""Methods whose tasks all move the same weights: a task that was not finished leaves them half trained."""


@every_method
def test_what_a_task_left_half_learned_is_not_used(name, tasks, tmp_path):
    method = make(name)
    teach(method, tasks[0])
    method.save(tmp_path)
    x = tasks[0].test[0]
    before = method.predict(x, tasks[0].name)

    def stop(_event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach(method, tasks[1], stop)
    if name not in SHARE_ALL:
        assert torch.equal(method.predict(x, tasks[0].name), before)
        return
    for use in (lambda: method.predict(x, tasks[0].name), lambda: teach(method, tasks[2]), lambda: method.save(tmp_path)):
        with pytest.raises(TaskError, match=f"learning task '{tasks[1].name}' was not finished"):
            use()
    fresh = make(name)
    fresh.load(tmp_path)
    assert torch.equal(fresh.predict(x, tasks[0].name), before)


@every_method
def test_a_head_that_all_share_is_refused_where_nothing_protects_it(name):
    config = CONFIG.model_copy(update={"head": "single"})
    if name in {"ewc", "online-ewc", "si", "packnet", "hat", "wsn"}:
        with pytest.raises(ConfigError, match=r"one head for all tasks.*head=multi"):
            make(name, config)
    else:
        make(name, config)


@every_method
def test_progress_counts_the_epochs_that_a_comparison_grants(name, tasks):
    events = []
    teach(make(name), tasks[0], events.append)
    epochs = [event for event in events if event["event"] == "epoch"]
    assert len(epochs) == CONFIG.total_epochs == 3
    assert all(event["task"] == tasks[0].name and event["loss"] > 0 for event in epochs)


@every_method
def test_capacity_adds_up_or_is_not_counted(name, tasks):
    method = make(name)
    teach(method, tasks[0])
    capacity = method.capacity()
    assert (capacity is None) == (name != "clnp")
    for group in (capacity or {}).values():
        assert set(group) == {"n_units", "free", "claimed", "reused"}
        assert group["free"] + sum(group["claimed"].values()) == group["n_units"]
    assert (method.forecast() is None) == (name != "clnp")


@every_method
def test_nothing_finite_comes_of_a_learning_rate_that_diverges(name, tasks):
    config = LearnConfig(epochs=3, lr=1e30, optimizer="sgd", schedule="constant")
    with pytest.raises(TrainingError, match=tasks[0].name):
        teach(make(name, config), tasks[0])


@pytest.mark.parametrize("name", ["finetune", "single"])
def test_damaged_files_are_refused(name, tasks, tmp_path):
    method = make(name)
    teach(method, tasks[0])
    method.save(tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DamageError, match=r"network-\d\.safetensors"):
        make(name).load(tmp_path)
    file.unlink()
    with pytest.raises(DamageError, match=r"network-\d\.safetensors"):
        make(name).load(tmp_path)
    checksum = "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"  # of []
    for content in (
        "{",
        "[" * 100_000,
        "[]",
        json.dumps({"checksum": hashlib.sha256(b"{}").hexdigest()}),
        json.dumps({"checksum": checksum}),
    ):
        (tmp_path / STATE).write_text(content)
        with pytest.raises(DamageError, match=STATE):
            make(name).load(tmp_path)


@pytest.mark.parametrize("name", ["finetune", "single"])
def test_one_bit_that_flipped_is_noticed_in_every_file(name, tasks, tmp_path):
    method = make(name)
    teach(method, tasks[0])
    method.save(tmp_path)
    make(name).load(tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    for path in files:
        whole = path.read_bytes()
        for place in range(0, len(whole), max(len(whole) // 23, 1)):
            if path.suffix == ".json" and not whole[place : place + 1].isalnum():
                continue  # spaces and line ends may be others
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(DamageError, match=rf"{path.name}.*expected.*found.*start the run anew"):
                make(name).load(tmp_path)
        path.write_bytes(whole)
    make(name).load(tmp_path)


def test_the_files_of_single_are_written_once(tasks, tmp_path):
    method = make("single")
    teach(method, tasks[0])
    method.save(tmp_path)
    path = tmp_path / "network-0.safetensors"
    before = (path.stat().st_ino, path.read_bytes())
    teach(method, tasks[1])
    method.save(tmp_path)
    assert (path.stat().st_ino, path.read_bytes()) == before
    loaded = make("single")
    loaded.load(tmp_path)
    assert loaded.tasks == (tasks[0].name, tasks[1].name)


@pytest.mark.parametrize("name", ["finetune", "single"])
def test_a_network_of_another_shape_is_refused(name, tasks, tmp_path):
    method = make(name)
    teach(method, tasks[0])
    method.save(tmp_path)
    other = METHODS[name](lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU()), torch.zeros(2, 1, 8, 8), CONFIG, 0)
    with pytest.raises(StoreError, match="another network"):
        other.load(tmp_path)


@pytest.mark.parametrize("name", ["finetune", "single"])
def test_a_crash_while_saving_costs_no_saved_task(name, tasks, tmp_path, monkeypatch):
    method = make(name)
    teach(method, tasks[0])
    method.save(tmp_path)
    expected = method.predict(tasks[0].test[0], tasks[0].name)
    teach(method, tasks[1])
    with monkeypatch.context() as patch:
        patch.setattr(
            f"clnp.methods.{'shared' if name == 'finetune' else name}.write_state", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
        )
        with pytest.raises(OSError, match="disk full"):
            method.save(tmp_path)
    loaded = make(name)
    loaded.load(tmp_path)
    assert loaded.tasks == (tasks[0].name,)
    assert torch.equal(loaded.predict(tasks[0].test[0], tasks[0].name), expected)


def test_finetuning_keeps_one_file(tasks, tmp_path):
    method = make("finetune")
    for task in tasks[:2]:
        teach(method, task)
        method.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {STATE, "network-2.safetensors"}


def test_a_single_head_is_shared_and_grows(tasks, tmp_path):
    method = make("finetune", CONFIG.model_copy(update={"head": "single"}))
    teach(method, tasks[0])
    rows = method.heads[0].weight.detach().clone()
    method.learn("more", *[(x, y + 1) for x, y in (tasks[1].train, tasks[1].validation)], 3, lambda event: None)
    assert len(method.heads) == 1
    assert method.heads[0].weight.shape == (3, rows.shape[1])
    assert method.predict(tasks[0].test[0], tasks[0].name).shape[1] == 2
    assert method.predict(tasks[1].test[0], "more").shape[1] == 3
    method.save(tmp_path)
    loaded = make("finetune", CONFIG.model_copy(update={"head": "single"}))
    loaded.load(tmp_path)
    assert torch.equal(loaded.predict(tasks[0].test[0], "more"), method.predict(tasks[0].test[0], "more"))


@pytest.mark.parametrize("name", ["finetune", "single"])
def test_the_dense_baseline_is_a_plain_loop(name, tasks):
    """The shared loop must do to a dense network what ten obvious lines do, or its cost and accuracy are no baseline."""
    from clnp.methods.dense import make_head
    from clnp.seeds import generator

    config = LearnConfig(epochs=2, rounds=1, finetune_epochs=0, batch_size=64, schedule="constant", lr=0.01)
    method, body, answers = make(name, config), trunk(), []
    for index, task in enumerate(tasks[:2]):
        teach(method, task)
        if name == "single":
            body = trunk()
        network = nn.Sequential(body, make_head(64, 2, 0, "task", index))
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01, betas=(0.9, 0.999), fused=True)
        x, y = task.train
        for epoch in range(2):
            order = torch.randperm(len(x), generator=generator(0, "task", index, "train", 0, "order", epoch))
            for places in order[: len(x) - len(x) % 64].split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x[places]), y[places]).backward()
                optimizer.step()
        with torch.no_grad():
            answers.append(network(x))
            assert torch.equal(method.predict(x, task.name), answers[-1])
    old = method.predict(tasks[0].train[0], tasks[0].name)
    assert torch.equal(old, answers[0]) == (name == "single"), "a network of its own keeps what it learned, a shared one does not"


def test_the_upper_bound_counts_every_example_once_and_against_its_own_classes(tasks):
    """The loss of 32 + 16 examples of two tasks is the mean of 48 cross-entropies, each over two classes."""
    torch.manual_seed(0)
    heads = [nn.Linear(64, 2), nn.Linear(64, 2)]
    network, parts = ManyHeads(trunk().eval(), heads, [2, 2]), [(tasks[0], 32), (tasks[1], 16)]
    x = torch.cat([task.train[0][:n] for task, n in parts])
    numbers = torch.tensor([0] * 32 + [1] * 16)
    y = torch.cat([parts[0][0].train[1][:32], 2 + parts[1][0].train[1][:16]])
    found = nn.functional.cross_entropy(network((x, numbers)), y)
    each = [
        nn.functional.cross_entropy(head(network.trunk(task.train[0][:n])), task.train[1][:n], reduction="sum")
        for head, (task, n) in zip(heads, parts, strict=True)
    ]
    torch.testing.assert_close(found, sum(each) / 48)


def test_the_upper_bound_learns_all_tasks_at_once(tasks):
    config = LearnConfig(epochs=10, rounds=1, finetune_epochs=0, batch_size=16)
    method = make("joint", config)
    for task in tasks:
        teach(method, task)
    for task in tasks:
        x, y = task.test
        assert (method.predict(x, task.name).argmax(1) == y).float().mean() > 0.95
    n_epochs = []
    teach(make("joint", config), tasks[0], lambda event: n_epochs.append(event["epoch"]))
    assert len(n_epochs) == 10, "as many epochs as the others have"


def test_the_upper_bound_sees_all_examples_so_far_in_every_epoch(tasks, monkeypatch):
    method, seen = make("joint"), []
    monkeypatch.setattr(shared, "fit_dense_", lambda network, train, *_, **__: seen.append((network, train)) or 1.0)
    for task in tasks:
        teach(method, task)
    assert [len(train) for _, train in seen] == list(itertools.accumulate(len(task.train[1]) for task in tasks))
    network, train = seen[-1]
    logits = network((*[part[:1] for part in train.x[:-1]], torch.tensor([1])))
    assert (logits[0, [0, 1, 4, 5]] == IMPOSSIBLE).all(), "classes of other tasks are no answers"
    assert (logits[0, 2:4] > IMPOSSIBLE / 2).all()


@every_method
def test_a_directory_holds_what_was_saved_last(name, tasks, tmp_path):
    """Two models are saved to one place: the second is what lies there, or is refused."""
    one, other = make(name, seed=0), make(name, seed=5)
    for method in (one, other):
        for task in tasks[:2]:
            teach(method, task)
    one.save(tmp_path)
    if name == "clnp":
        with pytest.raises(StoreError, match="another learner"):
            other.save(tmp_path)
        return
    other.save(tmp_path)
    loaded = make(name, seed=5)
    loaded.load(tmp_path)
    for task in tasks[:2]:
        assert torch.equal(loaded.predict(task.test[0], task.name), other.predict(task.test[0], task.name))
    loaded.save(tmp_path / "copy")
    again = make(name, seed=5)
    again.load(tmp_path / "copy")
    assert torch.equal(again.predict(tasks[0].test[0], tasks[0].name), other.predict(tasks[0].test[0], tasks[0].name))


@every_method
def test_what_is_loaded_takes_the_place_of_what_was_learned(name, tasks, tmp_path):
    method = make(name)
    for task in tasks[:2]:
        teach(method, task)
    method.save(tmp_path)
    expected = method.predict(tasks[0].test[0], tasks[0].name)
    teach(method, tasks[2])
    for _ in range(2):
        method.load(tmp_path)
        assert method.tasks == (tasks[0].name, tasks[1].name)
        assert torch.equal(method.predict(tasks[0].test[0], tasks[0].name), expected)
    told, afresh = teach(method, tasks[2]), make(name)
    afresh.load(tmp_path)
    afresh.revisit(tasks[:2])
    assert told["accuracy"] == teach(afresh, tasks[2])["accuracy"]
    assert torch.equal(method.predict(tasks[2].test[0], tasks[2].name), afresh.predict(tasks[2].test[0], tasks[2].name))


@pytest.mark.parametrize(("seed", "contexts"), [(1, "binary"), (0, "rotation")])
def test_superposition_is_loaded_with_its_own_contexts_alone(seed, contexts, tasks, tmp_path):
    method = make("superposition")
    teach(method, tasks[0])
    method.save(tmp_path)
    with pytest.raises(StoreError, match=rf"saved with .*binary.*'seed': 0.*made with .*{contexts}.*'seed': {seed}"):
        make("superposition", LearnConfig(**{**CONFIG.model_dump(), "contexts": contexts}), seed).load(tmp_path)


WRONG = {
    "a label too few": (lambda x, y: (x, y[:-3]), "expected one label for each of 231 examples"),
    "no examples": (lambda x, y: (x[:0], y[:0]), "it is empty"),
    "labels that are no numbers of classes": (lambda x, y: (x, y.float()), "expected integer labels"),
    "another shape": (lambda x, y: (x[..., :-1], y), r"expected examples of shape \(1, 8, 8\)"),
    "another dtype": (lambda x, y: (x.double(), y), "expected torch.float32"),
    "no number": (lambda x, y: (x.where(x > 0, torch.nan), y), "NaN"),
    "a label too large": (lambda x, y: (x, y + 1), "expected labels 0 to 1, found 2"),
}


@pytest.mark.parametrize("name", ["finetune", "superposition", "joint"])
def test_a_task_trains_and_is_counted_with_its_own_rows_of_a_shared_head_alone(name, tasks):
    """A task of three classes came first: the second of two has as good as none of the third's logit to learn, and none to answer."""
    config = CONFIG.model_copy(update={"head": "single", "schedule": "constant"})
    method = make(name, config)
    wide = [(x, y + 1) for x, y in (tasks[0].train, tasks[0].validation)]
    method.learn("wide", *wide, 3, lambda event: None)
    row = method.heads[0].weight[2].detach().clone()
    told = teach(method, tasks[1])
    x, y = tasks[1].validation
    assert told["accuracy"] == pytest.approx(float((method.predict(x, tasks[1].name).argmax(1) == y).float().mean()))
    if name != "joint":  # it goes on learning the first task
        assert torch.equal(method.heads[0].weight[2], row)


def test_labels_are_smoothed_over_the_classes_that_a_task_has(tasks):
    config = LearnConfig(epochs=10, rounds=1, finetune_epochs=0, batch_size=32, label_smoothing=0.1)
    method, losses = make("joint", config), []
    for task in tasks:
        teach(method, task, lambda event: losses.append(event["loss"]))
    assert losses[-1] < 0.5
    for task in tasks:
        x, y = task.test
        assert (method.predict(x, task.name).argmax(1) == y).float().mean() > 0.95


def test_the_upper_bound_asks_for_data_that_it_does_not_have(tasks, tmp_path):
    method = make("joint")
    teach(method, tasks[0])
    method.save(tmp_path)
    loaded = make("joint")
    loaded.load(tmp_path)
    with pytest.raises(TaskError, match=r"data of those that were loaded are missing.*revisit"):
        teach(loaded, tasks[1])
    loaded.revisit(tasks[:1])
    teach(loaded, tasks[1])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x.flatten(1)).relu()).relu()


@pytest.mark.parametrize("name", [name for name in METHODS if name not in {"clnp", "hat"}])
def test_tied_weights_are_saved_and_loaded(name, tasks, tmp_path):
    def build():
        return METHODS[name](Tied, torch.zeros(2, 1, 8, 8), CONFIG, 0)

    method = build()
    for task in tasks[:2]:
        teach(method, task)
        method.save(tmp_path)
    loaded = build()
    loaded.load(tmp_path)
    x = tasks[0].test[0]
    assert torch.equal(loaded.predict(x, tasks[0].name), method.predict(x, tasks[0].name))


def test_springs_hold_what_is_trained_where_a_frozen_layer_cannot_be_vectorised(tasks):
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.out = nn.GRU(64, 8, batch_first=True), nn.Linear(8, 8)
            self.gru.requires_grad_(False)

        def forward(self, x):
            return self.out(self.gru(x.flatten(1)[:, None])[0][:, -1]).relu()

    method = METHODS["ewc"](Frozen, torch.zeros(2, 1, 8, 8), CONFIG.model_copy(update={"epochs": 1}), 0)
    teach(method, tasks[0])
    assert (method.guard.stiffness.get_buffer("out/weight") > 0).any()


@every_method
def test_data_of_one_class_are_refused(name, tasks):
    x, y = tasks[0].train
    with pytest.raises(DataError, match="hold a single class"):
        make(name).learn("same", (x, torch.zeros_like(y)), tasks[0].validation, 2, lambda _: None)


@every_method
def test_data_that_cannot_be_learned_are_refused_and_nothing_is_changed(name, tasks):
    method, task = make(name), tasks[0]
    for spoil, said in WRONG.values():
        for train, validation in ((spoil(*task.train), task.validation), (task.train, spoil(*task.validation))):
            with pytest.raises(DataError, match=said.replace("231", r"\d+")):
                method.learn("spoilt", train, validation, 2, lambda _: None)
    for n_classes in (0, 1):
        with pytest.raises(DataError, match=f"at least two classes, found {n_classes}"):
            method.learn("spoilt", task.train, task.validation, n_classes, lambda _: None)
    x, y = task.train
    method.learn(task.name, (x, y.to(torch.int16)), task.validation, 2, lambda _: None)
    other = make(name)
    teach(other, task)
    assert torch.equal(method.predict(task.test[0], task.name), other.predict(task.test[0], task.name))
    with pytest.raises(TaskError, match="'nothing'"):
        method.predict(task.test[0], "nothing")


@every_method
@pytest.mark.parametrize("device", ["meta", "nonsense", "cuda:77"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_made(name, device):
    with pytest.raises(ConfigError, match=f"cannot train on device '{device}'"):
        make(name, LearnConfig(device=device))


def test_a_penalty_that_diverges_is_named(tasks):
    config = LearnConfig(**{**CONFIG.model_dump(), "strength": 1e12, "optimizer": "sgd", "lr": 0.1, "schedule": "constant"})
    method = make("ewc", config)
    teach(method, tasks[0])
    with pytest.raises(TrainingError, match="--set strength"):
        teach(method, tasks[1])


@every_method
def test_a_method_reads_the_settings_that_it_is_said_to_read(name, tasks):
    read = set()

    class Watched(LearnConfig):
        def __getattribute__(self, key):
            if key in METHODS_OF:
                read.add(key)
            return super().__getattribute__(key)

    method = make(name, Watched(**CONFIG.model_dump()))
    for task in tasks[:2]:
        method.revisit(tasks[:2])
        teach(method, task)
    assert read == {key for key, readers in METHODS_OF.items() if name in readers}
    assert set(unread(name, LearnConfig.model_fields)) == set(METHODS_OF) - read
