"""Write files so that a crash leaves the old content or the new one, never half of it."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace a file as a whole: a temporary file beside it, fsync, rename, fsync of the directory.

    Args:
        path: of the file; its directory exists.
        data: the whole content; text is written as UTF-8.

    Raises:
        OSError: it cannot be written; the old content is still there, and nothing beside it.
    """
    beside = path.with_name(path.name + ".new")
    try:
        with beside.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
