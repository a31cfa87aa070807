from __future__ import annotations

import pytest
import torch
from torch import nn

from clnp.errors import ConfigError
from clnp.models import MODELS, get_model, lookup, mlp, resnet, vgg, zenke

CIFAR = (3, 32, 32)
# What the wiring is promised to understand; whatever else a model holds is a container.
ALLOWED = (
    nn.Linear,
    nn.Conv2d,
    nn.BatchNorm2d,
    nn.ReLU,
    nn.Dropout,
    nn.MaxPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
    nn.Identity,
)
# name -> features and parameters for examples of CIFAR (mlp-2000: of MNIST), counted by hand from the papers' descriptions.
EXPECTED = {
    "mlp-small": (64, 3072 * 64 + 64 + 64 * 64 + 64),
    "mlp-100": (100, 3072 * 100 + 100 + 100 * 100 + 100),
    "mlp-256": (256, 3072 * 256 + 256 + 256 * 256 + 256),
    "mlp-2000": (2000, 3072 * 2000 + 2000 + 2000 * 2000 + 2000),
    "mlp-2000-plain": (2000, 3072 * 2000 + 2000 + 2000 * 2000 + 2000),
    "vgg-small": (128, 9 * (3 * 32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128) + 2 * 2 * (32 + 64 + 128)),
    "resnet-small": (
        64,
        9 * (3 * 16 + 2 * 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 16 * 32 + 32 * 64 + 2 * (3 * 16 + 3 * 32 + 3 * 64),
    ),
    "zenke": (512, 32 * 28 + 32 * 289 + 64 * 289 + 64 * 577 + 512 * (64 * 6 * 6 + 1)),
    "zenke-wide": (1024, 64 * 28 + 64 * 577 + 128 * 577 + 128 * 1153 + 1024 * (128 * 6 * 6 + 1)),
    "resnet18-narrow": (160, 1_093_140),
    "resnet18": (512, 11_173_962 - 5_130),  # the known size for CIFAR-10, less its head
}


def test_every_model_is_expected():
    assert set(MODELS) == set(EXPECTED)


@pytest.mark.parametrize("name", MODELS)
def test_a_trunk_gives_flat_features_and_has_the_papers_size(name):
    model = get_model(name)(CIFAR)
    features, n_parameters = EXPECTED[name]
    assert sum(p.numel() for p in model.parameters()) == n_parameters
    for batch in (2, 3):
        assert model(torch.rand(batch, *CIFAR)).shape == (batch, features)
    model.eval()
    x = torch.rand(2, *CIFAR)
    assert torch.equal(model(x), model(x))
    assert model(x[:1]).shape == (1, features)


@pytest.mark.parametrize("name", MODELS)
def test_only_operations_whose_units_can_be_told_apart_are_used(name):
    leaves = [module for module in get_model(name)(CIFAR).modules() if not list(module.children())]
    assert all(isinstance(leaf, ALLOWED) for leaf in leaves)


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_named_so_that_reports_can_be_read(name):
    assert not [key for key, _ in get_model(name)(CIFAR).named_children() if key.isdigit()]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_built_anew_from_the_global_seed_and_every_weight_learns(name):
    torch.manual_seed(0)
    one = get_model(name)(CIFAR)
    torch.manual_seed(0)
    two = get_model(name)(CIFAR)
    assert all(torch.equal(a, b) and a is not b for a, b in zip(one.parameters(), two.parameters(), strict=True))
    one(torch.randn(8, *CIFAR)).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in one.parameters())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8)])
def test_models_take_the_smaller_images_too(name, shape):
    if name.startswith("zenke") and shape == (1, 8, 8):
        with pytest.raises(ConfigError, match="10 x 10"):
            get_model(name)(shape)
    else:
        assert get_model(name)(shape)(torch.rand(2, *shape)).shape == (2, EXPECTED[name][0])


def test_the_papers_mlp_has_dropout_on_inputs_and_hidden_units():
    layers = list(MODELS["mlp-2000"]((784,)))
    assert [type(layer).__name__ for layer in layers] == ["Flatten", "Dropout", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout"]
    assert {layer.p for layer in layers if isinstance(layer, nn.Dropout)} == {0.1}
    assert not any(isinstance(layer, nn.Dropout) for layer in MODELS["mlp-256"]((784,)))


def test_zenkes_network_is_that_of_the_paper():
    layers = list(zenke(CIFAR))
    pair = ["Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d", "Dropout"]
    assert [type(layer).__name__ for layer in layers] == [*pair, *pair, "Flatten", "Linear", "ReLU", "Dropout"]
    assert [layer.p for layer in layers if isinstance(layer, nn.Dropout)] == [0.25, 0.25, 0.5]
    assert [layer.padding for layer in layers if isinstance(layer, nn.Conv2d)] == [(1, 1), (0, 0), (1, 1), (0, 0)]
    assert zenke((3, 10, 11))(torch.rand(2, 3, 10, 11)).shape == (2, 512)


def test_a_residual_block_adds_its_shortcut_before_the_last_relu():
    block = resnet(CIFAR, widths=(8, 16), blocks=2).eval()
    same, wider = block[3], block[5]
    x = torch.randn(2, 8, 6, 6)
    for part in (same, wider):
        for norm in (part.norm1, part.norm2):
            nn.init.uniform_(norm.weight)
        inner = part.norm2(part.conv2(part.norm1(part.conv1(x)).relu()))
        shortcut = x if part is same else part.shortcut(x)
        assert torch.equal(part(x), (inner + shortcut).relu())
    assert isinstance(same.shortcut, nn.Identity)
    assert wider.shortcut[0].kernel_size == (1, 1)
    assert wider(x).shape == (2, 16, 3, 3)


def test_the_users_own_widths():
    assert mlp((4,), hidden=(3,))(torch.rand(2, 4)).shape == (2, 3)
    assert vgg(CIFAR, widths=((8,), (12, 20)))(torch.rand(2, *CIFAR)).shape == (2, 20)
    drops = [layer.p for layer in mlp((4,), hidden=(3, 3), dropout_in=0.2, dropout=0.5) if isinstance(layer, nn.Dropout)]
    assert drops == [0.2, 0.5, 0.5]


@pytest.mark.parametrize("name", ["vgg-small", "resnet-small", "zenke", "zenke-wide", "resnet18-narrow", "resnet18"])
@pytest.mark.parametrize("shape", [(784,), (32, 32), (3, 2, 32), (0, 32, 32), (), (1, 3, 32, 32)])
def test_examples_that_are_no_images_or_too_small_are_refused(name, shape):
    with pytest.raises(ConfigError, match=r"expected images \(channels, height, width\) of at least \d+ x \d+"):
        get_model(name)(shape)


@pytest.mark.parametrize(("shape", "hidden"), [((), (3,)), ((4, 0), (3,)), ((4,), ()), ((4,), (3, 0))])
def test_an_mlp_that_cannot_be_is_refused(shape, hidden):
    with pytest.raises(ConfigError, match="cannot build an MLP"):
        mlp(shape, hidden)


def test_an_unknown_model_is_answered_with_the_nearest_and_the_list():
    with pytest.raises(ConfigError) as raised:
        get_model("resnet-18")
    assert "unknown model 'resnet-18'" in str(raised.value)
    assert "Did you mean 'resnet18'?" in str(raised.value)
    assert all(name in str(raised.value) for name in MODELS)
    with pytest.raises(ConfigError, match=r"unknown thing 'zzz'\. There are: a, b\."):
        lookup("thing", "zzz", {"a": 1, "b": 2})
    assert lookup("thing", "b", {"a": 1, "b": 2}) == 2
