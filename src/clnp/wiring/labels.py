"""Labels: which unit each position of a tensor belongs to.

A label tensor has as many dimensions as the tensor it describes; a dimension along which the label does not change has
size 1. So an image batch (B, C, H, W) whose channels are units has labels of shape (1, C, 1, 1), however large it is.
`EVERYONE` marks positions that belong to no unit: inputs and constants.
"""

from __future__ import annotations

import torch
from torch import Tensor

EVERYONE = -1


def compact(labels: Tensor) -> Tensor:
    """Shrink every dimension along which the labels do not change to size 1.

    >>> compact(torch.tensor([[4, 5], [4, 5]]))
    tensor([[4, 5]])
    """
    for dim in range(labels.dim()):
        if labels.shape[dim] > 1:
            first = labels.narrow(dim, 0, 1)
            if bool((labels == first).all()):
                labels = first
    return labels


def along(labels: Tensor, dim: int, size: int) -> Tensor:
    """Return the labels along one dimension (size,), for labels that change along no other.

    >>> along(torch.tensor([[[4], [5]]]), 1, 2)
    tensor([4, 5])
    """
    return labels.transpose(0, dim).reshape(-1).expand(size) if labels.numel() == 1 else labels.transpose(0, dim).reshape(size)


def varying(labels: Tensor) -> list[int]:
    """Return the dimensions along which the labels change."""
    return [dim for dim in range(labels.dim()) if labels.shape[dim] > 1]


def components(n: int, pairs: Tensor) -> Tensor:
    """Return for each of `n` labels the smallest label that it is tied to, directly or through others.

    Args:
        n: how many labels there are.
        pairs: ties, (k, 2).

    >>> components(5, torch.tensor([[0, 3], [3, 4]]))
    tensor([0, 1, 2, 0, 0])
    """
    root = torch.arange(n)
    while True:
        # Give both ends of each tie the smaller root, then shorten the paths; at most log(n) rounds for the chains met here.
        low = torch.minimum(root[pairs[:, 0]], root[pairs[:, 1]])
        new = root.clone()
        for end in (pairs[:, 0], pairs[:, 1]):
            new.scatter_reduce_(0, root[end], low, "amin")
            new.scatter_reduce_(0, end, low, "amin")
        while not torch.equal(new[new], new):
            new = new[new]
        if torch.equal(new, root):
            return root
        root = new
