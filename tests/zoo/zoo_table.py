"""The table of docs/networks.md: every network of the zoo with its groups, units, what is merged and why.

`python tests/zoo/zoo_table.py` writes it anew; test_zoo.py checks that it is up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from zoo_networks import ZOO, network, trunk

from clnp.wiring import Wiring, trace

PAGE = Path(__file__).parents[2] / "docs" / "networks.md"
START, END = "<!-- table: start (tests/zoo/zoo_table.py) -->", "<!-- table: end -->"


def row(name: str, wiring: Wiring) -> str:
    """One line of Markdown for a network; what was counted by hand is what the wiring found, see test_zoo.py."""
    groups = ", ".join(f"{group.name} {group.n_units}" for group in wiring.groups if not group.shared)
    shared = ", ".join(group.name for group in wiring.groups if group.shared)
    why = "; ".join(dict.fromkeys(f"{reason}" for reason in ZOO[name].merged.values()))
    lost = "**capacity lost**: " if any(group.lost for group in wiring.groups) else ""
    return f"| {name} | {groups} | {shared or '-'} | {lost}{why or '-'} |"


def rows() -> list[str]:
    """All lines of the table."""
    lines = ["| network | units by group | shared by all tasks | merged, and why |", "|---|---|---|---|"]
    return lines + [row(name, trace(trunk(entry, network(entry)), entry.example(2))) for name, entry in ZOO.items()]


def page(text: str) -> str:
    """Return the page with the table in its place."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{chr(10).join(rows())}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
