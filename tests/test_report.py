from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from html.parser import HTMLParser
from itertools import pairwise
from types import SimpleNamespace

import pytest
import yaml

from clnp.errors import StoreError
from clnp.report import Group, Run, read_run, verdict, write_report
from clnp.report.charts import DARK_RAMP, LIGHT_RAMP, contrast, task_colours

MLP = {"hidden.0": 2000, "hidden.1": 2000}
RESNET = {
    "stem": 32, "blocks.0.conv1": 32, "blocks.1.conv1": 32, "blocks.2.stream": 64, "blocks.2.conv1": 64,
    "blocks.3.conv1": 64, "blocks.4.stream": 128, "blocks.4.conv1": 128, "blocks.5.conv1": 128,
}  # fmt: skip
VERSIONS = {"clnp": "0.1.0", "torch": "2.13.0+cpu", "python": "3.11.9"}
START = 1_760_000_000.0


class RunFiles:
    """A run directory written by hand, as the contract between experiment and report says."""

    def __init__(self, names, *, groups=None, method="clnp", benchmark="permuted-mnist", model="mlp-2000", n_planned=None, margin=0.002):
        self.names, self.groups, self.method, self.margin = list(names), groups, method, margin
        self.head = {"benchmark": benchmark, "method": method, "model": model, "seed": 7}
        self.scenario = "task-incremental"
        self.planned = self.names + [f"later-{i}" for i in range((n_planned or len(self.names)) - len(self.names))]
        self.command = f"clnp run {benchmark} --method {method} --seed 7"
        n = len(self.names)
        self.matrix = [[0.9855 - 0.0007 * j if j <= t else None for j in range(n)] for t in range(n)]
        self.claimed = {
            g: [max(1, int(size * 0.16 * 0.82**t * (1 + 0.1 * (i % 3)))) for t in range(n)]
            for i, (g, size) in enumerate((groups or {}).items())
        }
        self.reused = {g: [int(0.6 * sum(c[:t])) for t in range(n)] for g, c in self.claimed.items()}
        self.paid = [0.0011 + 0.0001 * t for t in range(n)]
        self.seconds = [22.5 + 1.5 * t for t in range(n)]
        self.notices = [[] for _ in range(n)]
        self.details = [{"seed": 7, "permutation_sha256": f"{t:02d}9f3c"} for t in range(len(self.planned))]
        self.forecast = {
            "tasks": 9.7,
            "limiting_group": "hidden.0",
            "assumption": "each further task claims as many units as the last three did",
        }

    def free(self, group, after):
        return self.groups[group] - sum(self.claimed[group][: after + 1])

    def events(self):
        tasks = [
            {"name": name, "n_classes": 10, "classes": [str(c) for c in range(10)], "details": details}
            for name, details in zip(self.planned, self.details, strict=True)
        ]
        started = {
            "event": "run_started", **self.head, "scenario": self.scenario, "n_tasks": len(self.planned), "tasks": tasks,
            "versions": VERSIONS, "command": self.command,
        }  # fmt: skip
        events = [started | ({"groups": self.groups} if self.groups else {})]
        for t, name in enumerate(self.names):
            events += [{"event": "epoch", "task": name, "phase": "train", "epoch": e, "epochs": 2, "loss": 1.0 / e} for e in (1, 2)]
            learned = {"event": "task_learned", "task": name, "index": t, "seconds": self.seconds[t], "cpu_seconds": 1.7 * self.seconds[t]}
            if self.groups:
                learned |= {
                    "accuracy_unpruned": 0.9871, "accuracy": 0.9871 - self.paid[t], "margin": self.margin, "margin_paid": self.paid[t],
                    "claimed": {g: c[t] for g, c in self.claimed.items()}, "reused": {g: r[t] for g, r in self.reused.items()},
                    "free": {g: self.free(g, t) for g in self.groups}, "notices": self.notices[t],
                }  # fmt: skip
            events += [learned, {"event": "evaluated", "after": t, "accuracies": self.matrix[t][: t + 1]}]
        return [event | {"time": START + i} for i, event in enumerate(events)]

    def summary(self):
        n = len(self.names)
        drops = [max(self.matrix[t][j] for t in range(j, n - 1)) - self.matrix[-1][j] for j in range(n - 1)]
        capacity = {
            g: {
                "n_units": size, "free": self.free(g, n),
                "claimed": dict(zip(self.names, self.claimed[g], strict=True)), "reused": dict(zip(self.names, self.reused[g], strict=True)),
            }
            for g, size in (self.groups or {}).items()
        }  # fmt: skip
        margin = {
            name: {"allowed": self.margin, "paid": paid, "accuracy_unpruned": 0.9871, "accuracy": 0.9871 - paid}
            for name, paid in zip(self.names, self.paid, strict=True)
        }
        return {
            **self.head, "scenario": self.scenario, "tasks": self.names, "accuracy_matrix": self.matrix,
            "average_accuracy": math.fsum(self.matrix[-1]) / n, "forgetting": math.fsum(drops) / len(drops) if drops else 0.0,
            "capacity": capacity or None, "margin": margin if self.groups else None, "forecast": self.forecast if self.groups else None,
            "n_parameters": 5_594_010, "seconds_per_task": self.seconds, "cpu_seconds_per_task": [1.7 * s for s in self.seconds],
            "versions": VERSIONS, "command": self.command,
        }  # fmt: skip

    def write(self, directory, *, finished=True):
        directory.mkdir(parents=True)
        learn = {"epochs": 10, "lr": 0.002, "margin": self.margin, "pool": 0.3}
        config = {**self.head, "n_tasks": len(self.planned), "learn": learn}
        (directory / "config.yaml").write_text(yaml.safe_dump(config))
        lines = self.events() + (
            [{"event": "run_finished", "average_accuracy": 0.98, "forgetting": 0.0, "time": START + 999}] if finished else []
        )
        (directory / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if finished:
            (directory / "summary.json").write_text(json.dumps(self.summary()))
        return directory


def mnist(n=10, **changes):
    return RunFiles([f"permutation-{i}" for i in range(n)], groups=MLP, **changes)


def resnet():
    run = RunFiles(
        [f"cifar-{2 * i}-{2 * i + 1}" for i in range(5)], groups=RESNET, benchmark="split-cifar10", model="resnet-small", margin=0.005
    )
    run.claimed["blocks.4.stream"] = [44, 38, 26, 20, 0]  # full: crossed by reuse
    run.paid = [0.0041, -0.0012, 0.005, 0.0, 0.0033]
    run.matrix = [[0.912 - 0.013 * j if j <= t else None for j in range(5)] for t in range(5)]
    run.notices[4] = ["group 'blocks.4.stream' is full: the task reads what is there and claims nothing new"]
    run.forecast = {
        "tasks": 0.0,
        "limiting_group": "blocks.4.stream",
        "assumption": "each further task claims as many units as the average task did",
    }
    return run


def finetune():
    run = RunFiles([f"permutation-{i}" for i in range(5)], method="finetune")
    run.matrix = [[round(0.9834 - 0.11 * (t - j) - 0.01 * j, 4) if j <= t else None for j in range(5)] for t in range(5)]
    return run


class Page(HTMLParser):
    """The elements of a page, its text, and what is wrong with its nesting."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.texts, self.faults = [], [], [], []
        self.feed(html)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self.open]
        self.text = " ".join(" ".join(self.texts).split())  # split() takes no-break spaces, too

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing")

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)


@pytest.fixture(params=["mnist", "resnet", "finetune", "unfinished", "nothing-yet", "single"])
def run_dir(request, tmp_path):
    where = tmp_path / "run"
    match request.param:
        case "mnist":
            return mnist().write(where)
        case "resnet":
            return resnet().write(where)
        case "finetune":
            return finetune().write(where)
        case "unfinished":
            return mnist(3, n_planned=10).write(where, finished=False)
        case "nothing-yet":
            return mnist(0, n_planned=10).write(where, finished=False)
        case _:
            return mnist(1).write(where)


def page_of(directory):
    return Page(write_report(directory).read_text(encoding="utf-8"))


def capacity(*groups):
    return tuple(Group(name, n_units, free, {}, {}) for name, n_units, free in groups)


# The page


def test_page_is_well_formed_and_needs_nothing_from_outside(run_dir):
    html = write_report(run_dir).read_text(encoding="utf-8")
    page = Page(html)
    assert page.faults == []
    assert not re.search(r"https?:|//\w|url\(|@import|javascript:", html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base", "form"})
    assert [key for _, attrs in page.tags for key in attrs if key in {"src", "href", "srcset", "action"} or key.startswith("on")] == []
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_page_begins_with_the_verdict(run_dir):
    said = verdict(read_run(run_dir))
    page = page_of(run_dir)
    assert page.text.index(said[1:]) < page.text.index("Average accuracy")


def test_page_is_accessible(run_dir):
    page = page_of(run_dir)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs} <= set(ids)
    assert all(attrs.get("role") == "img" and attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg")
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    assert ("html", {"lang": "en"}) in page.tags
    assert [tag for tag, _ in page.tags].count("h1") == 1


def test_numbers_of_a_finished_run_appear(tmp_path):
    files = mnist()
    text = page_of(files.write(tmp_path / "run")).text
    for shown in ["98.23 %", "5.59 million", "5,594,010", "4 min 52 s", "8 min 17 s", "98.71 %", "98.60 %", "0.11 points", "0.20 points"]:
        assert shown in text, shown
    assert f"{files.free('hidden.0', 10):,} of 2,000 free" in text
    assert "About 9 more tasks like these fit. The layer that fills up first is hidden.0." in text
    assert files.forecast["assumption"] in text
    assert files.command in text
    assert "torch 2.13.0+cpu" in text
    assert "permutation_sha256: 019f3c" in text
    assert "lr: 0.002" in text
    assert "Every example" not in text
    for group in MLP:
        for t in range(10):
            available = sum(files.claimed[group][:t])
            assert f"{files.reused[group][t]:,} of {available:,} +{files.claimed[group][t]:,} new" in text


def test_accuracy_matrix_holds_every_measured_accuracy_and_marks_changes(tmp_path):
    files = finetune()
    text = page_of(files.write(tmp_path / "run")).text
    for t, row in enumerate(files.matrix):
        for j in range(t + 1):
            assert f"{100 * row[j]:.2f}" in text
    assert "54.34 \N{MINUS SIGN}44.00" in text  # task 0 after the last one
    unchanged = page_of(mnist().write(tmp_path / "other")).text
    assert "\N{MINUS SIGN}" not in unchanged


def test_occupancy_draws_every_group_to_scale_tightest_first(tmp_path):
    files = resnet()
    page = page_of(files.write(tmp_path / "run"))
    labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    bars = [label for label in labels if ", units: " in label]
    rest = [name for name in RESNET if name != "blocks.4.stream"]
    assert [label.split(",")[0] for label in bars] == ["blocks.4.stream", *rest]
    assert bars[0].endswith("task 1 44, task 2 38, task 3 26, task 4 20, task 5 0, free 0 of 128")
    assert page.text.count("tightest: decides") == 1
    widths = [attrs for tag, attrs in page.tags if tag == "rect" and attrs["class"] == "t0"]
    assert math.isclose(float(widths[0]["width"].rstrip("%")), 100 * 44 / 128, abs_tol=1e-2)
    starts = [attrs for tag, attrs in page.tags if tag == "rect" and attrs["class"] == "t1"]
    assert math.isclose(float(starts[0]["x"].rstrip("%")), 100 * 44 / 128, abs_tol=1e-2)


def test_units_of_another_owner_are_shown_not_hidden(tmp_path):
    files = mnist(2)
    summary = files.summary()
    directory = files.write(tmp_path / "run")
    summary["capacity"]["hidden.1"]["claimed"].pop("permutation-0")
    (directory / "summary.json").write_text(json.dumps(summary))
    assert f"{files.claimed['hidden.1'][0]:,} units with another owner" in page_of(directory).text


def test_margin_section_tells_gains_and_breaches(tmp_path):
    files = resnet()
    files.paid[0] = 0.0061  # more than the 0.005 allowed: must never happen, so it must be seen when it does
    text = page_of(files.write(tmp_path / "run")).text
    assert "gained 0.12 points" in text
    assert text.count("over the margin") == 1
    assert "0 points 0.50 points" in text


def test_notices_of_tasks_appear(tmp_path):
    text = page_of(resnet().write(tmp_path / "run")).text
    assert "5 cifar-8-9 : group 'blocks.4.stream' is full" in text
    assert (
        "Notices What the run or this report wants you to know before you trust the numbers. None."
        in page_of(mnist().write(tmp_path / "b")).text
    )


def test_a_method_without_units_says_so_and_leaves_out_what_it_has_not(tmp_path):
    page = page_of(finetune().write(tmp_path / "run"))
    assert "Nobody: the method finetune claims no units" in page.text
    for absent in ["What the margin cost", "Reuse", "How much more fits", "Tightest layer"]:
        assert absent not in page.text


def test_markup_in_every_name_is_escaped(tmp_path):
    evil = "<img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}"
    files = RunFiles([f"{evil}-{i}" for i in range(2)], groups={f"layer {evil}": 64}, benchmark=evil, model=evil)
    files.command = files.scenario = evil
    files.notices[0] = [evil]
    files.details = [{evil: evil}, {"list": [evil]}]
    files.forecast = {"tasks": 3, "limiting_group": evil, "assumption": evil}
    for finished in (True, False):
        path = write_report(files.write(tmp_path / f"run-{finished}", finished=finished))
        html = path.read_text(encoding="utf-8")
        assert "<img" not in html
        page = Page(html)
        assert page.faults == []
        assert [key for _, attrs in page.tags for key in attrs if key.startswith("on")] == []
        assert evil in page.text
        assert {tag for tag, _ in page.tags}.isdisjoint({"img"})
        assert any(evil in attrs.get("aria-label", "") for tag, attrs in page.tags if tag == "svg")


# Where it is written


def test_report_is_written_in_one_step_and_is_reproducible(tmp_path, monkeypatch):
    directory = mnist(2).write(tmp_path / "run")
    path = write_report(directory)
    assert path == directory / "report.html"
    first = path.read_bytes()
    assert write_report(directory).read_bytes() == first
    assert write_report(directory, tmp_path / "new" / "page.html").read_bytes() == first
    assert write_report(directory, tmp_path / "new") == tmp_path / "new" / "report.html"

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clnp.files.system", SimpleNamespace(**{**vars(os), "rename": fail}))
    path.write_bytes(b"the old one")
    with pytest.raises(StoreError, match=r"cannot write the report .*No space left"):
        write_report(directory)
    assert path.read_bytes() == b"the old one"
    assert sorted(p.name for p in directory.iterdir()) == ["config.yaml", "events.jsonl", "report.html", "summary.json"]


def test_report_only_reads_the_run(tmp_path):
    directory = mnist(2).write(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    write_report(directory, tmp_path / "out.html")
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_no_torch_is_imported():
    code = "import sys, clnp.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Reading


def test_events_alone_give_what_the_summary_gives(tmp_path):
    directory = mnist().write(tmp_path / "run")
    finished = read_run(directory)
    (directory / "summary.json").unlink()
    running = read_run(directory)
    assert finished.finished
    assert not running.finished
    for name in [
        "benchmark",
        "method",
        "model",
        "scenario",
        "seed",
        "n_tasks",
        "matrix",
        "forgetting",
        "claims_units",
        "groups",
        "versions",
        "command",
        "config",
    ]:
        assert getattr(running, name) == getattr(finished, name), name
    assert running.average_accuracy == pytest.approx(finished.average_accuracy)
    assert finished.tasks == running.tasks
    assert (running.forecast, running.n_parameters) == (None, None)


def test_only_events_are_needed(tmp_path):
    directory = mnist(3, n_planned=10).write(tmp_path / "run", finished=False)
    (directory / "config.yaml").unlink()
    assert len(read_run(directory).tasks) == 3
    assert "config.yaml is missing, damaged or not the one" in page_of(directory).text


def test_only_the_summary_is_needed(tmp_path):
    directory = mnist(3).write(tmp_path / "run")
    (directory / "events.jsonl").unlink()
    run = read_run(directory)
    assert run.finished
    assert [task.name for task in run.tasks] == [f"permutation-{i}" for i in range(3)]
    assert "events.jsonl does not say how the run was started" in page_of(directory).text


def test_a_run_killed_before_its_first_event_is_a_run(tmp_path):
    directory = mnist(0, n_planned=10).write(tmp_path / "run", finished=False)
    (directory / "events.jsonl").write_text('{"event": "run_sta')
    assert verdict(read_run(directory)) == "unfinished: none of 10 tasks learned yet, room not known yet"
    assert "Nobody: " not in page_of(directory).text


def test_a_torn_last_line_costs_nothing_but_itself(tmp_path):
    directory = mnist(3).write(tmp_path / "run", finished=False)
    events = directory / "events.jsonl"
    whole = events.read_bytes()
    last = len(whole.splitlines()[-1])
    lengths = set()
    for cut in range(1, last + 1):
        events.write_bytes(whole[: len(whole) - cut])
        run = read_run(directory)
        assert run.notices == ()
        lengths.add(len(run.matrix))
    assert lengths == {2, 3}  # a line that only lost its newline is whole


def test_a_torn_line_cut_inside_a_character_is_tolerated(tmp_path):
    directory = mnist(1).write(tmp_path / "run", finished=False)
    with (directory / "events.jsonl").open("ab") as file:
        file.write('{"event": "epoch", "task": "ä'.encode()[:-1])
    assert len(read_run(directory).tasks) == 1


def test_damage_inside_the_log_is_told(tmp_path):
    directory = mnist(3).write(tmp_path / "run", finished=False)
    events = directory / "events.jsonl"
    lines = events.read_text().splitlines(keepends=True)
    lines[1:1] = ["{torn\n", '{"event": "evaluated", "after": "x", "accuracies": 5}\n', "[1, 2]\n", "\n"]
    events.write_text("".join(lines))
    run = read_run(directory)
    assert len(run.tasks) == 3
    assert "3 lines of events.jsonl could not be read" in page_of(directory).text


def test_a_resumed_run_counts_every_task_once(tmp_path):
    files = mnist(3)
    directory = files.write(tmp_path / "run", finished=False)
    again = [event | {"time": START + 5000} for event in files.events()[-4:]]
    with (directory / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in [{"event": "run_resumed", "index": 2, "time": START + 4999}, *again])
    run = read_run(directory)
    assert [task.index for task in run.tasks] == [0, 1, 2]
    assert run.n_resumed == 1
    assert run.last_time == START + 5000
    assert "continued 1 time" in page_of(directory).text


def test_a_task_that_a_resumed_run_learns_again_is_not_learned_yet(tmp_path):
    directory = mnist(3).write(tmp_path / "run", finished=False)
    with (directory / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "run_resumed", "index": 2, "time": START + 4999}) + "\n")
    run = read_run(directory)
    assert ([task.index for task in run.tasks], len(run.matrix)) == ([0, 1], 2)


def test_a_summary_older_than_the_events_gives_way(tmp_path):
    directory = mnist(3).write(tmp_path / "run")
    (directory / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in mnist(4, n_planned=6).events()))
    run = read_run(directory)
    assert not run.finished
    assert (len(run.tasks), run.n_tasks) == (4, 6)


def test_progress_is_what_the_task_in_training_is_at(tmp_path):
    directory = mnist(1, n_planned=3).write(tmp_path / "run", finished=False)
    assert read_run(directory).progress is None
    with (directory / "events.jsonl").open("a") as file:
        event = {"event": "epoch", "task": "later-0", "phase": "train", "epoch": 3, "epochs": 10, "loss": 0.5, "time": START}
        # What no JSON is (a loss of NaN) is no event: nothing that is read can be other than finite.
        file.write(json.dumps(event) + "\n" + json.dumps(event | {"epoch": 4, "loss": math.nan}) + "\n")
    progress = read_run(directory).progress
    assert progress is not None
    assert (progress.task, progress.epoch, progress.epochs) == ("later-0", 3, 10)
    assert "1 line of events.jsonl could not be read" in page_of(directory).text
    assert "Last seen: task later-0 , train, epoch 3 of 10, 2025-10-09 08:53:20 UTC." in page_of(directory).text


def test_what_is_no_run_is_refused_by_name(tmp_path):
    with pytest.raises(StoreError, match=r"missing.*nothing there"):
        read_run(tmp_path / "missing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="found a file"):
        write_report(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=r"expected events\.jsonl .* found neither"):
        read_run(tmp_path / "empty")
    (tmp_path / "empty" / "config.yaml").write_text("name: something else\n")
    with pytest.raises(StoreError, match="found neither"):
        write_report(tmp_path / "empty")
    assert not (tmp_path / "empty" / "report.html").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"benchmark": "digits"}', "\xff"])
def test_a_damaged_summary_is_refused(tmp_path, content):
    directory = mnist(2).write(tmp_path / "run")
    (directory / "summary.json").write_text(content, encoding="latin-1")
    with pytest.raises(StoreError, match=r"summary\.json.*(Remove that file|Delete the file)"):
        read_run(directory)


def test_a_run_cannot_be_changed(tmp_path):
    run = read_run(mnist(1).write(tmp_path / "run"))
    assert isinstance(run, Run)
    with pytest.raises(FrozenInstanceError):
        run.seed = 1


# The verdict


def test_verdict_of_the_fixture_runs(tmp_path):
    assert verdict(read_run(resnet().write(tmp_path / "a"))) == (
        "5 tasks, nothing forgotten, 32 % of the units free (layer blocks.4.stream is full), no further such task fits"
    )
    assert verdict(read_run(finetune().write(tmp_path / "b"))) == (
        "5 tasks, 27.50 points of accuracy forgotten on average (up to 44.00 points on one task), room not counted (method finetune claims no units)"
    )
    assert verdict(read_run(mnist(3, n_planned=10).write(tmp_path / "c", finished=False))) == (
        "unfinished: 3 of 10 tasks learned, nothing forgotten, 58 % of the units free (56 % in the tightest layer)"
    )
    assert (
        verdict(read_run(mnist(0, n_planned=10).write(tmp_path / "d", finished=False)))
        == "unfinished: none of 10 tasks learned yet, 100 % of the units free"
    )


@pytest.fixture
def ten(tmp_path):
    return read_run(mnist().write(tmp_path / "ten"))


def test_verdict_reads_as_the_readme_says(ten):
    run = replace(ten, groups=capacity(("a", 100, 41), ("b", 1000, 410)))
    assert verdict(run) == "10 tasks, nothing forgotten, 41 % of the units free, about 9 more such tasks fit"


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([("a", 100, 0), ("b", 50, 0)], "no unit free"),
        ([("a", 100, 50), ("b", 100, 0)], "25 % of the units free (layer b is full)"),
        ([("a", 100, 60), ("b", 100, 20)], "40 % of the units free (20 % in the tightest layer)"),
        ([("a", 2000, 1)], "under 1 % of the units free"),
        ([("a", 2000, 1999)], "over 99 % of the units free"),
    ],
)
def test_verdict_is_honest_about_room(ten, groups, said):
    assert verdict(replace(ten, groups=capacity(*groups))) == f"10 tasks, nothing forgotten, {said}, about 9 more such tasks fit"


@pytest.mark.parametrize(
    ("tasks", "said"),
    [(0.0, ", no further such task fits"), (0.99, ", no further such task fits"), (1.0, ", about 1 more such task fits"), (2.999, ", about 2 more such tasks fit"), (1e6, ", more than 99 more such tasks fit"), (None, ""), (math.inf, "")],
)  # fmt: skip
def test_verdict_rounds_the_forecast_down(ten, tasks, said):
    run = replace(ten, groups=capacity(("a", 100, 41)), forecast=ten.forecast.model_copy(update={"tasks": tasks}))
    assert verdict(run) == f"10 tasks, nothing forgotten, 41 % of the units free{said}"


@pytest.mark.parametrize(
    ("matrix", "forgetting", "said"),
    [
        (((0.9,),), 0.0, None),
        (((0.9, None), (0.9, 0.8)), 0.0, "nothing forgotten"),
        (((0.9, None), (0.85, 0.8)), 0.05, "5.00 points of accuracy forgotten"),
        (((0.9, None), (0.90001, 0.8)), -0.00001, "nothing forgotten (earlier tasks gained less than 0.01 points)"),
        (((0.9, None), (0.899999, 0.8)), 0.000001, "less than 0.01 points of accuracy forgotten"),
        (
            ((0.9, None, None), (0.9, 0.8, None), (0.9, 0.7, 0.8)),
            0.05,
            "5.00 points of accuracy forgotten on average (up to 10.00 points on one task)",
        ),
        (
            ((0.9, None, None), (0.9, 0.8, None), (0.8, 0.9, 0.8)),
            0.0,
            "nothing forgotten on average, but 10.00 points of accuracy on one task",
        ),
        (((0.9, None), (None, 0.8)), None, None),
    ],
)
def test_verdict_is_honest_about_forgetting(ten, matrix, forgetting, said):
    parts = verdict(replace(ten, matrix=matrix, forgetting=forgetting, groups=capacity(("a", 100, 41)))).split(", 41 %")[0]
    assert parts == (f"10 tasks, {said}" if said else "10 tasks")


def test_one_task_is_one_task(tmp_path):
    assert verdict(read_run(mnist(1).write(tmp_path / "run"))).startswith("1 task, 83 % of the units free")


# Colours


@pytest.mark.parametrize("n_tasks", [1, 2, 5, 10, 20])
def test_every_task_has_a_colour_on_which_its_number_can_be_read(n_tasks):
    rules = re.findall(r"\.t(\d+)\{--c:rgb\((\d+),(\d+),(\d+)\);--ink:rgb\((\d+),(\d+),(\d+)\)\}", task_colours(n_tasks))
    assert [int(rule[0]) for rule in rules] == [*range(n_tasks)] * 2
    colours = [tuple(map(int, rule[1:4])) for rule in rules]
    assert len(set(colours[:n_tasks])) == n_tasks
    for colour, rule in zip(colours, rules, strict=True):
        assert contrast(colour, tuple(map(int, rule[4:7]))) >= 4.5


@pytest.mark.parametrize("ramp", [LIGHT_RAMP, DARK_RAMP])
def test_task_colours_are_told_apart_by_lightness_alone(ramp):
    lightness = [contrast(colour, (0, 0, 0)) for colour in ramp]
    assert all(later > 1.2 * earlier for earlier, later in pairwise(lightness))
