"""What faults are injected into: a small learner with a few tasks, directories of it, and commits that are under way.

Everything is learned once, in the process that all others are forked from. The oracle is a file beside the model directory, to which a
child appends what was acknowledged, and only after `save` has returned: names of tasks, SHA-256 of their predictors' logits.
"""
# The benchmark looks inside, as the tests do.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import clnp
from clnp import store
from clnp.describe import Legacy, LegacyTask
from clnp.files import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from os import PathLike

Files = dict[str, bytes]
"""A directory: path -> content."""
State = tuple[tuple[str, str], ...]
"""Names of tasks, oldest first, and the SHA-256 of what their predictors answer."""
NAMES = ("one", "two", "three", "four")
MODEL = "model"
CONFIG = clnp.LearnConfig(epochs=2, finetune_epochs=0, rounds=1, batch_size=16, pool=0.25, margin=0.05, threads=1)
X = torch.randn(32, 8, generator=torch.Generator().manual_seed(99))
"""The fixed inputs that answers are compared on."""


def network() -> nn.Module:
    """Return the network, always the same one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU())


def data(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the examples of a task: x (60, 8), y (60,)."""
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(number))
    return x, (x[:, number % 8] > 0).long()


class Prepared(clnp.Learner):
    """A learner whose network is captured once, in the parent: capturing reads no file, and takes longer than all the rest of loading."""

    empty: clnp.Learner

    def __init__(self, model: nn.Module, example_input: Any, *, head: str | None = None, seed: int = 0, probe: Any = None) -> None:
        self._capture(model, example_input, head, seed, probe)

    def _capture(self, model: nn.Module, _example: Any, _head: str | None, seed: int, _probe: Any, **_: Any) -> nn.Module:
        self.__dict__.update(clone(Prepared.empty).__dict__)
        self.seed = seed
        return model

    def _see_forms(self, *_: Any) -> None:
        """They are those of the learner that was captured."""


def clone(learner: Any) -> Any:
    """Return an independent copy; the wiring, which nobody changes, is shared."""
    return copy.deepcopy(learner, {id(learner.wiring): learner.wiring})


def learn(learner: clnp.Learner, name: str, number: int | None = None, **settings: Any) -> clnp.LearnResult:
    """Teach a learner one of the tasks."""
    x, y = data(NAMES.index(name) if number is None else number)
    config = CONFIG.model_copy(update=settings) if settings else CONFIG
    return learner.learn(name, (x[:40], y[:40]), (x[40:], y[40:]), config=config)


def load(directory: str | PathLike[str]) -> clnp.Learner:
    """Read a learner as any program does."""
    return Prepared.load(directory, nn.Identity())


def state_of(learner: Step) -> State:
    """Return what a learner's predictors answer."""
    if isinstance(learner, Command):
        return learner.state
    return tuple((name, answer(learner, name)) for name in learner.tasks)


def answer(learner: clnp.Learner, name: str) -> str:
    """Return the SHA-256 of the logits of a task for the fixed inputs."""
    logits = learner.predict(X, task=name).contiguous()
    return hashlib.sha256(repr((name, tuple(logits.shape))).encode() + logits.numpy().tobytes()).hexdigest()[:20]


# ---- directories


def snapshot(directory: Path) -> Files:
    """Return the files below a directory, without locks."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.is_symlink() and not path.name.startswith(".")
    }


def lay(directory: Path, content: Mapping[str, bytes] | None) -> None:
    """Write a directory; None: there is none."""
    if content is None:
        return
    (directory / "tasks").mkdir(parents=True)
    for name, data in content.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)


# ---- commits under way


@dataclass(frozen=True)
class Command:
    """A commit that is no learner's: a patch that is applied, a task that is undone on the disk."""

    do: Callable[[Path], object]
    state: State
    done: str
    """What the message says where there is nothing left to do."""

    def save(self, directory: str | PathLike[str]) -> None:
        """Commit, unless that was done before."""
        try:
            self.do(Path(directory))
        except clnp.ClnpError as error:
            if self.done not in str(error):
                raise


Step = clnp.Learner | Command


@dataclass(frozen=True)
class Scenario:
    """Commits that a fault may hit.

    Attributes:
        name: for labels.
        base: the directory as it is before; None: there is none.
        steps: which learner is saved, and which of `states` is acknowledged when that has returned.
        states: what may be found, in their order: the first one is there before, the last one after all; None: nothing.
    """

    name: str
    base: Files | None
    steps: tuple[tuple[Step, int], ...]
    states: tuple[State | None, ...]

    @property
    def last(self) -> Step:
        """What is saved last."""
        return self.steps[-1][0]

    def prepare(self, root: Path) -> None:
        """Lay the directory as it is before."""
        lay(root / MODEL, self.base)

    def commit(self, root: Path, *, clean: bool = True) -> None:
        """Make the commits, and acknowledge each; what they raise is written down, and ends them.

        Args:
            root: of the case.
            clean: raise what was raised again, for a caller that goes on itself.
        """
        for learner, index in self.steps:
            try:
                learner.save(root / MODEL)
            except BaseException as error:
                say(root, error)
                if not clean:
                    raise
                return
            acknowledge(root, index, state_of(learner))


def acknowledge(root: Path, index: int, state: State) -> None:
    """Append to the oracle what was acknowledged."""
    descriptor = os.open(root / "oracle", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.write(descriptor, json.dumps([index, state]).encode() + b"\n")
    os.fsync(descriptor)
    os.close(descriptor)


def acknowledged(root: Path) -> tuple[int, State | None]:
    """Return the last thing that was acknowledged; 0 and None for nothing."""
    try:
        lines = (root / "oracle").read_text().splitlines()
    except FileNotFoundError:
        return 0, None
    if not lines:  # killed between making the file and writing to it
        return 0, None
    index, state = json.loads(lines[-1])
    return index, tuple((name, sha) for name, sha in state)


def say(root: Path, error: BaseException) -> None:
    """Write down an error that a program was given."""
    with (root / "said").open("a", encoding="utf-8") as file:
        file.write(json.dumps([type(error).__name__, isinstance(error, clnp.ClnpError), str(error)]) + "\n")


def said(root: Path) -> list[tuple[str, bool, str]]:
    """Return the errors that were written down."""
    try:
        lines = (root / "said").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [tuple(json.loads(line)) for line in lines]


@dataclass
class Stage:
    """Everything that was prepared."""

    learners: list[clnp.Learner]
    """After 0, 1, ... tasks."""
    states: list[State]
    bases: list[Files]
    rich: Files
    """A directory with a bit of everything: four tasks, one undone, one undone and purged, a probe, widened."""
    rich_state: State
    other: Files
    """The directory of another learner with tasks of the same names."""
    legacy: dict[int, Files]
    """Directories of formats 1 and 2 with two tasks."""
    scenarios: list[Scenario]


def prepare() -> Stage:
    """Learn all that is needed."""
    torch.set_num_threads(1)
    logging.getLogger("clnp").addHandler(logging.NullHandler())
    Prepared.empty = clnp.Learner(network(), torch.zeros(1, 8))
    scratch = Path(tempfile.mkdtemp(prefix="clnp-stage-"))
    try:
        return _prepare(scratch)
    finally:
        shutil.rmtree(scratch)


def _prepare(scratch: Path) -> Stage:
    learners: list[clnp.Learner] = [clone(Prepared.empty)]
    bases = [_saved(learners[0], scratch / "0")]
    for number, name in enumerate(NAMES, 1):
        learners.append(clone(learners[-1]))
        learn(learners[-1], name)
        shutil.copytree(scratch / str(number - 1), scratch / str(number))
        bases.append(_saved(learners[-1], scratch / str(number)))
    states = [state_of(learner) for learner in learners]
    rich, rich_state = _rich(scratch / "rich")
    other = clone(Prepared.empty)
    other.seed = 5
    for name in NAMES[:3]:
        learn(other, name)
    legacy = {version: _legacy(learners[2], version) for version in (1, 2)}
    stage = Stage(learners, states, bases, rich, rich_state, _saved(other, scratch / "other"), legacy, [])
    stage.scenarios += _scenarios(stage, scratch)
    return stage


def _saved(learner: clnp.Learner, directory: Path) -> Files:
    learner.save(directory)
    return snapshot(directory)


def _rich(directory: Path) -> tuple[Files, State]:
    learner = clone(Prepared.empty)
    learner._probe = X[:4]
    for name in NAMES[:2]:
        learn(learner, name)
    learn(learner, "undone", 5, private=True)
    learner.save(directory)
    learner.undo("undone")
    learn(learner, "purged", 6, private=True)
    learner.save(directory)
    learner.undo("purged", purge=True)
    learner.save(directory)
    learner = clnp.widen(learner, {"0": 4})
    for name in NAMES[2:]:
        learn(learner, name)
    return _saved(learner, directory), state_of(learner)


def _legacy(learner: clnp.Learner, version: int) -> Files:
    """Return what an older clnp wrote for a learner: no receipts, no log, one description that is rewritten."""
    found: Files = {}
    tasks: list[LegacyTask] = []
    for number, name in enumerate(learner.tasks):
        record = replace(learner._records[name], receipt=None)
        found[f"tasks/{number:03d}.safetensors"] = content = store.task_content(
            learner.wiring, learner._state, learner._allocation, name, record
        )
        tasks.append(
            LegacyTask(name=name, file=f"{number:03d}.safetensors", sha256=digest(content), n_classes=2, head="multi", private=False)
        )
    found["constants.safetensors"] = constants = store.save({})
    legacy = Legacy(
        graph=learner._graph,
        groups=dict(learner._allocation.n_units),
        seed=0,
        head=None,
        shape=[8],
        dtype="float32",
        constants=digest(constants),
        tasks=tasks,
        format=version,
    )
    bare = legacy.model_copy(update={"checksum": ""})
    sealed = legacy.model_copy(update={"checksum": digest(bare.model_dump_json().encode())})
    found["model.json"] = sealed.model_dump_json(indent=1).encode()
    return found


def _scenarios(stage: Stage, scratch: Path) -> list[Scenario]:
    """Return the commits that faults hit."""
    empty, one, two, three, four = stage.states
    found = [
        Scenario("create", None, ((stage.learners[1], 2),), (None, empty, one)),
        Scenario("add", stage.bases[2], ((stage.learners[3], 1),), (two, three)),
        Scenario("add two", stage.bases[1], ((stage.learners[3], 2),), (one, two, three)),
        Scenario(
            "in turn", stage.bases[1], ((stage.learners[2], 1), (stage.learners[3], 2), (stage.learners[4], 3)), (one, two, three, four)
        ),
    ]
    undone, purged = clone(stage.learners[3]), clone(stage.learners[3])
    undone.undo("three")
    purged.undo("three", purge=True)
    again = clone(purged)
    learn(again, "four")
    wider = clnp.widen(stage.learners[2], {"0": 4})
    learn(wider, "four")
    lay(scratch / "legacy", stage.legacy[2])
    grown = load(scratch / "legacy")
    learn(grown, "three")
    return [
        *found,
        Scenario("undo", stage.bases[3], ((undone, 1),), (three, two)),
        Scenario("purge", stage.bases[3], ((purged, 1),), (three, two)),
        Scenario("purge and learn", stage.bases[3], ((again, 2),), (three, two, state_of(again))),
        Scenario("widen and learn", stage.bases[2], ((wider, 1),), (two, state_of(wider))),
        Scenario("upgrade and learn", stage.legacy[2], ((grown, 1),), (two, state_of(grown))),
        *_on_disk(stage, scratch),
    ]


def _on_disk(stage: Stage, scratch: Path) -> list[Scenario]:
    """Return the commits that need no learner: patches, and undo."""
    try:
        from clnp.patches import apply_patch, make_patch
        from clnp.undoing import undo
    except ImportError:  # an older version
        return []
    empty, one, two, three, four = stage.states
    whole, part = make_patch(scratch / "2"), make_patch(scratch / "4", "two")
    purged = clone(stage.learners[3])
    purged.undo("three", purge=True)
    return [
        Scenario("begin with a patch", None, ((Command(lambda path: apply_patch(path, whole), two, "never"), 3),), (None, empty, one, two)),
        Scenario("apply a patch", stage.bases[2], ((Command(lambda path: apply_patch(path, part), four, "never"), 2),), (two, three, four)),
        Scenario("undo on disk", stage.bases[3], ((Command(lambda path: undo(path, "three"), two, "no task 'three'"), 1),), (three, two)),
        Scenario(
            "purge on disk",
            stage.bases[3],
            ((Command(lambda path: undo(path, "three", purge=True), two, "no task 'three'"), 1),),
            (three, two),
        ),
    ]
