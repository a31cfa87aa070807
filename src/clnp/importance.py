"""How much each unit matters to a task: activities in, one score per unit out.

Activities are measured where they are read: at the inputs of layers and heads, after nonlinearity and pooling, in
evaluation mode. A unit that is read in several places scores its largest. Scores are compared within a group only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

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


@dataclass(frozen=True)
class Score:
    """A criterion: how much a unit matters, by one moment of its activity.

    Attributes:
        moment: the only one that is measured: in a deep network all of them cost as much as the passes that they are taken from.
        weighted: times the outgoing weights.
    """

    moment: Moment
    weighted: bool = False

    def __call__(self, activity: Activity) -> Tensor:
        """Return the score of each unit, (k,), from what was measured of them."""
        score = activity.moments[self.moment]
        return score * activity.outgoing if self.weighted else score


CRITERIA: Mapping[str, Score] = {
    # The paper's: mean activity after the nonlinearity. The absolute value makes it right for tanh, GELU and SiLU too;
    # the mean, not the sum, over positions keeps early layers comparable with late ones.
    "activity": Score("mean_abs"),
    "firing": Score("firing"),
    # A unit that never changes is a bias, however active it is.
    "std": Score("std"),
    # Activity alone is not importance: a ReLU unit can be rescaled freely between its inputs and its outputs. Times the
    # outgoing weights, the score is the largest change that removing the unit can make, and no rescaling moves it.
    "activity-weight": Score("mean_abs", weighted=True),
    "firing-weight": Score("firing", weighted=True),
    "std-weight": Score("std", weighted=True),
    # To first order, how much the loss changes when the unit is gone; as EideticNet has it, after Molchanov et al. 2017, equation 8.
    "taylor": Score("taylor"),
}
"""The criteria by name. Reference: Golkar, Kagan & Cho 2019, section 3.2 ("activity"); the others are ours or the field's."""
