"""Learn one task after another in one network; forget nothing."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clnp import heads, seeds
from clnp.advice import frozen, merged
from clnp.allocation import Allocation
from clnp.commit import commit_
from clnp.config import LearnConfig, given
from clnp.describe import zeros
from clnp.errors import DataError, TaskError, WiringError, first_line
from clnp.export import ExportResult, Format, export
from clnp.forecast import Forecast, forecast
from clnp.inputs import Inputs, check_forms, check_inputs, forms, parts
from clnp.isolation import norm_parts
from clnp.ledger import notices
from clnp.modes import exactly, undisturbed
from clnp.names import clean_name, composed
from clnp.narrow import check_narrowing, free_sizes, narrow
from clnp.persistence import load, save, undo_
from clnp.pruning import Trial, prune
from clnp.receipts import Comparison, compare, noise, own_probe
from clnp.records import GroupCapacity, LearnResult, Receipt, TaskRecord, Undoing
from clnp.room import room
from clnp.sources import Source, check_unused, open_data, readable
from clnp.split import Head, initialise_, split
from clnp.training import Progress, check_device
from clnp.wiring import Wiring, folded, trace, without_head
from clnp.work import Work

if TYPE_CHECKING:
    from os import PathLike


class Learner:
    """One network of fixed size that learns task after task and forgets nothing.

    Args:
        model: a trunk (B, ...) -> (B, F), to which each task adds a head of its own; or, with `head`, a whole network
            whose last layer is replaced by one head per task. The model itself is copied and left as it was.
        example_input: a batch of its input (B, ...); shape and dtype matter, B may be any number. Of a network with several
            inputs, a tuple with one such tensor for each argument of its forward pass.
        head: the path of the linear layer that is the head, "fc".
        seed: of every draw that this learner makes.
        probe: examples for receipts (see `clnp.receipts`), which are stored beside the model; by default noise, of which nothing is stored.

    Raises:
        WiringError: the network holds an operation whose units cannot be told apart, see `clnp.wiring.trace`.
        DataError: the example input is a list, or its tensors have different numbers of examples.

    >>> import torch, clnp
    >>> learner = clnp.Learner(torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.ReLU()), torch.zeros(1, 2))
    >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> config = clnp.LearnConfig(epochs=3, finetune_epochs=0, rounds=1)
    >>> first = learner.learn("left or right", (x, (x[:, 0] > 0).long()), (x, (x[:, 0] > 0).long()), config=config)
    >>> before = learner.predict(x, task="left or right")
    >>> second = learner.learn("up or down", (x, (x[:, 1] > 0).long()), (x, (x[:, 1] > 0).long()), config=config)
    >>> torch.equal(before, learner.predict(x, task="left or right"))
    True
    """

    def __init__(
        self, model: nn.Module, example_input: Inputs, *, head: str | None = None, seed: int = 0, probe: Inputs | None = None
    ) -> None:
        trunk = self._capture(model, example_input, head, seed, probe, made_up=False)
        check_narrowing(self.wiring, self._state, trunk, example_input)
        self._see_forms(example_input)
        for notice in filter(None, (merged(self.wiring), frozen(trunk) if head is None else None)):
            notices.warning(notice)
        if probe is not None:
            self._probe = own_probe(self._forms, probe)

    def _capture(
        self, model: nn.Module, example_input: Inputs, head: str | None, seed: int, probe: Inputs | None, *, made_up: bool
    ) -> nn.Module:
        """Fill a new learner with all that follows from the network, and return its trunk; it is run on no example that is made up."""
        self.seed = seeds.check_seed(seed)
        if isinstance(example_input, (list, tuple)):  # whatever else is no tensor, the capture refuses by name
            check_inputs(example_input, None, "cannot use the example input")
        self._head_path = head
        self._original_head: tuple[Tensor, Tensor] | None = None
        trunk = model
        if head is not None:
            trunk, layer = without_head(model, head, None if made_up else example_input)
            weight = layer.weight.detach().cpu().clone()
            bias = weight.new_zeros(layer.out_features) if getattr(layer, "bias", None) is None else layer.bias.detach().cpu().clone()
            self._original_head = (weight, bias)
        self.wiring: Wiring = trace(trunk, example_input)
        trunk = folded(trunk)
        if not self.wiring.n_units:
            raise WiringError("cannot learn tasks in this network: it has no units, for no layer of it has weights.")
        other = {str(parameter.dtype) for parameter in trunk.parameters() if parameter.dtype != torch.float32}
        if other:
            raise WiringError(
                f"cannot learn tasks in this network: expected float32 parameters, found {', '.join(other)}. Call model.float()."
            )
        stored = {**dict(trunk.named_parameters()), **dict(trunk.named_buffers())}
        self._state: dict[str, Tensor] = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in stored.items()
        } | dict(self.wiring.graph.constants)
        self._allocation = Allocation.empty({group.name: group.n_units for group in self.wiring.groups})
        self._records: dict[str, TaskRecord] = {}
        self._undone: list[Undoing] = []
        self._probe = probe
        self._predictors: dict[str, nn.Module] = {}
        self._graph = self.wiring.graph.hash
        self._widened: list[dict[str, int]] = []
        self._features = [torch.arange(len(self.wiring.features))]  # where the features of each width lie among those of today
        return trunk

    def _see_forms(self, example: Inputs) -> None:
        """Find out which shapes the network can read."""
        free = free_sizes(self.wiring, self._state, example)
        self._forms = tuple(replace(form, free=which) for form, which in zip(forms(example), free, strict=True))

    # ---- what is known

    @property
    def allocation(self) -> Allocation:
        """Who owns each unit, and which units each task needs."""
        return self._allocation

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the learned tasks, oldest first."""
        return self._allocation.tasks

    def capacity(self) -> dict[str, GroupCapacity]:
        """Return, per group, its units, the free ones, and by task those claimed and those reused.

        Weights that all tasks share (`Group.shared`) are not among them: they are no room.
        """
        allocation = self._allocation
        return {
            group.name: GroupCapacity(
                group.n_units,
                allocation.n_free(group.name),
                {task: allocation.n_claimed(task, group.name) for task in allocation.tasks},
                {task: allocation.n_reused(task, group.name) for task in allocation.tasks},
            )
            for group in self.wiring.claimable
        }

    def forecast(self) -> Forecast:
        """Say how many more tasks fit, and on what assumption."""
        columns = self.wiring.input_columns  # tasks share what there is of them
        return forecast(self._allocation, [group.name for group in self.wiring.claimable if group.name not in columns])

    def head_of(self, task: str) -> tuple[Tensor, Tensor]:
        """Return a task's head at the trunk's full width: weight (classes, F) and bias (classes,).

        A single head sums the columns of all tasks up to this one; its predictor reads those of needed units.

        Raises:
            TaskError: there is no such task.
        """
        number = self.tasks.index(self._known(task))
        return heads.whole_head([self._records[name] for name in self.tasks[: number + 1]])

    def predictor(self, task: str) -> nn.Module:
        """Return the narrowed network of one task: input (B, ...) -> logits (B, classes). Several inputs are several arguments.

        It is a plain dense module, holds copies of the units that the task needs and nothing of this learner, and can be
        pickled. A task's predictor is the same, bit for bit, whatever is learned later.

        Raises:
            TaskError: there is no such task.
        """
        return copy.deepcopy(self._predictor(task))

    def _known(self, task: str) -> str:
        """Return the name of a task that is learned in the form that it is kept in: however it is composed, it is the same name."""
        name = composed(task) if isinstance(task, str) else repr(task)  # pyright: ignore[reportUnnecessaryIsInstance]
        self._allocation.number(name)
        return name

    def _predictor(self, task: str) -> nn.Module:
        task = self._known(task)
        if task not in self._predictors:
            units = self.wiring.join(self._allocation.needed[task])
            norms = norm_parts(self.wiring.join(self._allocation.owner), self._needed())
            self._predictors[task] = narrow(self.wiring, self._state, units, norms=norms, head=self.head_of(task)).eval()
        return self._predictors[task]

    @torch.no_grad()
    @exactly()
    def predict(self, x: Inputs, *, task: str) -> Tensor:
        """Return the logits (B, classes) of a task for inputs x (B, ...), a tuple of them for a network with several.

        Raises:
            TaskError: there is no such task.
            DataError: x has another number of inputs, another shape or dtype than the example input.
        """
        predictor = self._predictor(task)
        check_forms(self._forms, x, f"cannot predict task '{task}'")
        try:
            return predictor(*parts(x))
        except (RuntimeError, IndexError) as error:
            shapes = ", ".join(str(form.shape) for form in forms(x))
            raise DataError(f"cannot predict task '{task}' for examples of shape {shapes}: {first_line(error)}") from error

    def export(self, path: str | PathLike[str], *, task: str, to: Format | None = None, inputs: Inputs | None = None) -> ExportResult:
        """Write the narrowed network of one task as ONNX or `.pt2`, checked against its predictor, see `clnp.export.export`.

        Args:
            path: of the new file.
            task: whose predictor.
            to: "onnx" or "pt2"; by default what the suffix of `path` says.
            inputs: real inputs x (n, ...) to check on; give them when inputs are integers, for zeros alone show little.

        Raises:
            TaskError: there is no such task.
            ExportError: it cannot be exported, or what was exported differs; no file is left.
        """
        example = zeros(self._forms)
        return export(self._predictor(task), path, example, to=to, inputs=inputs, name=f"task '{task}'")

    # ---- learning

    def learn(
        self,
        name: str,
        train: Source,
        validation: Source,
        *,
        n_classes: int | None = None,
        config: LearnConfig | None = None,
        progress: Progress | None = None,
        work: str | PathLike[str] | None = None,
    ) -> LearnResult:
        """Teach the network one more task, in units that no earlier task needs.

        Args:
            name: of the task, any text that is not taken.
            train: (x, y) tensors, a Dataset, or a DataLoader of (x, y) or (x, y, t); labels 0..n_classes-1. Of a network
                with several inputs x is a tuple, ((a, b), y).
            validation: data in the same forms, not used for training: the margin is measured on it.
            n_classes: how many classes; by default one more than the largest label.
            config: the settings, see `LearnConfig`.
            progress: called with a dictionary for each epoch and phase.
            work: a directory where the training state is kept, so that a killed process goes on where it was, to the same
                bits, when it learns the same task again; disposable. Remove it when the learner is saved.

        Returns: what the task took and gave.

        Raises:
            TaskError: the name is taken, or another task was learned or undone meanwhile.
            CapacityError: no group has a free unit.
            DataError: the data are not what a task needs.
            TrainingError: the loss became NaN or infinite.
            Whatever is raised, the learner is as it was before.
        """
        config = given(config)
        start, kept = time.perf_counter(), Work(work, progress)
        with undisturbed(config.threads), kept, readable(name):
            trial = self._open(name, train, validation, n_classes, config, progress)
            private = {task for task, record in self._records.items() if record.private}
            claimed, pool = room(self.wiring, self._allocation, name, config, private, trial.notices)
            initialise_(self.wiring, trial.state, claimed, pool, seeds.generator(*trial.place, "weights"))
            network = split(self.wiring, trial.state, claimed, pool, trial.head, norms=trial.norms)
            trial.remember(kept, network, self._graph)
            trial.fit(network, "train", 0)
            pruned = prune(trial, network, rounds=config.rounds, finetune=config.finetune_epochs > 0)
            return commit_(self, trial, pruned, start)

    def adopt(
        self,
        name: str,
        train: Source,
        validation: Source,
        *,
        config: LearnConfig | None = None,
        progress: Progress | None = None,
    ) -> LearnResult:
        """Make a network that already works the first task: score its units, prune within the margin, protect the rest.

        Nothing is trained: the weights that stay are the model's own. The learner must have been made with `head`.

        Args:
            name: of the task.
            train: data to score units on, as in `learn`.
            validation: data that the margin is measured on.
            config: margin, criterion and head matter.
            progress: called with a dictionary for each phase.

        Raises:
            TaskError: a task is learned already, or the learner has no head to adopt.
        """
        config = given(config)
        weight, bias = heads.original(self._original_head, self._head_path, self.tasks, f"cannot adopt '{name}'")
        start = time.perf_counter()
        with undisturbed(config.threads), readable(name):
            trial = self._open(name, train, validation, len(bias), config, progress)
            trial.head = Head(weight.clone().to(config.device), bias.clone().to(config.device), config.head == "single")
            none = torch.zeros(self.wiring.n_units, dtype=torch.bool)
            network = split(self.wiring, trial.state, none, ~none, trial.head)
            pruned = prune(trial, network, rounds=1, finetune=False)
            return commit_(self, trial, pruned, start)

    def _open(
        self, name: str, train: Source, validation: Source, n_classes: int | None, config: LearnConfig, progress: Progress | None
    ) -> Trial:
        """Check everything that can be checked before training, and lay out the trial."""
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TaskError(f"cannot learn task {name!r}: a task's name is text, found {type(name).__name__}.")
        try:
            name = clean_name(name)
        except ValueError as error:
            raise TaskError(f"cannot learn a task named {name[:40]!r}: {error}.") from None
        check_unused(name, self.tasks)
        check_device(config.device)
        place = (self.seed, "task", len(self.tasks))
        data = open_data(name, train, validation, n_classes, config, self._forms, seeds.generator(*place, "sample"))
        return Trial(
            wiring=self.wiring,
            state={key: tensor.clone().to(config.device) for key, tensor in self._state.items()},
            owner=self.wiring.join(self._allocation.owner),
            needed=self._needed(),
            head=heads.new_head(
                self.wiring, self._allocation, list(self._records.values()), data.n_classes, config, seeds.generator(*place, "head")
            ),
            data=data,
            config=config,
            task=name,
            place=place,
            progress=progress,
            based_on=self._allocation,
        )

    def _needed(self) -> Tensor:
        """What each task needs, over all units: bool (n_tasks, n_units)."""
        rows = [self.wiring.join(self._allocation.needed[task]) for task in self.tasks]
        return torch.stack(rows) if rows else torch.zeros(0, self.wiring.n_units, dtype=torch.bool)

    def undo(self, task: str, *, purge: bool = False) -> None:
        """Remove a task exactly: its units are free again, every other predictor stays what it is.

        Args:
            task: whose units no later task needs.
            purge: delete its file as well when the learner is saved; without, the file stays and only a tombstone is written.

        Raises:
            TaskError: there is no such task, or later tasks need its units (they are named).
        """
        undo_(self, self._known(task), purge=purge)

    # ---- on disk

    def save(self, directory: str | PathLike[str]) -> None:
        """Commit to a directory what it lacks: new tasks, tombstones of undone ones. What was committed is never rewritten.

        Returns only when everything is on the disk. A crash before that leaves what was there.

        Raises:
            StoreError: the directory holds another learner, is in use, or cannot be written.
            DamageError: it is damaged.
        """
        save(self, directory)

    @classmethod
    def load(cls, directory: str | PathLike[str], model: nn.Module) -> Learner:
        """Read a learner that `save` wrote; every file is verified.

        Args:
            directory: that `save` wrote.
            model: the network that the learner was made with (its code is not stored, its weights do not matter).

        Raises:
            StoreError: the directory is missing, or of another network.
            DamageError: it is damaged; the message names the file and the way out.
        """
        return load(cls.__new__(cls), directory, model)

    def receipt(self, task: str) -> tuple[Receipt | None, Comparison]:
        """Return what a task's predictor answered to the probe when it was committed, and how it compares with what it answers now.

        Raises:
            TaskError: there is no such task.
        """
        task = self._known(task)
        receipt = self._records[task].receipt
        return receipt, compare(receipt, self._predictor(task), self.probe)

    @property
    def probe(self) -> Inputs:
        """The examples that receipts are made with: noise, unless the user named some."""
        return noise(self._forms) if self._probe is None else self._probe

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle without the predictors, which are rebuilt on demand."""
        return {**self.__dict__, "_predictors": {}}
