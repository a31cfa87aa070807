"""What is measured of each unit: against means one can read, and against the gradient of a gate before it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clnp.importance import CRITERIA
from clnp.measuring import activities
from clnp.sources import TensorExamples
from clnp.split import Head
from clnp.training import EVALUATION_BATCH, batches
from clnp.wiring import trace
from test_narrow import state_of
from test_training import N, data, trunk

__all__ = ["data"]


def naive_activities(net, x):
    """Mean of |a|, of a != 0, and standard deviation over examples and positions: what the second layer and the head read."""
    with torch.no_grad():
        hidden = net[:4].eval()(x)
        features = net.eval()(x).unflatten(1, (5, 4)).unsqueeze(3)
    both = torch.cat([hidden.transpose(0, 1).flatten(1).t(), torch.zeros(0, 6)]), features.transpose(0, 1).flatten(1).t()
    return [(a.abs().mean(0), (a != 0).float().mean(0), a.std(0, correction=0)) for a in both]


def measured(net, x, visible, free, head, y=None, moments=("mean_abs", "firing", "std"), **how):
    wiring = trace(net, x[:2])
    state = {k: v.detach() for k, v in state_of(net).items()}
    y = torch.zeros(len(x), dtype=torch.long) if y is None else y
    return activities(wiring, state, visible, Head(head, torch.zeros(len(head))), TensorExamples(x, y), free, moments=moments, **how)


def test_activities_are_means_over_examples_and_positions(data):
    net = trunk()
    everything = torch.ones(11, dtype=torch.bool)
    found = measured(net, data.x, everything, everything, torch.ones(3, 20))
    assert [units.tolist() for units, _ in found] == [list(range(6)), list(range(6, 11))]
    for (_, activity), expected in zip(found, naive_activities(net, data.x), strict=True):
        for value, wanted in zip((activity.moments[moment] for moment in ("mean_abs", "firing", "std")), expected, strict=True):
            assert torch.allclose(value, wanted, rtol=1e-3, atol=1e-5)


def test_outgoing_weights_are_those_that_the_task_trains(data):
    net, head = trunk(), torch.randn(3, 20)
    visible, free = torch.ones(11, dtype=torch.bool), torch.ones(11, dtype=torch.bool)
    visible[[1, 10]] = False
    free[[0, 6, 7]] = False
    (first, hidden), (second, features) = measured(net, data.x, visible, free, head)
    assert first.tolist() == [0, 2, 3, 4, 5]
    assert second.tolist() == [6, 7, 8, 9]
    weight = net[4].weight.detach()[[2, 3]]  # rows 8 and 9 of the units are visible and free
    assert torch.allclose(hidden.outgoing, weight.abs().sum((0, 2, 3))[[0, 2, 3, 4, 5]], atol=1e-4)
    assert torch.allclose(features.outgoing, head.abs().sum(0).unflatten(0, (5, 4)).sum(1)[:4], atol=1e-4)


def test_every_example_counts_the_same():
    x = torch.ones(EVALUATION_BATCH // 2 + 1, 1, 8, 8)
    x[-1] = 100
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False))
    net[1].weight.data.fill_(1)
    ((_, activity),) = measured(net, x, torch.ones(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool), torch.ones(3, 2))
    assert torch.allclose(activity.moments["mean_abs"], net(x).abs().mean(0), rtol=1e-3)


class Attends(nn.Module):
    """Positions come first inside the attention: examples are not along dimension 0 there."""

    def __init__(self):
        super().__init__()
        self.into = nn.Linear(4, 8)
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x):
        h = self.into(x).transpose(0, 1)
        return self.attention(h, h, h, need_weights=False)[0].mean(0)


def slope_of_gates(first, rest, head, x, y):
    """Put a gate of 1 after each unit of the first layer: mean over examples of |d loss / d gate|, one example at a time."""
    n_units = first(x[:1]).shape[1] if first(x[:1]).dim() == 4 else first(x[:1]).shape[-1]
    total = torch.zeros(n_units)
    for i in range(len(x)):
        gate = torch.ones(n_units, requires_grad=True)
        hidden = first(x[i : i + 1])
        hidden = hidden * (gate.view(1, -1, 1, 1) if hidden.dim() == 4 else gate)
        (slope,) = torch.autograd.grad(F.cross_entropy(rest(hidden) @ head.t(), y[i : i + 1]), gate)
        total += slope.abs()
    return total / len(x)


@pytest.mark.parametrize("kind", ["convolutions", "attention"])
def test_taylor_is_the_change_of_the_loss_with_a_gate_before_the_unit(kind):
    torch.manual_seed(3)
    y = torch.arange(N) % 3
    if kind == "convolutions":
        net, x = trunk().eval(), torch.randn(N, 1, 8, 8)
        head = torch.randn(3, 20)
        expected = slope_of_gates(net[:4], net[4:], head, x, y)
    else:
        net, x = Attends().eval(), torch.randn(N, 5, 4)
        head = torch.randn(3, 8)

        def rest(hidden):
            h = hidden.transpose(0, 1)
            return net.attention(h, h, h, need_weights=False)[0].mean(0)

        expected = slope_of_gates(net.into, rest, head, x, y)
    wiring = trace(net, x[:2])
    everything = torch.ones(wiring.n_units, dtype=torch.bool)
    found = measured(net, x, everything, everything, head, y, moments=["taylor"])
    units, activity = next((units, activity) for units, activity in found if 0 in units)
    assert units.tolist()[: len(expected)] == list(range(len(expected)))
    assert torch.allclose(activity.moments["taylor"], expected, rtol=1e-3, atol=1e-6)
    assert expected.min() > 0


MOMENTS = sorted({criterion.moment for criterion in CRITERIA.values()})


@pytest.mark.parametrize("moment", MOMENTS)
def test_nothing_is_measured_but_what_is_asked_for(data, moment):
    """And it is what it would be beside the others."""
    net, head, everything, y = trunk(), torch.randn(3, 20), torch.ones(11, dtype=torch.bool), torch.arange(N) % 3
    alone = measured(net, data.x, everything, everything, head, y, moments=[moment])
    beside = measured(net, data.x, everything, everything, head, y, moments=MOMENTS)
    for (_, activity), (_, other) in zip(alone, beside, strict=True):
        assert list(activity.moments) == [moment]
        assert torch.allclose(activity.moments[moment], other.moments[moment], rtol=1e-5, atol=1e-7)


def test_gradients_are_not_taken_unless_asked_for(data, monkeypatch):
    everything = torch.ones(11, dtype=torch.bool)
    monkeypatch.setattr(torch.autograd, "grad", None)
    assert measured(trunk(), data.x, everything, everything, torch.ones(3, 20))
    with pytest.raises(TypeError):
        measured(trunk(), data.x, everything, everything, torch.ones(3, 20), moments=["taylor"])


def test_the_memory_format_of_images_changes_no_moment(data, monkeypatch):
    net, everything, asked = trunk(), torch.ones(11, dtype=torch.bool), []
    monkeypatch.setattr(
        "clnp.measuring.batches", lambda *args, channels_last: asked.append(channels_last) or batches(*args, channels_last=channels_last)
    )
    found = {how: measured(net, data.x, everything, everything, torch.ones(3, 20), channels_last=how) for how in (False, True)}
    for (_, one), (_, other) in zip(found[False], found[True], strict=True):
        assert torch.allclose(one.moments["mean_abs"], other.moments["mean_abs"], rtol=1e-4, atol=1e-6)
    assert asked == [False, True]
