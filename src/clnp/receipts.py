"""What a task's predictor answered to a fixed probe when it was committed: evidence, later and elsewhere, that it is still the same.

The probe is noise that anybody can make again, so that it tells nothing of any example; or examples that the user names. Answers are
compared bit for bit where everything that bits may depend on is as it was, and within `TOLERANCE` where it is not.
"""

from __future__ import annotations

import hashlib
import math
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from clnp.errors import DataError
from clnp.inputs import Forms, Inputs, check_forms, each, length, parts
from clnp.modes import exactly, threads
from clnp.records import Receipt

if TYPE_CHECKING:
    from torch import nn

    from clnp.inputs import Forms

N_EXAMPLES = 16
TOLERANCE = 1e-4
"""How far a logit may be off on another machine, as a fraction of the largest logit of the receipt (or of 1, if that is more)."""

Verdict = Literal["bitwise", "within tolerance", "differs", "no receipt", "not checked"]


@dataclass(frozen=True)
class Comparison:
    """How a predictor's answers to the probe compare with those of its receipt.

    Attributes:
        verdict: "bitwise", "within tolerance" or "differs"; "no receipt" for a task that was committed without one, "not checked"
            where the network's code was not at hand.
        largest_difference: between two logits; None where they cannot be compared.
        same_settings: whether everything that bits may depend on is as it was.
        different: what is not: name -> (then, now).
    """

    verdict: Verdict
    largest_difference: float | None = None
    same_settings: bool = True
    different: dict[str, tuple[str, str]] | None = None

    @property
    def is_good(self) -> bool:
        """Whether nothing speaks against the predictor being the one that was committed."""
        return self.verdict != "differs"


def noise(forms: Forms, n: int = N_EXAMPLES) -> Inputs:
    """Return n examples of noise, the same ones everywhere and always: floats of mean 0 and variance 1, integers and bools of 0 and 1.

    They are cut from the output of SHAKE-256, whose bytes no version of any library will change.

    >>> from clnp.inputs import Form
    >>> noise((Form((2,), torch.float32),), n=1)
    tensor([[-0.3183,  1.2672]])
    """
    made = []
    for place, form in enumerate(forms):
        count = n * math.prod(form.shape)
        stream = hashlib.shake_256(f"clnp probe {place} {list(form.shape)}".encode()).digest(4 * count)
        uniform = np.frombuffer(stream, dtype="<u4").astype(np.float64) / 2**32
        values = (uniform - 0.5) * math.sqrt(12) if form.dtype.is_floating_point else uniform >= 0.5
        made.append(torch.from_numpy(np.asarray(values)).reshape(n, *form.shape).to(form.dtype))
    return tuple(made) if len(made) > 1 else made[0]


def own_probe(forms: Forms, probe: Inputs) -> Inputs:
    """Return a copy of examples that the user names: what becomes of theirs is their business, and no matter how it lies in memory.

    Raises:
        DataError: there are none, a network of these forms cannot read them, or they are not all numbers.
    """
    check_forms(forms, probe, "cannot use the probe")
    if not length(probe):
        raise DataError("cannot use the probe: expected at least one example, found none.")
    if not all(bool(torch.isfinite(part).all()) for part in parts(probe)):
        raise DataError("cannot use the probe: it holds NaN or infinite values. Give examples that a network can answer.")
    return each(probe, lambda part: part.detach().cpu().clone(memory_format=torch.contiguous_format))


def settings(probe: Inputs) -> dict[str, str | int]:
    """Return what the bits of an answer may depend on."""
    return {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "batch": length(probe),
    }


@cache
def processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


@torch.no_grad()
@exactly()
def make_receipt(predictor: nn.Module, probe: Inputs) -> Receipt | None:
    """Ask a predictor, and write down what it answers under which settings; None where it has no finite answer.

    Noise is not what a network was made for: it may take a root of what is never negative, or look up a word that there is not.
    """
    try:
        logits = predictor(*parts(probe)).clone()
    except (RuntimeError, IndexError):
        return None
    return Receipt(logits, settings(probe)) if bool(torch.isfinite(logits).all()) else None


@torch.no_grad()
@exactly()
def compare(receipt: Receipt | None, predictor: nn.Module, probe: Inputs) -> Comparison:
    """Ask a predictor again, with as many threads as it was asked with, and compare."""
    if receipt is None:
        return Comparison("no receipt")
    then = receipt.settings
    with threads(int(then.get("threads", torch.get_num_threads()))):
        now = settings(probe)
        logits = predictor(*parts(probe))
    different = {key: (str(then.get(key)), str(now.get(key))) for key in sorted({*then, *now}) if then.get(key) != now.get(key)}
    if logits.shape != receipt.logits.shape:
        return Comparison("differs", None, not different, different)  # another shape
    largest = float((logits.double() - receipt.logits.double()).abs().max())
    if torch.equal(logits, receipt.logits):
        return Comparison("bitwise", 0.0, not different, different)
    allowed = TOLERANCE * max(1.0, float(receipt.logits.abs().max())) if different else 0.0
    verdict: Verdict = "within tolerance" if largest <= allowed and math.isfinite(largest) else "differs"
    return Comparison(verdict, largest if math.isfinite(largest) else None, not different, different)
