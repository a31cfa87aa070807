"""What is recalled of the network before is what would be computed, to the bit; and it is not computed."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import fx, nn

import clnp
import clnp.candidates
import clnp.pruning
import clnp.recall
import clnp.training
import small
from clnp.layers import Attention, Noise, PoolNorm
from clnp.narrow import moved_labels
from clnp.recall import Memory, Recalled, _of_module, _of_tensor, keys_of, recalling
from clnp.sources import TensorExamples
from clnp.split import Head, split
from clnp.wiring import trace
from clnp.wiring.graph import MASK
from test_narrow import READERS, state_of
from test_pruning import Watch, learn, new, nothing_released
from test_split import PARTS, Case

TURNS = 5


def asked(visible):
    """Networks as selection asks about them: groups take turns from the last to the first, and after a turn some units of its group are gone."""
    generator = torch.Generator().manual_seed(0)
    now = {group: units.clone() for group, units in visible.items()}
    for group in reversed(visible):
        for n in range(TURNS):
            lost = torch.randperm(len(visible[group]), generator=generator)[: 1 + len(visible[group]) * n // 8]
            keep = {name: units.clone() for name, units in now.items()}
            keep[group][lost] = False
            yield keep
        now = keep


def inside_selection(monkeypatch, name, look, **settings):
    """Learn two tasks, and a third, of whose selection nothing is done but to call look(its candidates, the visible units)."""
    monkeypatch.setattr(clnp.training, "EVALUATION_BATCH", 25)  # several batches, the last of them smaller
    monkeypatch.setattr(clnp.training, "ESTIMATE_BATCH", 50)
    monkeypatch.setattr(clnp.pruning, "EVIDENCE", 100)  # witnesses are asked, too
    settings = {"margin": 0.9, "epochs": 1, "rounds": 1, "finetune_epochs": 0, **settings}
    learner = new(name)
    for number in (0, 1):
        learn(learner, Watch(monkeypatch, number), f"task {number}", **settings)

    def select(scores, visible, measure, **others):
        look(measure.__self__, visible)
        return nothing_released(scores, visible, measure, **others)

    with monkeypatch.context() as patch:
        patch.setattr(clnp.pruning, "select", select)
        learn(learner, Watch(monkeypatch, 2), "last", **settings)


def everything_of(monkeypatch, candidates, visible, *, recall=True, between=lambda candidates: None):
    """Ask about networks: every logit and the statistics of all norms, and how many batches went through a norm."""
    seen, n_normed = [], 0
    answers, narrowed, norm = clnp.training.answers, clnp.candidates.narrowed, PoolNorm.forward

    def noted(*args, **named):
        for logits, y in answers(*args, **named):
            seen.append(logits.clone())
            yield logits, y

    def built(*args, **named):
        network = narrowed(*args, **named)
        assert isinstance(network.pool, Recalled) == (recall and candidates.memory is not None)
        seen.extend(statistic.clone() for norm in network.norms for statistic in (norm.mean, norm.var))
        return network

    def normed(self, x):
        nonlocal n_normed
        n_normed += 1
        return norm(self, x)

    with monkeypatch.context() as patch:
        if not recall:
            patch.setattr(Memory, "watch", lambda self, network: None)
        candidates.screen(visible)  # which examples are the hardest is found once
        patch.setattr(clnp.training, "answers", noted)
        patch.setattr(clnp.candidates, "narrowed", built)
        patch.setattr(PoolNorm, "forward", normed)
        for keep in asked(visible):
            for ask in (candidates.screen, candidates.measure):
                seen.append(torch.tensor(float(ask(keep))))
                between(candidates)
    return seen, n_normed


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


TIGHT = {"margin": 0.02, "pool": 0.2}  # most networks are refused, and counting ends early
HALF, NO_ROOM = {"precision": "bfloat16", "channels_last": True}, {"memory_limit": 0}
CASES = [
    ("vgg", HALF),
    ("vgg", {}),
    ("vgg", NO_ROOM),
    ("resnet", TIGHT),
    ("vgg", TIGHT),
    ("resnet", HALF),
    ("resnet", {}),
    ("resnet", NO_ROOM),
    ("mlp", {}),
    ("mlp", HALF),
]


@pytest.mark.parametrize(("name", "settings"), small.sampled(CASES), ids=str)
def test_what_is_recalled_is_what_would_be_computed(monkeypatch, name, settings):
    found = []

    def look(candidates, visible):
        assert (candidates.memory is None) == (name == "mlp" or settings == NO_ROOM), (
            "a weight that is used once an example is not worth a hash"
        )
        anew = everything_of(monkeypatch, candidates, visible, recall=False)
        found.append((everything_of(monkeypatch, candidates, visible), anew))

    inside_selection(monkeypatch, name, look, **settings)
    (((recalled, n_recalled), (computed, n_computed)),) = found
    assert len(computed) > 100
    assert same(recalled, computed)
    if name == "mlp":
        assert n_recalled == n_computed == 0
    elif settings.get("memory_limit") == 0:
        assert n_recalled == n_computed, "nothing may be kept"
    else:
        assert n_recalled < 0.75 * n_computed


def test_what_lies_before_a_group_is_not_computed_again(monkeypatch):
    """The small VGG has a norm behind each of its three groups: of these, the last has one behind it, the first has all."""
    counts = []

    def look(candidates, visible):
        pool = candidates.trial.wiring.split(candidates.network.pool_units)
        for group in (*reversed(visible),):
            for n_lost in (1, 2, 3):
                keep = {name: units.clone() for name, units in visible.items()}
                keep[group][pool[group].nonzero()[:n_lost, 0]] = False
                n_normed.clear()
                candidates.measure(keep)
                counts.append(len(n_normed))

    norm, n_normed = PoolNorm.forward, []
    monkeypatch.setattr(PoolNorm, "forward", lambda self, x: n_normed.append(1) or norm(self, x))
    inside_selection(monkeypatch, "vgg", look)
    everything = counts[0]
    # The first question of a turn is about another group than the one before: that one's units are back.
    assert counts == [everything, everything // 3, everything // 3, *[everything * 2 // 3] * 3, *[everything] * 3]


def test_a_batch_that_was_not_kept_spoils_no_statistic(monkeypatch):
    """Statistics are means over batches: a value that one batch lacks is computed in all of them."""
    found = []

    def lose(candidates):
        for batches in candidates.memory.values.values():
            for values in batches[1::2]:
                values.clear()

    def look(candidates, visible):
        found.append(everything_of(monkeypatch, candidates, visible, between=lose)[0])
        found.append(everything_of(monkeypatch, candidates, visible, recall=False)[0])

    inside_selection(monkeypatch, "vgg", look)
    assert same(*found)


def test_no_more_is_kept_than_there_is_room_for(monkeypatch):
    kept = {}

    def look(candidates, visible):
        for room in (0, 300, 1e9):
            candidates.memory = Memory(room)
            kept[room] = 0
            everything_of(monkeypatch, candidates, visible, between=check)

    def size(candidates, part):
        batches = candidates.memory.values.get(part, [])
        return max((sum(value.numel() * value.element_size() for value in values.values()) for values in batches), default=0)

    def check(candidates):
        memory = candidates.memory
        assert all(size(candidates, part) <= 50 * memory.room for part in memory.values), "of a batch of at most 50"
        kept[memory.room] = max(kept[memory.room], size(candidates, "validation"))

    inside_selection(monkeypatch, "vgg", look)
    assert kept[0] == 0 < kept[300] < kept[1e9]


def split_of(net):
    """The training form of a network of small images, all whose units are the pool's."""
    wiring = trace(net, torch.zeros(2, *small.SHAPE))
    none = torch.zeros(wiring.n_units, dtype=torch.bool)
    state = {key: tensor.detach() for key, tensor in state_of(net).items()}
    return split(wiring, state, none, ~none, Head(torch.ones(3, len(wiring.features)), torch.zeros(3))).eval()


def kept_in(memory, part):
    return [value for values in memory.values[part] for value in values.values()]


def test_there_is_room_on_the_way_and_not_in_the_end_alone(monkeypatch):
    """What does not fit is dropped at once: a pass never holds what all its layers read, nor what other networks left there."""
    net = nn.Sequential(*[layer for n in (1, *[16] * 7) for layer in (nn.Conv2d(n, 16, 3, padding=1), nn.ReLU())], nn.Flatten())
    one_layer, most, keep = 16 * 8 * 8 * 4, [], clnp.recall._keep

    def watched(kept, more, room):
        values = [value for held in (kept, more, *memory.values["x"]) for value in held.values()]
        most.append(sum({value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in values}.values()))
        keep(kept, more, room)

    monkeypatch.setattr(clnp.recall, "_keep", watched)
    memory, x = Memory(2.5 * one_layer), torch.randn(10, *small.SHAPE)
    for _ in range(3):
        with torch.no_grad():
            net[0].weight += 1  # from there on, all is new
        network = split_of(net)
        memory.watch(network)
        gone = [weakref.ref(value) for value in kept_in(memory, "x")] if memory.values else []
        with torch.no_grad(), recalling(network, "x"):
            network(x)
        assert not any(value() is not None for value in gone)
    assert max(most) == 3 * 10 * one_layer, "the newest, and the two before it"


def test_two_memories_take_no_more_than_their_share_of_the_limit(monkeypatch):
    may = {}

    def look(candidates, visible):
        assert candidates.hard_memory is not candidates.memory, "one is of bfloat16, say"
        everything_of(monkeypatch, candidates, visible)
        for name in ("memory", "hard_memory"):
            memory = getattr(candidates, name)
            n_examples = sum(max(map(len, values.values())) for batches in memory.values.values() for values in batches if values)
            may[name] = n_examples * memory.room

    inside_selection(monkeypatch, "vgg", look, memory_limit=1)
    assert all(2**20 / 32 < n_bytes <= 2**20 / 8 for n_bytes in may.values()), may


def test_a_value_that_is_read_no_more_is_gone(monkeypatch):
    net = nn.Sequential(*[layer for n in (1, *[4] * 7) for layer in (nn.Conv2d(n, 4, 3, padding=1), nn.ReLU())], nn.Flatten())
    alive, most, run_node = [], 0, fx.Interpreter.run_node

    def watched(self, node):
        nonlocal most
        value = run_node(self, node)
        if isinstance(value, torch.Tensor) and node.op == "call_function":
            alive.append(weakref.ref(value))
            most = max(most, sum(value() is not None for value in alive))
        return value

    monkeypatch.setattr(fx.Interpreter, "run_node", watched)
    network, memory = split_of(net), Memory(0)
    memory.watch(network)
    with torch.no_grad(), recalling(network, "x"):
        network(torch.randn(10, *small.SHAPE))
    assert most <= 2 < len(alive)


def test_an_estimate_that_was_interrupted_spoils_no_later_one(monkeypatch):
    monkeypatch.setattr(clnp.training, "ESTIMATE_BATCH", 25)
    net, memory = small.network("vgg"), Memory(1e9)
    data = TensorExamples(torch.randn(100, *small.SHAPE), torch.zeros(100, dtype=torch.long))
    stopped, again, plain = (split_of(net) for _ in range(3))
    memory.watch(stopped)
    passes = stopped.pool.forward

    def stop(*inputs):
        if stopped.pool.n == 2:
            raise KeyboardInterrupt
        return passes(*inputs)

    stopped.pool.forward = stop
    with pytest.raises(KeyboardInterrupt), recalling(stopped, "sample", estimates=True):
        clnp.training.estimate_norms_(stopped, data, None)
    memory.watch(again)
    with recalling(again, "sample", estimates=True):
        clnp.training.estimate_norms_(again, data, None)
    clnp.training.estimate_norms_(plain, data, None)
    assert all(torch.equal(one.mean, other.mean) for one, other in zip(again.norms, plain.norms, strict=True))


class FirstToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        return torch.relu(self.out(torch.relu(self.into(x.squeeze(1)))[:, 0]))


@pytest.mark.parametrize(("tokens", "n_kept"), [(7, 0), (8, 1)])
def test_a_view_takes_the_room_of_what_it_is_a_view_of(tokens, n_kept):
    network, memory = split_of(FirstToken()), Memory(tokens * 8 * 4)
    memory.watch(network)
    with torch.no_grad(), recalling(network, "x"):
        network(torch.randn(10, *small.SHAPE))
    assert len(kept_in(memory, "x")) == n_kept, "of eight tokens one is read"


def test_what_weights_under_weight_norm_read_is_kept_and_no_weight_is():
    norm = nn.utils.parametrizations.weight_norm
    net = nn.Sequential(norm(nn.Conv2d(1, 4, 3)), nn.ReLU(), norm(nn.Conv2d(4, 5, 3)), nn.ReLU(), norm(nn.Conv2d(5, 6, 1)), nn.Flatten())
    learner, memory = clnp.Learner(net, torch.zeros(2, *small.SHAPE)), Memory(1e9)
    wiring = learner.wiring
    none = torch.zeros(wiring.n_units, dtype=torch.bool)
    network = split(wiring, learner._state, none, ~none, Head(torch.ones(3, len(wiring.features)), torch.zeros(3))).eval()
    memory.watch(network)
    with torch.no_grad(), recalling(network, "x"):
        network(torch.randn(10, *small.SHAPE))
    assert sorted(tuple(value.shape) for value in kept_in(memory, "x")) == [(10, 4, 6, 6), (10, 5, 4, 4)]


class TwoNorms(nn.Module):
    """Two norms without weights read one value."""

    def __init__(self):
        super().__init__()
        self.into, self.small, self.large = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6, affine=False), nn.BatchNorm2d(6, affine=False)])

    def forward(self, x):
        h = self.into(x)
        pooled = nn.functional.avg_pool2d(torch.relu(self.norms[0](h)), 3)
        return torch.cat([self.small(pooled).mean((2, 3)), self.large(torch.tanh(self.norms[1](h))).mean((2, 3))], 1)


def test_two_norms_of_one_value_have_statistics_of_their_own():
    """One of them is recalled by what follows it, the other, for which there was no room, is computed."""
    torch.manual_seed(0)
    net, memory = TwoNorms(), Memory(6 * 2 * 2 * 4)
    data = TensorExamples(torch.randn(50, *small.SHAPE), torch.zeros(50, dtype=torch.long))
    for _ in range(3):
        network = split_of(net)
        memory.watch(network)
        with recalling(network, "sample", estimates=True):
            clnp.training.estimate_norms_(network, data, None)
        first, second = network.norms
        assert torch.equal(first.mean, second.mean)
        assert torch.equal(first.var, second.var)
        assert first.mean.abs().min() > 0
    assert [tuple(value.shape[1:]) for value in kept_in(memory, "sample")] == [(6, 2, 2)]


def test_a_network_that_computes_values_of_claimed_units_has_their_rounding():
    """A convolution of fewer channels rounds otherwise, even where the others are not read: such values are not those of another narrowing."""
    torch.manual_seed(0)
    net = nn.Sequential(*[layer for n, m in ((1, 24), (24, 8), (8, 8), (8, 8)) for layer in (nn.Conv2d(n, m, 3, padding=1), nn.ReLU())])
    net.append(nn.Flatten())
    with torch.no_grad():
        net[2].weight[:, 1::2] = 0
    wiring = trace(net, torch.zeros(2, *small.SHAPE))
    claimed = torch.arange(wiring.n_units) < 32
    fewer = claimed.clone()
    fewer[1:24:2] = False
    state = {key: tensor.detach() for key, tensor in net.named_parameters()}
    pool, head = torch.arange(wiring.n_units) >= 40, Head(torch.randn(3, len(wiring.features)), torch.zeros(3))
    memory, x, seen = Memory(1e9), torch.randn(10, *small.SHAPE), []
    for units in (claimed, fewer):
        network, plain = (split(wiring, state, units | (torch.arange(wiring.n_units) // 8 == 4), pool, head).eval() for _ in range(2))
        memory.watch(network)
        with torch.no_grad(), recalling(network, "x"):
            assert torch.equal(network(x), plain(x))
            seen.append(meets_of(network.pool.graph_module, network.pool.keys))
    assert seen[0].keys() == seen[1].keys() != set()
    assert not any(seen[0][name] == seen[1][name] for name in seen[0]), "whether rounding differs is the machine's"


def meets_of(module, keys):
    return {node.target: keys[node] for node in module.graph.nodes if node.op == "placeholder" and node.target.startswith("meet_")}


class Twice(nn.Module):
    """One norm at two places: its statistics are of both."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return torch.relu(self.norm(self.second(x))).mean((2, 3))


def test_a_norm_that_is_used_twice_is_computed_anew(monkeypatch):
    found = []
    monkeypatch.setattr("test_recall.new", lambda name: clnp.Learner(Twice(), torch.zeros(2, *small.SHAPE)))

    def look(candidates, visible):
        del visible
        assert candidates.memory is not None
        found.append(candidates.of(candidates.trial.wiring.split(candidates.network.visible), candidates.memory))

    inside_selection(monkeypatch, "", look)
    assert not isinstance(found[0].pool, Recalled)


def of_output(network):
    """The key of a pool graph's output: it stands for all that is computed."""
    keys = keys_of(network)
    return keys[list(keys)[-1]]


@pytest.mark.parametrize("name", small.sampled(READERS, 2))
def test_networks_that_have_one_key_have_one_value(name):
    """Of every kind of layer: asked twice, and after networks with other weights and other units, the logits are those without a memory."""
    memory, first = Memory(room=1e9), Case(name, 0)
    for seed, parts in (*PARTS[:2], PARTS[0], *PARTS[2:], PARTS[0]):
        case = Case(name, seed, **parts)
        plain = case.split().eval()
        asked_about = [case.split().eval(), case.split().eval()]
        with torch.no_grad():
            for network in asked_about:
                memory.watch(network)
                for part, x in (("one", first.x), ("other", first.x.flip(0))):
                    with recalling(network, part):
                        assert torch.equal(network(x[:5]), plain(x[:5]))
                        assert torch.equal(network(x[5:]), plain(x[5:]))


@pytest.mark.parametrize("name", small.sampled(READERS, 2))
def test_every_weight_and_every_unit_that_is_met_changes_the_key(name):
    for seed, parts in PARTS[:4]:
        case = Case(name, seed, **parts)
        network = case.split()
        before = of_output(network)
        assert of_output(case.split()) == before, "the same units of the same network"
        for key, parameter in network.pool.named_parameters():
            with torch.no_grad():
                value = parameter.view(-1)[-1].item()
                parameter.view(-1)[-1] = value + 1
                assert of_output(network) != before, key
                parameter.view(-1)[-1] = value
        assert of_output(network) == before
        for met in network.meets:
            units = torch.unique(moved_labels(case.wiring, met))
            claimed = network.claimed_units.clone()
            network.claimed_units = claimed.clone()
            network.claimed_units[units[(units >= 0) & (units < len(claimed))]] = False
            assert of_output(network) != before, met
            network.claimed_units = claimed


def test_what_an_operation_is_told_changes_the_key():
    torch.manual_seed(0)
    nets = [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.LeakyReLU(slope), nn.Linear(6, 4), *rest)
        for slope, *rest in (
            (0.1,),
            (0.2,),
            (0.1, nn.Tanh()),
            (0.1, nn.Sigmoid()),
            (0.1, nn.Dropout(0.1)),
            (0.1, nn.GELU()),
            (0.1, nn.GELU("tanh")),
        )
    ]
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    assert len({of_output(split_of(net)) for net in nets}) == len(nets)


def norm_of(n=4, *, weight=1.0, momentum=0.1, eps=1e-5):
    return PoolNorm(torch.full((n,), weight), torch.zeros(n), torch.zeros(n), torch.ones(n), momentum, eps)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: Noise(MASK, 0.1), lambda: Noise(MASK, 0.2)),
        (lambda: Noise(MASK, 0.1), lambda: Noise("aten.dropout.default", 0.1)),
        (norm_of, lambda: norm_of(5)),
        (norm_of, lambda: norm_of(weight=2.0)),
        (norm_of, lambda: norm_of(momentum=0.2)),
        (norm_of, lambda: norm_of(eps=1e-3)),
        (lambda: Attention("a", 0.1, False, {}), lambda: Attention("b", 0.1, False, {})),
        (lambda: Attention("a", 0.1, False, {}), lambda: Attention("a", 0.1, True, {})),
        (lambda: Attention("a", 0.1, False, {"scale": 1.0}), lambda: Attention("a", 0.1, False, {"scale": 2.0})),
    ],
)
def test_what_a_module_is_told_changes_the_key(one, other):
    assert _of_module("name", one()) == _of_module("name", one())
    assert _of_module("name", one()) != _of_module("name", other())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(4), torch.zeros(4, dtype=torch.int32)),
        (torch.zeros(4), torch.zeros(2, 2)),
        (torch.tensor([1 + 2j]).conj(), torch.tensor([1 + 2j])),
    ],
)
def test_the_kind_and_the_shape_of_a_tensor_change_the_key(one, other):
    assert _of_tensor(one) == _of_tensor(one.clone())
    assert _of_tensor(one) != _of_tensor(other)


def test_a_module_that_nobody_knows_is_never_recalled():
    network = Case("mlp", 0).split()
    keys = [of_output(network) for _ in range(2)]
    assert keys[0] == keys[1]
    for name, module in network.pool.named_modules():
        if isinstance(module, Noise):
            setattr(network.pool, name, nn.Identity())
    assert of_output(network) != of_output(network)
