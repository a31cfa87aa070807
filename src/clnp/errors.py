"""Every exception that `clnp` raises on purpose.

    ClnpError
    ├── ConfigError        a setting has a value that cannot work
    ├── DataError          examples or labels are not what a task needs (empty, wrong shape, NaN, labels out of range)
    ├── TaskError          a task name is unknown, duplicate or not allowed
    ├── CapacityError      no group has a free unit left for a new task
    ├── TrainingError      the loss or a gradient became NaN or infinite; the task was abandoned
    ├── WiringError        the network holds an operation whose units cannot be told apart
    ├── ExportError        a predictor cannot be exported, or what was exported does not compute what it computes
    └── StoreError         a model or run directory is missing, in use, or of another network
        └── DamageError    a file of it is not what was written

A message says what was being done, what was expected, what was found, and what to do. Whatever is raised while a task is
learned leaves the learner as it was: the tasks committed before are untouched.

>>> issubclass(CapacityError, ClnpError)
True
"""

from typing import Any


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error that another library raised, for a message of one line.

    >>> first_line(ValueError("too wide\nby far")), first_line(ValueError())
    ('too wide', 'ValueError')
    """
    listed = getattr(error, "errors", None)  # pydantic's error: its first line only counts
    if callable(listed):
        first: Any = listed()
        return f"{'.'.join(map(str, first[0]['loc'])) or 'it'}: {first[0]['msg']}"[:300]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def one_line(text: str) -> str:
    r"""Return a text in which nothing breaks the line or steers a terminal: names and paths that a message quotes may hold anything.

    >>> one_line("there is no 'a\nb'")
    "there is no 'a\\nb'"
    """
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


class ClnpError(Exception):
    """The base of all of them: `except clnp.ClnpError` catches what this library raises on purpose."""

    def __str__(self) -> str:
        """Return the message, in one line."""
        return one_line(str(self.args[0]) if self.args else "")


class ConfigError(ClnpError, ValueError):
    """A setting has a value that cannot work."""


class DataError(ClnpError, ValueError):
    """Examples or labels are not what a task needs."""


class TaskError(ClnpError, KeyError):
    """A task name is unknown, duplicate or not allowed."""


class CapacityError(ClnpError):
    """No group has a free unit left for a new task."""


class TrainingError(ClnpError):
    """The loss or a gradient became NaN or infinite; the task was abandoned."""


class WiringError(ClnpError):
    """The network holds an operation whose units cannot be told apart."""


class ExportError(ClnpError):
    """A predictor cannot be exported, or what was exported does not compute what it computes."""


class StoreError(ClnpError):
    """A model or run directory is missing, in use, or of another network."""


class DamageError(StoreError):
    """A file of a model or run directory is not what was written; the message names it and the way out."""


def damaged(file: object, what: str, record: str = "") -> DamageError:
    """Return the error for a file that is not what was committed: which one, what is wrong, the way out."""
    of = f" ({record})" if record else ""
    return DamageError(f"cannot read '{file}'{of}: it is damaged: {what}. Restore this file from a copy of the directory.")
