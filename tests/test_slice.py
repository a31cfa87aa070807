"""The slice of the table that CI runs again: it notices what has changed, in either direction."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import slice as slice_of_the_table
import tables

ENTRY = "clnp"


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Answer with what was kept, changed by a number; return the exit code."""
    kept = tables.found("permuted-mnist")[ENTRY][0]["accuracy_matrix"][1][:2]

    def measure(change=0.0, forgetting=0.0):
        summary = {"accuracy_matrix": [[kept[0] + change, kept[1] + change]], "forgetting": forgetting}
        monkeypatch.setattr(slice_of_the_table, "run", lambda *_, **__: summary)
        monkeypatch.setattr(sys, "argv", ["slice.py", "--data", str(tmp_path)])
        return slice_of_the_table.main()

    return measure


def test_what_is_kept_passes_and_what_has_changed_does_not(measured, capsys):
    assert measured() == 0
    assert measured(0.002) == measured(-0.002) == 0
    assert measured(-0.02) == measured(0.02) == 1, "better than what is kept is another thing, too"
    assert measured(forgetting=1e-4) == 1
    assert "something has changed" in capsys.readouterr().err


def test_the_tolerance_is_the_spread_over_seeds_where_there_are_some():
    assert slice_of_the_table.tolerance([[0.98, 0.98]]) == slice_of_the_table.TOLERANCE
    assert slice_of_the_table.tolerance([[0.98, 0.98], [0.98, 0.98]]) == slice_of_the_table.TOLERANCE
    assert slice_of_the_table.tolerance([[0.97, 0.97], [0.99, 0.99]]) == pytest.approx(3 * 0.02 / 2**0.5)
