"""A classification data set in memory, and which of its examples are held out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clnp.errors import DataError
from clnp.seeds import generator

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64, UInt8

    from clnp.data.task import Split


@dataclass(frozen=True)
class Source:
    """Hold a data set as its files give it: bytes stay bytes, and are made floats task by task.

    A permuted or split benchmark makes many tasks of one source, so it is read once and shared. As bytes MNIST takes 55 MB, as floats 220.

    Args:
        name: short, lower case: "mnist". Part of the place from which the held-out examples are drawn.
        x_train: training images.
        y_train: their labels, 0 .. len(classes) - 1.
        x_test: the official test images; nothing but reports may look at them.
        y_test: their labels.
        classes: class names by label.
        mean: subtracted from the bytes of each channel.
        std: divides them then; both in units of the bytes.
        validation_fraction: the part of the training set that is held out, per class.

    Raises:
        DataError: lengths differ, a part is empty, or a label has no class.
    """

    name: str
    x_train: UInt8[Tensor, "n c h w"]
    y_train: Int64[Tensor, " n"]
    x_test: UInt8[Tensor, "m c h w"]
    y_test: Int64[Tensor, " m"]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    validation_fraction: float = 0.1

    def __post_init__(self) -> None:
        for part, x, y in (("training", self.x_train, self.y_train), ("test", self.x_test, self.y_test)):
            if len(x) != len(y) or len(x) == 0:
                msg = f"cannot use {self.name}: expected as many {part} labels as images, found {len(y)} labels and {len(x)} images. "
                raise DataError(msg + "The files do not belong together, or are empty; fetch them again.")
            if int(y.min()) < 0 or int(y.max()) >= len(self.classes):
                msg = f"cannot use {self.name}: expected {part} labels from 0 to {len(self.classes) - 1}, found {int(y.min())} to {int(y.max())}. "
                raise DataError(msg + "The file is damaged or belongs to another data set; fetch it again.")

    def rows(self, seed: int) -> dict[Split, Int64[Tensor, " k"]]:
        """Draw the held-out examples: row numbers of each split, disjoint and complete.

        Every class gives its share (largest remainders round the total), so that no class is missing in validation. Training rows
        come shuffled: some files are sorted by class, and whoever looks at the first thousand rows must not see one class only.

        Args:
            seed: the run's seed. The same seed gives the same rows, whatever was drawn before.
        Returns: "train" and "validation": rows of the training set; "test": all rows of the test set, in order.
        """
        order = torch.randperm(len(self.y_train), generator=generator(seed, "validation", self.name))
        counts = torch.bincount(self.y_train, minlength=len(self.classes)).double()
        shares = counts * self.validation_fraction
        quotas = shares.floor().long()
        missing = round(float(shares.sum())) - int(quotas.sum())
        quotas[(quotas - shares).argsort(stable=True)[:missing]] += 1
        held_out = torch.zeros(len(order), dtype=torch.bool)
        labels = self.y_train[order]
        for label, quota in enumerate(quotas.tolist()):
            held_out[(labels == label).nonzero().flatten()[:quota]] = True
        return {"train": order[~held_out], "validation": order[held_out], "test": torch.arange(len(self.y_test))}

    def labels(self, split: Split) -> Int64[Tensor, " k"]:
        """Return the labels that row numbers of a split count in."""
        return self.y_test if split == "test" else self.y_train

    def images(self, split: Split, rows: Int64[Tensor, " k"]) -> UInt8[Tensor, "k c h w"]:
        """Return the images at these rows, as bytes."""
        return (self.x_test if split == "test" else self.x_train)[rows]

    def to_float(self, x: UInt8[Tensor, "k c h w"]) -> Float32[Tensor, "k c h w"]:
        """Return images as float32, less the mean and divided by the standard deviation of each channel."""
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        std = torch.tensor(self.std).view(-1, 1, 1)
        return x.float().sub_(mean).div_(std)


def digest(numbers: Int64[Tensor, " k"]) -> str:
    """Return the SHA-256 of whole numbers as little-endian 64-bit integers: the same on every machine.

    >>> digest(torch.arange(3))[:16]
    'ab25350e3e65efeb'
    """
    return hashlib.sha256(numbers.to(torch.int64).contiguous().numpy().astype("<i8").tobytes()).hexdigest()
