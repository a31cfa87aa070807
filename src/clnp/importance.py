"""How much each unit matters to a task: activities in, one score per unit out.

Activities are measured where they are read: at the inputs of layers and heads, after nonlinearity and pooling, in
evaluation mode. A unit that is read in several places scores its largest. Scores are compared within a group only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


Moment = Literal["mean_abs", "firing", "std", "taylor"]


@dataclass(frozen=True)
class Activity:
    """What was measured of the units that one layer reads, over examples and positions.

    Attributes:
        moments: those that were asked for, each (k,): `mean_abs`, the mean of |activity|; `firing`, the fraction of examples and positions
            where the activity is not zero; `std`, its standard deviation over examples and positions; `taylor`, the mean over examples of
            |sum over positions of activity times the gradient of the loss|.
        outgoing: sum of |weight| from the unit into what the task trains there, (k,).
    """

    moments: Mapping[Moment, Tensor]
    outgoing: Tensor


CRITERIA: Mapping[str, Callable[[Activity], Tensor]] = {
    # The paper's: mean activity after the nonlinearity. The absolute value makes it right for tanh, GELU and SiLU too;
    # the mean, not the sum, over positions keeps early layers comparable with late ones.
    "activity": lambda a: a.moments["mean_abs"],
    "firing": lambda a: a.moments["firing"],
    # A unit that never changes is a bias, however active it is.
    "std": lambda a: a.moments["std"],
    # Activity alone is not importance: a ReLU unit can be rescaled freely between its inputs and its outputs. Times the
    # outgoing weights, the score is the largest change that removing the unit can make, and no rescaling moves it.
    "activity-weight": lambda a: a.moments["mean_abs"] * a.outgoing,
    "firing-weight": lambda a: a.moments["firing"] * a.outgoing,
    "std-weight": lambda a: a.moments["std"] * a.outgoing,
    # To first order, how much the loss changes when the unit is gone; as EideticNet has it, after Molchanov et al. 2017, equation 8.
    "taylor": lambda a: a.moments["taylor"],
}
"""The criteria by name. Reference: Golkar, Kagan & Cho 2019, section 3.2 ("activity"); the others are ours or the field's."""

READS: Mapping[str, Moment] = {
    "activity": "mean_abs",
    "firing": "firing",
    "std": "std",
    "activity-weight": "mean_abs",
    "firing-weight": "firing",
    "std-weight": "std",
    "taylor": "taylor",
}
"""The one moment that each criterion reads: in a deep network all of them cost as much as the passes that they are taken from."""
