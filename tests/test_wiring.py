"""Which unit every position belongs to, computed by hand for small networks; and refusals by name and source line."""

from __future__ import annotations

import functools
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import small
from clnp.wiring import ParameterLabels, capture, trace


class Net(nn.Module):
    """A network whose forward pass is `run(self, x)`; parts are modules, parameters or buffers."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, x):
        return self.run(self, x)


class Elsewhere(Net):
    def forward(self, x):
        return self.run(self, x)


def dense(net, x):
    x = torch.cat([x, torch.relu(net.a(x))], 1)
    x = torch.cat([x, torch.relu(net.b(x))], 1)
    return net.c(F.avg_pool2d(x, 2).flatten(1))


def in_place(net, x):
    y = h = net.a(x)
    y += 1  # h is changed, too
    F.relu(h, inplace=True)
    return torch.cat([y, net.b(h)], 1)


def squeeze(net, x):
    h = torch.relu(net.c(x))
    gate = torch.sigmoid(net.e(torch.relu(net.d(h.mean((2, 3), keepdim=True)))))
    return F.adaptive_avg_pool2d(h * gate, 1).reshape(x.size(0), -1)


def tied_layers():
    net = Net(lambda n, x: n.b(n.a(n.p(x))), p=nn.Linear(3, 4), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    net.b.weight = net.a.weight
    return net


R = -1  # raw input
# name: (network, shape of an example, {group: its layers}, {parameter: labels of its rows and columns})
NETS = {
    "dense connections": (
        lambda: Net(dense, a=nn.Conv2d(1, 2, 3, padding=1), b=nn.Conv2d(3, 3, 3, padding=1), c=nn.Linear(24, 2)),
        (1, 4, 4),
        {"a": ("a",), "b": ("b",), "c": ("c",)},
        {
            "a.weight": ([0, 1], [R]),
            "b.weight": ([2, 3, 4], [R, 0, 1]),
            "c.weight": ([5, 6], [R] * 4 + [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4),
            "features": ([5, 6], None),
        },
    ),
    "residual from the input": (
        lambda: Net(lambda n, x: n.b(torch.relu(n.a(x)) + x), a=nn.Linear(4, 4), b=nn.Linear(4, 2)),
        (4,),
        {"a": ("a",), "b": ("b",)},
        {"a.weight": ([0, 1, 2, 3], [R] * 4), "a.bias": ([0, 1, 2, 3], None), "b.weight": ([4, 5], [0, 1, 2, 3])},
    ),
    "a layer used twice": (
        lambda: Net(lambda n, x: n.a(torch.relu(n.a(torch.relu(n.p(x))))), p=nn.Linear(3, 4), a=nn.Linear(4, 4)),
        (3,),
        {"p": ("p", "a")},
        {"p.weight": ([0, 1, 2, 3], [R] * 3), "a.weight": ([0, 1, 2, 3], [0, 1, 2, 3]), "features": ([0, 1, 2, 3], None)},
    ),
    "tied parameters": (
        tied_layers,
        (3,),
        {"p": ("p", "a", "b")},
        {"a.weight": ([0, 1, 2, 3], [0, 1, 2, 3]), "b.bias": ([0, 1, 2, 3], None), "features": ([0, 1, 2, 3], None)},
    ),
    "batch norm on raw input": (
        lambda: Net(lambda n, x: n.a(n.n(x)).mean((2, 3)), n=nn.BatchNorm2d(3), a=nn.Conv2d(3, 2, 3)),
        (3, 5, 5),
        {"n": ("n",), "a": ("a",)},
        {"n.weight": ([0, 1, 2], None), "n.running_var": ([0, 1, 2], None), "a.weight": ([3, 4], [0, 1, 2]), "features": ([3, 4], None)},
    ),
    "in-place operations": (
        lambda: Net(in_place, a=nn.Linear(4, 3), b=nn.Linear(3, 2)),
        (4,),
        {"a": ("a",), "b": ("b",)},
        {"b.weight": ([3, 4], [0, 1, 2]), "features": ([0, 1, 2, 3, 4], None)},
    ),
    "a gate": (
        lambda: Net(squeeze, c=nn.Conv2d(1, 3, 3), d=nn.Conv2d(3, 2, 1), e=nn.Conv2d(2, 3, 1)),
        (1, 5, 5),
        {"c": ("c", "e"), "d": ("d",)},
        {"c.weight": ([0, 1, 2], [R]), "d.weight": ([3, 4], [0, 1, 2]), "e.weight": ([0, 1, 2], [3, 4]), "features": ([0, 1, 2], None)},
    ),
    "a fixed mask": (
        lambda: Net(
            lambda n, x: torch.tanh(n.a(x) * n.mask + x.mean(1, keepdim=True)), a=nn.Linear(2, 3), mask=torch.tensor([1.0, -2.0, 0.5])
        ),
        (2,),
        {"a": ("a",)},
        {"a.weight": ([0, 1, 2], [R, R]), "features": ([0, 1, 2], None)},
    ),
    "sequences": (
        lambda: Net(lambda n, x: n.b(n.a(x).transpose(1, 2).flatten(1)), a=nn.Linear(2, 3), b=nn.Linear(12, 2)),
        (4, 2),
        {"a": ("a",), "b": ("b",)},
        {"b.weight": ([3, 4], [0] * 4 + [1] * 4 + [2] * 4), "features": ([3, 4], None)},
    ),
    "mixed units are one": (
        lambda: Net(lambda n, x: n.b(torch.softmax(n.a(x), 1)), a=nn.Linear(2, 3), b=nn.Linear(3, 2)),
        (2,),
        {"a": ("a",), "b": ("b",)},
        {"a.weight": ([0, 0, 0], [R, R]), "b.weight": ([1, 2], [0] * 3), "features": ([1, 2], None)},
    ),
    "a weight along the positions": (
        lambda: Net(lambda n, x: n.b(n.a(x).transpose(1, 2)).flatten(1), a=nn.Linear(2, 3), b=nn.Linear(4, 2)),
        (4, 2),
        {"a": ("a",), "b": ("b",)},
        {"a.weight": ([0, 1, 2], [R, R]), "b.weight": ([3, 3], None), "b.bias": ([3, 3], None), "features": ([0, 0, 1, 1, 2, 2], None)},
    ),
    "a grouped convolution": (
        lambda: Net(lambda n, x: n.g(n.a(x)).mean((2, 3)), a=nn.Conv2d(1, 4, 3), g=nn.Conv2d(4, 6, 3, groups=2)),
        (1, 6, 6),
        {"a": ("a", "g")},
        {"a.weight": ([0, 0, 1, 1], [R]), "g.weight": ([0] * 3 + [1] * 3, None), "features": ([0] * 3 + [1] * 3, None)},
    ),
    "a grouped convolution of raw input": (
        lambda: Net(lambda n, x: n.c(x).mean((2, 3)), c=nn.Conv2d(4, 4, 3, groups=2)),
        (4, 5, 5),
        {"c": ("c",)},
        {"c.weight": ([0, 0, 1, 1], None), "c.bias": ([0, 0, 1, 1], None), "features": ([0, 0, 1, 1], None)},
    ),
    "learned tensors": (
        lambda: Net(
            lambda n, x: (n.a(x) * n.g + n.p).mean(1), a=nn.Linear(2, 3), g=nn.Parameter(torch.ones(3)), p=nn.Parameter(torch.ones(1, 4, 3))
        ),
        (4, 2),
        {"a": ("a", "g", "p")},
        {"a.weight": ([0, 1, 2], [R, R]), "g": ([0, 1, 2], None), "p": ([0, 1, 2], None), "features": ([0, 1, 2], None)},
    ),
    "units meet raw input and other units": (
        lambda: Net(lambda n, x: torch.cat([x, n.a(x)], 1) + n.b(x), a=nn.Linear(2, 3), b=nn.Linear(2, 5)),
        (2,),
        {"a": ("a", "b")},
        {"a.weight": ([0, 1, 2], [R, R]), "b.weight": ([3, 4, 0, 1, 2], [R, R]), "features": ([3, 4, 0, 1, 2], None)},
    ),
    "a view and back": (
        lambda: Net(lambda n, x: n.a(x).view(x.size(0), 2, 3).flatten(1) + n.a(x), a=nn.Linear(2, 6)),
        (2,),
        {"a": ("a",)},
        {"a.weight": ([0, 1, 2, 3, 4, 5], [R, R]), "features": ([0, 1, 2, 3, 4, 5], None)},
    ),
    "a computed weight": (
        lambda: Net(lambda n, x: n.a(F.linear(x, n.w * 2)), w=nn.Parameter(torch.ones(3, 2)), a=nn.Linear(3, 2)),
        (2,),
        {"w": ("w",), "a": ("a",)},
        {"w": ([0, 0, 0], None), "a.weight": ([1, 2], [0] * 3), "features": ([1, 2], None)},
    ),
    "a fixed weight": (
        lambda: Net(lambda n, x: n.a(F.linear(x, n.w * 2)), w=torch.ones(3, 2), a=nn.Linear(3, 2)),
        (2,),
        {"a": ("a",)},
        {"a.weight": ([0, 1], [R] * 3), "features": ([0, 1], None)},
    ),
    "parallel branches": (
        lambda: Net(lambda n, x: torch.cat([n.a(x), n.b(x)], 1) + n.c(x), a=nn.Linear(4, 2), b=nn.Linear(4, 3), c=nn.Linear(4, 5)),
        (4,),
        {"a": ("a", "b", "c")},
        {
            "a.weight": ([0, 1], [R] * 4),
            "b.weight": ([2, 3, 4], [R] * 4),
            "c.weight": ([0, 1, 2, 3, 4], [R] * 4),
            "features": ([0, 1, 2, 3, 4], None),
        },
    ),
    "raw input among the features": (
        lambda: Net(lambda n, x: torch.cat([x, n.a(x)], 1), a=nn.Linear(2, 3)),
        (2,),
        {"a": ("a",)},
        {"features": ([R, R, 0, 1, 2], None)},
    ),
}
SMALL = {
    "mlp": {"2": (20, ("2",)), "5": (16, ("5",))},
    "vgg": {"0": (8, ("0",)), "5": (10, ("5",)), "10": (12, ("10",))},
    "resnet": {
        "stem": (8, ("stem", "block1.conv2")),
        "block1.conv1": (8, ("block1.conv1",)),
        "block2.conv1": (12, ("block2.conv1",)),
        "block2.conv2": (12, ("block2.conv2", "block2.shortcut")),
    },
}


@functools.cache
def traced(name, n=2):
    make, shape, *_ = NETS[name]
    return trace(make(), torch.zeros(n, *shape))


@pytest.mark.parametrize("name", NETS)
def test_labels_are_those_computed_by_hand(name):
    _, _, groups, weights = NETS[name]
    wiring = traced(name)
    assert {group.name: group.layers for group in wiring.groups} == groups
    for parameter, (rows, columns) in weights.items():
        labels = ParameterLabels(wiring.features) if parameter == "features" else wiring.parameters[parameter]
        assert labels.rows.tolist() == rows, parameter
        assert (None if labels.columns is None else labels.columns.tolist()) == columns, parameter


@pytest.mark.parametrize("name", SMALL)
def test_groups_of_mlp_vgg_and_resnet(name):
    wiring = trace(small.network(name), torch.zeros(2, *small.SHAPE))
    assert {group.name: (group.n_units, group.layers) for group in wiring.groups} == SMALL[name]


def test_the_residual_stream_of_a_resnet_is_one_group():
    wiring = trace(small.network("resnet"), torch.zeros(2, *small.SHAPE))
    stream = wiring.parameters["stem.weight"].rows
    for name in ("block1.conv2.weight", "block1.norm2.running_mean", "stem.bias"):
        assert torch.equal(wiring.parameters[name].rows, stream)
    for name in ("block1.conv1.weight", "block2.conv1.weight", "block2.shortcut.weight"):
        assert torch.equal(wiring.parameters[name].columns, stream)
    assert torch.equal(wiring.features, wiring.parameters["block2.shortcut.weight"].rows.repeat(2))


@pytest.mark.parametrize("name", small.sampled([*NETS, *SMALL], 4))
def test_every_tensor_of_the_model_is_labelled_in_full(name):
    model = small.network(name) if name in SMALL else NETS[name][0]()
    wiring = trace(model, torch.zeros(2, *(small.SHAPE if name in SMALL else NETS[name][1])))
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert set(dict(model.named_parameters())) <= set(wiring.parameters) <= set(state)
    covered = set()
    for parameter, labels in wiring.parameters.items():
        by_hand = {} if name in SMALL else NETS[name][3]
        assert len(labels.rows) == state[parameter].shape[labels.row_dim]
        assert int(labels.rows.min()) >= 0
        assert int(labels.rows.max()) < wiring.n_units
        assert (labels.columns is not None) == (state[parameter].dim() > 1 and by_hand.get(parameter, ((), ()))[1] is not None)
        if labels.columns is not None:
            assert len(labels.columns) == state[parameter].shape[labels.column_dim]
            assert labels.column_dim != labels.row_dim
            assert int(labels.columns.min()) >= -1
            assert int(labels.columns.max()) < wiring.n_units
        covered |= set(labels.rows.tolist())
    assert covered == set(range(wiring.n_units)), "every unit has a parameter"
    assert [group.start for group in wiring.groups] == [sum(g.n_units for g in wiring.groups[:i]) for i in range(len(wiring.groups))]
    units = torch.arange(wiring.n_units)
    assert torch.equal(wiring.join(wiring.split(units)), units)
    assert all(torch.equal(units[group.slice], wiring.split(units)[group.name]) for group in wiring.groups)
    for node in wiring.graph.nodes:
        if node.name in wiring.values:
            sizes = wiring.values[node.name].shape
            assert len(sizes) == len(node.shape), f"{node.name} has a label for each of its dimensions"
            assert all(size in (1, whole) for size, whole in zip(sizes, node.shape, strict=True))


def test_explain_says_what_is_tied_and_where():
    lines = trace(small.network("resnet"), torch.zeros(2, *small.SHAPE)).explain().splitlines()
    assert lines[0] == "40 units in 4 groups"
    assert lines[1:3] == ["  stem: 8 units", "    one group of 2 layers: stem, block1.conv2"]
    assert lines[3].startswith("    tied by add.Tensor at 'block1' (")
    assert "small.py:" in lines[3]
    assert "self.shortcut(x)" in lines[3]
    assert lines[4:6] == ["  block1.conv1: 8 units", "  block2.conv1: 12 units"]
    assert lines[-1] == "heads read 24 features"


@pytest.mark.thorough
def test_explain_says_what_was_merged_and_what_is_raw():
    text = traced("mixed units are one").explain()
    assert "a: 1 unit\n    units merged by softmax.int at '(top level)' (" in text
    assert re.search(r"capacity lost here: aten\.softmax\.int at '\(top level\)' \(.*test_wiring\.py:\d+: .*; 3 units became 1\n", text)
    text = traced("a computed weight").explain()
    assert re.search(
        r"  w: 1 unit\n.*\n    capacity lost here: aten\.linear\.default at .*has a weight that is computed; 6 units became 1\n", text
    )
    assert "b: 1 unit\n    shared: all units read it" in traced("a weight along the positions").explain()
    assert all("capacity lost" not in traced(name).explain() for name in set(NETS) - {"mixed units are one", "a computed weight"})
    assert [name for name in NETS if any(group.shared for group in traced(name).groups)] == ["a weight along the positions"]
    assert traced("raw input among the features").explain().endswith("heads read 5 features, 2 of them raw input")


@pytest.mark.parametrize("name", small.RESNET_IN_CI)
def test_the_graph_depends_on_the_architecture_alone(name):
    one = small.network(name, seed=1)
    before = {key: value.clone() for key, value in one.state_dict().items()}
    one.eval()
    reference = capture(one, torch.zeros(2, *small.SHAPE)).hash
    assert all(torch.equal(before[key], value) for key, value in one.state_dict().items())
    assert not any(module.training for module in one.modules())
    for n, seed in ((1, 2), (5, 3)):
        assert capture(small.network(name, seed), torch.randn(n, *small.SHAPE)).hash == reference


def test_the_same_code_in_another_line_has_the_same_hash():
    one, two = (capture(kind(lambda n, x: n.a(x), a=nn.Linear(4, 2)), torch.zeros(2, 4)) for kind in (Net, Elsewhere))
    assert (one.nodes[-2].source == two.nodes[-2].source, one.hash == two.hash) == (False, True)


def test_another_architecture_has_another_hash():
    def make(n=8, act=nn.ReLU, p=0.1, bias=True):
        return nn.Sequential(nn.Linear(4, n, bias=bias), act(), nn.Dropout(p), nn.Linear(n, 2))

    variants = [make(**change) for change in ({}, {"n": 9}, {"act": nn.Tanh}, {"p": 0.2}, {"bias": False})]
    variants += [nn.Sequential(*make(), nn.ReLU()), Net(lambda n, x: n.net(x), net=make())]
    assert len({capture(net, torch.zeros(2, 4)).hash for net in variants}) == len(variants)


# ---- what was once broken


def test_a_mean_with_a_dtype_does_not_merge_units():
    net = Net(lambda n, x: n.b(n.a(x).mean(1, dtype=torch.float32)), a=nn.Linear(2, 3), b=nn.Linear(3, 2))
    assert trace(net, torch.zeros(2, 4, 2)).n_units == 5


def test_explain_says_for_each_group_what_tied_it():
    parts = {"a": nn.Linear(4, 3), "b": nn.Linear(4, 2), "c": nn.Linear(4, 3), "d": nn.Linear(4, 2)}
    wiring = trace(Net(lambda n, x: torch.cat([n.a(x), n.b(x)], 1) + torch.cat([n.c(x), n.d(x)], 1), **parts), torch.zeros(2, 4))
    assert [len(group.layers) for group in wiring.groups] == [2, 2]
    assert all(group.ties for group in wiring.groups)
