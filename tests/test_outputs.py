"""A network with several outputs: heads read them side by side, in the order in which the network returns them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import clnp
import clnp.pruning
import small
from clnp.wiring import trace
from test_pruning import data, nothing_released
from test_wiring import Net

FORMS = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"one": a, "two": b},
    "nested": lambda a, b: {"both": (a, {"two": b})},
}


def two_outputs(form):
    return Net(lambda n, x: FORMS[form](n.a(x.flatten(1)), n.b(x.flatten(1))), a=nn.Linear(64, 6), b=nn.Linear(64, 4))


@pytest.mark.parametrize("form", FORMS)
def test_they_are_labelled_side_by_side(form):
    wiring = trace(two_outputs(form), torch.zeros(2, *small.SHAPE))
    assert [(group.name, group.n_units) for group in wiring.groups] == [("a", 6), ("b", 4)]
    assert wiring.features.tolist() == [*range(10)]


def test_raw_input_may_be_one_of_them():
    wiring = trace(Net(lambda n, x: (n.a(x), x), a=nn.Linear(8, 3)), torch.zeros(2, 8))
    assert wiring.features.tolist() == [0, 1, 2, *[-1] * 8]
    assert wiring.explain().endswith("heads read 11 features, 8 of them raw input")


@pytest.mark.parametrize("form", FORMS)
def test_a_head_reads_them_side_by_side(form, monkeypatch):
    monkeypatch.setattr(clnp.pruning, "select", nothing_released)
    torch.manual_seed(0)
    learner = clnp.Learner(two_outputs(form), torch.zeros(2, *small.SHAPE))
    assert {group: capacity.n_units for group, capacity in learner.capacity().items()} == {"a": 6, "b": 4}
    (x, y), validation = data(0)
    result = learner.learn("t", (x, y), validation, config=small.config(pool="all"))
    assert result.claimed == {"a": 6, "b": 4}
    assert result.accuracy > 0.6
    state = learner.predictor("t").state_dict()
    with torch.no_grad():
        features = torch.cat([F.linear(x.flatten(1), state[f"{name}.weight"], state[f"{name}.bias"]) for name in "ab"], 1)
        expected = F.linear(features, state["head.weight"], state["head.bias"])
        assert torch.allclose(learner.predict(x, task="t"), expected, rtol=1e-4, atol=1e-5)
