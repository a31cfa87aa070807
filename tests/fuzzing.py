"""What is fuzzed, by hypothesis (tests/test_fuzz.py) and guided by coverage (benchmarks/fuzz.py): each reader with what it may raise.

A target takes bytes, and returns or raises what its reader documents; anything else is a finding.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save

from clnp import rundir
from clnp.describe import open_ledger
from clnp.entries import Learned, read_head, read_record
from clnp.errors import ClnpError
from clnp.files import digest
from clnp.ledger import Addition, FileEntry, chained, create, extend
from clnp.parsing import parse_json, parse_yaml
from clnp.report import read_run
from clnp.tensorfile import index_arrays, tensor_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

STORED = Path(__file__).parent / "stored"


@functools.cache
def scratch() -> Path:
    """A directory in memory, if there is one."""
    shm = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=shm if os.access(shm, os.W_OK) else None))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def model() -> Path:
    """A model directory of the present format, whose network nobody has."""
    path = scratch() / "model"
    description = {
        "format": 3, "graph": "0" * 64, "groups": {"a": 4}, "inputs": [{"shape": [3], "dtype": "float32"}], "seed": 0, "head": None,
        "tensors": {}, "versions": {},
    }  # fmt: skip
    content = json.dumps(description).encode()
    ledger = create(path, {"model.json": content, "constants.safetensors": tensors()})
    for number, name in enumerate(("one", "zwei ß")):
        data = tensors()
        fields = {"task": name, "file": number, "content": FileEntry(bytes=len(data), sha256=digest(data)), "tensors": tensor_table(data)}
        addition = Addition(Learned, {**fields, "n_classes": 2, "head": "multi", "private": False})
        ledger = extend(ledger, *chained(ledger, [addition]), {number: data})
    return path


@functools.cache
def legacy() -> Path:
    """A model directory of format 2."""
    return Path(shutil.copytree(STORED / "two", scratch() / "legacy"))


@functools.cache
def a_run() -> Path:
    """A run directory."""
    path = scratch() / "run"
    path.mkdir()
    config = {"benchmark": "digits", "method": "clnp", "model": "mlp-small", "seed": 0, "n_tasks": 2, "learn": {"lr": 0.1, "epochs": 2}}
    rundir.claim(path, config)
    task = {"name": "a", "n_classes": 2, "classes": ["0", "1"], "details": {}}
    rundir.append_event(path, {"event": "run_started", **config, "tasks": [task, task | {"name": "b"}], "scenario": "task-incremental"})
    rundir.append_event(path, {"event": "epoch", "task": "a", "phase": "train", "epoch": 1, "epochs": 2, "loss": 0.5})
    rundir.append_event(path, {"event": "task_learned", "task": "a", "index": 0, "seconds": 1.0, "claimed": {"x": 3}, "free": {"x": 1}})
    rundir.append_event(path, {"event": "evaluated", "after": 0, "accuracies": [0.5]})
    summary = {"tasks": ["a"], "accuracy_matrix": [[0.5]], "average_accuracy": 0.5, "forgetting": 0.0, **config}
    rundir.write_summary(path, summary)
    return path


@functools.cache
def tensors() -> bytes:
    return save(
        {"rows/a": torch.ones(2, 3), "claimed/a": torch.tensor([0, 2]), "none": torch.zeros(0, 4), "b": torch.zeros(2, dtype=torch.bool)}
    )


def in_place_of(directory: Callable[[], Path], name: str, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    """Read a directory with other bytes in one of its files."""

    def target(content: bytes) -> None:
        path = directory() / name
        before = path.read_bytes()
        try:
            path.write_bytes(content)
            read(directory())
        except ClnpError:
            if content == before:
                raise
        finally:
            path.write_bytes(before)

    return target


def valued(read: Callable[[bytes], object], whole: Callable[[], bytes]) -> Callable[[bytes], None]:
    """Read bytes with a reader that raises ValueError, but not for what is whole."""

    def target(content: bytes) -> None:
        try:
            read(content)
        except ValueError as error:
            if content == whole() or len(str(error)) > 5000:  # a message is for a person
                raise RuntimeError from error

    return target


def tensors_read(content: bytes) -> None:
    table = tensor_table(content)
    index_arrays(content)
    assert sum(entry.n_bytes for entry in table.values()) <= len(content)


def events_read(run: Path) -> None:
    """The experiment's reader, then the report's."""
    with contextlib.suppress(ClnpError):
        rundir.read_events(run)
    read_run(run)


def config_read(run: Path) -> None:
    with contextlib.suppress(ClnpError):
        rundir.read_config(run)
    read_run(run)


def first(name: str, directory: Callable[[], Path]) -> Callable[[], bytes]:
    """The content of a file whose directory is made when it is asked for."""

    def read() -> bytes:
        return (directory() / name).read_bytes()

    return read


def a_record() -> bytes:
    return first("log.jsonl", model)().splitlines()[1]


PLACES: Mapping[str, tuple[Callable[[], Path], str, Callable[[Path], object]]] = {
    "model.json": (model, "model.json", open_ledger),
    "log.jsonl": (model, "log.jsonl", open_ledger),
    "HEAD": (model, "HEAD", open_ledger),
    "model.json of format 2": (legacy, "model.json", open_ledger),
    "task of format 2": (legacy, "tasks/000.safetensors", open_ledger),
    "config.yaml": (a_run, "config.yaml", config_read),
    "events.jsonl": (a_run, "events.jsonl", events_read),
    "summary.json": (a_run, "summary.json", read_run),
}
READERS: Mapping[str, tuple[Callable[[bytes], object], Callable[[], bytes]]] = {
    "record": (read_record, a_record),
    "head": (read_head, first("HEAD", model)),
    "safetensors": (tensors_read, tensors),
    "json": (parse_json, first("model.json", legacy)),
    "yaml": (parse_yaml, first("config.yaml", a_run)),
}
TARGETS: Mapping[str, tuple[Callable[[bytes], None], Callable[[], bytes]]] = {
    **{name: (in_place_of(*place), first(place[1], place[0])) for name, place in PLACES.items()},
    **{name: (valued(*reader), reader[1]) for name, reader in READERS.items()},
}
"""Name -> what reads bytes, and what makes bytes that are whole."""
