"""How much each unit matters to a task: activities in, one score per unit out.

Activities are measured where they are read: at the inputs of layers and heads, after nonlinearity and pooling, in
evaluation mode. A unit that is read in several places scores its largest. Scores are compared within a group only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


@dataclass(frozen=True)
class Activity:
    """What was measured of the units that one layer reads, over examples and positions.

    Attributes:
        mean_abs: mean of |activity|, (k,).
        firing: fraction of examples and positions where the activity is not zero, (k,).
        std: standard deviation over examples and positions, (k,).
        outgoing: sum of |weight| from the unit into what the task trains there, (k,).
        taylor: mean over examples of |sum over positions of activity times the gradient of the loss|, (k,); None where no gradient was taken.
    """

    mean_abs: Tensor
    firing: Tensor
    std: Tensor
    outgoing: Tensor
    taylor: Tensor | None = None


def _taylor(measured: Activity) -> Tensor:
    assert measured.taylor is not None, "gradients were not measured"
    return measured.taylor


CRITERIA: Mapping[str, Callable[[Activity], Tensor]] = {
    # The paper's: mean activity after the nonlinearity. The absolute value makes it right for tanh, GELU and SiLU too;
    # the mean, not the sum, over positions keeps early layers comparable with late ones.
    "activity": lambda a: a.mean_abs,
    "firing": lambda a: a.firing,
    # A unit that never changes is a bias, however active it is.
    "std": lambda a: a.std,
    # Activity alone is not importance: a ReLU unit can be rescaled freely between its inputs and its outputs. Times the
    # outgoing weights, the score is the largest change that removing the unit can make, and no rescaling moves it.
    "activity-weight": lambda a: a.mean_abs * a.outgoing,
    "firing-weight": lambda a: a.firing * a.outgoing,
    "std-weight": lambda a: a.std * a.outgoing,
    # To first order, how much the loss changes when the unit is gone; as EideticNet has it, after Molchanov et al. 2017, equation 8.
    "taylor": _taylor,
}
"""The criteria by name. Reference: Golkar, Kagan & Cho 2019, section 3.2 ("activity"); the others are ours or the field's."""

WITH_GRADIENTS = frozenset({"taylor"})
"""The criteria that need a backward pass."""
