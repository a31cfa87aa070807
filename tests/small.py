"""Small networks, small data and shared settings for the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import clnp

if TYPE_CHECKING:
    from collections.abc import Iterable

SHAPE = (1, 8, 8)
OPTIMIZERS = {
    "sgd-momentum": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9},
    "sgd-decay": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-3},
    "adam": {"optimizer": "adam", "lr": 5e-3},
    "adamw": {"optimizer": "adamw", "lr": 5e-3, "weight_decay": 0.05},
}


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 20), nn.ReLU(), nn.Dropout(0.1), nn.Linear(20, 16), nn.Tanh(), nn.Dropout(0.1)
    )


def vgg() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout2d(0.1),
        nn.Conv2d(8, 10, 3, padding="same", bias=False),
        nn.BatchNorm2d(10, momentum=None),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(40, 12),
        nn.BatchNorm1d(12, affine=False),
        nn.ReLU(),
    )


class Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 1, 1)
        self.block1 = Block(8, 8, 1)
        self.drop = nn.Dropout(0.1)
        self.block2 = Block(8, 12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.drop(self.block1(self.stem(x))))
        pooled = nn.functional.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)
        return torch.cat([pooled, nn.functional.max_pool2d(x, 4).flatten(1)], 1)


NETWORKS = {"mlp": mlp, "vgg": vgg, "resnet": ResNet}
RESNET_IN_CI = ["mlp", "vgg", pytest.param("resnet", marks=pytest.mark.thorough)]
"""Their names, for what is too dear for the fast suite with the last of them."""


def network(name: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NETWORKS[name]()


def task(number: int, n: int = 240, n_classes: int = 3) -> tuple[Tensor, Tensor]:
    """Noisy images of `n_classes` patterns that belong to this task number alone."""
    generator = torch.Generator().manual_seed(number)
    patterns = torch.randn(n_classes, *SHAPE, generator=generator)
    y = torch.arange(n) % n_classes
    return patterns[y] + 0.5 * torch.randn(n, *SHAPE, generator=generator), y


def config(**settings: object) -> clnp.LearnConfig:
    return clnp.LearnConfig(**{"epochs": 3, "finetune_epochs": 1, "batch_size": 32, "margin": 0.02, "pool": 0.5, **settings})


def learn(learner: clnp.Learner, number: int, **settings: object) -> clnp.LearnResult:
    x, y = task(number)
    return learner.learn(f"task-{number}", (x[:180], y[:180]), (x[180:], y[180:]), config=config(**settings))


def learned(name: str, n_tasks: int, seed: int = 0, **settings: object) -> clnp.Learner:
    learner = clnp.Learner(network(name), torch.zeros(2, *SHAPE), seed=seed)
    for number in range(n_tasks):
        learn(learner, number, **settings)
    return learner


def sampled(names: Iterable[Any], every: int = 3) -> list[Any]:
    """Parameters (tuples where a test takes several) of which each third, say, is in the fast suite, all of them in CI."""
    return [
        pytest.param(*(name if isinstance(name, tuple) else (name,)), marks=() if place % every == 0 else pytest.mark.thorough)
        for place, name in enumerate(names)
    ]
