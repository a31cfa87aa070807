"""The order in which a commit reaches the disk, what is refused, what is healed, and what a crash leaves behind."""

from __future__ import annotations

import itertools
import logging
import os
import shutil

import pytest

import clnp
import clnp.files
import clnp.ledger
import ledgers
from clnp.describe import open_ledger
from clnp.entries import FORMAT, Learned, Undone
from clnp.files import digest
from clnp.ledger import Addition, chained, create, extend, read_ledger

MODEL = b'{"format": 3}\n'
CONSTANTS = b"constants"


def learned(name, file, content, **more):
    entry = clnp.ledger.FileEntry(bytes=len(content), sha256=digest(content))
    fields = {"task": name, "file": file, "content": entry, "tensors": {}, "n_classes": 2, "head": "multi", "private": False, **more}
    return Addition(Learned, fields)


def commit(ledger, *additions, contents=None):
    return extend(ledger, *chained(ledger, additions), contents or {})


def make(path, n_tasks=3):
    """A ledger that holds no network: it knows nothing of what is in its files."""
    ledger = create(path, {"model.json": MODEL, "constants.safetensors": CONSTANTS})
    for number in range(n_tasks):
        content = b"content of %d" % number
        ledger = commit(ledger, learned(f"task {number}", number, content), contents={number: content})
    return ledger


@pytest.fixture
def directory(tmp_path):
    make(tmp_path / "model")
    return tmp_path / "model"


def names(ledger):
    return [record.task for record in ledger.tasks]


def refused(directory, *words):
    with pytest.raises(clnp.DamageError) as caught:
        read_ledger(directory)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert str(directory) in str(caught.value)


def test_what_was_committed_is_read(directory):
    ledger = read_ledger(directory)
    assert names(ledger) == ["task 0", "task 1", "task 2"]
    assert ledger.model == MODEL
    assert [ledger.content(record) for record in ledger.tasks] == [b"content of 0", b"content of 1", b"content of 2"]
    assert ledger.content("constants.safetensors") == CONSTANTS
    assert (ledger.head, len(ledger.hashes), ledger.said) == (3, 4, ())
    assert [digest(line) for line in ledgers.lines_of(directory)] == list(ledger.hashes)
    assert ledger.size == (directory / "log.jsonl").stat().st_size
    assert f'"format":{FORMAT}'.encode() in (directory / "HEAD").read_bytes()
    with pytest.raises(clnp.StoreError, match=r"no task 'x'.*expected one of 'task 0'"):
        ledger.task("x")


# ---- the order of a commit


def recorded(monkeypatch, act):
    """Return the calls that change the disk."""
    system = ledgers.System()
    with monkeypatch.context() as patch:
        patch.setattr(clnp.files, "system", system)
        act()
    return system.calls


def check_order(calls, directory):
    """Check files, then the log, then HEAD; content before its name, names before what counts on them."""
    place = {call: number for number, call in enumerate(calls)}  # the last of each
    task, head, log = (str(directory / name) for name in ("tasks/003.safetensors", "HEAD", "log.jsonl"))
    order = [
        ("write", task + ".new"),
        ("fsync", task + ".new"),
        ("rename", task),
        ("fsync", str(directory / "tasks")),
        ("write", log),
        ("fsync", log),
        ("write", head + ".new"),
        ("fsync", head + ".new"),
        ("rename", head),
        ("fsync", str(directory)),
    ]
    for call in order:
        assert call in place, f"{call} never happened: {calls}"
    for one, two in itertools.pairwise(order):
        assert place[one] < place[two], f"{one} came after {two}"
    assert calls[-1] == order[-1], "nothing is acknowledged before HEAD's name is on the disk"


def test_a_commit_reaches_the_disk_in_order(directory, monkeypatch):
    ledger = read_ledger(directory)
    calls = recorded(monkeypatch, lambda: commit(ledger, learned("task 3", 3, b"new"), contents={3: b"new"}))
    check_order(calls, directory)


def test_without_an_fsync_the_order_is_noticed(directory, monkeypatch):
    ledger = read_ledger(directory)
    monkeypatch.setattr(clnp.files, "_sync", lambda path: None)
    calls = recorded(monkeypatch, lambda: commit(ledger, learned("task 3", 3, b"new"), contents={3: b"new"}))
    with pytest.raises(AssertionError, match="never happened"):
        check_order(calls, directory)


def test_a_new_ledger_has_its_name_last(tmp_path, monkeypatch):
    calls = recorded(monkeypatch, lambda: make(tmp_path / "deep" / "model", 0))
    path = tmp_path / "deep" / "model"
    renamed = [about for name, about in calls if name == "rename"]
    assert renamed == [str(path / name) for name in ("constants.safetensors", "log.jsonl", "HEAD", "model.json")]
    place = {call: number for number, call in enumerate(calls)}
    first = calls.index(("open", str(path / "constants.safetensors.new")))
    for folder in (tmp_path / "deep", path, path / "tasks"):
        assert calls.index(("mkdir", str(folder))) < first
    assert calls.index(("fsync", str(tmp_path))) < first, "the new directory's own name is on the disk"
    assert calls.index(("fsync", str(tmp_path / "deep"))) < first
    for name in ("constants.safetensors", "log.jsonl", "HEAD", "model.json"):
        assert place["fsync", str(path / (name + ".new"))] < place["rename", str(path / name)]
    assert calls[-1] == ("fsync", str(path))


def test_a_purged_file_goes_after_its_tombstone_is_certain(directory, monkeypatch):
    ledger = read_ledger(directory)
    tombstone = Addition(Undone, {"record": 2, "task": "task 1", "purged": True})
    calls = recorded(monkeypatch, lambda: commit(ledger, tombstone))
    removed = calls.index(("unlink", str(directory / "tasks" / "001.safetensors")))
    assert calls.index(("fsync", str(directory / "log.jsonl"))) < calls.index(("rename", str(directory / "HEAD"))) < removed
    assert max(n for n, call in enumerate(calls[:removed]) if call == ("fsync", str(directory))) > calls.index(
        ("rename", str(directory / "HEAD"))
    )
    assert calls[-1] == ("fsync", str(directory / "tasks"))


def test_a_committed_file_is_never_opened_for_writing_again(tmp_path, monkeypatch):
    """Not when tasks are added, the network is widened, or a task undone and purged; and only the log's end is written."""
    system = ledgers.System()
    monkeypatch.setattr(clnp.files, "system", system)
    learner = ledgers.empty()
    for step in range(6):
        if step == 2:
            learner = clnp.widen(learner, {"2": 4})
        elif step == 4:
            learner.undo(learner.tasks[-1], purge=True)
        else:
            ledgers.learn(learner, f"task {step}", step, private=True)
        before = {name: content for name, content in ledgers.snapshot(tmp_path).items() if name not in ("HEAD", "log.jsonl")}
        log = (tmp_path / "log.jsonl").read_bytes() if step else b""
        system.calls.clear()
        learner.save(tmp_path)
        touched = {about.removesuffix(".new") for name, about in system.calls if name in ("open", "write", "rename", "ftruncate")}
        assert not touched & {str(tmp_path / name) for name in before}
        removed = {about for name, about in system.calls if name == "unlink"}
        assert removed == ({str(tmp_path / "tasks/002.safetensors")} if step >= 4 else set()) & removed
        assert (tmp_path / "log.jsonl").read_bytes().startswith(log)
        assert not any(name == "ftruncate" for name, _ in system.calls)
    assert len(learner.tasks) >= 3
    assert clnp.store.read(tmp_path, learner.wiring, learner._graph).allocation.tasks == learner.tasks


# ---- damage up to HEAD, leftovers beyond it


def test_a_damaged_record_is_refused_by_its_number(directory):
    lines = ledgers.lines_of(directory)
    for number, line in enumerate(lines):
        for wrong in (line[:-1], line[:-1] + b"]", line.replace(b":", b": ", 1), line.replace(b'"', b"'"), b"", b"{}", b"[]", b"\xff"):
            (directory / "log.jsonl").write_bytes(b"".join(one + b"\n" for one in [*lines[:number], wrong, *lines[number + 1 :]]))
            refused(directory, "log.jsonl", f"record {number}")


def test_a_log_that_ends_before_head_is_refused(directory):
    lines = ledgers.lines_of(directory)
    for n_lines in range(len(lines)):
        for rest in (b"", lines[n_lines], lines[n_lines][:20]):
            (directory / "log.jsonl").write_bytes(b"".join(line + b"\n" for line in lines[:n_lines]) + rest)
            refused(directory, "log.jsonl", "HEAD points to record 3", f"record {n_lines}")


def set_back(directory, head):
    """Make HEAD what a crash before its replacement leaves."""
    lines = ledgers.lines_of(directory)
    ledgers.write_log(directory, lines, head)


def test_a_torn_record_beyond_head_is_left_out_and_written_over(directory, caplog):
    set_back(directory, 2)
    log, lines = (directory / "log.jsonl").read_bytes(), ledgers.lines_of(directory)
    whole = b"".join(line + b"\n" for line in lines[:3])
    for torn in (lines[3], lines[3][:1], lines[3][:-1], lines[3][:40] + bytes(200), bytes(500)):
        (directory / "log.jsonl").write_bytes(whole + torn)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "clnp"):
            ledger = read_ledger(directory)
        assert names(ledger) == ["task 0", "task 1"]
        assert any("was cut short; what there is of it beyond record 2 is left out" in text for text in ledger.said)
        assert str(directory) in caplog.text
        assert "cut short" in caplog.text
        assert ledger.size == len(whole)
    (directory / "log.jsonl").write_bytes(whole + lines[3][:-1])
    commit(read_ledger(directory), learned("other", 2, b"other"), contents={2: b"other"})
    ledger = read_ledger(directory)
    assert names(ledger) == ["task 0", "task 1", "other"]
    assert ledger.said == ()
    assert (directory / "log.jsonl").read_bytes().startswith(whole)
    assert log != (directory / "log.jsonl").read_bytes()


def test_a_torn_record_that_lost_its_middle_is_left_out(directory):
    """A file system may write the end of a page before its beginning: the newline is there, zeros are before it."""
    set_back(directory, 2)
    lines = ledgers.lines_of(directory)
    whole = b"".join(line + b"\n" for line in lines[:3])
    (directory / "log.jsonl").write_bytes(whole + lines[3][:30] + bytes(len(lines[3]) - 30) + b"\n")
    assert names(read_ledger(directory)) == ["task 0", "task 1"]


def test_whole_records_beyond_head_are_taken_over_and_head_is_healed(directory, caplog):
    for head in (0, 1, 2):
        set_back(directory, head)
        with caplog.at_level(logging.WARNING, "clnp"):
            ledger = read_ledger(directory)
        assert names(ledger) == ["task 0", "task 1", "task 2"]
        assert ledger.head == head
        assert "taken over up to record 3" in caplog.text
        before = ledgers.snapshot(directory)
        commit(ledger)
        after = ledgers.snapshot(directory)
        assert {name for name in before if before[name] != after[name]} == {"HEAD"}
        assert read_ledger(directory).said == ()
        caplog.clear()


def test_a_record_beyond_head_whose_file_is_gone_is_refused(directory):
    """The file is on the disk before the record is written: no crash leaves one without the other."""
    set_back(directory, 2)
    (directory / "tasks" / "002.safetensors").unlink()
    refused(directory, "002.safetensors", "record 3", "it is missing")


@pytest.mark.parametrize("head", [1, 3])
def test_records_that_do_not_follow_are_refused(head, directory, tmp_path):
    make(tmp_path / "foreign")
    lines, foreign = ledgers.lines_of(directory), ledgers.lines_of(tmp_path / "foreign")
    other = ledgers.records_of(directory)[3] | {"task": "other"}
    for wrong in (
        [*lines[:2], lines[3], lines[2]],  # swapped
        [*lines[:2], lines[3]],  # one left out
        [*lines[:3], lines[2], lines[3]],  # replayed
        [*lines, lines[3]],
        [*lines[:2], *foreign[2:]],  # of another ledger
        [*foreign[:1], *lines[1:]],
        [*lines, ledgers.spell(other)],  # its number and `previous` are those of another place
        [*lines, ledgers.spell(other | {"number": 4})],
        [*lines, ledgers.spell(other | {"previous": ledgers.sha256(lines[3])})],
    ):
        (directory / "log.jsonl").write_bytes(b"".join(line + b"\n" for line in wrong))
        ledgers.write_log(directory, wrong, min(head, len(wrong) - 1))
        refused(directory, "log.jsonl", "record ")


def test_a_head_of_another_log_is_refused(directory, tmp_path):
    make(tmp_path / "foreign")
    for content in ((tmp_path / "foreign" / "HEAD").read_bytes(), b"", b"{}", b"3\n", (directory / "HEAD").read_bytes() * 2, bytes(600)):
        (directory / "HEAD").write_bytes(content)
        refused(directory, str(directory / "HEAD"))


# ---- files


@pytest.mark.parametrize(
    "name", ["notes.txt", "tasks/003.safetensors.bak", "tasks/3.safetensors", "tasks/0003.safetensors", "tasks/a", "probe.safetensors"]
)
def test_files_that_were_never_committed_are_refused_by_name(name, directory):
    (directory / name).write_bytes(b"x")
    refused(directory, name, "move it elsewhere")


@pytest.mark.parametrize("name", [".DS_Store", ".lock", "tasks/.hidden", "HEAD.new", "tasks/003.safetensors.new", "tasks/003.safetensors"])
def test_what_the_system_or_a_crash_left_is_in_nobodys_way(name, directory):
    (directory / name).write_bytes(b"x")
    assert names(read_ledger(directory)) == ["task 0", "task 1", "task 2"]
    commit(read_ledger(directory), learned("task 3", 3, b"3"), contents={3: b"3"})
    assert names(read_ledger(directory))[-1] == "task 3"
    if name.startswith("tasks/003"):
        assert sorted(os.listdir(directory / "tasks")) == [f"00{n}.safetensors" for n in range(4)]  # noqa: PTH208


def test_leftovers_are_swept_by_the_next_commit(directory):
    for name in ("003.safetensors", "004.safetensors", "017.safetensors", "003.safetensors.new"):
        (directory / "tasks" / name).write_bytes(b"left")
    ledger = read_ledger(directory)
    assert len(ledger.said) == 3
    assert all("it is not read" in text for text in ledger.said)
    commit(ledger)
    assert sorted(os.listdir(directory / "tasks")) == [f"00{n}.safetensors" for n in range(3)]  # noqa: PTH208
    assert read_ledger(directory).said == ()


def test_swapped_missing_and_longer_files_are_refused(directory):
    one, two = (directory / "tasks" / f"00{n}.safetensors" for n in (0, 1))
    a, b = one.read_bytes(), two.read_bytes()
    one.write_bytes(b)
    two.write_bytes(a)
    ledger = read_ledger(directory)  # the same sizes
    for record in ledger.tasks[:2]:
        with pytest.raises(clnp.DamageError, match=rf"00{record.file}\.safetensors.*record {record.number}, task '{record.task}'.*SHA-256"):
            ledger.content(record)
    one.write_bytes(a + b"x")
    refused(directory, "000.safetensors", "record 1, task 'task 0'", "expected 12 bytes, found 13")
    one.unlink()
    refused(directory, "000.safetensors", "record 1, task 'task 0'", "it is missing")


EVERY = ["model.json", "constants.safetensors", "log.jsonl", "HEAD", "tasks/001.safetensors"]


def read_everything(directory):
    ledger = read_ledger(directory)
    for record in ledger.tasks:
        ledger.content(record)
    ledger.content("constants.safetensors")


def reads_nothing(directory):
    with pytest.raises(clnp.StoreError) as caught:
        read_everything(directory)
    return str(caught.value)


@pytest.mark.parametrize("name", EVERY)
def test_links_out_of_the_directory_are_refused(name, directory, tmp_path):
    outside = tmp_path / "outside"
    shutil.copy(directory / name, outside)
    (directory / name).unlink()
    (directory / name).symlink_to(outside)
    assert "symbolic link" in reads_nothing(directory)
    (directory / name).unlink()
    (directory / name).symlink_to(directory / ".." / "model" / "." / ".inside")
    shutil.copy(outside, directory / ".inside")
    read_ledger(directory)


def test_a_linked_directory_of_tasks_is_refused(directory, tmp_path):
    shutil.move(directory / "tasks", tmp_path / "elsewhere")
    (directory / "tasks").symlink_to(tmp_path / "elsewhere")
    assert "symbolic link" in reads_nothing(directory)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("what", ["fifo", "directory", "dangling", "loop"])
def test_what_is_no_file_is_refused_at_once(name, what, directory):
    path = directory / name
    path.unlink()
    if what == "fifo":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    else:
        path.symlink_to(path if what == "loop" else "nowhere")
    assert path.name in reads_nothing(directory)


def test_the_model_directory_itself_may_be_a_link(directory, tmp_path):
    (tmp_path / "link").symlink_to(directory)
    assert names(read_ledger(tmp_path / "link")) == ["task 0", "task 1", "task 2"]


def test_a_log_that_is_too_large_is_refused_unread(directory, monkeypatch):
    monkeypatch.setattr(clnp.ledger, "MAX_LOG", 100)
    refused(directory, "log.jsonl", "expected at most 100 bytes")


def test_a_model_that_lost_its_description_is_no_new_one(directory):
    (directory / "model.json").unlink()
    for name in (None, "log.jsonl", "HEAD"):
        if name is not None:
            (directory / name).unlink()
        left = ledgers.snapshot(directory)
        for act in (lambda: open_ledger(directory), lambda: ledgers.empty().save(directory)):
            with pytest.raises(clnp.DamageError, match=r"model\.json.*it is missing"):
                act()
        assert ledgers.snapshot(directory) == left, "learned tasks are not begun over"


# ---- crashes


@pytest.mark.parametrize("how", ["full", "killed", "torn"])
def test_a_crash_at_every_call_of_a_commit_leaves_a_ledger(how, directory, monkeypatch):
    before = ledgers.snapshot(directory)
    new, tombstone = learned("task 3", 3, b"new"), Addition(Undone, {"record": 2, "task": "task 1", "purged": True})

    def act():
        try:
            commit(read_ledger(directory), tombstone, new, contents={3: b"new"})
        except OSError as error:
            raise clnp.StoreError from error

    seen = set()
    for n_calls in ledgers.faults(monkeypatch, act, lambda: ledgers.restore(directory, before), how):  # noqa: B007
        ledger = read_ledger(directory)
        seen.add(tuple(names(ledger)))
        for record in ledger.tasks:
            ledger.content(record)
        if "task 3" not in names(ledger):
            act()
        else:
            commit(ledger)
        whole = read_ledger(directory)
        assert (names(whole), whole.said) == (["task 0", "task 2", "task 3"], ())
        assert set(ledgers.snapshot(directory)) == {*before, "tasks/003.safetensors"} - {"tasks/001.safetensors"}
    assert n_calls >= 14
    assert seen == {("task 0", "task 1", "task 2"), ("task 0", "task 2", "task 3")}, "one commit is one"


def test_a_reader_beside_a_writer_sees_one_state_or_the_other(directory, monkeypatch):
    """A commit that happens while a directory is read makes the reader read again."""
    real, done = clnp.ledger.read_log, []

    def meanwhile(*args):
        if not done:
            done.append(True)
            commit(read_ledger(directory), learned("task 3", 3, b"new"), contents={3: b"new"})
            commit(read_ledger(directory), Addition(Undone, {"record": 2, "task": "task 1", "purged": True}))
        return real(*args)

    monkeypatch.setattr(clnp.ledger, "read_log", meanwhile)
    assert names(read_ledger(directory)) == ["task 0", "task 2", "task 3"]
