"""Names of tasks and classes are data: any text a person can read, never a path."""

from __future__ import annotations

import unicodedata

MAX_NAME = 200


def composed(name: str) -> str:
    """Return a name in its composed form (NFC): however it was typed, it is the same name."""
    return unicodedata.normalize("NFC", name)


def clean_name(name: str) -> str:
    r"""Return a name in its composed form (NFC): what looks the same is the same.

    Raises:
        ValueError: it is empty, longer than `MAX_NAME` characters, or holds control, format or unassigned characters.

    >>> clean_name("cafe\u0301") == clean_name("caf\u00e9")
    True
    >>> clean_name("../../etc/passwd")  # no path will ever be made of it
    '../../etc/passwd'
    """
    name = composed(name)
    if not name or not name.isprintable() or len(name) > MAX_NAME:
        msg = f"a name has 1 to {MAX_NAME} printable characters"
        raise ValueError(msg)
    return name
