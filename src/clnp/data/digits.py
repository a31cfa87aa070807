"""The UCI digits, shipped in the package: real data that need no download.

Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository,
https://doi.org/10.24432/C50P49, CC BY 4.0; see digits.LICENSE.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch

from clnp.data.source import Source


def load_digits() -> Source:
    """Load the 1,797 handwritten digits of 8 x 8 pixels, values 0 to 16.

    Test data are every fifth example of each class, in file order: a fifth, the same for every seed, torch version and machine.
    (The set has no official test part: the file is itself the test part of the original, whose writers are not marked.)

    Returns: 1,442 training and 355 test images (n, 1, 8, 8); divided by 16 when made floats.

    >>> source = load_digits()
    >>> len(source.y_train), len(source.y_test)
    (1442, 355)
    """
    with files("clnp.data").joinpath("digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        x = torch.from_numpy(arrays["x"]).unsqueeze(1)  # (1797, 1, 8, 8)
        y = torch.from_numpy(arrays["y"]).long()
    test = torch.zeros(len(y), dtype=torch.bool)
    for label in range(10):
        test[(y == label).nonzero().flatten()[4::5]] = True
    return Source("digits", x[~test], y[~test], x[test], y[test], tuple("0123456789"), mean=(0.0,), std=(16.0,), validation_fraction=0.2)
