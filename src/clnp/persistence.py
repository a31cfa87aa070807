"""Take tasks back from a learner, and bring a learner to disk and back: what `Learner.undo`, `save` and `load` do."""
# The learner's own fields are the business of this module as they are of the learner: it is a part of it with a room of its own.
# ruff: noqa: SLF001
# pyright: reportPrivateUsage=false

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from clnp import __version__, store
from clnp.describe import Description, input_entries, open_ledger, tensor_forms, units_before
from clnp.errors import DamageError, StoreError
from clnp.files import digest
from clnp.inputs import parts
from clnp.records import Undoing
from clnp.split import forget_
from clnp.wider import widen_

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from torch import nn

    from clnp.learner import Learner
    from clnp.records import TaskRecord


def undo_(learner: Learner, task: str, *, purge: bool) -> None:
    """Take a task back, see `Learner.undo`."""
    allocation, record = learner._allocation.undo(task), learner._records[task]
    sha256 = record.sha256 or digest(
        store.task_content(learner.wiring, learner._state, learner._allocation, task, as_stored(learner, record))
    )
    # Wiped in a copy: an interrupt leaves the task whole, or takes it back whole.
    state = {name: tensor.clone() for name, tensor in learner._state.items()}
    forget_(learner.wiring, state, learner.wiring.join(learner._allocation.owner) == learner._allocation.number(task))
    records = {name: kept for name, kept in learner._records.items() if name != task}
    predictors = {name: predictor for name, predictor in learner._predictors.items() if name != task}
    undone = [*learner._undone, Undoing(task, sha256, purge)]
    # A network whose rows were wiped is no longer the one to adopt.
    learner.__dict__.update(
        _state=state, _allocation=allocation, _records=records, _predictors=predictors, _undone=undone, _original_head=None
    )


def save(learner: Learner, directory: str | PathLike[str]) -> None:
    """Commit what a directory lacks, see `Learner.save`."""
    stored = store.Stored(
        constants={name: tensor for name, tensor in learner._state.items() if name not in learner.wiring.parameters},
        allocation=learner._allocation,
        records={task: as_stored(learner, record) for task, record in learner._records.items()},
        rows={},
        widened=learner._widened,
        undone=learner._undone,
        probe=None if learner._probe is None else {str(place): part for place, part in enumerate(parts(learner._probe))},
    )
    description = Description(
        graph=learner._graph,
        groups=units_before(learner._allocation.n_units, learner._widened),
        inputs=input_entries(learner._forms),
        seed=learner.seed,
        head=learner._head_path,
        tensors=tensor_forms(learner._state),
        versions={"clnp": __version__, "torch": torch.__version__},
    )
    hashes = store.write(directory, learner.wiring, learner._state, description, stored)
    learner._records = {task: replace(record, sha256=hashes[task]) for task, record in learner._records.items()}


def as_stored(learner: Learner, record: TaskRecord) -> TaskRecord:
    """Return a record with its head as wide as it was when the task was learned: its file is never written again."""
    return replace(record, weight=record.weight[:, learner._features[record.width]])


def load(learner: Learner, directory: str | PathLike[str], model: nn.Module) -> Learner:
    """Fill a learner that is not made yet with what a directory holds, and return it, see `Learner.load`.

    The network was checked when it was new, and the graph's hash tells that it is the same. It is not run: examples are not stored,
    and what is made up in their place it may be unable to read, lengths of 0 or a mask that leaves nothing.
    """
    ledger, description = open_ledger(os.fspath(directory))
    example = description.example()
    learner._capture(model, example, description.head, description.seed, None, made_up=True)
    learner._see_forms(example)
    learner._original_head = None  # the model may have any weights: they are not those to adopt
    load_(learner, directory, description, ledger.widened)
    return learner


def load_(learner: Learner, directory: str | PathLike[str], description: Description, widened: Sequence[Mapping[str, int]]) -> None:
    """Put what a directory holds into a learner that has learned nothing, of the same network."""
    store.check_network(directory, learner.wiring, learner._graph, description, description.groups)
    for more in widened:
        try:
            widen_(learner, more)
        except (RuntimeError, MemoryError) as error:
            what = ", ".join(f"{group} by {n:,}" for group, n in more.items())
            raise StoreError(f"cannot load '{directory}': its network, widened ({what}), does not fit into memory.") from error
    stored = store.read(directory, learner.wiring, learner._graph)
    store.restore_(learner.wiring, learner._state, stored)
    learner._allocation, learner._undone = stored.allocation, list(stored.undone)
    if stored.probe is not None:
        probe = tuple(stored.probe[str(place)] for place in range(len(stored.probe)))
        learner._probe = probe if len(probe) != 1 else probe[0]
    for task, record in stored.records.items():
        weight = torch.zeros(len(record.weight), len(learner.wiring.features), dtype=torch.float32)
        columns = learner._features[record.width]
        if record.weight.shape[1] != len(columns):
            raise DamageError(f"cannot load '{directory}': the head of task '{task}' does not fit the network.")
        weight[:, columns] = record.weight
        learner._records[task] = replace(record, weight=weight)
