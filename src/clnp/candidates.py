"""The networks that selection asks about: some of the units of a trained one, and what they answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from clnp.modes import multiply
from clnp.narrow import reaches
from clnp.recall import Memory, recalling
from clnp.split import SplitNetwork, split
from clnp.training import ESTIMATE_BATCH, ESTIMATE_EXAMPLES, estimate_norms_, hardest, narrow_kept

if TYPE_CHECKING:
    from torch import Tensor

    from clnp.pruning import Bar, Trial
    from clnp.selection import Keep
    from clnp.sources import TensorExamples

SCREENED = 0.2
"""The hardest share of the examples that pruning is judged by, on which selection bisects; the outcome is measured on all."""
RECALLED = 1 / 8
"""The share of `memory_limit` that what is recalled of the candidate before may take, once for the screen and once for what is measured."""


def narrowed(
    trial: Trial,
    network: SplitNetwork,
    keep: Tensor,
    *,
    values_kept: bool,
    n_estimated: int = ESTIMATE_EXAMPLES,
    memory: Memory | None = None,
) -> SplitNetwork:
    """Return the network of some units of another one, bool (n_units,), and of those that they read; what it shares with the one before it comes from memory."""
    units = trial.close(keep)
    claimed, pool = units & network.claimed_units, units & network.pool_units
    smaller = split(trial.wiring, trial.state, claimed, pool, trial.head, norms=trial.norms, values_kept=values_kept)
    if memory is not None:
        memory.watch(smaller)
    reestimate_(trial, smaller, n_estimated)
    return smaller


def reestimate_(trial: Trial, network: SplitNetwork, n_estimated: int = ESTIMATE_EXAMPLES) -> None:
    """Estimate the pool's batch-norm statistics again, always on the same examples."""
    if network.norms:
        kept = trial.kept(network, "sample")
        with recalling(network, "sample", estimates=True):
            estimate_norms_(network, trial.data.sample, kept, channels_last=trial.config.channels_last, n_examples=n_estimated)


@dataclass(frozen=True)
class Hard:
    """The examples of one kind that a network is most likely to lose: what a screen looks at.

    Attributes:
        examples: the hardest first.
        kept: what the claimed graph of the unpruned network answers to them.
        n_others: how many examples there are beside them.
        least: fewer correct answers of all are too few.
    """

    examples: TensorExamples
    kept: tuple[Tensor, ...] | None
    n_others: int
    least: int


class Candidates:
    """The networks of some units of another one, and what they answer: selection asks for the smallest that keeps the bar.

    Args:
        trial: the task; the network's rows are in its state.
        network: whose units they have.
        bar: what must be reached.
        slack: how many times the margin may be spent.
    """

    def __init__(self, trial: Trial, network: SplitNetwork, bar: Bar, slack: int) -> None:
        self.trial, self.network = trial, network
        # With fewer correct answers a network is refused, however many fewer they are: they need not be counted to the end.
        self.least = bar.correct - slack * bar.allowed
        self.least_witnesses = bar.correct_witnesses - slack * bar.allowed_witnesses
        self.refused = -len(trial.data.validation) - 1
        looked_at = ("validation", "sample") if network.norms or len(trial.witnesses) else ("validation",)
        self.all_kept = all(trial.kept(network, part) is not None for part in looked_at)
        n_estimated = ESTIMATE_EXAMPLES if network.norms else 0
        self.memory = self._memory(n_estimated + len(trial.data.validation) + len(trial.witnesses))

    def _memory(self, n_examples: int) -> Memory | None:
        """Return room for the values of so many examples; none where a weight is used once an example: to hash it costs as much as it saves."""
        wiring, limit = self.trial.wiring, self.trial.config.memory_limit
        if limit == 0 or all(len(wiring.node(source).shape or ()) <= 2 for _, source in wiring.reads):
            return None
        return Memory(limit * 2**20 * RECALLED / max(n_examples, 1))

    @cached_property
    def hard_memory(self) -> Memory | None:
        """What the screen recalls."""
        return self._memory(ESTIMATE_BATCH + sum(len(hard.examples) for hard in self.hard))

    @cached_property
    def hard(self) -> list[Hard]:
        """What the screen looks at: validation examples, and witnesses where there are any."""
        trial = self.trial
        found = [self._hardest(trial.data.validation, trial.kept(self.network, "validation"), self.least)]
        if len(trial.witnesses):
            found.append(self._hardest(trial.witnesses, trial.kept_of_witnesses(self.network), self.least_witnesses))
        return found

    def _hardest(self, data: TensorExamples, kept: tuple[Tensor, ...] | None, least: int) -> Hard:
        places = hardest(self.network, data, kept, SCREENED, channels_last=self.trial.config.channels_last)
        of_them = None if kept is None else tuple(value[places.to(value.device)] for value in kept)
        return Hard(data.at(places.to(data.y.device)), of_them, len(data) - len(places), least)

    def of(self, keep: Keep, memory: Memory | None, n_estimated: int = ESTIMATE_EXAMPLES) -> SplitNetwork | None:
        """Return the network of some units, its norms estimated on so many examples; None if nothing gets through it."""
        self.trial.work.check()
        units = self.trial.wiring.join(keep)
        if not reaches(self.trial.wiring, self.trial.close(units)):
            return None
        return narrowed(self.trial, self.network, units, values_kept=self.all_kept, n_estimated=n_estimated, memory=memory)

    def measure(self, keep: Keep) -> int:
        """Count correct validation answers; a network that is refused has fewer than any other."""
        smaller = self.of(keep, self.memory)
        if smaller is None:
            return self.refused
        with recalling(smaller, "validation"):
            correct = self.trial.correct(smaller, self.least)
        if correct < self.least:  # it need not be shown the witnesses
            return self.refused
        with recalling(smaller, "witnesses"):
            return correct if self.trial.correct_witnesses(smaller, self.least_witnesses) >= self.least_witnesses else self.refused

    def screen(self, keep: Keep) -> int:
        """Count correct answers to the hardest validation examples, as if all others were answered correctly, and look at the hardest witnesses.

        It is quick rather than exact: in the precision of training, with norms estimated on a batch. `measure` has the last word.
        """
        looked_at = self.hard  # found as `measure` sees it: values that are kept must be float32's
        with multiply(self.trial.config.precision, self.trial.device):
            smaller = self.of(keep, self.hard_memory, ESTIMATE_BATCH)
            if smaller is None:
                return self.refused
            found: list[int] = []
            for number, hard in enumerate(looked_at):
                kept = narrow_kept(hard.kept, self.network, smaller)
                with recalling(smaller, f"hard-{number}"):
                    correct = hard.n_others + self.trial.count(smaller, hard.examples, kept, hard.least - hard.n_others)
                if correct < hard.least:
                    return self.refused
                found.append(correct)
        return found[0]
