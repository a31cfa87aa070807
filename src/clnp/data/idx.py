"""MNIST and Fashion-MNIST, in the idx format of their official files.

The format: two zero bytes, a byte for the type (8: unsigned byte), a byte for the number of dimensions, each dimension as a
big-endian 32-bit integer, then the values, the last dimension fastest.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clnp.data.download import Published, locate, read_bytes
from clnp.data.source import Source
from clnp.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

# The hashes are of files whose MD5 equals the published one (MNIST: 6bbc9ace898e44ae57da46a324031adb for the training images).
# yann.lecun.com, the official address, has refused downloads for years: it comes last, so that nobody waits for it.
MNIST = Published(
    title="MNIST",
    folder="mnist",
    files={
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    addresses=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "http://yann.lecun.com/exdb/mnist/",
    ),
    also=("MNIST/raw",),  # torchvision
)

# Computed from Debian's package dataset-fashion-mnist; several public projects give the same SHA-256, and one derived them from
# archives that match the publisher's MD5 (8d4fb7e6c68d591d4c3dfef9ec88bf0d for the training images, gzipped).
FASHION_MNIST = Published(
    title="Fashion-MNIST",
    folder="fashion-mnist",
    files={
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    addresses=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
    also=("FashionMNIST/raw",),  # torchvision
)

FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def read_idx(path: Path) -> Tensor:
    """Read an idx file of unsigned bytes, plain or gzipped.

    Returns: uint8, in the dimensions that the file states.

    Raises:
        DataError: the file is not idx, holds another type, or is longer or shorter than it says.
    """
    content = read_bytes(path)
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        msg = f"cannot read {path} as idx: expected it to begin with the bytes 00 00 08 and the number of dimensions, "
        raise DataError(msg + f"found {content[:4].hex(' ') or 'an empty file'}. Fetch the official file again.")
    n_dimensions = content[3]
    start = 4 + 4 * n_dimensions
    if len(content) < start:
        msg = f"cannot read {path} as idx: expected a header of {start} bytes, found {len(content)} bytes in all. Fetch it again."
        raise DataError(msg)
    shape = struct.unpack(f">{n_dimensions}I", content[4:start])
    size = math.prod(shape)
    if len(content) - start != size:
        msg = f"cannot read {path} as idx: its header says {' x '.join(map(str, shape))} = {size} values, found {len(content) - start}. "
        raise DataError(msg + "The file is cut off or damaged; fetch it again.")
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).view(shape) if size else torch.zeros(shape, dtype=torch.uint8)


def load_mnist(data: Path | None = None) -> Source:
    """Load MNIST (LeCun, Cortes and Burges, 1998): handwritten digits.

    Args:
        data: a directory that holds `mnist/train-images-idx3-ubyte` and the other three, plain or .gz. None: download them.
    Returns: 60,000 training images (5,000 of them will be held out) and 10,000 test images (n, 1, 28, 28); divided by 255.

    Raises:
        DataError: a file is missing, damaged or of another shape.
    """
    return _load(MNIST, "mnist", tuple("0123456789"), data)


def load_fashion_mnist(data: Path | None = None) -> Source:
    """Load Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017, MIT licence): pieces of clothing, in the layout of MNIST.

    Args:
        data: a directory that holds `fashion-mnist/train-images-idx3-ubyte.gz` and the other three, plain or .gz. None: download them.
    Returns: 60,000 training images (5,000 of them will be held out) and 10,000 test images (n, 1, 28, 28); divided by 255.

    Raises:
        DataError: a file is missing, damaged or of another shape.
    """
    return _load(FASHION_MNIST, "fashion-mnist", FASHION_CLASSES, data)


def _load(published: Published, name: str, classes: tuple[str, ...], data: Path | None) -> Source:
    paths = locate(published, data)
    parts: dict[str, Tensor] = {}
    for file, path in paths.items():
        part = read_idx(path)
        expected = "images of 28 x 28 in three dimensions" if "images" in file else "labels in one dimension"
        if tuple(part.shape[1:]) != ((28, 28) if "images" in file else ()) or part.ndim == 0:
            msg = f"cannot use {path} for {published.title}: expected {expected}, found shape {tuple(part.shape)}. Fetch the official file again."
            raise DataError(msg)
        parts[file] = part
    return Source(
        name,
        parts["train-images-idx3-ubyte"].unsqueeze(1),
        parts["train-labels-idx1-ubyte"].long(),
        parts["t10k-images-idx3-ubyte"].unsqueeze(1),
        parts["t10k-labels-idx1-ubyte"].long(),
        classes,
        mean=(0.0,),
        std=(255.0,),
        validation_fraction=1 / 12,  # 5,000 of 60,000, as is usual
    )
