"""A crash leaves the old file or the new one, never half of it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import clnp.files
from clnp.files import write_atomic


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.json"
    path.write_bytes(b"the old content")
    return path


@pytest.mark.parametrize(("data", "written"), [(b"\x00\xff new", b"\x00\xff new"), ("Aufgabe ß 任", "Aufgabe ß 任".encode()), (b"", b"")])
def test_the_whole_content_is_written(tmp_path, data, written):
    path = tmp_path / "a.bin"
    write_atomic(path, data)
    assert path.read_bytes() == written
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"], "nothing is left beside the file"


def test_text_keeps_its_line_ends(tmp_path):
    write_atomic(tmp_path / "a", "one\ntwo\r\n")
    assert (tmp_path / "a").read_bytes() == b"one\ntwo\r\n"


def test_a_shorter_content_replaces_a_longer_one(file):
    write_atomic(file, b"new")
    assert file.read_bytes() == b"new"


def test_a_torn_file_of_an_earlier_crash_is_in_nobodys_way(file):
    file.with_name("model.json.new").write_bytes(b"torn content of another time, longer than the new one")
    write_atomic(file, b"new")
    assert file.read_bytes() == b"new"
    assert [p.name for p in file.parent.iterdir()] == ["model.json"]


@pytest.mark.parametrize("where", ["open", "write", "fsync", "rename"])
def test_a_failure_on_the_way_leaves_the_old_content(file, monkeypatch, where):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(clnp.files, "system", SimpleNamespace(**{**vars(os), where: fail}))
    with pytest.raises(OSError, match="No space left"):
        write_atomic(file, b"new")
    assert file.read_bytes() == b"the old content"
    assert [p.name for p in file.parent.iterdir()] == [file.name], "nothing is left beside it"


def test_content_reaches_the_disk_before_the_name_and_the_name_before_the_return(file, monkeypatch):
    events = []
    fsync, rename = os.fsync, os.rename

    def watched_fsync(descriptor):
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content"
        if kind == "content":
            assert os.fstat(descriptor).st_size == 3, "everything is flushed before the file is synced"
        else:
            assert os.fstat(descriptor).st_ino == file.parent.stat().st_ino
        events.append(kind)
        fsync(descriptor)

    def watched_rename(source, target):
        assert Path(source).parent == Path(target).parent, "a rename is atomic within one directory only"
        assert Path(source).read_bytes() == b"new"
        events.append("rename")
        rename(source, target)

    watched = SimpleNamespace(**{**vars(os), "fsync": watched_fsync, "rename": watched_rename})
    monkeypatch.setattr(clnp.files, "system", watched)
    write_atomic(file, b"new")
    assert events == ["content", "rename", "directory"]


def test_what_is_disposable_waits_for_no_disk_and_is_replaced_as_a_whole(file, monkeypatch):
    seen = []

    def rename(source, target):
        seen.append(Path(source).read_bytes())
        Path(source).rename(target)

    system = SimpleNamespace(**{**vars(os), "fsync": lambda _: pytest.fail("synced"), "rename": rename})
    monkeypatch.setattr(clnp.files, "system", system)
    write_atomic(file, b"new", durable=False)
    assert seen == [b"new"]
    assert file.read_bytes() == b"new"


def test_no_descriptor_is_left_open(file):
    before = set(os.listdir("/dev/fd"))  # noqa: PTH208
    for _ in range(20):
        write_atomic(file, b"new")
    assert set(os.listdir("/dev/fd")) == before  # noqa: PTH208


def test_a_killed_process_leaves_one_whole_content(tmp_path):
    file = tmp_path / "big"
    contents = {letter * 3_000_000 for letter in (b"a", b"b")}
    # Importing the one module by its path keeps the child small: no torch.
    code = (
        "import importlib.util, pathlib, sys\n"
        f"spec = importlib.util.spec_from_file_location('files', {str(Path(sys.modules['clnp.files'].__file__))!r})\n"
        "files = importlib.util.module_from_spec(spec); spec.loader.exec_module(files)\n"
        f"path = pathlib.Path({str(file)!r})\n"
        "files.write_atomic(path, b'a' * 3_000_000); print('ready', flush=True)\n"
        "while True:\n"
        "    for letter in (b'b', b'a'): files.write_atomic(path, letter * 3_000_000)\n"
    )
    for wait in (0, 3, 7, 11, 16):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
            assert child.stdout.readline() == b"ready\n"
            try:
                child.wait(wait / 1000)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
            else:
                child.kill()
        assert file.read_bytes() in contents, f"torn after {wait} ms"


@pytest.mark.parametrize("link", [False, True])
def test_what_is_no_file_is_not_replaced(tmp_path, link):
    """A device or a pipe would be gone, and its reader would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / "pipe"
    if link:
        path = tmp_path / "link"
        path.symlink_to("pipe")
    with pytest.raises(OSError, match="a device or a pipe"):
        write_atomic(path, b"new")
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert {file.name for file in tmp_path.iterdir()} == {"pipe", path.name}
