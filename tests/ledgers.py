"""What the tests of the ledger share: a saboteur in place of the system, forged records, and a small ledger that needs no network."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save

import clnp
import clnp.files
import clnp.tensorfile
import small

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SETTINGS = {"epochs": 2, "finetune_epochs": 0, "rounds": 1, "batch_size": 32, "margin": 0.05, "pool": 0.4}
X = small.task(0, 40)[0]


# ---- learners


def learn(learner: clnp.Learner, name: str, number: int = 0, **settings: object) -> clnp.LearnResult:
    x, y = small.task(number)
    config = clnp.LearnConfig(**{**SETTINGS, **settings})  # pyright: ignore[reportArgumentType]
    return learner.learn(name, (x[:180], y[:180]), (x[180:], y[180:]), config=config)


@functools.cache
def _empty(network: str, seed: int) -> clnp.Learner:
    return clnp.Learner(small.network(network), torch.zeros(2, *small.SHAPE), seed=seed)


def empty(network: str = "mlp", seed: int = 0) -> clnp.Learner:
    """A learner of a network that is captured once."""
    return copy.deepcopy(_empty(network, seed))


def logits(learner: clnp.Learner) -> dict[str, torch.Tensor]:
    return {task: learner.predict(X, task=task) for task in learner.tasks}


# ---- the disk


class Killed(BaseException):
    """What a kill looks like from inside: nothing in the library may catch it, and nothing reaches the disk after it."""


class System:
    """Stands for `os` in `clnp.files`: writes down the calls that change the disk, and fails from one of them on.

    Args:
        stop: how many calls succeed; None: all of them.
        how: "full": that call alone fails with OSError. "killed": that call and all after it never happen. "torn": as killed, but
            half of what that call writes is on the disk.
    """

    def __init__(self, stop: int | None = None, how: str = "killed") -> None:
        self.stop, self.how, self.calls = stop, how, list[tuple[str, str]]()
        self.failed = False
        self._names: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)

        def call(*args: Any) -> Any:
            if name == "close":
                return real(*args)  # a dead process's descriptors are closed, too
            number = len(self.calls)
            self.calls.append((name, self._about(name, args)))
            if self.stop is not None and (number == self.stop or (self.failed and self.how != "full")):
                self.failed = True
                if self.how == "full":
                    raise OSError(28, "No space left on device")
                if self.how == "torn" and number == self.stop and name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                raise Killed
            return real(*args)

        return call

    @staticmethod
    def _about(name: str, args: tuple[Any, ...]) -> str:
        if name in ("write", "fsync", "ftruncate"):
            return str(Path(f"/proc/self/fd/{args[0]}").readlink())
        return str(args[-1] if name == "rename" else args[0])


def faults(patch: Any, act: Callable[[], None], before: Callable[[], None], how: str) -> Iterator[int]:
    """Do something again and again, each time with the next call failing, until none fails; gives the number of calls that succeeded."""
    for stop in range(1000):
        before()
        system = System(stop, how)
        with patch.context() as patched:
            patched.setattr(clnp.files, "system", system)
            try:
                act()
            except (clnp.StoreError, Killed):
                assert system.failed
        yield stop
        if not system.failed:
            return
    raise AssertionError


# ---- records


def lines_of(directory: Path) -> list[bytes]:
    return (directory / "log.jsonl").read_bytes().splitlines()


def records_of(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of(directory)]


def spell(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_log(directory: Path, lines: list[bytes], head: int | None = None) -> None:
    """Write a log, and HEAD for one of its records (the last)."""
    (directory / "log.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    head = len(lines) - 1 if head is None else head
    (directory / "HEAD").write_bytes(spell({"format": 3, "record": head, "sha256": sha256(lines[head])}) + b"\n")


def rechain(directory: Path, records: list[dict[str, Any]], head: int | None = None) -> list[bytes]:
    """Write records with right hashes, as one who knows the format would."""
    lines, previous = list[bytes](), "0" * 64
    for record in records:
        lines.append(spell({**record, "previous": previous}))
        previous = sha256(lines[-1])
    write_log(directory, lines, head)
    return lines


def entry(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": sha256(content)}


def forge(directory: Path, number: int, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change a task's file and write down its new hashes."""
    file = directory / "tasks" / f"{number:03d}.safetensors"
    tensors = load(file.read_bytes())
    change(tensors)
    file.write_bytes(content := save(tensors))
    records = records_of(directory)
    of = next(record for record in records if record["kind"] == "learned" and record["file"] == number)
    table = clnp.tensorfile.tensor_table(content)
    of |= {"content": entry(content), "tensors": {name: one.model_dump() for name, one in table.items()}}
    rechain(directory, records)


def edit_model(directory: Path, **changes: object) -> None:
    """Change model.json and write down its new hash."""
    model = {**json.loads((directory / "model.json").read_text()), **changes}
    (directory / "model.json").write_bytes(content := (json.dumps(model, indent=1, sort_keys=True) + "\n").encode())
    records = records_of(directory)
    records[0]["files"]["model.json"] = entry(content)
    rechain(directory, records)


def snapshot(directory: Path) -> dict[str, bytes]:
    """The content of every file but locks."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def restore(directory: Path, files: dict[str, bytes]) -> None:
    """Make a directory what it was."""
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        elif path != directory / "tasks":
            path.rmdir()
    (directory / "tasks").mkdir(exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
