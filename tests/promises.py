"""The promises of the method as functions that raise AssertionError when they are broken.

`test_method.py` keeps them; `test_guards.py` removes each guard of the code by hand and expects them to be broken.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

import clnp
import clnp.learner
import clnp.pruning
import clnp.training
from clnp.allocation import FREE
from clnp.narrow import narrow
from small import SHAPE, learn, network, task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from clnp.split import SplitNetwork


def logits_of(learner: clnp.Learner) -> dict[str, Tensor]:
    """Logits of every task on one fixed batch that is part noise, part data."""
    x = torch.cat([task(number, 40)[0] for number in range(4)] + [torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(9))])
    return {name: learner.predict(x, task=name) for name in learner.tasks}


def weights_of(learner: clnp.Learner) -> dict[str, dict[str, Tensor]]:
    """Every tensor of every predictor, and the claimed rows in the full-width network."""
    found = {name: {key: value.clone() for key, value in learner.predictor(name).state_dict().items()} for name in learner.tasks}
    owner = torch.cat([learner.wiring.join(learner.allocation.owner), torch.tensor([FREE])])
    for number, name in enumerate(learner.tasks):
        for key, labels in learner.wiring.parameters.items():
            found[name][f"full {key}"] = learner._state[key][owner[labels.rows] == number].clone()
    return found


def assert_same(before: dict, after: dict) -> None:
    """Everything that was there is there still, bit for bit."""
    assert before.keys() <= after.keys()
    for key, value in before.items():
        if isinstance(value, dict):
            assert_same(value, after[key])
        else:
            assert torch.equal(value, after[key]), f"{key} changed"


def nothing_forgotten(name: str, carry: Callable[[clnp.Learner], clnp.Learner] = lambda learner: learner, **settings: object) -> None:
    """Two tasks, carried over in some way, then a third: logits and parameters of the first two are the same bits."""
    learner = clnp.Learner(network(name), torch.zeros(2, *SHAPE))
    learn(learner, 0, **settings)
    logits, weights = logits_of(learner), weights_of(learner)
    learn(learner, 1, **settings)
    assert_same(logits, logits_of(learner))
    assert_same(weights, weights_of(learner))
    logits, weights = logits_of(learner), weights_of(learner)
    learner = carry(learner)
    assert_same(logits, logits_of(learner))
    learn(learner, 2, **settings)
    assert_same(logits, logits_of(learner))
    assert_same(weights, weights_of(learner))
    interference_is_zero(learner)


def interference_is_zero(learner: clnp.Learner) -> None:
    """Into a unit of task s, every weight from a unit that s does not need is zero: checked weight by weight."""
    owner = learner.wiring.join(learner.allocation.owner)
    n_severed = 0
    for name, labels in learner.wiring.parameters.items():
        if labels.columns is None:
            continue
        for row, unit in enumerate(labels.rows.tolist()):
            if owner[unit] == FREE:
                continue
            needed = learner.wiring.join(learner.allocation.needed[learner.tasks[int(owner[unit])]])
            foreign = torch.tensor([v >= 0 and not bool(needed[v]) for v in labels.columns.tolist()])
            assert not learner._state[name][row][foreign].any(), f"interference into row {row} of {name}"
            n_severed += int(foreign.sum())
    assert n_severed > 0, "the test must have something to check"


def full_width_agrees(learner: clnp.Learner) -> None:
    """A task's predictor computes what the full-width network computes for its units while all others run, too.

    This is isolation itself: no claimed unit reads what is not needed, even where it is computed.
    """
    x = task(0, 64)[0]
    everything = narrow(learner.wiring, learner._state, torch.ones(learner.wiring.n_units, dtype=torch.bool))
    for name in learner.tasks:
        weight, bias = learner.head_of(name)
        needed = torch.cat([learner.wiring.join(learner.allocation.needed[name]), torch.tensor([True])])
        with torch.no_grad():
            logits = everything(x) @ (weight * needed[learner.wiring.features]).t() + bias
        assert torch.allclose(logits, learner.predict(x, task=name), atol=1e-4), f"{name} is computed otherwise among all units"


@contextlib.contextmanager
def watched(checks: list[str]) -> Iterator[None]:
    """While tasks are learned, check the training network itself after every optimizer step and at commit."""
    networks: list[SplitNetwork] = []
    make_optimizer, fit, commit = clnp.training.make_optimizer, clnp.training.fit, clnp.learner.commit_

    def watched_fit(network: SplitNetwork, *args: object, **kwargs: object) -> None:
        networks.append(network)
        fit(network, *args, **kwargs)  # pyright: ignore[reportArgumentType, reportCallIssue]

    def watched_optimizer(parameters: list, *args: object) -> torch.optim.Optimizer:
        network = networks[-1]
        optimizer = make_optimizer(parameters, *args)  # pyright: ignore[reportArgumentType]
        x = task(5, 16)[0]
        claimed = {} if network.claimed is None else network.claimed.state_dict()
        before = {key: value.clone() for key, value in claimed.items()}
        values = network.claimed_values(x)
        held = {p.untyped_storage().data_ptr() for group in optimizer.param_groups for p in group["params"]}
        assert not held & {value.untyped_storage().data_ptr() for value in claimed.values()}, "the optimizer holds claimed rows"

        def after_step(*_: object) -> None:
            assert_same(before, {} if network.claimed is None else network.claimed.state_dict())
            for old, new in zip(values, network.claimed_values(x), strict=True):
                assert torch.equal(old, new), "a claimed unit's output moved"
            if before:
                checks.append("step")

        optimizer.register_step_post_hook(after_step)
        return optimizer

    def watched_commit(learner: clnp.Learner, trial: object, pruned: clnp.pruning.Pruned, start: float) -> clnp.LearnResult:
        result = commit(learner, trial, pruned, start)  # pyright: ignore[reportArgumentType]
        x = task(6, 32)[0]
        with torch.no_grad():
            trained = pruned.network.eval()(x)
        assert torch.allclose(trained, learner.predict(x, task=result.task), rtol=1e-5, atol=1e-5), (
            "the predictor is not the trained network"
        )
        checks.append("commit")
        return result

    clnp.training.make_optimizer, clnp.pruning.fit = watched_optimizer, watched_fit  # pyright: ignore[reportAttributeAccessIssue]
    clnp.learner.commit_ = watched_commit
    try:
        yield
    finally:
        clnp.training.make_optimizer, clnp.pruning.fit = make_optimizer, fit
        clnp.learner.commit_ = commit


def training_network_holds_still(name: str, **settings: object) -> None:
    """Learn three tasks under watch."""
    checks: list[str] = []
    learner = clnp.Learner(network(name), torch.zeros(2, *SHAPE))
    with watched(checks):
        for number in range(3):
            learn(learner, number, **settings)
    assert checks.count("commit") == 3
    assert checks.count("step") > 10, "steps with a claimed graph must have been watched"
