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
        model: where it differs from the experiment's.
    """

    label: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    published: str = ""
    seeds: int = 3
    model: str | None = None


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

    def entry(self, label: str) -> Entry:
        """Return the row with this label.

        Raises:
            ValueError: there is none.
        """
        for entry in self.entries:
            if entry.label == label:
                return entry
        raise ValueError(f"unknown row '{label}': expected one of {', '.join(repr(entry.label) for entry in self.entries)}")

    def settings_of(self, entry: Entry) -> dict[str, Any]:
        """Return the settings of one of its entries."""
        return {**self.settings, **entry.settings}

    def runs(self) -> Iterator[tuple[Entry, int]]:
        """Yield every run, the first seed of all rows before the second of any."""
        for seed in range(max(entry.seeds for entry in self.entries)):
            for entry in self.entries:
                if seed < entry.seeds:
                    yield entry, seed


# Ten epochs a task: six of training, twice two after pruning where a method prunes; the others train for ten in one go.
TEN = {"epochs": 6, "rounds": 2, "finetune_epochs": 2, "batch_size": 256, "threads": 1}
# Dense networks of this size are trained twice as fast so, and as well (docs/tuning.md).
DENSE = {**TEN, "batch_size": 512, "precision": "bfloat16"}
FLOAT = {"precision": "float32"}
SGD = {"optimizer": "sgd", "lr": 0.2}
SGD_OF_IMAGES = {**SGD, "lr": 0.05}
# Attention to few units wants little of the sparsity term, which weighs their mean (docs/tuning.md).
HAT_OF_IMAGES = {**SGD, "lr": 0.02, "strength": 0.02}
QUICK = {**TEN, "batch_size": 64, "l1": 5e-5, "margin": 0.002, "pool": 0.2}
"""clnp in as few epochs as the dense methods have."""
ONE_ROUND = {"epochs": 5, "rounds": 1, "finetune_epochs": 5}
# As many, half of them after pruning once: better, and larger (docs/tuning.md). The ablations began before that was known.
ONCE = {**QUICK, **ONE_ROUND}
# Every image comes twice in an epoch, once mirrored. Small tasks gain by label smoothing, whatever the method (docs/tuning.md).
FIFTEEN = {"epochs": 9, "rounds": 1, "finetune_epochs": 6, "lr": 1e-3, "batch_size": 64, "label_smoothing": 0.1, "threads": 1}
# CIFAR-10 needs the filters; the dense layer is what fills up (docs/tuning.md).
ZENKE = {"pool": {"dense": 100, "*": "all"}, "l1": 5e-5, "margin": 0.005}
WIDE = {**ZENKE, "pool": {"dense": 200, "*": "all"}}
IMAGES = {"precision": "bfloat16", "channels_last": True}  # convolutions are trained more than twice as fast so
ABLATIONS: dict[str, tuple[float, ...]] = {
    "margin": (0.0, 0.001, 0.005, 0.01, 0.02),
    "l1": (0.0, 1e-5, 2e-5, 1e-4, 2e-4),
    "pool": (0.05, 0.1, 0.4),
    "claim_weight": (0.03, 0.3, 1.0),
}
"""The settings with numbers that are varied, and their values beside the benchmark's own."""
# What the benchmark is run with if nothing is said.
THIRTY = {"epochs": 10, "rounds": 2, "finetune_epochs": 10, "batch_size": 64, "l1": 2e-5, "margin": 0.0005, "pool": 0.3}


def stages(share: float) -> dict[str, float | str]:
    """Return the pool of a narrow ResNet: its early layers whole, for the first task needs them and later ones read them, and a share of the last."""
    return {"block4*": share, "*": "all"}


EXPERIMENTS: dict[str, Experiment] = {
    "permuted-mnist": Experiment(
        "Permuted MNIST, 10 tasks, 784-2000-2000",
        "permuted-mnist",
        "mlp-2000",
        10,
        DENSE,
        (
            Entry("clnp, 30 epochs", "clnp", {**FLOAT, **THIRTY, "pool": 500}, "98.42 ± 0.04 (Golkar et al. 2019)"),
            Entry(
                "clnp, 30 epochs, more units",
                "clnp",
                {**FLOAT, **THIRTY, "pool": 500, "l1": 1e-5, "claim_weight": 1.0},
                "98.42 ± 0.04 (Golkar et al. 2019)",
            ),
            Entry("clnp", "clnp", {**FLOAT, **ONCE}, "98.42 ± 0.04 (Golkar et al. 2019)"),
            Entry("single", "single", {}, "98.48 ± 0.05 (Golkar et al. 2019)"),
            # As many epochs as the rows of clnp that have thirty.
            Entry("single, 30 epochs", "single", {"epochs": 26}, "98.48 ± 0.05 (Golkar et al. 2019)", seeds=1),
            Entry("ewc", "ewc", {"strength": 300.0}, "97.0"),
            Entry("si", "si", {"strength": 5.0, "damping": 0.1}, "97.2"),
            # What Adam does to weights that a task hardly needs disturbs the others, gradients alone far less.
            Entry("superposition", "superposition", SGD, "97.6"),
            Entry("packnet", "packnet", {"share": 0.15}),
            # Attention is annealed in each epoch, and needs the steps; and SGD, for Adam gives the sparsity term the same weight whatever c is.
            Entry("hat", "hat", {**SGD, "batch_size": 256}, "98.6 (up to 200 epochs)"),
            Entry("wsn", "wsn", {}),
            Entry("finetune", "finetune", {}),
            # Its epochs grow with the tasks: the run costs as much as five and a half others.
            Entry("joint", "joint", {}),
            Entry("online-ewc", "online-ewc", {"strength": 300.0}),
            Entry("superposition, complex", "superposition", {**SGD, "contexts": "complex"}, seeds=1),
            Entry("superposition, rotation", "superposition", {**SGD, "contexts": "rotation"}, seeds=1),
        ),
    ),
    "permuted-mnist-100": Experiment(
        "Permuted MNIST, 10 tasks, 784-100-100",
        "permuted-mnist",
        "mlp-100",
        10,
        {**TEN, "epochs": 12, "finetune_epochs": 4, "batch_size": 128},
        (
            Entry("clnp", "clnp", {"pool": 0.1, "l1": 2e-5, "margin": 0.002}),
            Entry("packnet", "packnet", {"share": 0.15}, "96.37"),
            Entry("wsn", "wsn", {}, "96.41"),
            Entry("single", "single", {}),
            # The comparison is with those above; these are for orientation.
            Entry("hat", "hat", {**SGD, "strength": 0.1}, seeds=1),
            Entry("ewc", "ewc", {"strength": 300.0}, seeds=1),
            Entry("si", "si", {"strength": 5.0, "damping": 0.1}, seeds=1),
            Entry("superposition", "superposition", SGD, seeds=1),
            Entry("finetune", "finetune", {}, seeds=1),
            Entry("joint", "joint", {}, seeds=1),
        ),
    ),
    # As far as it goes: the network is full when a task finds no free unit.
    "permuted-mnist-50": Experiment(
        "Permuted MNIST, 50 tasks, 784-2000-2000",
        "permuted-mnist",
        "mlp-2000",
        50,
        {**THIRTY, "finetune_epochs": 5, "pool": 300, "margin": 0.005, "l1": 5e-5, "threads": 1},
        (Entry("clnp", "clnp", {}, "about 25 tasks (Golkar et al. 2019)", seeds=1),),
    ),
    "cifar": Experiment(
        "CIFAR-10, then five tasks of ten classes of CIFAR-100, each training image also mirrored, the network of Zenke et al.",
        "cifar10-100-mirrored",
        "zenke",
        6,
        {**FIFTEEN, **IMAGES},
        (
            Entry("clnp", "clnp", ZENKE),
            Entry("single", "single", {}, "71.12 (Zenke et al. 2017, no mirror images)", seeds=1),
            Entry("finetune", "finetune", {}, "79.92 just after each task (Zenke et al. 2017, no mirror images)", seeds=1),
            Entry("si", "si", {"strength": 0.03}, "73.53 (Zenke et al. 2017, no mirror images)", seeds=1),
            Entry("ewc", "ewc", {"strength": 10.0}, seeds=1),
            Entry("packnet", "packnet", {"share": 0.3}, seeds=1),
            Entry("hat", "hat", HAT_OF_IMAGES, seeds=1),
            Entry("wsn", "wsn", {}, seeds=1),
            Entry("superposition", "superposition", SGD_OF_IMAGES, seeds=1),
            Entry("clnp, margin 1 %", "clnp", {**ZENKE, "margin": 0.01}, seeds=1),
            Entry("clnp, margin 2 %", "clnp", {**ZENKE, "margin": 0.02}, seeds=1),
            Entry("clnp, margin 4 %", "clnp", {**ZENKE, "margin": 0.04}, seeds=1),
            Entry("clnp, twice as wide", "clnp", WIDE, seeds=1, model="zenke-wide"),
            Entry("single, twice as wide", "single", {}, seeds=1, model="zenke-wide"),
            Entry("clnp, single head, twice as wide", "clnp", {**WIDE, "head": "single"}, seeds=1, model="zenke-wide"),
            Entry("joint", "joint", {}, seeds=1),
            Entry("online-ewc", "online-ewc", {"strength": 10.0}, seeds=1),
        ),
    ),
    **{
        f"split-cifar100-{n_tasks}": Experiment(
            f"Split CIFAR-100, {n_tasks} tasks, ResNet-18 with a third of the filters",
            f"split-cifar100-{n_tasks}x{100 // n_tasks}",
            "resnet18-narrow",
            n_tasks,
            {**TEN, **IMAGES, "lr": 1e-3, "batch_size": 32, "label_smoothing": 0.1},
            (
                Entry("clnp", "clnp", {"pool": stages(1 / n_tasks)}, seeds=1),
                Entry("packnet", "packnet", {"share": 2 / n_tasks}, seeds=1),  # of what is free: it must leave something to the last task
                Entry("hat", "hat", HAT_OF_IMAGES, seeds=1),
                Entry("wsn", "wsn", {}, seeds=1),
                Entry("single", "single", {}, seeds=1),
            ),
        )
        for n_tasks in (10, 20)
    },
    "mixed": Experiment(
        "Fashion-MNIST, MNIST and CIFAR-10, 15 tasks of two classes, five orders",
        "mixed",
        "vgg-small",
        15,
        {**TEN, **IMAGES, "batch_size": 128},
        (Entry("clnp", "clnp", {}, seeds=5), Entry("finetune", "finetune", {}, seeds=1)),
    ),
    # What each part does, one change at a time.
    "ablations": Experiment(
        "Permuted MNIST, 5 tasks, 784-2000-2000: one change at a time",
        "permuted-mnist",
        "mlp-2000",
        5,
        QUICK,
        (
            Entry("as it is", "clnp", seeds=3),
            *(Entry(f"{setting} {value}", "clnp", {setting: value}, seeds=1) for setting, values in ABLATIONS.items() for value in values),
            *(
                Entry(f"criterion {value}", "clnp", {"criterion": value}, seeds=1)
                for value in ("activity", "firing", "std", "firing-weight", "std-weight", "taylor")
            ),
            Entry("no reuse", "clnp", {"reuse": False}, seeds=1),
            Entry("one round of four epochs", "clnp", {"rounds": 1, "finetune_epochs": 4}, seeds=1),
            Entry("four rounds of one epoch", "clnp", {"rounds": 4, "finetune_epochs": 1}, seeds=1),
            Entry("no fine-tuning, ten epochs before", "clnp", {"epochs": 10, "rounds": 1, "finetune_epochs": 0}, seeds=1),
            Entry("single head", "clnp", {"head": "single"}, seeds=1),
            Entry("no dropout", "clnp", {}, seeds=1, model="mlp-2000-plain"),
        ),
    ),
}
