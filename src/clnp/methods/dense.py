"""What the plain methods share: a dense network, its training, its files.

It is trained by the very loop that trains the pool of CLNP (`clnp.training.fit`), for as many epochs as CLNP takes at most, on the same
batches, so that a comparison is one of methods and not of loops. There is no L1 penalty: nothing is pruned.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from clnp import seeds, training
from clnp.errors import DamageError, StoreError, first_line
from clnp.files import digest, read_bounded, write_atomic
from clnp.inputs import parts
from clnp.parsing import parse_json
from clnp.sources import TensorExamples, check, check_labels, check_n_classes, check_several, check_unused
from clnp.work import Work, fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from clnp.config import LearnConfig
    from clnp.inputs import Forms, Inputs
    from clnp.methods.guards import GuardedNetwork
    from clnp.methods.joint import ManyHeads

STATE = "method.json"
MAX_STATE = 2**24
"""Bytes of it that are read; nothing is allocated for a larger one."""


def checked(
    name: str, tasks: Sequence[str], train: tuple[Inputs, Tensor], validation: tuple[Inputs, Tensor], n_classes: int, like: Forms
) -> tuple[TensorExamples, TensorExamples]:
    """Check a task as `Learner.learn` does, before anything is changed, and return its training and validation examples.

    Args:
        name: of the task.
        tasks: those learned so far.
        train: (x, y).
        validation: (x, y).
        n_classes: of the task.
        like: what each input must look like.

    Raises:
        TaskError: a task of that name is learned already.
        DataError: what is wrong with which data, and what to do.
    """
    check_unused(name, tasks)
    check_n_classes(name, n_classes)
    found: list[TensorExamples] = []
    for (x, y), part in ((train, "training"), (validation, "validation")):
        what = f"{part} data of task '{name}'"
        check(TensorExamples(x, y), what, like)
        found.append(TensorExamples(x, y.long()))
        check_labels(found[-1].y, n_classes, what)
    check_several(name, found[0].y)
    return found[0], found[1]


def make_head(n_features: int, n_classes: int, *place: int | str) -> nn.Linear:
    """Make a head whose first weights depend on its place in the run alone."""
    with seeds.seeded(*place, "head"):
        return nn.Linear(n_features, n_classes)


@torch.no_grad()
def count_features(trunk: nn.Module, example: Inputs) -> int:
    """Return the width of what a trunk puts out."""
    return trunk.eval()(*parts(example)).shape[1]


def fit_dense_(
    network: GuardedNetwork | ManyHeads,
    train: TensorExamples,
    validation: TensorExamples,
    config: LearnConfig,
    *,
    seed: int,
    index: int,
    task: str,
    progress: Callable[[dict[str, Any]], None],
    work: Path | None = None,
    stages: Sequence[int] | None = None,
    between: Callable[[int], None] | None = None,
) -> float:
    """Train a dense network on one task, in place, and return its validation accuracy.

    What an earlier process kept in `work` of this very training is not done again.

    Args:
        network: what is trained: with a guard, see `clnp.methods.guards`, or many heads.
        train: the examples.
        validation: not used for training, but for patience.
        config: the settings.
        seed: of the run.
        index: number of the task.
        task: its name.
        progress: told what happens.
        work: where the training state is kept.
        stages: epochs of each stage; by default one of as many as CLNP takes at most.
        between: called after each stage with its number.

    Raises:
        TrainingError: the loss or a weight became NaN or infinite.
    """
    network.to(config.device)
    facts, tensors = fingerprint(train=train, validation=validation)
    # The network holds all that earlier tasks and the method give to this one.
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    with Work(work, progress) as kept:
        situation = {"place": (seed, "task", index), "config": config.model_dump(mode="json"), "data": facts}
        kept.open(task, situation, {**tensors, **state})
        for stage, epochs in enumerate(stages or [config.total_epochs]):
            first = stage == 0
            training.fit(
                network,
                train,
                None,
                config,
                phase="train" if first else "finetune",
                epochs=epochs,
                lr=config.lr if first else config.lr / 2,  # as CLNP does
                l1=0.0,
                n_classes=network.out_features,
                # Where CLNP draws the batches of its first epochs, too.
                place=(seed, "task", index, "train" if first else "finetune", stage),
                task=task,
                validation=lambda: training.n_correct(network, validation),
                progress=progress,
                work=kept,
            )
            if between is not None:
                between(stage)
        return training.n_correct(network, validation) / len(validation)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file as a whole, and return its SHA-256: a crash leaves no half of it under its name.

    Tensors are copied: safetensors refuses some that share memory, and tied weights do.
    """
    data = save({name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()})
    write_atomic(path, data)
    return digest(data)


def read_tensors(path: Path, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: of the file.
        state: what `read_state` returned: it counts the file, and has its SHA-256.

    Raises:
        DamageError: it is missing or damaged.
    """
    try:
        data = path.read_bytes()
        if digest(data) != state["sha256"].get(path.name):
            raise _damaged(path, f"the safetensors file whose SHA-256 stands in {STATE}", "another content")
        return load(data)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, "a safetensors file as `clnp run` wrote it", first_line(error)) from error


def write_state(directory: Path, state: Mapping[str, Any]) -> None:
    """Replace the small file that says which tensor files count; it carries a checksum of itself."""
    write_atomic(directory / STATE, json.dumps({**state, "checksum": _checksum(state)}, indent=2) + "\n")


def read_state(directory: Path) -> dict[str, Any]:
    """Read what `write_state` wrote; nothing was learned where there is no such file.

    Raises:
        DamageError: it is damaged.
    """
    path = directory / STATE
    if not path.exists():
        return {"n_classes": {}, "sha256": {}}
    try:
        state = parse_json(read_bounded(path, MAX_STATE, directory))
        found = state.pop("checksum")
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise _damaged(path, "JSON with a checksum as `clnp run` wrote it", first_line(error)) from error
    if found != _checksum(state):
        raise _damaged(path, "the content that its checksum is of", "another one")
    for name in ("n_classes", "sha256"):
        if not isinstance(state.get(name), dict):
            raise _damaged(path, f"'{name}'", "none")
    return state


def _checksum(state: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain data, in their order: it is that of the tasks."""
    return digest(json.dumps(state).encode())


def _damaged(path: Path, expected: str, found: str) -> DamageError:
    return DamageError(f"cannot load '{path}': expected {expected}, found: {found}. Restore it from a copy, or start the run anew.")


def load_into_(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put tensors into a module that they were taken from.

    Raises:
        StoreError: they are of another network.
    """
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise StoreError(f"cannot load '{path}': it is of another network: {' '.join(str(error).split())}") from error
