"""The zoo: every network of it, by name."""

from __future__ import annotations

import zoo_attention
import zoo_biases
import zoo_convolutional
import zoo_language
import zoo_mixed
import zoo_mobile
import zoo_sequence
from zoo_entry import Entry, network, trunk

MODULES = (zoo_mixed, zoo_convolutional, zoo_mobile, zoo_attention, zoo_language, zoo_sequence, zoo_biases)
ZOO: dict[str, Entry] = {entry.name: entry for module in MODULES for entry in module.ENTRIES}

__all__ = ["ZOO", "Entry", "network", "trunk"]
