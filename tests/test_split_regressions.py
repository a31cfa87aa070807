"""What was once broken in the training form."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clnp.errors import WiringError
from clnp.narrow import narrow
from clnp.split import initialise_
from clnp.wiring import trace
from test_narrow import state_of
from test_split import close, lies_in, make
from test_wiring import Net


def same_as_narrowed(net, shape, claimed, pool, x):
    network, wiring, head = make(net.eval(), shape, claimed, pool)
    with torch.no_grad():
        expected = narrow(wiring, state_of(net), network.visible, head=(head.weight, head.bias))(x)
        assert close(network.eval()(x), expected)


@pytest.mark.parametrize(("claimed", "pool"), [([0, 1, 2], [4, 5]), ([0, 1], [4, 5])], ids=["a crash", "silently wrong"])
def test_a_residual_from_the_input_after_dropout(claimed, pool):
    net = Net(lambda n, x: F.dropout(n.a(x), 0.1, n.training) + x, a=nn.Linear(6, 6))
    same_as_narrowed(net, (6,), claimed, pool, torch.randn(5, 6))


def test_a_mean_over_units_beside_raw_input_is_refused():
    net = Net(lambda n, x: n.o(torch.cat([x, n.a(x)], 1).mean(1, keepdim=True)), a=nn.Linear(4, 4), o=nn.Linear(1, 3))
    with pytest.raises(WiringError, match="mixes raw input with units"):
        same_as_narrowed(net, (4,), [], [0, 1, 2, 3], torch.randn(5, 4))


def test_a_batch_norm_used_twice_has_one_set_of_parameters():
    net = Net(lambda n, x: n.n(n.b(torch.relu(n.n(n.a(x))))), a=nn.Linear(4, 4), b=nn.Linear(4, 4), n=nn.BatchNorm1d(4))
    network, _, _ = make(net, (4,), [], [0, 1, 2, 3])
    names = [piece.name for piece in network.pieces]
    assert len(names) == len(set(names))
    assert {lies_in(network.wiring, piece)[0] for piece in network.pieces} >= {f"n.{kind}" for kind in ("weight", "bias", "running_mean")}


@pytest.mark.parametrize("taken", ["bias", "given"])
def test_a_buffer_may_have_any_name(taken):
    net = Net(lambda n, x: n.a(x + getattr(n, taken)), a=nn.Linear(4, 4), **{taken: torch.ones(4)})
    same_as_narrowed(net, (4,), [0, 1], [2, 3], torch.randn(5, 4))


@pytest.mark.parametrize("part", [nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 5), nn.ReLU())], ids=["head", "head.0"])
def test_a_layer_of_the_trunk_may_be_called_head(part):
    net = Net(lambda n, x: n.head(x), head=part)
    network, _, head = make(net, (4,), [], [0, 1, 2, 3])
    network.write({key: tensor.detach().clone() for key, tensor in state_of(net).items()}, head)


def test_a_weight_that_is_fixed_stays_what_it_is_or_is_refused():
    net = Net(lambda n, x: n.a(torch.relu(F.linear(x, n.w))), w=torch.randn(5, 4), a=nn.Linear(5, 3))
    try:
        wiring = trace(net, torch.zeros(2, 4))
    except WiringError:
        return
    state = {key: tensor.detach().clone() for key, tensor in state_of(net).items()}
    initialise_(wiring, state, torch.zeros(8, dtype=torch.bool), torch.ones(8, dtype=torch.bool), torch.Generator().manual_seed(0))
    assert torch.equal(state["w"], net.w)


@pytest.mark.parametrize("kind", ["a buffer", "parameters in parts"])
def test_a_bias_that_is_computed_keeps_units_apart(kind):
    if kind == "a buffer":
        net = Net(lambda n, x: n.a(F.linear(x, n.w, n.b * 2)), w=nn.Parameter(torch.randn(5, 4)), b=torch.randn(5), a=nn.Linear(5, 3))
    else:  # BEiT and EVA: no bias of the keys
        net = Net(
            lambda n, x: n.a(F.linear(x, n.w, torch.cat([n.q, n.k, n.v]))),
            w=nn.Parameter(torch.randn(5, 4)),
            q=nn.Parameter(torch.randn(2)),
            k=torch.zeros(1),
            v=nn.Parameter(torch.randn(2)),
            a=nn.Linear(5, 3),
        )
    wiring = trace(net, torch.zeros(2, 4))
    assert [(group.name, group.n_units) for group in wiring.groups] == [("w", 5), ("a", 3)]
    assert "capacity lost" not in wiring.explain()
    unit = wiring.parameters["w"].rows.tolist()  # the parts of the bias come first
    for claimed, pool in (([], [0, 1]), ([0, 1], [2, 4]), ([0, 2], [1, 3]), ([3], [2])):
        same_as_narrowed(net, (4,), [unit[row] for row in claimed], [*(unit[row] for row in pool), 5, 7], torch.randn(6, 4))
    units = torch.tensor([True] * 8)
    units[[unit[1], unit[4], 6]] = False
    x, whole = torch.randn(6, 4), copy.deepcopy(net)
    whole.a.weight.data[:, [1, 4]] = 0
    with torch.no_grad():
        assert close(narrow(wiring, state_of(net), units)(x), whole(x)[:, [0, 2]])


def test_a_sum_with_a_product_goes_on_without_the_product():
    net = Net(
        lambda n, x: torch.addmm(n.a(x), n.b(x), n.w, beta=0.5, alpha=2),
        a=nn.Linear(4, 6),
        b=nn.Linear(4, 5),
        w=nn.Parameter(torch.randn(5, 6)),
    )
    wiring, x = trace(net, torch.randn(2, 4)), torch.randn(7, 4)
    assert {group.name: group.n_units for group in wiring.groups} == {"a": 6, "b": 5}
    same_as_narrowed(net, (4,), [6, 10], [2, 3, 7, 8], x)
    without = torch.ones(wiring.n_units, dtype=torch.bool)
    without[next(group.slice for group in wiring.groups if group.name == "b")] = False
    with torch.no_grad():
        assert torch.allclose(narrow(wiring, state_of(net), without)(x), 0.5 * net.a(x))
