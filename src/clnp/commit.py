"""The last step of learning a task: sever, measure the predictor as it will be for ever, and only then take everything over."""
# ruff: noqa: SLF001
# pyright: reportPrivateUsage=false

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from clnp import heads
from clnp.errors import TaskError
from clnp.narrow import narrow
from clnp.pruning import settled
from clnp.receipts import make_receipt
from clnp.records import LearnResult, TaskRecord
from clnp.training import n_correct

if TYPE_CHECKING:
    from clnp.learner import Learner
    from clnp.pruning import Pruned, Trial


def commit_(learner: Learner, trial: Trial, pruned: Pruned, start: float) -> LearnResult:
    """Sever, measure the predictor as it will be, and only then take everything over."""
    trial.tell("commit", 0)
    n = len(trial.data.validation)
    for network in (pruned.network, pruned.unpruned):
        state, head = settled(trial, network)
        needed = network.visible
        norms = [*trial.norms, (network.pool_units, needed)]
        predictor = narrow(learner.wiring, state, needed, norms=norms, head=(head.weight.cpu(), head.bias.cpu())).eval()
        correct = n_correct(predictor, trial.data.validation)
        before = correct if network is pruned.unpruned else pruned.correct_unpruned
        # Rounding may tip an example between the training form and the predictor: the margin holds in the latter.
        if before - correct <= pruned.allowed:
            break
    allocation = learner._allocation.commit(trial.task, learner.wiring.split(needed))
    weight = heads.own_columns(learner.wiring, allocation, trial.task, head)
    outcome = {
        "accuracy_unpruned": before / n,
        "accuracy": correct / n,
        "margin": trial.config.margin,
        "margin_paid": (before - correct) / n,
    }
    receipt = make_receipt(predictor, learner.probe)
    if receipt is None:
        trial.notices.append(
            "the predictor has no finite answer to the probe: the task has no receipt. Make the learner with probe=..., examples that it can answer."
        )
    record = TaskRecord(
        trial.data.n_classes,
        trial.config.head,
        weight,
        head.bias.cpu(),
        trial.config.private,
        len(learner._widened),
        receipt,
        outcome,
    )
    _check_still_based(learner, trial)
    learner._state, learner._allocation, learner._records[trial.task] = state, allocation, record
    groups = [group.name for group in learner.wiring.claimable]
    return LearnResult(
        task=trial.task,
        n_classes=trial.data.n_classes,
        **outcome,
        claimed={group: allocation.n_claimed(trial.task, group) for group in groups},
        reused={group: allocation.n_reused(trial.task, group) for group in groups},
        free={group: allocation.n_free(group) for group in groups},
        seconds=time.perf_counter() - start + trial.work.earlier[0],
        notices=tuple(trial.notices),
    )


def _check_still_based(learner: Learner, trial: Trial) -> None:
    """Check that nothing was committed since a trial began: its full-width tensors are a copy from then.

    Raises:
        TaskError: a callback or another thread has learned or undone a task meanwhile.
    """
    if learner._allocation is not trial.based_on:
        raise TaskError(
            f"cannot take over task '{trial.task}': another task was learned or undone in this learner while it was trained. "
            f"What that one left is whole; learn tasks one after another."
        )
