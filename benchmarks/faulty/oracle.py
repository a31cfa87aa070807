"""Who judges: what a fault has left in a directory, against what was acknowledged outside of it."""
# The benchmark looks inside, as the tests do.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import clnp
from faulty.board import Verdict
from faulty.stage import MODEL, Scenario, Stage, State, acknowledged, load, said, state_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """What a program is told when a directory cannot be read."""

    kind: str
    is_ours: bool
    message: str


def look(directory: Path) -> State | Problem:
    """Load a directory as any program does, and ask every predictor."""
    try:
        return state_of(load(directory))
    except Exception as error:  # whatever it is, it is judged
        return Problem(type(error).__name__, isinstance(error, clnp.ClnpError), str(error))


def check_message(verdict: Verdict, problem: Problem | tuple[str, bool, str], *names: str) -> None:
    """Check that an error is one of ours, has one line, and says one of some names."""
    kind, is_ours, message = (problem.kind, problem.is_ours, problem.message) if isinstance(problem, Problem) else problem
    if not is_ours or not message.strip() or "\n" in message.strip() or (names and not any(name in message for name in names)):
        verdict.blame("unclear", f"{kind}: {message[:200]!r}")


def compare(verdict: Verdict, found: State | Problem, states: Sequence[State | None], sure: int) -> None:
    """Compare what was found with what was acknowledged (`states[sure]`) and what was under way (the later ones)."""
    certain = states[sure]
    if isinstance(found, Problem):
        check_message(verdict, found, MODEL)
        if certain is not None:
            verdict.blame("lost", f"cannot be read: {found.message[:200]}", max(len(certain), 1))
            verdict.blame("person", "the directory is refused")
        return
    if found in states[sure:]:
        return
    known = {name: {sha for state in states for other, sha in state or () if other == name} for name, _ in found}
    kept = set(found)
    verdict.blame("wrong", f"found {[name for name, _ in found]}, which was never committed") if found not in states else None
    for name, sha in found:
        if known[name] and sha not in known[name]:
            verdict.blame("drift", f"task '{name}' answers otherwise")
    for name, sha in certain or ():
        if (name, sha) not in kept:
            verdict.blame("lost", f"task '{name}' was acknowledged")


def judge_commits(scenario: Scenario, root: Path, *, go_on: bool = True) -> Verdict:
    """Judge what a fault in commits has left, then go on as the same program does, and judge again."""
    verdict = Verdict()
    sure, state = acknowledged(root)
    if state is not None and state != scenario.states[sure]:
        verdict.blame("drift", "the learner answers otherwise after it was saved")
    for error in said(root):
        check_message(verdict, error, MODEL)
    compare(verdict, look(root / MODEL), scenario.states, sure)
    if go_on:
        finish(verdict, scenario, root / MODEL)
    return verdict


def finish(verdict: Verdict, scenario: Scenario, directory: Path) -> None:
    """Go on as the same program does: save the learner, without cleaning anything."""
    try:
        scenario.last.save(directory)
    except Exception as error:  # whatever it is, it is judged
        verdict.blame("person", f"cannot go on: {type(error).__name__}: {str(error)[:200]}")
        return
    found = look(directory)
    if found != scenario.states[-1]:
        verdict.blame("person", f"went on to something else: {found}")


def walk(stage: Stage, only: Sequence[str] | None = None) -> Iterator[Scenario]:
    """Yield the scenarios."""
    yield from (scenario for scenario in stage.scenarios if only is None or scenario.name in only)
