"""The scripts behind the tables: plans that can be run, results that are kept once, tables that say what was kept."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from clnp.benchmarks import BENCHMARKS
from clnp.experiment import configure, run
from clnp.models import MODELS

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import made
import plans
import reproduce
import run_examples
import search
import speed
import tables
from plans import Entry, Experiment
from test_pruning import nothing_released

ROOT = Path(__file__).parent.parent
QUICK = {"epochs": 1, "rounds": 1, "finetune_epochs": 0, "batch_size": 64, "threads": 1}
TINY = Experiment(
    "Two tasks of the digits",
    "digits",
    "mlp-small",
    2,
    QUICK,
    (Entry("finetune", "finetune", seeds=2), Entry("fine, slow", "finetune", {"lr": 1e-4}, "50.0", seeds=1)),
)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    for module in (reproduce, tables):
        monkeypatch.setattr(module, "EXPERIMENTS", {"tiny": TINY})
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    return tmp_path


@pytest.mark.parametrize("name", plans.EXPERIMENTS)
def test_every_run_of_a_plan_can_be_configured_and_has_a_name_of_its_own(name):
    experiment = plans.EXPERIMENTS[name]
    runs = list(experiment.runs())
    assert len({tables.kept(name, entry, seed) for entry, seed in runs}) == len(runs)
    for entry, seed in runs:
        configured = configure(
            experiment.benchmark,
            method=entry.method,
            model=entry.model or experiment.model,
            n_tasks=experiment.n_tasks,
            seed=seed,
            settings=experiment.settings_of(entry),
        )
        assert configured.learn.threads == 1, "runs side by side get the bits of one alone"


@pytest.mark.parametrize("name", search.SEARCHES)
def test_every_setting_that_is_searched_can_be_configured(name):
    one = search.SEARCHES[name]
    for change in one.changes.values():
        settings = {**one.base, **change}
        model = settings.pop("model", one.model)
        assert model is None or model in {**MODELS, **search.DROPOUTS}
        configure(
            one.benchmark, method=one.method, model=None if model in search.DROPOUTS else model, n_tasks=one.n_tasks, settings=settings
        )


def test_the_first_seed_of_all_rows_comes_before_the_second_of_any():
    assert [(entry.label, seed) for entry, seed in TINY.runs()] == [("finetune", 0), ("fine, slow", 0), ("finetune", 1)]


@pytest.mark.thorough
def test_what_is_missing_is_run_and_kept_and_not_run_again(tiny, capsys):
    assert reproduce.run(["tiny"], None, tiny / "runs", 2, None) == 0
    kept = sorted(path.name for path in (tiny / "results" / "tiny").iterdir())
    assert kept == ["fine-slow-seed0.json", "finetune-seed0.json", "finetune-seed1.json"]
    one = json.loads((tiny / "results" / "tiny" / "finetune-seed1.json").read_text())
    assert (one["seed"], one["config"]["learn"]["epochs"], one["command"].split()[:3]) == (1, 1, ["clnp", "run", "digits"])
    assert one["reloaded"] == one["accuracy_matrix"][-1]
    assert one["bytes"]["network-2.safetensors"] > 4 * one["n_parameters"]
    assert one["commit"] == reproduce.commit()
    capsys.readouterr()
    assert reproduce.run(["tiny"], None, tiny / "runs", 2, None) == 0
    assert capsys.readouterr().out == ""
    values = [json.loads((tiny / "results" / "tiny" / f"finetune-seed{seed}.json").read_text())["average_accuracy"] for seed in (0, 1)]
    rows = tables.main_table("tiny").splitlines()
    assert f"| finetune | {tables.spread(values)} |" in rows[2]
    assert rows[2].endswith("| 2 |")
    assert "| 50.0 | 1 |" in rows[3]


@pytest.mark.thorough
def test_a_run_that_fails_is_counted_and_not_kept(tiny, monkeypatch):
    broken = Experiment("", "digits", "mlp-small", 99, QUICK, (Entry("finetune", "finetune", seeds=1),))
    monkeypatch.setattr(reproduce, "EXPERIMENTS", {"tiny": broken})
    assert reproduce.run(["tiny"], None, tiny / "runs", 1, None) == 1
    assert not (tiny / "results").exists()
    assert "99" in (tiny / "runs" / "tiny" / "finetune-seed0.log").read_text()


def test_a_search_measures_validation_data_once_and_shows_the_best_first(tmp_path, monkeypatch, capsys):
    tried = search.Search("digits", "finetune", 2, {"slow": {"lr": 1e-5}, "fast": {"lr": 5e-3}}, {**QUICK, "epochs": 4})
    monkeypatch.setattr(search, "SEARCHES", {"tiny": tried})
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["search.py", "tiny", "--out", str(out)])
    search.main()
    found = json.loads(out.read_text())["settings"]
    assert len(found["fast"]["validation"]) == 2
    table = capsys.readouterr().out.splitlines()[-2:]
    assert [row.split()[1] for row in table] == ["fast", "slow"]
    monkeypatch.setattr(search, "measure", lambda *_: pytest.fail("it is in the file already"))
    search.main()


def test_a_search_says_after_how_many_tasks_a_network_was_full(tmp_path, monkeypatch, capsys):
    tried = search.Search("digits", "clnp", 3, {"all": {"pool": "all"}, "half": {"pool": 0.5}}, QUICK)
    monkeypatch.setattr(search, "SEARCHES", {"tiny": tried})
    monkeypatch.setattr(sys, "argv", ["search.py", "tiny", "--out", str(tmp_path / "found.json")])
    # Nothing is released: the tasks keep their pools.
    monkeypatch.setattr("clnp.pruning.select", nothing_released)
    search.main()
    rows = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith(("| all", "| half"))]
    assert sorted(rows) == ["| all, full after 1", "| half, full after 2"]


def test_a_ratio_is_to_the_turns_of_the_first_around_it(monkeypatch):
    """The machine gets slower with every turn: in turns, nobody gains by it."""
    clock = {"n": 0}

    class Slower:
        absent = None

        def __init__(self, _python, _contest, name):
            self.work = {"first": 1.0, "twice": 2.0}.get(name)
            self.absent = None if self.work else "not installed"

        def turn(self):
            clock["n"] += 1
            return {"seconds": self.work * clock["n"], "peak_mb": 2.0, "before_mb": 1.0}

        def end(self):
            pass

    monkeypatch.setattr(speed, "Contestant", Slower)
    found = speed.hold("training", ["first", "twice", "missing"], 5, {})["contestants"]
    assert found["twice"]["ratios"] == pytest.approx([2.0] * 5)
    assert found["missing"] == {"absent": "not installed"}
    assert "not measured: not installed" in speed.show({"contests": {"training": {"contestants": found}}})


def test_a_measurement_says_when_where_and_with_what_it_was_made(monkeypatch):
    alone = made.stamp(3)
    assert {"date", "command", "commit", "clnp", "torch", "python", "threads", "platform", "cores", "processor"} <= alone.keys()
    assert alone["threads"] == 3
    assert "peers" not in alone
    assert alone["commit"] == made.commit()
    monkeypatch.setattr(made, "PEERS", ["torch", "nobody-wrote-this"])
    assert made.stamp(3, sys.executable)["peers"] == {"torch": version("torch")}


@pytest.mark.parametrize("page", reproduce.PAGES)
def test_pages_have_the_tables_of_what_was_kept(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert reproduce.filled(text) == text, "run: python benchmarks/reproduce.py --write"


def test_every_table_stands_on_a_page():
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in reproduce.PAGES)
    for name in plans.EXPERIMENTS:
        for key in tables.show(name):
            assert f"<!-- {name}: {key} -->" in text
    for name, one in search.SEARCHES.items():
        if search.kept(name).exists():
            found = json.loads(search.kept(name).read_text())
            assert (found["model"], found["n_tasks"]) == (one.model or BENCHMARKS[one.benchmark].model, one.n_tasks)
            assert f"<!-- search: {name} -->" in text
    assert all(f"<!-- speed: {key} -->" in text for key in speed.tables(json.loads((tables.RESULTS / "speed.json").read_text())))


def test_the_paper_s_table_stands_in_the_readme():
    assert tables.paper_table() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_lies_on_the_disk_is_counted_and_one_task_is_told_from_the_whole(tiny):
    for label, files in (
        ("finetune", {"HEAD": 1_000_000, "tasks/0": 2_000_000, "tasks/1": 4_500_000}),
        ("fine, slow", {"network": 3_000_000}),
    ):
        path = tables.kept("tiny", TINY.entry(label), 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"bytes": files}))
    assert tables.disk("tiny").splitlines()[2:] == ["| finetune | 7.5 | 2.00 to 4.50 |", "| fine, slow | 3.0 |  |"]
    with pytest.raises(ValueError, match="unknown row 'fine': expected one of 'finetune', 'fine, slow'"):
        TINY.entry("fine")


def test_every_example_stands_on_its_page():
    text = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    assert all(f"<!-- example: {key} -->" in text for key in ("vit-seed0", "vit", "vit-data-seed0", "llama_text-seed0", "llama_text"))
    assert all(run_examples.accuracies(name) for name in run_examples.RUNS)


def test_an_example_that_forgot_something_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(run_examples, "RESULTS", tmp_path)
    said = "forgetting: 0.0; logits of all earlier tasks bit-identical: True"
    printed = [
        "1. learned 'a'",
        "   one  10.00%   (chance",
        "2. learned 'b'",
        "   one  50.00%   (chance 10%)",
        "   two  70.00%   (chance 10%)",
        "",
        said,
    ]
    for seed in run_examples.SEEDS:
        (tmp_path / f"example-vit-seed{seed}.json").write_text(json.dumps({"lines": printed}))
    assert run_examples.show("vit-seed0").splitlines() == ["```", *printed[2:], "```"]
    assert run_examples.show("vit").splitlines()[2:] == ["| one | 50.00 ± 0.00 |", "| two | 70.00 ± 0.00 |"]
    (tmp_path / "example-vit-seed1.json").write_text(json.dumps({"lines": [*printed[:-1], said.replace("True", "False")]}))
    with pytest.raises(ValueError, match="does not say that nothing was forgotten"):
        run_examples.show("vit")


def test_a_row_of_the_paper_that_was_not_run_says_so(tiny, monkeypatch):
    monkeypatch.setattr(tables, "PAPER", {"finetune": "plain", "fine, slow": "slow"})
    monkeypatch.setattr(tables, "EXPERIMENTS", {"permuted-mnist": TINY})
    assert tables.paper_table().splitlines()[2:] == ["| plain |  | not run yet |  |  | 0 |", "| slow | 50.0 | not run yet |  |  | 0 |"]


def test_a_marked_table_is_filled_and_the_rest_stays(tiny):
    entry = TINY.entries[0]
    run(
        configure("digits", method="finetune", model=TINY.model, n_tasks=2, settings=TINY.settings_of(entry)),
        tiny / "run",
        command="clnp run",
    )
    reproduce.keep(tiny / "run", tables.kept("tiny", entry, 0), None)
    table = tables.main_table("tiny")
    page = "before\n\n<!-- tiny: main -->\n{}<!-- end -->\n\nafter\n"
    for old in ("", "| old |\n", f"{table}\n"):
        assert reproduce.filled(page.format(old)) == page.format(f"{table}\n")
    with pytest.raises(SystemExit, match="tiny: forecast"):
        reproduce.filled("<!-- tiny: forecast -->\n<!-- end -->")
    with pytest.raises(SystemExit, match="1 tables end in it, and 0 begin"):
        reproduce.filled("<!-- tiny: main, mistyped -->\n<!-- end -->")


@pytest.mark.parametrize("name", [name for name in plans.EXPERIMENTS if tables.found(name)])
def test_what_was_kept_is_what_a_fresh_load_answers_and_clnp_forgets_nothing(name):
    for runs in tables.found(name).values():
        for one in runs:
            assert one.get("reloaded", one["accuracy_matrix"][-1]) == one["accuracy_matrix"][-1]
            assert one["method"] != "clnp" or one["forgetting"] == 0


RUN = {
    "tasks": ["a", "b", "c"],
    "accuracy_matrix": [[0.9, None, None], [0.9, 0.8, None], [0.9, 0.8, 0.7]],
    "average_accuracy": 0.8,
    "cpu_seconds_per_task": [1.0, 2.0, 3.0],
    "capacity": {
        "early": {"n_units": 10, "free": 6, "claimed": {"a": 4, "b": 0, "c": 0}, "reused": {"a": 0, "b": 4, "c": 4}},
        "late": {"n_units": 10, "free": 2, "claimed": {"a": 4, "b": 2, "c": 2}, "reused": {"a": 0, "b": 1, "c": 3}},
    },
}


def test_layers_tell_what_later_tasks_claim_and_what_they_read():
    _, _, early, late = tables.layers([RUN]).splitlines()
    assert early == "| early | 10 | 40 % | 0.0 % | 100 % | 40 % |"
    assert late == "| late | 10 | 40 % | 20.0 % | 38 % | 80 % |"  # 1 of 4, then 3 of 6


def test_forecasts_are_those_of_the_library_after_each_task():
    assert tables.forecasts(RUN) == [1, 1, 0]  # 6 free at 4 a task; 4 free at 3; 2 free at 8 / 3


def test_the_course_of_a_run_sets_the_forecast_beside_what_came():
    rows = tables.course(RUN, every=2).splitlines()[2:]
    assert rows[0] == "| 1 | 90.00 % | 90.00 % | 40 % | 40 % | 1 | at least 2 | 1 s |"
    assert tables.full_after(RUN) is None
    assert [row.split(" | ")[0] for row in rows] == ["| 1", "| 2", "| 3"]
    early = {"n_units": 4, "free": 0, "claimed": {"a": 3, "b": 1, "c": 0}, "reused": {"a": 0, "b": 0, "c": 1}}
    full = {**RUN, "capacity": {"early": early}}
    assert tables.full_after(full) == 2
    rows = tables.course(full, every=2).splitlines()[2:]
    assert rows[0] == "| 1 | 90.00 % | 90.00 % | 75 % | 0 | 1 | 1 s |"
    assert rows[1:] == ["| 2 | 80.00 % | 85.00 % | 100 % |  |  | 2 s |", "| 3 | 70.00 % | 80.00 % | 100 % |  |  | 3 s |"]


def test_what_was_reached_counts_even_if_it_was_forgotten():
    assert tables.just_learned({"accuracy_matrix": [[0.5, None], [0.1, 0.75]]}) == 0.625


def test_each_task_has_its_mean_over_seeds(monkeypatch):
    monkeypatch.setattr(tables, "EXPERIMENTS", {"tiny": Experiment("", "digits", "mlp-small", 3, {}, ())})
    monkeypatch.setattr(tables, "found", lambda _: {"clnp": [RUN]})
    assert tables.per_task("tiny").splitlines()[2] == "| clnp | 90.00 | 80.00 | 70.00 | 80.00 |"


def test_clnp_is_put_beside_the_same_network_alone_task_by_task(monkeypatch):
    alone = {**RUN, "accuracy_matrix": [[0.95, 0.8, 0.65]]}
    monkeypatch.setattr(tables, "EXPERIMENTS", {"tiny": Experiment("", "digits", "mlp-small", 3, {}, ())})
    monkeypatch.setattr(tables, "found", lambda _: {"clnp": [RUN], "single": [alone, alone], "clnp, twice as wide": [RUN]})
    assert tables.beside_alone("tiny").splitlines()[2:] == ["| clnp | -5.00 | +0.00 | +5.00 | +0.00 |"]
    monkeypatch.setattr(tables, "found", lambda _: {"clnp": [RUN]})
    assert not tables.beside_alone("tiny")


def test_phases_say_what_share_of_a_task_is_not_training():
    row = {"train": 60.0, "finetune": 30.0, "score": 0.5, "select": 9.0, "commit": 0.5}
    lines = speed.phases_table({"2": {"tasks": [row]}, "1": {"tasks": [row, {"train": 1.0}]}}).splitlines()
    assert lines[2] == "| 1 | 1 | 100 s | 60 s | 30 s | 0.5 s | 9.0 s | 0.5 s | 10.0 % |"
    assert [line.split(" | ")[:2] for line in lines[3:]] == [["| 1", "2"], ["| 2", "1"]]


def test_orders_tell_the_data_sets_apart(tiny):
    path = tables.kept("tiny", TINY.entries[0], 1)
    path.parent.mkdir(parents=True)
    names = ["fashion-mnist-1", "cifar10-2", "fashion-mnist-2"]
    path.write_text(json.dumps({**RUN, "tasks": names, "accuracy_matrix": [[0.9, 0.6, 0.7]], "seed": 1}))
    assert tables.orders("tiny").splitlines() == [
        "| method | order | its first three tasks | average accuracy, % | cifar10 | fashion-mnist | fullest layer |",
        "|---|---|---|---|---|---|---|",
        f"| finetune | 1 | {', '.join(names)} | 80.00 | 60.00 | 80.00 | 80 % |",
    ]


def test_a_network_that_was_full_before_the_last_task_is_said_to_be():
    short = {"tasks": ["a", "b"]}
    assert tables.full_before([RUN], 3) == ""
    assert tables.full_before([short], 3) == " (full after 2 of 3 tasks)"
    assert tables.full_before([RUN, short], 3) == " (full after 2 to 3 of 3 tasks)"


def test_changes_are_told_beside_the_row_that_they_change(tiny):
    for place, (entry, seed, average) in enumerate([(TINY.entries[0], 0, 0.8), (TINY.entries[0], 1, 0.7), (TINY.entries[1], 1, 0.75)]):
        path = tables.kept("tiny", entry, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        run = {**RUN, "tasks": ["a", "b"], "seed": seed, "average_accuracy": average, "cpu_seconds_per_task": [1.0 + place]}
        path.write_text(json.dumps(run))
    assert tables.changes("tiny").splitlines() == [
        "| change | average accuracy, % | beside 'finetune', points | early claimed | late claimed | CPU time of a run | seeds |",
        "|---|---|---|---|---|---|---|",
        "| finetune | 75.00 ± 7.07 |  | 40 % | 80 % | 2 s | 2 |",
        "| fine, slow | 75.00 | +5.00 | 40 % | 80 % | 3 s | 1 |",
    ]
