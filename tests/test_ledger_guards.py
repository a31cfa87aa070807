"""Each guard of the ledger, removed by hand, breaks a named promise: so the promises of test_ledger.py and test_store.py do check something."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
import torch

import clnp
import clnp.chain
import clnp.entries
import clnp.files
import clnp.ledger
import clnp.store
import ledgers
from clnp.describe import open_ledger
from test_ledger import check_order, commit, learned, make, names, read_ledger, recorded

# ---- promises: functions of a new directory that raise AssertionError when they are broken


def noticed(act, *words):
    """A damage is noticed, and by name."""
    try:
        act()
    except clnp.DamageError as error:
        for word in words:
            assert word in str(error), str(error)  # noqa: PT017
    else:
        raise AssertionError("nothing was noticed")


def changed_content_is_noticed(path, patch):
    ledger = make(path)
    file = path / "tasks" / "001.safetensors"
    file.write_bytes(b"Content of 1")
    noticed(lambda: read_ledger(path).content(ledger.tasks[1]), "001.safetensors", "record 2")


def changed_sizes_are_noticed(path, patch):
    make(path)
    (path / "tasks" / "001.safetensors").write_bytes(b"")
    noticed(lambda: read_ledger(path), "001.safetensors", "record 2")


def a_swapped_record_is_noticed(path, patch):
    """The records of another ledger, each whole, and HEAD of the last: only the chain tells."""
    make(path)
    lines, records = ledgers.lines_of(path), ledgers.records_of(path)
    forged = ledgers.spell({**records[2], "private": True})
    ledgers.write_log(path, [*lines[:2], forged, lines[3]])
    noticed(lambda: read_ledger(path), "log.jsonl", "record 3")


def a_changed_last_record_is_noticed(path, patch):
    """Nothing follows it: only HEAD tells."""
    make(path)
    lines, records = ledgers.lines_of(path), ledgers.records_of(path)
    changed = ledgers.spell({**records[3], "n_classes": 3})
    (path / "log.jsonl").write_bytes(b"".join(line + b"\n" for line in [*lines[:3], changed]))
    noticed(lambda: read_ledger(path), "HEAD")


def another_spelling_is_noticed(path, patch):
    make(path)
    log = (path / "log.jsonl").read_bytes()
    lines = log.splitlines()
    (path / "log.jsonl").write_bytes(b"\n".join([lines[0] + b" ", *lines[1:], b""]))
    noticed(lambda: read_ledger(path), "log.jsonl", "record 0")


def foreign_files_are_noticed(path, patch):
    make(path)
    (path / "evil.py").write_bytes(b"x")
    noticed(lambda: read_ledger(path), "evil.py")


def links_out_are_noticed(path, patch):
    make(path)
    (path / "tasks" / "001.safetensors").rename(path.parent / "outside")
    (path / "tasks" / "001.safetensors").symlink_to(path.parent / "outside")
    noticed(lambda: read_ledger(path), "001.safetensors", "symbolic link")


def numbers_are_finite(path, patch):
    learner = ledgers.empty()
    ledgers.learn(learner, "a", epochs=1)
    learner.save(path)
    ledgers.forge(path, 0, lambda tensors: tensors["head.bias"].fill_(float("nan")))
    noticed(lambda: clnp.store.read(path, learner.wiring), "000.safetensors", "NaN or infinite")


def a_commit_is_on_the_disk(path, patch):
    make(path)
    ledger = read_ledger(path)
    check_order(recorded(patch, lambda: commit(ledger, learned("task 3", 3, b"new"), contents={3: b"new"})), path)


def a_crash_costs_nothing_committed(path, patch):
    """Killed at every call: what was committed is there."""
    make(path)
    before = ledgers.snapshot(path)
    with contextlib.closing(
        ledgers.faults(
            patch,
            lambda: commit(read_ledger(path), learned("task 3", 3, b"new"), contents={3: b"new"}),
            lambda: ledgers.restore(path, before),
            "torn",
        )
    ) as stops:
        for _ in stops:
            try:
                found = read_ledger(path)
                contents = [found.content(record) for record in found.tasks]
            except clnp.StoreError as error:
                raise AssertionError(str(error)) from error
            assert contents in ([b"content of 0", b"content of 1", b"content of 2"], [*(b"content of %d" % n for n in range(3)), b"new"])


def two_writers_leave_a_chain(path, patch):
    """One learner saves to a directory while another, which has read it, is about to write: the first one is refused."""
    learner = ledgers.empty()
    learner.save(path)
    slow, quick = ledgers.empty(), ledgers.empty()
    for number, other in enumerate((slow, quick)):
        ledgers.learn(other, f"task {number}", number, epochs=1)
    real, outcome = clnp.store._missing, []

    def meanwhile(*args):
        found = real(*args)
        if not outcome:
            outcome.append("")
            try:
                quick.save(path)
            except clnp.StoreError as error:
                outcome.append(str(error))
        return found

    patch.setattr(clnp.store, "_missing", meanwhile)
    patch.setattr(clnp.store, "WAIT", 0.1)
    slow.save(path)
    assert "is at work there" in outcome[-1], "two were at work at once"
    assert clnp.store.read(path, learner.wiring).allocation.tasks == ("task 0",)


# ---- guards


def replaced(module, name, value):
    return lambda patch: patch.setattr(module, name, value)


def no_hash(patch):
    """Sizes and records are compared, contents are not."""
    real = clnp.ledger.verified

    def unverified(path, file, entry, record):
        content = clnp.files.read_bounded(file, entry.bytes, path)
        return real(path, file, entry.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()}), record)

    patch.setattr(clnp.ledger, "verified", unverified)


def no_head(patch):
    real = clnp.ledger.read_log

    def trusting(file, content, head):
        lines = content.splitlines()
        return real(file, content, head.model_copy(update={"sha256": hashlib.sha256(lines[head.record]).hexdigest()}))

    patch.setattr(clnp.ledger, "read_log", trusting)


def no_spelling(patch):
    patch.setattr(clnp.chain, "read_record", clnp.entries._RECORD.validate_json)
    no_head(patch)
    replaced(clnp.chain, "check_record", lambda *_: None)(patch)


def no_finiteness(patch):
    patch.setattr(clnp.store.torch, "isfinite", lambda tensor: torch.ones_like(tensor, dtype=torch.bool))


def head_first(patch):
    """HEAD is replaced before the log has what it points to."""
    real = clnp.files.append

    def late(path, data, **how):
        line = data.splitlines()[-1]
        content = ledgers.spell({"format": 3, "record": int(ledgers.json.loads(line)["number"]), "sha256": ledgers.sha256(line)}) + b"\n"
        clnp.files.write_atomic(path.with_name("HEAD"), content)
        real(path, data, **how)

    patch.setattr(clnp.files, "append", late)


def no_lock(patch):
    patch.setattr(clnp.store, "locked", lambda *_, **__: contextlib.nullcontext())


GUARDS = {
    "hashes of files": (no_hash, changed_content_is_noticed),
    "sizes of files": (replaced(clnp.ledger, "_check_size", lambda *_: None), changed_sizes_are_noticed),
    "the chain": (replaced(clnp.chain, "check_record", lambda *_: None), a_swapped_record_is_noticed),
    "HEAD's hash": (no_head, a_changed_last_record_is_noticed),
    "one spelling": (no_spelling, another_spelling_is_noticed),
    "no other files": (replaced(clnp.ledger, "check_files", lambda _: []), foreign_files_are_noticed),
    "no links out": (replaced(clnp.files, "leads_out", lambda *_: False), links_out_are_noticed),
    "finite numbers": (no_finiteness, numbers_are_finite),
    "fsync of files and names": (replaced(clnp.files, "_sync", lambda _: None), a_commit_is_on_the_disk),
    "the log before HEAD": (head_first, a_crash_costs_nothing_committed),
    "the lock": (no_lock, two_writers_leave_a_chain),
}


@pytest.mark.parametrize("guard", GUARDS)
def test_the_promise_holds(guard, tmp_path, monkeypatch):
    GUARDS[guard][1](tmp_path / "model", monkeypatch)


@pytest.mark.parametrize("guard", GUARDS)
def test_without_the_guard_the_promise_breaks(guard, tmp_path, monkeypatch):
    remove, promise = GUARDS[guard]
    remove(monkeypatch)
    with pytest.raises(AssertionError):
        promise(tmp_path / "model", monkeypatch)


def test_a_directory_that_is_whole_is_opened(tmp_path):
    """The promises break for what is wrong, not for everything."""
    make(tmp_path / "model")
    assert names(read_ledger(tmp_path / "model")) == ["task 0", "task 1", "task 2"]
    with pytest.raises(clnp.DamageError, match=r"model\.json"):
        open_ledger(tmp_path / "model")  # no network's description
