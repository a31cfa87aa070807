"""The networks of the papers, as trunks: everything but the head, which the learner adds for each task.

Each function takes the shape of one example, without the batch, and returns a module (B, *shape) -> (B, features). Only
operations whose units can be told apart are used: linear, convolution, batch norm, ReLU, dropout, pooling, flatten, addition.
Layers are named, not numbered, because capacity is reported under these names.
"""

from __future__ import annotations

import difflib
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from torch import Tensor, nn

from clnp.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float

Shape: TypeAlias = tuple[int, ...]
Model: TypeAlias = Callable[[Shape], nn.Module]
T = TypeVar("T")


def mlp(shape: Shape, hidden: Sequence[int], dropout_in: float = 0.0, dropout: float = 0.0) -> nn.Sequential:
    """Build a multilayer perceptron with ReLU; examples of any shape are flattened.

    Args:
        shape: of one example.
        hidden: the width of each hidden layer; the last is the number of features.
        dropout_in: the probability that an input is dropped while training.
        dropout: the same for a hidden unit.

    Raises:
        ConfigError: no hidden layer, or a dimension or width below 1.

    >>> import torch
    >>> mlp((1, 8, 8), hidden=(32, 16))(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 16])
    """
    if not shape or min(shape) < 1:
        msg = f"cannot build an MLP for examples of shape {shape}: expected at least one dimension, each at least 1. Check the data."
        raise ConfigError(msg)
    if not hidden or min(hidden) < 1:
        msg = f"cannot build an MLP: expected at least one hidden layer, each at least 1 wide, found {tuple(hidden)}. Give other widths."
        raise ConfigError(msg)
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    if dropout_in:
        layers["dropout_in"] = nn.Dropout(dropout_in)
    width = math.prod(shape)
    for i, units in enumerate(hidden, start=1):
        layers |= {f"hidden{i}": nn.Linear(width, units), f"relu{i}": nn.ReLU()}
        if dropout:
            layers[f"dropout{i}"] = nn.Dropout(dropout)
        width = units
    return nn.Sequential(OrderedDict(layers))


def vgg(shape: Shape, widths: Sequence[Sequence[int]] = ((32, 32), (64, 64), (128, 128))) -> nn.Sequential:
    """Build a small network in the manner of VGG: 3 x 3 convolutions with batch norm and ReLU, in stages that end with pooling.

    The last stage ends with the mean over all positions instead of VGG's wide dense layers, so that each feature is one filter.

    Args:
        shape: (channels, height, width).
        widths: the filters of each convolution, stage by stage; all stages but the last halve the size.

    Raises:
        ConfigError: examples are no images, or too small to be halved so often.

    Reference: Simonyan & Zisserman, 2015; batch norm and the global mean are later habits.
    """
    channels = _image("a VGG", shape, smallest=2 ** (len(widths) - 1))
    layers: dict[str, nn.Module] = {}
    for stage, filters in enumerate(widths, start=1):
        for i, units in enumerate(filters, start=1):
            # No bias: batch norm would take it away again.
            layers[f"conv{stage}_{i}"] = nn.Conv2d(channels, units, 3, padding=1, bias=False)
            layers |= {f"norm{stage}_{i}": nn.BatchNorm2d(units), f"relu{stage}_{i}": nn.ReLU()}
            channels = units
        layers[f"pool{stage}"] = nn.MaxPool2d(2) if stage < len(widths) else nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(OrderedDict(layers | {"flatten": nn.Flatten()}))


class ResidualBlock(nn.Module):
    """Add two convolutions with batch norm to a shortcut, then ReLU (He et al., 2016, the basic block).

    The shortcut is the input itself, or a 1 x 1 convolution with batch norm where the size or the number of channels changes.

    Args:
        channels: of the input.
        units: filters of both convolutions, and channels of the output.
        stride: of the first convolution.
    """

    def __init__(self, channels: int, units: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, units, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(units)
        self.conv2 = nn.Conv2d(units, units, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(units)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != units:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, units, 1, stride, bias=False), nn.BatchNorm2d(units))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b u i j"]:
        """Return the block's output; with stride 2 it is half as high and wide."""
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.relu(y + self.shortcut(x))


def resnet(shape: Shape, widths: Sequence[int], blocks: int) -> nn.Sequential:
    """Build a residual network for small images: a 3 x 3 convolution, stages of basic blocks, the mean over all positions.

    Args:
        shape: (channels, height, width).
        widths: the filters of each stage; every stage but the first halves the size. The stem has as many as the first.
        blocks: basic blocks in each stage.

    Raises:
        ConfigError: examples are no images, or too small to be halved so often.

    Reference: He et al., 2016, the form for CIFAR: no pooling at the start; shortcuts by 1 x 1 convolutions (their option B).
    """
    channels = _image("a ResNet", shape, smallest=2 ** (len(widths) - 1))
    layers: dict[str, nn.Module] = {"conv": nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)}
    layers |= {"norm": nn.BatchNorm2d(widths[0]), "relu": nn.ReLU()}
    channels = widths[0]
    for stage, units in enumerate(widths, start=1):
        for i in range(1, blocks + 1):
            layers[f"block{stage}_{i}"] = ResidualBlock(channels, units, stride=2 if stage > 1 and i == 1 else 1)
            channels = units
    return nn.Sequential(OrderedDict(layers | {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}))


def zenke(shape: Shape, times: int = 1) -> nn.Sequential:
    """Build the convolutional network that synaptic intelligence was shown with on CIFAR-10 and CIFAR-100.

    Two convolutions with 32 filters, two with 64 (the first of each pair keeps the size, the second loses the border), each pair
    with pooling and dropout 0.25; a dense layer of 512, dropout 0.5.

    Args:
        shape: (channels, height, width).
        times: every layer is so many times as wide.

    Raises:
        ConfigError: examples are no images of at least 10 x 10.

    Reference: Zenke, Poole & Ganguli, 2017, section 5.3. Weights begin as PyTorch draws them, not as Keras does.
    """
    channels = _image("the network of Zenke et al.", shape, smallest=10)
    layers: dict[str, nn.Module] = {}
    for stage, units in enumerate((32 * times, 64 * times), start=1):
        layers |= {f"conv{stage}_1": nn.Conv2d(channels, units, 3, padding=1), f"relu{stage}_1": nn.ReLU()}
        layers |= {f"conv{stage}_2": nn.Conv2d(units, units, 3), f"relu{stage}_2": nn.ReLU()}
        layers |= {f"pool{stage}": nn.MaxPool2d(2), f"dropout{stage}": nn.Dropout(0.25)}
        channels = units
    height, width = (((size - 2) // 2 - 2) // 2 for size in shape[1:])
    dense = {"dense": nn.Linear(channels * height * width, 512 * times), "relu": nn.ReLU(), "dropout": nn.Dropout(0.5)}
    return nn.Sequential(OrderedDict(layers | {"flatten": nn.Flatten()} | dense))


def _image(what: str, shape: Shape, smallest: int) -> int:
    """Return the number of channels of an image's shape, or raise ConfigError."""
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < smallest:
        msg = f"cannot build {what} for examples of shape {shape}: expected images (channels, height, width) of at least "
        raise ConfigError(msg + f"{smallest} x {smallest}. Choose an MLP, or a benchmark whose examples are images of that size.")
    return shape[0]


MODELS: dict[str, Model] = {
    "mlp-small": partial(mlp, hidden=(64, 64)),
    "mlp-100": partial(mlp, hidden=(100, 100)),
    "mlp-256": partial(mlp, hidden=(256, 256)),
    # Golkar, Kagan & Cho, 2019: permuted MNIST. Dropout is ours; what it does stands in docs/results.md.
    "mlp-2000": partial(mlp, hidden=(2000, 2000), dropout_in=0.1, dropout=0.1),
    "mlp-2000-plain": partial(mlp, hidden=(2000, 2000)),
    "vgg-small": vgg,
    "resnet-small": partial(resnet, widths=(16, 32, 64), blocks=1),
    "zenke": zenke,
    "zenke-wide": partial(zenke, times=2),
    # Lopez-Paz & Ranzato, 2017 (GEM): ResNet-18 with a third of the filters; the usual network of split CIFAR-100.
    "resnet18-narrow": partial(resnet, widths=(20, 40, 80, 160), blocks=2),
    "resnet18": partial(resnet, widths=(64, 128, 256, 512), blocks=2),
}


def get_model(name: str) -> Model:
    """Return the function that builds the trunk of this name from the shape of one example.

    Raises:
        ConfigError: there is none of this name; the message lists those there are, and the nearest.

    >>> get_model("mlp-small")((64,)).hidden2
    Linear(in_features=64, out_features=64, bias=True)
    """
    return lookup("model", name, MODELS)


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Return an entry of a table by the name that a user gave.

    Args:
        kind: what the table holds, in the singular, for the message.
        name: the key.
        table: the entries.

    Raises:
        ConfigError: no such key; the message lists the keys and guesses which was meant.

    >>> lookup("model", "mlp-smal", MODELS)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    clnp.errors.ConfigError: unknown model 'mlp-smal'. Did you mean 'mlp-small'? There are: mlp-small, mlp-100, ...
    """
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # a configuration file may hold anything
        raise ConfigError(f"unknown {kind} {name!r}: expected a name, found {type(name).__name__}.")
    if name in table:
        return table[name]
    near = [key for key in table if name and key.startswith(name)] or difflib.get_close_matches(name.lower(), table, n=1, cutoff=0.5)
    guess = f" Did you mean {' or '.join(repr(key) for key in near)}?" if near else ""
    msg = f"unknown {kind} '{name}'.{guess} There are: {', '.join(table)}."
    raise ConfigError(msg)
