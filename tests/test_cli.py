from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

import clnp as package
from clnp import cli, console, experiment, locks, rundir
from clnp.methods import METHODS
from clnp.report import read_run
from clnp.stopping import Stopped

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "src"), "COLUMNS": "120"}
FAST = ["--tasks", "2", "--set", "epochs=2", "--set", "rounds=1", "--set", "finetune_epochs=1"]


@pytest.fixture
def clnp(capsys, monkeypatch, tmp_path):
    """Give one command line in an empty working directory: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def give(*arguments):
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return give


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished run of clnp."""
    out = tmp_path_factory.mktemp("cli") / "run"
    settings = {"epochs": 2, "rounds": 1, "finetune_epochs": 1}
    experiment.run(experiment.configure("digits", n_tasks=2, settings=settings), out, command="clnp run digits")
    return out


# ---- at once


def test_help_answers_at_once_and_without_torch():
    code = "import sys\nfrom clnp import cli\ntry: cli.main(['--help'])\nfinally: sys.stderr.write(str('torch' in sys.modules))"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stderr == "False"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    for command in ("demo", "list", "run", "status", "report", "export", "inspect"):
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", ["demo", "list", "run", "status", "report", "export", "inspect"])
def test_every_command_and_option_has_a_help_text(clnp, command):
    code, out, _ = clnp(command, "--help")
    assert code == 0
    options = [line for line in out.splitlines() if re.match(r"  (-|\w+ {2,})", line)]
    assert options
    for line, following in zip(options, [*options[1:], ""], strict=True):
        assert re.search(r"\S {2,}\S", line.strip()) or following is not None


def test_status_needs_no_torch(finished):
    code = f"import sys\nfrom clnp import cli\ntry: cli.main(['status', {str(finished)!r}])\nfinally: sys.stderr.write(str('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stderr == "False"


def test_version(clnp):
    code, out, err = clnp("--version")
    assert (code, out, err) == (0, f"clnp {package.__version__}\n", "")


# ---- run


def test_a_run_shows_progress_on_stderr_and_results_on_stdout(clnp, tmp_path):
    code, out, err = clnp("run", "digits", *FAST)
    assert code == 0
    assert (tmp_path / "runs" / "digits-clnp-seed0" / "summary.json").is_file()
    assert "task 1/2 digits-0: learned in" in err
    assert "units free" in err
    assert "ETA" in err
    assert "test accuracy so far" in err
    assert "digits-1" in out
    assert re.search(r"^forgetting +0\.0 *$", out, re.MULTILINE)
    assert re.search(r"units free +[█░]{20} .*of 64", out)
    assert "learned in" not in out
    config = yaml.safe_load((tmp_path / "runs" / "digits-clnp-seed0" / "config.yaml").read_text())
    assert set(config) == {"benchmark", "method", "model", "seed", "n_tasks", "learn"}
    assert config["learn"]["epochs"] == 2


def test_the_same_command_again_shows_the_finished_run(clnp):
    command = ["run", "digits", "--method", "single", *FAST]
    _, first, _ = clnp(*command)
    code, second, err = clnp(*command)
    assert code == 0
    assert second == first
    assert "already finished" in err


def test_json_is_all_that_stdout_gets(clnp, tmp_path):
    code, out, _ = clnp("run", "digits", "--method", "finetune", "--seed", "3", "--out", "x", "--json", *FAST)
    assert code == 0
    summary = json.loads(out)
    assert summary == rundir.read_summary(tmp_path / "x")
    assert summary["seed"] == 3
    assert summary["command"] == shlex.join(["clnp", "run", "digits", "--method", "finetune", "--seed", "3", "--out", "x", "--json", *FAST])


def test_a_configuration_file_fills_in_what_is_not_said(clnp, tmp_path):
    (tmp_path / "c.yaml").write_text("method: single\nseed: 4\nlearn: {epochs: 2, rounds: 1, finetune_epochs: 0, lr: 1.0e-2}\n")
    code, _, _ = clnp("run", "digits", "--config", "c.yaml", "--tasks", "1", "--set", "epochs=1")
    assert code == 0
    config = yaml.safe_load((tmp_path / "runs" / "digits-single-seed4" / "config.yaml").read_text())
    assert (config["learn"]["epochs"], config["learn"]["lr"], config["n_tasks"]) == (1, 0.01, 1)


def test_ctrl_c_says_how_to_continue_and_the_command_does(clnp, monkeypatch, tmp_path):
    command = ["run", "digits", "--method", "single", "--out", "a run", *FAST]
    real = console.Display.__call__

    def interrupted(self, event):
        real(self, event)
        if event["event"] == "evaluated":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(console.Display, "__call__", interrupted)
        code, out, err = clnp(*command)
    assert code == 130
    assert out == ""
    told = err.strip().splitlines()[-1]
    assert told.endswith(shlex.join(["clnp", *command]))
    assert "Traceback" not in err
    code, out, _ = clnp("status", "a run")
    assert code == 0
    assert "1 of 2 tasks learned" in out
    assert "stopped; to continue: " + shlex.join(["clnp", *command]) in out
    (tmp_path / "a run").rename(tmp_path / "moved")
    code, out, _ = clnp("status", "moved")
    assert code == 0
    assert "stopped; to continue: " + shlex.join(["clnp", *command[: -len(FAST) - 2], *FAST, "--out", "moved"]) in " ".join(out.split())
    (tmp_path / "moved").rename(tmp_path / "a run")
    code, out, err = clnp(*shlex.split(told.partition("To continue: ")[2])[1:])
    assert code == 0
    assert "continuing: 1 of 2 tasks are learned" in err
    assert read_run(tmp_path / "a run").finished


def test_a_run_that_was_killed_before_it_began_is_said_to_be_one(clnp, tmp_path):
    assert clnp("run", "digits", *FAST, "--out", "early")[0] == 0
    for path in (tmp_path / "early").iterdir():
        if path.is_file() and path.name != "config.yaml":
            path.unlink()
    shutil.rmtree(tmp_path / "early" / "model")
    code, out, _ = clnp("status", "early")
    assert code == 0
    assert out.endswith("stopped before it began; give its command again\n")


# ---- what goes wrong


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "digit"], 2, "Did you mean 'digits'"),
        (["run", "digits", "--method", "pruning"], 2, "clnp, single, finetune"),
        (["run", "digits", "--model", "mlp-smal"], 2, "Did you mean 'mlp-small'"),
        (["run", "digits", "--set", "epoch=3"], 2, "Did you mean 'epochs'"),
        (["run", "digits", "--set", "epochs"], 2, "expected KEY=VALUE"),
        (["run", "digits", "--set", "epochs=[1"], 2, "expected a YAML value"),
        (["run", "digits", "--set", "epochs=ten"], 2, "epochs: .*integer.*'ten'"),
        (["run", "digits", "--set", "margin=1.5"], 2, r"margin: .*less than 1.*1\.5"),
        (["run", "digits", "--set", "x=!!python/object/apply:os.system [true]"], 2, "expected a YAML value"),
        (["run", "digits", "--set", "threads=100000"], 2, r"threads: .*less than or equal to 1024"),
        (["run", "digits", "--method", "ewc", "--set", "strength=1e300"], 2, r"strength: .*less than or equal to 1000000000000"),
        (["run", "digits", "--tasks", "6"], 2, "expected 1 to 5 tasks, found 6"),
        (["run", "digits", "--tasks", "0"], 2, "found 0"),
        (["run", "digits", "--config", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["run", "digits", "--taks", "3"], 2, "--tasks"),
        (["run"], 2, "(?i)missing argument .*benchmark"),
        (["fly"], 2, "fly"),
        (["run", "permuted-mnist", "--data", "nowhere"], 1, "nowhere"),
        (["status", "nowhere"], 1, "nowhere"),
        (["report", "nowhere"], 1, "nowhere"),
        (["inspect", "digit"], 2, "Did you mean 'digits'"),
        (["inspect", "digits", "--model", "vgg"], 2, "Did you mean 'vgg-small'"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_mistakes_are_told_in_words(clnp, arguments, code, words):
    found, out, err = clnp(*arguments)
    assert found == code
    assert out == ""
    assert re.search(words, err)
    assert "Traceback" not in err
    if not err.startswith("Usage"):
        assert len(err.strip().splitlines()) == 1


def test_a_run_that_failed_at_once_says_so_and_makes_room_for_the_corrected_command(clnp, tmp_path):
    command = ("run", "digits", *FAST, "--out", "run")
    code, _, err = clnp(*command, "--set", "lr=1e30")
    assert code == 1
    assert "the loss became NaN or infinite" in err
    code, out, _ = clnp("status", "run")
    assert code == 0
    assert re.search(r"^failed: learning task 'digits-0' was abandoned in epoch 1", out, re.MULTILINE)
    assert "to continue" not in out
    assert clnp("report", "run")[0] == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "This run failed:" in page
    assert "It is still running" not in page
    assert clnp(*command)[0] == 0
    run = read_run("run")
    assert run.finished
    assert run.failed is None
    code, _, err = clnp(*command, "--set", "lr=1e30")  # now something would be lost
    assert code == 1
    assert "it holds the run of another configuration: learn.lr" in err
    assert read_run("run").finished


def test_a_run_that_failed_in_a_later_task_keeps_what_it_learned(clnp, monkeypatch):
    command = ("run", "digits", *FAST, "--out", "run")
    learn = METHODS["clnp"].learn

    def second_fails(self, name, *rest):
        if name == "digits-1":
            raise package.TrainingError("the loss became NaN")
        return learn(self, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(METHODS["clnp"], "learn", second_fails)
        assert clnp(*command)[0] == 1
    assert read_run("run").failed == "the loss became NaN"
    with monkeypatch.context() as patch:
        patch.setattr(METHODS["clnp"], "learn", lambda *_: (_ for _ in ()).throw(Stopped(15)))
        assert clnp(*command)[0] == 143
    assert read_run("run").failed is None, "it was tried again"
    assert clnp(*command, "--set", "lr=0.1")[0] == 1  # a task is learned there
    assert clnp(*command)[0] == 0
    assert read_run("run").failed is None


def test_a_pool_of_groups_that_are_not_there_leaves_no_directory(clnp, tmp_path):
    code, _, err = clnp("run", "digits", *FAST, "--set", 'pool={"zz": 3, "*": 4}', "--out", "run")
    assert code == 2
    assert "clnp: cannot run with this pool: 'zz' matches none of the groups hidden1, hidden2" in err
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_configuration_is_a_failure_that_names_the_difference(clnp, finished):
    code, out, err = clnp("run", "digits", *FAST, "--set", "margin=0.123", "--out", finished)
    assert (code, out) == (1, "")
    assert re.fullmatch(r"clnp: cannot run in '.*': .*learn\.margin \([0-9.]+ there, 0\.123 here\).*\n", err)


def test_even_a_bug_shows_no_traceback_unless_asked(clnp, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(experiment, "run", broken)
    code, _, err = clnp("run", "digits")
    assert code == 1
    assert err == "clnp: internal error: RuntimeError: a bug (give --debug to see where)\n"
    for command in (["--debug", "run", "digits"], ["run", "digits", "--debug"]):
        with pytest.raises(RuntimeError, match="a bug"):
            cli.main(command)


def test_a_directory_that_cannot_be_made_is_told_in_words(clnp, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = clnp("run", "digits", *FAST, "--out", "file/run")
    assert code == 1
    assert re.fullmatch(r"clnp: .*file.*\n", err)


# ---- the other commands


def test_list_names_everything(clnp):
    from clnp.benchmarks import BENCHMARKS
    from clnp.importance import CRITERIA
    from clnp.methods import METHODS
    from clnp.models import MODELS

    code, out, _ = clnp("list")
    assert code == 0
    for name in [*BENCHMARKS, *METHODS, *MODELS, *CRITERIA, "epochs", "margin"]:
        assert name in out
    own = out.partition("instead of the defaults")[2].partition("Models")[0]
    for name, benchmark in BENCHMARKS.items():
        told = re.search(rf"^  {name} +(.*)$", own, re.MULTILINE)
        assert (told.group(1) if told else "") == ", ".join(f"{key}={value}" for key, value in benchmark.config.items())


def test_run_tells_which_settings_the_method_does_not_read(clnp, tmp_path):
    few = ("--tasks", "1", "--set", "epochs=1", "--set", "rounds=1", "--set", "finetune_epochs=0")
    code, out, err = clnp(
        "run", "digits", "--method", "ewc", *few, "--set", "share=0.2", "--set", "strength=3", "--set", "margin=0.1", "--json", "--out", "a"
    )
    assert (code, json.loads(out)["method"]) == (0, "ewc")
    notes = [line for line in err.splitlines() if line.startswith("note: method")]
    assert notes == ["note: method ewc does not read 'share'; packnet, wsn do", "note: method ewc does not read 'margin'; clnp does"]
    (tmp_path / "of a file.yaml").write_text("method: ewc\nlearn: {margin: 0.1, epochs: 1, finetune_epochs: 0}\n")
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert (
        "note: method ewc does not read 'margin'; clnp does" in clnp("run", "digits", *few, "--config", "of a file.yaml", "--out", "b")[2]
    )
    assert clnp("run", "digits", *few, "--config", "empty.yaml", "--out", "c")[0] == 0


def test_results_fit_80_characters_with_whole_names_and_show_what_was_forgotten(finished):
    run = read_run(finished)
    tasks = [dataclasses.replace(task, name=f"permuted-mnist-{task.index}", seconds=754) for task in run.tasks]

    def shown(matrix, **changes):
        screen = Console(width=80, file=io.StringIO())
        screen.print(console.results(dataclasses.replace(run, tasks=tuple(tasks), matrix=matrix, **changes)))
        return screen.file.getvalue()

    kept, lost = shown(((0.9, None), (0.9, 0.8))), shown(((0.9, None), (0.7, 0.8)), groups=())  # only a method without units forgets
    for text in (kept, lost):
        assert "permuted-mnist-1" in text
    assert re.search(r"permuted-mnist-0 +90.00 % +\d", kept)
    assert "at first" not in kept
    assert re.search(r"70.00 % +90.00 %", lost)


def test_status_of_a_finished_and_of_a_running_run(clnp, finished):
    code, out, _ = clnp("status", finished)
    assert code == 0
    assert out.endswith("finished\n")
    (finished / "summary.json").rename(finished / "hidden")
    try:
        with locks.locked(finished):
            code, out, _ = clnp("status", finished)
    finally:
        (finished / "hidden").rename(finished / "summary.json")
    assert f"running (process {os.getpid()}" in out


def test_report_prints_where_it_wrote(clnp, finished, tmp_path):
    code, out, _ = clnp("report", finished, "--out", tmp_path / "r.html")
    assert (code, out.strip()) == (0, str(tmp_path / "r.html"))
    assert "<html" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("arguments", [["digits"], ["vgg-small"], ["split-cifar10", "--model", "resnet-small"]])
def test_inspect_explains_a_network_and_needs_no_data(clnp, arguments, monkeypatch):
    monkeypatch.setattr("clnp.data.download.fetch", lambda *_: pytest.fail("no data are needed"))
    code, out, _ = clnp("inspect", *arguments)
    assert code == 0
    assert re.search(r"\d+ units in \d+ groups", out)
    if "resnet-small" in arguments:
        assert "tied by" in out


def test_the_demonstration_runs_twice_and_removes_only_its_own(clnp, tmp_path, monkeypatch):
    real = experiment.configure
    monkeypatch.setattr(experiment, "configure", lambda name: real(name, settings={"epochs": 2, "rounds": 1, "finetune_epochs": 1}))
    for _ in range(2):
        code, out, err = clnp("demo")
        assert code == 0
        assert "task 5/5 digits-4: learned" in err
        for task in range(5):
            assert re.search(rf"digits-{task} .*%", out)
        assert re.search(r"^forgetting +0\.0 *$", out, re.MULTILINE)
        page = Path(re.search(r"^report: (.*)$", out, re.MULTILINE).group(1))
        assert page.parent == tmp_path / "clnp-demo"
        assert "<html" in page.read_text()
        assert "Next steps" in out
        for line in re.findall(r"^  clnp (\w+)", out, re.MULTILINE):
            assert line in {"list", "run", "inspect"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("chapter")
    code, out, err = clnp("demo", "--out", "other")
    assert (code, out) == (1, "")
    assert "not of an earlier demonstration" in err
    assert (tmp_path / "other" / "thesis.tex").read_text() == "chapter"


# ---- the display


def events(n_tasks):
    yield {"event": "run_started", "groups": {"a": 10}, "tasks": []}
    for index in range(n_tasks):
        yield {"event": "phase", "task": f"t{index}", "phase": "score", "round": 1}
        yield {"event": "epoch", "task": f"t{index}", "phase": "train", "epoch": 1, "epochs": 2, "loss": 0.5}
        yield {
            "event": "task_learned",
            "task": f"t{index}",
            "index": index,
            "seconds": 1.0,
            "free": {"a": 9 - index},
            "notices": ["[b]look[/b]"],
        }
        yield {"event": "evaluated", "after": index, "accuracies": [0.5] * (index + 1)}


def test_the_moving_bar_shows_eta_accuracy_and_capacity():
    file = io.StringIO()
    with console.Display(epochs=2, n_tasks=3, console=Console(file=file, force_terminal=True, width=200)) as display:
        for event in events(2):
            display(event)
        display({"event": "epoch", "task": "t2", "phase": "train", "epoch": 1, "epochs": 2, "loss": 0.5})
        display.bars.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    last = text.split("\n")[-1].split("\r")[-1] or text
    assert "task 3/3" in last
    assert re.search(r"ETA \d", last)
    assert "accuracy 50.00 %" in last
    assert "free ████████░░ 80 %" in last


def test_a_task_that_goes_on_counts_the_epochs_that_were_done_before(monkeypatch):
    file, clock = io.StringIO(), [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with console.Display(epochs=10, n_tasks=2, console=Console(file=file, force_terminal=False)) as display:
        display({"event": "run_resumed", "index": 1})
        display({"event": "task_resumed", "task": "b", "phase": "train", "epoch": 7, "epochs_done": 7, "seconds": 70.0})
        clock[0] = 20.0
        display({"event": "epoch", "task": "b", "phase": "train", "epoch": 8, "epochs": 10, "loss": 0.5})
        display({"event": "notice", "message": "the disk is full"})
        display({"event": "task_resumed", "task": "b", "phase": None, "epoch": 0, "epochs_done": 0, "seconds": 1.0})
    lines = file.getvalue().splitlines()
    assert "  task 2/2 b: going on in phase train, epoch 7" in lines
    assert any("train epoch 8/10" in line and line.endswith("ETA 40 s") for line in lines), "one epoch took 20 seconds, and two are left"
    assert lines[-1] == "  note: the disk is full"


def test_plain_lines_come_one_by_one_and_take_names_as_they_are(monkeypatch):
    file = io.StringIO()
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    with console.Display(epochs=2, n_tasks=2, console=Console(file=file, force_terminal=False)) as display:
        for event in events(2):
            display(event)
    lines = file.getvalue().splitlines()
    assert any(re.match(r"  task 1/2 t0: train epoch 1/2, loss 0.5000, ETA \d", line) for line in lines)
    assert "  note: [b]look[/b]" in lines
    assert "\x1b" not in file.getvalue()
