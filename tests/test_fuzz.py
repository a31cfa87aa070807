"""Whatever bytes stand in a file: a reader reads them or says what is wrong, in bounded time; see fuzzing.py."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import fuzzing
from clnp.describe import open_ledger
from clnp.errors import ClnpError
from clnp.parsing import parse_json
from fuzzing import TARGETS

PIECES = [
    b"\n", b"\0", b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":", b"null", b"true", b"-1", b"1e999", b"NaN", b"9" * 30, b"0.5", b"\xff", b"\xef\xbb\xbf",
    b'"kind":"undone"', b'"format": 1', b'"record":0', b"[" * 50, b"&a [*a]", b"!!python/name:os.system", b"!!bool x", b"- - - ", b"? ", b"<<: ",
    b"../../etc/passwd", b'"shape":[18446744073709551616]', b'"data_offsets":[0,0]', b"\xff" * 8, b"inf", b".nan", b"2001-99-99",
    b'"dtype": "load"', b'"inputs": [null]', b'"widened": [{"a": -5}]', b"\\ud800", b'{"event": "evaluated", "after": 1e308}\n', b"e\xcc\x81",
]  # fmt: skip


@st.composite
def mutated(draw, content):
    """A file with a few pieces cut out, doubled, swapped or put in."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.integers(0, 40)))
        piece = content[start:stop]
        put = draw(
            st.one_of(
                st.just(b""),
                st.sampled_from(PIECES),
                st.binary(max_size=8),
                st.just(piece * 2),
                st.builds(lambda bit, piece=piece: bytes([piece[0] ^ 1 << bit, *piece[1:]]) if piece else b"", st.integers(0, 7)),
            )
        )
        if draw(st.integers(0, 9)) == 0:
            content = content[:start]
        content = content[:start] + put + content[stop:]
    return content


def fuzz(name, n_examples):
    target, whole = TARGETS[name]
    target(whole())

    @seed(0)
    @settings(max_examples=n_examples, deadline=None, database=None, print_blob=False, suppress_health_check=list(HealthCheck))
    @given(st.one_of(mutated(whole()), mutated(whole()), st.binary(max_size=200)))
    def run(content):
        start = time.process_time()
        target(content)
        assert time.process_time() - start < 2

    run()
    target(whole())


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_is_read_is_read_or_refused(name):
    fuzz(name, 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_whatever_is_read_is_read_or_refused_at_length(name):
    fuzz(name, 5000)


@pytest.mark.parametrize("name", ["model.json", "log.jsonl", "HEAD"])
def test_every_flipped_bit_is_refused(name):
    """Up to HEAD nothing can change unnoticed: not one bit of the files that say what counts."""
    open_ledger(fuzzing.model())
    path = fuzzing.model() / name
    whole = path.read_bytes()
    step = max(1, len(whole) * 8 // 250)
    try:
        for place in range(0, len(whole) * 8, step):
            content = bytearray(whole)
            content[place // 8] ^= 1 << place % 8
            path.write_bytes(content)
            with pytest.raises(ClnpError):
                open_ledger(fuzzing.model())
    finally:
        path.write_bytes(whole)
    open_ledger(fuzzing.model())


@settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@seed(0)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_whatever_is_written_is_read(value):
    assert parse_json(json.dumps(value).encode()) == value
