"""What is run for the tables: every run of every experiment, as data. `benchmarks/reproduce.py` runs and shows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True)
class Entry:
    """One row of a table, which is run with several seeds.

    Attributes:
        label: its name in the table and in file names.
        method: a key of METHODS.
        settings: what differs from the benchmark's own settings and the experiment's.
        published: what its authors, or those who compared with it, report in this very setting, for the table.
        seeds: how many seeds it has at least.
        benchmark: where it differs from the experiment's.
    """

    label: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    published: str = ""
    seeds: int = 3
    benchmark: str | None = None


@dataclass(frozen=True)
class Experiment:
    """Runs that are compared with each other: the same tasks, network, epochs and validation examples.

    Attributes:
        title: for people.
        benchmark: a key of BENCHMARKS.
        model: a key of MODELS.
        n_tasks: how many of its tasks.
        settings: of all entries; an entry's own go before them.
        entries: the rows.
    """

    title: str
    benchmark: str
    model: str
    n_tasks: int
    settings: Mapping[str, Any]
    entries: tuple[Entry, ...]

    def runs(self) -> Iterator[tuple[Entry, int]]:
        """Yield every run, the first seed of all rows before the second of any."""
        for seed in range(max(entry.seeds for entry in self.entries)):
            for entry in self.entries:
                if seed < entry.seeds:
                    yield entry, seed


# Ten epochs a task: six of training, twice two after pruning where a method prunes; the others train for ten in one go.
TEN = {"epochs": 6, "rounds": 2, "finetune_epochs": 2, "batch_size": 256, "threads": 1}
THIRTY = {"epochs": 10, "rounds": 2, "finetune_epochs": 10, "batch_size": 128}

EXPERIMENTS: dict[str, Experiment] = {
    "permuted-mnist": Experiment(
        "Permuted MNIST, 10 tasks, 784-2000-2000",
        "permuted-mnist",
        "mlp-2000",
        10,
        TEN,
        (
            Entry("clnp, 30 epochs", "clnp", THIRTY, "98.42 ± 0.04 (Golkar et al. 2019)"),
            Entry("clnp", "clnp", {}, "98.42 ± 0.04 (Golkar et al. 2019)"),
            Entry("single", "single", {}, "98.48 ± 0.05 (Golkar et al. 2019)"),
            Entry("ewc", "ewc", {}, "97.0"),
            Entry("si", "si", {}, "97.2"),
            Entry("superposition", "superposition", {}, "97.6"),
            Entry("packnet", "packnet", {}),
            Entry("hat", "hat", {}, "98.6 (up to 200 epochs)"),
            Entry("wsn", "wsn", {}),
            Entry("finetune", "finetune", {}),
            Entry("joint", "joint", {}),
            Entry("online-ewc", "online-ewc", {}),
            Entry("superposition, complex", "superposition", {"contexts": "complex"}),
            Entry("superposition, rotation", "superposition", {"contexts": "rotation"}),
        ),
    ),
    "permuted-mnist-100": Experiment(
        "Permuted MNIST, 10 tasks, 784-100-100",
        "permuted-mnist",
        "mlp-100",
        10,
        {**TEN, "epochs": 12, "finetune_epochs": 4, "batch_size": 128},
        (
            Entry("clnp", "clnp", {}),
            Entry("packnet", "packnet", {}, "96.37"),
            Entry("wsn", "wsn", {}, "96.41"),
            Entry("hat", "hat", {}),
            Entry("ewc", "ewc", {}),
            Entry("si", "si", {}),
            Entry("superposition", "superposition", {}),
            Entry("single", "single", {}),
            Entry("finetune", "finetune", {}),
            Entry("joint", "joint", {}),
        ),
    ),
}
