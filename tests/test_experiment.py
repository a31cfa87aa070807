from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from clnp import locks, metrics, rundir, work
from clnp.errors import CapacityError, ConfigError, DamageError, DataError, StoreError
from clnp.experiment import configure, run, said
from clnp.methods import METHODS
from clnp.report import read_run
from test_pruning import nothing_released

SETTINGS = {"epochs": 3, "rounds": 1, "finetune_epochs": 1, "batch_size": 32}
MORE = {"hat": {"epochs": 9}}  # attention takes more steps than weights
TIMES = ("seconds_per_task", "cpu_seconds_per_task")


def tiny(method="clnp", **settings):
    return configure("digits", method=method, n_tasks=3, settings={**SETTINGS, **MORE.get(method, {}), **settings})


def timeless(summary):
    return {key: value for key, value in summary.items() if key not in TIMES}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One uninterrupted run per method."""
    base = tmp_path_factory.mktemp("finished")
    return {method: (base / method, run(tiny(method), base / method, command="clnp run digits")) for method in METHODS}


# ---- what a run writes


@pytest.mark.parametrize("method", METHODS)
def test_the_summary_says_what_the_contract_promises(finished, method):
    out, summary = finished[method]
    assert rundir.read_summary(out) == summary
    assert {key: summary[key] for key in ("benchmark", "method", "model", "seed")} == {
        "benchmark": "digits",
        "method": method,
        "model": "mlp-small",
        "seed": 0,
    }
    assert summary["scenario"] == "task-incremental"
    assert summary["tasks"] == ["digits-0", "digits-1", "digits-2"]
    assert summary["command"] == "clnp run digits"
    assert {"clnp", "torch", "python"} <= set(summary["versions"])
    assert summary["n_parameters"] == 64 * 64 + 64 + 64 * 64 + 64
    matrix = summary["accuracy_matrix"]
    assert [[accuracy is None for accuracy in row] for row in matrix] == [[False, True, True], [False, False, True], [False, False, False]]
    assert summary["average_accuracy"] == metrics.average_accuracy(matrix) > 0.8
    assert summary["forgetting"] == metrics.forgetting(matrix)
    for name in TIMES:
        assert len(summary[name]) == 3
        assert all(seconds > 0 for seconds in summary[name])


def test_nothing_is_forgotten_and_the_units_add_up(finished):
    _, summary = finished["clnp"]
    assert summary["forgetting"] == 0.0
    for task in range(3):
        assert len({row[task] for row in summary["accuracy_matrix"][task:]}) == 1
    assert summary["capacity"]
    for group in summary["capacity"].values():
        assert group["free"] + sum(group["claimed"].values()) == group["n_units"]
        assert set(group["claimed"]) == set(group["reused"]) == set(summary["tasks"])
    assert set(summary["margin"]) == set(summary["tasks"])
    for margin in summary["margin"].values():
        assert margin["allowed"] == tiny().learn.margin
        assert margin["paid"] <= margin["allowed"]
        assert margin["paid"] == pytest.approx(margin["accuracy_unpruned"] - margin["accuracy"])
    assert set(summary["forecast"]) == {"tasks", "limiting_group", "assumption"}


def test_methods_without_units_say_so(finished):
    for method in ("finetune", "single"):
        _, summary = finished[method]
        assert summary["capacity"] is None
        assert summary["forecast"] is None
        assert summary["margin"] == {}
    assert finished["single"][1]["forgetting"] == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_events_tell_the_course_of_the_run(finished, method):
    out, summary = finished[method]
    events = rundir.read_events(out)
    assert all(isinstance(event["time"], float) for event in events)
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    kinds = [event["event"] for event in events if event["event"] != "epoch"]
    assert kinds == ["run_started", *["task_learned", "evaluated"] * 3, "run_finished"]
    started = events[0]
    assert started["n_tasks"] == 3
    assert [task["name"] for task in started["tasks"]] == summary["tasks"]
    assert all({"name", "n_classes", "classes", "details"} == set(task) for task in started["tasks"])
    assert ("groups" in started) == (method == "clnp")
    epochs = [event for event in events if event["event"] == "epoch"]
    assert len(epochs) == 3 * tiny(method).learn.total_epochs
    learned = [event for event in events if event["event"] == "task_learned"]
    assert [event["index"] for event in learned] == [0, 1, 2]
    if method == "clnp":
        assert {"accuracy_unpruned", "accuracy", "margin", "margin_paid", "claimed", "reused", "free", "notices"} <= set(learned[0])
    rows = [event["accuracies"] for event in events if event["event"] == "evaluated"]
    assert rows == [[a for a in row if a is not None] for row in summary["accuracy_matrix"]]


def test_the_configuration_of_a_run_repeats_it(finished, tmp_path):
    out, summary = finished["single"]
    again = configure("digits", defaults=yaml.safe_load((out / "config.yaml").read_text()))
    assert again == tiny("single")
    assert timeless(run(again, tmp_path / "again", command="clnp run digits")) == timeless(summary)


# ---- interrupted and continued


class Stop(BaseException):
    """What a kill looks like from inside: nothing in the library may catch it."""


def stop_at(kind, count):
    """Return a progress callback that stops the run at the count-th event of a kind."""
    seen = []

    def progress(event):
        if event["event"] == kind:
            seen.append(event)
            if len(seen) == count:
                raise Stop

    return progress


STOPS = [("run_started", 1), ("epoch", 2), ("epoch", 6), ("task_learned", 1), ("task_learned", 2), ("evaluated", 2), ("run_finished", 1)]


@pytest.mark.parametrize(
    ("method", "kind", "count"),
    [
        pytest.param(method, *stop, marks=[] if method == "clnp" or stop == ("epoch", 6) else pytest.mark.thorough)
        for method in METHODS
        for stop in STOPS
    ],
)
def test_a_stopped_run_continues_to_the_same_summary(finished, tmp_path, method, kind, count):
    out = tmp_path / "run"
    with pytest.raises(Stop):
        run(tiny(method), out, command="clnp run digits", progress=stop_at(kind, count))
    assert not (out / "summary.json").exists()
    summary = run(tiny(method), out, command="another command", progress=lambda event: None)
    assert timeless(summary) == timeless(finished[method][1])
    resumed = [event for event in rundir.read_events(out) if event["event"] == "run_resumed"]
    assert len(resumed) == 1


def test_the_costs_of_a_continued_task_are_those_of_all_processes(tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("clnp.work.Work.spent", lambda self: (1000.0, 500.0))
        with pytest.raises(Stop):
            run(tiny("single"), out, progress=stop_at("task_learned", 2))  # learned, but not saved
    with pytest.raises(Stop):
        run(tiny("single"), out, progress=stop_at("task_learned", 1))  # learned again, and killed again before it is saved
    summary = run(tiny("single"), out)
    resumed = [event for event in rundir.read_events(out) if event["event"] == "task_resumed"]
    assert [(event["task"], event["phase"], event["epochs_done"]) for event in resumed] == [("digits-1", "train", 4)] * 2
    learned = [event for event in rundir.read_events(out) if event["event"] == "task_learned" and event["index"] == 1]
    assert 1000.0 < learned[1]["seconds"] < 1030.0
    assert summary["seconds_per_task"][1] == learned[-1]["seconds"] > 1000.0
    assert summary["cpu_seconds_per_task"][1] > 500.0
    assert summary["seconds_per_task"][2] < 100.0, "the next task begins at zero"


def test_a_finished_run_keeps_no_training_state(finished, tmp_path, monkeypatch):
    for out, _ in finished.values():
        assert not (out / rundir.WORK).exists()
    out = tmp_path / "run"
    events, clears, clear = [], [], work.clear

    def cut_short(directory):
        assert [path.name for path in directory.iterdir()] == ["work-train-0.safetensors"]
        clears.append(len(list((out / "model").glob("network-*"))))
        if len(clears) == 3:
            raise Stop  # the last task is saved, and its training state is still there
        clear(directory)

    with monkeypatch.context() as patch:
        patch.setattr(work, "clear", cut_short)
        with pytest.raises(Stop):
            run(tiny("single"), out, progress=events.append)
    assert clears == [1, 2, 3], "cleared when the task is saved, and not before"
    assert "notice" not in {event["event"] for event in events}, "no task finds what another one left"
    run(tiny("single"), out)
    assert not (out / rundir.WORK).exists()


@pytest.mark.parametrize("n_resumed", [1, 2])
def test_status_of_a_continued_task_tells_where_it_is(tmp_path, n_resumed):
    """It goes on with the phase that was kept; when the state is lost, it is at no epoch until it has done one."""
    out = tmp_path / "run"
    for _ in range(n_resumed + 1):
        with pytest.raises(Stop):
            run(tiny(), out, progress=stop_at("phase", 2))  # 1: score, 2: select
    at = read_run(out).progress
    assert (at.task, at.phase, at.epoch) == ("digits-0", "train", 3)
    shutil.rmtree(out / rundir.WORK)
    with pytest.raises(Stop):
        run(tiny(), out, progress=stop_at("run_resumed", 1))
    assert read_run(out).progress is None
    epochs = [(event["phase"], event["epoch"]) for event in rundir.read_events(out) if event["event"] == "epoch"]
    assert epochs == [("train", 1), ("train", 2), ("train", 3)], "nothing was done twice"


def test_a_kill_between_model_and_evaluation_costs_nothing(finished, tmp_path, monkeypatch):
    out = tmp_path / "run"
    evaluate = "clnp.experiment._evaluate"
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, lambda *_: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            run(tiny(), out, command="clnp run digits")
    learned = []
    summary = run(tiny(), out, progress=lambda event: learned.append(event) if event["event"] == "task_learned" else None)
    assert [event["index"] for event in learned] == [1, 2], "the first task was in the model"
    assert timeless(summary) == timeless(finished["clnp"][1])


@pytest.mark.parametrize(
    ("method", "write"),
    [
        pytest.param(
            method, write, marks=[] if (method == "clnp" and write % 2) or (method != "clnp" and write == 2) else pytest.mark.thorough
        )
        for method in METHODS
        for write in range(1, 7)
    ],
)
def test_a_kill_while_the_model_is_saved_costs_one_task_at_most(finished, tmp_path, monkeypatch, method, write):
    """Stop before the n-th file of the model is written, which may be the very first."""
    out, written = tmp_path / "run", []

    def cut_short(path, flags, mode=0o777):
        if out / "model" in Path(path).parents:
            written.append(path)
            if len(written) == write:
                raise Stop
        return os.open(path, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr("clnp.files.system", SimpleNamespace(**{**vars(os), "open": cut_short}))
        with pytest.raises(Stop):
            run(tiny(method), out, command="clnp run digits")
    assert len(written) == write
    assert timeless(run(tiny(method), out)) == timeless(finished[method][1])


def test_a_model_that_lost_a_task_is_refused(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Stop):
        run(tiny(), out, progress=stop_at("evaluated", 2))
    (out / "model" / "model.json").unlink()
    with pytest.raises(DamageError, match=r"model\.json.*it is missing"):
        run(tiny(), out)
    shutil.rmtree(out / "model")
    with pytest.raises(StoreError, match=r"its model knows 0 tasks.*2 evaluated"):
        run(tiny(), out)


def test_a_torn_last_event_is_dropped(finished, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Stop):
        run(tiny("single"), out, command="clnp run digits", progress=stop_at("evaluated", 2))
    with (out / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "epoch", "task": "digi')
    assert timeless(run(tiny("single"), out)) == timeless(finished["single"][1])
    assert all(json.loads(line) for line in (out / "events.jsonl").read_text().splitlines())


def test_killed_for_good_and_given_again(finished, tmp_path):
    """SIGKILL, from outside, wherever it hits."""
    out = tmp_path / "run"
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-c", "import clnp.cli; clnp.cli.main()", "run", "digits", "--tasks", "3", *settings, "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "src")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while b"task_learned" not in (out / "events.jsonl").read_bytes() if (out / "events.jsonl").exists() else True:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not locks.is_locked(out)
    summary = run(tiny(), out)
    ignored = {*TIMES, "command", "versions"}  # the thread count of a subprocess is its own
    expected = finished["clnp"][1]
    assert {k: v for k, v in summary.items() if k not in ignored} == {k: v for k, v in expected.items() if k not in ignored}


def test_a_finished_run_is_left_as_it_is(finished):
    out, summary = finished["clnp"]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")}
    events = []
    assert run(tiny(), out, progress=events.append) == summary
    assert [event["event"] for event in events] == ["already_finished"]
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")}


def test_a_model_that_the_events_do_not_know_is_refused(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Stop):
        run(tiny("single"), out, progress=stop_at("evaluated", 2))
    (out / "events.jsonl").unlink()
    with pytest.raises(StoreError, match=r"its model knows 2 tasks.*tells of 0 learned"):
        run(tiny("single"), out)


def test_damaged_events_are_refused(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Stop):
        run(tiny("single"), out, progress=stop_at("evaluated", 1))
    text = (out / "events.jsonl").read_text().replace('"event": "epoch"', '"event": "epo', 1)
    (out / "events.jsonl").write_text(text)
    with pytest.raises(DamageError, match=r"line 2 of its events\.jsonl is damaged"):
        run(tiny("single"), out)


# ---- directories that are not ours


def test_a_directory_takes_another_configuration_only_where_nothing_is_lost(tmp_path):
    rundir.claim(tmp_path, {"lr": 1})
    rundir.append_event(tmp_path, {"event": "epoch"})
    with pytest.raises(StoreError, match=r"another configuration: lr \(1 there, 2 here\)"):
        rundir.claim(tmp_path, {"lr": 2})  # it was killed in its first task, and can go on
    rundir.append_event(tmp_path, {"event": "failed"})
    rundir.claim(tmp_path, {"lr": 2})
    assert rundir.read_config(tmp_path) == {"lr": 2}
    assert rundir.read_events(tmp_path) == []
    rundir.claim(tmp_path, {"lr": 3})  # it was killed before it began
    (tmp_path / rundir.WORK).mkdir()
    with pytest.raises(StoreError, match="another configuration"):
        rundir.claim(tmp_path, {"lr": 4})
    rundir.append_event(tmp_path, {"event": "failed"})
    (tmp_path / rundir.MODEL).mkdir()
    with pytest.raises(StoreError, match="another configuration"):
        rundir.claim(tmp_path, {"lr": 4})


def test_the_run_of_another_configuration_is_refused_and_named(finished):
    out, _ = finished["clnp"]
    before = (out / "config.yaml").read_bytes()
    with pytest.raises(StoreError, match=r"learn\.margin \([0-9.]+ there, 0\.123 here\).*method \('clnp' there, 'single' here\).*--out"):
        run(tiny("single", margin=0.123), out)
    assert (out / "config.yaml").read_bytes() == before


def test_a_run_of_a_version_without_a_setting_goes_on_as_if_it_had_the_default(tmp_path, monkeypatch):
    def old(directory, config, *_):
        claim(directory, {**config, "learn": {key: value for key, value in config["learn"].items() if key != "precision"}})

    claim = rundir.claim
    with monkeypatch.context() as patched:
        patched.setattr(rundir, "claim", old)
        with pytest.raises(Stop):
            run(tiny(), tmp_path, progress=stop_at("task_learned", 1))
    assert "precision" not in (tmp_path / "config.yaml").read_text()
    with pytest.raises(StoreError, match=r"learn\.precision \('float32' there, 'bfloat16' here\)"):
        run(tiny(precision="bfloat16"), tmp_path)
    assert len(run(tiny(), tmp_path)["tasks"]) == 3


def test_a_full_network_ends_the_run_where_that_was_asked_for_and_fails_it_otherwise(tmp_path, monkeypatch):
    # Nothing is released: the first task takes half, and the second the rest.
    monkeypatch.setattr("clnp.pruning.select", nothing_released)
    config = tiny(pool=0.5)
    with pytest.raises(CapacityError, match="cannot learn task 'digits-2'"):
        run(config, tmp_path)
    assert not read_run(tmp_path).finished
    summary = run(config, tmp_path, until_full=True)
    assert summary["tasks"] == ["digits-0", "digits-1"]
    assert [len(row) for row in summary["accuracy_matrix"]] == [2, 2]
    assert summary["full"].startswith("cannot learn task 'digits-2'")
    seen = read_run(tmp_path)
    assert seen.finished
    assert any("cannot learn task 'digits-2'" in notice for notice in seen.notices)
    assert run(config, tmp_path) == summary


def test_a_network_without_room_for_the_first_task_fails_in_any_case(tmp_path):
    with pytest.raises(CapacityError, match="pool=0"):
        run(tiny(pool=0), tmp_path, until_full=True)


def test_a_directory_of_other_files_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter")
    with pytest.raises(StoreError, match=r"found 'thesis\.tex'"):
        run(tiny(), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "chapter"
    assert not (tmp_path / "config.yaml").exists()


def test_two_processes_do_not_share_a_directory(tmp_path):
    with locks.locked(tmp_path), pytest.raises(StoreError, match=f"process {os.getpid()} is at work"):
        run(tiny(), tmp_path)
    assert not (tmp_path / "config.yaml").exists()


def test_what_cannot_be_run_leaves_no_directory(tmp_path):
    with pytest.raises(ConfigError, match="expected 1 to 5 tasks, found 6"):
        run(configure("digits", n_tasks=6), tmp_path / "run")
    with pytest.raises(DataError):
        run(configure("permuted-mnist"), tmp_path / "run", data=tmp_path / "no data here")
    with pytest.raises(ConfigError, match="Use head='multi'"):
        run(tiny("ewc", head="single"), tmp_path / "run")
    with pytest.raises(ConfigError, match="cannot train on device"):
        run(tiny(device="nonsense"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_shown_where_it_could_not_be_run(finished, tmp_path, monkeypatch):
    out, summary = finished["single"]
    monkeypatch.setitem(METHODS, "single", lambda *_: pytest.fail("nothing is to be done"))
    assert run(tiny("single"), out) == summary


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("summary.json", b"{"),
        ("summary.json", b'{"check": "0"}'),
        ("config.yaml", b"a: [1"),
        ("config.yaml", b"[]"),
        ("config.yaml", b"a: 1\n"),
    ],
)
def test_content_that_was_not_written_is_damage_and_a_file_that_cannot_be_read_is_not(finished, tmp_path, file, content):
    shutil.copytree(finished["single"][0], tmp_path / "run")
    (tmp_path / "run" / file).write_bytes(content)
    with pytest.raises(DamageError, match=file.replace(".", r"\.")):
        run(tiny("single"), tmp_path / "run")
    (tmp_path / "run" / file).unlink()
    (tmp_path / "run" / "summary.json").unlink(missing_ok=True)
    (tmp_path / "run" / "summary.json").mkdir()
    with pytest.raises(StoreError) as told:
        rundir.read_summary(tmp_path / "run")
    assert not isinstance(told.value, DamageError)


# ---- configurations


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"benchmark": "digit"}, "Did you mean 'digits'"),
        ({"benchmark": "digits", "method": "clmp"}, "Did you mean 'clnp'"),
        ({"benchmark": "digits", "model": "mlp-smal"}, "Did you mean 'mlp-small'"),
        ({"benchmark": "digits", "settings": {"epoch": 3}}, "Did you mean 'epochs'"),
        ({"benchmark": "digits", "settings": {"epochs": "many"}}, "epochs: .*found 'many'"),
        ({"benchmark": "digits", "settings": {"margin": 2}}, "margin: .*found 2"),
        ({"benchmark": "digits", "defaults": {"epochs": 3}}, "put it under 'learn:'"),
        ({"benchmark": "digits", "defaults": {"method": ["ewc"]}}, r"unknown method \['ewc'\]: expected a name, found list"),
        ({"benchmark": "digits", "defaults": {"model": {"a": 1}}}, "unknown model .*expected a name, found dict"),
        ({"benchmark": "digits", "defaults": {1: 2}}, "unknown key in the configuration file 1"),
        ({"benchmark": "digits", "defaults": {"learn": {1: 2}}}, "unknown setting 1"),
        ({"benchmark": "digits", "defaults": {"sed": 3}}, "Did you mean 'seed'"),
        ({"benchmark": "digits", "defaults": {"seed": "x"}}, "seed: expected a whole number"),
        ({"benchmark": "digits", "seed": -1}, "seed: expected a whole number of at least 0"),
        ({"benchmark": "digits", "n_tasks": -1}, "n_tasks: expected a whole number of at least 1"),
        ({"benchmark": "digits", "defaults": {"learn": 3}}, "expected settings under 'learn:'"),
        ({"benchmark": "digits", "defaults": {"learn": 0}}, "expected settings under 'learn:', found 0"),
        ({"benchmark": "digits", "defaults": {"learn": []}}, "expected settings under 'learn:', found \\[\\]"),
        ({"benchmark": "digits", "defaults": {"benchmark": "split-mnist"}}, "is for benchmark 'split-mnist'"),
    ],
)
def test_what_is_unknown_is_named_with_the_nearest(arguments, words):
    with pytest.raises(ConfigError, match=words):
        configure(**arguments)


def test_what_a_file_leaves_empty_it_does_not_say():
    assert configure("digits", defaults=dict.fromkeys(["benchmark", "method", "model", "seed", "n_tasks"])) == configure("digits")


def test_a_file_says_the_settings_that_are_not_the_benchmarks_own():
    whole = configure("digits").model_dump(mode="json")
    whole["learn"] |= {"margin": 0.1, "share": 0.5}
    assert said("digits", {"epochs": 1, "share": 0.5}, whole) == ["epochs", "share", "margin"]


def test_the_most_specific_word_wins():
    defaults = {"seed": 3, "method": "single", "learn": {"epochs": 7, "lr": 0.5}}
    config = configure("digits", defaults=defaults)
    assert (config.seed, config.method, config.n_tasks, config.learn.epochs, config.learn.lr) == (3, "single", 5, 7, 0.5)
    config = configure("digits", defaults=defaults, seed=0, method="finetune", settings={"epochs": 1})
    assert (config.seed, config.method, config.learn.epochs, config.learn.lr) == (0, "finetune", 1, 0.5)
