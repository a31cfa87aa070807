"""What is exported computes what the predictor computes, or there is no file."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import logging
import re
import shutil
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import clnp
import small
from clnp import cli, experiment, runs
from clnp import export as module
from clnp.export import export
from clnp.files import replacing

FAST = {"epochs": 1, "rounds": 1, "finetune_epochs": 0}


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(path, *inputs):
    opened = session(path)
    names = [found.name for found in opened.get_inputs()]
    return torch.as_tensor(opened.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})[0])


def left(directory):
    return sorted(path.name for path in directory.iterdir())


class Tokens(nn.Module):
    """Seven tokens, a mask over them, and a further input; called with three inputs."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.linear = nn.Linear(8, 5)

    def forward(self, tokens, more, mask):
        return self.linear((self.embedding(tokens) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True) + more)


TOKENS = (torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 8), torch.ones(1, 4, dtype=torch.bool))


def tokens(n):
    generator = torch.Generator().manual_seed(5)
    mask = torch.rand(n, 4, generator=generator) > 0.5
    mask[:, 0] = True
    return torch.randint(7, (n, 4), generator=generator), torch.randn(n, 8, generator=generator), mask


def linear():
    layer = nn.Linear(3, 3)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer.requires_grad_(False)


@pytest.fixture(scope="module", params=["vgg", pytest.param("resnet", marks=pytest.mark.thorough)])
def exported(request, tmp_path_factory):
    """A learner of two tasks, and the second of them as ONNX, checked on real inputs."""
    learner = small.learned(request.param, 2, **FAST)
    path = tmp_path_factory.mktemp("onnx") / "b.onnx"
    return learner, learner.export(path, task="task-1", inputs=small.task(1)[0])


@pytest.fixture(scope="module")
def learner():
    return small.learned("mlp", 2, **FAST)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "run"
    experiment.run(experiment.configure("digits", n_tasks=2, settings=FAST), out)
    return out


# ---- ONNX


def test_onnx_computes_what_the_predictor_computes_at_any_batch_size(exported):
    learner, result = exported
    x = small.task(1)[0]
    for n in (1, 2, 3, 5, 17, 240):
        expected, found = learner.predict(x[:n], task="task-1"), run(result.path, x[:n])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(found.argmax(1), expected.argmax(1))
    assert not torch.allclose(learner.predict(x, task="task-0"), run(result.path, x), atol=1e-3), "another task's would not pass"


def test_only_the_number_of_examples_is_free(exported):
    _, result = exported
    opened = session(result.path)
    assert [found.shape for found in opened.get_inputs()] == [["batch", 1, 8, 8]]
    assert [(found.name, found.shape) for found in opened.get_outputs()] == [("logits", ["batch", 3])]


def test_the_result_says_what_was_checked(exported):
    _, result = exported
    assert result.format == "onnx"
    assert result.n_checked == 1 + 3 + 17 + 240
    assert result.n_bytes == result.path.stat().st_size
    assert 0 <= result.largest_difference < 1e-5
    assert result.top1_agreement == 1
    assert left(result.path.parent) == ["b.onnx"]


def test_the_file_holds_the_task_s_name_and_only_the_units_it_needs(exported):
    learner, result = exported
    written = onnx.load(result.path)
    assert {p.key: p.value for p in written.metadata_props}["clnp.name"] == "task 'task-1'"
    n_weights = sum(p.numel() for p in learner.predictor("task-1").state_dict().values())
    assert sum(torch.Size(tensor.dims).numel() for tensor in written.graph.initializer) <= n_weights + 20


def test_the_reference_evaluator_checks_where_onnx_runtime_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    read = []
    real = importlib.import_module("onnx.reference").ReferenceEvaluator
    monkeypatch.setattr("onnx.reference.ReferenceEvaluator", lambda path: read.append(path) or real(path))
    result = export(linear(), tmp_path / "a.onnx", torch.zeros(1, 3))
    assert read == [str(tmp_path / "a.onnx.new")]
    assert (result.n_checked, result.top1_agreement) == (21, 1)


@pytest.mark.thorough
def test_exporters_keep_silent_and_the_learner_stays_as_it_is(learner, tmp_path, capfd, recwarn, monkeypatch):
    said = io.StringIO()
    logger = logging.getLogger("torch.onnx")  # it writes to the stderr of the time when torch was imported
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(said)])
    x = small.task(1)[0]
    before, state = learner.predict(x, task="task-1"), torch.get_rng_state()
    for suffix in ("onnx", "pt2"):
        learner.export(tmp_path / f"a.{suffix}", task="task-1")
    assert capfd.readouterr() == ("", "")
    assert (recwarn.list, said.getvalue()) == ([], "")
    assert torch.equal(before, learner.predict(x, task="task-1"))
    assert torch.equal(state, torch.get_rng_state())


# ---- pt2


def test_a_pt2_file_loads_and_takes_any_batch_size(learner, tmp_path):
    result = learner.export(tmp_path / "a.pt2", task="task-0", inputs=small.task(0)[0])
    assert (result.format, result.n_checked, left(tmp_path)) == ("pt2", 261, ["a.pt2"])
    loaded = torch.export.load(result.path).module()
    for n in (1, 4, 50):
        x = small.task(0)[0][:n]
        torch.testing.assert_close(loaded(x), learner.predict(x, task="task-0"))


def test_a_pt2_file_is_never_read(learner, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a .pt2 file was read")

    monkeypatch.setattr(torch.export, "load", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    learner.export(tmp_path / "a.pt2", task="task-0")


def test_real_inputs_are_not_written_into_the_file(learner, tmp_path):
    real = torch.full((30, 1, 8, 8), 0.123456)
    learner.export(tmp_path / "a.pt2", task="task-0", inputs=real)
    assert real[0].numpy().tobytes() not in (tmp_path / "a.pt2").read_bytes()


# ---- several inputs, integers, masks


@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_several_inputs_with_tokens_and_masks(tmp_path, to):
    predictor = Tokens()
    result = export(predictor, tmp_path / "a", TOKENS, to=to, inputs=tokens(40))
    assert (result.format, result.n_checked) == (to, 61)
    inputs = tokens(9)
    loaded = run(result.path, *inputs) if to == "onnx" else torch.export.load(result.path).module()(*inputs)
    torch.testing.assert_close(loaded, predictor(*inputs), atol=1e-5, rtol=1e-5)


def test_random_integers_stand_where_they_stood_and_masks_stay_whole():
    columns = torch.tensor([[0, 10, 5], [1, 20, 5], [2, 30, 5]])  # each column has a vocabulary of its own
    drawn = module._random(columns, 200, torch.Generator().manual_seed(0))
    assert [sorted(set(column.tolist())) for column in drawn.T] == [[0, 1, 2], [10, 20, 30], [5]]
    assert len({tuple(row) for row in drawn.tolist()}) == 9, "rows are mixed"
    mask = torch.tensor([[True, False], [False, True]])
    assert {tuple(row) for row in module._random(mask, 50, torch.Generator().manual_seed(0)).tolist()} == {(True, False), (False, True)}
    x = module._random(torch.zeros(1, 4), 500, torch.Generator().manual_seed(0))
    assert abs(float(x.std()) - 1) < 0.1


def test_each_real_example_is_checked_once_and_at_small_batch_sizes():
    x = torch.arange(600.0)[:, None]
    batches = [batch[0] for batch in module._batches((torch.zeros(1, 1),), (x,))]
    assert [len(batch) for batch in batches] == [1, 3, 17, 1, 3, 17, 250, 250, 79]
    assert torch.equal(torch.cat(batches[3:]), x)


# ---- the comparison


def test_top1_agreement_counts_examples_and_ties_are_no_failure():
    x = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0.50002, 0.5], [0, 0, 1]])

    def swapped(batch):
        return torch.where(batch[0] == 0.50002, 0.49999, batch[0])  # the third example: within the tolerance, on the other side

    difference, agreement, n = module._compared(linear(), swapped, [(x,)])
    assert (agreement, n) == (0.75, 4)
    assert difference == pytest.approx(3e-5, rel=0.01)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: y + torch.tensor([0, 0, 2e-4]), "differs from the predictor by 0.0002, expected at most 0.0001"),
        (lambda y: y * torch.tensor([1, 1, torch.nan]), "differs from the predictor by nan"),
        (lambda y: y[:, :2], r"gives \(2, 2\) for a batch of 2, where the predictor gives \(2, 3\)"),
        (
            lambda y: y.flip(1) if len(y) < 0 else y + torch.tensor([[0, 0, 0], [-9e-5, 9e-5, 0]]),
            "another top-1 than the predictor for 1 of 2",
        ),
    ],
    ids=["difference", "NaN", "shape", "top-1"],
)
def test_what_differs_is_refused(change, words):
    x = torch.tensor([[1.0, 0, 0], [0.50015, 0.5, 0]])
    with pytest.raises(clnp.ExportError, match=words):
        module._compared(linear(), lambda batch: change(batch[0]), [(x,)])


def test_the_tolerance_grows_and_shrinks_with_the_outputs():
    x = torch.tensor([[1000.0, 0, 0], [0, 1000, 0]])
    module._compared(linear(), lambda batch: batch[0] + 0.05, [(x,)])
    with pytest.raises(clnp.ExportError, match="differs"):
        module._compared(linear(), lambda batch: batch[0] + 0.05 / 1000, [(x / 10_000,)])


@pytest.mark.parametrize(
    ("predictor", "words"),
    [
        (lambda x: x / 0, "gives NaN or infinite outputs"),
        (lambda x: x[:, 0], r"expected logits \(B, classes\) of it, found torch.Size\(\[2\]\)"),
        (lambda x: (x, x), "found tuple"),
    ],
)
def test_a_predictor_that_cannot_be_compared_is_refused(predictor, words):
    with pytest.raises(clnp.ExportError, match=words):
        module._compared(predictor, lambda batch: batch[0], [(torch.ones(2, 3),)])


# ---- a broken export leaves nothing


def perturbed(predictor, example):
    other = linear()
    with torch.no_grad():
        other.weight[0, 1] += 0.01
    return REAL(other, example)


def of_one_size(predictor, example):
    return torch.export.export(predictor, (torch.zeros(3, 3),))


def crash(*_, **__):
    raise RuntimeError("no rule for this\nand a page of advice")


def interrupt(*_, **__):
    raise KeyboardInterrupt


REAL = module._captured


@pytest.mark.parametrize("to", ["onnx", pytest.param("pt2", marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    ("where", "what", "error", "words"),
    [
        ("clnp.export._captured", perturbed, clnp.ExportError, "cannot export the predictor to '.*': what was exported differs"),
        ("clnp.export._captured", of_one_size, clnp.ExportError, "what was exported fails on a batch of 1 "),
        ("torch.export.export", crash, clnp.ExportError, r"torch.export cannot capture it \(no rule for this\)\.$"),
        ("torch.onnx.export", crash, clnp.ExportError, r"torch.onnx cannot translate it \(no rule for this\)\.$"),
        ("torch.export.save", crash, clnp.ExportError, r"torch.export cannot write it \(no rule for this\)\.$"),
        ("onnxruntime.InferenceSession", crash, clnp.ExportError, r"the ONNX file that was written cannot be read \(no rule for this\)"),
        ("clnp.export._compared", interrupt, KeyboardInterrupt, None),
    ],
    ids=["weights", "batch", "capture", "translation", "writing", "reading", "Ctrl-C"],
)
def test_a_broken_export_leaves_no_file_and_an_earlier_one_as_it_was(tmp_path, monkeypatch, to, where, what, error, words):
    if {"torch.onnx.export": "pt2", "onnxruntime.InferenceSession": "pt2", "torch.export.save": "onnx"}.get(where) == to:
        return
    monkeypatch.setattr(where, what)
    (tmp_path / "old").mkdir()
    old = tmp_path / "old" / f"a.{to}"
    old.write_bytes(b"of an earlier export")
    for path in (tmp_path / f"a.{to}", old)[to == "onnx" :]:  # a translation takes its time; the places are the same for both
        with pytest.raises(error, match=words):
            export(linear(), path, torch.zeros(1, 3), inputs=torch.randn(30, 3))
    assert left(tmp_path) == ["old"]
    assert left(old.parent) == [old.name]
    assert old.read_bytes() == b"of an earlier export"


def test_the_file_is_checked_before_it_is_put_in_place(tmp_path, monkeypatch):
    seen = []
    real = module._compared
    monkeypatch.setattr(module, "_compared", lambda *given: seen.append(left(tmp_path)) or real(*given))
    export(linear(), tmp_path / "a.pt2", torch.zeros(1, 3))
    assert seen == [["a.pt2.new"]]
    assert left(tmp_path) == ["a.pt2"]


def test_a_block_that_fails_leaves_nothing_beside_the_file(tmp_path):
    def interrupted():
        with replacing(tmp_path / "a") as beside:
            beside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert left(tmp_path) == []


# ---- what cannot be exported is said


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_extra_is_named(learner, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        clnp.ExportError, match=rf"cannot export task 'task-0' to .*'{package}' is not installed.*pip install onnx onnxscript onnxruntime"
    ):
        learner.export(tmp_path / "a.onnx", task="task-0")
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "to", "words"),
    [
        ("a.tflite", None, "unknown format: expected 'onnx' or 'pt2', found the suffix '.tflite'"),
        ("a", None, "found the suffix ''"),
        ("a.onnx", "torchscript", "found to='torchscript'"),
        ("a.onnx", "pt2", "suffix says 'onnx', but 'pt2' was asked for"),
        ("nowhere/a.onnx", None, "there is no such directory"),
        (".", "pt2", "there is a directory of that name"),
    ],
)
def test_a_place_or_format_that_cannot_be_is_said_before_any_work(learner, tmp_path, monkeypatch, name, to, words):
    monkeypatch.setattr(module, "_captured", crash)
    with pytest.raises(clnp.ExportError, match=words):
        learner.export(tmp_path / name, task="task-0", to=to)
    assert left(tmp_path) == []


def test_a_directory_that_cannot_be_written_to_is_said_before_any_work(learner, tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", denied)
    monkeypatch.setattr(module, "_captured", crash)
    with pytest.raises(clnp.ExportError, match=r"cannot export task 'task-0' to '.*a.pt2': Permission denied\."):
        learner.export(tmp_path / "a.pt2", task="task-0")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.zeros(4, 1, 9, 8), r"expected real inputs .*\(1, 8, 8\).*found .*\(1, 9, 8\)"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.float64), "float64"),
        ((torch.zeros(4, 1, 8, 8), torch.zeros(4)), "found"),
        (torch.zeros(0, 1, 8, 8), r"at least one, found \[0\]"),
    ],
)
def test_real_inputs_of_another_kind_are_refused(learner, tmp_path, inputs, words):
    with pytest.raises(clnp.DataError, match=f"cannot export task 'task-0' to .*{words}"):
        learner.export(tmp_path / "a.pt2", task="task-0", inputs=inputs)


def test_inputs_of_different_length_are_refused(tmp_path):
    with pytest.raises(clnp.DataError, match=r"equally many examples in each input and at least one, found \[3, 4\]"):
        export(Tokens(), tmp_path / "a.pt2", TOKENS, inputs=(tokens(3)[0], *tokens(4)[1:]))


def test_an_unknown_task_lists_the_known_ones(learner, tmp_path):
    with pytest.raises(clnp.TaskError, match="no task 'dents' is learned: expected one of 'task-0', 'task-1'"):
        learner.export(tmp_path / "a.pt2", task="dents")


def test_weights_beyond_one_onnx_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ONNX_LIMIT", 40)
    with pytest.raises(clnp.ExportError, match=r"one ONNX file holds less than 2\. Export it as pt2"):
        export(linear(), tmp_path / "a.onnx", torch.zeros(1, 3))
    assert left(tmp_path) == []


# ---- the command line


@pytest.fixture
def command(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")

    def give(*arguments):
        with pytest.raises(SystemExit) as exit_:
            cli.main(["export", *map(str, arguments)])
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return give


def test_the_command_exports_a_task_of_a_run_checked_on_its_test_examples(command, finished):
    code, out, err = command(finished, "--task", "digits-1")
    file = finished / "task-001.onnx"
    n = len(experiment.BENCHMARKS["digits"].tasks(None, 0, 2)[1].test[0])
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first == f"{file}: task 'digits-1' as onnx, {file.stat().st_size:,} bytes"
    assert re.fullmatch(rf"checked on {n + 21} examples: largest difference [0-9.e-]+, top-1 agreement 100.00 %", second)
    learner, _ = runs.load_learner(finished)
    x = experiment.BENCHMARKS["digits"].tasks(None, 0, 2)[1].test[0]
    torch.testing.assert_close(run(file, x), learner.predict(x, task="digits-1"), atol=1e-5, rtol=1e-5)
    assert experiment.run(experiment.configure("digits", n_tasks=2, settings=FAST), finished), "the run directory is still one"


def test_json_is_all_that_stdout_gets(command, finished, tmp_path):
    code, out, err = command(finished, "--task", "digits-0", "--to", "pt2", "--json", "--out", tmp_path / "net.pt2")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert set(result) == {"task", "path", "format", "largest_difference", "top1_agreement", "n_checked", "n_bytes"}
    assert (result["task"], result["format"], result["path"]) == ("digits-0", "pt2", str(tmp_path / "net.pt2"))
    assert result["n_bytes"] == (tmp_path / "net.pt2").stat().st_size


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--task", "digits-7"], 2, "unknown task 'digits-7'.*There are: digits-0, digits-1"),
        (["--task", "../../etc/passwd"], 2, "unknown task"),
        (["--task", "digits-0", "--to", "tflite"], 2, "cannot export to 'tflite': expected --to onnx or --to pt2"),
        (
            ["--task", "digits-0", "--out", "nowhere/a.onnx"],
            1,
            "cannot export task 'digits-0' to 'nowhere/a.onnx': there is no such directory",
        ),
        (["--task", "digits-0", "--out", "a.h5"], 1, "unknown format"),
        ([], 2, "--task"),
    ],
)
def test_mistakes_are_told_in_one_line(command, finished, arguments, code, words):
    before = left(finished)
    found, out, err = command(finished, *arguments)
    assert (found, out) == (code, "")
    assert re.search(words, err)
    assert err.startswith("Usage") or len(err.splitlines()) == 1
    assert left(finished) == before


def test_a_run_without_a_learner_is_refused_in_one_line(command, tmp_path):
    experiment.run(experiment.configure("digits", n_tasks=1, method="finetune", settings=FAST), tmp_path / "run")
    code, out, err = command(tmp_path / "run", "--task", "digits-0")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"clnp: cannot take a learner from run '.*': expected a run of method clnp, found one of finetune\.\n", err)


def test_a_directory_that_is_no_run_or_has_learned_nothing_is_refused(command, finished, tmp_path):
    code, _, err = command(tmp_path / "nowhere", "--task", "x")
    assert (code, len(err.splitlines())) == (1, 1)
    (tmp_path / "config.yaml").write_bytes((finished / "config.yaml").read_bytes())
    code, _, err = command(tmp_path, "--task", "x")
    assert (code, err) == (1, f"clnp: cannot take a learner from run '{tmp_path}': no task of it is learned yet.\n")
    (tmp_path / "config.yaml").write_text("benchmark: digits\n")
    code, _, err = command(tmp_path, "--task", "x")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "config.yaml is damaged" in err


def test_names_of_tasks_are_never_paths(command, tmp_path, monkeypatch):
    names = ["../../outside", "/etc/evil", "a/b"]
    real = experiment.BENCHMARKS["digits"]

    def renamed(*given):
        return [dataclasses.replace(task, name=name) for task, name in zip(real.tasks(*given), names, strict=True)]

    monkeypatch.setitem(experiment.BENCHMARKS, "digits", dataclasses.replace(real, tasks=renamed))
    out = tmp_path / "deep" / "run"
    experiment.run(experiment.configure("digits", n_tasks=3, settings=FAST), out)
    before = set(tmp_path.rglob("*"))
    for name in names:
        assert command(out, "--task", name, "--to", "pt2")[0] == 0
    assert set(tmp_path.rglob("*")) - before == {out / f"task-00{index}.pt2" for index in range(3)}


def test_a_task_that_a_run_did_not_plan_is_exported_too(finished, tmp_path):
    """It was learned in Python: no test examples are known of it."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    learner, _ = runs.load_learner(out)
    data = experiment.BENCHMARKS["digits"].tasks(None, 0, 3)[2]
    learner.learn("mine", data.train, data.validation, config=clnp.LearnConfig(**FAST))
    learner.save(out / "model")
    result = runs.export(out, "mine", to="pt2")
    assert result.path.name == "task-002.pt2"
