"""Tasks of images, changed: turned, in colour, with their mirror images."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clnp.inputs import each

if TYPE_CHECKING:
    from jaxtyping import Float32

    from clnp.data.task import Split, Task
    from clnp.inputs import Inputs


def rotate(x: Float32[Tensor, "n c h w"], degrees: float) -> Float32[Tensor, "n c h w"]:
    """Turn images anticlockwise about their centre, bilinearly; what comes in from outside is 0.

    >>> x = torch.arange(9.0).view(1, 1, 3, 3)
    >>> torch.allclose(rotate(x, 90), torch.rot90(x, 1, (2, 3)), atol=1e-5)
    True
    """
    if degrees % 360 == 0:
        return x  # sampling would move it by rounding
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    height, width = x.shape[2:]
    # Output position -> input position, in units of half the image: rows of (x, y, 1), y pointing down. The ratios keep angles true
    # where images are not square.
    turn = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])
    grid = F.affine_grid(turn.unsqueeze(0), [1, 1, height, width], align_corners=False)
    return torch.cat([F.grid_sample(part, grid.expand(len(part), -1, -1, -1), align_corners=False) for part in x.split(4096)])


def in_colour(task: Task, black: float) -> Task:
    """Make grey images of 28 x 28 as large as those of CIFAR, with a black border, and repeat them in three channels.

    Args:
        task: x is (n, 1, 28, 28); that of the result is (n, 3, 32, 32).
        black: what a byte of 0 becomes.
    """

    def load(split: Split) -> tuple[Inputs, Tensor]:
        x, y = task.load(split)
        return each(x, lambda part: F.pad(part, (2, 2, 2, 2), value=black).expand(-1, 3, -1, -1).contiguous()), y

    return replace(task, load=load)


def mirrored(task: Task) -> Task:
    """Give training data the mirror image of every image, too: twice as many examples, and an epoch twice as long.

    Copies, not chance: what depends on an image alone is computed once and kept. Validation and test data stay as they are.

    Args:
        task: x is (n, ..., width); of the training data of the result, the second half are the mirror images.
    """
    n_train = task.details["n_train"]
    assert isinstance(n_train, int)

    def load(split: Split) -> tuple[Inputs, Tensor]:
        x, y = task.load(split)
        return (each(x, lambda part: torch.cat([part, part.flip(-1)])), torch.cat([y, y])) if split == "train" else (x, y)

    return replace(task, load=load, details={**task.details, "mirrored": True, "n_train": 2 * n_train})
