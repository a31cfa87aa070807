"""What a person should know of a task that nothing forbids, and that is hardly what was meant: the notices of its result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from clnp.sources import TensorExamples
from clnp.training import batch_size_of, steps_per_epoch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from clnp.config import LearnConfig
    from clnp.sources import Examples, TaskData
    from clnp.wiring import Wiring

FEW_STEPS = 100
"""Of training with the whole pool: below, hardly anything is learned."""


def merged(wiring: Wiring) -> str | None:
    """Say so when units of a network are merged, so that fewer tasks fit than its layers would have room for."""
    groups = wiring.claimable
    lost = [f"{group.name}: {why}" for group in groups for why in group.lost]
    if not lost and all(group.n_units == 1 and group.ties for group in groups):
        lost = [f"{group.name}: tied by {group.ties[0]}" for group in groups]
    if not lost:
        return None
    more = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
    only = ", and only one task fits" if all(group.n_units == 1 for group in groups) else ""
    return f"units of this network are merged{only}. In {lost[0]}{more}. learner.wiring.explain() shows all of it, docs/networks.md what can be done."


def frozen(trunk: nn.Module) -> str | None:
    """Say so when a network has parameters that were frozen: they will be trained."""
    names = [name for name, parameter in trunk.named_parameters() if not parameter.requires_grad]
    if not names:
        return None
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"'{names[0]}'{more} {'are' if more else 'is'} frozen (requires_grad=False), but tasks are learned in weights that are drawn anew, and all of them are "
        f"trained. What a network can do already is kept by `adopt`: make the learner with head='path.of.the.layer'."
    )


def fine_margin(margin: float, n_validation: int) -> str | None:
    """Say so when a margin is finer than the evidence.

    >>> fine_margin(0.02, 60)
    >>> fine_margin(0.01, 60)[:62]
    'the margin 0.01 is finer than one of 60 validation examples (0'
    """
    if not 0 < margin < 1 / n_validation:
        return None
    return (
        f"the margin {margin:g} is finer than one of {n_validation} validation examples ({1 / n_validation:.2g}): "
        f"no example may be lost. Give more validation data or a larger margin."
    )


def missing_classes(data: TaskData) -> str | None:
    """Say so when a class has no training example; of a stream only the first examples are known."""
    if not isinstance(data.train, TensorExamples):
        return None
    missing = sorted({*range(data.n_classes)} - {*data.train.y.tolist()})
    if not missing:
        return None
    some = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
    return f"no training example has label {some}; the task has {data.n_classes} classes."


def few_steps(config: LearnConfig, train: Examples) -> str | None:
    """Say so when the whole pool is trained for so few steps that hardly anything can be learned."""
    n = steps_per_epoch(train, batch_size_of(train, config))
    if config.epochs * n >= FEW_STEPS:
        return None
    return (
        f"the whole pool is trained for {config.epochs * n} steps only ({config.epochs} {'epochs' if config.epochs > 1 else 'epoch'} of {n}). "
        f"Few examples want more epochs (epochs), or smaller batches (batch_size)."
    )


def nothing_learned(correct: int, y: Tensor) -> str | None:
    """Say so when a trained network answers validation examples no better than one that always names the most frequent class.

    Args:
        correct: how many it answers correctly.
        y: their labels (n,).
    """
    most = int(torch.bincount(y).max())
    if correct > most:
        return None
    return (
        f"nothing was learned that accuracy shows: before pruning {correct} of {len(y)} validation examples are answered correctly, "
        f"and {most} would be by always naming the most frequent class. Train longer (epochs), with more units (pool), or look at the data."
    )
