"""A random generator for each place in a run.

One global generator makes every draw depend on all draws before it, so that a resumed run, or one with a further
evaluation, goes another way. Here each place (seed, "task", 3, "epoch", 7) has its own stream.
"""

from __future__ import annotations

import hashlib
import json
import operator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from clnp.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping


def check_seed(seed: int) -> int:
    """Return a seed as a plain int, of numpy's integers too.

    Raises:
        ConfigError: it is no whole number.
    """
    try:
        return operator.index(seed)
    except TypeError:
        raise ConfigError(f"cannot use the seed {seed!r}: expected a whole number, found {type(seed).__name__}.") from None


def seed_of(*place: int | str) -> int:
    """Return the 63-bit seed that belongs to a place in a run.

    >>> seed_of(0, "task", 3) == seed_of(0, "task", 3)
    True
    >>> seed_of(0, "task", 3) == seed_of(0, "task", 4)
    False
    """
    digest = hashlib.sha256(json.dumps([part if isinstance(part, str) else operator.index(part) for part in place]).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*place: int | str) -> torch.Generator:
    """Return a CPU generator for a place in a run; the same place always gives the same stream."""
    return torch.Generator().manual_seed(seed_of(*place))


@contextmanager
def seeded(*place: int | str, device: torch.device | str = "cpu") -> Generator[None]:
    """Run a block with torch's global generators (dropout draws from them) seeded for a place, and put them back after."""
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed_of(*place))
        yield


def noise(device: torch.device) -> dict[str, torch.Tensor]:
    """Return where torch's global generators stand, those that dropout on a device draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_noise_(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Put torch's global generators where `noise` found them."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif "mps" in states:
        torch.mps.set_rng_state(states["mps"])


@contextmanager
def drawing_from(source: torch.Generator) -> Generator[None]:
    """Run a block with torch's global generator seeded by a draw from `source`, and put it back after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=source)))
        yield
