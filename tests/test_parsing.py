"""JSON and YAML that anybody may have written: bounded, nothing twice, nothing executed."""

from __future__ import annotations

import json
import time
import tracemalloc

import pytest

from clnp.parsing import MAX_DEPTH, MAX_YAML, parse_json, parse_yaml


@pytest.mark.parametrize("value", [{}, [], None, True, 1, -1.5e300, "", "ß 任 \"'\\ [{", {"a": [1, {"b": []}]}, 10**300])
def test_json_is_read(value):
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, indent=2, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "a": 1}', "'a' stands twice"),
        (b'{"x": {"a": 1, "b": 2, "a": 3}}', "'a' stands twice"),
        (b'{"\\u0061": 1, "a": 2}', "'a' stands twice"),
        (b"[NaN]", "NaN is no number"),
        (b"[Infinity]", "Infinity is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"[1e999]", ""),
        (b"", ""), (b"{", ""), (b"[1,]", ""), (b"{}{}", ""), (b"'a'", ""), (b"\xff", ""), (b"\xef\xbb\xbf{}", ""), (b"\0", ""),
        ("{}".encode("utf-16"), ""), (b'"\\ud800', ""), (b"[" * 40 + b"]" * 40, "nested deeper than 32"), (b"[" * 1000, ""),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested deeper"), (b"9" * 5000, ""), (b'"' * 3, ""), (b'"\\', ""),
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message or None) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)


def test_depth_is_counted_outside_of_text():
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    for text in ("[" * 100, '"' + "[" * 100, "\\" + "{" * 100, "[" * 50 + "\\" + '"' + "[" * 50):
        assert parse_json(json.dumps([text]).encode()) == [text]
    with pytest.raises(ValueError, match="nested"):
        parse_json(b'"a"' + b"[" * 40)


@pytest.mark.parametrize(
    "text",
    [b"[" * 3_000_000, b'{"a":' * 500_000, b'"' + b"\\" * 3_000_001, b'"' * 3_000_001, b"[" + b"1," * 1_000_000, b'"a' * 1_000_001],
    ids=["lists", "objects", "backslashes", "quotes", "a long list", "text"],
)
def test_a_large_text_takes_time_in_proportion(text):
    start = time.process_time()
    with pytest.raises(ValueError):  # noqa: PT011
        parse_json(text)
    assert time.process_time() - start < 3


def test_yaml_is_read():
    assert parse_yaml("a: [1, 2.5, yes, null, 'x']\nb: {c: ß}") == {"a": [1, 2.5, True, None, "x"], "b": {"c": "ß"}}
    assert parse_yaml(b"a: 1\n") == {"a": 1}
    assert parse_yaml("") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("!!python/name:os.system", "could not determine"),
        ("[" * 50 + "]" * 50, "nested deeper"),
        ("[" * 100_000, "nested deeper"),
        ("{a: " * 50 + "1" + "}" * 50, "nested deeper"),
        ("- " * 100_000 + "a", "nested deeper"),
        ("a: [1", ""), ("a: b: c", ""), (b"\xff\xfe\xff", ""), ("a: \0", ""), ("--- 1\n--- 2", ""), ("? {a: 1}\n: 2", ""), ("? [a]\n: 2", ""),
        ("a: 1\na: 2", "twice"), ("x: {b: 1, b: 2}", "twice"),
        ("a: 2001-99-99", ""), ("a: !!int x", ""), ("a: !!int ''", ""), ("a: !!float '1:x'", ""), ("a: 0x_", None), ("a: 1_:_:1", None), ("a: !!float ''", ""), ("<<: 1", ""), ("a: !!binary '='", None), ("a: !!timestamp x", ""), ("a: !!bool x", ""), ("!!set {a: 1}: 2", ""),
        ("=", ""), ("a: 1:99999999999999999999:1", None), ("x" * (MAX_YAML + 1), "expected at most"),
    ],
)  # fmt: skip
def test_what_is_no_such_yaml_is_refused_in_one_line(text, message):
    try:
        parse_yaml(text)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert (message or "") in str(error)  # noqa: PT017
    else:
        assert message is None


def test_aliases_do_not_blow_up():
    text = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="aliases"):
            parse_yaml(text)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
