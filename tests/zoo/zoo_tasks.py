"""Three small real tasks for each network of the zoo: pairs of handwritten digits, and pairs of kinds of text.

Nothing is downloaded: the digits come with clnp, the text with Python.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from zoo_language import LENGTH

from clnp.data.digits import load_digits

if TYPE_CHECKING:
    from collections.abc import Callable

    from zoo_entry import Entry, Input

    Task = tuple[Input, Tensor, Input, Tensor]

PAIRS = ((0, 1), (2, 7), (4, 5))
# Lines of these modules of the standard library: prose against code, and tables of several forms.
MODULES = (("turtle", "encodings.aliases"), ("_pydecimal", "encodings.cp1252"), ("html.entities", "argparse"))
N_TRAIN = 240
N_LINES = 190  # of each module


def as_images(x: Tensor) -> Tensor:
    return x


def as_volumes(x: Tensor) -> Tensor:
    """Four frames of an image that moves to the right: (n, 1, 4, 8, 8)."""
    return torch.stack([x.roll(shift, -1) for shift in range(4)], 2)


def as_rows(x: Tensor) -> Tensor:
    """Eight steps (or channels) of eight numbers: (n, 8, 8)."""
    return x[:, 0]


def as_halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The upper half as an image, the lower half as numbers: (n, 1, 4, 8) and (n, 32)."""
    return x[:, :, :4], x[:, :, 4:].flatten(1)


FORMS: dict[tuple[tuple[int, ...], ...], Callable[[Tensor], Input]] = {
    ((1, 8, 8),): as_images,
    ((1, 4, 8, 8),): as_volumes,
    ((8, 8),): as_rows,
    ((1, 4, 8), (32,)): as_halves,
}


@functools.cache
def digit_pairs() -> list[tuple[Tensor, Tensor]]:
    """Return for each task all its images (n, 1, 8, 8), in a random order, and their classes 0 and 1."""
    source = load_digits()
    x = torch.cat([source.x_train, source.x_test]).float() / 16
    y = torch.cat([source.y_train, source.y_test])
    pairs = []
    for number, (a, b) in enumerate(PAIRS):
        chosen = ((y == a) | (y == b)).nonzero().flatten()
        chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(number))]
        pairs.append((x[chosen], (y[chosen] == b).long()))
    return pairs


def lines_of(module: str) -> list[str]:
    """Return the lines of a module's source that are neither short nor repeated."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    lines = Path(spec.origin).read_text(encoding="utf-8").splitlines()
    return [line for line in dict.fromkeys(line.strip() for line in lines) if len(line) >= LENGTH]


def encode(line: str) -> Tensor:
    """Return the first characters of a line as numbers: 0 to 94 for those of ASCII that print, 95 for all others."""
    return torch.tensor([code - 32 if 32 <= (code := ord(character)) < 127 else 95 for character in line[:LENGTH]])


@functools.cache
def text_pairs() -> list[tuple[Tensor, Tensor]]:
    """Return for each task lines of text (n, LENGTH), in a random order, and which of two modules they come from."""
    pairs = []
    for number, modules in enumerate(MODULES):
        generator = torch.Generator().manual_seed(number)
        kinds = []
        for module in modules:
            lines = lines_of(module)
            chosen = torch.randperm(len(lines), generator=generator)[:N_LINES]
            kinds.append(torch.stack([encode(lines[place]) for place in chosen.tolist()]))
        x, y = torch.cat(kinds), torch.cat([torch.full((len(kind),), label) for label, kind in enumerate(kinds)])
        order = torch.randperm(len(y), generator=generator)
        pairs.append((x[order], y[order]))
    return pairs


def cut(x: Input, start: int, stop: int | None) -> Input:
    """Cut examples out of an input."""
    return tuple(part[start:stop] for part in x) if isinstance(x, tuple) else x[start:stop]


def tasks_for(entry: Entry) -> list[Task]:
    """Return three tasks in the form that a network reads: (x_train, y_train, x_val, y_val), two classes each."""
    example = entry.example(1)
    parts = example if isinstance(example, tuple) else (example,)
    if parts[0].dtype == torch.int64:
        pairs: list[tuple[Input, Tensor]] = list(text_pairs())
    else:
        form = FORMS[tuple(tuple(part.shape[1:]) for part in parts)]
        pairs = [(form(x), y) for x, y in digit_pairs()]
    return [(cut(x, 0, N_TRAIN), y[:N_TRAIN], cut(x, N_TRAIN, None), y[N_TRAIN:]) for x, y in pairs]


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Return the fraction of examples whose largest logit is that of their class."""
    return float((logits.argmax(1) == y).float().mean())


def loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy."""
    return F.cross_entropy(logits, y)
