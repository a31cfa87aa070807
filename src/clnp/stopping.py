"""Stop when a signal asks for it: after the step under way, with everything kept.

A handler that raises interrupts a program anywhere, in the middle of a commit too. The handlers here only take a note, and long work
asks for it where it can stop without loss. A second signal exits at once; files are written so that even then none is left half-written.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Generator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = b"\x1b[?25h\n"

_asked: list[int] = []  # the signals that came while `orderly` was at work


class Stopped(BaseException):
    """A signal asked for a stop, and this is a place where stopping loses nothing. No `except Exception` may swallow it.

    >>> Stopped(15).exit_code
    143
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """What a process that this signal ended exits with, by convention."""
        return 128 + self.number


def asked() -> bool:
    """Tell whether a signal asked for a stop."""
    return bool(_asked)


def check() -> None:
    """Stop here if a signal asked for it; cheap enough for every step.

    Raises:
        Stopped: it did.
    """
    if _asked:
        raise Stopped(_asked[0])


@contextlib.contextmanager
def orderly() -> Generator[None]:
    """Within the block, SIGINT and SIGTERM ask for a stop at the next `check`, and the second of them exits at once.

    Only the main thread can handle signals: in any other the block changes nothing. A signal that is ignored, as SIGINT is in a
    background job, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, _ask)
        yield
    finally:
        for number, handler in before.items():
            # None: it was installed by other than Python code, which is all that is known of it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _asked.clear()


def _ask(number: int, _frame: Any) -> None:
    """Take a note of the first signal; exit at the second."""
    if _asked:
        _exit_at_once(number)
    _asked.append(number)
    # Not print: a handler may run in the middle of another print.
    with contextlib.suppress(OSError):
        os.write(2, b"\nstopping after this step; press Ctrl-C again to stop at once\n")


def _exit_at_once(number: int) -> NoReturn:
    """Exit without tidying up, but for the cursor that a moving bar has hidden."""
    with contextlib.suppress(OSError):
        if os.isatty(2):
            os.write(2, SHOW_CURSOR)
    os._exit(128 + number)
