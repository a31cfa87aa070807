"""What users do with their own networks: adopt them, freeze them, run them in other modes, add rules, export what they learned."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo_networks import ZOO, network, trunk
from zoo_tasks import tasks_for

import clnp
from clnp.narrow import narrow, reaches
from clnp.wiring import RULES, register, trace

FAST = {"epochs": 3, "finetune_epochs": 1, "rounds": 1, "batch_size": 32, "pool": 0.5, "margin": 0.02}


class WithHead(nn.Module):
    def __init__(self, entry, n_classes):
        super().__init__()
        self.trunk = network(entry)
        with torch.no_grad():
            self.head = nn.Linear(self.trunk(entry.example(2)).shape[1], n_classes)

    def forward(self, x):
        return self.head(self.trunk(x))


def trained(entry, n_epochs=15):
    """A whole network that was trained on the first task in plain PyTorch."""
    x, y, *_ = tasks_for(entry)[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WithHead(entry, int(y.max()) + 1)
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(n_epochs):
            for places in torch.randperm(len(x)).split(32):
                optimizer.zero_grad()
                F.cross_entropy(model(x[places]), y[places]).backward()
                optimizer.step()
    return model.eval()


@pytest.mark.parametrize("name", ["lstm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vit-einsum", "llama-gqa"))])
def test_a_pretrained_network_is_adopted_and_learns_two_more_tasks(name):
    entry, model = ZOO[name], trained(ZOO[name])
    tasks = tasks_for(entry)
    _, _, x, y = tasks[0]
    accuracy = float((model(x).argmax(1) == y).float().mean())
    learner = clnp.Learner(model, entry.example(2), head="head")
    result = learner.adopt("first", tasks[0][:2], tasks[0][2:], config=clnp.LearnConfig(margin=0.02))
    assert result.accuracy_unpruned == pytest.approx(accuracy, abs=1e-6)
    assert result.accuracy >= accuracy - 0.02
    free = learner.capacity()
    assert sum(row.free for row in free.values()) > 0.2 * sum(row.n_units for row in free.values())
    before = learner.predict(x, task="first")
    full = {group: 16 for group, row in free.items() if row.free < 8}
    learner = clnp.widen(learner, full) if full else learner
    for number, (a, b, c, d) in enumerate(tasks[1:]):
        learned = learner.learn(f"more {number}", (a, b), (c, d), config=clnp.LearnConfig(**{**FAST, "epochs": 15, "lr": 5e-3}))
        assert torch.equal(before, learner.predict(x, task="first"))
        assert learned.accuracy > 0.7, learned


def tiny_vit():
    return trunk(ZOO["vit-einsum"], network(ZOO["vit-einsum"])), ZOO["vit-einsum"].example(2)


@pytest.mark.thorough
def test_frozen_parameters_are_units_like_others():
    model, x = tiny_vit()
    free = trace(model, x)
    assert trace(model.requires_grad_(False), x).explain() == free.explain()


def test_it_works_where_gradients_are_off():
    model, x = tiny_vit()
    with torch.no_grad():
        learner = clnp.Learner(model, x)
        a, b, c, d = tasks_for(ZOO["vit-einsum"])[0]
    learner.learn("one", (a, b), (c, d), config=clnp.LearnConfig(**FAST))


@pytest.mark.thorough
def test_channels_last_changes_nothing():
    entry = ZOO["resnet"]
    model, x = trunk(entry, network(entry)), entry.example(2)
    wiring = trace(model, x)
    lasting = trace(copy.deepcopy(model).to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last))
    assert lasting.explain() == wiring.explain()
    learner = clnp.Learner(model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last))
    a, b, c, d = tasks_for(entry)[0]
    learner.learn("one", (a, b), (c, d), config=clnp.LearnConfig(**{**FAST, "epochs": 1}))
    expected = learner.predict(c, task="one")
    assert torch.allclose(learner.predict(c.to(memory_format=torch.channels_last), task="one"), expected, atol=1e-5)


@pytest.mark.parametrize("name", [pytest.param("vit-einsum", marks=pytest.mark.thorough), "resnet"])
def test_it_works_under_autocast_to_bfloat16(name):
    entry = ZOO[name]
    a, b, c, d = tasks_for(entry)[0]
    with torch.autocast("cpu", torch.bfloat16):
        learner = clnp.Learner(trunk(entry, network(entry)), entry.example(2))
        learner.learn("one", (a, b), (c, d), config=clnp.LearnConfig(**FAST))
        within = learner.predict(c, task="one")
        half = learner.predictor("one")(c)  # the predictor is the caller's, and so are its modes
    whole = learner.predict(c, task="one")
    assert torch.equal(within, whole)
    assert half.dtype == torch.bfloat16
    assert float((half.float() - whole).abs().max()) < 0.1 * float(whole.abs().max())


@torch.library.custom_op("zoo::swirl", mutates_args=())
def swirl(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x) * x


@swirl.register_fake
def _(x):
    return torch.empty_like(x)


class Swirling(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(torch.ops.zoo.swirl(self.a(x)))


def test_an_operation_of_ones_own_is_merged_until_it_has_a_rule():
    x = torch.randn(2, 4)
    wiring = trace(Swirling(), x)
    assert wiring.groups[0].n_units == 1
    assert "capacity lost here: zoo.swirl.default" in wiring.explain()
    register("zoo::swirl", RULES["aten.relu.default"].label, "pointwise")
    try:
        model = Swirling()
        wiring = trace(model, x)
        assert [group.n_units for group in wiring.groups] == [6, 3]
        assert "capacity lost" not in wiring.explain()
        units = torch.tensor([True, False, True, True, False, False, True, True, True])
        model.b.weight.data[:, ~units[:6]] = 0
        assert torch.allclose(narrow(wiring, dict(model.named_parameters()), units)(x), model(x), atol=1e-6)
    finally:
        del RULES["zoo.swirl.default"]


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm], ids=["new style", "old style"])
def test_a_network_with_weight_norm_works_on_when_its_copy_was_folded(norm):
    model = nn.Sequential(norm(nn.Linear(4, 6)), nn.ReLU(), norm(nn.Linear(6, 5)))
    x = torch.randn(7, 4)
    before = model(x).detach()
    for _ in range(2):
        learner = clnp.Learner(model, x[:2])
        assert torch.equal(model(x), before)
    assert [group.n_units for group in learner.wiring.groups] == [6, 5]
    assert sorted(dict(learner.wiring.parameters)) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    before.sum()
    torch.nn.functional.mse_loss(model(x), before + 1).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("op", ["swirl", "a::b::c::d", ""])
def test_a_rule_for_no_operation_is_refused(op):
    with pytest.raises(clnp.WiringError, match="expected a name like 'mylib::myop' and a function"):
        register(op, RULES["aten.relu.default"].label)


def test_a_branch_may_lose_all_its_units_but_not_the_only_path():
    entry = ZOO["resnet"]
    wiring = trace(trunk(entry, network(entry)), entry.example(2))
    everything = torch.ones(wiring.n_units, dtype=torch.bool)
    paths = {group.name: reaches(wiring, everything & ~group.mask(wiring.n_units)) for group in wiring.groups}
    assert paths["layer1.0.conv1"], "the block goes on through its shortcut"
    assert not paths["conv1"], "nothing goes on without the stream"


def test_learning_deletes_a_branch_that_nothing_needs():
    class Idle(nn.Module):
        """A second branch that adds nothing that the first one does not say."""

        def __init__(self):
            super().__init__()
            self.main, self.idle, self.back = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 12)

        def forward(self, x):
            return torch.relu(self.main(x) + 1e-3 * self.back(torch.relu(self.idle(x))))

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=generator)
    y = (x[:, 0] > 0).long()
    learner = clnp.Learner(Idle(), x[:2])
    learner.learn(
        "sign", (x[:300], y[:300]), (x[300:], y[300:]), config=clnp.LearnConfig(**{**FAST, "epochs": 20, "lr": 1e-2, "pool": "all"})
    )
    assert learner.capacity()["idle"].claimed == {"sign": 0}
    names = dict(learner.predictor("sign").named_parameters())
    assert not any("idle" in name for name in names), "the branch is not computed"
    assert float((learner.predict(x, task="sign").argmax(1) == y).float().mean()) > 0.9


def test_the_fullest_stream_is_named_and_widening_makes_room():
    entry = ZOO["resnet"]
    learner = clnp.Learner(trunk(entry, network(entry)), entry.example(2))
    a, b, c, d = tasks_for(entry)[0]
    settings = clnp.LearnConfig(**{**FAST, "epochs": 1, "pool": "all", "margin": 0.0, "finetune_epochs": 0})
    learner._allocation = learner.allocation.commit(
        "all", {group.name: torch.ones(group.n_units, dtype=torch.bool) for group in learner.wiring.groups}
    )
    with pytest.raises(clnp.CapacityError, match=r"layer 'layer2.0.downsample.0' has 0 of 24 units free.*clnp widen"):
        learner.learn("one more", (a, b), (c, d), config=settings)
