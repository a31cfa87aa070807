"""Write files so that a crash leaves the old content or the new one, never half of it."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


def write_atomic(path: Path, data: bytes | str, *, durable: bool = True) -> None:
    """Replace a file as a whole: a temporary file beside it, fsync, rename, fsync of the directory.

    Args:
        path: of the file; its directory exists.
        data: the whole content; text is written as UTF-8.
        durable: see `replacing`.

    Raises:
        OSError: it cannot be written; the old content is still there, and nothing beside it.
    """
    with replacing(path, durable=durable) as beside:
        beside.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Generator[Path]:
    """Give the name of a temporary file beside `path`; what the block wrote there is put in place when it ends without an error.

    Whatever the block raises leaves the old content, and nothing beside it. A process that is killed leaves the temporary file,
    which the next one overwrites.

    Args:
        path: of the file that is replaced; its directory exists.
        durable: reach the disk before the name does. Without it only a loss of power can tear the file, and nothing waits for the
            disk: for what is disposable and carries a checksum.
    """
    beside = path.with_name(path.name + ".new")
    try:
        yield beside
        if durable:
            with beside.open("rb") as file:
                os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    if not durable:
        return
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
