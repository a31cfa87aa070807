"""Safetensors files that anybody may have sent: the header is judged before anything is allocated.

A safetensors file is eight bytes (the header's length, little-endian), the header (JSON: name -> dtype, shape, the bytes from where
to where), and the tensors' bytes. Nothing in it is ever executed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from clnp.files import digest
from clnp.parsing import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_HEADER = 2**24
"""Bytes."""
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 16
N_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of one element."""


class TensorEntry(BaseModel):
    """What is written down of one tensor: its dtype by its safetensors name, its shape, the SHA-256 of its bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    dtype: str
    shape: list[int] = Field(max_length=MAX_DIMENSIONS)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def n_bytes(self) -> int:
        """How many bytes the tensor has."""
        return math.prod(self.shape) * N_BYTES[self.dtype]


def tensor_table(content: bytes) -> dict[str, TensorEntry]:
    """Return what a safetensors file holds, in the order of its bytes.

    Raises:
        ValueError: it is no safetensors file, or one that our own programs never write: too long a header, too many tensors or
            dimensions, an unknown dtype, sizes that do not fit the file, gaps, bytes that belong to no tensor.
    """
    return {name: TensorEntry(dtype=dtype, shape=shape, sha256=digest(data)) for name, (dtype, shape, data) in _tensors(content).items()}


def check_header(content: bytes) -> None:
    """Judge a safetensors file whose bytes are known to be right: as `tensor_table`, but nothing is hashed again.

    Raises:
        ValueError: as of `tensor_table`.
    """
    _tensors(content)


def index_arrays(content: bytes) -> dict[str, np.ndarray]:
    """Return the int64 tensors of a safetensors file as arrays: lists of units, read without torch.

    Raises:
        ValueError: as of `tensor_table`.
    """
    return {
        name: np.frombuffer(data, dtype="<i8").reshape(shape) for name, (dtype, shape, data) in _tensors(content).items() if dtype == "I64"
    }


def _tensors(content: bytes) -> dict[str, tuple[str, list[int], memoryview]]:
    """Return dtype, shape and bytes of each tensor of a file that is found in order."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8 or length > MAX_HEADER:
        msg = f"it is no safetensors file: its header would take {length:,} of {len(content):,} bytes"
        raise ValueError(msg)
    header = parse_json(content[8 : 8 + length])
    if not isinstance(header, dict):
        msg = "it is no safetensors file: its header is no object"
        raise ValueError(msg)  # noqa: TRY004  # what a file says is no matter of types
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if len(entries) > MAX_TENSORS:
        msg = f"expected at most {MAX_TENSORS:,} tensors, found {len(entries):,}"
        raise ValueError(msg)
    found: list[tuple[int, str, str, list[int], memoryview]] = []
    data = memoryview(content)[8 + length :]
    for name, entry in entries.items():
        dtype, shape, start, stop = _entry(name, entry, len(data))
        found.append((start, name, dtype, shape, data[start:stop]))
    found.sort(key=lambda item: item[0])
    end = 0
    for start, name, _, _, part in found:
        if start != end:
            msg = f"tensor '{name[:60]}' begins at byte {start:,}, but the one before it ends at {end:,}"
            raise ValueError(msg)
        end += len(part)
    if end != len(data):
        msg = f"{len(data) - end:,} bytes at its end belong to no tensor"
        raise ValueError(msg)
    return {name: (dtype, shape, part) for _, name, dtype, shape, part in found}


def _entry(name: str, entry: object, n_bytes: int) -> tuple[str, list[int], int, int]:
    """Return dtype, shape and place of one tensor, if they fit each other and the file."""
    if isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}:
        dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = isinstance(shape, list) and isinstance(place, list) and all(type(n) is int and 0 <= n < 2**48 for n in [*shape, *place])
        if whole and isinstance(dtype, str) and dtype in N_BYTES and len(place) == 2 and len(shape) <= MAX_DIMENSIONS:
            start, stop = place
            if start <= stop <= n_bytes and stop - start == math.prod(shape) * N_BYTES[dtype]:
                return dtype, shape, start, stop
    msg = f"tensor '{name[:60]}' is not described as it should be: {str(entry)[:120]}"
    raise ValueError(msg)
