"""Convolutional networks of the zoo whose blocks are plain convolutions, batch norms and residual sums."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from zoo_entry import Entry, images


def conv_bn(n_in, n_out, kernel=3, stride=1, groups=1, act=nn.ReLU):
    layers = [nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(n_out)]
    return nn.Sequential(*layers, *([] if act is None else [act()]))


def vgg():
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
        *(nn.Conv2d(16, 16, 3, padding="same", bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(inplace=True), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(96, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1)),
    )


class BasicBlock(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """Basic blocks with a projection where the size changes, as in torchvision."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.layer1 = nn.Sequential(BasicBlock(12, 12, 1))
        self.layer2 = nn.Sequential(BasicBlock(12, 24, 2), BasicBlock(24, 24, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return torch.flatten(self.avgpool(x), 1)


class PaddedBlock(nn.Module):
    """The shortcut of the ResNets for CIFAR: every second pixel, and channels of zeros on both sides (option A)."""

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.prelu = nn.PReLU(n_out)
        self.stride, self.padding = stride, (n_out - n_in) // 2

    def forward(self, x):
        out = self.bn2(self.conv2(self.prelu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding), "constant", 0)
        return F.relu(out + x)


class ResNetCifar(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_bn(1, 16)
        self.blocks = nn.Sequential(PaddedBlock(16, 16, 1), PaddedBlock(16, 24, 2))

    def forward(self, x):
        x = self.blocks(self.stem(x))
        x = F.avg_pool2d(x, x.size()[3])
        return x.view(x.size(0), -1)


class PreActBlock(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        if stride != 1:
            self.shortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x):
        out = F.leaky_relu(self.bn1(x), 0.1)
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv2(F.leaky_relu(self.bn2(self.conv1(out)), 0.1))
        return out + shortcut


class PreActResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 1, 1)
        self.blocks = nn.Sequential(PreActBlock(16, 16, 1), PreActBlock(16, 24, 2), PreActBlock(24, 24, 1))
        self.norm = nn.BatchNorm2d(24)

    def forward(self, x):
        return F.relu(self.norm(self.blocks(self.stem(x)))).mean(dim=[2, 3])


class DenseLayer(nn.Module):
    def __init__(self, n_in, growth, width):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(n_in)
        self.conv1 = nn.Conv2d(n_in, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, growth, 3, padding=1, bias=False)

    def forward(self, features):
        x = torch.cat(features, 1)
        x = self.conv1(F.relu(self.norm1(x)))
        return self.conv2(F.relu(self.norm2(x)))


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.layers = nn.ModuleList([DenseLayer(12 + 8 * i, 8, 16) for i in range(3)])
        self.norm = nn.BatchNorm2d(36)
        self.transition = nn.Conv2d(36, 24, 1)
        self.last = nn.ModuleList([DenseLayer(24, 8, 16)])

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(features))
        x = F.avg_pool2d(self.transition(F.relu(self.norm(torch.cat(features, 1)))), 2)
        features = [x]
        for layer in self.last:
            features.append(layer(features))
        x = F.relu(torch.cat(features, 1))
        return F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1 = conv_bn(1, 10)
        self.down2 = conv_bn(10, 16)
        self.bottom = conv_bn(16, 20)
        self.up2 = nn.ConvTranspose2d(20, 16, 2, stride=2)
        self.mix2 = conv_bn(32, 16)
        self.up1 = nn.ConvTranspose2d(16, 10, 3, stride=2, padding=1, output_padding=1)
        self.mix1 = conv_bn(20, 12)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        b = self.mix2(torch.cat((b, self.up2(c)), dim=1))
        a = self.mix1(torch.cat((a, self.up1(b)), dim=1))
        a = F.adaptive_max_pool2d(a, 2)
        return a.view(-1, 12 * 2 * 2)


class Inception(nn.Module):
    def __init__(self, n_in):
        super().__init__()
        self.branch1 = conv_bn(n_in, 8, 1)
        self.branch3 = nn.Sequential(conv_bn(n_in, 6, 1), conv_bn(6, 8, 3))
        self.branch5 = nn.Sequential(conv_bn(n_in, 6, 1), conv_bn(6, 8, 3), conv_bn(8, 8, 3))
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), conv_bn(n_in, 6, 1))

    def forward(self, x):
        return torch.cat([self.branch1(x), self.branch3(x), self.branch5(x), self.pool(x)], 1)


def inception():
    return nn.Sequential(
        conv_bn(1, 12), nn.MaxPool2d(3, 2, 1), Inception(12), nn.MaxPool2d(2), Inception(30), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


class Norms(nn.Module):
    """Group norm of several groups, of one, and of one channel each; instance norm."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 3, padding=1)
        self.norm1 = nn.GroupNorm(8, 24)
        self.conv2 = nn.Conv2d(24, 16, 3, padding=1)
        self.norm2 = nn.InstanceNorm2d(16, affine=True)
        self.conv3 = nn.Conv2d(16, 20, 3, padding=1)
        self.norm3 = nn.GroupNorm(1, 20)
        self.conv4 = nn.Conv2d(20, 16, 3, padding=1)
        self.norm4 = nn.GroupNorm(16, 16)

    def forward(self, x):
        x = F.elu(self.norm1(self.conv1(x)))
        x = F.max_pool2d(F.softplus(self.norm2(self.conv2(x))), 2)
        x = F.gelu(self.norm3(self.conv3(x)))
        x = F.silu(self.norm4(self.conv4(x)))
        return F.adaptive_avg_pool2d(x, 2).flatten(1)


class Volume(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv3d(1, 10, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm3d(10)
        self.conv1 = nn.Conv3d(10, 16, 3, stride=(1, 2, 2), padding=1)
        self.conv2 = nn.Conv3d(16, 16, (3, 1, 1), padding=(1, 0, 0))
        self.up = nn.ConvTranspose3d(16, 12, (1, 2, 2), stride=(1, 2, 2))

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.conv1(F.max_pool3d(x, (2, 1, 1))))
        x = F.relu(x + self.conv2(x))
        x = F.hardtanh(self.up(x), -3, 3)
        return F.adaptive_avg_pool3d(x, (1, 2, 2)).flatten(start_dim=1)


class SubPixel(nn.Module):
    """Pixels into channels, convolutions at a quarter of the size, and channels back into pixels."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Conv2d(4, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.expand = nn.Conv2d(16, 48, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.conv2 = nn.Conv2d(12, 8, 3, padding=1)
        self.last = nn.Conv2d(32, 24, 1)

    def forward(self, x):
        x = F.relu(self.encode(F.pixel_unshuffle(x, 2)))
        x = F.relu(self.conv(x)) + x
        x = F.relu(self.shuffle(self.expand(x)))
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = F.pixel_unshuffle(torch.tanh(self.conv2(F.avg_pool2d(x, 2))), 2)
        return torch.amax(F.relu(self.last(x)), dim=(2, 3))


BIGGER = (images(1, 12, 12),)
ENTRIES = [
    Entry("vgg", vgg, images(1, 8, 8), {"0": 16, "3": 16, "7": 24, "12": 32}),
    Entry(
        "resnet",
        ResNet,
        images(1, 8, 8),
        # Streams: conv1 with layer1.0.conv2; the projection runs before layer2.0.conv2 and names its stream, layer2.1.conv2 joins it.
        {"conv1": 12, "layer1.0.conv1": 12, "layer2.0.downsample.0": 24, "layer2.0.conv1": 24, "layer2.1.conv1": 24},
        varying=BIGGER,
    ),
    Entry(
        "resnet-cifar",
        ResNetCifar,
        images(1, 8, 8),
        # The wide stream has 24 channels, 4..19 of them are the narrow stream's 16: one group of 24 units.
        # Its pooling takes the size of the map for a constant, x.size()[3]: no other size is allowed.
        {"stem.0": 24, "blocks.0.conv1": 16, "blocks.1.conv1": 24},
    ),
    Entry(
        "resnet-preact",
        PreActResNet,
        images(1, 8, 8),
        {"stem": 16, "blocks.0.conv1": 16, "blocks.1.shortcut": 24, "blocks.1.conv1": 24, "blocks.2.conv1": 24},
        varying=BIGGER,
    ),
    Entry(
        "densenet",
        DenseNet,
        images(1, 8, 8),
        # Concatenation ties nothing: each convolution keeps its own units.
        {
            "stem": 12,
            **{f"layers.{i}.conv{j}": n for i in range(3) for j, n in ((1, 16), (2, 8))},
            "transition": 24,
            "last.0.conv1": 16,
            "last.0.conv2": 8,
        },
        varying=BIGGER,
    ),
    Entry(
        "unet",
        UNet,
        images(1, 8, 8),
        {"down1.0": 10, "down2.0": 16, "bottom.0": 20, "up2": 16, "mix2.0": 16, "up1": 10, "mix1.0": 12},
        varying=BIGGER,
    ),
    Entry(
        "inception",
        inception,
        images(1, 8, 8),
        {
            "0.0": 12,
            **{
                f"{block}.{layer}.0": n
                for block in (2, 4)
                for layer, n in (("branch1", 8), ("branch3.0", 6), ("branch3.1", 8), ("branch5.0", 6), ("branch5.1", 8), ("branch5.2", 8))
            },
            "2.pool.1.0": 6,
            "4.pool.1.0": 6,
        },
        varying=BIGGER,
    ),
    Entry(
        "norms",
        Norms,
        images(1, 8, 8),
        {"conv1": 8, "conv2": 16, "conv3": 20, "conv4": 16},
        varying=BIGGER,
        merged={"conv1": "the 3 channels of each of 8 norm groups are one unit"},
    ),
    Entry(
        "volume",
        Volume,
        images(1, 4, 8, 8),
        {"stem": 10, "conv1": 16, "up": 12},  # conv2 is added to conv1
        varying=(images(1, 6, 12, 12),),
    ),
    Entry(
        "sub-pixel",
        SubPixel,
        images(1, 8, 8),
        # The stream of `encode` holds `conv`; 48 channels of `expand` become 12 of 2 x 2 pixels; unshuffling 8 channels gives 4 columns each.
        {"encode": 16, "expand": 12, "conv2": 8, "last": 24},
        varying=BIGGER,
        merged={"expand": "the 4 channels that a pixel shuffle turns into one are one unit"},
    ),
]
