"""Modes of torch that the caller may be in: they do not reach what is computed here, or the same network would answer otherwise."""

from __future__ import annotations

import contextlib
import logging
from functools import cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

_EXACT = ("none", "ieee")
_MULTIPLY_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""What a processor is said to have that multiplies in bfloat16 itself, x86 and ARM."""
_lock = Lock()
_inside = 0
_give_back: list[Callable[[], None]] = []


@contextlib.contextmanager
def threads(n_threads: int | None) -> Generator[None]:
    """Run a block with so many torch threads."""
    before = torch.get_num_threads()
    try:
        if n_threads is not None:
            torch.set_num_threads(n_threads)
        yield
    finally:
        torch.set_num_threads(before)


def multiply(precision: str, device: torch.device) -> torch.autocast:
    """Return the block in which products are made in this precision; where the processor has no bfloat16, say once what that costs."""
    if precision == "bfloat16":
        _warn_of_emulation(device.type)
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@cache
def _warn_of_emulation(kind: str) -> None:
    able: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 has it
    told = [able[name] for name in _MULTIPLY_BFLOAT16 if name in able]
    if kind == "cpu" and told and not any(told):
        logging.getLogger("clnp").warning(
            "precision is bfloat16, and this processor (%s) does not multiply in it: torch emulates it, and training may take many times as long "
            "as in float32.",
            able.get("cpu_name", "unknown"),
        )


@contextlib.contextmanager
def undisturbed(n_threads: int | None) -> Generator[None]:
    """Run a block with so many torch threads, with gradients and in full precision, whatever modes the caller is in."""
    with threads(n_threads), torch.inference_mode(mode=False), torch.enable_grad(), exactly():
        yield


@contextlib.contextmanager
def exactly() -> Generator[None]:
    """Run a block in which float32 is float32: without the caller's autocast, and without products in fewer bits.

    How float32 numbers are multiplied (`torch.set_float32_matmul_precision`, `torch.backends.*.fp32_precision`) is a setting of the whole
    process: the first thread that comes makes it exact, the last that leaves gives back what was set.
    """
    global _inside  # noqa: PLW0603  # so is the setting
    with contextlib.ExitStack() as stack:
        for device in {"cpu", torch.accelerator.current_accelerator(check_available=True) or "cpu"}:
            kind = torch.device(device).type
            if torch.is_autocast_enabled(kind):
                # Its cache of weights is emptied where the outermost block ends: within it, the next step would compute with those of the last.
                stack.enter_context(torch.autocast(kind, enabled=False, cache_enabled=False))
        with _lock:
            if not _inside:
                _give_back[:] = _make_exact()
            _inside += 1
        try:
            yield
        finally:
            with _lock:
                _inside -= 1
                while not _inside and _give_back:
                    _give_back.pop()()


def _make_exact() -> list[Callable[[], None]]:
    """Make products of float32 numbers exact, and return what gives back the settings that were changed, in the order of the changes."""
    changed: list[Callable[[], None]] = []
    try:
        everywhere = torch.get_float32_matmul_precision()
    except RuntimeError:  # some operations were set by themselves, and there is no one answer
        everywhere = "highest"
    if everywhere != "highest":
        torch.set_float32_matmul_precision("highest")
        changed.append(partial(torch.set_float32_matmul_precision, everywhere))
    mkldnn: Any = torch.backends.mkldnn
    operations: tuple[Any, ...] = (mkldnn.matmul, mkldnn.conv, mkldnn.rnn, torch.backends.cuda.matmul)
    for operation in operations:
        before: str = operation.fp32_precision
        if before not in _EXACT:
            operation.fp32_precision = "ieee"
            changed.append(partial(_set_back, operation, before))
    return changed


def _set_back(operation: Any, precision: str) -> None:
    operation.fp32_precision = "none"  # what a backend says for all of its operations holds again
    if operation.fp32_precision != precision:
        operation.fp32_precision = precision
