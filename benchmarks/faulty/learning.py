"""Faults in what a learner is given: examples, labels, losses, gradients, names, settings, files of data.

Each is refused by an error of ours in one line, or copes; either way the learner is what it was, and goes on.
"""

from __future__ import annotations

import functools
import gzip
import random
import struct
import unicodedata
import zlib
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import clnp
from faulty.board import Verdict
from faulty.crashes import some
from faulty.damage import CANARY, _Evil, zip_bomb
from faulty.processes import Case
from faulty.stage import CONFIG, MODEL, Stage, check_message, clone, data, learn, look, state_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Act = "Callable[[clnp.Learner], object]"


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
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is judged
            verdict.blame("unclear", f"{type(error).__name__}: {str(error)[:200]}")
            learner = clone(stage.learners[2])
        else:
            if refused:
                verdict.blame("wrong", "it is not refused")
            if state_of(learner)[:2] != stage.states[2]:
                verdict.blame("drift", "an earlier task answers otherwise")
            if any(not bool(torch.isfinite(tensor).all()) for tensor in learner._state.values()):  # noqa: SLF001
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
    for thing in (None, "data", 5, [], (), (x,), {"x": x}, (x, y, y), iter([]), [x, None], x):
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
    for thing in (None, "x", 5, [x], (x, x), ()):
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


class _Raising(TensorDataset):
    """A data set of which one example cannot be read."""

    def __getitem__(self, place: int) -> Any:
        if place == 17:
            msg = "sensor 17\nis on fire"
            raise OSError(msg)
        return super().__getitem__(place)


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


# ---- names


MARKUP = (
    "<script>alert(1)</script>",
    "'\"><img src=x onerror=alert(1)>",
    "{{7*7}}{% raw %}",
    "[bold red]x[/]",
    "[link=file:///etc/passwd]x[/link]",
    "$(touch canary)",
    "`id`",
    "; rm -rf x",
    "%s%n%x",
    "-rf",
    "--help",
)
PATHS = (
    "../../x",
    "/etc/passwd",
    "..",
    ".",
    "a/b",
    "C:\\x",
    "\\\\server\\share",
    "CON",
    "model.json",
    "HEAD",
    "tasks/000.safetensors",
    "~root",
    "a" * 200,
)
WORDS = ("Aufgabe ß", "任务", "مهمة", "עברית", "🦆", "e\u0301", "Å", "ﬁ", "Ⅷ", "𝔘", " leading", "trailing ", "a  b")
REFUSED = (
    "",
    "\0",
    "a\nb",
    "a\rb",
    "\x1b[31mred",
    "a\tb",
    "\x7f",
    "\u202egnp.exe",
    "\u200b",
    "\ufeff",
    "a" * 201,
    "\ud800",
    "\x85",
    "\u2028",
)


def names(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """Duplicate and unknown names, path traversal and markup in names, names that cannot be seen or told apart."""
    cases: list[Case] = []
    for name in (*MARKUP, *PATHS, *WORDS):
        cases.append(_accepted(stage, name))
    for name in REFUSED:
        cases.append(attempt(stage, f"a task named {name[:20]!r}", lambda learner, name=name: learn(learner, name, 2)))
    for name in (None, 5, b"bytes", ["list"], ("one",), float("nan"), object()):
        cases.append(attempt(stage, f"a task named {type(name).__name__}", lambda learner, name=name: learn(learner, name, 2)))  # pyright: ignore[reportArgumentType]
    cases.append(attempt(stage, "a name twice", lambda learner: learn(learner, "one", 2), names="one"))
    twin = "caf\u00e9"
    cases.append(attempt(stage, "a name twice, spelled otherwise", functools.partial(_twins, twin)))
    for name in ("never", "", "One", "one ", None, 7, "\x1b[31m", "a\nb"):
        for what in ("predict", "predictor", "undo", "head_of", "receipt", "export"):
            cases.append(_unknown(stage, name, what))
    cases += [_export_over(stage), *_settings(stage)]
    yield from some(rng, cases, n)


def _twins(name: str, learner: clnp.Learner) -> None:
    """Learn a task twice under what looks like one name, and take the first one back."""
    learn(learner, name, 2)
    try:
        learn(learner, unicodedata.normalize("NFD", name), 3)
    finally:
        learner.undo(name)


def _accepted(stage: Stage, name: str) -> Case:
    """Return the case of an odd name, of which nothing but a name may be made."""

    def judge(root: Path) -> Verdict:
        verdict, learner = Verdict(), clone(stage.learners[2])
        before = {path for path in root.parent.rglob("*") if root not in path.parents}
        learn(learner, name, 2)
        learner.save(root / "deep" / "er" / MODEL)
        found = look(root / "deep" / "er" / MODEL)
        if found != state_of(learner) or learner.tasks[2] != unicodedata.normalize("NFC", name):
            verdict.blame("wrong", f"found {found}")
        outside = [path for path in root.rglob("*") if path.is_file() and MODEL not in path.relative_to(root).parts]
        outside += [
            path
            for path in root.parent.rglob("*")
            if root not in path.parents and path != root and path not in before and "verdicts" not in path.name
        ]
        known = {"model.json", "constants.safetensors", "log.jsonl", "HEAD", "000.safetensors", "001.safetensors", "002.safetensors"}
        inside = {path.name for path in (root / "deep" / "er" / MODEL).rglob("*") if path.is_file() and not path.name.startswith(".")}
        if outside or inside != known or (root / CANARY).exists():
            verdict.blame("wrong", f"files were made of a name: {outside} {inside ^ known}")
        learner.undo(name)
        learner.save(root / "deep" / "er" / MODEL)
        if look(root / "deep" / "er" / MODEL) != stage.states[2]:
            verdict.blame("drift", "undoing it left something else")
        return verdict

    return Case(f"a task named {name[:30]!r}", lambda _: None, judge)


def _unknown(stage: Stage, name: Any, what: str) -> Case:
    def act(learner: clnp.Learner) -> object:
        if what == "predict":
            return learner.predict(torch.zeros(1, 8), task=name)
        if what == "export":
            return learner.export("never.onnx", task=name)
        return getattr(learner, what)(name)

    return attempt(stage, f"{what} of unknown task {name!r}", act)


def _export_over(stage: Stage) -> Case:
    return attempt(stage, "export to a format that does not exist", lambda learner: learner.export("x.exe", task="one"))


def _settings(stage: Stage) -> Iterator[Case]:
    for setting in ({"lr": float("nan")}, {"lr": float("inf")}, {"lr": -1}, {"epochs": 0}, {"epochs": 2.5}, {"margin": float("nan")}, {"pool": -0.1}, {"pool": "none"}, {"device": "cuda:99"}, {"device": "../x"}, {"batch_size": 0}, {"criterion": "magic"}, {"surprise": 1}, {"threads": 0}, {"momentum": 1.0}, {"l1": float("inf")}):  # fmt: skip
        yield attempt(
            stage,
            f"settings {setting}",
            lambda learner, setting=setting: teach(*data(2), config=clnp.LearnConfig(**{**CONFIG.model_dump(), **setting}))(learner),
        )


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
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is judged
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
    evil[0] = _Evil(str(root / CANARY))
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
