"""Give a network more units, and change nothing that it has learned."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from clnp.describe import zeros
from clnp.errors import WiringError
from clnp.inputs import Inputs, each, parts
from clnp.narrow import readable, whole
from clnp.widening import Widening
from clnp.wiring import noisy

if TYPE_CHECKING:
    from clnp.learner import Learner


def widen(learner: Learner, more: Mapping[str, int]) -> Learner:
    """Return a learner with more free units; every predictor that it has stays what it is, bit for bit.

    A full residual stream holds up a whole network: widen it, and the next tasks have room again. Saved in the directory of the
    old learner, it goes on there: files of learned tasks are not written again.

    Args:
        learner: left as it is.
        more: group -> how many units are added (`learner.capacity()` names the groups).

    Raises:
        WiringError: there is no such group, or the network's code does not allow it to be wider.

    >>> import torch, clnp
    >>> learner = clnp.Learner(torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.ReLU()), torch.zeros(1, 2))
    >>> widen(learner, {"0": 8}).capacity()["0"].free, learner.capacity()["0"].free
    (24, 16)
    """
    if not isinstance(more, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise WiringError(f"cannot widen by {more!r}: expected units for each group, {{'{learner.wiring.groups[0].name}': 8}}.")
    wider = copy.deepcopy(learner)
    widen_(wider, more)
    _check(learner, wider, more)
    return wider


def widen_(learner: Any, more: Mapping[str, int]) -> None:
    """Give a learner more units, all of them free, without a check; see `widen`."""
    widening = Widening(learner.wiring, more)
    old = widening.features
    learner._state = {name: widening.tensor(name, tensor) for name, tensor in learner._state.items()}  # noqa: SLF001
    learner._allocation = widening.allocation(learner._allocation)  # noqa: SLF001
    learner.wiring = widening.widened()
    n_features = len(learner.wiring.features)
    for task, record in learner._records.items():  # noqa: SLF001
        weight = torch.zeros(len(record.weight), n_features, dtype=torch.float32)
        weight[:, old] = record.weight
        learner._records[task] = replace(record, weight=weight)  # noqa: SLF001
    learner._features = [*(old[places] for places in learner._features), torch.arange(n_features)]  # noqa: SLF001
    learner._widened.append(dict(more))  # noqa: SLF001
    learner._predictors = {}  # noqa: SLF001
    learner._original_head = None  # noqa: SLF001  # a network that was widened is no longer the one to adopt


def _check(learner: Learner, wider: Learner, more: Mapping[str, int]) -> None:
    """Check that the whole wider network runs, and that every predictor is the one that it was."""
    none = zeros(learner._forms)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    before = whole(learner.wiring, learner._state)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    inputs: Any = readable(before, (none, each(none, torch.ones_like), learner.probe)) or parts(noisy(none, 3))
    x: Inputs = inputs if len(inputs) > 1 else inputs[0]
    what = ", ".join(f"{group} by {n}" for group, n in more.items())
    failure = f"cannot widen {what}: the network's code fixes a size that these units would change. Widen another group."
    try:
        with torch.no_grad():
            found = whole(wider.wiring, wider._state)(*parts(x))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            same = [torch.equal(learner.predict(x, task=task), wider.predict(x, task=task)) for task in learner.tasks]
    except Exception as error:
        raise WiringError(failure) from error
    if not all(same) or found.shape[1] != len(wider.wiring.features):
        raise WiringError(failure)
