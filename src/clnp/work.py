"""The training state of one task in a directory, so that a killed process goes on where it was.

It lies apart from the model and is disposable: without it a task is learned anew, from the same seeds to the same bits. Learning is
replayed: the code runs from the top as always, and each long phase asks here for its outcome, or for the state in the middle of it.

A file is safetensors with a JSON text among its metadata. It carries a checksum of its content, and a key: the hash of everything that
the result depends on. What is damaged, or of another key, is thrown away with a notice. Nothing is read with pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from clnp import __version__, stopping
from clnp.errors import first_line
from clnp.files import write_atomic
from clnp.inputs import parts
from clnp.sources import Examples, StreamExamples

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from os import PathLike

Json = dict[str, Any]

SAVE_SECONDS = 10.0
"""Training that a kill may cost: the state is saved when so much time has passed since it was saved last."""
SHARE = 20
"""Saving takes at most one in so many seconds, however large the network."""
TIME = "time"
"""The file that holds no state, only the time that the task has taken."""
OWN = re.compile(r"work-([a-z]+(?:-\d+)?)\.safetensors(\.new)?")


@dataclass(frozen=True)
class State:
    """What is kept of one phase.

    Attributes:
        phase: "train-0", "select-1", "finetune-1".
        finished: whether this is its outcome, or a state in the middle of it.
        facts: plain numbers and text.
        tensors: by name.
        seconds: wall time that the task had taken by then, over all processes.
        cpu_seconds: processor time.
    """

    phase: str
    finished: bool
    facts: Json
    tensors: dict[str, Tensor] = field(repr=False)
    seconds: float = 0.0
    cpu_seconds: float = 0.0


class Work:
    """Where the training state of one task is kept; without a directory, or before `open`, nowhere.

    As a context manager it notes the time that a task took when the block ends with an error.

    Args:
        directory: it need not exist. Only files that this class wrote are ever removed from it.
        progress: told what was found and what went wrong.
    """

    def __init__(self, directory: str | PathLike[str] | None = None, progress: Callable[[Json], None] | None = None) -> None:
        self.directory = None if directory is None else Path(directory)
        self.earlier = (0.0, 0.0)  # wall and CPU seconds that earlier processes spent on this task
        self._progress = progress
        self._began = (time.perf_counter(), time.process_time())
        self._key: str | None = None
        self._found: dict[str, State] = {}  # states that no phase has asked for yet
        self._next = float("inf")
        self._warned = False

    def __enter__(self) -> Self:
        """Begin nothing: see `open`."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Note the time when learning was broken off, so that the costs of a resumed task are the whole ones."""
        if kind is not None:
            self._keep(State(TIME, True, {}, {}))

    def open(self, task: str, situation: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Find what earlier processes kept of exactly this task, and remove what is of no use.

        Args:
            task: its name.
            situation: everything that the result depends on, as JSON; versions, machine and threads are added.
            tensors: everything that it depends on, as tensors.
        """
        if self.directory is None:
            return
        threads, machine = torch.get_num_threads(), platform.machine()
        whole = {"task": task, "clnp": __version__, "torch": torch.__version__, "threads": threads, "machine": machine, **situation}
        self._key = digest(json.dumps(whole, sort_keys=True), tensors)
        useless: list[str] = []
        for path in _own_files(self.directory):
            try:
                state = _read(path, self._key)
            except _UselessError as reason:
                useless.append(f"{path.name} ({reason})")
                _remove(path)
            else:
                self._found[state.phase] = state
                self.earlier = max(self.earlier, (state.seconds, state.cpu_seconds))
        if useless:
            self._notice(f"training state in '{self.directory}' is not used, and was removed: {', '.join(useless)}.")
        self._next = time.monotonic() + SAVE_SECONDS
        if self._found:
            self._tell_resumed(task)

    def _tell_resumed(self, task: str) -> None:
        """Tell where learning goes on."""
        if self._progress is None:
            return
        phases = [state for state in self._found.values() if state.phase != TIME]
        last = max(phases, key=lambda state: state.seconds, default=None)
        phase, _, number = last.phase.partition("-") if last else ("", "", "")
        event = {
            "event": "task_resumed",
            "task": task,
            "phase": phase or None,
            "round": int(number or 0),
            "epoch": last.facts.get("epoch", 0) if last else 0,
            "epochs_done": sum(state.facts.get("epoch", 0) for state in phases),
            "seconds": self.earlier[0],
            "cpu_seconds": self.earlier[1],
        }
        self._progress(event)

    def recall(self, phase: str) -> State | None:
        """Return what an earlier process kept of a phase. When there is nothing, what came after it goes, too: it rests on it."""
        if phase in self._found:
            return self._found.pop(phase)
        for name in [name for name in self._found if name != TIME]:
            del self._found[name]
            _remove(self._path(name))
        return None

    def due(self) -> bool:
        """Tell whether it is time to save."""
        return time.monotonic() >= self._next

    def check(self) -> None:
        """Between parts of a phase that has no state of its own: note the time when it is due, and stop when a signal asks for it."""
        if self.due():
            self._keep(State(TIME, True, {}, {}))
        stopping.check()

    def keep(self, phase: str, facts: Json, tensors: Mapping[str, Tensor], *, finished: bool) -> None:
        """Save the state of a phase. What goes wrong with it is told once, and changes nothing.

        Args:
            phase: its name.
            facts: plain numbers and text; floats are kept to the last bit.
            tensors: left as they are.
            finished: whether this is the outcome of the phase.
        """
        # Copies: tensors that share memory cannot be written, and names that tie two of them need not be known here.
        self._keep(State(phase, finished, facts, {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}))

    def _keep(self, state: State) -> None:
        if self.directory is None or self._key is None:
            return
        began = time.monotonic()
        seconds, cpu_seconds = self.spent()
        facts = {"phase": state.phase, "finished": state.finished, "facts": state.facts, "seconds": seconds, "cpu_seconds": cpu_seconds}
        text = json.dumps({"key": self._key, **facts})
        tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            data = save(tensors, {"state": text, "sha256": digest(text, tensors)})
            write_atomic(self._path(state.phase), data, durable=False)
        except (OSError, SafetensorError) as error:
            if not self._warned:
                self._warned = True
                self._notice(
                    f"cannot keep the training state in '{self.directory}': {first_line(error)}. "
                    f"Training goes on; a kill would cost this task more than {SAVE_SECONDS:g} seconds."
                )
        now = time.monotonic()
        self._next = now + max(SAVE_SECONDS, SHARE * (now - began))

    def spent(self) -> tuple[float, float]:
        """Return the wall and the CPU seconds that the task has taken, over all processes."""
        wall, cpu = self._began
        return self.earlier[0] + time.perf_counter() - wall, self.earlier[1] + time.process_time() - cpu

    def _path(self, phase: str) -> Path:
        assert self.directory is not None
        return self.directory / f"work-{phase}.safetensors"

    def _notice(self, message: str) -> None:
        if self._progress is not None:
            self._progress({"event": "notice", "message": message})


class _UselessError(Exception):
    """A file that cannot be used; the message says why."""


def clear(directory: str | PathLike[str]) -> None:
    """Remove what was kept, when the task is saved elsewhere, and the directory if nothing else is in it."""
    for path in _own_files(Path(directory)):
        _remove(path)
    with contextlib.suppress(OSError):
        Path(directory).rmdir()


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a text and of tensors: their names, dtypes, shapes and bits."""
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def fingerprint(**data: Examples) -> tuple[Json, dict[str, Tensor]]:
    """Return, as JSON and as tensors, what tells a task's data from others.

    Of examples in memory that is all they hold: a single one that was mended makes another task. Of a stream only the kind of its loader is
    known; the examples that were read of it before training tell the rest.
    """
    facts: Json = {}
    tensors: dict[str, Tensor] = {}
    for name, part in data.items():
        if isinstance(part, StreamExamples):
            facts[name] = type(part.loader).__qualname__
            continue
        facts[name] = [[str(x.dtype), list(x.shape)] for x in (*parts(part.x), part.y)]
        tensors[f"{name}.y"] = part.y
        tensors |= {f"{name}.x.{place}": x for place, x in enumerate(parts(part.x))}
    return facts, tensors


def _own_files(directory: Path) -> list[Path]:
    """Return the files that this module wrote, temporary ones that a kill left among them."""
    try:
        return sorted(path for path in directory.iterdir() if OWN.fullmatch(path.name))
    except OSError:  # there is no such directory, or none that can be read
        return []


def _remove(path: Path) -> None:
    """Remove a file; one that cannot be removed is in nobody's way."""
    with contextlib.suppress(OSError):
        path.unlink()


def _read(path: Path, key: str) -> State:
    """Read a state and verify it.

    Raises:
        _UselessError: it is damaged, cannot be read, or is of another task or setting.
    """
    name = OWN.fullmatch(path.name)
    if name is None or name[2]:
        raise _UselessError("it was never finished")
    try:
        data = path.read_bytes()
        tensors = load(data)
        meta = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if meta["sha256"] != digest(meta["state"], tensors):
            raise _UselessError("it is damaged")
        state = json.loads(meta["state"])
    except OSError as error:
        raise _UselessError(f"it cannot be read: {first_line(error)}") from error
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _UselessError("it is damaged") from error
    if state.pop("key") != key or state["phase"] != name[1]:
        raise _UselessError("it is of another task, setting, version or number of threads")
    return State(**state, tensors=tensors)
