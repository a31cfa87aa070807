"""The page of a receipt: what was checked in a model directory, and what came out; how it looks stands in templates/."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from clnp.report.pages import pages

if TYPE_CHECKING:
    from clnp.verification import Verification

ANSWERS = {
    "bitwise": "as committed, bit for bit",
    "within tolerance": "as committed, within the tolerance",
    "differs": "otherwise than committed",
    "no receipt": "committed without a receipt",
    "not checked": "not asked: the code of the network was not given",
}


def render_receipt(found: Verification) -> str:
    """Return a receipt as one HTML page that needs nothing else; every text of the directory is escaped."""
    from clnp.receipts import TOLERANCE  # late: it brings torch, which no other page needs

    environment = pages()
    environment.filters.update(utc=_utc)
    verdicts = {task.comparison.verdict for task in found.tasks}
    if found.problem is not None:
        headline = "This is not the directory of the receipt"
    elif found.differing:
        headline = "Every file is what was committed, but not every task answers as it did"
    elif verdicts <= {"bitwise"}:
        headline = "Every file is what was committed, and every task answers as it did, bit for bit"
    elif verdicts <= {"bitwise", "within tolerance"}:
        headline = "Every file is what was committed, and every task answers as it did, to rounding"
    else:
        headline = "Every file is what was committed"
    return environment.get_template("receipt.html").render(found=found, headline=headline, answers=ANSWERS, tolerance=TOLERANCE)


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC") if seconds else "not written down"
