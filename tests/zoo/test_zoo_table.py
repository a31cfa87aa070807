"""The page that lists the networks says what the wiring finds."""

from __future__ import annotations

from zoo_networks import ZOO
from zoo_table import PAGE, page


def test_the_table_of_networks_is_up_to_date():
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "run: python tests/zoo/zoo_table.py"
    assert all(f"| {name} |" in text for name in ZOO)
