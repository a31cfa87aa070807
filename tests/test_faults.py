"""The scoreboard of faults: a slice of every class is clean, and it notices when a guard of the code is removed by hand."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from pathlib import Path

import pytest
import torch

import clnp.chain
import clnp.files
import clnp.ledger
import clnp.locks

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import faults
from faulty import crashes, damage, sharing
from faulty.board import MUST_BE_ZERO, Row, Verdict, markdown, table, total
from faulty.processes import Case, play
from small import sampled

DOCS = Path(__file__).parent.parent / "docs" / "faults.md"
FEW = {
    "kill-training": 1,
    "stopped-runs": 1,
    "memory": 2,
    "examples": 3,
    "names": 3,
    "writers": 1,
    "damaged-runs": 2,
    "misuse": 3,
    "kill-syscall": 2,
}


@pytest.fixture(scope="module")
def stage():
    threads = torch.get_num_threads()
    yield faults.prepare()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", sampled(faults.CLASSES))
def test_a_slice_of_every_class_is_clean(name, stage):
    (row,) = faults.inject(stage, [name], 1, lambda _: FEW.get(name, 2), show=lambda _: None)
    assert row.injected or name == "kill-syscall"
    assert row.is_good, row.notes


# ---- the scoreboard notices


def one(stage, name="add"):
    """Return a stage with a single scenario."""
    return dataclasses.replace(stage, scenarios=[scenario for scenario in stage.scenarios if scenario.name == name])


def counts(cases, tmp_path, *words, n=None):
    """Inject the first n of those cases whose label holds all of some words."""
    return play(Row("guard", ""), [case for case in cases if all(word in case.label for word in words)][:n], tmp_path)


@pytest.mark.thorough
def test_without_fsync_commits_are_lost(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(clnp.files, "_sync", lambda path: None)
    real = crashes.Recorder.call
    monkeypatch.setattr(crashes.Recorder, "call", lambda self, name, *a, **k: None if name == "fsync" else real(self, name, *a, **k))
    row = counts(crashes.power(one(stage), random.Random(0), 24), tmp_path)
    assert row.counts["lost"]


@pytest.mark.thorough
def test_without_the_fsync_of_directories_commits_are_lost(stage, tmp_path, monkeypatch):
    real = clnp.files._sync
    monkeypatch.setattr(clnp.files, "_sync", lambda path: None if path.is_dir() else real(path))
    assert counts(crashes.power(one(stage), random.Random(0), 24), tmp_path).counts["lost"]


@pytest.mark.thorough
def test_without_the_second_writing_of_the_log_a_failed_fsync_loses_commits(stage, tmp_path, monkeypatch):
    real = clnp.files.append
    monkeypatch.setattr(clnp.files, "append", lambda path, data, *, at, again: real(path, data, at=at))
    assert counts(crashes.failing_fsync(one(stage), random.Random(0), None), tmp_path, "fails, ftruncate too, power", "none").counts["lost"]


def test_without_hashes_a_flipped_bit_is_read_silently(stage, tmp_path, monkeypatch):
    def trusting(path, file, entry, record):
        return file.read_bytes()

    monkeypatch.setattr(clnp.ledger, "verified", trusting)
    row = counts(damage.bit_flips(stage, random.Random(0), 24), tmp_path)
    assert row.counts["wrong"]
    assert row.counts["drift"]


def test_without_the_chain_replayed_records_are_read(stage, tmp_path, monkeypatch):
    def unchained(file, content, head):
        lines = content.split(b"\n")[:-1]
        return [clnp.chain.read_record(line) for line in lines], [clnp.chain.digest(line) for line in lines], len(content), []

    monkeypatch.setattr(clnp.ledger, "read_log", unchained)
    row = counts(damage._replayed(stage, random.Random(0)), tmp_path, "left out")
    assert not row.is_good
    assert row.counts["wrong"]


def test_without_the_lock_writers_break_each_other(stage, tmp_path, monkeypatch):
    class Open:
        def __init__(self, *_, **__): ...
        def acquire(self): ...
        def release(self): ...

    monkeypatch.setattr(clnp.locks.filelock, "FileLock", Open)

    def is_good(seed):
        (tmp_path / str(seed)).mkdir()
        return counts(sharing.writers(stage, random.Random(seed), 6), tmp_path / str(seed)).is_good

    assert not all(is_good(seed) for seed in range(8)), "on a busy machine they may miss each other: six of them, again and again"


def test_without_the_rename_a_kill_loses_a_commit(stage, tmp_path, monkeypatch):
    def in_place(path, data, *, durable=True):
        descriptor = clnp.files.system.open(path, clnp.files.os.O_WRONLY | clnp.files.os.O_CREAT | clnp.files.os.O_TRUNC, 0o666)
        clnp.files._write(descriptor, data)
        clnp.files.system.close(descriptor)

    monkeypatch.setattr(clnp.files, "write_atomic", in_place)
    assert not counts(crashes.killed_call(one(stage), random.Random(0), None), tmp_path, "killed in call", n=4).is_good


def test_what_hangs_crashes_or_fails_the_judge_is_counted(tmp_path):
    def fail(_):
        raise AssertionError

    def die(_):
        import os

        os._exit(3)

    cases = [
        Case("dies", lambda _: None, die),
        Case("fails", lambda _: None, fail),
        Case("acts", lambda _: None, lambda _: Verdict(), fail),
    ]
    row = counts(cases, tmp_path)
    assert (row.injected, row.counts["unclear"]) == (3, 3)


def test_the_tables_show_every_class_and_the_bound():
    rows = [Row("a", "what a is", injected=300), Row("b", "what b is", injected=3)]
    rows[1].counts["lost"] = 2
    assert [line.split()[0] for line in table(rows).splitlines() if line[0] != "-"] == ["class", "a", "b", "total"]
    assert "1 %" in table(rows).splitlines()[2]
    assert markdown(rows, {"a": "what a is"}).splitlines()[2].startswith("| what a is | 300 | 0 |")
    assert total(rows).counts["lost"] == 2


def test_the_command_writes_its_results_and_says_no(stage, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(faults, "prepare", lambda: stage)
    out = tmp_path / "faults.json"
    assert faults.main(["--only", "receipts", "--cases", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert faults.main(["--show", str(out)]) == 0
    assert printed.startswith(capsys.readouterr().out)
    bad = faults.FaultClass("bad", lambda *_: [Case("x", lambda _: None, lambda _: Verdict(lost=1))], 1)
    monkeypatch.setitem(faults.CLASSES, "receipts", bad)
    assert faults.main(["--only", "receipts", "--short"]) == 1
    capsys.readouterr()


def test_the_page_says_what_the_full_scoreboard_found(capsys):
    assert faults.main(["--show", str(faults.RESULTS), "--markdown"]) == 0
    tables = capsys.readouterr().out.strip()
    rows = [line for line in tables.splitlines() if line.startswith("|")]
    assert len(rows) > len(faults.CLASSES) + 10
    assert "\n".join(rows) in "\n".join(line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("|"))
    kept = json.loads(faults.RESULTS.read_text(encoding="utf-8"))
    assert kept["injected"] >= 10_000
    assert not any(kept[column] for column in MUST_BE_ZERO)
    assert set(kept["classes"]) == set(faults.CLASSES), "every class was run"
