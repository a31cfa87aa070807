"""The same faults against what people keep networks with otherwise: `torch.save`, safetensors alone, Avalanche's checkpoint.

Each keeps all tasks in one file and overwrites it when another task is learned, as its own examples do. A commit is that call; it is
acknowledged when the call has returned. The faults come from outside (SIGKILL and failing calls by strace at the Nth system call, or by a
timer; RLIMIT_FSIZE; bits and lengths of the file), so nothing in the libraries is replaced. For the power loss it is looked up with strace
whether a library fsyncs its file and whether it writes beside it and renames; a disk is simulated accordingly, as for `clnp`. Avalanche needs an environment of its own: see environment.sh beside this file.

"unclear" is what it is for `clnp`: an error that does not say which file. What is refused cannot be healed by the library itself: it counts
as a state that needs a person, and as so many commits lost as were in the file, where they were lost by a crash.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
import resource
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import nn

from faulty import tracing
from faulty.board import Row, Verdict
from faulty.disk import ROOT, Recorder, materialise, survivors
from faulty.processes import Case, play

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Tensors = dict[str, torch.Tensor]
FILE = "model.file"


def tensors(n_tasks: int) -> Tensors:
    """Return the network after so many tasks: a trunk, and a head for each."""
    generator = torch.Generator().manual_seed(n_tasks)
    shapes = {"trunk.0.weight": (16, 8), "trunk.0.bias": (16,), "trunk.2.weight": (12, 16), "trunk.2.bias": (12,)}
    shapes |= {f"heads.{task}.{name}": shape for task in range(n_tasks) for name, shape in (("weight", (2, 12)), ("bias", (2,)))}
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def fingerprint(found: Tensors) -> str:
    """Return the SHA-256 of tensors, with their names and shapes."""
    whole = hashlib.sha256()
    for name in sorted(found):
        whole.update(repr((name, tuple(found[name].shape), found[name].dtype)).encode() + found[name].contiguous().numpy().tobytes())
    return whole.hexdigest()


@dataclass(frozen=True)
class Peer:
    """A way to keep a network: write the file for so many tasks, and read it."""

    name: str
    save: Callable[[int, Path], None]
    load: Callable[[Path], Tensors]


def torch_save() -> Peer:
    """torch.save(state_dict, path)."""
    return Peer("torch.save", lambda n, path: torch.save(tensors(n), path), lambda path: torch.load(path, weights_only=True))


def safetensors_alone() -> Peer:
    """safetensors.torch.save_file(state_dict, path)."""
    return Peer("safetensors", lambda n, path: safetensors.torch.save_file(tensors(n), path), safetensors.torch.load_file)


def avalanche() -> Peer | str:
    """Avalanche's save_checkpoint(strategy, path); or why it is not there. Optimizers of torch 2.13 it cannot pickle: they are excluded."""
    with contextlib.suppress(RuntimeError):
        for name in ("nms", "qnms"):  # torchvision describes operators that it lacks where it is built for another torch
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint  # pyright: ignore[reportMissingImports]
        from avalanche.training.supervised import Naive  # pyright: ignore[reportMissingImports]
    except Exception as error:  # absent, or something that it needs is
        return f"{type(error).__name__}: {error}"

    def strategy(n: int) -> Any:
        model = nn.ParameterDict({name.replace(".", "-"): nn.Parameter(value) for name, value in tensors(n).items()})
        made = Naive(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), evaluator=None)
        made.clock.train_exp_counter = n
        return made

    def load(path: Path) -> Tensors:
        found, n = maybe_load_checkpoint(strategy(1), str(path))
        if n == 0:
            msg = "maybe_load_checkpoint begins anew"
            raise FileNotFoundError(msg)
        return {name.replace("-", "."): value.detach() for name, value in found.model.items()}

    return Peer("avalanche", lambda n, path: save_checkpoint(strategy(n), str(path), exclude=["optimizer"]), load)


# ---- judging


def judge(peer: Peer, sure: int, later: int, crash: bool, root: Path) -> Verdict:
    """Judge a file: the network after `sure` tasks was acknowledged, that after `later` was being written."""
    verdict, path = Verdict(), root / FILE
    known = {fingerprint(tensors(n)): n for n in range(1, later + 1)}
    try:
        found = peer.load(path)
    except BaseException as error:  # whatever it is, it is counted
        if FILE not in str(error) or "\n" in str(error).strip():
            verdict.blame("unclear", f"{type(error).__name__}: {str(error)[:150]}")
        if crash and sure:
            verdict.blame("lost", f"{type(error).__name__}", sure)
            verdict.blame("person", "the file is refused")
        return verdict
    n = known.get(fingerprint(found))
    if n is None:
        verdict.blame("wrong", "it is read as something else")
        old = tensors(sure)
        verdict.blame(
            "drift", "old tasks answer otherwise", int(any(not torch.equal(found[name], old[name]) for name in old if name in found))
        )
    elif n < sure:
        verdict.blame("lost", f"{n} of {sure} tasks are there", sure - n)
    return verdict


def laid(peer: Peer, n: int, root: Path) -> None:
    """Write the file for so many tasks, and let it reach the disk."""
    peer.save(n, root / FILE)


SURE, LATER = 2, 3


def crash_case(peer: Peer, label: str, act: Callable[[Path], None], **more: Any) -> Case:
    """Return the case of a fault while the third task is saved; that it was acknowledged is said by a file beside."""

    def look(root: Path) -> Verdict:
        return judge(peer, LATER if (root / "acknowledged").exists() else SURE, LATER, True, root)

    return Case(label, functools.partial(laid, peer, SURE), look, act, **more)


def commit(peer: Peer, root: Path) -> None:
    """Save the third task, and acknowledge."""
    try:
        peer.save(LATER, root / FILE)
    except BaseException:  # it is told, and nothing is acknowledged
        return
    (root / "acknowledged").touch()


def killed(peer: Peer, rng: random.Random, n: int | None) -> Iterator[Case]:
    """SIGKILL at every system call of a save, and at random moments."""
    if tracing.is_there():
        with tempfile.TemporaryDirectory(prefix="clnp-peer-") as scratch:
            calls = len(tracing.traced(lambda: commit(peer, Path(scratch)))[1])
        for at in range(1, calls + 1):

            def act(root: Path, at: int = at) -> None:
                tracing.traced(lambda: commit(peer, root), f"signal=KILL:when={at}")

            yield crash_case(peer, f"killed at system call {at}", act)
    for _ in range(200 if n is None else n):
        delay = rng.uniform(0, 0.004)
        yield crash_case(peer, f"killed after {1000 * delay:.2f} ms", functools.partial(commit, peer), kill_after=delay)


def full(peer: Peer, rng: random.Random, n: int | None) -> Iterator[Case]:
    """ENOSPC at every write and open of a save, and files that must not grow beyond a limit."""
    if tracing.is_there():
        for at in range(1, 16):

            def act(root: Path, at: int = at) -> None:
                tracing.traced(lambda: commit(peer, root), f"?write,?writev,?pwrite64,?ftruncate,?fallocate:error=ENOSPC:when={at}+")

            yield crash_case(peer, f"ENOSPC from call {at} on", act)
    for _ in range(100 if n is None else n):
        size = rng.randrange(0, 4000)

        def limited(root: Path, size: int = size) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            commit(peer, root)

        yield crash_case(peer, f"files of at most {size} bytes", limited)


def damaged(peer: Peer, rng: random.Random, n: int | None, *, cut: bool) -> Iterator[Case]:
    """Flip one bit, or cut the file."""
    for _ in range(1000 if n is None else n):
        share = rng.random()

        def prepare(root: Path, share: float = share) -> None:
            laid(peer, SURE, root)
            content = bytearray((root / FILE).read_bytes())
            bit = int(share * 8 * len(content))
            if cut:
                del content[bit // 8 :]
            else:
                content[bit // 8] ^= 1 << bit % 8
            (root / FILE).write_bytes(content)

        yield Case(f"{'cut' if cut else 'bit flipped'} at {share:.1%}", prepare, functools.partial(judge, peer, SURE, SURE, False))


def power(peer: Peer, rng: random.Random, n: int | None) -> Iterator[Case]:
    """Power loss while a file is saved, and after it was."""
    with tempfile.TemporaryDirectory(prefix="clnp-peer-") as scratch:
        root = Path(scratch)
        laid(peer, SURE, root)
        renames, syncs = habits(peer, root)
        recorder = Recorder(root)
        peer.save(LATER, root / FILE)
        content = (root / FILE).read_bytes()
    number, target = next(iter(recorder.first.values()))[0], FILE
    if renames:
        number, target = number + 1, FILE + ".tmp"
        recorder.operations.append(("link", target, number))
    else:
        recorder.operations.append(("cut", number, 0))
    recorder.operations += [("write", number, at, content[at : at + 4096]) for at in range(0, len(content), 4096)]
    recorder.operations += [("sync", number)] if syncs else []
    recorder.operations += [("rename", target, FILE, number)] if renames else []
    recorder.operations += [("sync directory", ROOT)] if syncs > 1 else []
    recorder.acknowledge(LATER)
    for turn in range(400 if n is None else n):
        k = rng.randrange(len(recorder.operations) + 1) if turn % 2 else len(recorder.operations)
        files, directories, sure = survivors(recorder, k, rng)

        def prepare(root: Path, files: dict[str, bytes] = files, directories: list[str] = directories) -> None:
            materialise(root, files, directories)

        yield Case(f"power lost after operation {k}", prepare, functools.partial(judge, peer, sure or SURE, LATER, True))


def habits(peer: Peer, root: Path) -> tuple[bool, int]:
    """Tell whether a library writes beside its file and renames, and how many fsyncs it makes; without strace, what version 2026 does."""
    if not tracing.is_there():
        return peer.name == "safetensors", 0
    lines = tracing.traced(lambda: peer.save(LATER, root / FILE))[1]
    return any("rename" in line for line in lines), sum("fsync" in line or "fdatasync" in line for line in lines)


FAULTS: dict[str, tuple[str, Callable[[Peer, random.Random, int | None], Iterator[Case]]]] = {
    "kill": ("SIGKILL at every call of a save, and at random moments", killed),
    "power-loss": ("power loss in and after a save", power),
    "no-space": ("ENOSPC at every write, and limits of size", full),
    "bit-flips": ("one flipped bit anywhere in the file", functools.partial(damaged, cut=False)),
    "truncations": ("the file cut to a random length", functools.partial(damaged, cut=True)),
}


def compete(seed: int, n: int | None) -> dict[str, list[Row]]:
    """Inject the faults that apply into every peer that is installed."""
    found: dict[str, list[Row]] = {}
    scratch = Path(tempfile.mkdtemp(prefix="clnp-peers-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    for peer in (torch_save(), safetensors_alone(), avalanche()):
        if isinstance(peer, str):
            print(f"avalanche is skipped, it cannot be imported: {peer}")
            continue
        peer.save(1, scratch / "warm")
        found[peer.name] = [
            play(Row(name, what), cases(peer, random.Random(f"{seed} {name}"), n), scratch) for name, (what, cases) in FAULTS.items()
        ]
    shutil.rmtree(scratch)
    return found
