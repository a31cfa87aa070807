"""Files that somebody made with ideas: pickles, bombs, headers that lie, in the place of every file of a model."""

from __future__ import annotations

import io
import json
import pickle
import resource
import struct
import zipfile
from typing import TYPE_CHECKING

import numpy as np

from faulty.damage import CANARY, MUCH, judge_damage
from faulty.processes import Case, some
from faulty.stage import MODEL, Stage, lay

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from faulty.board import Verdict


class Evil:
    """Unpickling it makes the canary."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (self.path, "w"))


def hostile(stage: Stage, rng: random.Random, n: int | None) -> Iterator[Case]:
    """Malicious pickles, zip, PNG and header bombs, deep JSON, aliases, names that stand twice: in the place of every file."""
    cases: list[Case] = []
    for name in stage.rich:
        for what, make in CONTENTS.items():
            cases.append(_hostile(stage, name, what, make))
    for what, make in HEADERS.items():
        for name in ("tasks/000.safetensors", "constants.safetensors", "probe.safetensors"):
            cases.append(_hostile(stage, name, what, lambda _, content=make: content))
    yield from some(rng, cases, n)


def _hostile(stage: Stage, name: str, what: str, make: Callable[[Path], bytes]) -> Case:
    def prepare(root: Path) -> None:
        lay(root / MODEL, stage.rich)
        (root / MODEL / name).write_bytes(make(root))

    def judge(root: Path) -> Verdict:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        verdict = judge_damage(stage.rich, stage.rich_state, root)
        if 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) > MUCH:
            verdict.blame("person", "it takes too much memory")
        return verdict

    return Case(f"{name} is {what}", prepare, judge)


def _zip(root: Path) -> bytes:
    """A torch.save archive with a malicious pickle."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil(str(root / CANARY))))
        archive.writestr("../../escaped", b"x")
    return packed.getvalue()


def zip_bomb() -> bytes:
    """A few kilobytes that unpack to a gigabyte."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (2**27,)})
        for _ in range(64):
            member.write(bytes(2**20))
    return packed.getvalue()


def header(text: bytes | str, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file with a header of that text, or one that says it has another length."""
    content = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(content) if length is None else length) + content + data


def _entry(dtype: str, shape: list[int], start: int, stop: int) -> str:
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": [start, stop]})


DEEP = 100_000
CONTENTS: dict[str, Callable[[Path], bytes]] = {
    "a malicious pickle": lambda root: pickle.dumps(Evil(str(root / CANARY))),
    "a zip with a malicious pickle": _zip,
    "a zip bomb": lambda _: zip_bomb(),
    "deep JSON": lambda _: b"[" * DEEP + b"]" * DEEP + b"\n",
    "deep JSON of objects": lambda _: b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"\n",
    "a huge number": lambda _: b'{"format":' + b"9" * 100_000 + b"}\n",
    "NaN": lambda _: b'{"format":NaN,"record":Infinity}\n',
    "a key that stands twice": lambda _: b'{"format":3,"format":3,"record":1,"sha256":"' + b"0" * 64 + b'"}\n',
    "no UTF-8": lambda _: b'{"format":3,"x":"\xff\xfe\xc0\x80"}\n',
    "lone surrogates": lambda _: b'{"format":3,"x":"\\ud800"}\n',
    "YAML aliases": lambda _: b"a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n",
    "newlines": lambda _: b"\n" * 5000,
    "zeros": lambda _: bytes(5000),
    "a list": lambda _: b"[1, 2, 3]\n",
    "null": lambda _: b"null\n",
    "quotes": lambda _: b'"' * 20_001 + b"\n",
    "backslashes": lambda _: b'"' + b"\\" * 20_001 + b"\n",
}
HEADERS: dict[str, bytes] = {
    "a header of 2^63 bytes": header("{}", length=2**63),
    "a header of 2^64-1 bytes": header("{}", length=2**64 - 1),
    "a tensor of 2^60 elements": header('{"rows/0.weight":' + _entry("F32", [2**60], 0, 2**62) + "}"),
    "a tensor of 2^40 rows of nothing": header('{"rows/0.weight":' + _entry("F32", [2**40, 0], 0, 0) + "}"),
    "a tensor of 10,000 dimensions": header('{"rows/0.weight":' + _entry("F32", [1] * 10_000, 0, 4) + "}", bytes(4)),
    "a tensor with negative sizes": header('{"rows/0.weight":' + _entry("F32", [-1, -4], 0, 16) + "}", bytes(16)),
    "tensors that overlap": header('{"a":' + _entry("F32", [2], 0, 8) + ',"b":' + _entry("F32", [2], 4, 12) + "}", bytes(12)),
    "a tensor that goes backwards": header('{"a":' + _entry("F32", [2], 8, 0) + "}", bytes(8)),
    "a deep header": header(b"[" * DEEP + b"]" * DEEP),
    "a header with a name twice": header('{"a":' + _entry("F32", [1], 0, 4) + ',"a":' + _entry("F32", [1], 0, 4) + "}", bytes(4)),
    "a hundred thousand tensors": header(
        json.dumps({str(n): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(100_001)})
    ),
    "a tensor of Python": header('{"a":{"dtype":"PICKLE","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "shapes of floats": header('{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', bytes(4)),
}
