"""A signal stops a run after the step under way, without loss; the next one at once."""

from __future__ import annotations

import contextlib
import copy
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import clnp
from clnp import cli, console, experiment, locks, rundir, stopping, training
from clnp.files import write_atomic
from clnp.sources import TensorExamples
from clnp.work import Work
from small import SHAPE, config, network, task
from test_work import Steps

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "src"), "COLUMNS": "120"}
HANDLED = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def listening():
    """A shell starts what it puts in the background with Ctrl-C ignored, and what is ignored stays so: not in these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


every_signal = pytest.mark.parametrize("number", HANDLED)
FAST = ["--tasks", "2", "--set", "epochs=2", "--set", "rounds=1", "--set", "finetune_epochs=1"]


# ---- the handlers


@every_signal
def test_the_first_signal_asks_and_the_next_check_stops(number, capfd):
    before = [signal.getsignal(handled) for handled in HANDLED]

    def stop():
        stopping.check()
        os.kill(os.getpid(), number)
        assert stopping.asked()
        with contextlib.suppress(Exception):  # nothing that handles errors swallows it
            stopping.check()

    with pytest.raises(stopping.Stopped) as stopped, stopping.orderly():
        stop()
    assert stopped.value.number == number
    assert stopped.value.exit_code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert [signal.getsignal(handled) for handled in HANDLED] == before
    assert not stopping.asked(), "the next run is not stopped by the signal of this one"
    stopping.check()
    assert capfd.readouterr().err == "\nstopping after this step; press Ctrl-C again to stop at once\n"


def test_without_handlers_ctrl_c_is_what_it_always_was():
    with stopping.orderly():
        pass
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_another_thread_changes_nothing():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with stopping.orderly():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.orderly():
            os.kill(os.getpid(), signal.SIGINT)
            stopping.check()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("first", "second", "code"), [("SIGTERM", "SIGINT", 130), ("SIGINT", "SIGTERM", 143)])
def test_the_second_signal_exits_at_once(first, second, code):
    lines = [
        "import os, signal, sys, time",
        "from clnp import stopping",
        "signal.signal(signal.SIGINT, signal.default_int_handler)",
        "try:",
        "    with stopping.orderly():",
        f"        os.kill(os.getpid(), signal.{first})",
        "        print('goes on', flush=True)",
        f"        os.kill(os.getpid(), signal.{second})",
        "        print('never printed', flush=True)",
        "finally: print('nor this', flush=True)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stdout) == (code, "goes on\n")
    assert done.stderr.count("\n") == 2
    assert "Traceback" not in done.stderr


# ---- learning


@pytest.fixture(scope="module")
def blank():
    return clnp.Learner(network("mlp"), torch.zeros(2, *SHAPE))


def teach(learner, work, progress=None, **settings):
    x, y = task(0)
    settings = config(**{"epochs": 2, "rounds": 2, "finetune_epochs": 1, "batch_size": 30, "patience": 5, **settings})
    return learner.learn("a", (x[:180], y[:180]), (x[180:], y[180:]), config=settings, progress=progress, work=work)


def tensors_of(learner):
    return learner.predictor("a").state_dict()


@pytest.fixture
def steps(monkeypatch):
    return Steps(monkeypatch)


def at_step(number, steps):
    """Send a signal in the middle of an optimisation step."""
    count = steps.count

    def then():
        count()
        if steps.n == number:
            os.kill(os.getpid(), signal.SIGTERM)

    steps.count = then


@pytest.mark.parametrize("step", [1, 6, 15, 24])
def test_a_stop_in_training_loses_no_step(blank, steps, tmp_path, step):
    through = copy.deepcopy(blank)
    teach(through, None)
    total, steps.n = steps.n, 0
    at_step(step, steps)
    learner = copy.deepcopy(blank)
    state = {name: tensor.clone() for name, tensor in learner._state.items()}
    with pytest.raises(stopping.Stopped), stopping.orderly():
        teach(learner, tmp_path)
    assert steps.n == step, "the step was finished, and no other begun"
    assert learner.tasks == (), "the learner is as it was"
    assert all(torch.equal(learner._state[name], tensor) for name, tensor in state.items())
    assert not list(tmp_path.glob("*.new"))
    teach(learner, tmp_path)
    assert steps.n == total, "no step is done again"
    expected = tensors_of(through)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors_of(learner).items())


@pytest.mark.parametrize(
    ("event", "phase", "n"), [("epoch", "train", 6), ("phase", "score", 12), ("phase", "select", 12), ("phase", "commit", 24)]
)
def test_a_stop_between_steps_loses_none_either(blank, steps, tmp_path, event, phase, n):
    """While an epoch is validated, units are scored or searched, or the predictor is measured."""
    through = copy.deepcopy(blank)
    teach(through, None)
    total, steps.n, seen = steps.n, 0, []

    def progress(told):
        if told["event"] == event and told["phase"] == phase and not seen:
            seen.append(told)
            os.kill(os.getpid(), signal.SIGINT)

    learner = copy.deepcopy(blank)
    with pytest.raises(stopping.Stopped), stopping.orderly():
        teach(learner, tmp_path, progress)
    assert steps.n == n
    assert learner.tasks == ()
    teach(learner, tmp_path)
    assert steps.n == total
    expected = tensors_of(through)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors_of(learner).items())


def test_a_search_is_stopped_before_the_next_candidate(blank, tmp_path, monkeypatch):
    seen = []

    def correct(*_):
        if not seen:
            os.kill(os.getpid(), signal.SIGTERM)
        seen.append(1)
        return 0

    monkeypatch.setattr("clnp.pruning.Trial.correct", correct)
    with pytest.raises(stopping.Stopped), stopping.orderly():
        teach(copy.deepcopy(blank), tmp_path)
    assert seen == [1]


def test_a_stream_is_stopped_after_the_step_too(blank, steps, tmp_path):
    from test_work import stream

    at_step(3, steps)
    train, validation = stream()
    with pytest.raises(stopping.Stopped), stopping.orderly():
        copy.deepcopy(blank).learn("a", train, validation, config=config(epochs=2), work=tmp_path)
    assert steps.n == 3
    assert [path.name for path in tmp_path.iterdir()] == ["work-time.safetensors"], "nothing from the middle of an epoch"


# ---- runs


@pytest.fixture
def give(capfd, monkeypatch, tmp_path):
    """Give one command line in an empty working directory: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def give(*arguments):
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return exit_.value.code or 0, out, err

    return give


def signalled(monkeypatch, number, kind, count=1):
    """Send a signal at the count-th event of a kind, as the display sees it."""
    real, seen = console.Display.__call__, []

    def shown(self, event):
        real(self, event)
        seen.append(event["event"])
        if event["event"] == kind and seen.count(kind) == count:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(console.Display, "__call__", shown)


def timeless(summary):
    return {key: value for key, value in summary.items() if key not in {"seconds_per_task", "cpu_seconds_per_task", "command", "versions"}}


@pytest.fixture(scope="module")
def through(tmp_path_factory):
    """The summary of an uninterrupted run, for each method."""
    base, found = tmp_path_factory.mktemp("through"), {}
    settings = {"epochs": 2, "rounds": 1, "finetune_epochs": 1}

    def of(method):
        if method not in found:
            chosen = experiment.configure("digits", method=method, n_tasks=2, settings=settings)
            found[method] = experiment.run(chosen, base / method)
        return found[method], base / method

    return of


@pytest.mark.parametrize(
    ("method", "number", "kind", "count"),
    [
        ("clnp", signal.SIGTERM, "epoch", 2),
        ("clnp", signal.SIGINT, "task_learned", 1),
        ("clnp", signal.SIGTERM, "run_started", 1),
        ("finetune", signal.SIGINT, "epoch", 4),
        ("single", signal.SIGTERM, "evaluated", 1),
    ],
)
def test_a_run_says_how_to_continue_and_does(give, through, steps, monkeypatch, tmp_path, method, number, kind, count):
    expected, there = through(method)
    steps.n = 0
    total = give("run", "digits", "--method", method, "--out", "whole", *FAST) and steps.n
    steps.n = 0
    command = ["run", "digits", "--method", method, "--out", "a run", *FAST]
    with monkeypatch.context() as patch:
        signalled(patch, number, kind, count)
        code, out, err = give(*command)
    assert code == 128 + number
    assert out == ""
    told = err.strip().splitlines()[-1]
    assert told == f"stopped; what was learned so far is kept in 'a run'. To continue: {shlex.join(['clnp', *command])}"
    assert "stopping after this step" in err
    assert "Traceback" not in err
    run = tmp_path / "a run"
    assert not locks.is_locked(run)
    assert not list(run.rglob("*.new"))
    n = steps.n
    if kind == "task_learned":  # the commit that was under way is finished first
        assert (run / "model").is_dir()
        assert n < total
        assert "evaluated" not in (run / "events.jsonl").read_text()
    code, _, err = give(*command)
    assert code == 0
    assert steps.n == total, "no step was done twice"
    assert timeless(rundir.read_summary(run)) == timeless(expected)
    assert not (run / "work").exists()
    ours = {path.relative_to(run): path.read_bytes() for path in (run / "model").rglob("*.safetensors")}
    assert ours == {path.relative_to(there): path.read_bytes() for path in (there / "model").rglob("*.safetensors")}
    if kind == "epoch":
        assert "going on in phase train, epoch" in err


def test_a_second_signal_leaves_whole_files(tmp_path, monkeypatch):
    """The process is gone at once, in the middle of saving its state: what it leaves is a whole state, or none."""
    work = Work(tmp_path)
    work.open("a", {}, {})
    work.keep("train-0", {"epoch": 1}, {}, finished=False)

    def cut(path, data, **_):
        path.with_name(path.name + ".new").write_bytes(data[:50])
        raise SystemExit

    monkeypatch.setattr("clnp.work.write_atomic", cut)
    with pytest.raises(SystemExit):
        work.keep("train-0", {"epoch": 2}, {}, finished=False)
    monkeypatch.setattr("clnp.work.write_atomic", write_atomic)
    again = Work(tmp_path)
    again.open("a", {}, {})
    assert again.recall("train-0").facts == {"epoch": 1}


def test_a_demonstration_is_continued_by_the_run_that_it_names(give, monkeypatch, tmp_path):
    real = experiment.configure
    fast = {"epochs": 2, "rounds": 1, "finetune_epochs": 1}
    monkeypatch.setattr(experiment, "configure", lambda *args, **given: real(args[0], settings=fast))
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGINT, "evaluated", 2)
        code, _, err = give("demo")
    assert code == 130
    assert err.strip().endswith("To continue: clnp run digits --out clnp-demo")
    code, _, err = give(*shlex.split(err.partition("To continue: ")[2])[1:])
    assert code == 0
    assert "continuing: 2 of 5 tasks are learned" in err
    assert (tmp_path / "clnp-demo" / "summary.json").exists()


def test_a_process_that_gets_sigterm_from_outside_exits_in_order(give, through, tmp_path):
    command = [
        sys.executable,
        "-c",
        "import clnp.cli; clnp.cli.main()",
        "run",
        "digits",
        "--out",
        "run",
        "--set",
        "epochs=400",
        "--tasks",
        "1",
    ]
    process = subprocess.Popen(command, env=ENVIRONMENT, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    events, deadline = tmp_path / "run" / "events.jsonl", time.monotonic() + 60
    while not (events.exists() and b'"epoch"' in events.read_bytes()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 20
    assert (process.returncode, out) == (143, "")
    assert err.strip().endswith("To continue: clnp run digits --out run --set epochs=400 --tasks 1")
    assert (tmp_path / "run" / "work" / "work-train-0.safetensors").exists()
    assert not locks.is_locked(tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.new"))


def test_evaluation_is_stopped_between_batches(monkeypatch):
    seen = []
    monkeypatch.setattr(training, "batches", lambda *_, **__: ((seen.append(1), None, None) for _ in range(3)))
    monkeypatch.setattr(stopping, "_asked", [signal.SIGTERM])
    with pytest.raises(stopping.Stopped):
        training.n_correct(torch.nn.Linear(1, 1), TensorExamples(torch.zeros(3, 1), torch.zeros(3)))
    assert seen == [1]
