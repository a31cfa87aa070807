"""Continual learning that provably forgets nothing: one network of fixed size, task after task."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clnp import wiring
    from clnp.allocation import FREE, Allocation
    from clnp.auditing import audit
    from clnp.config import LearnConfig
    from clnp.errors import (
        CapacityError,
        ClnpError,
        ConfigError,
        DamageError,
        DataError,
        ExportError,
        StoreError,
        TaskError,
        TrainingError,
        WiringError,
    )
    from clnp.export import ExportResult
    from clnp.forecast import Forecast
    from clnp.importance import CRITERIA
    from clnp.learner import Learner
    from clnp.patches import apply_patch, make_patch
    from clnp.records import GroupCapacity, LearnResult
    from clnp.verification import Verification, verify
    from clnp.wider import widen

__version__ = "0.1.0"
__all__ = [
    "CRITERIA",
    "FREE",
    "Allocation",
    "CapacityError",
    "ClnpError",
    "ConfigError",
    "DamageError",
    "DataError",
    "ExportError",
    "ExportResult",
    "Forecast",
    "GroupCapacity",
    "LearnConfig",
    "LearnResult",
    "Learner",
    "StoreError",
    "TaskError",
    "TrainingError",
    "Verification",
    "WiringError",
    "apply_patch",
    "audit",
    "make_patch",
    "verify",
    "widen",
    "wiring",
]

# Names are imported when they are first used: `clnp --help` must not wait for torch.
_HOMES = {
    "allocation": ("FREE", "Allocation"),
    "config": ("LearnConfig",),
    "errors": (
        "CapacityError",
        "ClnpError",
        "ConfigError",
        "DamageError",
        "DataError",
        "ExportError",
        "StoreError",
        "TaskError",
        "TrainingError",
        "WiringError",
    ),
    "export": ("ExportResult",),
    "forecast": ("Forecast",),
    "importance": ("CRITERIA",),
    "learner": ("Learner",),
    "records": ("GroupCapacity", "LearnResult"),
    "auditing": ("audit",),
    "patches": ("apply_patch", "make_patch"),
    "verification": ("Verification", "verify"),
    "wider": ("widen",),
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name == "wiring":
        return import_module("clnp.wiring")
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'clnp' has no attribute {name!r}")
    return getattr(import_module(f"clnp.{home}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
