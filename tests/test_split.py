"""The training form computes what the whole network computes, and only pool rows and the head can be trained in it."""

from __future__ import annotations

import copy
import functools
import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import small
from clnp.layers import PoolNorm
from clnp.narrow import narrow
from clnp.split import Head, initialise_, split
from clnp.wiring import trace
from test_narrow import READERS, kept_features, masked, model_of, shape_of, state_of

N_CLASSES = 3
# Whose units a weight's rows are: by hand, like READERS. Biases and norms follow the weight of their layer.
ROWS = {
    "mlp": {"2.weight": "2", "5.weight": "5"},
    "vgg": {"0.weight": "0", "5.weight": "5", "10.weight": "10"},
    "resnet": {
        "stem.weight": "stem",
        "block1.conv1.weight": "block1.conv1",
        "block1.conv2.weight": "stem",
        "block2.conv1.weight": "block2.conv1",
        "block2.conv2.weight": "block2.conv2",
        "block2.shortcut.weight": "block2.conv2",
    },
    "a layer used twice": {"p.weight": "p", "a.weight": "p"},
    "tied parameters": {"p.weight": "p", "a.weight": "p"},
    "batch norm on raw input": {"a.weight": "a"},
    "a gate": {"c.weight": "c", "d.weight": "d", "e.weight": "c"},
    "parallel branches": {},
}
QUIET = sorted(set(READERS) - {"vgg", "resnet", "batch norm on raw input", "mlp"})  # no batch norm, no dropout


@functools.cache
def wiring_of(name):
    return trace(model_of(name), torch.zeros(2, *shape_of(name)))


class Case:
    """A network whose units are in part claimed by an earlier task, in part the pool, in part out of sight."""

    def __init__(self, name, seed, *, claimed=True, pool=True, empty=False):
        self.name = name
        self.model = model_of(name, seed)
        self.wiring = wiring_of(name)
        rng = random.Random(f"{name}{seed}")
        self.claimed, self.pool = {}, {}
        for group, (n, _) in READERS[name][0].items():
            order = rng.sample(range(n), n)
            # Where a task claimed anything, it needs a unit in each group: so does the new one.
            first = rng.randint(1, max(n - 1, 1)) if claimed else 0
            last = rng.randint(first if empty and claimed else first + 1, n) if pool else first
            self.claimed[group], self.pool[group] = torch.zeros(2, n, dtype=torch.bool)
            self.claimed[group][order[:first]] = True
            self.pool[group][order[first:last]] = True
        self.visible = {group: self.claimed[group] | self.pool[group] for group in self.claimed}
        self._sever()
        self.head = Head(torch.randn(N_CLASSES, len(self.wiring.features)), torch.randn(N_CLASSES))
        self.x = torch.randn(8, *shape_of(name))

    def _sever(self):
        """No claimed unit reads what is not claimed."""
        state = dict(self.model.named_parameters(remove_duplicate=False))
        for group, (n, readers) in READERS[self.name][0].items():
            for weight, start, repeat in readers:
                rows = self.claimed[ROWS.get(self.name, {}).get(weight, weight.removesuffix(".weight"))]
                for unit in range(n):
                    if not self.claimed[group][unit]:
                        state[weight].data[rows, start + unit * repeat : start + (unit + 1) * repeat] = 0

    def split(self, **settings):
        join = self.wiring.join
        state = {key: tensor.detach() for key, tensor in state_of(self.model).items()}
        return split(self.wiring, state, join(self.claimed), join(self.pool), self.head, **settings)

    def expected(self, x):
        """Logits of the whole network, in which nobody reads what is out of sight."""
        positions = kept_features(self.name, self.visible)
        features = masked(self.model, self.name, self.visible)(x.clone())[:, positions]
        return features @ self.head.weight[:, positions].t() + self.head.bias


def lies_in(wiring, piece):
    """Return the name of a piece's full-width tensor, and which places of it the piece holds."""
    if piece.of_head:
        return piece.name, tuple(index for _, index in piece.places)
    operand = wiring.operands[piece.name]
    assert not operand.moves, "these networks use their parameters as they are"
    chosen = dict(piece.places)
    assert len(chosen) == len(piece.places), "one choice for each dimension"
    if len(chosen) < 2:
        return operand.parameter, (slice(None),) * min(chosen, default=0) + tuple(chosen.values())
    assert sorted(chosen) == [0, 1]
    return operand.parameter, (chosen[0][:, None], chosen[1][None])


def close(a, b):
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


PARTS = [(0, {}), (1, {}), (2, {"empty": True}), (3, {"claimed": False}), (4, {"pool": False})]


@pytest.mark.parametrize("name", small.sampled(READERS, 2))
def test_it_computes_what_the_visible_units_compute(name):
    for seed, parts in PARTS:
        case = Case(name, seed, **parts)
        network = case.split().eval()
        narrowed = narrow(case.wiring, state_of(case.model), network.visible, head=(case.head.weight, case.head.bias))
        for n in (8, 1, 3):
            with torch.no_grad():
                assert close(network(case.x[:n]), case.expected(case.x[:n]))
                assert close(network(case.x[:n]), narrowed(case.x[:n]))


@pytest.mark.parametrize("name", READERS)
def test_kept_values_give_the_same_logits(name):
    for seed, parts in PARTS:
        case = Case(name, seed, **parts)
        network, lean = case.split().eval(), case.split(values_kept=True).eval()
        assert lean.claimed is None
        values = network.claimed_values(case.x)
        assert len(values) == len(network.meets)
        assert lean.meets == network.meets
        assert (network.claimed is None) == (not values)
        with torch.no_grad():
            assert torch.equal(network(case.x, values), network(case.x))
            assert torch.equal(lean(case.x, values), network(case.x))
            part = tuple(value[2:5] for value in values)
            assert close(network(case.x[2:5], part), network(case.x)[2:5]), "they are constants of an example"


@pytest.mark.parametrize("name", READERS)
def test_parameters_are_exactly_the_rows_of_the_pool_and_the_head(name):
    case = Case(name, 1)
    network = case.split()
    everyone = torch.tensor([True])
    pool = torch.cat([network.pool_units, ~everyone])
    visible = torch.cat([network.visible, everyone])
    held = {key: torch.zeros_like(tensor, dtype=torch.int) for key, tensor in state_of(case.model).items()}
    heads = {"head.weight": torch.zeros(N_CLASSES, len(case.wiring.features), dtype=torch.int), "head.bias": torch.zeros(N_CLASSES)}
    for piece in network.pieces:
        key, places = lies_in(case.wiring, piece)
        count = (heads if piece.of_head else held)[key]
        assert count[places].shape == piece.tensor.shape
        count[places] += 1
    for key, labels in case.wiring.parameters.items():
        expected = pool[labels.rows]
        if labels.columns is not None:
            expected = expected[:, None] & visible[labels.columns][None]
        expected = expected.reshape(*expected.shape, *[1] * (held[key].dim() - expected.dim())).expand(held[key].shape)
        assert torch.equal(held[key], expected.int()), f"{key}: each trained weight once, no other"
    assert torch.equal(heads["head.weight"], visible[case.wiring.features].int().expand(N_CLASSES, -1))
    assert torch.equal(heads["head.bias"], torch.ones(N_CLASSES))
    n_buffers = sum(buffer.numel() for norm in network.norms for buffer in norm.buffers())
    n_held = sum(int(count.sum()) for count in (*held.values(), *heads.values()))
    assert sum(parameter.numel() for parameter in network.parameters()) == n_held - n_buffers
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert network.claimed is None or list(network.claimed.parameters()) == []
    assert {id(weight) for weight in network.weights()} == {id(p) for p in network.parameters() if p.dim() > 1}
    storages = {p.untyped_storage().data_ptr() for p in network.parameters()}
    assert not storages & {tensor.untyped_storage().data_ptr() for tensor in (*state_of(case.model).values(), case.head.weight)}


@pytest.mark.parametrize("name", READERS)
def test_everything_is_written_back_exactly_where_it_came_from(name):
    case = Case(name, 2)
    network = case.split()
    state = {key: tensor.detach().clone() for key, tensor in state_of(case.model).items()}
    head = Head(case.head.weight.clone(), case.head.bias.clone())
    network.write(state, head)
    assert all(torch.equal(state[key], tensor) for key, tensor in state_of(case.model).items()), "what was not trained is what it was"
    with torch.no_grad():
        for number, tensor in enumerate((*network.parameters(), *(b for norm in network.norms for b in norm.buffers()))):
            tensor.copy_(tensor.abs() + 0.1 + torch.linspace(0, 0.1, tensor.numel()).reshape(tensor.shape) + number % 2)
    network.write(state, head)
    pool, visible = torch.cat([network.pool_units, torch.tensor([False])]), torch.cat([network.visible, torch.tensor([True])])
    for key, labels in case.wiring.parameters.items():
        expected = pool[labels.rows] if labels.columns is None else pool[labels.rows][:, None] & visible[labels.columns][None]
        changed = (state[key] != state_of(case.model)[key]).reshape(*expected.shape, -1)
        assert torch.equal(changed.any(-1), expected), f"{key}: every trained weight moved, no other"
        assert torch.equal(changed.all(-1), expected)
    assert torch.equal((head.weight != case.head.weight).any(0), visible[case.wiring.features])
    predictor = narrow(case.wiring, state, network.visible, head=(head.weight, head.bias))
    with torch.no_grad():
        assert close(predictor(case.x), network.eval()(case.x)), "the predictor is the trained network"


def oracle_gradients(case, *, training):
    """Gradients of the whole masked network with respect to all of its tensors, by autograd on the model itself."""
    model = masked(case.model, case.name, case.visible)
    model.train(training)
    leaves = {key: tensor.detach().clone().requires_grad_() for key, tensor in model.named_parameters()}
    weight, bias = case.head.weight.clone().requires_grad_(), case.head.bias.clone().requires_grad_()
    positions = kept_features(case.name, case.visible)
    logits = functional_call(model, leaves, (case.x.clone(),), tie_weights=True)[:, positions] @ weight[:, positions].t() + bias
    F.cross_entropy(logits, torch.arange(len(case.x)) % N_CLASSES).backward()
    return {key: leaf.grad for key, leaf in leaves.items()} | {"head.weight": weight.grad, "head.bias": bias.grad}


# In training, batch statistics and noise differ by design, see the tests below.
@pytest.mark.parametrize(("name", "training"), [*((name, False) for name in READERS), *((name, True) for name in QUIET)])
def test_gradients_of_pool_rows_are_those_of_the_whole_network(name, training):
    for seed in range(3):
        case = Case(name, seed)
        network = case.split().train(training)
        F.cross_entropy(network(case.x), torch.arange(len(case.x)) % N_CLASSES).backward()
        expected = oracle_gradients(case, training=training)
        compared = set()
        for piece in network.pieces:
            key, places = lies_in(case.wiring, piece)
            if piece.tensor.requires_grad:  # else a running statistic
                assert close(piece.tensor.grad, expected[key][places]), f"{key}, seed {seed}"
                compared.add(id(piece.tensor))
        assert compared == {id(parameter) for parameter in network.parameters()}
        assert all(buffer.grad is None for buffer in network.buffers())


def make(net, shape, claimed, pool):
    wiring = trace(net, torch.zeros(2, *shape))
    units = torch.zeros(2, wiring.n_units, dtype=torch.bool)
    units[0][claimed] = units[1][pool] = True
    head = Head(torch.randn(N_CLASSES, len(wiring.features)), torch.zeros(N_CLASSES))
    return split(wiring, {key: tensor.detach() for key, tensor in state_of(net).items()}, *units, head), wiring, head


def test_dropout_acts_on_what_pool_rows_read_and_on_nothing_else():
    net = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Dropout(1.0), nn.Linear(6, 5))
    net[3].weight.data[:2, 3:] = 0  # the first two units read the first three
    network, _, head = make(net, (4,), [0, 1, 2, 6, 7], [3, 4, 8, 9])
    x = torch.randn(10, 4)
    with torch.no_grad():
        claimed = F.linear(torch.sigmoid(net[0](x)), net[3].weight, net[3].bias)[:, :2]
        features = torch.cat([claimed, net[3].bias[2:4].expand(10, 2)], 1)  # everything that the pool reads is dropped
        assert close(network.train()(x), features @ head.weight[:, :4].t())
        assert torch.equal(network(x, network.claimed_values(x)), network(x))


class Started(nn.Module):
    """A recurrent layer whose first state is made by a layer, in whole or in part."""

    def __init__(self, n, state):
        super().__init__()
        self.start, self.layer, self.state = nn.Linear(4, n), nn.GRU(4, 6, batch_first=True), state

    def forward(self, x):
        first = x[:, 0]
        return self.layer(x, self.state(torch.tanh(self.start(first)), first).unsqueeze(0))[0][:, -1]


STATES = {
    "the layer's": (6, lambda made, x: made),
    "input before it": (4, lambda made, x: torch.cat([x[:, :2], made], 1)),
    "input behind it": (4, lambda made, x: torch.cat([made, x[:, :2]], 1)),
    "zeros behind it": (4, lambda made, x: F.pad(made, (0, 2))),
}


@pytest.mark.parametrize("name", STATES)
def test_a_first_state_that_is_made_by_a_layer_may_be_all_of_the_pool_or_of_none_or_in_part(name):
    net, x = Started(*STATES[name]), torch.randn(10, 7, 4)
    wiring = trace(net, x[:2])
    everything = torch.ones(wiring.n_units, dtype=torch.bool)
    for claimed, pool in (([], everything), (everything, []), *(([], list(pair)) for pair in itertools.combinations(range(6), 2))):
        network, _, head = make(net, (7, 4), claimed, pool)
        narrowed = narrow(wiring, state_of(net), network.visible, head=(head.weight, head.bias))
        with torch.no_grad():
            assert close(network.eval()(x), narrowed(x))


class Drop(nn.Module):
    """Stochastic depth: leave a whole branch out of an example, in training."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        return x * x.new_empty(x.shape[0], 1).bernoulli_(1 - self.p) / (1 - self.p) if self.training else x


def test_stochastic_depth_leaves_out_a_branch_of_claimed_and_pool_units_together_and_in_training_alone():
    net = nn.Sequential(nn.Linear(4, 6), Drop(0.5), nn.Linear(6, 5))
    net[2].weight.data[:2, 3:] = 0  # the first two units read the first three
    network, _, head = make(net, (4,), [0, 1, 2, 6, 7], [3, 4, 8, 9])
    x = torch.randn(64, 4)
    keep = torch.tensor([0, 1, 2, 3, 4])
    with torch.no_grad():
        read = net[0](x)[:, keep]

        def features(mask):
            pool = 2 * mask * (read @ net[2].weight[2:4, keep].t()) + net[2].bias[2:4]
            claimed = read[:, :3] @ net[2].weight[:2, :3].t() + net[2].bias[:2]
            return torch.cat([claimed, pool], 1) @ head.weight[:, :4].t()

        kept, dropped = features(1.0), features(0.0)
        found = network.train()(x)
        of_kept, of_dropped = ((found - expected).abs().amax(1) < 1e-4 for expected in (kept, dropped))
        assert bool((of_kept ^ of_dropped).all()), "the units of an example are all there, or none is"
        assert 12 < int(of_kept.sum()) < 52
        assert not torch.equal(network(x), found), "it is drawn anew"
        assert close(network.eval()(x), features(0.5))


@pytest.mark.parametrize("name", ["mlp", "vgg", "resnet"])
def test_training_mode_does_not_reach_the_claimed_graph(name):
    case = Case(name, 5)
    network = case.split().eval()
    values = network.claimed_values(case.x)
    before = copy.deepcopy(network.claimed.state_dict())
    network.train()
    assert not any(module.training for module in network.claimed.modules())
    assert not any(value.requires_grad for value in network.claimed_values(case.x.clone().requires_grad_()))
    one, two = network(case.x), network(case.x)
    assert not torch.equal(one, two), "dropout draws anew"
    one.sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(values, network.claimed_values(case.x), strict=True))
    assert all(torch.equal(before[key], value) for key, value in network.claimed.state_dict().items())
    network.eval()
    assert torch.equal(network(case.x), network(case.x))


def test_the_pools_batch_norm_is_batch_norm_and_claimed_channels_run_on_frozen_statistics():
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, momentum=0.3, eps=1e-3))
    net[1].running_mean.copy_(torch.arange(5.0))
    network, _, head = make(net, (4,), [0, 2], [1, 4])
    x = torch.randn(16, 4)
    with torch.no_grad():
        h = net[0](x)
        whole = F.batch_norm(h, None, None, net[1].weight, net[1].bias, training=True, eps=1e-3)
        whole[:, [0, 2]] = F.batch_norm(h, net[1].running_mean, net[1].running_var, net[1].weight, net[1].bias, eps=1e-3)[:, [0, 2]]
        assert close(network.train()(x), whole[:, [0, 1, 2, 4]] @ head.weight[:, [0, 1, 2, 4]].t())
    (norm,) = network.norms
    assert close(norm.mean, 0.7 * torch.tensor([1.0, 4.0]) + 0.3 * h.mean(0)[[1, 4]])
    assert close(norm.var, 0.7 * torch.ones(2) + 0.3 * h.var(0)[[1, 4]])


def test_estimated_statistics_are_the_mean_over_batches():
    norm = PoolNorm(None, None, torch.full((3,), 7.0), torch.full((3,), 9.0), 0.1, 1e-5).eval()
    batches = [torch.randn(10, 3) * (i + 1) + i for i in range(3)]
    norm.estimating = True
    for x in batches:
        norm(x)
    assert close(norm.mean, torch.stack([x.mean(0) for x in batches]).mean(0))
    assert close(norm.var, torch.stack([x.var(0) for x in batches]).mean(0))
    norm.estimating, before = False, norm.mean.clone()
    norm(batches[0])
    assert torch.equal(norm.mean, before)


def test_a_shared_head_keeps_the_columns_of_earlier_tasks():
    case = Case("mlp", 1)
    case.head = Head(case.head.weight, case.head.bias, shared=True)
    network = case.split()
    assert isinstance(network.head_given, nn.Buffer)
    assert "head_given" not in dict(network.named_parameters())
    with torch.no_grad():
        network.head_pool.fill_(3)
        assert network.eval()(case.x).shape == (8, N_CLASSES)
    head = Head(case.head.weight.clone(), case.head.bias.clone(), shared=True)
    network.write({key: tensor.detach().clone() for key, tensor in state_of(case.model).items()}, head)
    assert torch.equal((head.weight != case.head.weight).any(0), case.pool["5"]), "the pool's columns alone"


@pytest.mark.parametrize("name", small.NETWORKS)
def test_the_pool_starts_anew_and_nothing_else_moves(name):
    case = Case(name, 6)
    claimed, pool = case.wiring.join(case.claimed), case.wiring.join(case.pool)
    before = {key: tensor.detach().clone() for key, tensor in state_of(case.model).items()}
    one, two, other = ({key: tensor.clone() for key, tensor in before.items()} for _ in range(3))
    for state, seed in ((one, 1), (two, 1), (other, 2)):
        initialise_(case.wiring, state, claimed, pool, torch.Generator().manual_seed(seed))
    rows_of, columns_of = torch.cat([pool, torch.tensor([False])]), torch.cat([claimed | pool, torch.tensor([True])])
    for key, labels in case.wiring.parameters.items():
        rows = rows_of[labels.rows]
        assert torch.equal(one[key], two[key])
        assert torch.equal(one[key][~rows], before[key][~rows])
        if labels.columns is None:
            value = 1.0 if key.endswith("running_var") or (key.endswith("weight") and before[key].dim() == 1) else 0.0
            assert (one[key][rows] == value).all(), key
        else:
            columns = columns_of[labels.columns]
            assert torch.equal(one[key][rows][:, ~columns], before[key][rows][:, ~columns])
            assert (one[key][rows][:, columns] != before[key][rows][:, columns]).all(), "released units keep nothing"
            assert (one[key][rows][:, columns] != other[key][rows][:, columns]).all()


def test_weights_start_from_hes_distribution_over_the_visible_columns():
    net = nn.Sequential(nn.Conv2d(1, 40, 3), nn.ReLU(), nn.Conv2d(40, 400, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    wiring = trace(net, torch.zeros(2, 1, 6, 6))
    state = {key: tensor.detach().clone() for key, tensor in state_of(net).items()}
    claimed, pool = torch.zeros(440, dtype=torch.bool), torch.zeros(440, dtype=torch.bool)
    claimed[:10], pool[10:20], pool[40:] = True, True, True
    initialise_(wiring, state, claimed, pool, torch.Generator().manual_seed(0))
    drawn = state["2.weight"][:, :20]
    assert float(drawn.std()) == pytest.approx((2 / (20 * 9)) ** 0.5, rel=0.03)
    assert abs(float(drawn.mean())) < 2e-3
