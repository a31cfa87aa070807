"""From a trained pool to the few units that a task needs: score, select, fine-tune, and never past the margin."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from clnp import advice
from clnp.candidates import Candidates, narrowed, reestimate_
from clnp.errors import TrainingError
from clnp.importance import CRITERIA
from clnp.isolation import closure, norm_parts, severed
from clnp.measuring import activities
from clnp.narrow import reaches
from clnp.selection import allowed_loss, select
from clnp.split import Head, SplitNetwork, split
from clnp.training import (
    ESTIMATE_EXAMPLES,
    fit,
    kept_values,
    n_correct,
    n_correct_and_finite,
    narrow_kept,
)
from clnp.work import Work, fingerprint

if TYPE_CHECKING:
    from clnp.allocation import Allocation
    from clnp.config import LearnConfig
    from clnp.sources import Examples, TaskData, TensorExamples
    from clnp.training import Progress
    from clnp.wiring import Wiring

EVIDENCE = 1000
"""With fewer validation examples than so many, training examples fill up the evidence of what pruning costs."""
LOOSE = 6
"""Rounds before the last may lose so many times the margin: fine-tuning wins it back, or the round does not count."""


@dataclass
class Trial:
    """One task while it is learned, apart from the learner: thrown away when anything fails.

    Attributes:
        wiring: of the network.
        state: full-width parameters and buffers, a copy; claimed rows of it are read, never written.
        owner: int64 (n_units,), the owners before this task.
        needed: bool (n_tasks, n_units), what earlier tasks need.
        head: the task's head at full width.
        data: the task's data.
        config: the settings.
        task: the name, for progress.
        place: the place in the run, for seeds.
        progress: told what happens.
        work: where the training state is kept.
        based_on: the learner's allocation when it began: it must be that still when the task is taken over.
    """

    wiring: Wiring
    state: dict[str, Tensor]
    owner: Tensor
    needed: Tensor
    head: Head
    data: TaskData
    config: LearnConfig
    task: str
    place: tuple[int | str, ...]
    progress: Progress | None = None
    work: Work = field(default_factory=Work)
    based_on: Allocation | None = None
    notices: list[str] = field(default_factory=list[str])
    whole: SplitNetwork | None = None
    """The network of the whole pool: those that come later are parts of it, and read parts of its claimed graph's values."""
    whole_kept: dict[str, tuple[Tensor, ...] | None] = field(default_factory=dict[str, "tuple[Tensor, ...] | None"])

    def __post_init__(self) -> None:
        """Note what can be said before training."""
        found = advice.fine_margin(self.config.margin, len(self.data.validation)), advice.missing_classes(self.data)
        self.notices += [notice for notice in found if notice]

    @property
    def device(self) -> torch.device:
        """Where the task is trained."""
        return self.head.weight.device

    def close(self, units: Tensor) -> Tensor:
        """Add the units that reused ones were trained to read."""
        return closure(units | self.wiring.shared, self.owner, self.needed, self.wiring.edges)

    @property
    def norms(self) -> list[tuple[Tensor, Tensor]]:
        """Which units of earlier tasks are normalised over which."""
        return norm_parts(self.owner, self.needed)

    def tell(self, phase: str, number: int) -> None:
        """Report that a phase begins."""
        if self.progress is not None:
            self.progress({"event": "phase", "task": self.task, "phase": phase, "round": number})

    def kept(self, network: SplitNetwork, part: Literal["train", "validation", "sample"]) -> tuple[Tensor, ...] | None:
        """Return what the claimed graph of a network answers to a part of the data; the whole network's is computed once."""
        if self.whole is None:
            self.whole = network
        if part not in self.whole_kept:
            first = self.data.sample.first(max(EVIDENCE, ESTIMATE_EXAMPLES))  # nobody looks at values of the rest
            data: Examples = {"train": self.data.train, "validation": self.data.validation, "sample": first}[part]
            self.whole_kept[part] = kept_values(self.whole, data, self.config.memory_limit, self.device)
        return narrow_kept(self.whole_kept[part], self.whole, network)

    def correct(self, network: SplitNetwork, at_least: int = 0) -> int:
        """Count the validation examples that a network answers correctly; counting ends where it cannot be so many as `at_least`."""
        return self.count(network, self.data.validation, self.kept(network, "validation"), at_least)

    def count(self, network: SplitNetwork, data: TensorExamples, kept: tuple[Tensor, ...] | None, at_least: int = 0) -> int:
        """Count correct answers, in the memory format that training has: images pass through convolutions in half the time."""
        return n_correct(network, data, kept, channels_last=self.config.channels_last, at_least=at_least)

    def correct_witnesses(self, network: SplitNetwork, at_least: int = 0) -> int:
        """Count the witnesses that a network answers correctly, see `Bar`."""
        return self.count(network, self.witnesses, self.kept_of_witnesses(network), at_least) if len(self.witnesses) else 0

    def kept_of_witnesses(self, network: SplitNetwork) -> tuple[Tensor, ...] | None:
        """Return what the claimed graph of a network answers to the witnesses, see `kept`."""
        kept = self.kept(network, "sample")
        return None if kept is None else tuple(value[: len(self.witnesses)] for value in kept)

    @property
    def witnesses(self) -> TensorExamples:
        """Training examples that fill up the evidence of few validation examples, see `Bar`."""
        return self.data.sample.first(max(EVIDENCE - len(self.data.validation), 0))

    def fit(self, network: SplitNetwork, phase: str, number: int) -> None:
        """Train a network on the task's data: the whole pool first, survivors later."""
        config, first = self.config, phase == "train"
        notice = advice.few_steps(config, self.data.train) if first else None
        if notice:
            self.notices.append(notice)
        # Cut once, not in every epoch.
        kept_validation = self.kept(network, "validation") if config.patience else None
        fit(
            network,
            self.data.train,
            self.kept(network, "train"),
            config,
            phase=phase,
            epochs=config.epochs if first else config.finetune_epochs,
            lr=config.lr if first else config.lr / 2,
            l1=config.l1 if first else 0.0,
            n_classes=self.data.n_classes,
            place=(*self.place, phase, number),
            task=self.task,
            validation=lambda: self.count(network, self.data.validation, kept_validation),
            progress=self.progress,
            work=self.work,
        )

    def remember(self, work: Work, network: SplitNetwork, graph: str) -> None:
        """Open the training state that earlier processes kept of this very trial.

        Args:
            work: where it lies.
            network: before training: all that the claimed units and the seed give to it.
            graph: the hash of the captured network.
        """
        facts, tensors = fingerprint(train=self.data.train, validation=self.data.validation, sample=self.data.sample)
        situation = {"place": self.place, "config": self.config.model_dump(mode="json"), "graph": graph, "data": facts}
        state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
        units = {"owner": self.owner, "needed": self.needed, "pool": network.pool_units, "visible": network.visible}
        work.open(self.task, situation, {**tensors, **state, **units})
        self.work = work


@dataclass(frozen=True)
class Pruned:
    """The outcome of pruning: the network to commit and what it answers correctly, beside the unpruned one."""

    network: SplitNetwork
    unpruned: SplitNetwork
    correct_unpruned: int
    allowed: int


@dataclass(frozen=True)
class Bar:
    """What a pruned network must reach: measured on the unpruned one, once, before anything is pruned.

    A few validation examples notice little: with fewer than `EVIDENCE`, training examples are asked as well, and the
    margin must hold on them, too.
    """

    correct: int
    allowed: int
    correct_witnesses: int
    allowed_witnesses: int


def set_bar(trial: Trial, network: SplitNetwork) -> Bar:
    """Measure the unpruned network.

    Raises:
        TrainingError: it answers NaN or infinity to some validation example.
    """
    kept, channels_last = trial.kept(network, "validation"), trial.config.channels_last
    correct, finite = n_correct_and_finite(network, trial.data.validation, kept, channels_last=channels_last)
    if finite < len(trial.data.validation):
        raise TrainingError(
            f"learning task '{trial.task}' was abandoned: the trained network answers NaN or infinity on validation data. "
            f"Earlier tasks are untouched. Look for extreme values in the data, and scale them."
        )
    margin, notice = trial.config.margin, advice.nothing_learned(correct, trial.data.validation.y)
    if notice:
        trial.notices.append(notice)
    return Bar(
        correct,
        allowed_loss(margin, len(trial.data.validation)),
        trial.correct_witnesses(network),
        allowed_loss(margin, len(trial.witnesses)),
    )


def within(trial: Trial, network: SplitNetwork, bar: Bar) -> bool:
    """Tell whether a network keeps the margin."""
    lost = bar.correct - trial.correct(network)
    return lost <= bar.allowed and bar.correct_witnesses - trial.correct_witnesses(network) <= bar.allowed_witnesses


def prune(trial: Trial, network: SplitNetwork, *, rounds: int, finetune: bool) -> Pruned:
    """Prune a trained network in rounds, so that the result stays within the margin of the unpruned one.

    The accuracy to keep is measured once, before anything is pruned. Every round but the last may overdraw the margin,
    for its survivors train on; a round whose outcome is outside the margin is dropped. The last round prunes within the
    margin, and is kept as it was pruned when training on makes it worse than the margin allows.
    """
    bar = set_bar(trial, network)
    best = network
    for number in range(1, rounds + 1):
        last = number == rounds
        pruned = select_round(trial, best, bar, 1 if last or not finetune else LOOSE, number)
        if finetune:
            before = {name: value.clone() for name, value in pruned.state_dict().items()}
            trial.tell("finetune", number)
            trial.fit(pruned, "finetune", number)
            reestimate_(trial, pruned)
            if not within(trial, pruned, bar):
                if not last:
                    continue
                pruned.load_state_dict(before)
        best = pruned
    return Pruned(best, network, bar.correct, bar.allowed)


def select_round(trial: Trial, network: SplitNetwork, bar: Bar, slack: int, number: int) -> SplitNetwork:
    """Score the units of a network once, find those to keep, and return the network of exactly them.

    Args:
        trial: the task.
        network: what to prune; left as it is.
        bar: what must be reached.
        slack: how many times the margin may be spent.
        number: of the round.
    """
    network.write(trial.state, trial.head)
    phase = f"select-{number}"
    known = trial.work.recall(phase)
    if known is None:
        keep = search(trial, network, bar, slack, number)
        trial.work.keep(phase, {}, {"keep": keep}, finished=True)
    else:
        keep = known.tensors["keep"]
    if torch.equal(keep, network.visible):
        # Nothing is released: a copy, for fine-tuning must not change what may have to be gone back to.
        return split(trial.wiring, trial.state, network.claimed_units, network.pool_units, trial.head, norms=trial.norms)
    return narrowed(trial, network, keep, values_kept=False)


def search(trial: Trial, network: SplitNetwork, bar: Bar, slack: int, number: int) -> Tensor:
    """Find the units to keep, as `select_round` says: bool (n_units,), before closure. The network's rows are in the trial's state."""
    wiring, config = trial.wiring, trial.config
    trial.tell("score", number)
    scores = torch.zeros(wiring.n_units)
    norms = [*trial.norms, (network.pool_units, network.visible)]
    criterion = CRITERIA[config.criterion]
    for units, activity in activities(
        wiring,
        trial.state,
        network.visible,
        trial.head,
        trial.data.sample,
        network.pool_units,
        norms,
        moments=[criterion.moment],
        channels_last=config.channels_last,
    ):
        scores[units] = torch.maximum(scores[units], criterion(activity))
    scores[network.pool_units] *= config.claim_weight  # it takes room to keep them, and none to keep what is claimed
    trial.tell("select", number)
    candidates = Candidates(trial, network, bar, slack)
    branches = {group.name for group in wiring.claimable if reaches(wiring, network.visible & ~group.mask(wiring.n_units))}
    scores[wiring.shared] = torch.inf
    found = select(
        wiring.split(scores),
        wiring.split(network.visible),
        candidates.measure,
        correct=bar.correct,
        allowed=slack * bar.allowed,
        may_empty=branches,
        # Few examples are soon asked.
        screen=candidates.screen if len(trial.data.validation) + len(trial.witnesses) >= EVIDENCE else None,
        sparing=bool(network.norms),  # which are estimated again for every network that is asked about
    )
    return wiring.join(found.keep)


def settled(trial: Trial, network: SplitNetwork) -> tuple[dict[str, Tensor], Head]:
    """Return full-width tensors with a trained network's rows in place and its interference weights severed, and its head."""
    state = {name: tensor.clone() for name, tensor in trial.state.items()}
    head = Head(trial.head.weight.clone(), trial.head.bias.clone(), trial.head.shared)
    network.write(state, head)
    owner = torch.where(network.pool_units, len(trial.needed), trial.owner)
    everyone_needs = torch.cat([trial.needed, network.visible[None]])
    for name, labels in trial.wiring.parameters.items():
        if labels.columns is not None:
            matrix = labels.matrix(state[name])
            matrix[severed(owner, everyone_needs, labels.rows, labels.columns).to(matrix.device)] = 0
    return {name: tensor.cpu() for name, tensor in state.items()}, head
