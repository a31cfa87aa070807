"""What cannot be isolated is refused, or its units are merged and that is said: by name, module and source line; never a silent guess."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import clnp
from clnp.errors import WiringError
from clnp.narrow import narrow, whole
from clnp.wiring import RULES, capture, register, trace
from clnp.wiring.rules import pointwise
from test_narrow import state_of
from test_wiring import Net

HERE = r"\(.*test_wiring\.py:\d+: return self\.run\(self, x\)\)"
LINEAR = {"a": nn.Linear(8, 8)}


def refused(net, *shape):
    with pytest.raises(WiringError) as caught:
        trace(net, torch.zeros(2, *shape))
    return str(caught.value)


# ---- merged, and said


UNKNOWN = {  # operation without a rule: what is done with (B, 8)
    "fft_fft": lambda h: torch.fft.fft(h).abs(),
    "cdist": lambda h: torch.cdist(h.unsqueeze(2), torch.zeros(1, 1, 1)).flatten(1),
    "linalg_pinv": lambda h: torch.linalg.pinv(h.unflatten(1, (2, 4))).flatten(1),
    "renorm": lambda h: torch.renorm(h.unsqueeze(0), 2, 0, 1.0).squeeze(0) if h.dim() == 3 else torch.special.i0(h),
    "trapezoid": lambda h: torch.trapezoid(h, dim=1).unsqueeze(1),
}
MIXING = {  # operation that mixes units without a weight
    "cumsum.default": lambda h: torch.cumsum(h, 1),
    "softmax.int": lambda h: torch.softmax(h, 1),
    "max.dim": lambda h: h.max(1, keepdim=True)[0],
    "mean.dim": lambda h: h.mean(1, keepdim=True),
}


def merged(name):
    run = {**UNKNOWN, **MIXING}[name]
    return Net(lambda n, x: n.b(run(n.a(x))), a=nn.Linear(8, 8), b=nn.LazyLinear(3))


@pytest.mark.parametrize("op", [*MIXING, "fft_fft"])
def test_an_operation_that_mixes_units_merges_them_and_says_so_by_name_and_source_line(op):
    net = merged(op).eval()
    net(torch.zeros(2, 8))
    wiring = trace(net, torch.zeros(2, 8))
    assert {group.name: group.n_units for group in wiring.groups} == {"a": 1, "b": 3}
    why = r"has no rule: see clnp\.wiring\.RULES" if op in UNKNOWN else "mixes units without a weight"
    full = op if "." in op else f"{op}.default"
    assert re.search(rf"capacity lost here: aten\.{full} at '\(top level\)' {HERE} {why}; 8 units became 1\n", wiring.explain())
    assert (f"aten.{full}" in RULES) == (op in MIXING)
    x = torch.randn(5, 8)
    with torch.no_grad():
        units = torch.tensor([True, True, False, True])
        assert torch.allclose(narrow(wiring, state_of(net), units)(x), net(x)[:, [0, 2]], atol=1e-5)


def test_units_that_are_summed_with_constants_are_told_of():
    net = Net(lambda n, x: n.b(n.a(x) @ torch.ones(8, 8)), a=nn.Linear(8, 8), b=nn.Linear(8, 3))
    wiring = trace(net, torch.zeros(2, 8))
    assert {group.name: group.n_units for group in wiring.groups} == {"a": 1, "b": 3}
    assert re.search(
        r"capacity lost here: aten\.matmul\.default at '\(top level\)' .* sums products of units.*; 8 units became 1\n", wiring.explain()
    )


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        h = self.fc(x)
        return torch.cumsum(h, 1)


class Noisy(Block):
    def forward(self, x):
        h = self.fc(x)
        return h + torch.rand_like(h)


def line_of(code):
    return next(number for number, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.strip() == code)


def test_the_module_and_the_line_are_those_of_the_user():
    wiring = trace(nn.Sequential(nn.Linear(8, 8), nn.Sequential(Block())), torch.zeros(2, 8))
    code = "return torch.cumsum(h, 1)"
    assert f"capacity lost here: aten.cumsum.default at '1.0' ({__file__}:{line_of(code)}: {code})" in wiring.explain()
    assert [group.n_units for group in wiring.groups] == [8, 1]
    code = "return h + torch.rand_like(h)"
    message = refused(nn.Sequential(nn.Linear(8, 8), nn.Sequential(Noisy())), 8)
    assert f"aten.rand_like.default at '1.0' ({__file__}:{line_of(code)}: {code}) draws random numbers" in message


def test_a_rule_of_ones_own_keeps_units_apart():
    net = Net(lambda n, x: n.b(torch.special.i0(n.a(x))), a=nn.Linear(4, 5), b=nn.Linear(5, 3)).eval()
    assert [group.n_units for group in trace(net, torch.zeros(2, 4)).groups] == [1, 3]
    register("aten::special_i0", pointwise.pointwise, "pointwise")
    try:
        wiring = trace(net, torch.zeros(2, 4))
    finally:
        del RULES["aten.special_i0.default"]
    assert [group.n_units for group in wiring.groups] == [5, 3]
    assert "capacity lost" not in wiring.explain()


# ---- refused


@pytest.mark.parametrize(
    ("op", "run"),
    [
        ("rand", lambda h: h + torch.rand(8)),
        ("rand_like", lambda h: h + torch.rand_like(h)),
        ("randn_like", lambda h: h + torch.randn_like(h)),
        ("bernoulli", lambda h: torch.bernoulli(torch.sigmoid(h))),
        ("multinomial", lambda h: h + torch.multinomial(torch.softmax(h, 1), 1)),
    ],
)
def test_random_numbers_are_refused_by_name_and_source_line(op, run):
    message = refused(Net(lambda n, x: run(n.a(x)), **LINEAR), 8)
    assert re.search(rf"aten\.{op}\w*\.default at '\(top level\)' {HERE} draws random numbers", message), message


@pytest.mark.parametrize(
    ("op", "run"),
    [
        ("mean.dim", lambda h: h - h.mean(0, keepdim=True)),
        ("sum.dim_IntList", lambda h: h / h.sum(0)),
        ("amax.default", lambda h: h - h.amax(0)),
        ("softmax.int", lambda h: torch.softmax(h, 0)),
        ("cumsum.default", lambda h: torch.cumsum(h, 0)),
        ("sort.default", lambda h: torch.sort(h, 0)[0]),
    ],
)
def test_what_mixes_examples_is_refused_by_name_and_source_line(op, run):
    message = refused(Net(lambda n, x: run(n.a(x)), **LINEAR), 8)
    assert re.search(rf"aten\.{re.escape(op)} at '\(top level\)' {HERE} (reduces over|runs along) the examples of a batch", message), (
        message
    )


MIXED = {
    "flip": lambda h: h.flip(0),
    "roll": lambda h: h.roll(1, 0),
    "the first example": lambda h: h + h[0],
    "a slice of the batch": lambda h: h + h[:1],
    "einsum": lambda h: torch.einsum("bi,ci->bi", h, h),
    "fft": lambda h: torch.fft.fft(h, dim=0).abs(),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_examples_in_another_way_is_refused_by_name_before_training(name):
    net = Net(lambda n, x: MIXED[name](n.a(x)), **LINEAR)
    with pytest.raises(WiringError, match=rf"mixes the examples of a batch, at aten\.\S+ in '\(top level\)' {HERE}"):
        clnp.Learner(net, torch.zeros(2, 8))


def add_to_a_view(h):
    h[:, :2].add_(1.0)
    return h


def assign(h):
    h[:, 0] = 1.0
    return h


@pytest.mark.parametrize("change", [add_to_a_view, assign, lambda h: (h, h.view(-1).relu_())[0]], ids=["slice", "item", "view"])
def test_a_change_in_place_through_a_view_is_refused_before_training(change):
    net = Net(lambda n, x: change(n.a(x)), **LINEAR)
    with pytest.raises(
        WiringError, match=r"changed in place, at '\(top level\)' \(.*test_wiring\.py:\d+: .*\), which a capture does not see.*torch\.cat"
    ):
        clnp.Learner(net, torch.zeros(2, 8))


def test_a_change_in_place_that_is_read_through_its_view_is_no_reason_to_refuse():
    def change(h):
        view = h[:, :2]
        view.add_(1.0)
        return torch.cat([view, h[:, 2:]], 1)

    net = Net(lambda n, x: change(n.a(x)), **LINEAR)
    x = torch.randn(3, 8)
    assert torch.allclose(whole(trace(net, x), dict(net.state_dict()))(x), net(x), atol=1e-6)


class Counting(nn.Module):
    """What changes itself whenever it is called: it counts, and renormalises its embeddings."""

    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(9, 8, max_norm=1.0), nn.Linear(8, 8)
        self.register_buffer("n_calls", torch.zeros(()))
        nn.init.normal_(self.words.weight, std=9.0)

    def forward(self, x):
        self.n_calls += 1
        return self.out(self.words(x).mean(1)).relu()


def test_looking_at_a_network_does_not_change_it():
    net, words = Counting(), torch.zeros(2, 5, dtype=torch.int64)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(WiringError, match="changed in place, at 'words'"):
        clnp.Learner(net, words)
    net.words.max_norm = None
    clnp.Learner(net, words)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("again", [False, True], ids=["in place", "assigned"])
def test_a_network_that_answers_otherwise_the_next_time_is_refused(again):
    def count(n):
        if again:
            n.n_calls = n.n_calls + 1
        else:
            n.n_calls += 1
        return n.n_calls

    net = Net(lambda n, x: n.a(x) * count(n), **LINEAR)
    net.register_buffer("n_calls", torch.zeros(()))
    with pytest.raises(WiringError, match="on what it changed in an earlier call"):
        clnp.Learner(net, torch.zeros(2, 8))
    assert float(net.n_calls) == 0


@pytest.mark.parametrize(
    ("run", "parts", "shape", "expected"),
    [
        (
            lambda n, x: n.b(n.a(x)),
            {**LINEAR, "b": nn.BatchNorm1d(8, track_running_stats=False)},
            (8,),
            ["'b'", "track_running_stats=True"],
        ),
        (lambda n, x: n.a(torch.relu(n.a(x))), LINEAR, (8,), ["'a.weight'", "raw input in one use, units in another"]),
        (
            lambda n, x: torch.softmax(torch.cat([x, n.a(x)], 1), 1),
            LINEAR,
            (8,),
            ["aten.softmax.int", "'(top level)'", "mixes raw input with units"],
        ),
        (
            lambda n, x: torch.fft.fft(torch.cat([x, n.a(x)], 1)).abs(),
            LINEAR,
            (8,),
            ["aten.fft_fft.default", "'(top level)'", "mixes raw input with units"],
        ),
        (
            lambda n, x: n.a(x) + n.w[0] + F.linear(x, n.w),
            {**LINEAR, "w": nn.Parameter(torch.ones(8, 8))},
            (8,),
            ["'w' is used in two ways", "untie"],
        ),
    ],
    ids=lambda v: v[-1][:30] if isinstance(v, list) and v else "",
)
def test_what_cannot_be_isolated_is_refused_and_placed(run, parts, shape, expected):
    message = refused(Net(run, **parts), *shape)
    assert all(part in message for part in expected), message
    assert "test_wiring.py:" in message, "the place in the user's code"


@pytest.mark.parametrize("path", ["b", "inner.b"])
def test_spectral_norm_is_refused_by_name_and_module(path):
    for normalise in (nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm):
        part = normalise(nn.Linear(8, 8))
        net = nn.Sequential()
        net.add_module(*(("inner", nn.Sequential()) if "." in path else ("b", part)))
        if "." in path:
            net.inner.add_module("b", part)
        message = refused(net, 8)
        assert f"spectral_norm of 'weight' at '{path}' (" in message
        assert "may mix its rows" in message
        assert "use weight_norm" in message


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda n, x: 3.0, "expected an output tensor, found none"),
        (lambda n, x: n.a(x).unsqueeze(1), r"expected an output of shape (B, features), found (2, 1, 8) at '(top level)' ("),
        (lambda n, x: n.a(x).unsqueeze(1), "Flatten it."),
        (lambda n, x: (n.a(x), n.a(x).unsqueeze(1)), r"expected outputs of shape (B, features), found (2, 1, 8) at '(top level)' ("),
        (lambda n, x: n.a(x) if x.sum() > 0 else x, "Control flow that depends on the data"),
        (lambda n, x: n.a(x) if float(x[0, 0]) > 0 else x, "torch.export could not follow it on an input of shape (2, 8)"),
        (lambda n, x: n.a(x[:, :5]), "on an input of shape (2, 8)"),
        (lambda n, x: n.a(x).view(5, 8), "on an input of shape (2, 8)"),
    ],
)
def test_what_cannot_be_captured_is_refused(run, expected):
    assert expected in refused(Net(run, **LINEAR), 8)


@pytest.mark.parametrize("example", [torch.tensor(1.0), torch.zeros(0, 8)])
def test_an_example_needs_a_batch(example):
    with pytest.raises(WiringError, match="needs a batch dimension"):
        capture(nn.Linear(8, 2), example)


@pytest.mark.parametrize("run", [lambda h: h - h.mean(0), lambda h: h + torch.rand(8)], ids=["of the rules", "random"])
def test_a_refusal_leaves_the_model_as_it_was(run):
    model = Net(lambda n, x: n.n(run(n.a(x))), a=nn.Linear(8, 8), n=nn.BatchNorm1d(8, momentum=None))
    model.a.eval()
    before = copy.deepcopy(model.state_dict())
    refused(model, 8)
    assert [module.training for module in (model, model.a, model.n)] == [True, False, True], "module by module"
    assert model.n.momentum is None
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("run", [lambda n, x: n.a(x.view(2, 8)), lambda n, x: n.a(x).view(-1, 4)], ids=["of two", "another count"])
def test_a_hard_coded_batch_size_is_refused(run):
    assert "batch" in refused(Net(run, **LINEAR), 8)


@pytest.mark.parametrize("run", [lambda h: h.t().reshape(h.shape[0], 8), lambda h: h.unsqueeze(1).transpose(0, 2).reshape(h.shape[0], 8)])
def test_a_view_that_mixes_examples_is_refused_by_name_and_source_line(run):
    message = refused(Net(lambda n, x: run(n.a(x)), **LINEAR), 8)
    assert re.search(rf"aten\.reshape\.default at '\(top level\)' {HERE} mixes the examples of a batch", message), message


def test_an_activation_that_is_random_in_training_alone_is_followed_and_one_that_always_is_is_refused():
    wiring = trace(nn.Sequential(nn.Linear(8, 8), nn.RReLU()), torch.zeros(2, 8))
    assert (wiring.n_units, "capacity lost" in wiring.explain()) == (8, False)
    with pytest.raises(WiringError, match="does not compute what it computes"):
        clnp.Learner(Net(lambda n, x: F.rrelu(n.a(x), -3.0, 3.0, training=True), **LINEAR), torch.zeros(2, 8))


def test_where_the_users_code_calls_no_layer_the_line_is_not_ours():
    net = nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(8, 8)))
    with pytest.raises(WiringError, match=rf"Orthogonal of 'weight' at '0' \({re.escape(__file__)}:\d+: clnp\.Learner"):
        clnp.Learner(net, torch.zeros(2, 8))
