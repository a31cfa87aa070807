"""Faults in what a learner is given: examples, labels, losses, gradients, names, settings, files of data.

Each is refused by an error of ours in one line, or copes; either way the learner is what it was, and goes on.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import clnp
from faulty.board import Verdict
from faulty.damage import CANARY
from faulty.malice import Evil, zip_bomb
from faulty.oracle import check_message, look
from faulty.processes import Case, some
from faulty.stage import CONFIG, MODEL, Stage, clone, data, learn, state_of

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path


def attempt(stage: Stage, label: str, act: Callable[[clnp.Learner], object], *, refused: bool | None = True, names: str = "") -> Case:
    """Return the case of something that a learner is asked for.

    Args:
        stage: whose learner.
        label: what is injected.
        act: what is asked.
        refused: whether it must be refused (True), must work (False), or either.
        names: what the message must say.
    """

    def judge(root: Path) -> Verdict:
        verdict, learner = Verdict(), clone(stage.learners[2])
        try:
            act(learner)
        except clnp.ClnpError as error:
            check_message(verdict, (type(error).__name__, True, str(error)), *([names] if names else []))
            if refused is False:
                verdict.blame("person", f"it is refused: {error}")
            if state_of(learner) != stage.states[2]:
                verdict.blame("drift", "the learner is not what it was")
        except BaseException as error:  # whatever it is, it is judged
            verdict.blame("unclear", f"{type(error).__name__}: {str(error)[:200]}")
            learner = clone(stage.learners[2])
        else:
            if refused:
                verdict.blame("wrong", "it is not refused")
            if state_of(learner)[:2] != stage.states[2]:
                verdict.blame("drift", "an earlier task answers otherwise")
            if any(not bool(torch.isfinite(tensor).all()) for tensor in learner._state.values()):
                verdict.blame("wrong", "a weight is not finite")
        _go_on(stage, verdict, learner, root)
        return verdict

    return Case(label, lambda _: None, judge)


def _go_on(stage: Stage, verdict: Verdict, learner: clnp.Learner, root: Path) -> None:
    """Learn another task, save, and load."""
    fresh = learner.tasks == ("one", "two")
    learn(learner, "three" if fresh else "another", 2)
    learner.save(root / MODEL)
    found = look(root / MODEL)
    if found != (stage.states[3] if fresh else state_of(learner)):
        verdict.blame("person", f"it cannot go on: {found}")


def teach(x: Any, y: Any, validation: Any = None, **more: Any) -> Callable[[clnp.Learner], object]:
    """Return the act of learning from some examples."""
    config = more.pop("config", CONFIG)

    def act(learner: clnp.Learner) -> object:
        good = data(2)
        return learner.learn("three", (x, y), validation or (good[0][40:], good[1][40:]), config=config, **more)

    return act


def examples(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """NaN and inf in examples, labels, losses and gradients; labels out of range; empty, single-class and single-example tasks; wrong shapes and dtypes."""
    cases = [*_numbers(stage, rng), *_labels(stage), *_shapes(stage), *_small(stage), *_diverging(stage, rng), *_loaders(stage)]
    yield from some(rng, cases, n)


def _spoiled(tensor: Tensor, place: int, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[place] = value
    return tensor


def _numbers(stage: Stage, rng: random.Random) -> Iterator[Case]:
    x, y = data(2)
    for value in (float("nan"), float("inf"), float("-inf")):
        for _ in range(12):
            place = rng.randrange(40 * 8)
            yield attempt(stage, f"{value} in training example {place // 8}", teach(_spoiled(x[:40], place, value), y[:40]), names="three")
            bad = _spoiled(x[40:], place % 160, value)
            yield attempt(stage, f"{value} in validation example {place % 160 // 8}", teach(x[:40], y[:40], (bad, y[40:])), names="three")
    for value in (1e38, 3e38, 1e-45, 0.0):
        yield attempt(stage, f"examples of size {value:g}", teach(torch.full_like(x[:40], value), y[:40]), refused=None)


def _labels(stage: Stage) -> Iterator[Case]:
    x, y = data(2)
    good, labels = x[:40], y[:40]
    for place in (0, 7, 39):
        for value in (-1, -(2**40)):
            yield attempt(stage, f"label {value} at {place}", teach(good, _spoiled(labels, place, value)), names="three")
        for value in (2, 100, 2**40):
            yield attempt(
                stage, f"label {value} of 2 classes at {place}", teach(good, _spoiled(labels, place, value), n_classes=2), names="three"
            )
    for name, changed in {
        "floating": labels.float(),
        "NaN": labels.float() * float("nan"),
        "boolean": labels.bool(),
        "complex": labels.to(torch.complex64),
        "one-hot": F.one_hot(labels, 2),
        "too few": labels[:-1],
        "too many": torch.cat([labels, labels]),
        "scalar": torch.tensor(1),
        "empty": labels[:0],
        "of one column": labels[:, None],
    }.items():
        yield attempt(stage, f"{name} labels", teach(good, changed))
        yield attempt(stage, f"{name} labels of validation", teach(good, labels, (good, changed)))
    for n_classes in (0, 1, -3):
        yield attempt(stage, f"{n_classes} classes", teach(good, labels, n_classes=n_classes), names="three")
    yield attempt(stage, "a huge label of validation", teach(good, labels, (x[40:], y[40:] + 7), n_classes=2), names="three")
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        yield attempt(stage, f"labels of {dtype}", teach(good, labels.to(dtype)), refused=False)


def _shapes(stage: Stage) -> Iterator[Case]:
    x, y = data(2)
    for name, changed in {
        "wider": torch.zeros(40, 9),
        "narrower": torch.zeros(40, 7),
        "flat": torch.zeros(40),
        "deeper": torch.zeros(40, 8, 1),
        "images": torch.zeros(40, 1, 8, 8),
        "scalar": torch.tensor(1.0),
        "of no features": torch.zeros(40, 0),
        "double": x[:40].double(),
        "half": x[:40].half(),
        "integer": x[:40].long(),
        "complex": x[:40].to(torch.complex64),
        "sparse": x[:40].to_sparse(),
        "on no device": x[:40].to("meta"),
    }.items():
        yield attempt(stage, f"{name} examples", teach(changed, y[:40]), refused=None if name == "sparse" else True)
        yield attempt(stage, f"{name} examples to predict", lambda learner, changed=changed: learner.predict(changed, task="one"), refused=None if name in ("sparse", "on no device") else True)  # fmt: skip
    things: list[Any] = [None, "data", 5, [], (), (x,), {"x": x}, (x, y, y), iter([]), [x, None], x]
    for thing in things:
        yield attempt(
            stage,
            f"{type(thing).__name__} for data",
            lambda learner, thing=thing: learner.learn("three", thing, (x[40:], y[40:]), config=CONFIG),
        )
        yield attempt(
            stage,
            f"{type(thing).__name__} for validation",
            lambda learner, thing=thing: learner.learn("three", (x[:40], y[:40]), thing, config=CONFIG),
        )
    things = [None, "x", 5, [x], (x, x), ()]
    for thing in things:
        yield attempt(
            stage, f"{type(thing).__name__} to predict", lambda learner, thing=thing: learner.predict(thing, task="one"), refused=True
        )


def _small(stage: Stage) -> Iterator[Case]:
    x, y = data(2)
    none, one_class = torch.zeros(40, dtype=torch.long), torch.ones(40, dtype=torch.long)
    yield attempt(stage, "no training example", teach(x[:0], y[:0]), names="three")
    yield attempt(stage, "no validation example", teach(x[:40], y[:40], (x[:0], y[:0])), names="three")
    yield attempt(stage, "a single example", teach(x[:1], y[:1]), names="three")
    yield attempt(stage, "a single class", teach(x[:40], none), names="three")
    yield attempt(stage, "a single class, not the first", teach(x[:40], one_class), names="three")
    yield attempt(stage, "two examples", teach(x[:2], torch.tensor([0, 1])), refused=False)
    yield attempt(stage, "a single validation example", teach(x[:40], y[:40], (x[40:41], y[40:41])), refused=False)
    yield attempt(stage, "three examples of a thousand classes", teach(x[:3], torch.tensor([0, 5, 999])), refused=False)


def _diverging(stage: Stage, rng: random.Random) -> Iterator[Case]:
    x, y = data(2)
    for lr in (1e10, 1e20, 1e30, 1e38):
        for optimizer in ("sgd", "adam"):
            config = CONFIG.model_copy(update={"lr": lr, "optimizer": optimizer, "schedule": "constant", "epochs": 4})
            yield attempt(stage, f"{optimizer} with lr {lr:g}", teach(x[:40], y[:40], config=config), refused=None)
    real = F.cross_entropy
    for value in (float("nan"), float("inf")):
        for where in ("loss", "gradient"):
            for at in range(1, 5):

                def act(learner: clnp.Learner, value: float = value, where: str = where, at: int = at) -> None:
                    n = 0

                    def spoil(logits: Tensor, labels: Tensor) -> Tensor:
                        nonlocal n
                        n += 1
                        loss = real(logits, labels)
                        if n != at:
                            return loss
                        if where == "loss":
                            return loss * value
                        logits.register_hook(lambda gradient: gradient * value)  # pyright: ignore[reportUnknownLambdaType]
                        return loss

                    F.cross_entropy = spoil  # pyright: ignore[reportAttributeAccessIssue]
                    try:
                        teach(x[:40], y[:40])(learner)
                    finally:
                        F.cross_entropy = real

                yield attempt(stage, f"{where} {value} at step {at}", act, names="three")
    del rng


def _loaders(stage: Stage) -> Iterator[Case]:
    x, y = data(2)
    good = TensorDataset(x[:40], y[:40])
    bad = TensorDataset(_spoiled(x[:40], 300, float("nan")), y[:40])
    yield attempt(stage, "a loader", lambda learner: teach_from(learner, DataLoader(good, 8)), refused=False)
    yield attempt(stage, "NaN late in a loader", lambda learner: teach_from(learner, DataLoader(bad, 8)))
    yield attempt(stage, "an empty data set", lambda learner: teach_from(learner, TensorDataset(x[:0], y[:0])))
    yield attempt(stage, "a loader without batches", lambda learner: teach_from(learner, [DataLoader(good, 100, drop_last=True)][0]))
    yield attempt(
        stage,
        "a late label out of range",
        lambda learner: teach_from(learner, DataLoader(TensorDataset(x[:40], _spoiled(y[:40], 39, 9)), 8), n_classes=2),
    )
    yield attempt(stage, "a list of batches", lambda learner: teach_from(learner, [(x[:20], y[:20]), (x[20:40], y[20:40])]), refused=None)


def teach_from(learner: clnp.Learner, source: Any, **more: Any) -> object:
    """Learn from anything."""
    x, y = data(2)
    return learner.learn("three", source, (x[40:], y[40:]), config=CONFIG, **more)


# ---- files of data


def data_files(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """Files of examples that are bombs, malicious, damaged or foreign: NPZ, CSV, images, IDX."""
    cases = [_file_case(stage, what, suffix, make) for what, (suffix, make) in DATA_FILES.items()]
    cases += [_file_case(stage, f"{what}, cut at {share:.0%}", suffix, lambda root, make=make, share=share: (content := make(root))[: int(len(content) * share)]) for what, (suffix, make) in DATA_FILES.items() for share in (0.0, 0.3, 0.9)]  # fmt: skip
    yield from some(rng, cases, n)


def _file_case(stage: Stage, what: str, suffix: str, make: Callable[[Path], bytes]) -> Case:
    del stage

    def judge(root: Path) -> Verdict:
        from clnp.data.folder import load_folder
        from clnp.data.idx import read_idx
        from clnp.data.table import load_csv, load_npz

        verdict, folder = Verdict(), root / "data" / "class"
        folder.mkdir(parents=True)
        file = folder / f"x{suffix}"
        file.write_bytes(make(root))
        read = {".npz": load_npz, ".csv": load_csv, ".png": lambda _: load_folder(root / "data"), ".gz": read_idx, ".idx": read_idx}[suffix]
        try:
            read(file)
        except clnp.ClnpError as error:
            check_message(verdict, (type(error).__name__, True, str(error)), file.name)
        except BaseException as error:  # whatever it is, it is judged
            verdict.blame("unclear", f"{type(error).__name__}: {str(error)[:200]}")
        else:
            verdict.blame("wrong", "it is read")
        if (root / CANARY).exists():
            verdict.blame("wrong", "code in a file was run")
        return verdict

    return Case(f"data: {what}", lambda _: None, judge)


def _png(width: int, height: int, rows: int = 1) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    body = zlib.compress(bytes(rows * (width // 8 + 1)) if width < 2**20 else bytes(2**20))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def _objects(root: Path) -> bytes:
    import io

    import numpy as np

    packed = io.BytesIO()
    evil = np.empty(1, dtype=object)
    evil[0] = Evil(str(root / CANARY))
    np.savez(packed, x=evil, y=np.zeros(1, dtype=np.int64))
    return packed.getvalue()


DATA_FILES: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "an NPZ of pickled objects": (".npz", _objects),
    "an NPZ bomb": (".npz", lambda _: zip_bomb()),
    "an NPZ that is text": (".npz", lambda _: b"hello\n" * 10),
    "a PNG bomb": (".png", lambda _: _png(2**16, 2**16, 64)),
    "a PNG of 2^31 columns": (".png", lambda _: _png(2**31 - 1, 1)),
    "a PNG of no rows": (".png", lambda _: _png(8, 0, 0)),
    "a PNG that is a pickle": (".png", lambda _: b"\x80\x04N."),
    "a CSV of NaN": (".csv", lambda _: b"1,2,a\nnan,3,b\n"),
    "a CSV of infinities": (".csv", lambda _: b"1,2,a\n1e999,3,b\n"),
    "a CSV with short rows": (".csv", lambda _: b"1,2,a\n3,b\n"),
    "a CSV of zeros": (".csv", lambda _: bytes(1000)),
    "a CSV of one endless field": (".csv", lambda _: b'1,"' + b"x" * 300_000 + b"\n"),
    "an IDX that says it is larger": (".idx", lambda _: struct.pack(">HBBII", 0, 8, 2, 2**31, 2**31) + bytes(100)),
    "an IDX of an unknown type": (".idx", lambda _: struct.pack(">HBBI", 0, 99, 1, 4) + bytes(4)),
    "a gzip bomb": (".gz", lambda _: gzip.compress(struct.pack(">HBBI", 0, 8, 1, 10) + bytes(64 * 2**20))),
    "a gzip of noise": (".gz", lambda _: gzip.compress(b"noise" * 100)),
}
