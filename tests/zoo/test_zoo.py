"""Every network of the zoo: units counted by hand, isolation, three tasks learned, narrowing and export."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
import zoo_oracle as oracle
from zoo_networks import ZOO, network, trunk
from zoo_table import PAGE, row
from zoo_tasks import accuracy, cut, tasks_for

import clnp
from clnp.inputs import parts
from clnp.narrow import narrow
from clnp.wiring import trace
from small import sampled

QUICK = "two-inputs"
"""It learns three tasks in the fast suite, where `test_examples` has transformers, a recurrent one does in CI, the others in the slow suite."""
NAMES = [pytest.param("swin", marks=pytest.mark.slow), *sampled([name for name in ZOO if name != "swin"], 8)]
"""To capture one takes a second, a Swin transformer ten."""
LEARNING = [
    name if name == QUICK else pytest.param(name, marks=pytest.mark.thorough if name == "lstm" else pytest.mark.slow) for name in ZOO
]
SINGLE_ONLY = ("llama-by-hand", "lstm", "lstm-bidirectional", "gru")
"""Networks whose code, or whose layers (the first hidden state), ask for single precision once they are captured."""
FIXED = {("text-cnn", "embedding"), ("beit", "qkv.weight")}
"""Groups that cannot be wider: a kernel is as wide as the embedding, all of whose channels are one unit; the bias of the keys is a buffer."""
N_SEEDS = 1
BATCHES = (1, 7)  # the example has 2
EMPTIED = [
    ("resnet", "layer1.0.conv1"),
    ("resnet-preact", "blocks.2.conv1"),
    ("densenet", "layers.1.conv2"),
    ("unet", "up1"),
    ("inception", "2.branch3.0.0"),
    ("mobilenet-v2", "1.conv.0.0"),
    ("resnext", "blocks.0.conv1.0"),
    ("convnext", "stage1.1.pwconv1"),
    ("vit-einsum", "blocks.0.attn.qkv"),
    ("vit-multihead", "blocks.1.attn.attn"),
    ("vit-registers", "blocks.1.mlp.fc1"),
    ("gpt-tied", "h.1.attn.c_attn"),
    ("llama", "layers.0.attention.wq"),
    ("llama-gqa", "layers.1.feed_forward.gate_up"),
    ("tcn", "blocks.1.net.0"),
    ("wavenet", "layers.2.conv"),
]
"""Groups that are the only path through a branch beside which there is another."""


@functools.cache
def wiring_of(name):
    entry = ZOO[name]
    return trace(trunk(entry, network(entry)), entry.example(2))


def stirred(name, seed):
    """The original network with scales, shifts and statistics that are not those it starts from, and a generator."""
    generator = torch.Generator().manual_seed(seed)
    model = oracle.plain(ZOO[name], seed)
    oracle.stir_(model, wiring_of(name), generator)
    return model, generator


def run(module, x):
    """The features or logits of a narrowed network."""
    return oracle.features_of(module, x)


def assert_close(found, single, double):
    """Within 1e-5 of the reference in double precision, and beyond that within what rounding does to the reference itself."""
    assert found.shape == double.shape
    scale = max(1.0, float(double.abs().max()))
    assert largest(found, double) <= 1e-5 * scale + 4 * largest(single, double)


def largest(a, b):
    return float((a.double() - b.double()).abs().max())


def used_parameters(name):
    """The parameters that the output depends on at all."""
    model = oracle.plain(ZOO[name]).requires_grad_()
    x = ZOO[name].example(2)
    out = model(*x) if isinstance(x, tuple) else model(x)
    sum(part.square().sum() for part in (out if isinstance(out, tuple) else (out,))).backward()
    return {parameter for parameter, value in model.named_parameters() if value.grad is not None}


def config(**settings):
    settings = {
        "epochs": 10,
        "finetune_epochs": 2,
        "rounds": 1,
        "batch_size": 16,
        "optimizer": "adamw",
        "lr": 5e-3,
        "weight_decay": 0.05,
        "pool": 0.4,
        "margin": 0.02,
        **settings,
    }
    return clnp.LearnConfig(**settings)


# ---- 1: units


@pytest.mark.parametrize("name", NAMES)
def test_groups_have_the_units_that_were_counted_by_hand(name):
    entry, wiring = ZOO[name], wiring_of(name)
    assert {group.name: group.n_units for group in wiring.groups} == dict(entry.groups)
    assert {group.name for group in wiring.groups if group.shared} == set(entry.shared)
    assert wiring.n_units == entry.n_units


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_networks_says_what_the_wiring_finds(name):
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith(f"| {name} |")] == [row(name, wiring_of(name))], "run: python tests/zoo/zoo_table.py"


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_labelled_in_full(name):
    wiring, model = wiring_of(name), oracle.plain(ZOO[name])
    tensors = oracle.tensors_of(model)
    assert used_parameters(name) <= set(wiring.parameters)
    covered = set()
    for parameter, labels in wiring.parameters.items():
        covered |= set(labels.rows.tolist())
        assert int(labels.rows.min()) >= 0
        if parameter in tensors:
            assert len(labels.rows) == tensors[parameter].shape[labels.row_dim]
            assert labels.columns is None or len(labels.columns) == tensors[parameter].shape[labels.column_dim]
    assert covered == set(range(wiring.n_units)), "every unit has a parameter"
    assert len(wiring.features) == oracle.features_of(model, ZOO[name].example(2)).shape[1]


@pytest.mark.parametrize("name", NAMES)
def test_explain_names_every_group(name):
    entry, text = ZOO[name], wiring_of(name).explain()
    assert all(group in text for group in entry.groups)


def test_capacity_that_is_lost_is_said_to_be():
    assert "capacity lost here" in wiring_of("text-cnn").explain()


# ---- 2: isolation


@pytest.mark.parametrize("name", NAMES)
def test_claimed_units_keep_every_bit(name):
    for seed in range(N_SEEDS):
        oracle.check_isolation(ZOO[name], wiring_of(name), seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_claimed_units_keep_every_bit_for_many_seeds(name):
    for seed in range(N_SEEDS, 40):
        oracle.check_isolation(ZOO[name], wiring_of(name), seed, n_tasks=2 + seed % 3)


# ---- 4: narrowing


def check_narrowed(name, inputs, seed):
    """Narrowed to random closed sets of units, a network computes what the whole one does without the others."""
    wiring = wiring_of(name)
    model, generator = stirred(name, seed)
    state = oracle.tensors_of(model) | dict(wiring.graph.constants)
    _, needed = oracle.random_allocation(wiring, oracle.norms_of(model, wiring), generator)
    for units in (*needed, torch.ones(wiring.n_units, dtype=torch.bool)):
        narrowed = narrow(wiring, state, units).eval()
        for x in inputs:
            single, double = oracle.reference(model, wiring, units, x), oracle.precise(model, wiring, units, x)
            assert largest(single, double) < 1e-3 * max(1.0, float(double.abs().max())), "the test needs a network that rounding spares"
            assert_close(run(narrowed, x), single, double)


@pytest.mark.parametrize("name", NAMES)
def test_narrowed_is_the_network_without_the_other_units(name):
    check_narrowed(name, [ZOO[name].example(n) for n in BATCHES], seed=0)


@pytest.mark.parametrize("name", sampled((name for name, entry in ZOO.items() if entry.varying), 8))
def test_narrowed_takes_other_sizes_where_the_network_does(name):
    check_narrowed(name, [make(n) for make in ZOO[name].varying for n in BATCHES], seed=1)


@pytest.mark.parametrize("name", [name for name in NAMES if name.values[0] not in SINGLE_ONLY])
def test_in_double_precision_nothing_is_lost(name):
    wiring = wiring_of(name)
    model, generator = stirred(name, 3)
    state = oracle.tensors_of(model.double()) | dict(wiring.graph.constants)
    _, needed = oracle.random_allocation(wiring, oracle.norms_of(model, wiring), generator)
    x = oracle.doubled(ZOO[name].example(5))
    for units in needed:
        expected = oracle.reference(model, wiring, units, x)
        assert largest(run(narrow(wiring, state, units).eval(), x), expected) <= 1e-9 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(("name", "group"), sampled(EMPTIED, 4))
def test_a_group_without_units_deletes_its_branch(name, group):
    wiring = wiring_of(name)
    model, _ = stirred(name, 2)
    units = torch.ones(wiring.n_units, dtype=torch.bool)
    units[next(found for found in wiring.groups if found.name == group).slice] = False
    narrowed = narrow(wiring, oracle.tensors_of(model) | dict(wiring.graph.constants), units).eval()
    for n in BATCHES:
        x = ZOO[name].example(n)
        assert_close(run(narrowed, x), oracle.reference(model, wiring, units, x), oracle.precise(model, wiring, units, x))
    gone = {parameter for parameter, labels in wiring.parameters.items() if not bool(units[labels.rows].any())}
    assert gone
    assert not gone & set(oracle.tensors_of(narrowed))


# ---- 3: three tasks


def mixed_batch(entry):
    """Real examples of all three tasks, and noise or random tokens."""
    parts = [cut(task[2], 0, 12) for task in tasks_for(entry)] + [entry.example(12)]
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True))
    return torch.cat(parts)


def logits_of(learner, x):
    return {name: learner.predict(x, task=name) for name in learner.tasks}


def assert_same(before, after):
    assert before.keys() <= after.keys()
    for name, logits in before.items():
        assert torch.equal(logits, after[name]), f"{name} changed"


def check_predictors(entry, learner, x):
    """A task's predictor is the original network, with the learner's weights, where only the task's units exist."""
    wiring = learner.wiring
    model = oracle.plain(entry)
    for name, tensor, _ in oracle.labelled(model, wiring):
        tensor.data.copy_(learner._state[name])
    owner = wiring.join(learner.allocation.owner)
    needed = torch.stack([wiring.join(learner.allocation.needed[task]) for task in learner.tasks])
    for number, task in enumerate(learner.tasks):
        keeps = oracle.with_raw(needed[number], raw=True)[wiring.features]
        weight, bias = learner.head_of(task)
        parts = (owner, needed)
        single = oracle.reference(model, wiring, needed[number], x, parts) @ weight[:, keeps].t() + bias
        double = oracle.precise(model, wiring, needed[number], x, parts) @ weight[:, keeps].t().double() + bias.double()
        assert_close(learner.predict(x, task=task), single, double)


@functools.cache
def learned(name):
    """A learner of three tasks; old logits and their places are checked on the way."""
    entry = ZOO[name]
    learner = clnp.Learner(network(entry), entry.example(2), head=entry.head)
    x, logits, accuracies = mixed_batch(entry), {}, []
    for number, (x_train, y_train, x_val, y_val) in enumerate(tasks_for(entry)):
        result = learner.learn(f"task {number}", (x_train, y_train), (x_val, y_val), config=config())
        accuracies.append(accuracy(learner.predict(x_val, task=result.task), y_val))
        assert accuracies[-1] == pytest.approx(result.accuracy)
        after = logits_of(learner, x)
        assert_same(logits, after)
        logits = after
    return learner, accuracies, logits


@pytest.mark.parametrize("name", LEARNING)
def test_three_tasks_are_learned_and_none_is_forgotten(name):
    _, accuracies, _ = learned(name)
    assert min(accuracies) > 0.75, accuracies


@pytest.mark.parametrize("name", LEARNING)
def test_copies_and_files_keep_every_bit(name, tmp_path):
    entry, (learner, _, logits) = ZOO[name], learned(name)
    x = mixed_batch(entry)
    assert_same(logits, logits_of(copy.deepcopy(learner), x))
    with torch.no_grad():
        assert_same(logits, {name: pickle.loads(pickle.dumps(learner.predictor(name)))(*parts(x)) for name in learner.tasks})
    learner.save(tmp_path / "model")
    assert_same(logits, logits_of(clnp.Learner.load(tmp_path / "model", network(entry, seed=7)), x))


@pytest.mark.parametrize("name", LEARNING)
def test_what_was_loaded_learns_on_and_forgets_nothing(name, tmp_path):
    entry, (learner, _, logits) = ZOO[name], learned(name)
    learner.save(tmp_path / "model")
    loaded = clnp.Learner.load(tmp_path / "model", network(entry))
    x_train, y_train, x_val, y_val = tasks_for(entry)[0]
    loaded.learn("again", (x_train, y_train), (x_val, y_val), config=config(epochs=1, finetune_epochs=0, margin=0.2))
    assert_same(logits, logits_of(loaded, mixed_batch(entry)))


@pytest.mark.parametrize("name", [name if name != QUICK else pytest.param(QUICK, marks=pytest.mark.thorough) for name in LEARNING])
def test_every_group_can_be_wider_and_every_bit_stays(name, tmp_path):
    entry, (learner, _, logits) = ZOO[name], learned(name)
    x, rows = mixed_batch(entry), learner.capacity()
    for group, before in rows.items():
        if (name, group) in FIXED:
            with pytest.raises(clnp.WiringError, match=f"cannot widen {group} by 4: the network's code fixes a size"):
                clnp.widen(learner, {group: 4})
            continue
        wider = clnp.widen(learner, {group: 4})
        assert_same(logits, logits_of(wider, x))
        assert {other: found.free for other, found in wider.capacity().items()} == {
            other: found.free + 4 * (other == group) for other, found in rows.items()
        }
        assert wider.capacity()[group].n_units == before.n_units + 4
    # All of them together; the next task learns there, and what is loaded is the same.
    wider = clnp.widen(learner, {group: 4 for group in rows if (name, group) not in FIXED})
    x_train, y_train, x_val, y_val = tasks_for(entry)[0]
    wider.learn("again", (x_train, y_train), (x_val, y_val), config=config(epochs=1, finetune_epochs=0, margin=0.2))
    after = logits_of(wider, x)
    assert_same(logits, after)
    wider.save(tmp_path / "model")
    assert_same(after, logits_of(clnp.Learner.load(tmp_path / "model", network(entry)), x))


@pytest.mark.parametrize("name", LEARNING)
def test_predictors_are_the_original_network_without_the_other_units(name):
    entry, (learner, _, _) = ZOO[name], learned(name)
    for n in BATCHES:
        check_predictors(entry, learner, entry.example(n))
    check_predictors(entry, learner, mixed_batch(entry))


@pytest.mark.parametrize("name", LEARNING)
def test_shared_units_belong_to_the_first_task_and_are_needed_by_all(name):
    entry, (learner, _, _) = ZOO[name], learned(name)
    for group in entry.shared:
        assert learner.allocation.owner[group].tolist() == [0]
        assert all(learner.allocation.needed[task][group].all() for task in learner.tasks)


@pytest.mark.parametrize("name", LEARNING)
def test_onnx_runtime_computes_what_the_predictor_does(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    entry, (learner, _, _) = ZOO[name], learned(name)
    task = learner.tasks[-1]
    path = learner.export(tmp_path / "task.onnx", task=task, to="onnx").path
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for n in BATCHES:
        x = entry.example(n)
        parts = x if isinstance(x, tuple) else (x,)
        feed = {wanted.name: part.numpy() for wanted, part in zip(session.get_inputs(), parts, strict=True)}
        found = torch.from_numpy(session.run(None, feed)[0])
        expected = learner.predict(x, task=task)
        assert float((found - expected).abs().max()) <= 1e-4 * max(1.0, float(expected.abs().max()))


# ---- the zoo itself


def test_the_zoo_holds_many_small_networks():
    assert len(ZOO) >= 25
    for entry in ZOO.values():
        assert sum(parameter.numel() for parameter in network(entry).parameters()) <= 30_000
        assert set(entry.shared) <= set(entry.groups)
        assert set(entry.merged) <= set(entry.groups)
    assert all(group in ZOO[name].groups for name, group in EMPTIED)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_takes_the_inputs_that_it_says_it_takes(name):
    entry = ZOO[name]
    model = oracle.plain(entry)
    n_features = oracle.features_of(model, entry.example(2)).shape[1]
    for make in (entry.example, *entry.varying):
        out = oracle.features_of(model, make(3))
        assert out.shape == (3, n_features)
        assert bool(out.isfinite().all())


@pytest.mark.parametrize("name", NAMES)
def test_three_tasks_of_real_data_fit_the_network(name):
    entry = ZOO[name]
    for x_train, y_train, x_val, y_val in tasks_for(entry):
        assert len(y_train) == 240
        assert len(y_val) >= 100
        for x, y in ((x_train, y_train), (x_val, y_val)):
            assert sorted(y.unique().tolist()) == [0, 1]
            pairs = zip(x, entry.example(1), strict=True) if isinstance(x, tuple) else [(x, entry.example(1))]
            assert all(part.shape[1:] == example.shape[1:] and part.dtype == example.dtype for part, example in pairs)
