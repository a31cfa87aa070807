"""One process at a time writes to a directory; another is told which one does."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

import pytest

import clnp
import ledgers
from clnp import locks
from clnp.locks import holder, is_locked, locked

HOLD = """
import sys, time
from pathlib import Path
from clnp.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def another(directory):
    """Another process that holds the directory."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_directory_that_another_process_holds_is_refused_by_its_id(tmp_path, monkeypatch):
    monkeypatch.setattr("clnp.store.WAIT", 0.1)
    learner = ledgers.empty()
    with another(tmp_path / "model") as process:
        assert is_locked(tmp_path / "model")
        assert holder(tmp_path / "model") == process.pid
        with pytest.raises(clnp.StoreError, match=f"cannot save to .*: process {process.pid} is at work there. Wait for it"):
            learner.save(tmp_path / "model")
        assert ledgers.snapshot(tmp_path / "model") == {}
        process.kill()
        process.wait()
        # A killed process let go by dying, whatever it left.
        assert not is_locked(tmp_path / "model")
        assert holder(tmp_path / "model") == process.pid
        learner.save(tmp_path / "model")
        assert clnp.store.read(tmp_path / "model", learner.wiring).allocation.tasks == ()
    assert holder(tmp_path / "model") is None


def test_a_short_hold_is_waited_for(tmp_path):
    with another(tmp_path) as process:
        start = time.monotonic()
        subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(0.3); os.kill({process.pid}, 9)"])
        with locked(tmp_path, timeout=10):
            assert time.monotonic() - start >= 0.2


def test_a_lock_is_let_go_whatever_happens(tmp_path):
    for error in (KeyError, KeyboardInterrupt, SystemExit):
        held = locked(tmp_path)
        held.__enter__()
        assert is_locked(tmp_path)
        with pytest.raises(error):
            held.gen.throw(error())
        assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert holder(tmp_path) == os.getpid()
    assert holder(tmp_path) is None


@pytest.mark.parametrize("left", ["", "99999999", "not a number", "-1", "\0", "9" * 10_000])
def test_what_a_dead_process_left_is_no_obstacle(left, tmp_path):
    (tmp_path / locks.LOCK).write_text(left)
    (tmp_path / locks.HOLDER).write_text(left)
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert holder(tmp_path) == os.getpid()


def test_the_directory_is_made(tmp_path):
    with locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not is_locked(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_directory_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(clnp.StoreError, match=r"cannot run in .*Choose a directory that can be written to"), locked(tmp_path / "file"):
        pass
    (tmp_path / "read-only").mkdir(mode=0o555)
    if os.access(tmp_path / "read-only", os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(clnp.StoreError, match="Permission denied"), locked(tmp_path / "read-only"):
        pass
    assert not is_locked(tmp_path / "read-only")


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system"), NotImplementedError("no flock")]
)
def test_a_file_system_that_cannot_lock_is_told(error, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", fail)
    with pytest.raises(clnp.StoreError, match=r"Permission denied|Read-only file system|no flock"), locked(tmp_path):
        pass
    (tmp_path / locks.LOCK).touch()
    assert not is_locked(tmp_path)


def test_a_model_that_may_not_be_written_to_can_be_read(tmp_path, monkeypatch):
    """Reading takes no lock and leaves nothing."""
    learner = ledgers.empty()
    learner.save(tmp_path)
    before = sorted(tmp_path.rglob("*"))

    def fail(*_, **__):
        raise AssertionError

    monkeypatch.setattr("filelock.FileLock.acquire", fail)
    clnp.store.read(tmp_path, learner.wiring)
    assert sorted(tmp_path.rglob("*")) == before
