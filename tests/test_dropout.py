"""Dropout that draws four elements with one number: its share, its scale, its gradient, its seed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clnp import seeds
from clnp.dropout import CheapDropout, drop
from clnp.layers import Noise


@pytest.mark.parametrize("p", [0.05, 0.1, 0.25, 0.5, 0.9])
def test_share_and_mean_are_those_of_dropout(p):
    with seeds.seeded(0, "dropout"):
        y = drop(torch.ones(1_000_000), p)
    deviation = (p * (1 - p) / 1e6) ** 0.5
    assert abs(float((y == 0).float().mean()) - p) < 4 * deviation
    assert abs(float(y.mean()) - 1) < 4 * deviation / (1 - p)


def test_elements_that_share_a_number_are_independent():
    with seeds.seeded(0, "dropout"):
        kept = (drop(torch.ones(400_000), 0.5) > 0).view(-1, 4).double()
    correlations = torch.corrcoef(kept.T) - torch.eye(4)
    assert float(correlations.abs().max()) < 4 / 100_000**0.5


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 5, 7)])
def test_gradient_has_the_same_mask(shape):
    x = torch.ones(shape, dtype=torch.float64, requires_grad=True)
    y = drop(x, 0.3)
    y.sum().backward()
    assert y.shape == shape
    assert torch.equal(x.grad, y)


def test_noise_comes_from_the_seed():
    def drawn(*place: int) -> torch.Tensor:
        with seeds.seeded(*place):
            return drop(torch.ones(1000), 0.5)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_nothing_and_all_can_be_dropped():
    x = torch.ones(100)
    assert torch.equal(drop(x, 0.0), x)
    assert torch.equal(drop(x, 1.0), torch.zeros(100))


def test_bfloat16_stays_bfloat16():
    assert drop(torch.ones(100, dtype=torch.bfloat16), 0.1).dtype == torch.bfloat16


def test_networks_within_the_block_use_it_in_training_alone():
    network, x = nn.Sequential(nn.Dropout(0.5)), torch.ones(1000)
    with seeds.seeded(0):
        expected = drop(x, 0.5)
    with seeds.seeded(0), CheapDropout():
        assert torch.equal(network(x), expected)
    with CheapDropout():
        assert torch.equal(network.eval()(x), x)
        assert torch.equal(F.dropout(x, 0.5, training=False), x)
    with seeds.seeded(0):
        assert not torch.equal(network.train()(x), expected)


def test_in_place_dropout_stays_in_place():
    x = torch.ones(100)
    with CheapDropout():
        nn.Dropout(0.5, inplace=True)(x)
    assert float((x == 0).sum()) > 0


def test_pool_graph_uses_it():
    x = torch.ones(1000)
    with seeds.seeded(0):
        expected = drop(x, 0.5)
    with seeds.seeded(0):
        assert torch.equal(Noise("aten.dropout.default", 0.5)(x), expected)
