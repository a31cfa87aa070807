"""Runs side by side: what is comparable, what comes out, and what is chance."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from statistics import stdev

import pytest
import yaml

from clnp import cli
from clnp.errors import DamageError, StoreError
from clnp.experiment import configure, run
from clnp.locks import locked
from clnp.methods import METHODS
from clnp.report import compare, render_comparison
from clnp.report.compare import flip_test
from clnp.report.run import read_run

SETTINGS = {"epochs": 1, "rounds": 1, "finetune_epochs": 0, "batch_size": 64}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two methods with two seeds, and one with other settings."""
    path = tmp_path_factory.mktemp("runs")

    def make(name, method, seed, n_tasks=2, **settings):
        run(
            configure("digits", method=method, seed=seed, n_tasks=n_tasks, settings={**SETTINGS, **settings}),
            path / name,
            command=f"clnp run {name}",
        )
        return path / name

    return {
        **{f"{method}-{seed}": make(f"{method}-{seed}", method, seed) for method in ("finetune", "single") for seed in (0, 1)},
        "slow": make("slow", "finetune", 0, lr=1e-5),
        "three": make("three", "finetune", 0, n_tasks=3),
    }


def of(runs, *names):
    return [runs[name] for name in names]


def call(*arguments):
    try:
        cli.main(["compare", *map(str, arguments)])
    except SystemExit as stop:
        return stop.code or 0
    return 0


def averages(directory):
    return json.loads((directory / "summary.json").read_text())["average_accuracy"]


def test_means_and_spreads_are_over_seeds_and_the_best_comes_first(runs):
    found = compare(of(runs, "finetune-0", "single-0", "single-1", "finetune-1"))
    assert {row.method for row in found.rows} == {"finetune", "single"}
    assert [row.mean for row in found.rows] == sorted((row.mean for row in found.rows), reverse=True)
    row = next(row for row in found.rows if row.method == "single")
    values = [averages(runs["single-0"]), averages(runs["single-1"])]
    assert row.seeds == (0, 1)
    assert list(row.averages) == values
    assert row.mean == pytest.approx(sum(values) / 2)
    assert row.spread == pytest.approx(stdev(values))
    assert row.forgetting == 0
    assert row.cpu_seconds > 0
    assert found.rows[0].p is None
    assert 0 < found.rows[1].p <= 1


def test_all_methods_stand_side_by_side(tmp_path, capsys):
    for method in METHODS:
        run(configure("digits", method=method, n_tasks=2, settings=SETTINGS), tmp_path / method, command="clnp run")
    assert call(*sorted(tmp_path.iterdir()), "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert sorted(row["method"] for row in rows) == sorted(METHODS)
    assert all(row["p"] is not None for row in rows[1:])


def test_one_seed_has_no_spread(runs):
    assert compare(of(runs, "single-0")).rows[0].spread is None


def test_other_settings_make_another_row_and_are_said(runs):
    found = compare(of(runs, "finetune-0", "slow"))
    assert sorted(row.label for row in found.rows) == ["finetune lr=0.002", "finetune lr=1e-05"]
    assert found.differing == {"lr": ("0.002", "1e-05")}
    assert compare(of(runs, "slow", "finetune-0")).differing == {"lr": ("1e-05", "0.002")}, "in the order of the runs"


def test_what_cannot_be_compared_is_refused(runs, tmp_path):
    with pytest.raises(StoreError, match="n_tasks is 2 in one and 3 in the other"):
        compare(of(runs, "finetune-0", "three"))
    with pytest.raises(StoreError, match="same seed"):
        compare(of(runs, "single-0", "single-0"))
    with pytest.raises(StoreError, match="cannot read a run"):
        compare([tmp_path / "nowhere"])

    def stop(event):
        if event["event"] == "evaluated":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(configure("digits", method="single", n_tasks=2, settings=SETTINGS), tmp_path / "half", command="clnp run me", progress=stop)
    with pytest.raises(StoreError, match=r"not finished; to continue: clnp run me --out .*half$"):
        compare([tmp_path / "half"])
    with locked(tmp_path / "half"), pytest.raises(StoreError, match=rf"not finished; process {os.getpid()} is at work there"):
        compare([tmp_path / "half"])


def test_the_permutation_test_on_cases_solved_by_hand():
    assert flip_test([1.0]) == 1.0, "one pair tells nothing"
    assert flip_test([1.0, 1.0, 1.0]) == 2 / 8, "all signs alike, or all turned"
    assert flip_test([1.0, -1.0]) == 1.0
    assert flip_test([0.0] * 5) == 1.0
    assert flip_test([3.0, 2.0, -1.0]) == 4 / 8  # sums of at least 4: 4 and 6, and their opposites
    assert flip_test([0.01] * 30) < 0.001
    assert flip_test([0.01, -0.01] * 20) > 0.9


def test_the_command_prints_a_table_a_page_and_json(runs, tmp_path, capsys):
    directories = of(runs, "finetune-0", "finetune-1", "single-0", "single-1")
    assert call(*directories, "--out", tmp_path / "page.html") == 0
    told = capsys.readouterr().out
    assert "digits · mlp-small · 2 tasks" in told
    assert "finetune" in told
    page = (tmp_path / "page.html").read_text()
    assert page.count('<circle class="new"') == 4
    assert "seed 1:" in page
    assert call(*directories, "--json") == 0
    assert [row["method"] for row in json.loads(capsys.readouterr().out)["rows"]]


def test_text_in_the_page_is_escaped(runs):
    found = compare(of(runs, "single-0"))
    object.__setattr__(found, "benchmark", "<b>x</b>")
    assert "<b>x</b>" not in render_comparison(found)


def test_the_page_says_from_where_to_where_the_averages_go(runs):
    found = compare(of(runs, "finetune-0", "single-0", "slow"))
    values = [row.mean for row in found.rows]
    assert f"from {100 * min(values):.2f} to {100 * max(values):.2f} %" in render_comparison(found)


def test_the_page_says_which_methods_cannot_be_told_from_the_first(runs):
    found = compare(of(runs, "finetune-0", "single-0"))
    first, second = found.rows
    for p, said in ((0.5, True), (0.05, True), (0.04, False), (None, False)):
        page = render_comparison(dataclasses.replace(found, rows=(first, dataclasses.replace(second, p=p))))
        assert f"{first.label} has the highest mean of 2" in page
        assert (f"These runs cannot tell it from {second.label}" in page) == said


def test_what_cannot_be_tested_is_said_to_be_so(runs, capsys):
    found = compare(of(runs, "finetune-0", "single-1"))
    assert [row.p for row in found.rows] == [None, None]
    assert render_comparison(found).count("no common seed") == 1
    assert call(*of(runs, "finetune-0", "single-1")) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "n/a: it has no seed in common with the first row" in told


def test_what_a_reader_should_know_of_a_run_stands_below(runs, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(runs["single-0"], copy)
    (copy / "events.jsonl").unlink()
    found = compare([copy, runs["finetune-0"]])
    assert any(notice.startswith(f"{copy}: events.jsonl does not say") for notice in found.notices)
    assert "events.jsonl does not say" in render_comparison(found)


def test_a_run_whose_settings_cannot_be_read_is_refused_and_an_older_one_had_the_defaults(runs, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(runs["finetune-1"], copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    del config["learn"]["claim_weight"]
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    (copy / "events.jsonl").unlink()  # it knows the hash of the configuration
    assert compare([runs["finetune-0"], copy]).differing == {}
    (copy / "config.yaml").unlink()
    with pytest.raises(DamageError, match=r"copy.*config\.yaml is missing, damaged or not"):
        compare([runs["finetune-0"], copy])


@pytest.mark.parametrize("change", [("margin: 0.02", "margin: 0.12"), ("rounds:", "roundr:")], ids=["value", "one bit"])
def test_settings_that_the_run_was_not_started_with_are_not_believed(runs, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(runs["finetune-1"], copy)
    text = (copy / "config.yaml").read_text()
    assert change[0] in text
    (copy / "config.yaml").write_text(text.replace(*change))
    with pytest.raises(DamageError, match=r"copy.*not the one that it was started with"):
        compare([runs["finetune-0"], copy])
    run = read_run(copy)
    assert not run.config
    assert any("not the one that the run was started with" in notice for notice in run.notices)


def test_a_setting_that_was_not_said_has_no_place_in_a_label(runs, tmp_path):
    for name, said in (("weak", {}), ("strong", {"strength": 1.0})):
        run(configure("digits", method="si", seed=3, n_tasks=2, settings={**SETTINGS, **said}), tmp_path / name)
    found = compare([tmp_path / "weak", tmp_path / "strong"])
    assert sorted(row.label for row in found.rows) == ["si", "si strength=1.0"]


def test_a_setting_that_a_method_does_not_read_parts_no_seeds(runs, tmp_path):
    run(configure("digits", method="finetune", seed=3, n_tasks=2, settings={**SETTINGS, "margin": 0.05}), tmp_path / "margin")
    (row,) = compare([runs["finetune-0"], tmp_path / "margin"]).rows
    assert (row.label, row.seeds) == ("finetune", (0, 3))


def test_tasks_of_one_name_and_other_data_are_not_paired(runs, monkeypatch):
    """The angles of a rotated benchmark depend on how many tasks were planned: a run that ended early has others."""

    def turned(directory):
        found = read_run(directory)
        if found.method != "single":
            return found
        infos = [task.info.model_copy(update={"details": {**task.info.details, "angle_degrees": 30.0}}) for task in found.tasks]
        return dataclasses.replace(found, tasks=tuple(dataclasses.replace(t, info=i) for t, i in zip(found.tasks, infos, strict=True)))

    monkeypatch.setattr(sys.modules[flip_test.__module__], "read_run", turned)
    with pytest.raises(StoreError, match=r"task 'digits-0' of one is not the task 'digits-0' of the other"):
        compare(of(runs, "finetune-0", "single-0"))
    compare(of(runs, "finetune-1", "single-0"))  # other seeds have other tasks anyway


def test_a_page_goes_where_it_can_and_the_table_is_printed_anyway(runs, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert call(runs["single-0"], "--out", tmp_path / "file" / "page.html") == 1
    told = capsys.readouterr()
    assert "digits · mlp-small" in told.out
    assert f"cannot write the comparison '{tmp_path / 'file' / 'page.html'}'" in told.err
    assert call(runs["single-0"], "--out", tmp_path) == 0
    assert (tmp_path / "comparison.html").is_file()
    assert call(runs["single-0"], "--out", tmp_path / "new" / "page.html") == 0
    assert (tmp_path / "new" / "page.html").is_file()
