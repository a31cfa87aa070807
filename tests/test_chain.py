"""Which record may follow which, and the one spelling that each has."""

from __future__ import annotations

import json

import pytest

from clnp.chain import check_record, read_log
from clnp.entries import START, Created, FileEntry, Head, Learned, Undone, Widened, read_head, read_record, spelled
from clnp.errors import DamageError
from clnp.files import digest

FILE = FileEntry(bytes=3, sha256="0" * 64)


def created(**more):
    return Created(**{"number": 0, "time": 1.0, "previous": START, "files": {"model.json": FILE}, **more})


def learned(number, task, file, **more):
    fields = {"task": task, "file": file, "content": FILE, "tensors": {}, "n_classes": 2, "head": "multi", "private": False}
    return Learned(**{"number": number, "time": 1.0, "previous": START, **fields, **more})


def undone(number, record, task, *, purged=False):
    return Undone(number=number, time=1.0, previous=START, record=record, task=task, purged=purged)


def widened(number, **added):
    return Widened(number=number, time=1.0, previous=START, added=added or {"a": 1})


def chain(*records):
    """Give records the hashes that they should have."""
    done, hashes = [], []
    for record in records:
        done.append(record.model_copy(update={"previous": hashes[-1] if hashes else START}))
        hashes.append(digest(spelled(done[-1])))
    return done, hashes


def check(*records):
    done, hashes = chain(*records)
    for number, record in enumerate(done):
        check_record(record, done[:number], hashes[:number])


def test_a_history_that_can_be():
    check(
        created(),
        learned(1, "a", 0),
        learned(2, "b", 1),
        undone(3, 1, "a"),
        learned(4, "a", 2),
        widened(5),
        learned(6, "c", 3, width=1),
        undone(7, 4, "a", purged=True),
        undone(8, 1, "a", purged=True),
        learned(9, "a", 4, width=1),
    )


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ((learned(0, "a", 0),), "of kind 'learned' cannot stand here"),
        ((undone(0, 0, "a"),), "of kind 'undone' cannot stand here"),
        ((widened(0),), "of kind 'widened' cannot stand here"),
        ((created(), created(number=1)), "of kind 'created' cannot stand here"),
        ((created(files={"constants.safetensors": FILE}),), "says nothing of model.json"),
        ((created(number=1),), "expected record 0, found record 1"),
        ((created(), learned(2, "a", 0)), "expected record 1, found record 2"),
        ((created(), learned(1, "a", 1)), "expected file number 0, found 1"),
        ((created(), learned(1, "a", 0), learned(2, "b", 0)), "expected file number 1, found 0"),
        ((created(), learned(1, "a", 0), undone(2, 1, "a"), learned(3, "b", 0)), "expected file number 1, found 0"),
        ((created(), learned(1, "a", 0), learned(2, "a", 1)), "a task 'a' is there already"),
        ((created(), learned(1, "a", 0, width=1)), "its width is 1"),
        ((created(), widened(1), learned(2, "a", 0)), "its width is 0"),
        ((created(), undone(1, 0, "a")), "no task 'a' in record 0 to undo"),
        ((created(), undone(1, 1, "a")), "no task 'a' in record 1 to undo"),
        ((created(), undone(1, 7, "a")), "no task 'a' in record 7 to undo"),
        ((created(), learned(1, "a", 0), undone(2, 1, "b")), "no task 'b' in record 1 to undo"),
        ((created(), learned(1, "a", 0), undone(2, 1, "a"), undone(3, 1, "a")), "no task 'a' in record 1 to undo"),
        ((created(), learned(1, "a", 0), undone(2, 1, "a", purged=True), undone(3, 1, "a", purged=True)), "to undo"),
        ((created(), learned(1, "a", 0), undone(2, 1, "a"), undone(3, 2, "a", purged=True)), "no task 'a' in record 2 to undo"),
    ],
)
def test_a_history_that_cannot_be(records, message):
    with pytest.raises(ValueError, match=message):
        check(*records)


def test_a_broken_link_is_noticed():
    done, hashes = chain(created(), learned(1, "a", 0), learned(2, "b", 1))
    for wrong in (START, hashes[0], "f" * 64):
        with pytest.raises(ValueError, match="the chain is broken"):
            check_record(done[2].model_copy(update={"previous": wrong}), done[:2], hashes[:2])
    with pytest.raises(ValueError, match="the chain is broken"):
        check_record(created(previous="1" * 64), [], [])


def test_a_record_has_one_spelling():
    line = spelled(chain(created(), learned(1, "Aufgabe ß 任務", 0, outcome={"accuracy": 0.1}))[0][1])
    assert line.isascii()
    assert b" " not in line.replace(b"Aufgabe ", b"").replace(b" \\u4efb", b"")
    assert b"\n" not in line
    assert spelled(read_record(line)) == line
    value = json.loads(line)
    others = [
        json.dumps(dict(reversed(value.items())), separators=(",", ":")).encode(),  # keys in another order
        json.dumps(value, sort_keys=True).encode(),
        json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(),
        line + b" ",
        b" " + line,
        line.replace(b"0.1", b"0.10"),
        line.replace(b"0.1", b"1e-1"),
        line.replace(b'"number":1', b'"number":1.0'),
        line.replace(b'"private":false', b'"private":0'),
        line.replace(b"\\u4efb", b"\\u4EFB"),
        line.replace(b'"file":0', b'"file":0,"file":0'),
        line.replace(b'"file":0', b'"file":-0'),
    ]
    for other in others:
        assert other != line
        with pytest.raises(ValueError):  # noqa: PT011
            read_record(other)


@pytest.mark.parametrize(
    "changes",
    [
        {"number": -1}, {"number": 2**48}, {"number": True}, {"number": "1"}, {"time": "1"}, {"time": float("inf")}, {"time": float("nan")},
        {"previous": "0" * 63}, {"previous": "G" * 64}, {"previous": "0" * 64 + "\n"}, {"task": ""}, {"task": "e\u0301"}, {"task": "a\nb"},
        {"task": "x" * 201}, {"task": 5}, {"file": 0.0}, {"head": "both"}, {"private": None}, {"n_classes": -1}, {"surprise": 1},
        {"outcome": {"a": float("nan")}}, {"content": {"bytes": 1}}, {"content": {"bytes": 1, "sha256": "0" * 64, "more": 1}},
        {"tensors": {"t": {"dtype": "F32", "shape": [1] * 17, "sha256": "0" * 64}}}, {"kind": "unlearned"}, {"settings": {"threads": 1.5}},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_of_other_values_is_refused(changes):
    value = json.loads(spelled(chain(created(), learned(1, "a", 0))[0][1]))
    line = json.dumps(value | changes, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(ValueError):  # noqa: PT011
        read_record(line)
    if next(iter(changes)) not in (required := {*value} - {"outcome", "width", "settings", "kind"}):
        return
    missing = {key: value[key] for key in required - {*changes}}
    with pytest.raises(ValueError):  # noqa: PT011
        read_record(json.dumps(missing, sort_keys=True, separators=(",", ":")).encode())


def test_head_has_one_spelling():
    head = Head(record=3, sha256="a" * 64)
    assert read_head(head.line()) == head
    line = head.line()
    for wrong in (
        line[:-1], line + b"\n", line.replace(b"}", b" }"), line.replace(b'"format":3', b'"format":2'), b"", b"\n", b"null\n",
        line.replace(b'"record":3', b'"record":-3'), line.replace(b'"record":3', b'"record":3.0'), line.replace(b"a" * 64, b"a" * 63),
        line.replace(b'{"', b'{"x":1,"'), b"\xff" + line,
    ):  # fmt: skip
        assert wrong != line
        with pytest.raises(ValueError):  # noqa: PT011
            read_head(wrong)


def test_what_is_whole_is_counted_to_the_byte(tmp_path):
    done, hashes = chain(created(), learned(1, "a", 0), learned(2, "b", 1))
    lines = [spelled(record) + b"\n" for record in done]
    content = b"".join(lines)
    for head in range(3):
        found, theirs, size, said = read_log(tmp_path / "log.jsonl", content, Head(record=head, sha256=hashes[head]))
        assert (found, theirs, size) == (done, hashes, len(content))
        assert len(said) == (head < 2)
        for cut in range(len(b"".join(lines[: head + 1])), len(content)):
            found, theirs, size, said = read_log(tmp_path / "log.jsonl", content[:cut], Head(record=head, sha256=hashes[head]))
            assert found == done[: len(found)]
            assert len(found) > head
            assert size == len(b"".join(lines[: len(found)])) <= cut
        for cut in range(len(b"".join(lines[: head + 1]))):
            with pytest.raises(DamageError):
                read_log(tmp_path / "log.jsonl", content[:cut], Head(record=head, sha256=hashes[head]))


def test_what_nests_too_deep_beyond_head_is_damage_too(tmp_path):
    done, hashes = chain(created())
    deep = b"[" * 200_000 + b"]" * 200_000
    with pytest.raises(DamageError, match="nested deeper"):
        read_log(tmp_path / "log.jsonl", spelled(done[0]) + b"\n" + deep + b"\n", Head(record=0, sha256=hashes[0]))
