"""A network with several inputs: a tuple of tensors in place of one, from the user's data to the predictor on disk."""

from __future__ import annotations

import copy
import json
import types

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from typer.testing import CliRunner

import clnp
import clnp.sources
from clnp import cli, describe, experiment, training
from clnp.benchmarks import BENCHMARKS
from clnp.data.task import Task
from clnp.errors import DataError
from clnp.inputs import Form, cut, forms, join, length, parts, take, to_device
from clnp.methods import METHODS
from clnp.models import MODELS
from clnp.seeds import generator
from clnp.sources import StreamExamples, TensorExamples, check, examples, in_memory, open_data

CORE_READY = True
needs_core = pytest.mark.skipif(not CORE_READY, reason="the core does not yet capture networks with several inputs")

CPU = torch.device("cpu")
N = 240
FORMS = (Form((6,), torch.float32), Form((2,), torch.int64))
SETTINGS = {"epochs": 20, "finetune_epochs": 2, "batch_size": 32, "margin": 0.02, "pool": 0.4, "lr": 0.02}


class Two(nn.Module):
    """Numbers (B, 6) and words (B, 2) of a vocabulary of 5."""

    def __init__(self):
        super().__init__()
        self.numbers, self.norm, self.words = nn.Linear(6, 32), nn.BatchNorm1d(32), nn.Linear(2, 24)
        self.both = nn.Linear(56, 40)

    def forward(self, numbers, words):
        left = torch.relu(self.norm(self.numbers(numbers)))
        return torch.relu(self.both(torch.cat([left, self.words(words.float())], 1)))


def whole(kind, width, n_classes):
    """Return networks of a kind that have a head of their own, "head"."""

    class Whole(kind):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(width, n_classes)

        def forward(self, *inputs):
            return self.head(super().forward(*inputs))

    return Whole


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Two()


def task(number, n=N):
    """A label that neither input tells alone: whether a number is positive, and whether a word is small."""
    draw = torch.Generator().manual_seed(number)
    numbers, words = torch.randn(n, 6, generator=draw), torch.randint(0, 5, (n, 2), generator=draw)
    return (numbers, words), (numbers[:, number % 6] > 0).long() + 2 * (words[:, number % 2] < 2).long()


X, Y = task(0, 20)


def same(one, two):
    return len(parts(one)) == len(parts(two)) and all(torch.equal(a, b) for a, b in zip(parts(one), parts(two), strict=True))


class Items(Dataset):
    def __init__(self, x=X, y=Y, **settings):
        self.x, self.y = x, y
        vars(self).update(settings)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, place):
        return tuple(part[place] for part in self.x), int(self.y[place])


class Batches:
    def __init__(self, *batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


# ---- helpers


def test_the_helpers_do_the_same_to_every_input():
    places = torch.tensor([3, 0, 3])
    assert same(take(X, places), (X[0][places], X[1][places]))
    assert same(cut(X, 2, 5), (X[0][2:5], X[1][2:5]))
    assert same(join([cut(X, 0, 7), cut(X, 7, 20)]), X)
    assert length(X) == 20
    assert forms(X) == FORMS
    assert {part.device.type for part in parts(to_device(X, "meta"))} == {"meta"}
    with pytest.raises(ValueError, match="zip"):
        join([X, X[:1]])


def test_the_helpers_leave_a_single_tensor_a_tensor():
    x, places = X[0], torch.tensor([3, 0, 3])
    for found, expected in ((take(x, places), x[places]), (cut(x, 2, 5), x[2:5]), (join([x[:7], x[7:]]), x), (to_device(x, "cpu"), x)):
        assert isinstance(found, torch.Tensor)
        assert torch.equal(found, expected)
    assert parts(x)[0] is x
    assert length(x) == 20
    assert forms(x) == FORMS[:1]


# ---- the user's data


def opened(train, validation=(X, Y), expected=FORMS):
    return open_data("a", train, validation, None, clnp.LearnConfig(batch_size=4), expected, generator(0))


def rows(x, y):
    return sorted((tuple(a.tolist()), tuple(b.tolist()), int(c)) for a, b, c in zip(*x, y, strict=True))


SOURCES = {
    "tuple": lambda: (X, Y),
    "list of a tuple and labels": lambda: [X, Y.int()],
    "Dataset": Items,
    "Dataset in memory": lambda: Items(deterministic=True),
    "DataLoader": lambda: DataLoader(Items(), batch_size=3, shuffle=True),
    "iterable": lambda: Batches((cut(X, 0, 11), Y[:11], 7), [list(cut(X, 11, 20)), Y[11:]]),
}


@pytest.mark.parametrize("form", SOURCES)
def test_every_form_gives_all_inputs_of_all_examples(form):
    data = opened(SOURCES[form](), SOURCES[form]())
    assert isinstance(data.train, TensorExamples) == ("tuple" in form or "memory" in form)
    found = [(x, y) for _, x, y in data.train.batches(5, generator(1))]
    assert all(isinstance(x, tuple) for x, _ in found), "a list would be another argument to a network than its inputs"
    train = join([x for x, _ in found]), torch.cat([y for _, y in found])
    for x, y in (train, (data.validation.x, data.validation.y), (data.sample.x, data.sample.y)):
        assert rows(x, y) == rows(X, Y)
        assert y.dtype == torch.int64


def test_batches_and_first_examples_keep_inputs_together():
    data = TensorExamples(X, Y)
    assert same(data.first(6).x, cut(X, 0, 6))
    for places, x, y in data.batches(6, generator(3)):
        assert same(x, take(X, places))
        assert torch.equal(y, Y[places])
        assert len(y) == 6


def test_the_sample_is_of_the_same_examples_in_every_input(monkeypatch):
    monkeypatch.setattr(clnp.sources, "SAMPLE", 6)
    for train in ((X, Y), DataLoader(Items(), batch_size=3, shuffle=True)):
        sample = opened(train).sample
        assert len(sample) == length(sample.x) == 6
        assert set(rows(sample.x, sample.y)) < set(rows(X, Y))


def test_two_plain_tensors_stay_inputs_and_labels():
    data = opened((X[0], Y), (X[0], Y), FORMS[:1])
    assert data.train.x is X[0]
    assert data.train.y is Y or torch.equal(data.train.y, Y)


A, B = X
REFUSED = {
    "one input for two": ((A, Y), r"expected 2 inputs as in the example input, found 1\. Pass a tuple of 2 tensors\."),
    "one input for two, in a TensorDataset": (TensorDataset(A, B, Y), "expected 2 inputs as in the example input, found 1"),
    "one input for two, in a loader": (
        DataLoader(TensorDataset(A, A, Y), batch_size=3),
        "expected 2 inputs as in the example input, found 1",
    ),
    "three": (((A, B, B), Y), "expected 2 inputs as in the example input, found 3"),
    "three, in a loader": (Batches(((A, B, B), Y)), "expected 2 inputs as in the example input, found 3"),
    "not nested": ((A, B, Y), r"found tuple \(Tensor, Tensor, Tensor\)\. It holds 3 tensors: write several inputs as \(\(a, b\), y\)\."),
    "a list": (([A, B], Y), r"expected a tensor, or a tuple of tensors for several inputs, found a list\. Make it a tuple"),
    "another length": (
        ((A, B[:19]), Y),
        r"expected as many examples in each input, found 20 and 19\. Give every example all of its inputs\.",
    ),
    "another length, in a loader": (Batches(((A[:3], B), Y)), "expected as many examples in each input, found 3 and 20"),
    "no tensor": (((A, B.numpy()), Y), r"expected a tensor as input 2 of 2, found ndarray\. Convert it with torch.as_tensor"),
    "no batch dimension": (((A, torch.tensor(1)), Y), r"expected a batch dimension, found input 2 of 2 of shape \(\)"),
    "another shape of the first": (((A[:, :5], B), Y), r"shape \(6,\) as in the example input, found \(5,\) in input 1 of 2\."),
    "another shape of the second": (((A, B[:, :1]), Y), r"shape \(2,\) as in the example input, found \(1,\) in input 2 of 2\."),
    "swapped": (((B, A), Y), r"shape \(6,\) as in the example input, found \(2,\) in input 1 of 2\."),
    "another dtype": (
        ((A, B.int()), Y),
        r"expected torch.int64 as in the example input, found torch.int32 in input 2 of 2\. Convert input 2 of 2\.",
    ),
    "NaN": (((A.masked_fill(A > 1.5, float("nan")), B), Y), r"\d+ of 20 examples hold NaN or infinite values in input 1 of 2\. Clean or"),
    "labels": (((A, B), Y[:5]), r"expected one label for each of 20 examples, found labels of shape \(5,\)"),
    "labels that are no integers": (((A, B), Y.float()), "expected integer labels"),
    "empty": (((A[:0], B[:0]), Y[:0]), "it is empty"),
    "no inputs": (((), Y), "expected .x, y. tensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_inputs_that_do_not_fit_are_refused_by_number(case):
    train, message = REFUSED[case]
    for pair, what in (((train, (X, Y)), "training"), (((X, Y), train), "validation")):
        with pytest.raises(DataError, match=message) as caught:
            opened(*pair)
        assert str(caught.value).startswith(f"cannot use the {what} data of task 'a': ")
        assert "\n" not in str(caught.value)


def test_two_inputs_for_a_network_of_one_are_refused():
    for source in ((X, Y), Batches((X, Y)), Items()):
        with pytest.raises(DataError, match=r"expected 1 input as in the example input, found 2\. Pass one tensor\."):
            opened(source, expected=FORMS[:1])


def test_batches_of_other_numbers_of_inputs_do_not_fit_together():
    for batches in (((X, Y), (A, Y)), ((A, Y), (X, Y))):
        with pytest.raises(DataError, match="cannot use the data: its batches do not fit together"):
            in_memory(StreamExamples(Batches(*batches)), "data")
    with pytest.raises(DataError, match="expected batches"):
        list(examples(Batches(([1, 2], Y)), "data", clnp.LearnConfig()).batches(0))


def test_the_items_of_a_dataset_that_are_not_nested_are_inputs_that_are_missing():
    class Flat(Items):
        def __getitem__(self, place):
            return A[place], A[place], int(Y[place])

    for pair in ((Flat(), (X, Y)), ((X, Y), Flat())):
        with pytest.raises(DataError, match="expected 2 inputs as in the example input, found 1"):
            opened(*pair)


def test_values_that_are_not_finite_are_found_in_every_input():
    with pytest.raises(DataError, match=r"cannot use the data: 20 of 20 examples hold NaN or infinite values in input 2 of 2\."):
        check(TensorExamples((A, A / 0), Y), "data", FORMS[:1] * 2)


def test_every_input_of_every_batch_of_a_stream_is_checked_in_training():
    data = StreamExamples(Batches((X, Y), ((A, B.int()), Y)), "data", 2, FORMS)
    with pytest.raises(DataError, match=r"found torch.int32 in input 2 of 2"):
        list(data.batches(0))
    check(data, "data", FORMS)


# ---- training loops, with a network that says what it is given


class Echo(nn.Module):
    """Answers with the sum of the first input, whatever the second: both must be there."""

    claimed, meets = True, ("a",)

    def __init__(self):
        super().__init__()
        self.head_bias = nn.Parameter(torch.zeros(4))
        self.norms = [types.SimpleNamespace()]
        self.seen = []

    def claimed_values(self, x):
        numbers, words = x
        return (numbers * 2, words.float())

    def forward(self, x, meets=None):
        numbers, words = x
        self.seen.append((x, meets))
        return nn.functional.one_hot(((numbers[:, 0] > 0).long() + 2 * (words[:, 0] < 2).long()), 4).float()


def test_kept_values_are_those_of_all_examples(monkeypatch):
    monkeypatch.setattr(training, "EVALUATION_BATCH", 6)
    kept = training.kept_values(Echo(), TensorExamples(X, Y), 100, CPU)
    assert same(kept, (A * 2, B.float()))
    assert training.kept_values(Echo(), TensorExamples(X, Y), 0, CPU) is None
    for x, y, meets in training.batches(TensorExamples(X, Y), kept, 7, CPU, generator(0)):
        assert torch.equal(meets[0], x[0] * 2)
        assert torch.equal(meets[1], x[1].float())
        assert len(y) == 7


def test_correct_answers_are_counted_on_all_inputs():
    (numbers, words), y = task(0)
    expected = int((y == (numbers[:, 0] > 0).long() + 2 * (words[:, 0] < 2).long()).sum())
    assert training.n_correct(Echo(), TensorExamples((numbers, words), y)) == expected == N
    assert training.n_correct(Echo(), TensorExamples((-numbers, words), y)) == 0


def test_norms_are_estimated_on_all_inputs(monkeypatch):
    monkeypatch.setattr(training, "ESTIMATE_BATCH", 6)
    echo = Echo()
    training.estimate_norms_(echo, TensorExamples(X, Y), (A,))
    assert same(join([x for x, _ in echo.seen]), cut(X, 0, 18))
    assert same(torch.cat([meets[0] for _, meets in echo.seen]), A[:18])


# ---- experiments


def tasks():
    return [Task(f"t{number}", 4, tuple("abcd"), lambda split, number=number: task(number + (split == "test")), {}) for number in range(2)]


def test_an_experiment_tests_on_all_inputs_in_batches_of_one_size(monkeypatch):
    monkeypatch.setattr(training, "EVALUATION_BATCH", 100)
    sizes = []

    def predict(x, name):
        assert name == "t0"
        sizes.append([len(part) for part in x])
        return Echo()(x)

    (numbers, words), y = tasks()[0].test
    expected = float((Echo()((numbers, words)).argmax(1) == y).float().mean())
    assert experiment.accuracy(types.SimpleNamespace(predict=predict), tasks()[0]) == pytest.approx(expected)
    assert sizes == [[100, 100], [100, 100], [40, 40]]


def test_the_builder_of_a_network_is_given_the_shape_of_every_input(monkeypatch):
    shapes = []

    def build(*given):
        shapes.append(given)
        return network()

    monkeypatch.setitem(MODELS, "two", build)
    monkeypatch.setitem(BENCHMARKS, "pairs", types.SimpleNamespace(model="two", shapes=((6,), (2,))))
    experiment.build_trunk(types.SimpleNamespace(seed=0, model="two"), X)
    found = CliRunner().invoke(cli.app, ["inspect", "pairs"])
    assert shapes == [((6,), (2,))] * 2
    assert found.exit_code == 0
    assert "two, for examples of shape (6,), (2,)" in found.output
    assert "numbers: 32 units" in found.output


@pytest.mark.parametrize("name", ["finetune", "single", pytest.param("clnp", marks=needs_core)])
def test_every_method_learns_with_two_inputs(name, tmp_path):
    first = tasks()[0]
    make = lambda: METHODS[name](network, cut(first.train[0], 0, 2), clnp.LearnConfig(**SETTINGS), 0)  # noqa: E731
    method = make()
    method.learn(first.name, first.train, first.train, 4, lambda _: None)
    assert float((method.predict(first.train[0], "t0").argmax(1) == first.train[1]).float().mean()) > 0.7
    method.save(tmp_path)
    loaded = make()
    loaded.load(tmp_path)
    assert torch.equal(loaded.predict(first.train[0], "t0"), method.predict(first.train[0], "t0"))


# ---- on disk


def description(entries):
    return describe.Description(graph="0", groups={"fc": 2}, inputs=entries, seed=0, head=None)


def test_a_description_tells_every_input():
    found = describe.Description.model_validate_json(description(describe.input_entries(FORMS)).content())
    assert same(found.example(), (torch.zeros(2, 6), torch.zeros(2, 2, dtype=torch.int64)))
    assert forms(found.example()) == FORMS
    one = description(describe.input_entries((Form((2,), torch.float32),)))
    assert torch.equal(one.example(), torch.zeros(2, 2)), "one input is a tensor, not a tuple"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float99"}, "no such dtype: 'float99'"),
        ({"dtype": "save"}, "no such dtype: 'save'"),
        ({"shape": [2**40]}, "none that a network reads"),
        ({"shape": [-1]}, "none that a network reads"),
        ({"shape": [1] * 17}, "at most 16"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_an_input_that_cannot_be_is_refused(change, message):
    raw = json.loads(description(describe.input_entries(FORMS)).content())
    raw["inputs"][1] |= change
    with pytest.raises(ValueError, match=message):
        describe.Description.model_validate_json(json.dumps(raw))


# ---- end to end


def learn(learner, number, source=lambda x, y: (x, y), **settings):
    x, y = task(number)
    train, held_out = (cut(x, 0, 180), y[:180]), (cut(x, 180, N), y[180:])
    return learner.learn(f"t{number}", source(*train), held_out, n_classes=4, config=clnp.LearnConfig(**{**SETTINGS, **settings}))


@pytest.fixture(scope="module")
def learner():
    made = clnp.Learner(network(), cut(X, 0, 2))
    learn(made, 0)
    return made


@needs_core
def test_tasks_of_two_inputs_are_learned_kept_and_stored(learner, tmp_path):
    learner = copy.deepcopy(learner)
    before = {}
    for number, source in ((1, Items), (2, lambda x, y: DataLoader(Items(x, y), batch_size=30, shuffle=True))):
        before |= {name: learner.predict(task(9)[0], task=name) for name in learner.tasks}
        result = learn(learner, number, source)
        assert result.accuracy > 0.7, "four classes: neither input alone tells more than half"
        for name, logits in before.items():
            assert torch.equal(learner.predict(task(9)[0], task=name), logits)
    learner.save(tmp_path)
    loaded = clnp.Learner.load(tmp_path, network(7))
    for name in learner.tasks:
        assert torch.equal(loaded.predict(task(9)[0], task=name), learner.predict(task(9)[0], task=name))
        assert torch.equal(learner.predictor(name)(*task(9)[0]), learner.predict(task(9)[0], task=name)), "one argument for each input"
    with pytest.raises(DataError, match="expected 2 inputs"):
        loaded.predict(A, task="t0")


@needs_core
def test_both_inputs_count(learner):
    numbers, words = task(9)[0]
    logits = learner.predict((numbers, words), task="t0")
    assert not torch.allclose(learner.predict((numbers.flip(0), words), task="t0"), logits)
    assert not torch.allclose(learner.predict((numbers, words.flip(0)), task="t0"), logits)


@needs_core
def test_values_that_are_not_kept_are_computed_from_all_inputs(learner):
    learner = copy.deepcopy(learner)
    before = learner.predict(task(9)[0], task="t0")
    assert learn(learner, 1, memory_limit=0).accuracy > 0.7
    assert torch.equal(learner.predict(task(9)[0], task="t0"), before)


@needs_core
def test_a_whole_network_of_two_inputs_is_adopted():
    kind = whole(Two, 40, 4)
    torch.manual_seed(4)
    model = kind().eval()
    x, _ = task(0)
    y = model(*x).argmax(1)
    learner = clnp.Learner(model, cut(x, 0, 2), head="head")
    learner.adopt("base", (x, y), (x, y), config=clnp.LearnConfig(margin=0.0))
    assert torch.equal(learner.predict(x, task="base").argmax(1), y)


@needs_core
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (A, r"expected 2 inputs as in the example input, found 1\. Pass a tuple of 2 tensors\."),
        ((A, B, B), "expected 2 inputs as in the example input, found 3"),
        ((), "expected 2 inputs as in the example input, found 0"),
        ([A, B], r"a tuple of tensors for several inputs, found a list\. Make it a tuple: tuple\(x\)\."),
        ((A, B[:3]), "expected as many examples in each input, found 20 and 3"),
        ((A, B.numpy()), "expected a tensor as input 2 of 2, found ndarray"),
        ((A[:, :1], B), r"of shape \(6,\) and torch.float32, found \(1,\) and torch.float32 in input 1 of 2\."),
        ((A, B.int()), r"of shape \(2,\) and torch.int64, found \(2,\) and torch.int32 in input 2 of 2\."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_predicted_is_refused(learner, x, message):
    with pytest.raises(DataError, match=message) as caught:
        learner.predict(x, task="t0")
    assert str(caught.value).startswith("cannot predict task 't0': ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ([A, B], "found a list. Make it a tuple"),
        ((A, B[:3]), "expected as many examples in each input, found 20 and 3"),
        ((A, None), "expected a tensor as input 2 of 2, found NoneType"),
        ((), "expected at least 1 input, found 0"),
    ],
    ids=["list", "lengths", "None", "empty"],
)
def test_an_example_input_of_another_form_is_refused(example, message):
    with pytest.raises(DataError, match=message) as caught:
        clnp.Learner(network(), example)
    assert str(caught.value).startswith("cannot use the example input: ")


def test_a_tuple_of_one_is_one_input():
    learners = [clnp.Learner(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), example) for example in (A, (A,))]
    learners[1]._state = copy.deepcopy(learners[0]._state)
    for learner, x in zip(learners, (A, (A,)), strict=True):
        learner.learn("a", (x, Y), (x, Y), config=clnp.LearnConfig(epochs=1, rounds=1, finetune_epochs=0))
    assert torch.equal(learners[0].predict(A, task="a"), learners[1].predict((A,), task="a"))
    assert torch.equal(learners[0].predict((A,), task="a"), learners[1].predict(A, task="a"))


# ---- networks that do not read what is made up


class Masked(nn.Module):
    """Words (B, T) of a vocabulary of 9, and which of them are there: with none it fails, as transformers do."""

    def __init__(self):
        super().__init__()
        self.words, self.deep = nn.Embedding(9, 12), nn.Linear(12, 12)

    def forward(self, words, there):
        there = there.unsqueeze(2).float()
        mean = (self.words(words) * there).sum(1) / there.sum(1)
        return torch.relu(self.deep(mean))


class Counted(nn.Module):
    """Numbers (B, T, 4), and how many of them there are, at least one: the last of them counts."""

    def __init__(self):
        super().__init__()
        self.read, self.deep = nn.Linear(4, 12), nn.Linear(12, 12)

    def forward(self, numbers, n):
        last = torch.nn.functional.one_hot(n - 1, 6).unsqueeze(2).to(numbers.dtype)
        return torch.relu(self.deep((torch.relu(self.read(numbers)) * last).sum(1)))


class Placed(Counted):
    """Numbers of any length, and how many there are, which is looked up: 0 is no place."""

    def __init__(self):
        super().__init__()
        self.place = nn.Embedding(7, 12)

    def forward(self, numbers, n):
        return torch.relu(self.deep(torch.relu(self.read(numbers)).mean(1) + self.place(n - 1)))


class Strict(Masked):
    """Checks what it is given, which a capture does not see."""

    def forward(self, words, there):
        if not torch.compiler.is_exporting() and not bool(there.any(1).all()):
            raise RuntimeError("a text without words")
        return super().forward(words, there)


def masked(n=N, length=6):
    draw = torch.Generator().manual_seed(0)
    words, there = torch.randint(0, 9, (n, length), generator=draw), torch.rand(n, length, generator=draw) < 0.7
    there[:, 0] = True
    return (words, there), (words[:, 0] > 4).long()


def counted(n=N):
    draw = torch.Generator().manual_seed(0)
    numbers, many = torch.randn(n, 6, 4, generator=draw), torch.randint(1, 7, (n,), generator=draw)
    return (numbers, many), (many > 3).long()


@pytest.mark.parametrize(("kind", "data"), [(Masked, masked), (Strict, masked), (Counted, counted), (Placed, counted)])
def test_a_network_that_cannot_read_zeros_is_loaded_and_verified(kind, data, tmp_path):
    x, y = data()
    learner = clnp.Learner(kind(), cut(x, 0, 2))
    learner.learn("a", (x, y), (x, y), config=clnp.LearnConfig(epochs=1, finetune_epochs=0))
    learner.save(tmp_path / "model")
    loaded = clnp.Learner.load(tmp_path / "model", kind())
    assert torch.equal(loaded.predict(x, task="a"), learner.predict(x, task="a"))
    assert loaded._forms == learner._forms  # the same lengths can be read
    assert [one.comparison.is_good for one in clnp.verify(tmp_path / "model", kind()).tasks] == [True]
    wider = clnp.widen(loaded, {"deep": 4})
    assert torch.equal(wider.predict(x, task="a"), learner.predict(x, task="a"))


def test_a_whole_network_that_cannot_read_zeros_is_loaded(tmp_path):
    kind = whole(Strict, 12, 2)
    x, y = masked()
    learner = clnp.Learner(kind(), cut(x, 0, 2), head="head")
    learner.learn("a", (x, y), (x, y), config=clnp.LearnConfig(epochs=1, finetune_epochs=0))
    learner.save(tmp_path / "model")
    assert torch.equal(clnp.Learner.load(tmp_path / "model", kind()).predict(x, task="a"), learner.predict(x, task="a"))


def test_inputs_that_share_a_length_may_have_another_one_together():
    (words, there), y = masked()
    learner = clnp.Learner(Masked(), (words[:2], there[:2]))
    assert learner._forms == (Form((6,), torch.int64, (1,)), Form((6,), torch.bool, (1,)))
    learner.learn("a", ((words, there), y), ((words, there), y), config=clnp.LearnConfig(epochs=1, finetune_epochs=0))
    longer = torch.cat([words, words], 1), torch.cat([there, torch.zeros_like(there)], 1)
    torch.testing.assert_close(learner.predict(longer, task="a"), learner.predict((words, there), task="a"))
    message = (
        r"cannot predict task 'a': expected one length in input 1 of 2 and input 2 of 2, which share it, found 12 and 6. Pad them alike"
    )
    with pytest.raises(DataError, match=message):
        learner.predict((longer[0], there), task="a")
    with pytest.raises(DataError, match="cannot use the training data of task 'b': expected one length"):
        learner.learn("b", ((longer[0], there), y), ((words, there), y))


def test_inputs_have_as_many_examples_although_the_code_does_not_say_so():
    class Picked(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.deep = nn.Linear(4, 12), nn.Linear(12, 12)

        def forward(self, numbers, n):
            h = torch.relu(self.read(numbers)).gather(1, (n - 1).view(-1, 1, 1).expand(-1, 1, 12))
            return torch.relu(self.deep(h.squeeze(1)))

    (numbers, many), y = counted()
    learner = clnp.Learner(Picked(), (numbers[:2], many[:2]))
    learner.learn("a", ((numbers, many), y), ((numbers, many), y), config=clnp.LearnConfig(epochs=1, finetune_epochs=0))
    torch.testing.assert_close(learner.predict((numbers[:7], many[:7]), task="a"), learner.predict((numbers, many), task="a")[:7])


def test_lengths_that_inputs_do_not_share_are_free_each_alone():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(4, 8), nn.Linear(4, 8)

        def forward(self, left, right):
            return torch.relu(self.left(left).mean(1) + self.right(right).mean(1))

    learner = clnp.Learner(Both(), (torch.zeros(2, 5, 4), torch.zeros(2, 7, 4)))
    assert [form.free for form in learner._forms] == [(1, 0), (2, 0)]
