"""Convolutional networks of the zoo with depthwise or grouped convolutions, gates and channel shuffles."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from zoo_convolutional import BIGGER, conv_bn
from zoo_entry import Entry, images


class InvertedResidual(nn.Module):
    def __init__(self, n_in, n_out, stride, expand_ratio):
        super().__init__()
        hidden = n_in * expand_ratio
        self.use_res_connect = stride == 1 and n_in == n_out
        self.conv = nn.Sequential(
            conv_bn(n_in, hidden, 1, act=nn.ReLU6),
            conv_bn(hidden, hidden, 3, stride, hidden, nn.ReLU6),
            nn.Conv2d(hidden, n_out, 1, bias=False),
            nn.BatchNorm2d(n_out),
        )

    def forward(self, x):
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


def mobilenet_v2():
    return nn.Sequential(
        conv_bn(1, 12, act=nn.ReLU6),
        InvertedResidual(12, 12, 1, 2),
        InvertedResidual(12, 16, 2, 2),
        InvertedResidual(16, 16, 1, 2),
        conv_bn(16, 32, 1, act=nn.ReLU6),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
    )


class SqueezeExcite(nn.Module):
    def __init__(self, n, squeezed):
        super().__init__()
        self.fc1 = nn.Conv2d(n, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, n, 1)

    def forward(self, x):
        scale = F.adaptive_avg_pool2d(x, 1)
        scale = F.hardsigmoid(self.fc2(F.relu(self.fc1(scale))))
        return scale * x


class MobileBlock(nn.Module):
    def __init__(self, n_in, hidden, n_out, stride):
        super().__init__()
        self.expand = conv_bn(n_in, hidden, 1, act=nn.Hardswish)
        self.depthwise = conv_bn(hidden, hidden, 5, stride, hidden, nn.Hardswish)
        self.se = SqueezeExcite(hidden, 8)
        self.project = conv_bn(hidden, n_out, 1, act=None)
        self.skip = stride == 1 and n_in == n_out

    def forward(self, x):
        y = self.project(self.se(self.depthwise(self.expand(x))))
        return y + x if self.skip else y


class MobileNetV3(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_bn(1, 12, act=nn.Hardswish)
        self.blocks = nn.ModuleList([MobileBlock(12, 24, 12, 1), MobileBlock(12, 24, 16, 2)])
        self.fc = nn.Linear(16, 32)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return F.hardswish(self.fc(x.mean((-2, -1))))


def channel_shuffle(x, groups):
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    def __init__(self, n, stride):
        super().__init__()
        self.stride = stride
        if stride == 2:
            self.branch1 = nn.Sequential(conv_bn(n, n, 3, 2, n, None), conv_bn(n, n, 1))
        half = n if stride == 2 else n // 2
        self.branch2 = nn.Sequential(conv_bn(half, half, 1), conv_bn(half, half, 3, stride, half, None), conv_bn(half, half, 1))

    def forward(self, x):
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


class ShuffleNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_bn(1, 16)
        self.stage = nn.Sequential(ShuffleUnit(16, 2), ShuffleUnit(32, 1), ShuffleUnit(32, 1))
        self.last = conv_bn(32, 24, 1)

    def forward(self, x):
        return self.last(self.stage(self.stem(x))).mean([2, 3])


class ResNeXtBlock(nn.Module):
    def __init__(self, n_in, width, n_out, groups, stride):
        super().__init__()
        self.conv1 = conv_bn(n_in, width, 1)
        self.conv2 = conv_bn(width, width, 3, stride, groups)
        self.conv3 = conv_bn(width, n_out, 1, act=None)
        self.shortcut = nn.Identity() if stride == 1 else conv_bn(n_in, n_out, 1, stride, act=None)

    def forward(self, x):
        return F.relu(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x))


class ResNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_bn(1, 16)
        self.blocks = nn.Sequential(ResNeXtBlock(16, 24, 16, 8, 1), ResNeXtBlock(16, 32, 24, 8, 2))

    def forward(self, x):
        return F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).squeeze(-1).squeeze(-1)


class Multiplier(nn.Module):
    """Separable convolutions whose depthwise part gives two channels for each that it reads."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 24, 3, padding=1, groups=12)
        self.norm = nn.BatchNorm2d(24)
        self.pointwise = nn.Conv2d(24, 16, 1)
        self.gate = nn.Conv2d(16, 48, 1)

    def forward(self, x):
        x = F.relu(self.norm(self.depthwise(F.relu(self.stem(x)))))
        x = F.celu(self.pointwise(F.max_pool2d(x, 2)))
        return F.glu(self.gate(x), dim=1).amax(dim=(2, 3))


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=5, padding=2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 2 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(2 * dim, dim)
        self.gamma = nn.Parameter(0.1 * torch.ones(dim))

    def forward(self, x):
        residual = x
        x = self.dwconv(x)
        x = x.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        x = self.pwconv2(self.act(self.pwconv1(self.norm(x))))
        x = self.gamma * x
        x = x.permute(0, 3, 1, 2)
        return residual + x


class ChannelNorm(nn.Module):
    """A layer norm of channels that come first."""

    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 24, kernel_size=2, stride=2), ChannelNorm(24))
        self.stage1 = nn.Sequential(ConvNeXtBlock(24), ConvNeXtBlock(24))
        self.down = nn.Sequential(ChannelNorm(24), nn.Conv2d(24, 32, kernel_size=2, stride=2))
        self.stage2 = nn.Sequential(ConvNeXtBlock(32))
        self.norm = nn.LayerNorm(32, eps=1e-6)

    def forward(self, x):
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        return self.norm(x.mean([-2, -1]))


HEAD_GROUP = "the channels of a group of a grouped convolution, read and written, are one unit"
ENTRIES = [
    Entry(
        "mobilenet-v2",
        mobilenet_v2,
        images(1, 8, 8),
        # Depthwise convolutions belong to the expansion before them. Streams: 0.0 with 1.conv.2, and 2.conv.2 with 3.conv.2.
        {"0.0": 12, "1.conv.0.0": 24, "2.conv.0.0": 24, "2.conv.2": 16, "3.conv.0.0": 32, "4.0": 32},
        varying=BIGGER,
    ),
    Entry(
        "mobilenet-v3",
        MobileNetV3,
        images(1, 8, 8),
        # The excitation se.fc2 belongs to the channels that it scales.
        {
            "stem.0": 12,
            "blocks.0.expand.0": 24,
            "blocks.0.se.fc1": 8,
            "blocks.1.expand.0": 24,
            "blocks.1.se.fc1": 8,
            "blocks.1.project.0": 16,
            "fc": 32,
        },
        varying=BIGGER,
    ),
    Entry(
        "shufflenet",
        ShuffleNet,
        images(1, 8, 8),
        # The depthwise convolution of the left branch belongs to the stem; chunks and shuffles move units and tie none.
        {
            "stem.0": 16,
            "stage.0.branch1.1.0": 16,
            **{f"stage.{i}.branch2.{j}.0": 16 for i in range(3) for j in (0, 2)},
            "last.0": 24,
        },
        varying=BIGGER,
    ),
    Entry(
        "resnext",
        ResNeXt,
        images(1, 8, 8),
        # conv1 and conv2 have 8 units: one for each group of conv2.
        {"stem.0": 16, "blocks.0.conv1.0": 8, "blocks.1.conv1.0": 8, "blocks.1.conv3.0": 24},
        varying=BIGGER,
        merged={"blocks.0.conv1.0": HEAD_GROUP, "blocks.1.conv1.0": HEAD_GROUP},
    ),
    Entry(
        "multiplier",
        Multiplier,
        images(1, 8, 8),
        # Both channels that the depthwise convolution makes of one belong to it; of 48 gate channels i and 24 + i are one.
        {"stem": 12, "pointwise": 16, "gate": 24},
        varying=BIGGER,
        merged={"stem": "the 2 channels made of each channel belong to it", "gate": "a gate and what it gates are one unit"},
    ),
    Entry(
        "convnext",
        ConvNeXt,
        images(1, 8, 8),
        {"stem.0": 24, "stage1.0.pwconv1": 48, "stage1.1.pwconv1": 48, "down.1": 32, "stage2.0.pwconv1": 64},
        varying=BIGGER,
    ),
]
