"""What both examples do with a learner: learn three tasks, check that nothing was forgotten, say what each task costs."""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clnp import metrics

if TYPE_CHECKING:
    import clnp

Examples = tuple[Tensor, Tensor]


class Task(NamedTuple):
    """Three disjoint parts of a data set, each inputs and labels."""

    name: str
    n_classes: int
    train: Examples
    validation: Examples
    test: Examples


def options_parser(description: str | None, *, limit: int) -> argparse.ArgumentParser:
    """Begin the command line of an example: the options that both have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of every draw")
    parser.add_argument("--epochs", type=int, help="passes over the training data of a task")
    parser.add_argument("--limit", type=int, default=limit, help="training examples of a task, at most")
    parser.add_argument("--rounds", type=int, default=30, help="batches that each network's time is the median of")
    return parser


def learn_all(learner: clnp.Learner, tasks: list[Task], config: clnp.LearnConfig) -> None:
    """Learn the tasks in order, print the accuracy of all so far after each, and check in the end that nothing moved."""
    logits: dict[str, Tensor] = {}
    matrix: list[list[float]] = []
    for number, task in enumerate(tasks, 1):
        result = learner.learn(task.name, task.train, task.validation, n_classes=task.n_classes, config=config)
        logits[task.name] = learner.predict(task.test[0], task=task.name)
        print(f"\n{number}. learned '{task.name}' in {result.seconds:.0f} s, validation accuracy {result.accuracy:.2%}. Test accuracy now:")
        matrix.append([])
        for known in tasks[:number]:
            right = learner.predict(known.test[0], task=known.name).argmax(1) == known.test[1]
            matrix[-1].append(right.double().mean().item())
            print(f"   {known.name:<28} {matrix[-1][-1]:8.2%}   (chance {1 / known.n_classes:.0%}, {len(right):,} examples)")
    same = all(torch.equal(logits[task.name], learner.predict(task.test[0], task=task.name)) for task in tasks)
    print(f"\nforgetting: {metrics.forgetting(matrix)}; logits of all earlier tasks bit-identical: {same}")
    if not same:
        raise SystemExit("logits moved: that must never happen, please report it")


def cost(network: nn.Module, x: Tensor) -> tuple[int, int]:
    """Return parameters, and multiply-adds of one example; attention is spelled out, or it would not be counted."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(x)
    return sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops() // 2 // len(x)


def milliseconds(networks: list[nn.Module], x: Tensor, rounds: int) -> list[float]:
    """Return each network's CPU time for a batch: the median over rounds in which they take turns."""
    times: list[list[float]] = [[] for _ in networks]
    with torch.no_grad():
        for number in range(rounds + 2):  # the first two warm up
            for network, taken in zip(networks, times, strict=True):
                start = time.process_time()
                network(x)
                if number >= 2:
                    taken.append(1000 * (time.process_time() - start))
    return [median(taken) for taken in times]


def report(learner: clnp.Learner, trunk: nn.Module, tasks: list[Task], rounds: int) -> None:
    """Print what each task's own network costs beside the full-width network with one head, and what room is left."""
    print(f"\n{'one task alone':<28} {'units':>6} {'parameters':>18} {'multiply-adds':>20} {'ms per 128':>18}")
    for task in tasks:
        x = task.test[0].repeat(128, *[1] * (task.test[0].dim() - 1))[:128]
        features = trunk(x[:1]).shape[1]
        whole, own = nn.Sequential(trunk, nn.Linear(features, task.n_classes)).eval(), learner.predictor(task.name)
        (all_parameters, all_adds), (parameters, adds) = cost(whole, x), cost(own, x)
        all_time, own_time = milliseconds([whole, own], x, rounds)
        units = sum(int(needed.sum()) for needed in learner.allocation.needed[task.name].values())
        print(
            f"{task.name:<28} {units:>6} {parameters:>10,} ({parameters / all_parameters:4.0%}) "
            f"{adds:>13,} ({adds / all_adds:4.0%}) {own_time:>11.1f} ({own_time / all_time:4.0%})"
        )
    print(f"{'the whole network':<28} {learner.wiring.n_units:>6} {all_parameters:>10,} {'':6} {all_adds:>13,} {'':6} {all_time:>11.1f}")
    print("\nroom left, the scarcest first:")
    for group, units in sorted(learner.capacity().items(), key=lambda item: item[1].free / item[1].n_units):
        print(f"   {group:<28} {units.free:>4} of {units.n_units} units free")
