"""One offline HTML page, and one sentence, from a run directory: `write_report`, `verdict`, and `read_run` that both rest on."""

from __future__ import annotations

from clnp.report.compare import compare, render_comparison
from clnp.report.page import write_page, write_report
from clnp.report.receipt import render_receipt
from clnp.report.run import Group, LearnedTask, Margin, Run, read_run
from clnp.report.wording import verdict

__all__ = [
    "Group",
    "LearnedTask",
    "Margin",
    "Run",
    "compare",
    "read_run",
    "render_comparison",
    "render_receipt",
    "verdict",
    "write_page",
    "write_report",
]
