"""The networks whose directories of earlier formats lie in tests/stored/, and their data."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Two(nn.Module):
    """A network of two inputs, one of them whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers, self.words, self.both = nn.Linear(3, 6), nn.Embedding(5, 4), nn.Linear(10, 6)

    def forward(self, numbers: Tensor, word: Tensor) -> Tensor:
        read = torch.cat([torch.relu(self.numbers(numbers)), self.words(word)], 1)
        return torch.relu(self.both(read))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 8), nn.Tanh())


NETWORKS = {"plain": plain, "widened": plain, "two": Two}
TASKS = ("first", "zweite Aufgabe ß", "third/../x")


def data(network: str, number: int, n: int = 60) -> tuple[Tensor | tuple[Tensor, ...], Tensor]:
    generator = torch.Generator().manual_seed(100 + number)
    x = torch.randn(n, 3 if network == "two" else 4, generator=generator)
    y = (x[:, number % 3] > 0).long()
    word = torch.randint(5, (n,), generator=generator)
    return ((x, word) if network == "two" else x), y


def probe(network: str) -> Tensor | tuple[Tensor, ...]:
    return data(network, 9, 7)[0]
