"""Names that are taken, unknown, unprintable, markup or paths; and settings that cannot work."""

from __future__ import annotations

import functools
import unicodedata
from typing import TYPE_CHECKING, Any

import torch

import clnp
from faulty.board import Verdict
from faulty.damage import CANARY
from faulty.learning import attempt, teach
from faulty.oracle import look
from faulty.processes import Case, some
from faulty.stage import CONFIG, MODEL, Stage, clone, data, learn, state_of

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path


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
WORDS = ("Aufgabe ß", "任务", "مهمة", "עברית", "🦆", "e\u0301", "Å", "ﬁ", "Ⅷ", "\U0001d518", " leading", "trailing ", "a  b")
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
