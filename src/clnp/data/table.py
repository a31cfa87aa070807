"""The user's own examples from CSV and NPZ files."""

from __future__ import annotations

import csv
import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from clnp.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Float32, Int64
    from numpy.typing import NDArray

MAX_BYTES = 2**34
"""Of one array of an archive, unpacked."""


def load_csv(
    path: str | Path, label: str | int = "label", *, classes: Sequence[str] | None = None, delimiter: str = ","
) -> tuple[Float32[Tensor, "n d"], Int64[Tensor, " n"]]:
    r"""Load examples from a CSV file, one a line, every column but the label's a number.

    Args:
        path: a UTF-8 text file.
        label: the label's column: its name in the first line, or its number, from 0 (negative: from the end), in a file that has
            no line of names.
        classes: class names, when labels are text: the label is the place in this list. They must be given, not gathered from the
            file, or two files of one data set could number the same class differently. None: labels are whole numbers from 0.
        delimiter: what separates the columns.
    Returns: x, the other columns in their order, as they are; and y.

    Raises:
        DataError: the file is missing, empty or ragged, or a value is no finite number; the message names the line.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name, "iris.csv")
    >>> _ = path.write_text("width,label\n0.5,rose\n1.5,lily\n")
    >>> load_csv(path, classes=["lily", "rose"])
    (tensor([[0.5000],
            [1.5000]]), tensor([1, 0]))
    >>> folder.cleanup()
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _parse_csv(path, csv.reader(file, delimiter=delimiter), label, classes)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"cannot read {path} as CSV: {error}. Give a readable UTF-8 text file with one example a line."
        raise DataError(msg) from error


def _parse_csv(
    path: Path, reader: Iterator[list[str]], label: str | int, classes: Sequence[str] | None
) -> tuple[Float32[Tensor, "n d"], Int64[Tensor, " n"]]:
    names = next(reader, []) if isinstance(label, str) else None
    if names is not None and label not in names:
        msg = f"cannot read {path}: expected a column '{label}' for the label, found the columns {', '.join(names)[:300] or '(none)'}. "
        raise DataError(msg + "Name the label's column, or give its number if the file has no line of names.")
    numbers = {name: label for label, name in enumerate(classes or ())}
    width = None if names is None else len(names)
    rows: list[NDArray[np.float32]] = []
    labels: list[int] = []
    for number, cells in enumerate(reader, start=1 if names is None else 2):
        if not cells:  # a blank line
            continue
        where = f"{path}, line {number}"
        width = len(cells) if width is None else width
        if len(cells) != width:
            msg = f"cannot read {where}: expected {width} columns as in the lines before, found {len(cells)}. Mend or delete the line."
            raise DataError(msg)
        column = label if isinstance(label, int) else (names or []).index(label)
        if not -width <= column < width:
            msg = f"cannot read {where}: expected a label in column {column}, found {width} columns, which count from 0."
            raise DataError(msg)
        labels.append(_parse_label(where, cells.pop(column), numbers))
        rows.append(_parse_numbers(where, cells))
    if not rows or not rows[0].size:
        msg = f"cannot read {path}: expected at least one line with a label and one number, found {len(rows)} lines."
        raise DataError(msg)
    return torch.from_numpy(np.stack(rows)), torch.tensor(labels)


def _parse_label(where: str, text: str, numbers: dict[str, int]) -> int:
    text = text.strip()
    if numbers:
        if text in numbers:
            return numbers[text]
        msg = f"cannot read {where}: expected one of the classes {', '.join(numbers)[:300]} as label, found '{text}'. Add it to `classes`."
        raise DataError(msg)
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        msg = f"cannot read {where}: expected a whole number from 0 as label, found '{text}'. "
        raise DataError(msg + "If labels are names, give them in their order: classes=['cat', 'dog'].")
    return int(text)


def _parse_numbers(where: str, cells: list[str]) -> NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):  # too large for float32: infinite, and refused below
            row = np.asarray(cells, dtype=np.float64).astype(np.float32)
    except ValueError:
        row = np.full(len(cells), np.nan, dtype=np.float32)
    if np.isfinite(row).all():
        return row
    bad = next((cell for cell in cells if not _is_finite(cell)), "")
    msg = f"cannot read {where}: expected finite numbers beside the label, found '{bad}'. Fill the gap, or leave the column or line out."
    raise DataError(msg)


def _is_finite(cell: str) -> bool:
    try:
        with np.errstate(over="ignore"):
            return bool(np.isfinite(np.float32(cell)))
    except ValueError:
        return False


def load_npz(path: str | Path, x: str = "x", y: str = "y") -> tuple[Float32[Tensor, "n ..."], Int64[Tensor, " n"]]:
    """Load examples from a NumPy .npz archive; arrays of Python objects, which NumPy would unpickle, are refused.

    Args:
        path: the archive.
        x: the name of the array of examples, (n, ...), numbers. Values are kept as they are: divide images of bytes by 255 yourself.
        y: the name of the array of labels, (n,), whole numbers from 0.
    Returns: x as float32 and y as int64.

    Raises:
        DataError: the file or an array is missing or damaged, lengths differ, or values are not finite numbers and labels.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            found = list(archive.files) if isinstance(archive, np.lib.npyio.NpzFile) else []
            _check_sizes(file, [name for name in (x, y) if name in found])
            arrays = [archive[name] for name in (x, y) if name in found]
    except (OSError, ValueError, EOFError, MemoryError, OverflowError, zlib.error, zipfile.BadZipFile) as error:
        msg = f"cannot read {path} as NPZ: {error}. Give an archive of plain number arrays, as numpy.savez writes."
        raise DataError(msg) from error
    if len(arrays) != 2:
        msg = f"cannot read {path}: expected an archive with arrays '{x}' and '{y}', found {', '.join(found) or 'none'}. "
        raise DataError(msg + "Say what they are called: load_npz(path, x=..., y=...).")
    examples, labels = arrays
    _check_arrays(path, examples, labels)
    return torch.from_numpy(examples.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))


def _check_sizes(file: IO[bytes], names: Sequence[str]) -> None:
    """Raise ValueError where an array claims to be larger than its place in the archive, or than `MAX_BYTES`, before it is made."""
    with zipfile.ZipFile(file) as archive:
        for name in names:
            info = archive.getinfo(name if name in archive.namelist() else f"{name}.npy")
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
            n_bytes = math.prod(shape) * dtype.itemsize
            if n_bytes > min(info.file_size, MAX_BYTES):
                msg = (
                    f"array '{name}' says that it has {n_bytes:,} bytes, in a member of {info.file_size:,} (at most {MAX_BYTES:,} are read)"
                )
                raise ValueError(msg)


def _check_arrays(path: Path, x: NDArray[np.generic], y: NDArray[np.generic]) -> None:
    """Raise DataError unless x holds finite numbers and y one label from 0 for each."""
    if x.dtype.kind not in "fiub" or y.dtype.kind not in "iu":
        msg = f"cannot use {path}: expected numbers as x and whole numbers as y, found {x.dtype} and {y.dtype}. Convert them before saving."
        raise DataError(msg)
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y) or x.size == 0:
        msg = f"cannot use {path}: expected x of shape (n, ...) and y of shape (n,), n > 0, found {x.shape} and {y.shape}."
        raise DataError(msg)
    with np.errstate(over="ignore"):
        broken = ~np.isfinite(x.astype(np.float32)).reshape(len(x), -1).all(1)
    if broken.any():
        msg = f"cannot use {path}: expected finite numbers, found NaN or infinity in {broken.sum()} of {len(x)} examples, "
        raise DataError(msg + f"first in example {broken.argmax()}. Clean them before saving.")
    if y.min() < 0:
        msg = f"cannot use {path}: expected labels from 0, found {y.min()}. Number the classes 0, 1, 2, ..."
        raise DataError(msg)
