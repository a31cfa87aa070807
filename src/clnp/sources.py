"""The user's data in one form: tensors in memory, or anything that can be iterated again and again."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from clnp import seeds
from clnp.errors import DataError, TaskError, first_line
from clnp.inputs import Forms, Inputs, check_dense, check_inputs, check_lengths, cut, join, length, parts, take, which

if TYPE_CHECKING:
    from clnp.config import LearnConfig

MOST_CLASSES = 1_000_000
"""A head has as many rows: a larger label is no number of a class."""
SAMPLE = 10_000
"""Training examples on which units are scored: activities are means, and more would not change the order of units."""

Source = tuple[Inputs, Tensor] | Dataset[Any] | Iterable[Any]
"""What a task may be given: (x, y) tensors, a Dataset, or a DataLoader (any iterable) of (x, y) or (x, y, t).

Of a network with several inputs x is a tuple of tensors, ((a, b), y). In the batches of a loader it may be a list, for that
is what torch collates tuples into.
"""


@dataclass(frozen=True)
class TensorExamples:
    """Examples in memory: x (n, ...) or a tuple of such, y int64 (n,). What depends on an example alone may be kept for it."""

    x: Inputs
    y: Tensor

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self.y)

    def first(self, n: int) -> TensorExamples:
        """Return the first n examples."""
        return TensorExamples(cut(self.x, 0, n), self.y[:n])

    def at(self, places: Tensor) -> TensorExamples:
        """Return the examples at some places (k,)."""
        return TensorExamples(take(self.x, places), self.y[places])

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Inputs, Tensor]]:
        """Yield (places, x, y); shuffled, and without a last smaller batch, when a generator is given."""
        n = len(self)
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        stop = n if generator is None or n < batch_size else n - n % batch_size
        for start in range(0, stop, batch_size):
            places = order[start : start + batch_size]
            yield places, take(self.x, places), self.y[places]


@dataclass(frozen=True)
class StreamExamples:
    """Examples from a loader that may augment them: nothing is kept from one epoch to the next."""

    loader: Iterable[Any]
    what: str = "data"
    n_inputs: int | None = None
    """How many inputs a batch must have, where that is known."""
    forms: Forms | None = None
    """Of the inputs, in training: every batch is checked, for only the first ones are seen before."""
    counted: int | None = None
    """How many batches a pass had when it was counted, of a loader that cannot tell."""

    @property
    def n_batches(self) -> int | None:
        """How many batches a pass has; None while nobody knows."""
        try:
            return len(self.loader)  # pyright: ignore[reportArgumentType]
        except (TypeError, NotImplementedError):  # a DataLoader of an IterableDataset has the method, and raises
            return self.counted

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[tuple[None, Inputs, Tensor]]:
        """Yield (None, x, y) in the loader's own order and batch size."""
        del batch_size
        if generator is not None and isinstance(self.loader, DataLoader) and self.loader.generator is not None:
            self.loader.generator.set_state(generator.get_state())
        empty = True
        for batch in self.loader:
            empty = False
            x, y = _pair(batch, self.what, self.n_inputs)
            if self.forms is not None:
                check(TensorExamples(x, y), self.what, self.forms)
            yield None, x, y
        if empty:
            raise DataError(f"cannot use the {self.what}: the loader gave no batch. Pass an iterable that can be iterated once per epoch.")


Examples = TensorExamples | StreamExamples


def _pair(batch: Any, what: str, n_inputs: int | None) -> tuple[Inputs, Tensor]:
    """Return x and y of a batch (x, y) or (x, y, t)."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 2 or not _are_inputs(batch[0]) or not isinstance(batch[1], Tensor):
        raise DataError(f"cannot use the {what}: expected batches (x, y) or (x, y, t) of tensors, found {_found(batch)}.{_hint(batch)}")
    x = batch[0] if isinstance(batch[0], Tensor) else tuple(batch[0])
    check_inputs(x, n_inputs, f"cannot use the {what}")
    _check_labels_are_whole(batch[1], what)
    return x, batch[1].long()


def _are_inputs(x: Any) -> bool:
    """Tell whether something is meant as the inputs of a network: one tensor or several, whatever else is wrong with them."""
    return isinstance(x, Tensor) or (isinstance(x, (tuple, list)) and any(isinstance(part, Tensor) for part in x))


def _check_labels_are_whole(y: Tensor, what: str) -> None:
    check_dense(y, f"cannot use the {what}")
    if y.is_floating_point() or y.dtype == torch.bool or y.is_complex():
        raise DataError(f"cannot use the {what}: expected integer labels, found {y.dtype}. Convert y with .long().")


def examples(source: Source, what: str, config: LearnConfig, *, training: bool = False, n_inputs: int | None = None) -> Examples:
    """Bring a user's data into one form.

    A Dataset with an attribute `deterministic = True` is read into memory once; any other is loaded again every epoch,
    since it may augment.

    Args:
        source: see `Source`.
        what: "training data of task 'a'": named in messages.
        config: its batch size is that of the loader that is made for a Dataset.
        training: leave out a last smaller batch of a Dataset, another one each epoch; data that are read once are read whole.
        n_inputs: how many inputs the network has, where that is known.

    Raises:
        DataError: the source has another form, or is empty.
    """
    if isinstance(source, (tuple, list)) and len(source) == 2 and _are_inputs(source[0]) and isinstance(source[1], Tensor):
        check_inputs(source[0], n_inputs, f"cannot use the {what}")
        return TensorExamples(source[0], source[1])
    if isinstance(source, TensorDataset):
        if len(source.tensors) < 2:
            raise DataError(f"cannot use the {what}: expected a TensorDataset of (x, y), found {len(source.tensors)} tensor.")
        return TensorExamples(*source.tensors[:2])
    if isinstance(source, Dataset) and hasattr(source, "__len__"):
        if len(source) == 0:  # pyright: ignore[reportArgumentType]
            raise DataError(f"cannot use the {what}: it is empty.")
        size = config.batch_size_for(len(source))  # pyright: ignore[reportArgumentType]
        loader = DataLoader(
            source,
            batch_size=size,
            shuffle=True,
            generator=torch.Generator(),
            drop_last=training and len(source) >= size,  # pyright: ignore[reportArgumentType]
            collate_fn=partial(_side_by_side, what),
        )
        return StreamExamples(loader, what, n_inputs)
    if isinstance(source, IterableDataset):  # of examples, as torch means it
        source = DataLoader(source, batch_size=config.batch_size_for(None), collate_fn=partial(_side_by_side, what))
    if isinstance(source, list) and source and all(isinstance(batch, (tuple, list)) and len(batch) > 1 for batch in source):
        return StreamExamples(source, what, n_inputs)
    if isinstance(source, Iterable) and not isinstance(source, (tuple, list, dict, str, bytes, Tensor, Iterator)):
        return StreamExamples(source, what, n_inputs)
    raise DataError(
        f"cannot use the {what}: expected (x, y) tensors, a Dataset or a DataLoader of (x, y), found {_found(source)}.{_hint(source)}"
    )


def _side_by_side(what: str, batch: list[Any]) -> Any:
    """Make a batch of examples, as torch does."""
    try:
        return default_collate(batch)
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        raise DataError(
            f"cannot use the {what}: its examples cannot be put side by side in a batch: {first_line(error)}. "
            f"Give examples (x, y) of one shape, or a DataLoader with a collate_fn of your own."
        ) from error


@contextlib.contextmanager
def readable(name: str) -> Generator[None]:
    """Run a block that learns a task: data that a network cannot look up are told of as what they are."""
    try:
        yield
    except IndexError as error:
        raise DataError(
            f"cannot learn task '{name}': {first_line(error)}. Do its data hold a token that the network has no embedding for, say?"
        ) from error


def _found(x: Any) -> str:
    """Name what was given in place of data: "tuple (ndarray, Tensor)"."""
    name = type(x).__name__
    if not isinstance(x, (tuple, list)) or not x:
        return name
    return f"{name} ({', '.join(type(part).__name__ for part in x[:4])}{', ...' if len(x) > 4 else ''})"


def _hint(x: Any) -> str:
    """Say what to do with what was given in place of data, where that can be guessed."""
    if isinstance(x, Iterator):
        return " An iterator can be read only once; pass what it iterates over."
    if isinstance(x, dict):
        return " Give a DataLoader a collate_fn that returns ((a, b), y): inputs are told apart by their order."
    if isinstance(x, (tuple, list)) and len(x) > 2 and all(isinstance(part, Tensor) for part in x):
        return f" It holds {len(x)} tensors: write several inputs as ((a, b), y)."
    if isinstance(x, (tuple, list)) and len(x) == 2:
        labels = x[1]
        if any(isinstance(label, str) for label in (labels if isinstance(labels, (list, tuple)) else [])[:1]):
            return " Number the classes from 0: y = torch.as_tensor([names.index(label) for label in labels])."
        return " Convert both with torch.as_tensor."
    return ""


def in_memory(source: Examples, what: str) -> TensorExamples:
    """Read all examples into memory: validation must be the same examples each time it is looked at."""
    if isinstance(source, TensorExamples):
        return source
    return _joined([(x, y) for _, x, y in source.batches(0)], what)


def _joined(pairs: list[tuple[Inputs, Tensor]], what: str) -> TensorExamples:
    """Put batches together."""
    try:
        return TensorExamples(join([x for x, _ in pairs]), torch.cat([y for _, y in pairs]))
    except (RuntimeError, ValueError) as error:  # ValueError: of another number of inputs
        raise DataError(f"cannot use the {what}: its batches do not fit together ({first_line(error)}).") from error


def check(source: Examples, what: str, forms: Forms) -> None:
    """Check examples in memory before anything is done with them: shapes, dtypes, finiteness, number of labels.

    Raises:
        DataError: what is wrong, in which input where there are several, what was expected and what to do.
    """
    if isinstance(source, StreamExamples):
        return
    doing, y = f"cannot use the {what}", source.y
    check_inputs(source.x, len(forms), doing)
    inputs = parts(source.x)
    named = [which(place, len(inputs)) for place in range(len(inputs))]
    of = ["" if name == "x" else f" in {name}" for name in named]
    for x, name in zip(inputs, named, strict=True):
        if x.dim() == 0 or y.dim() == 0:
            raise DataError(f"{doing}: expected a batch dimension, found {name} of shape {tuple(x.shape)}, y of {tuple(y.shape)}.")
    n = length(source.x)
    if n == 0:
        raise DataError(f"{doing}: it is empty. A task needs at least one example of each of two classes.")
    for x, form, name, where in zip(inputs, forms, named, of, strict=True):
        found = tuple(x.shape[1:])
        if not form.fits(found):
            raise DataError(f"{doing}: expected examples of shape {form.shape} as in the example input, found {found}{where}.")
        if x.dtype != form.dtype:
            raise DataError(f"{doing}: expected {form.dtype} as in the example input, found {x.dtype}{where}. Convert {name}.")
    check_lengths(forms, source.x, doing)
    if y.dim() != 1 or len(y) != n:
        raise DataError(f"{doing}: expected one label for each of {n} examples, found labels of shape {tuple(y.shape)}.")
    _check_labels_are_whole(y, what)
    for x, where in zip(inputs, of, strict=True):
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
            raise DataError(f"{doing}: {bad} of {n} examples hold NaN or infinite values{where}. Clean or drop them.")


def check_labels(y: Tensor, n_classes: int, what: str) -> None:
    """Check that labels, int64, lie in 0..n_classes-1.

    Raises:
        DataError: the smallest or largest label lies outside.
    """
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= n_classes:
        raise DataError(f"cannot use the {what}: expected labels 0 to {n_classes - 1}, found {low if low < 0 else high}. Renumber them.")


def check_n_classes(name: str, n_classes: int) -> None:
    """Check that a task has classes to tell apart.

    Raises:
        DataError: it has fewer than two, or their number is none.
    """
    if not isinstance(n_classes, Integral) or isinstance(n_classes, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DataError(f"cannot learn task '{name}': expected a whole number as n_classes, found {n_classes!r}.")
    if n_classes < 2:
        raise DataError(f"cannot learn task '{name}': a classifier needs at least two classes, found {n_classes}.")
    if n_classes > MOST_CLASSES:
        raise DataError(
            f"cannot learn task '{name}': expected at most {MOST_CLASSES:,} classes, found {n_classes:,}. Number labels from 0."
        )


def check_several(name: str, y: Tensor) -> None:
    """Check that training data show more than one class.

    Raises:
        DataError: they do not.
    """
    if len(torch.unique(y)) < 2:
        raise DataError(f"cannot learn task '{name}': its training data hold a single class; a classifier needs at least two.")


def check_unused(name: str, tasks: Collection[str]) -> None:
    """Check that no task of that name is learned already.

    Raises:
        TaskError: one is.
    """
    if name in tasks:
        raise TaskError(f"cannot learn task '{name}': a task of that name is learned already. Choose another name.")


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
    forms: Forms,
    generator: torch.Generator,
) -> TaskData:
    """Bring a task's data into one form and check it, before anything is trained.

    Args:
        name: of the task, for messages.
        train: training data.
        validation: validation data; read into memory, so that it is the same at every look.
        n_classes: None takes one more than the largest label seen.
        config: its batch size.
        forms: what the examples of each input must look like.
        generator: chooses the sample.

    Raises:
        DataError: what is wrong with which data, and what to do.
    """
    what, what_held_out = f"training data of task '{name}'", f"validation data of task '{name}'"
    read_once = bool(getattr(train, "deterministic", False))
    whole = examples(train, what, config, training=not read_once, n_inputs=len(forms))
    # A user's loader may draw from the global generator: it is given a seed for the while, and left as it was.
    with seeds.drawing_from(generator):
        if read_once:
            whole = in_memory(whole, what)
        held_out = in_memory(examples(validation, what_held_out, config, n_inputs=len(forms)), what_held_out)
        sample = _sample(whole, generator, what)
        if isinstance(whole, StreamExamples) and whole.n_batches is None:  # the course of the learning rate needs to know
            whole = replace(whole, counted=sum(1 for _ in whole.batches(0, generator)))
    for part, text in ((whole, what), (held_out, what_held_out), (sample, what)):
        check(part, text, forms)
    whole, held_out, sample = _long(whole), _long(held_out), _long(sample)
    known = [part for part in (whole, held_out, sample) if isinstance(part, TensorExamples)]
    if n_classes is None:
        n_classes = 1 + max(int(part.y.max()) for part in known)
    check_n_classes(name, n_classes)
    for part in known:
        check_labels(part.y, n_classes, what_held_out if part is held_out else what)
    seen = whole if isinstance(whole, TensorExamples) else sample
    check_several(name, seen.y)
    if isinstance(whole, StreamExamples):
        whole = replace(whole, forms=forms)
    return TaskData(whole, held_out, sample, int(n_classes))


def _long(part: Any) -> Any:
    """Return examples with int64 labels, as the loss wants them."""
    return TensorExamples(part.x, part.y.long()) if isinstance(part, TensorExamples) else part


def _sample(train: Examples, generator: torch.Generator, what: str) -> TensorExamples:
    """Return up to `SAMPLE` training examples: a random choice, or of a stream the first ones it gives."""
    if isinstance(train, TensorExamples):
        if any(part.dim() == 0 for part in parts(train.x)):
            return train  # refused by `check`
        n = length(train.x)
        places = torch.randperm(n, generator=generator)[:SAMPLE]
        return TensorExamples(take(train.x, places), train.y[places] if train.y.dim() and len(train.y) == n else train.y)
    pairs: list[tuple[Inputs, Tensor]] = []
    for _, x, y in train.batches(0, generator):
        pairs.append((x, y))
        if sum(length(x) for x, _ in pairs) >= SAMPLE:
            break
    return _joined(pairs, what)
