"""What `verify` finds, says, and exits with; what a receipt that is kept elsewhere tells; what `audit` lists."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

import clnp
import ledgers
import small
from clnp import cli, experiment, receipts, rundir, runs, undoing
from clnp.auditing import audit
from clnp.ledger import read_ledger
from clnp.report import render_receipt
from clnp.verification import verify
from ledgers import empty, learn

MARKUP = "<script>alert('x')</script> & \"quotes\""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("verify")
    learner = empty()
    for number, task in enumerate(("one", MARKUP, "three")):
        learn(learner, task, number, private=True)
        learner.save(path / "model")
        shutil.copytree(path / "model", path / f"after-{number + 1}")
    return path


@pytest.fixture
def model(made, tmp_path):
    shutil.copytree(made / "model", tmp_path / "model")
    return tmp_path / "model"


def network():
    return small.network("mlp", 5)


def test_everything_is_what_was_committed(model):
    found = verify(model, network())
    assert [task.comparison.verdict for task in found.tasks] == ["bitwise"] * 3
    assert found.exit_code == 0
    assert found.record == 3
    assert found.sha256 == read_ledger(model).hashes[-1]


def test_without_the_network_files_are_checked_and_nobody_is_asked(model):
    assert {task.comparison.verdict for task in verify(model).tasks} == {"not checked"}
    (model / "tasks" / "001.safetensors").write_bytes((model / "tasks" / "001.safetensors").read_bytes()[:-1] + b"x")
    with pytest.raises(clnp.DamageError, match=r"001\.safetensors.*record 2.*Restore"):
        verify(model)


def test_the_file_of_an_undone_task_is_checked_too_and_a_purged_one_is_not_missed(model):
    learner = clnp.Learner.load(model, network())
    learner.undo("three")
    learner.save(model)
    assert verify(model).undone == (("three", False),)
    file = model / "tasks" / "002.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"x")
    with pytest.raises(clnp.DamageError, match=r"002\.safetensors"):
        verify(model)
    file.write_bytes(whole)
    learner.undo(MARKUP, purge=True)
    learner.save(model)
    assert verify(model).undone == (("three", False), (MARKUP, True))


def forge(model, change):
    """Rewrite the newest task's file and its record, as somebody who can compute hashes would."""
    lines = ledgers.lines_of(model)
    record = json.loads(lines[-1])
    file = model / "tasks" / f"{record['file']:03d}.safetensors"
    tensors = load(file.read_bytes())
    change(tensors, record)
    content = save(tensors)
    file.write_bytes(content)
    record["content"] = {"bytes": len(content), "sha256": ledgers.sha256(content)}
    table = clnp.tensorfile.tensor_table(content)
    record["tensors"] = {name: entry.model_dump() for name, entry in table.items()}
    ledgers.write_log(model, [*lines[:-1], ledgers.spell(record)])


def test_a_predictor_that_answers_otherwise_is_found_though_every_hash_is_right(model):
    forge(model, lambda tensors, _: tensors["head.bias"].add_(0.5))
    found = verify(model, network())
    assert found.differing == ["three"]
    assert found.exit_code == 4
    assert found.tasks[-1].comparison.largest_difference == pytest.approx(0.5, rel=1e-4)
    assert "not every task answers as it did" in render_receipt(found)


def test_other_settings_are_named_and_allow_rounding_only(model):
    def other(tensors, record):
        record["settings"]["processor"] = "another"
        tensors["receipt.logits"].mul_(1 + 1e-6)

    forge(model, other)
    comparison = verify(model, network()).tasks[-1].comparison
    assert comparison.verdict == "within tolerance"
    assert comparison.different == {"processor": ("another", receipts.processor())}
    forge(model, lambda tensors, _: tensors["receipt.logits"].add_(1.0))
    assert verify(model, network()).tasks[-1].comparison.verdict == "differs"


def test_numbers_that_are_not_finite_are_found(model):
    forge(model, lambda tensors, _: tensors["head.bias"].fill_(float("nan")))
    with pytest.raises(clnp.DamageError, match=r"002\.safetensors.*NaN"):
        verify(model)


# ---- a receipt that is kept elsewhere


def test_a_directory_that_was_set_back_is_noticed(made, model, tmp_path):
    receipt = tmp_path / "receipt.json"
    receipt.write_text(json.dumps(verify(model).content()))
    assert verify(model, receipt=receipt).exit_code == 0
    old = verify(made / "after-2", receipt=receipt)
    assert old.exit_code == 5
    assert "set back: the receipt is of record 3, but the directory ends with record 2" in old.problem
    learner = clnp.Learner.load(model, network())
    learn(learner, "four", 4)
    learner.save(model)
    assert verify(model, receipt=receipt).exit_code == 0, "a newer state is one of it"


def test_another_directory_is_not_that_of_the_receipt(model, tmp_path):
    other = empty(seed=3)
    for number in range(3):
        learn(other, f"task {number}", number)
    other.save(tmp_path / "other")
    (tmp_path / "receipt.json").write_text(json.dumps(verify(tmp_path / "other").content()))
    found = verify(model, receipt=tmp_path / "receipt.json")
    assert found.exit_code == 5
    assert "another" in found.problem


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"kind": "clnp receipt", "record": "3", "sha256": ""}', "\x00", "[" * 1000])
def test_what_is_no_receipt_is_refused(model, tmp_path, content):
    (tmp_path / "receipt.json").write_text(content)
    with pytest.raises(clnp.StoreError, match="cannot read the receipt"):
        verify(model, receipt=tmp_path / "receipt.json")
    with pytest.raises(clnp.StoreError, match="cannot read the receipt"):
        verify(model, receipt=tmp_path / "missing.json")


def test_the_page_escapes_names_and_stands_alone(model):
    page = render_receipt(verify(model, network()))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "bit for bit" in page
    assert "http" not in page.replace("http-equiv", "")
    assert read_ledger(model).hashes[-1] in page


# ---- audit


def test_every_byte_of_a_directory_is_listed_with_its_purpose(model):
    (model / ".lock.pid").write_text("1")
    items = audit(model)
    files = {item.name: item.bytes for item in items if ": " not in item.name}
    assert files == {str(path.relative_to(model)): path.stat().st_size for path in model.rglob("*") if path.is_file()}
    for file, size in files.items():
        parts = [item.bytes for item in items if item.name.startswith(file + ": ")]
        assert not parts or sum(parts) == size
    assert all(item.purpose and item.known for item in items)


def test_audit_names_what_is_not_ours(model):
    (model / ".note").write_text("mine")
    assert [item.name for item in audit(model) if not item.known] == [".note"]


def test_no_training_example_is_in_a_directory(model):
    """Neither its bytes in any file, nor a tensor that equals one."""
    x = small.task(0)[0]
    rows = {row.numpy().tobytes() for row in x}
    content = b"".join(path.read_bytes() for path in model.rglob("*") if path.is_file())
    assert not any(row in content for row in rows)


def test_the_users_own_probe_is_said_to_be_data(tmp_path):
    learner = clnp.Learner(small.network("mlp"), torch.zeros(2, *small.SHAPE), probe=ledgers.X[:3])
    learn(learner, "one")
    learner.save(tmp_path / "model")
    assert any("these are data" in item.purpose for item in audit(tmp_path / "model"))
    assert verify(tmp_path / "model", network()).probe == "named by the user"
    assert clnp.Learner.load(tmp_path / "model", network()).receipt("one")[1].verdict == "bitwise"


# ---- the command line


def call(*arguments):
    """Exit code of a command."""
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code or 0
    return 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    settings = ["epochs=3", "finetune_epochs=1", "rounds=1", "batch_size=16", "private=true"]
    assert call("run", "digits", "--tasks", 3, "--out", out, *(part for pair in settings for part in ("--set", pair))) == 0
    return out


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_verify_prints_writes_and_exits_0(run, tmp_path, capsys):
    assert call("verify", run, "--out", tmp_path / "r.json", "--out", tmp_path / "r.html") == 0
    told = capsys.readouterr()
    assert told.out.count("as committed, bit for bit") == 3
    assert "verified: every file is what was committed" in told.out
    assert json.loads((tmp_path / "r.json").read_text())["record"] == 3
    assert "bit for bit" in (tmp_path / "r.html").read_text()
    assert call("verify", run, "--receipt", tmp_path / "r.json", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kept"] == str(tmp_path / "r.json")
    assert call("verify", run, "--out", tmp_path / "r.pdf") == 2


def test_exit_codes_tell_damage_difference_and_rollback_apart(run, tmp_path, capsys):
    assert call("verify", run, "--out", tmp_path / "r.json") == 0
    assert call("undo", run) == 0
    assert call("verify", run, "--receipt", tmp_path / "r.json") == 0
    model = run / "model"
    whole = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    ledgers.write_log(model, ledgers.lines_of(model)[:3])
    (model / "tasks" / "002.safetensors").unlink()
    capsys.readouterr()
    assert call("verify", run, "--receipt", tmp_path / "r.json") == 5
    assert "set back" in capsys.readouterr().out
    for path, content in whole.items():
        path.write_bytes(content)
    (model / "HEAD").write_bytes(b"")
    assert call("verify", run) == 3
    assert capsys.readouterr().err.startswith("clnp: cannot read")
    assert call("verify", tmp_path / "nowhere") == 1
    assert call("verify", run / "model", "--model", "nothing") == 3
    (model / "HEAD").write_bytes(whole[model / "HEAD"])
    assert call("verify", run / "model", "--model", "mlp-smalll") == 2
    assert "mlp-small" in capsys.readouterr().err
    assert call("verify", run / "model", "--model", "mlp-small") == 0


def test_undo_takes_the_newest_task_back_and_purges_another(run, capsys):
    before = clnp.Learner.load(run / "model", trunk(run)).predict(torch.zeros(2, 1, 8, 8), task="digits-0")
    assert call("undo", run) == 0
    assert "undone: task 'digits-2'" in capsys.readouterr().out
    assert call("undo", run, "--task", "digits-1", "--purge", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["task"], told["purged"]) == ("digits-1", True)
    assert sorted(path.name for path in (run / "model" / "tasks").iterdir()) == ["000.safetensors", "002.safetensors"]
    learner = clnp.Learner.load(run / "model", trunk(run))
    assert learner.tasks == ("digits-0",)
    assert torch.equal(learner.predict(torch.zeros(2, 1, 8, 8), task="digits-0"), before)
    assert call("status", run) == 0
    told = capsys.readouterr().out
    assert "'digits-1' is no more" in told.replace("\n", " ")
    assert "3 tasks (2 of them undone since)" in told
    assert [line.split()[:2] for line in told.splitlines() if line.startswith("digits-")] == [
        ["digits-0", "100.00"],
        ["digits-1", "(undone)"],
        ["digits-2", "(undone)"],
    ]
    assert rundir.read_summary(run)["capacity"]["hidden1"]["claimed"] == {"digits-0": learner.capacity()["hidden1"].claimed["digits-0"]}
    assert call("undo", run, "--task", "never") == 1
    assert "expected one of 'digits-0'" in capsys.readouterr().err


def trunk(run):
    from clnp.runs import trunk_of

    return trunk_of(run)


def test_a_run_in_which_a_task_was_undone_goes_no_further(run, capsys):
    (run / "summary.json").unlink()
    assert call("undo", run) == 0
    settings = ["epochs=3", "finetune_epochs=1", "rounds=1", "batch_size=16", "private=true"]
    assert call("run", "digits", "--tasks", 3, "--out", run, *(part for pair in settings for part in ("--set", pair))) == 1
    assert "'digits-2' was undone in it" in capsys.readouterr().err


def test_diff_and_apply(run, tmp_path, capsysbinary):
    copy = tmp_path / "copy"
    shutil.copytree(run / "model", copy)
    assert call("undo", run) == 0
    assert call("diff", run, "--since", "digits-2", "--out", tmp_path / "patch") == 0
    assert b"% of the network's" in capsysbinary.readouterr().err
    assert call("diff", run, "--since", "digits-2") == 0
    assert capsysbinary.readouterr().out == (tmp_path / "patch").read_bytes()
    assert call("apply", copy, tmp_path / "patch") == 0
    assert b"undone: digits-2" in capsysbinary.readouterr().out
    assert call("apply", copy, tmp_path / "patch") == 0
    assert b"nothing to do" in capsysbinary.readouterr().out
    assert call("apply", run, tmp_path / "patch") == 1
    (tmp_path / "patch").write_bytes(b"x")
    assert call("apply", copy, tmp_path / "patch") == 3
    assert call("apply", copy, tmp_path / "missing") == 1
    assert call("diff", run, "--since", "never") == 1


def test_audit_counts_every_byte(run, capsys):
    assert call("audit", run) == 0
    told = capsys.readouterr().out
    total = sum(path.stat().st_size for path in (run / "model").rglob("*") if path.is_file())
    assert f"{total:,} bytes" in told
    assert "no training example among them" in told
    assert call("audit", run, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) > 10


def test_names_never_become_paths_or_markup(tmp_path):
    learner = empty()
    names = ["../../x", "/etc/passwd", "a\\b", "..", "CON", "model.json", MARKUP]
    for number, name in enumerate(names):
        learn(learner, name, number, pool=0.1)
    learner.save(tmp_path / "model")
    found = {path.name for path in (tmp_path / "model").rglob("*") if not path.name.startswith(".")}
    assert found == {
        "model.json",
        "constants.safetensors",
        "HEAD",
        "log.jsonl",
        "tasks",
        *(f"{n:03d}.safetensors" for n in range(len(names))),
    }
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [task.task for task in verify(tmp_path / "model").tasks] == names
    assert Path("/etc/passwd").exists()


# ---- undoing in a run


@pytest.fixture
def two_learned(tmp_path):
    experiment.run(
        experiment.configure("digits", n_tasks=2, settings={"epochs": 1, "rounds": 1, "finetune_epochs": 0, "pool": 0.2, "reuse": False}),
        tmp_path / "run",
    )
    return tmp_path / "run"


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_undo_that_was_cut_short_is_finished_by_the_same_command(two_learned, failure, monkeypatch):
    """The tombstone counts, and the run does not know it yet: the newest task is another one now."""
    with monkeypatch.context() as patch:
        patch.setattr(rundir, "append_event", lambda *_: (_ for _ in ()).throw(failure))
        with pytest.raises(BaseException, match=r"No space|^$"):
            runs.undo(two_learned)
    assert runs.undo(two_learned).task == "digits-1"
    assert runs.load_learner(two_learned)[0].tasks == ("digits-0",)
    assert [event["task"] for event in rundir.read_events(two_learned) if event["event"] == "undone"] == ["digits-1"]
    assert runs.undo(two_learned).task == "digits-0"


def test_an_undo_that_fails_names_its_task(two_learned, monkeypatch):
    monkeypatch.setattr(undoing, "extend", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(clnp.StoreError, match=r"cannot undo task 'digits-1' .*: No space left on device\. .* name the task 'digits-1'"):
        undoing.undo(two_learned / "model")


def test_undoing_in_the_model_of_a_run_tells_the_run(two_learned, capsys):
    with contextlib.suppress(SystemExit):
        cli.main(["undo", str(two_learned / "model")])
    assert "undone: task 'digits-1'" in capsys.readouterr().out
    assert [event["task"] for event in rundir.read_events(two_learned) if event["event"] == "undone"] == ["digits-1"]
