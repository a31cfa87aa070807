"""Networks of the zoo with unusual shapes: several inputs or outputs, layers used again, plain layers with odd functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from zoo_entry import Entry, images


def mlp():
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 32), nn.LayerNorm(32), nn.Tanh()),
        *(nn.Linear(32, 24), nn.BatchNorm1d(24), nn.Mish()),
    )


class TwoInputs(nn.Module):
    """The upper half of an image as a map, the lower half as numbers, which scale and shift it."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 16, 3, padding=1)
        self.fc = nn.Linear(32, 24)
        self.film = nn.Linear(24, 32)
        self.both = nn.Linear(40, 32)

    def forward(self, image, numbers):
        y = F.relu(self.fc(numbers))
        scale, shift = self.film(y).split([16, 16], dim=1)
        x = self.conv2(F.relu(self.conv1(image)))
        x = F.relu(x * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
        return torch.relu(self.both(torch.cat([x.amax((2, 3)), y], dim=-1)))


class TwoOutputs(nn.Module):
    """Early and late features, as a tuple."""

    def __init__(self):
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.late = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))

    def forward(self, x):
        x = self.early(x)
        y = self.late(x)
        return x.mean((2, 3)), y.flatten(1)


class Reused(nn.Module):
    """One layer, used three times; and one that reads two different maps."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.again = nn.Conv2d(16, 16, 3, padding=1)
        self.read = nn.Conv2d(16, 24, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for _ in range(3):
            x = F.relu(self.again(x) + x)
        coarse = self.read(F.avg_pool2d(x, 4)).flatten(2).mean(2)
        fine = self.read(x).amax((2, 3))
        return torch.cat([coarse, fine], dim=1)


class Highway(nn.Module):
    """Layers that mix what they compute with what they read, by a gate; and a product of three branches."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 32)
        self.value = nn.Linear(32, 32)
        self.gate = nn.Linear(32, 32)
        self.a, self.b, self.c = (nn.Linear(32, 24) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(24))

    def forward(self, x):
        x = F.relu(self.fc(torch.flatten(x, 1)))
        gate = torch.sigmoid(self.gate(x) - 1.0)
        x = gate * F.relu(self.value(x)) + (1 - gate) * x
        a = self.a(x)
        y = torch.where(a > 0, a + self.b(x), 0.1 * self.c(x))
        return torch.maximum(y, torch.zeros_like(y)) * self.scale


class Pooled(nn.Module):
    """Parallel maps that are stacked, flipped, rolled and pooled in several ways, without a norm."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(1, 12, 3, stride=2, padding=1)
        self.right = nn.Conv2d(1, 12, 5, stride=2, padding=2, padding_mode="replicate")
        self.mix = nn.Conv2d(24, 20, 2)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

    def forward(self, x):
        maps = torch.stack([F.relu(self.left(x)), F.relu(self.right(x))], dim=2)  # (B, 12, 2, 4, 4)
        x = maps.flatten(1, 2).flip(-1).roll(1, 2)  # left and right channels take turns
        x = F.selu(self.mix(F.pad(x, (1, 0, 1, 0), mode="reflect")))
        x = F.lp_pool2d(self.up(x).abs() + 0.1, 2, 2)
        return torch.cat([x.mean((2, 3)), F.max_pool2d(x, 4).flatten(1), x.std((2, 3))], dim=1)


def halves(n):
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 1, 4, 8, generator=generator), torch.randn(n, 32, generator=generator)


def wider_halves(n):
    return torch.randn(n, 1, 6, 10, generator=torch.Generator().manual_seed(n)), halves(n)[1]


IMAGE = images(1, 8, 8)
ENTRIES = [
    Entry("mlp", mlp, IMAGE, {"1": 32, "4": 32, "7": 24}),
    Entry(
        "two-inputs",
        TwoInputs,
        halves,
        # film's 16 scales and 16 shifts belong to the channels of conv2; film runs first and names them.
        {"fc": 24, "film": 16, "conv1": 12, "both": 32},
        varying=(wider_halves,),
        merged={"film": "a scale, a shift and the channel they act on are one unit"},
    ),
    Entry("two-outputs", TwoOutputs, IMAGE, {"early.0": 16, "late.0": 24}),
    Entry("reused", Reused, IMAGE, {"stem": 16, "read": 24}, varying=(images(1, 12, 12),)),
    Entry(
        "highway",
        Highway,
        IMAGE,
        {"fc": 32, "a": 24},  # gate and value are added to fc; a, b and c are chosen from
    ),
    Entry("pooled", Pooled, IMAGE, {"left": 12, "right": 12, "mix": 20}),
]
