"""A narrowed network is the whole one with the outgoing weights of all other units at zero: checked on the module itself."""

from __future__ import annotations

import copy
import io
import pickle
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import small
from clnp.errors import WiringError
from clnp.narrow import check_narrowing, narrow
from clnp.wiring import trace
from small import sampled
from test_wiring import NETS, Net

# Written by hand, so that the library's labels are not their own judge.
# name: ({group: (units, [(weight that reads them, its first column, columns a unit)])}, [(group or None for raw input, features)])
STREAM = [("block1.conv1.weight", 0, 1), ("block2.conv1.weight", 0, 1), ("block2.shortcut.weight", 0, 1)]
READERS = {
    "mlp": ({"2": (20, [("5.weight", 0, 1)]), "5": (16, [])}, [("5", 1)]),
    "vgg": ({"0": (8, [("5.weight", 0, 1)]), "5": (10, [("10.weight", 0, 4)]), "10": (12, [])}, [("10", 1)]),
    "resnet": (
        {
            "stem": (8, STREAM),
            "block1.conv1": (8, [("block1.conv2.weight", 0, 1)]),
            "block2.conv1": (12, [("block2.conv2.weight", 0, 1)]),
            "block2.conv2": (12, []),
        },
        [("block2.conv2", 1), ("block2.conv2", 1)],
    ),
    "dense connections": (
        {"a": (2, [("b.weight", 1, 1), ("c.weight", 4, 4)]), "b": (3, [("c.weight", 12, 4)]), "c": (2, [])},
        [("c", 1)],
    ),
    "residual from the input": ({"a": (4, [("b.weight", 0, 1)]), "b": (2, [])}, [("b", 1)]),
    "a layer used twice": ({"p": (4, [("a.weight", 0, 1)])}, [("p", 1)]),
    "tied parameters": ({"p": (4, [("a.weight", 0, 1)])}, [("p", 1)]),
    "batch norm on raw input": ({"n": (3, [("a.weight", 0, 1)]), "a": (2, [])}, [("a", 1)]),
    "in-place operations": ({"a": (3, [("b.weight", 0, 1)]), "b": (2, [])}, [("a", 1), ("b", 1)]),
    "a gate": ({"c": (3, [("d.weight", 0, 1)]), "d": (2, [("e.weight", 0, 1)])}, [("c", 1)]),
    "a fixed mask": ({"a": (3, [])}, [("a", 1)]),
    "sequences": ({"a": (3, [("b.weight", 0, 4)]), "b": (2, [])}, [("b", 1)]),
    "parallel branches": ({"a": (5, [])}, [("a", 1)]),
    "raw input among the features": ({"a": (3, [])}, [(None, 2), ("a", 1)]),
}
BATCHES = (1, 2, 7)


def shape_of(name):
    return small.SHAPE if name in small.NETWORKS else NETS[name][1]


def model_of(name, seed=0):
    """A network in evaluation mode whose tensors, statistics included, are all different."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (small.NETWORKS[name] if name in small.NETWORKS else NETS[name][0])()
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.dim() < 2:
                tensor.data = torch.rand_like(tensor) + 0.5
    return model.eval()


def kept_features(name, keep):
    positions, start = [], 0
    for group, n in READERS[name][1]:
        kept = torch.ones(n, dtype=torch.bool) if group is None else keep[group].repeat_interleave(n)
        positions.append(start + kept.nonzero()[:, 0])
        start += len(kept)
    return torch.cat(positions)


def masked(model, name, keep):
    """The whole network in which nobody reads the other units."""
    net = copy.deepcopy(model)
    state = dict(net.named_parameters(remove_duplicate=False))
    for group, (n, readers) in READERS[name][0].items():
        for weight, start, repeat in readers:
            for unit in range(n):
                if not keep[group][unit]:
                    state[weight].data[:, start + unit * repeat : start + (unit + 1) * repeat] = 0
    return net


def random_units(name, seed):
    """At least one unit of each group, so that no path is cut."""
    rng = random.Random(f"{name}{seed}")
    keep = {}
    for group, (n, _) in READERS[name][0].items():
        keep[group] = torch.zeros(n, dtype=torch.bool)
        keep[group][rng.sample(range(n), rng.randint(1, n))] = True
    return keep


@pytest.fixture(scope="module")
def traced():
    cache = {}

    def find(name):
        if name not in cache:
            model = model_of(name)
            cache[name] = model, trace(model, torch.zeros(2, *shape_of(name)))
        return cache[name]

    return find


def state_of(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("name", READERS)
def test_a_narrowed_network_is_the_whole_one_without_the_other_units(name, traced):
    model, wiring = traced(name)
    for seed in range(5):
        keep = random_units(name, seed)
        network = narrow(wiring, state_of(model), wiring.join(keep))
        oracle = masked(model, name, keep)
        for n in BATCHES:
            x = torch.randn(n, *shape_of(name))
            with torch.no_grad():
                expected = oracle(x.clone())[:, kept_features(name, keep)]
            assert network(x).shape == expected.shape
            assert torch.allclose(network(x), expected, rtol=1e-5, atol=1e-5)
    assert {group.name: group.n_units for group in wiring.groups} == {group: n for group, (n, _) in READERS[name][0].items()}


@pytest.mark.parametrize("name", READERS)
def test_with_a_head_it_gives_logits(name, traced):
    model, wiring = traced(name)
    keep = random_units(name, 9)
    positions = kept_features(name, keep)
    weight, bias = torch.randn(3, len(wiring.features)), torch.randn(3)
    network = narrow(wiring, state_of(model), wiring.join(keep), head=(weight, bias))
    x = torch.randn(4, *shape_of(name))
    with torch.no_grad():
        expected = masked(model, name, keep)(x.clone())[:, positions] @ weight[:, positions].t() + bias
    assert torch.allclose(network(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("empty", [("a",), ("b",), ("a", "b")])
def test_a_branch_whose_units_are_all_gone_is_deleted(empty, traced):
    name = "dense connections"
    model, wiring = traced(name)
    keep = {group: torch.full((n,), group not in empty) for group, (n, _) in READERS[name][0].items()}
    network = narrow(wiring, state_of(model), wiring.join(keep))
    x = torch.randn(3, *shape_of(name))
    with torch.no_grad():
        assert torch.allclose(network(x), masked(model, name, keep)(x), rtol=1e-5, atol=1e-5)
    assert not any(f"{group}." in key for group in empty for key in network.state_dict()), "no layer of width zero is left"


@pytest.mark.parametrize("name", small.NETWORKS)
def test_parameters_keep_their_names_and_hold_the_kept_units_only(name, traced):
    model, wiring = traced(name)
    keep = random_units(name, 3)
    units = torch.cat([wiring.join(keep), torch.tensor([True])])
    network = narrow(wiring, state_of(model), wiring.join(keep), head=(torch.randn(3, len(wiring.features)), torch.zeros(3)))
    named = dict(network.named_parameters())
    assert set(named) - {"head.weight", "head.bias"} == set(dict(model.named_parameters()))
    assert set(dict(network.named_buffers())) <= set(dict(model.named_buffers()))
    for key, labels in wiring.parameters.items():
        expected = state_of(model)[key].detach()[units[labels.rows]]
        expected = expected if labels.columns is None else expected[:, units[labels.columns]]
        assert torch.equal(network.state_dict()[key], expected)
    assert not any(parameter.requires_grad for parameter in named.values())


def test_it_holds_copies_and_stays_in_evaluation_mode(traced):
    model, wiring = traced("vgg")
    model = copy.deepcopy(model)
    state = state_of(model)
    head = torch.randn(3, 12), torch.randn(3)
    network = narrow(wiring, state, wiring.join(random_units("vgg", 1)), head=head)
    x = torch.randn(6, *shape_of("vgg"))
    before, tensors = network(x), copy.deepcopy(network.state_dict())
    for tensor in (*state.values(), *head):
        tensor.data.zero_()
    network.train()
    assert torch.equal(network(x), before)
    assert all(torch.equal(tensors[key], value) for key, value in network.state_dict().items()), "statistics do not move"
    storages = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    assert not storages & {tensor.untyped_storage().data_ptr() for tensor in network.state_dict().values()}


def test_with_buffers_there_is_nothing_for_an_optimizer(traced):
    model, wiring = traced("resnet")
    network = narrow(wiring, state_of(model), torch.ones(wiring.n_units, dtype=torch.bool), buffers=True)
    assert list(network.parameters()) == []
    assert dict(network.named_buffers())


def test_chosen_values_are_returned_as_a_tuple(traced):
    model, wiring = traced("mlp")
    keep = random_units("mlp", 2)
    reads = [
        next(source for weight, source in wiring.reads if wiring.operands[weight].parameter == name) for name in ("2.weight", "5.weight")
    ]
    x = torch.randn(3, *shape_of("mlp"))
    raw, hidden = narrow(wiring, state_of(model), wiring.join(keep), outputs=reads)(x)
    assert torch.equal(raw, x.flatten(1))
    with torch.no_grad():
        assert torch.allclose(hidden, model[:4](x)[:, keep["2"]], atol=1e-6)


@pytest.mark.parametrize("name", small.NETWORKS)
def test_a_unit_that_is_not_read_is_not_computed(name, traced):
    """0 x inf is NaN: a mask would let an overflowing unit destroy the others."""
    model, wiring = traced(name)
    model = copy.deepcopy(model)
    keep = random_units(name, 4)
    x = torch.randn(3, *shape_of(name))
    expected = narrow(wiring, state_of(model), wiring.join(keep))(x)
    gone = torch.cat([~wiring.join(keep), torch.tensor([False])])
    for key, labels in wiring.parameters.items():
        state_of(model)[key].data[gone[labels.rows]] = float("inf")
    assert gone.any()
    assert torch.equal(narrow(wiring, state_of(model), wiring.join(keep))(x), expected)


def jit(network, x):
    """Trace, save, load."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(network, x), file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit is old, but devices run it
@pytest.mark.parametrize("name", small.NETWORKS)
def test_it_can_be_pickled_copied_traced_and_exported(name, traced):
    model, wiring = traced(name)
    head = torch.randn(3, len(wiring.features)), torch.zeros(3)
    network = narrow(wiring, state_of(model), wiring.join(random_units(name, 5)), head=head)
    x = torch.randn(5, *shape_of(name))
    expected = network(x)
    exported = torch.export.export(network, (x[:2],), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    for other in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network), jit(network, x), exported):
        assert torch.allclose(other(x), expected, atol=1e-6)


def test_a_capture_that_does_not_compute_what_the_trunk_does_is_refused():
    fickle = Net(lambda n, x: n.a(x) if n.training else n.a(x) + 0.01, a=nn.Linear(3, 3))
    unseen = Net(lambda n, x: (h := n.a(x), h.view(-1).relu_())[0], a=nn.Linear(3, 3))  # h changes through a view of it
    small_batches = Net(lambda n, x: n.a(x) if x.shape[0] < 5 else n.a(x) + 1, a=nn.Linear(3, 3))
    for net in (fickle, unseen, small_batches, Net(lambda n, x: F.dropout(n.a(x)), a=nn.Linear(3, 3))):
        wiring = trace(net, torch.zeros(2, 3))
        net.a.eval()
        with pytest.raises(WiringError, match="does not compute what it computes"):
            check_narrowing(wiring, state_of(net), net, torch.zeros(2, 3))
        assert net.training
        assert not net.a.training


FLAT = {  # operation: what is done between two linear layers of 5 and 3 units
    **{
        op: getattr(F, op)
        for op in [
            "relu",
            "relu6",
            "gelu",
            "silu",
            "mish",
            "elu",
            "celu",
            "selu",
            "leaky_relu",
            "hardtanh",
            "hardswish",
            "hardsigmoid",
            "tanh",
            "sigmoid",
            "softplus",
        ]
    },
    **{op: getattr(torch, op) for op in ["neg", "exp", "abs", "clone", "detach"]},
    "add.Tensor": lambda h: h + h,
    "sub.Tensor": lambda h: h - torch.relu(h),
    "mul.Tensor": lambda h: h * torch.sigmoid(h),
    "div.Tensor": lambda h: h / (1 + h.abs()),
    "add.Scalar": lambda h: torch.ops.aten.add.Scalar(h, 2),
    "mul.Scalar": lambda h: torch.ops.aten.mul.Scalar(h, 2),
    "sqrt": lambda h: torch.sqrt(h.abs()),
    "clamp": lambda h: h.clamp(-0.1, 0.2),
    "pow.Tensor_Scalar": lambda h: h**2,
    "contiguous": torch.ops.aten.contiguous.default,
    "dropout": lambda h: F.dropout(h, 0.3, training=False),
    "feature_dropout": lambda h: torch.ops.aten.feature_dropout.default(h, 0.3, False),
    "alpha_dropout": lambda h: F.alpha_dropout(h, 0.3, training=False),
    "feature_alpha_dropout": lambda h: F.feature_alpha_dropout(h, 0.3, training=False),
    "permute": lambda h: h.unsqueeze(2).permute(0, 2, 1).flatten(1),
    "transpose.int": lambda h: h.unsqueeze(-1).transpose(1, -1).flatten(1),
    "view": lambda h: h.view(h.size(0), 1, -1).flatten(1),
    "reshape": lambda h: h.reshape(-1, 1, 5).flatten(1),
    "flatten.using_ints": lambda h: h.unsqueeze(1).flatten(1),
    "unsqueeze": lambda h: h.unsqueeze(1).mean(1),
    "cat": lambda h: torch.cat([h.unsqueeze(1), torch.tanh(h).unsqueeze(1)], 1).mean(1),
    "mean.dim": lambda h: h.unsqueeze(1).mean(dim=1),
    "linear": lambda h: h,
}
POOLS = {
    "max_pool1d": nn.MaxPool1d(2),
    "max_pool2d": nn.MaxPool2d(2),
    "avg_pool1d": nn.AvgPool1d(3, 1),
    "avg_pool2d": nn.AvgPool2d(2, stride=1),
    "adaptive_avg_pool1d": nn.AdaptiveAvgPool1d(2),
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d((2, 1)),
    "adaptive_max_pool1d": nn.AdaptiveMaxPool1d(2),
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d((2, 1)),
    "max_pool2d_with_indices": Net(lambda _, x: F.max_pool2d(x, 2, return_indices=True)[0]),
    "batch_norm": nn.BatchNorm2d(5),
    "conv1d": nn.Identity(),
    "conv1d.padding": nn.Identity(),
    "conv2d": nn.Identity(),
    "conv2d.padding": nn.Identity(),
}


def full_name(op):
    return f"aten.{op}" if "." in op else f"aten.{op}.default"


@pytest.mark.parametrize("op", sampled([*FLAT, *POOLS], 6))
def test_an_operation_of_the_table_can_be_narrowed(op):
    torch.manual_seed(1)
    if op in FLAT:
        net, x = Net(lambda n, x: n.b(FLAT[op](n.a(x))), a=nn.Linear(4, 5), b=nn.Linear(5, 3)).eval(), torch.randn(6, 4)
    else:
        conv, shape = (nn.Conv1d, (2, 7)) if "1d" in op else (nn.Conv2d, (2, 7, 7))
        a = conv(2, 5, 3, padding="same" if "padding" in op else (0 if op == "conv2d" else 1))
        net, x = nn.Sequential(a, POOLS[op], nn.Flatten(), nn.LazyLinear(3)).eval(), torch.randn(6, *shape)
        net(x)
        net[1].train()(torch.randn(20, 5, 7, 7) * 3 + 1) if op == "batch_norm" else None
        net.eval()
    wiring = trace(net, x)
    assert full_name(op) in {node.op for node in wiring.graph.nodes}
    assert [group.n_units for group in wiring.groups] == [5, 3], "no unit is merged"
    for kept in ([0, 2], [4], [0, 1, 2, 3, 4]):
        units = torch.zeros(8, dtype=torch.bool)
        units[[*kept, 5, 7]] = True
        whole = copy.deepcopy(net)
        last = whole.b if op in FLAT else whole[3]
        gone = [unit for unit in range(5) if unit not in kept]
        last.weight.data.unflatten(1, (5, -1))[:, gone] = 0
        with torch.no_grad():
            assert torch.allclose(narrow(wiring, state_of(net), units)(x), whole(x)[:, [0, 2]], rtol=1e-5, atol=1e-5)


# ---- what was once broken


def test_a_batch_norm_over_units_beside_raw_input_is_refused_or_works():
    net = Net(lambda n, x: n.n(torch.cat([x, n.a(x)], 1)), a=nn.Linear(4, 4), n=nn.BatchNorm1d(8)).eval()
    try:
        wiring = trace(net, torch.zeros(2, 4))
    except WiringError:
        return
    units = torch.arange(wiring.n_units) % 2 == 0
    assert narrow(wiring, state_of(net), units)(torch.randn(3, 4)).shape == (3, int(units[wiring.features].sum()))


def test_a_parameter_that_is_not_used_does_no_harm():
    net = Net(lambda n, x: n.a(x), a=nn.Linear(4, 3), auxiliary=nn.Linear(4, 4)).eval()
    wiring = trace(net, torch.zeros(2, 4))
    x = torch.randn(3, 4)
    assert torch.allclose(narrow(wiring, state_of(net), torch.ones(3, dtype=torch.bool))(x), net(x), atol=1e-6)


@pytest.mark.parametrize("taken", ["graph", "code", "meta"])
def test_a_layer_may_have_any_name(taken):
    net = nn.Sequential()
    net.add_module(taken, nn.Linear(4, 3))
    wiring = trace(net, torch.zeros(2, 4))
    narrow(wiring, state_of(net), torch.ones(3, dtype=torch.bool))(torch.randn(3, 4))


def test_a_layer_of_the_trunk_may_be_called_head():
    net = Net(lambda n, x: n.head(torch.relu(n.a(x))), a=nn.Linear(4, 5), head=nn.Linear(5, 3)).eval()
    wiring = trace(net, torch.zeros(2, 4))
    weight, x = torch.randn(2, 3), torch.randn(6, 4)
    network = narrow(wiring, state_of(net), torch.ones(8, dtype=torch.bool), head=(weight, torch.zeros(2)))
    assert torch.allclose(network(x), net(x) @ weight.t(), atol=1e-5)


class Stateful(nn.Module):
    """A recurrent layer, which begins with zeros of a size that is known when it runs: its own, or the user's."""

    def __init__(self, kind, begin=None):
        super().__init__()
        self.layer, self.begin = kind(4, 6, batch_first=True, bidirectional=begin is None), begin

    def forward(self, x):
        return self.layer(x, self.begin(x))[0][:, -1] if self.begin is not None else self.layer(x)[0].mean(1)


@pytest.mark.parametrize(
    "model",
    [
        lambda: Stateful(nn.LSTM),
        lambda: Stateful(nn.GRU),
        lambda: Stateful(nn.RNN),
        lambda: Stateful(nn.GRU, lambda x: torch.zeros(1, x.shape[0], 6)),
        lambda: Stateful(nn.GRU, lambda x: torch.full((1, x.shape[0], 6), 0.5)),
        lambda: Stateful(nn.GRU, lambda x: torch.ones(1, x.shape[0], 6)),
    ],
)
def test_a_predictor_of_a_recurrent_network_is_pickled(model):
    network, x = model().eval(), torch.randn(5, 7, 4)
    wiring = trace(network, x)
    whole = narrow(wiring, dict(network.state_dict()) | wiring.graph.constants, torch.ones(wiring.n_units, dtype=torch.bool)).eval()
    with torch.no_grad():
        assert torch.allclose(whole(x), network(x), atol=1e-6)
        assert torch.equal(pickle.loads(pickle.dumps(whole))(x), whole(x))
        longer = torch.randn(2, 9, 4)
        assert torch.allclose(pickle.loads(pickle.dumps(whole))(longer), network(longer), atol=1e-6)
