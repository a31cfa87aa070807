"""More units, and nothing that was learned changes."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import clnp
import clnp.pruning
import promises
from clnp.cli import main
from clnp.narrow import narrow
from clnp.report.run import read_run
from clnp.rundir import around, read_events
from small import RESNET_IN_CI, SHAPE, learn, learned, network
from test_pruning import nothing_released


@pytest.mark.parametrize("name", RESNET_IN_CI)
def test_every_group_can_be_wider_and_every_bit_stays(name):
    learner = learned(name, 2)
    before, rows, allocation = promises.logits_of(learner), learner.capacity(), learner.allocation
    for group in rows:
        wider = clnp.widen(learner, {group: 3})
        promises.assert_same(before, promises.logits_of(wider))
        found = wider.capacity()
        assert (found[group].n_units, found[group].free) == (rows[group].n_units + 3, rows[group].free + 3)
        assert {other: row for other, row in found.items() if other != group} == {
            other: row for other, row in rows.items() if other != group
        }
        promises.interference_is_zero(wider)
    assert learner.allocation is allocation
    promises.assert_same(before, promises.logits_of(learner))


@pytest.mark.parametrize("name", ["mlp", "vgg", pytest.param("resnet", marks=pytest.mark.slow)])
def test_the_next_task_learns_in_the_new_units(name, monkeypatch):
    learner = learned(name, 2, pool="all", margin=0.0, rounds=1)
    tight = min(learner.capacity(), key=lambda group: learner.capacity()[group].free)
    wider = clnp.widen(learner, {tight: 6})
    before, weights = promises.logits_of(wider), promises.weights_of(wider)
    n_free = wider.capacity()[tight].free
    # A small task would rather reuse what is there: all of its pool is kept.
    monkeypatch.setattr(clnp.pruning, "select", nothing_released)
    learn(wider, 2, pool="all", epochs=4, margin=0.0)
    promises.assert_same(before, promises.logits_of(wider))
    promises.assert_same(weights, promises.weights_of(wider))
    promises.interference_is_zero(wider)
    promises.full_width_agrees(wider)
    assert wider.capacity()[tight].free == 0 < n_free


@pytest.mark.parametrize("name", ["mlp", pytest.param("vgg", marks=pytest.mark.thorough), pytest.param("resnet", marks=pytest.mark.slow)])
def test_it_goes_on_in_the_old_directory_and_files_of_tasks_are_not_written_again(name, tmp_path):
    learner = learned(name, 2)
    learner.save(tmp_path)
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "tasks").iterdir()}
    groups = list(learner.capacity())
    wider = clnp.widen(clnp.widen(learner, {groups[-1]: 4}), {groups[0]: 2, groups[-1]: 1})
    learn(wider, 2)
    wider.save(tmp_path)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files} == files
    loaded = clnp.Learner.load(tmp_path, network(name, seed=5))
    promises.assert_same(promises.logits_of(wider), promises.logits_of(loaded))
    promises.assert_same(promises.weights_of(wider), promises.weights_of(loaded))
    assert loaded.capacity() == wider.capacity()
    one, two = copy.deepcopy(wider), loaded
    learn(one, 3)
    learn(two, 3)
    promises.assert_same(promises.logits_of(one), promises.logits_of(two))


def test_a_wider_network_is_the_wider_module_itself():
    def build(n):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, n), nn.ReLU(), nn.Linear(n, 5), nn.Tanh())

    wider = clnp.widen(clnp.Learner(build(6), torch.zeros(2, *SHAPE)), {"1": 3})
    model, x = build(9), torch.randn(4, *SHAPE)
    model.load_state_dict({key: wider._state[key] for key in model.state_dict()})
    everything = torch.ones(wider.wiring.n_units, dtype=torch.bool)
    assert torch.allclose(narrow(wider.wiring, wider._state, everything)(x), model(x), atol=1e-6)


def test_raw_input_that_meets_wider_units_is_repeated_not_misread():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)
            self.register_buffer("mask", torch.arange(6.0))

        def forward(self, x):
            return torch.tanh(self.fc(x) + x) * self.mask

    learner = clnp.Learner(Residual(), torch.zeros(2, 6))
    wider, x = clnp.widen(learner, {"fc": 2}), torch.randn(5, 6)
    old = torch.cat([torch.ones(6, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)])
    all_old = torch.ones(6, dtype=torch.bool)
    assert torch.equal(narrow(wider.wiring, wider._state, old)(x), narrow(learner.wiring, learner._state, all_old)(x))


def test_what_cannot_be_widened_is_refused():
    learner = clnp.Learner(network("mlp"), torch.zeros(2, *SHAPE))
    with pytest.raises(clnp.WiringError, match=r"cannot widen 'nope': no such group. The groups are: '2', '5'"):
        clnp.widen(learner, {"nope": 3})
    for bad in (0, -1, 1.5, True):
        with pytest.raises(clnp.WiringError, match="expected a number of units to add, at least 1"):
            clnp.widen(learner, {"2": bad})
    with pytest.raises(clnp.WiringError, match="expected at most 1,000,000 units to add, found 999,999,999,999"):
        clnp.widen(learner, {"2": 999_999_999_999})

    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 8, 8))

        def forward(self, x):
            return torch.tanh(nn.functional.linear(x.flatten(1), self.weight.reshape(6, 64)))

    learner = clnp.Learner(Viewed(), torch.zeros(2, *SHAPE))
    with pytest.raises(clnp.WiringError, match=r"cannot widen: 'weight' is read through aten.reshape.default at .*parameters of its own"):
        clnp.widen(learner, {learner.wiring.groups[0].name: 2})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("widen") / "run"
    settings = ["--set", "epochs=1", "--set", "finetune_epochs=0", "--set", "rounds=1"]
    main_ok(["run", "digits", "--tasks", "2", *settings, "--out", str(out)])
    return out


def main_ok(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code in (0, None)


def test_the_command_line_widens_a_run(run, capsys):
    main_ok(["widen", str(run)])
    text = capsys.readouterr().out
    groups = [line.partition(":")[0] for line in text.splitlines()[:-1]]
    free = [int(line.split(": ")[1].split(" of ")[0]) / int(line.split(" of ")[1].split()[0]) for line in text.splitlines()[:-1]]
    assert free == sorted(free), "the bottleneck comes first"
    main_ok(["widen", str(run), "--json"])
    room = json.loads(capsys.readouterr().out)
    assert free == sorted(room["free"][group] / n_units for group, n_units in room["groups"].items())
    main_ok(["widen", str(run), f"{groups[0]}=7", "--json"])
    event = json.loads(capsys.readouterr().out)
    assert event["added"] == {groups[0]: 7}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["capacity"][groups[0]]["n_units"] == event["groups"][groups[0]]
    one, two = event["groups"]["hidden1"], event["groups"]["hidden2"]
    assert summary["n_parameters"] == 64 * one + one + one * two + two
    main_ok(["status", str(run)])
    said = " ".join(capsys.readouterr().out.split())
    assert f"of {event['groups'][groups[0]]} in {groups[0]}" in said
    assert "note: The network was widened" in said
    events = read_events(run)
    assert events[-1]["event"] == "widened"
    assert read_run(run).last_time == next(event["time"] for event in events if event["event"] == "run_finished")


def test_the_model_directory_of_a_run_stands_for_the_run(run, tmp_path, capsys, monkeypatch):
    model, link, loop = run / "model", tmp_path / "latest", tmp_path / "loop"
    link.symlink_to(model)
    loop.symlink_to(loop)
    monkeypatch.chdir(model)
    for given in (str(model), str(link), "."):
        for command in (["status"], ["report"], ["widen"], ["export", "--task", "digits-0"]):
            main_ok([*command, given])
            capsys.readouterr()
    main_ok(["widen", str(model), "hidden1=7"])
    n_units = json.loads((run / "summary.json").read_text())["capacity"]["hidden1"]["n_units"]
    assert f"of {n_units} units free" in capsys.readouterr().out
    assert around(model / "tasks") == model / "tasks"
    for other in (loop, tmp_path / "model"):
        with pytest.raises(SystemExit) as stopped:
            main(["status", str(other)])
        assert stopped.value.code == 1
        assert str(other) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["nope=3"], "cannot widen 'nope': no such group", 1),
        (["fc1"], "cannot widen by 'fc1': expected GROUP=UNITS, for example fc1=16", 2),
        (["fc1=-2"], "expected GROUP=UNITS", 2),
    ],
)
def test_bad_commands_are_refused_in_a_line(run, capsys, arguments, said, code):
    before = (run / "model" / "model.json").read_bytes()
    with pytest.raises(SystemExit) as stopped:
        main(["widen", str(run), *arguments])
    assert stopped.value.code == code
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert (run / "model" / "model.json").read_bytes() == before
