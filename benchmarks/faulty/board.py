"""The scoreboard: what every class of faults is counted in, as a table, as Markdown, as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

COLUMNS = ("lost", "wrong", "drift", "person", "unclear", "steps")
TITLES = {
    "injected": "injected",
    "lost": "commits lost",
    "wrong": "silent wrong loads",
    "drift": "old-task drift",
    "person": "needs a person",
    "unclear": "unclear errors",
    "steps": "steps lost",
}
MUST_BE_ZERO = COLUMNS[:-1]
"""Work in progress may be lost; nothing else may."""
KEPT_NOTES = 20


@dataclass
class Verdict:
    """What came of one injection.

    Attributes:
        lost: acknowledged commits that are not there any more.
        wrong: answers of no committed predictor, given without an error.
        drift: tasks committed earlier that answer other bits than before.
        person: states that the same program cannot simply go on from.
        unclear: tracebacks, wrong exit codes, messages that do not name what is wrong.
        steps: optimiser steps that had to be made again.
        notes: what was found, in words.
    """

    lost: int = 0
    wrong: int = 0
    drift: int = 0
    person: int = 0
    unclear: int = 0
    steps: int = 0
    notes: list[str] = field(default_factory=list)

    def blame(self, column: str, note: str, n: int = 1) -> None:
        """Count against a column, and say why."""
        setattr(self, column, getattr(self, column) + n)
        self.notes.append(f"{column}: {note}")


@dataclass
class Row:
    """The sum over the injections of one class."""

    name: str
    what: str
    injected: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COLUMNS, 0))
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, label: str, verdict: Verdict) -> None:
        """Count one injection."""
        self.injected += 1
        for column in COLUMNS:
            self.counts[column] += getattr(verdict, column)
        if len(self.notes) < KEPT_NOTES:
            self.notes += [f"{label}: {note}" for note in verdict.notes]

    @property
    def is_good(self) -> bool:
        """Whether everything that must be 0 is."""
        return not any(self.counts[column] for column in MUST_BE_ZERO)

    def as_json(self) -> dict[str, Any]:
        """Return the row as it stands in the results."""
        return {
            "what": self.what,
            "injected": self.injected,
            **self.counts,
            "upper_bound_95": rule_of_three(self.injected),
            "seconds": round(self.seconds, 1),
            **({"notes": self.notes} if self.notes else {}),
            **({"skipped": self.skipped} if self.skipped else {}),
        }


def rule_of_three(n: int) -> float | None:
    """Return what share of injections may go wrong, at 95 % confidence, when none of n did.

    >>> rule_of_three(300)
    0.01
    """
    return min(1.0, 3 / n) if n else None


def total(rows: Iterable[Row]) -> Row:
    """Return the sum of all rows."""
    found = Row("total", "")
    for row in rows:
        found.injected += row.injected
        found.seconds += row.seconds
        for column in COLUMNS:
            found.counts[column] += row.counts[column]
    return found


def cells(row: Row) -> list[str]:
    """Return the numbers of a row as text."""
    bound = rule_of_three(row.injected)
    shown = "-" if bound is None else f"{100 * bound:.3g} %" if row.is_good else "-"
    return [row.name, f"{row.injected:,}", *(f"{row.counts[column]:,}" for column in COLUMNS), shown]


HEADER = ["class", *TITLES.values(), "95 % bound"]


def table(rows: list[Row]) -> str:
    """Return the aligned table."""
    lines = [HEADER, *map(cells, rows), cells(total(rows))]
    widths = [max(len(line[place]) for line in lines) for place in range(len(HEADER))]
    aligned = [
        "  ".join(f"{cell:<{w}}" if not n else f"{cell:>{w}}" for n, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    return "\n".join([*aligned[:1], "-" * len(aligned[0]), *aligned[1:-1], "-" * len(aligned[0]), aligned[-1]])


def markdown(rows: list[Row], what: Mapping[str, str]) -> str:
    """Return the table for the docs; `what` says what each class is."""
    titles = ["fault", *HEADER[1:]]
    lines = ["| " + " | ".join(titles) + " |", "|" + "|".join([":--", *["--:"] * (len(titles) - 1)]) + "|"]
    for row in [*rows, total(rows)]:
        name, *numbers = cells(row)
        lines.append("| " + " | ".join([what.get(name, f"**{name}**").replace("|", "\\|"), *numbers]) + " |")
    return "\n".join(lines)
