"""The user's data in one form: tensors in memory, or anything that can be iterated again and again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from clnp import seeds
from clnp.errors import DataError, first_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clnp.config import LearnConfig

SAMPLE = 10_000
"""Training examples on which units are scored: activities are means, and more would not change the order of units."""

Source = tuple[Tensor, Tensor] | Dataset[Any] | Iterable[Any]
"""What a task may be given: (x, y) tensors, a Dataset, or a DataLoader (any iterable) of (x, y) or (x, y, t)."""


@dataclass(frozen=True)
class TensorExamples:
    """Examples in memory: x (n, ...), y int64 (n,). What depends on an example alone may be kept for it."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self.y)

    def first(self, n: int) -> TensorExamples:
        """Return the first n examples."""
        return TensorExamples(self.x[:n], self.y[:n])

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (places, x, y); shuffled, and without a last smaller batch, when a generator is given."""
        n = len(self)
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        stop = n if generator is None or n < batch_size else n - n % batch_size
        for start in range(0, stop, batch_size):
            places = order[start : start + batch_size]
            yield places, self.x[places], self.y[places]


@dataclass(frozen=True)
class StreamExamples:
    """Examples from a loader that may augment them: nothing is kept from one epoch to the next."""

    loader: Iterable[Any]
    what: str = "data"
    shape: tuple[int, ...] | None = None
    """Of one example, once it is known: every batch is checked, for only the first ones are seen before training."""
    dtype: torch.dtype | None = None

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[tuple[None, Tensor, Tensor]]:
        """Yield (None, x, y) in the loader's own order and batch size."""
        del batch_size
        if generator is not None and isinstance(self.loader, DataLoader) and self.loader.generator is not None:
            self.loader.generator.set_state(generator.get_state())
        empty = True
        for batch in self.loader:
            empty = False
            x, y = _pair(batch, self.what)
            if self.shape is not None and self.dtype is not None:
                check(TensorExamples(x, y), self.what, self.shape, self.dtype)
            yield None, x, y
        if empty:
            raise DataError(f"cannot use the {self.what}: the loader gave no batch. Pass an iterable that can be iterated once per epoch.")


Examples = TensorExamples | StreamExamples


def _pair(batch: Any, what: str) -> tuple[Tensor, Tensor]:
    """Return x and y of a batch (x, y) or (x, y, t)."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 2 or not all(isinstance(part, Tensor) for part in batch[:2]):
        raise DataError(f"cannot use the {what}: expected batches (x, y) or (x, y, t) of tensors, found {type(batch).__name__}.")
    _check_labels_are_whole(batch[1], what)
    return batch[0], batch[1].long()


def _check_labels_are_whole(y: Tensor, what: str) -> None:
    if y.is_floating_point() or y.dtype == torch.bool or y.is_complex():
        raise DataError(f"cannot use the {what}: expected integer labels, found {y.dtype}. Convert y with .long().")


def examples(source: Source, what: str, config: LearnConfig, *, training: bool = False) -> Examples:
    """Bring a user's data into one form.

    A Dataset with an attribute `deterministic = True` is read into memory once; any other is loaded again every epoch,
    since it may augment.

    Args:
        source: see `Source`.
        what: "training data of task 'a'": named in messages.
        config: its batch size is that of the loader that is made for a Dataset.
        training: leave out a last smaller batch of a Dataset, another one each epoch; data that are read once are read whole.

    Raises:
        DataError: the source has another form, or is empty.
    """
    if isinstance(source, (tuple, list)) and len(source) == 2 and all(isinstance(part, Tensor) for part in source):
        return TensorExamples(source[0], source[1])
    if isinstance(source, TensorDataset):
        if len(source.tensors) < 2:
            raise DataError(f"cannot use the {what}: expected a TensorDataset of (x, y), found {len(source.tensors)} tensor.")
        return TensorExamples(*source.tensors[:2])
    if isinstance(source, Dataset) and hasattr(source, "__len__"):
        if len(source) == 0:  # pyright: ignore[reportArgumentType]
            raise DataError(f"cannot use the {what}: it is empty.")
        size = config.batch_size_for(len(source))  # pyright: ignore[reportArgumentType]
        loader = DataLoader(source, batch_size=size, shuffle=True, generator=torch.Generator(), drop_last=training and len(source) >= size)  # pyright: ignore[reportArgumentType]
        return StreamExamples(loader, what)
    if isinstance(source, Iterable) and not isinstance(source, (tuple, list, Tensor, Iterator)):
        return StreamExamples(source, what)
    raise DataError(
        f"cannot use the {what}: expected (x, y) tensors, a Dataset or a DataLoader of (x, y), found {type(source).__name__}."
        + (" An iterator can be read only once; pass what it iterates over." if isinstance(source, Iterator) else "")
    )


def in_memory(source: Examples, what: str) -> TensorExamples:
    """Read all examples into memory: validation must be the same examples each time it is looked at."""
    if isinstance(source, TensorExamples):
        return source
    return _joined([(x, y) for _, x, y in source.batches(0)], what)


def _joined(parts: list[tuple[Tensor, Tensor]], what: str) -> TensorExamples:
    """Put batches together."""
    try:
        return TensorExamples(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
    except RuntimeError as error:
        raise DataError(f"cannot use the {what}: its batches do not fit together ({first_line(error)}).") from error


def check(source: Examples, what: str, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Check examples in memory before anything is done with them: shape, dtype, finiteness, number of labels.

    Raises:
        DataError: what is wrong, what was expected and what to do.
    """
    if isinstance(source, StreamExamples):
        return
    x, y = source.x, source.y
    if x.dim() == 0 or y.dim() == 0:
        raise DataError(f"cannot use the {what}: expected a batch dimension, found x of shape {tuple(x.shape)}, y of {tuple(y.shape)}.")
    if len(x) == 0:
        raise DataError(f"cannot use the {what}: it is empty. A task needs at least one example of each of two classes.")
    if tuple(x.shape[1:]) != tuple(shape):
        raise DataError(
            f"cannot use the {what}: expected examples of shape {tuple(shape)} as in the example input, found {tuple(x.shape[1:])}."
        )
    if x.dtype != dtype:
        raise DataError(f"cannot use the {what}: expected {dtype} as in the example input, found {x.dtype}. Convert x.")
    if y.dim() != 1 or len(y) != len(x):
        raise DataError(f"cannot use the {what}: expected one label for each of {len(x)} examples, found labels of shape {tuple(y.shape)}.")
    _check_labels_are_whole(y, what)
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
        raise DataError(f"cannot use the {what}: {bad} of {len(x)} examples hold NaN or infinite values. Clean or drop them.")


def check_labels(y: Tensor, n_classes: int, what: str) -> None:
    """Check that labels lie in 0..n_classes-1.

    Raises:
        DataError: the smallest or largest label lies outside.
    """
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= n_classes:
        raise DataError(f"cannot use the {what}: expected labels 0 to {n_classes - 1}, found {low if low < 0 else high}. Renumber them.")


@dataclass(frozen=True)
class TaskData:
    """A task's data, checked: `sample` are training examples for scoring units and estimating norms."""

    train: Examples
    validation: TensorExamples
    sample: TensorExamples
    n_classes: int


def open_data(
    name: str,
    train: Source,
    validation: Source,
    n_classes: int | None,
    config: LearnConfig,
    shape: Sequence[int],
    dtype: torch.dtype,
    generator: torch.Generator,
) -> TaskData:
    """Bring a task's data into one form and check it, before anything is trained.

    Args:
        name: of the task, for messages.
        train: training data.
        validation: validation data; read into memory, so that it is the same at every look.
        n_classes: None takes one more than the largest label seen.
        config: its batch size.
        shape: of one example.
        dtype: of the examples.
        generator: chooses the sample.

    Raises:
        DataError: what is wrong with which data, and what to do.
    """
    what, what_held_out = f"training data of task '{name}'", f"validation data of task '{name}'"
    read_once = bool(getattr(train, "deterministic", False))
    whole = examples(train, what, config, training=not read_once)
    # A user's loader may draw from the global generator: it is given a seed for the while, and left as it was.
    with seeds.drawing_from(generator):
        if read_once:
            whole = in_memory(whole, what)
        held_out = in_memory(examples(validation, what_held_out, config), what_held_out)
        sample = _sample(whole, generator, what)
    for part, text in ((whole, what), (held_out, what_held_out), (sample, what)):
        check(part, text, shape, dtype)
    known = [part for part in (whole, held_out, sample) if isinstance(part, TensorExamples)]
    if n_classes is None:
        n_classes = 1 + max(int(part.y.max()) for part in known)
    if n_classes < 2:
        raise DataError(f"cannot learn task '{name}': a classifier needs at least two classes, found {n_classes}.")
    for part in known:
        check_labels(part.y, n_classes, what_held_out if part is held_out else what)
    seen = whole if isinstance(whole, TensorExamples) else sample
    if len(torch.unique(seen.y)) < 2:
        raise DataError(f"cannot learn task '{name}': its training data hold a single class; a classifier needs at least two.")
    if isinstance(whole, StreamExamples):
        whole = replace(whole, shape=tuple(shape), dtype=dtype)
    return TaskData(_long(whole), _long(held_out), _long(sample), n_classes)


def _long(part: Any) -> Any:
    """Return examples with int64 labels, as the loss wants them."""
    return TensorExamples(part.x, part.y.long()) if isinstance(part, TensorExamples) else part


def _sample(train: Examples, generator: torch.Generator, what: str) -> TensorExamples:
    """Return up to `SAMPLE` training examples: a random choice, or of a stream the first ones it gives."""
    if isinstance(train, TensorExamples):
        if train.x.dim() == 0:
            return train  # refused by `check`
        places = torch.randperm(len(train.x), generator=generator)[:SAMPLE]
        return TensorExamples(train.x[places], train.y[places] if train.y.dim() and len(train.y) == len(train.x) else train.y)
    parts: list[tuple[Tensor, Tensor]] = []
    for _, x, y in train.batches(0, generator):
        parts.append((x, y))
        if sum(len(x) for x, _ in parts) >= SAMPLE:
            break
    return _joined(parts, what)
