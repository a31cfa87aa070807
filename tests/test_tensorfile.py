"""A safetensors file that anybody may have sent: every malformed header is refused, at once, and nothing is allocated for it."""

from __future__ import annotations

import hashlib
import json
import time
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.torch import save

from clnp.tensorfile import N_BYTES, TensorEntry, index_arrays, tensor_table

DTYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64",
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.complex64: "C64",
    torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


def test_what_safetensors_writes_is_read():
    tensors = {str(dtype): torch.zeros(2, 3, dtype=dtype) for dtype in DTYPES} | {"scalar": torch.tensor(1.5), "none": torch.zeros(0, 4)}
    table = tensor_table(save(tensors))
    assert set(table) == set(tensors)
    for dtype, name in DTYPES.items():
        entry = table[str(dtype)]
        assert (entry.dtype, entry.shape, entry.n_bytes) == (name, [2, 3], 6 * tensors[str(dtype)].element_size())
        assert N_BYTES[name] == tensors[str(dtype)].element_size()
    assert table["scalar"].shape == []
    assert table["scalar"].sha256 == hashlib.sha256(np.float32(1.5).tobytes()).hexdigest()
    assert table["none"].n_bytes == 0
    assert tensor_table(save({})) == {}
    assert tensor_table(save({"a": torch.zeros(1)}, metadata={"made": "by hand"})).keys() == {"a"}


def test_lists_of_units_are_read_without_torch():
    arrays = index_arrays(save({"a": torch.tensor([3, -1, 2**40]), "b": torch.zeros(2), "c": torch.zeros(0, dtype=torch.int64)}))
    assert {name: array.tolist() for name, array in arrays.items()} == {"a": [3, -1, 2**40], "c": []}


def file_of(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(start, stop, dtype="U8", shape=None):
    return {"dtype": dtype, "shape": [stop - start] if shape is None else shape, "data_offsets": [start, stop]}


BROKEN = {
    "empty": b"",
    "shorter than its length": b"\1\0\0",
    "no header": (0).to_bytes(8, "little"),
    "a length beyond the file": file_of({}, length=1000),
    "a huge length": file_of({}, length=2**63),
    "the longest length": b"\xff" * 8 + b"{}",
    "no JSON": file_of(b"{'a': 1}"),
    "no UTF-8": file_of(b'{"\xff": 1}'),
    "no object": file_of([1, 2]),
    "a number": file_of(b"1"),
    "NaN": file_of(b'{"a": NaN}'),
    "deep": file_of(b"[" * 10_000_000 + b"]" * 10_000_000),
    "deep objects": file_of(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a long number": file_of(b'{"a": {"dtype": "U8", "shape": [' + b"9" * 1_000_000 + b'], "data_offsets": [0, 1]}}', b"x"),
    "names twice": file_of(b'{"a": %b, "a": %b}' % ((json.dumps(tensor(0, 1)).encode(),) * 2), b"x"),
    "keys twice": file_of(b'{"a": {"dtype": "U8", "dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}', b"x"),
    "overlapping": file_of({"a": tensor(0, 4), "b": tensor(2, 6)}, bytes(6)),
    "overlapping, and as much left over": file_of({"a": tensor(0, 4), "b": tensor(1, 3)}, bytes(6)),
    "the same place": file_of({"a": tensor(0, 4), "b": tensor(0, 4)}, bytes(4)),
    "a gap": file_of({"a": tensor(0, 2), "b": tensor(3, 4)}, bytes(4)),
    "a gap at the start": file_of({"a": tensor(1, 4)}, bytes(4)),
    "bytes at the end": file_of({"a": tensor(0, 3)}, bytes(4)),
    "bytes of nobody": file_of({}, b"x"),
    "beyond the file": file_of({"a": tensor(0, 5)}, bytes(4)),
    "backwards": file_of({"a": tensor(4, 0, shape=[0])}, bytes(4)),
    "negative place": file_of({"a": tensor(-4, 0, shape=[4])}, bytes(4)),
    "negative size": file_of({"a": tensor(0, 4, shape=[-2, -2])}, bytes(4)),
    "wrong size": file_of({"a": tensor(0, 4, shape=[5])}, bytes(4)),
    "wrong dtype": file_of({"a": tensor(0, 4, dtype="F64", shape=[4])}, bytes(4)),
    "unknown dtype": file_of({"a": tensor(0, 4, dtype="X4")}, bytes(4)),
    "a pickled dtype": file_of({"a": tensor(0, 4, dtype="O")}, bytes(4)),
    "dtype no text": file_of({"a": tensor(0, 4, dtype=["U8"])}, bytes(4)),
    "huge shape": file_of({"a": tensor(0, 4, shape=[2**47, 2**47])}, bytes(4)),
    "a size of 2**48": file_of({"a": tensor(0, 0, shape=[2**48, 0])}),
    "huge sizes that wrap to fit": file_of({"a": tensor(0, 0, shape=[2**32, 2**32])}),
    "many dimensions": file_of({"a": tensor(0, 1, shape=[1] * 17)}, b"x"),
    "a million dimensions": file_of({"a": tensor(0, 1, shape=[1] * 1_000_000)}, b"x"),
    "fractions": file_of({"a": tensor(0, 4, shape=[4.0])}, bytes(4)),
    "truth": file_of({"a": tensor(0, 1, shape=[True])}, b"x"),
    "three offsets": file_of({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4, 4]}}, bytes(4)),
    "no offsets": file_of({"a": {"dtype": "U8", "shape": [4]}}, bytes(4)),
    "more keys": file_of({"a": tensor(0, 4) | {"more": 1}}, bytes(4)),
    "no entry": file_of({"a": 5}, bytes(4)),
    "metadata alone": file_of({"__metadata__": {"a": "b"}}, b"x"),
    "too many tensors": file_of({f"{n}": tensor(0, 0) for n in range(1001)}),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_malformed_file_is_refused_at_once(what, monkeypatch):
    monkeypatch.setattr("clnp.tensorfile.MAX_TENSORS", 1000)
    content, start = BROKEN[what], time.process_time()
    for read in (tensor_table, index_arrays):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            read(content)
        assert len(str(caught.value)) < 1000, "the message is for a person"
    assert time.process_time() - start < 4


@pytest.mark.parametrize(
    "what", ["a huge length", "the longest length", "huge shape", "huge sizes that wrap to fit", "a size of 2**48", "beyond the file"]
)
def test_nothing_is_allocated_for_what_a_header_claims(what):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):  # noqa: PT011
            tensor_table(BROKEN[what])
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_tensors_are_not_copied():
    content = save({"a": torch.zeros(2_000_000)})
    tracemalloc.start()
    try:
        tensor_table(content)
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 20, -1, -9])
def test_a_file_cut_anywhere_is_refused(cut):
    content = save({"a": torch.arange(5), "b": torch.ones(3)})
    with pytest.raises(ValueError):  # noqa: PT011
        tensor_table(content[:cut])


def test_an_entry_is_checked_as_records_are():
    for wrong in ({"sha256": "x"}, {"shape": [1] * 17}, {"dtype": 1}, {"shape": ["1"]}):
        with pytest.raises(ValueError):  # noqa: PT011
            TensorEntry(**{"dtype": "F32", "shape": [1], "sha256": "0" * 64, **wrong})
