"""What a ledger writes down: one record for each commit, chained by hashes, in exactly one spelling.

A record is one line of `log.jsonl`: a JSON object with sorted keys and no spaces, ASCII, ended by a newline. Its hash is the SHA-256 of
the line without the newline, and stands in the next record as `previous`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

from clnp.names import clean_name
from clnp.parsing import parse_json
from clnp.tensorfile import TensorEntry  # noqa: TC001  # pydantic reads it when the module is loaded

FORMAT = 3
MODEL = "model.json"
START = "0" * 64
"""What stands as `previous` in the first record."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**48)]


class Strict(BaseModel):
    """The base of everything that is read: immutable, nothing converted, nothing more than is known."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class FileEntry(Strict):
    """A file as it was committed."""

    bytes: Count
    sha256: Sha256


class Link(Strict):
    """What every record has: its number from 0, when it was written (seconds since 1970), and the hash of the record before."""

    number: Count
    time: float
    previous: Sha256


class Created(Link):
    """The first record: the files that describe the network, by name."""

    kind: Literal["created"] = "created"
    files: dict[Literal["model.json", "constants.safetensors", "probe.safetensors"], FileEntry]


class Learned(Link):
    """A task was learned.

    Attributes:
        task: its name, which is data.
        file: the number of its file, `tasks/NNN.safetensors`; no number is ever used twice.
        content: size and hash of that file.
        tensors: what the file holds.
        n_classes: how many classes its predictor tells apart.
        head: "multi" or "single".
        private: whether later tasks are kept from reading its units.
        width: how often the network had been widened.
        settings: under which its receipt was made, see `clnp.receipts`; None where it has none.
        outcome: what it achieved and gave up, fractions of validation examples.
    """

    kind: Literal["learned"] = "learned"
    task: str
    file: Count
    content: FileEntry
    tensors: dict[str, TensorEntry]
    n_classes: Count
    head: Literal["multi", "single"]
    private: bool
    width: Count = 0
    settings: dict[str, str | int] | None = None
    outcome: dict[str, float] = Field(default_factory=dict)

    @field_validator("task")
    @classmethod
    def _is_clean(cls, task: str) -> str:
        if clean_name(task) != task:
            msg = "a name is stored in its composed form (NFC)"
            raise ValueError(msg)
        return task


class Undone(Link):
    """A tombstone: the task of record `record` is no more; `purged` tells that its file was deleted, too."""

    kind: Literal["undone"] = "undone"
    record: Count
    task: str
    purged: bool


class Widened(Link):
    """The network was given more units: group -> how many."""

    kind: Literal["widened"] = "widened"
    added: dict[str, Annotated[int, Field(gt=0, lt=2**31)]]


Record = Annotated[Created | Learned | Undone | Widened, Field(discriminator="kind")]
_RECORD: TypeAdapter[Created | Learned | Undone | Widened] = TypeAdapter(Record)


class Head(Strict):
    """The content of `HEAD`: the newest record that counts."""

    format: Literal[3] = FORMAT
    record: Count
    sha256: Sha256

    def line(self) -> bytes:
        """Return the file's content."""
        return spelled(self) + b"\n"


def spelled(value: BaseModel) -> bytes:
    """Return the one spelling of a record."""
    return json.dumps(value.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def read_record(line: bytes) -> Any:
    """Return the record of one line (without its newline).

    Raises:
        ValueError: it is none, or is spelled in another way.
    """
    parse_json(line)  # bounded, before pydantic reads it
    record = _RECORD.validate_json(line)
    if spelled(record) != line:
        msg = "it is not spelled as records are"
        raise ValueError(msg)
    return record


def read_head(content: bytes) -> Head:
    """Return what HEAD says.

    Raises:
        ValueError: it is damaged.
    """
    head = Head.model_validate_json(content)
    if head.line() != content:
        msg = "it is not spelled as HEAD is"
        raise ValueError(msg)
    return head
