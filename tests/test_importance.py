"""The table of criteria: every one in it keeps these promises."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from clnp.importance import CRITERIA, Activity
from clnp.measuring import activities
from clnp.sources import TensorExamples
from clnp.split import Head
from clnp.wiring import trace

HAND = Activity(
    {
        "mean_abs": torch.tensor([2.0, 0.0, 3.0]),
        "firing": torch.tensor([0.5, 0.0, 1.0]),
        "std": torch.tensor([1.0, 0.0, 0.0]),
        "taylor": torch.tensor([0.25, 0.0, 0.5]),
    },
    outgoing=torch.tensor([3.0, 5.0, 2.0]),
)
EXPECTED = {
    "activity": [2.0, 0.0, 3.0],
    "firing": [0.5, 0.0, 1.0],
    "std": [1.0, 0.0, 0.0],
    "activity-weight": [6.0, 0.0, 6.0],
    "firing-weight": [1.5, 0.0, 2.0],
    "std-weight": [3.0, 0.0, 0.0],
    "taylor": [0.25, 0.0, 0.5],
}


@functools.cache
def wiring_of(activation):
    return trace(two_layers(activation)[0], torch.zeros(2, 5))


def measured(network, head, x):
    """Scores of a small network's units by the library: criterion -> (n_units,)."""
    wiring = wiring_of(type(network[1]))
    everything = torch.ones(wiring.n_units, dtype=torch.bool)
    data = TensorExamples(x, torch.zeros(len(x), dtype=torch.long))
    scores = {name: torch.zeros(wiring.n_units) for name in CRITERIA}
    for units, activity in activities(
        wiring, network.state_dict(), everything, Head(head, torch.zeros(3)), data, everything, moments=list(HAND.moments)
    ):
        for name, criterion in CRITERIA.items():
            scores[name][units] = criterion(activity)
    return scores


def two_layers(activation=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), activation(), nn.Linear(6, 4), activation()), torch.randn(3, 4), torch.randn(200, 5)


def test_the_table_is_the_one_of_the_issue():
    assert set(CRITERIA) == set(EXPECTED)


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_computes_what_its_name_says(name):
    assert CRITERIA[name](HAND).tolist() == EXPECTED[name]


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_reads_its_own_moment_alone(name):
    """No other is measured for it when a task is pruned."""
    moment = CRITERIA[name].moment
    alone = Activity({moment: HAND.moments[moment]}, HAND.outgoing)
    assert CRITERIA[name](alone).tolist() == EXPECTED[name]


@pytest.mark.parametrize("name", CRITERIA)
def test_a_unit_that_never_fires_scores_zero_and_any_other_is_finite(name):
    network, head, x = two_layers()
    with torch.no_grad():
        network[0].weight[2], network[0].bias[2] = 0, -1
    scores = measured(network, head, x)[name]
    assert scores[2] == 0
    assert torch.isfinite(scores).all()
    assert (scores >= 0).all()
    assert (scores > 0).sum() >= 8


@pytest.mark.parametrize("name", [name for name in CRITERIA if name.startswith("std")])
def test_a_unit_that_never_changes_is_a_bias(name):
    network, head, x = two_layers()
    with torch.no_grad():
        network[0].weight[1], network[0].bias[1] = 0, 5
    scores = measured(network, head, x)[name]
    assert scores[1] < 1e-3 * scores[:6].max()


@pytest.mark.parametrize("name", ["activity-weight", "std-weight", "firing", "taylor"])
def test_rescaling_a_relu_unit_between_inputs_and_outputs(name):
    """A ReLU unit can be rescaled freely: the function stays the same, so must the score of size times weight."""
    network, head, x = two_layers()
    before = measured(network, head, x)[name]
    with torch.no_grad():
        network[0].weight[3] *= 100
        network[0].bias[3] *= 100
        network[2].weight[:, 3] /= 100
    after = measured(network, head, x)[name]
    assert torch.allclose(after, before, rtol=1e-3)


@pytest.mark.parametrize("name", CRITERIA)
def test_the_sign_of_an_activity_does_not_matter(name):
    """The signed mean is wrong for tanh: a unit and its mirror image matter as much."""
    network, head, x = two_layers(nn.Tanh)
    before = measured(network, head, x)[name]
    with torch.no_grad():
        network[0].weight[0] *= -1
        network[0].bias[0] *= -1
        network[2].weight[:, 0] *= -1
    assert torch.allclose(measured(network, head, x)[name], before, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CRITERIA)
def test_scores_do_not_depend_on_the_order_of_the_examples(name):
    network, head, x = two_layers()
    assert torch.allclose(measured(network, head, x)[name], measured(network, head, x.flip(0))[name], rtol=1e-4)
