"""The benchmarks: sequences of tasks made from one or two data sets.

Everything random in a task is drawn from the seed and the task's place, once, before any example is loaded: the same seed
gives the same tasks in whatever order they are loaded, and the first three of ten tasks are the same as three of three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from clnp.data.cifar import load_cifar10, load_cifar100
from clnp.data.digits import load_digits
from clnp.data.idx import load_fashion_mnist, load_mnist
from clnp.data.images import in_colour, mirrored, rotate
from clnp.data.source import digest
from clnp.data.task import JSON, Split, Task
from clnp.errors import ConfigError
from clnp.models import lookup
from clnp.seeds import generator

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64, UInt8

    from clnp.data.source import Source

Scenario: TypeAlias = Literal["task-incremental", "domain-incremental", "class-incremental"]
Build: TypeAlias = Callable[[str | PathLike[str] | None, int, int], list[Task]]
_NamedBuild: TypeAlias = Callable[[str, Path | None, int, int], list[Task]]


@dataclass(frozen=True)
class Benchmark:
    """Describe a sequence of tasks and what it is usually run with.

    Args:
        name: its key in BENCHMARKS.
        description: one line for people.
        scenario: what is known at test time and what changes between tasks (van de Ven & Tolias, 2019).
        n_tasks: how many tasks there are unless someone asks for more or fewer.
        max_tasks: how many there can be; None: any number.
        tasks: (data directory or None, seed, number of tasks) -> the first tasks of the sequence. Data files are read when it is
            called, examples are made when a task is loaded. Without a directory files are downloaded, or come with the package.
            ConfigError: there are not so many tasks; DataError: a file is missing or damaged.
        model: the network it is run with by default, a key in MODELS.
        shapes: of one example, one for each input.
        config: what differs from the defaults of LearnConfig.

    >>> [task.classes for task in BENCHMARKS["digits"].tasks(None, 0, 2)]
    [('0', '1'), ('2', '3')]
    """

    name: str
    description: str
    scenario: Scenario
    n_tasks: int
    max_tasks: int | None
    tasks: Build
    model: str
    shapes: tuple[tuple[int, ...], ...]
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])


def permuted_tasks(name: str, source: Source, seed: int, n_tasks: int) -> list[Task]:
    """Give every task, the first too, its own fixed permutation of the pixels; the classes stay (Goodfellow et al., 2013).

    Args:
        name: of the benchmark; tasks are called "name-0", "name-1", ...
        source: the data set.
        seed: with the task's number it decides the permutation; alone it decides which examples are held out.
        n_tasks: how many.
    Returns: tasks whose x is flat: (n, c * h * w). The SHA-256 of the permutation stands in `details`.
    """
    rows = source.rows(seed)
    tasks: list[Task] = []
    for t in range(n_tasks):
        n_pixels = source.x_train[0].numel()
        permutation = torch.randperm(n_pixels, generator=generator(seed, "task", t, "permutation"))

        def change(x: UInt8[Tensor, "n c h w"], permutation: Int64[Tensor, " p"] = permutation) -> Float32[Tensor, "n p"]:
            return source.to_float(x).flatten(1).index_select(1, permutation)

        tasks.append(_task(f"{name}-{t}", source, rows, None, change, {"seed": seed, "permutation_sha256": digest(permutation)}))
    return tasks


def rotated_tasks(name: str, source: Source, seed: int, n_tasks: int) -> list[Task]:
    """Turn the images of each task by its own angle, evenly over the half circle: task t by 180 t / n_tasks degrees.

    Args:
        name: of the benchmark; tasks are called "name-0", "name-1", ...
        source: the data set.
        seed: decides which examples are held out. The angles do not depend on it, but on n_tasks.
        n_tasks: how many.
    Returns: tasks whose x is (n, c, h, w). The angle, anticlockwise, stands in `details`.
    """
    rows = source.rows(seed)
    tasks: list[Task] = []
    for t in range(n_tasks):
        angle = 180 * t / n_tasks

        def change(x: UInt8[Tensor, "n c h w"], angle: float = angle) -> Float32[Tensor, "n c h w"]:
            return rotate(source.to_float(x), angle)

        tasks.append(_task(f"{name}-{t}", source, rows, None, change, {"seed": seed, "angle_degrees": angle}))
    return tasks


def split_tasks(name: str, source: Source, seed: int, groups: Sequence[Sequence[int]]) -> list[Task]:
    """Give every task its own classes of one data set, numbered from 0 (Zenke, Poole & Ganguli, 2017).

    Args:
        name: of the benchmark; tasks are called "name-0", "name-1", ...
        source: the data set.
        seed: decides which examples are held out; the same in every task.
        groups: for each task the classes it holds, as labels of the source.
    Returns: tasks whose x is (n, c, h, w). The source's labels stand in `details`.
    """
    rows = source.rows(seed)
    return [
        _task(f"{name}-{t}", source, rows, group, source.to_float, {"seed": seed, "source_classes": list(group)})
        for t, group in enumerate(groups)
    ]


def _task(
    name: str,
    source: Source,
    rows: Mapping[Split, Int64[Tensor, " k"]],
    group: Sequence[int] | None,
    change: Callable[[UInt8[Tensor, "n c h w"]], Tensor],
    details: Mapping[str, JSON],
) -> Task:
    """Make a task of the given rows of a source, of all classes or a group of them; `change` makes floats of its images."""
    ids = range(len(source.classes)) if group is None else group
    relabel = torch.full((len(source.classes),), -1)
    relabel[torch.tensor(list(ids))] = torch.arange(len(ids))
    kept = {split: numbers[relabel[source.labels(split)[numbers]] >= 0] for split, numbers in rows.items()}

    def load(split: Split) -> tuple[Tensor, Tensor]:
        numbers = kept[split]
        return change(source.images(split, numbers)), relabel[source.labels(split)[numbers]]

    sizes = {f"n_{split}": len(numbers) for split, numbers in kept.items()}
    held_out = digest(kept["validation"].sort().values)
    facts = {"source": source.name, **details, **sizes, "validation_sha256": held_out}
    return Task(name, len(ids), tuple(source.classes[i] for i in ids), load, facts)


def _groups(n_groups: int, size: int) -> list[range]:
    """Return the classes in their natural order, in groups: as in the literature, and the same for every seed."""
    return [range(t * size, (t + 1) * size) for t in range(n_groups)]


def _split(load: Callable[[Path | None], Source], size: int) -> _NamedBuild:
    return lambda name, data, seed, n_tasks: split_tasks(name, load(data), seed, _groups(n_tasks, size))


def _permuted(load: Callable[[Path | None], Source]) -> _NamedBuild:
    return lambda name, data, seed, n_tasks: permuted_tasks(name, load(data), seed, n_tasks)


def _rotated(load: Callable[[Path | None], Source]) -> _NamedBuild:
    return lambda name, data, seed, n_tasks: rotated_tasks(name, load(data), seed, n_tasks)


def _cifar10_100(_name: str, data: Path | None, seed: int, n_tasks: int) -> list[Task]:
    first = replace(split_tasks("cifar10", load_cifar10(data), seed, _groups(1, 10))[0], name="cifar10")
    return [first] if n_tasks == 1 else [first, *split_tasks("cifar100", load_cifar100(data), seed, _groups(n_tasks - 1, 10))]


def _mirrored(build: _NamedBuild) -> _NamedBuild:
    return lambda name, data, seed, n_tasks: [mirrored(task) for task in build(name, data, seed, n_tasks)]


def _mixed(_name: str, data: Path | None, seed: int, n_tasks: int) -> list[Task]:
    """Two classes at a time of three data sets, in an order that the seed draws; grey images are padded with black to 32 x 32 and repeated in three channels."""
    splits = [
        task if task.details["source"] == "cifar10" else in_colour(task, black=-source.mean[0] / source.std[0])
        for load in (load_fashion_mnist, load_mnist, load_cifar10)
        for source in (load(data),)
        for task in split_tasks(source.name, source, seed, _groups(5, 2))
    ]
    order = torch.randperm(len(splits), generator=generator(seed, "order")).tolist()
    return [splits[place] for place in order[:n_tasks]]


# One thread is fastest for networks this small.
# Settings that differ from LearnConfig's defaults, chosen on validation data (docs/tuning.md tells how).
SMALL: Mapping[str, Any] = {"epochs": 24, "margin": 0.02, "threads": 1}
MNIST: Mapping[str, Any] = {"epochs": 10, "finetune_epochs": 10, "batch_size": 64, "l1": 2e-5, "margin": 0.0005, "pool": 0.3}


def _benchmark(
    name: str,
    description: str,
    scenario: Scenario,
    *,
    n_tasks: int,
    max_tasks: int | None,
    model: str,
    shape: tuple[int, ...],
    build: _NamedBuild,
    config: Mapping[str, Any] | None = None,
) -> Benchmark:
    """Make a Benchmark that refuses a number of tasks it does not have before any data are read."""

    def tasks(data: str | PathLike[str] | None, seed: int, n_tasks: int) -> list[Task]:
        if n_tasks < 1 or (max_tasks is not None and n_tasks > max_tasks):
            limit = "at least 1 task" if max_tasks is None else f"1 to {max_tasks} tasks"
            msg = f"cannot make the tasks of benchmark '{name}': expected {limit}, found {n_tasks}. Ask for another number (--tasks)."
            raise ConfigError(msg)
        return build(name, None if data is None else Path(data), seed, n_tasks)

    return Benchmark(name, description, scenario, n_tasks, max_tasks, tasks, model, (shape,), config or {})


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        _benchmark(
            "digits",
            "UCI digits (in the package), two at a time",
            "task-incremental",
            n_tasks=5,
            max_tasks=5,
            model="mlp-small",
            shape=(1, 8, 8),
            build=_split(lambda _: load_digits(), 2),
            config=SMALL,
        ),
        _benchmark(
            "permuted-digits",
            "UCI digits (in the package), pixels permuted anew for each task",
            "domain-incremental",
            n_tasks=5,
            max_tasks=None,
            model="mlp-small",
            shape=(64,),
            build=_permuted(lambda _: load_digits()),
            config=SMALL,
        ),
        _benchmark(
            "permuted-mnist",
            "MNIST, pixels permuted anew for each task",
            "domain-incremental",
            n_tasks=10,
            max_tasks=None,
            model="mlp-2000",
            shape=(784,),
            build=_permuted(load_mnist),
            config=MNIST,
        ),
        _benchmark(
            "rotated-mnist",
            "MNIST, turned further for each task, over half a circle",
            "domain-incremental",
            n_tasks=10,
            max_tasks=None,
            model="mlp-2000",
            shape=(1, 28, 28),
            build=_rotated(load_mnist),
            config=MNIST,
        ),
        _benchmark(
            "split-mnist",
            "MNIST, two digits at a time",
            "task-incremental",
            n_tasks=5,
            max_tasks=5,
            model="mlp-256",
            shape=(1, 28, 28),
            build=_split(load_mnist, 2),
        ),
        _benchmark(
            "split-fashion-mnist",
            "Fashion-MNIST, two kinds of clothing at a time",
            "task-incremental",
            n_tasks=5,
            max_tasks=5,
            model="mlp-256",
            shape=(1, 28, 28),
            build=_split(load_fashion_mnist, 2),
        ),
        _benchmark(
            "split-cifar10",
            "CIFAR-10, two classes at a time",
            "task-incremental",
            n_tasks=5,
            max_tasks=5,
            model="vgg-small",
            shape=(3, 32, 32),
            build=_split(load_cifar10, 2),
        ),
        _benchmark(
            "cifar10-100",
            "CIFAR-10, then CIFAR-100 ten classes at a time (0-9, 10-19, ...)",
            "task-incremental",
            n_tasks=6,
            max_tasks=11,
            model="zenke",
            shape=(3, 32, 32),
            build=_cifar10_100,
        ),
        _benchmark(
            "cifar10-100-mirrored",
            "cifar10-100 with the mirror image of every training image: twice as many of them",
            "task-incremental",
            n_tasks=6,
            max_tasks=11,
            model="zenke",
            shape=(3, 32, 32),
            build=_mirrored(_cifar10_100),
        ),
        _benchmark(
            "mixed",
            "Fashion-MNIST, MNIST and CIFAR-10, two classes at a time, mixed: each seed has an order of its own",
            "task-incremental",
            n_tasks=15,
            max_tasks=15,
            model="vgg-small",
            shape=(3, 32, 32),
            build=_mixed,
        ),
        _benchmark(
            "split-cifar100-10x10",
            "CIFAR-100, ten classes at a time",
            "task-incremental",
            n_tasks=10,
            max_tasks=10,
            model="resnet18-narrow",
            shape=(3, 32, 32),
            build=_split(load_cifar100, 10),
        ),
        _benchmark(
            "split-cifar100-20x5",
            "CIFAR-100, five classes at a time, in alphabetical order (not the superclasses)",
            "task-incremental",
            n_tasks=20,
            max_tasks=20,
            model="resnet18-narrow",
            shape=(3, 32, 32),
            build=_split(load_cifar100, 5),
        ),
    )
}


def get_benchmark(name: str) -> Benchmark:
    """Return a benchmark by its name.

    Raises:
        ConfigError: there is none of this name; the message lists those there are, and the nearest.

    >>> get_benchmark("digits").n_tasks
    5
    """
    return lookup("benchmark", name, BENCHMARKS)
