"""Read JSON and YAML from files that anybody may have written: bounded in depth, nothing twice, nothing executed."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import yaml

MAX_DEPTH = 32
"""Brackets in brackets; our own files need less than ten."""
MAX_YAML = 2**20
"""Bytes of a configuration."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


def parse_json(content: bytes) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: it is no JSON of UTF-8, nested deeper than `MAX_DEPTH`, a key stands in it twice, or a number is NaN, infinite
            or absurdly long; the message is one line.

    >>> parse_json(b'{"a": [1, 2.5, "x"]}')
    {'a': [1, 2.5, 'x']}
    >>> parse_json(b'{"a": 1, "a": 2}')
    Traceback (most recent call last):
        ...
    ValueError: key 'a' stands twice in one object
    """
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", content)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > MAX_DEPTH:
            msg = f"it is nested deeper than {MAX_DEPTH}"
            raise ValueError(msg)
    return json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of pairs, none of which may hide another."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        msg = f"key {twice[:60]!r} stands twice in one object"
        raise ValueError(msg)
    return found


def _no_constant(name: str) -> Any:
    msg = f"{name} is no number of JSON"
    raise ValueError(msg)


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_constant(text[:60])


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which can make a few bytes into gigabytes, no deeper than JSON, and no key twice."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            msg = "aliases (*name) are not read"
            raise yaml.YAMLError(msg)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            msg = f"it is nested deeper than {MAX_DEPTH}"
            raise yaml.YAMLError(msg)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            msg = "a key stands twice in one mapping"
            raise yaml.YAMLError(msg)
        return found


def parse_yaml(content: bytes | str) -> Any:
    """Return what a YAML text says: plain data, no tags of Python, no aliases.

    Raises:
        ValueError: it is no such YAML of UTF-8, or longer than `MAX_YAML`; the message is one line.

    >>> parse_yaml("a: [1, yes]")
    {'a': [1, True]}
    """
    if len(content) > MAX_YAML:
        msg = f"expected at most {MAX_YAML:,} bytes, found {len(content):,}"
        raise ValueError(msg)
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        loader = _PlainLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, ArithmeticError, TypeError, LookupError, AttributeError, RecursionError) as error:
        # PyYAML raises whatever its constructors stumble over: `!!bool x` is a KeyError.
        msg = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(msg) from error
