"""Data sets, the embedded one and the published ones, and the tasks that are made of them."""

from __future__ import annotations

from clnp.data.folder import load_folder
from clnp.data.source import Source
from clnp.data.table import load_csv, load_npz
from clnp.data.task import JSON, Split, Task

__all__ = ["JSON", "Source", "Split", "Task", "load_csv", "load_folder", "load_npz"]
