"""The user's data in one form, and refused before training when it is not what a task needs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import clnp
import clnp.sources
from clnp.config import LearnConfig
from clnp.errors import DataError
from clnp.inputs import Form
from clnp.seeds import generator
from clnp.sources import StreamExamples, TensorExamples, check_labels, in_memory, open_data

X = torch.arange(40.0).reshape(20, 2)
Y = torch.arange(20) % 2


class Pictures(Dataset):
    """A user's Dataset: tensors and plain integers; counts how often it is read."""

    def __init__(self, n=20, *, deterministic=None):
        self.n, self.n_reads = n, 0
        if deterministic is not None:
            self.deterministic = deterministic

    def __len__(self):
        return self.n

    def __getitem__(self, place):
        if place >= self.n:
            raise IndexError
        self.n_reads += 1
        return X[place], int(Y[place])


class Batches:
    """A user's iterable: gives the same batches each time it is iterated."""

    def __init__(self, *batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class One(IterableDataset):
    """A stream of single examples, not of batches."""

    def __iter__(self):
        return iter(zip(X, Y, strict=True))


def opened(train, validation=(X, Y), n_classes=None, shape=(2,), dtype=torch.float32, seed=0):
    return open_data("a", train, validation, n_classes, LearnConfig(batch_size=4), (Form(shape, dtype),), generator(seed))


FORMS = {
    "tensors": lambda: (X, Y),
    "list of tensors": lambda: [X, Y],
    "TensorDataset": lambda: TensorDataset(X, Y),
    "TensorDataset with t": lambda: TensorDataset(X, Y, Y + 7),
    "Dataset": Pictures,
    "Dataset in memory": lambda: Pictures(deterministic=True),
    "DataLoader": lambda: DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True),
    "DataLoader with t": lambda: DataLoader(TensorDataset(X, Y, Y + 7), batch_size=3),
    "iterable": lambda: Batches((X[:11], Y[:11]), [X[11:], Y[11:].int()]),
}
IN_MEMORY = {"tensors", "list of tensors", "TensorDataset", "TensorDataset with t", "Dataset in memory"}


def pairs(x, y):
    return sorted((tuple(a.tolist()), int(b)) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_all_examples_in_training_validation_and_sample(form):
    data = opened(FORMS[form](), FORMS[form]())
    assert isinstance(data.train, TensorExamples) == (form in IN_MEMORY)
    assert isinstance(data.validation, TensorExamples)
    found = [(x, y) for _, x, y in data.train.batches(5)]
    for x, y in ((torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])), (data.validation.x, data.validation.y)):
        assert pairs(x, y) == pairs(X, Y)
        assert y.dtype == torch.int64
    assert pairs(data.sample.x, data.sample.y) == pairs(X, Y)
    assert data.sample.y.dtype == torch.int64
    assert data.n_classes == 2


@pytest.mark.parametrize("what", ["train", "validation"])
def test_no_example_is_lost_where_the_batch_size_does_not_divide(what):
    """A Dataset of 20 examples in batches of 6."""
    config = LearnConfig(batch_size=6)
    pictures = Pictures(deterministic=True)
    train, validation = (pictures, (X, Y)) if what == "train" else ((X, Y), Pictures())
    data = open_data("a", train, validation, None, config, (Form((2,), torch.float32),), generator(0))
    part = getattr(data, what)
    assert pairs(part.x, part.y) == pairs(X, Y)


def test_training_batches_of_a_dataset_have_one_size_and_another_tail_every_epoch():
    data = open_data("a", Pictures(), (X, Y), None, LearnConfig(batch_size=6), (Form((2,), torch.float32),), generator(0))
    seen = set()
    for epoch in range(6):
        found = list(data.train.batches(0, generator(epoch)))
        assert [len(y) for *_, y in found] == [6, 6, 6], "batch norm stumbles over a batch of one"
        seen |= {float(x) for _, part, _ in found for x in part[:, 0]}
    assert len(seen) == 20


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_labels_of_any_integer_kind_become_int64(dtype):
    data = opened((X, Y.to(dtype)), (X, Y.to(dtype)))
    assert {part.y.dtype for part in (data.train, data.validation, data.sample)} == {torch.int64}


@settings(deadline=None, max_examples=80, derandomize=True)
@given(n=st.integers(1, 30), batch_size=st.integers(1, 35), seed=st.integers(0, 5))
def test_batches_are_a_pure_function_of_the_generator(n, batch_size, seed):
    data = TensorExamples(torch.arange(float(n)), torch.arange(n))
    plain = list(data.batches(batch_size))
    assert torch.equal(torch.cat([y for *_, y in plain]), data.y), "without a generator: all, in order"
    shuffled = list(data.batches(batch_size, generator(seed)))
    torch.manual_seed(seed)
    again = list(data.batches(batch_size, generator(seed)))
    assert all(torch.equal(a, b) for one, two in zip(shuffled, again, strict=True) for a, b in zip(one, two, strict=True))
    places = torch.cat([p for p, *_ in shuffled])
    assert len(torch.unique(places)) == len(places) == (n if n < batch_size else n - n % batch_size)
    for p, x, y in (*plain, *shuffled):
        assert torch.equal(x, data.x[p])
        assert torch.equal(y, data.y[p])
    if n >= batch_size:
        assert {len(y) for *_, y in shuffled} == {batch_size}, "no smaller last batch: batch norm would stumble over it"


def test_other_generators_give_other_orders():
    data = TensorExamples(torch.arange(100.0), torch.arange(100))
    one, two = (torch.cat([y for *_, y in data.batches(10, generator(0, epoch))]) for epoch in (0, 1))
    assert not torch.equal(one, two)


def test_a_dataset_that_may_augment_is_read_anew_every_epoch_and_a_deterministic_one_once():
    plain, kept = Pictures(), Pictures(deterministic=True)
    for dataset in (plain, kept):
        data = opened(dataset)
        dataset.n_reads = 0
        for _ in range(3):
            list(data.train.batches(4, generator(1)))
    assert (plain.n_reads, kept.n_reads) == (60, 0)
    assert isinstance(opened(Pictures(deterministic=False)).train, StreamExamples)


def test_validation_data_are_read_once():
    dataset = Pictures()
    data = opened((X, Y), dataset)
    assert dataset.n_reads == 20
    list(data.validation.batches(4))
    assert dataset.n_reads == 20


def test_a_dataset_is_shuffled_by_the_generator_alone():
    data = opened(Pictures())
    orders = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(orders))
        orders.append(torch.cat([x for _, x, _ in data.train.batches(4, generator(seed))]))
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_the_sample_is_a_random_part_chosen_by_the_seed(monkeypatch):
    monkeypatch.setattr(clnp.sources, "SAMPLE", 6)
    one, two, three = (opened((X, Y), seed=seed).sample for seed in (0, 0, 1))
    assert torch.equal(one.x, two.x)
    assert not torch.equal(one.x, three.x)
    assert len(one) == len(one.x) == 6
    assert set(pairs(one.x, one.y)) < set(pairs(X, Y))
    stream = opened(Batches((X[:4], Y[:4]), (X[4:8], Y[4:8]), (X[8:], Y[8:]))).sample
    assert len(stream) == 8, "of a stream, whole batches until there are enough"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ((X, Y[:5]), r"one label for each of 20 examples, found labels of shape \(5,\)"),
        ((X, Y[:, None]), r"found labels of shape \(20, 1\)"),
        ((X, Y.float()), r"expected integer labels, found torch.float32. Convert y with .long\(\)"),
        ((X, Y.bool()), "expected integer labels, found torch.bool"),
        ((X[:, :1], Y), r"expected examples of shape \(2,\) as in the example input, found \(1,\)"),
        ((X.double(), Y), "expected torch.float32 as in the example input, found torch.float64. Convert x"),
        ((X.masked_fill(X > 35, float("nan")), Y), "2 of 20 examples hold NaN or infinite values. Clean or drop them"),
        ((X.masked_fill(X == 0, -float("inf")), Y), "1 of 20 examples hold NaN"),
        ((X[:0], Y[:0]), "it is empty"),
        (TensorDataset(X[:0], Y[:0]), "it is empty"),
        (Pictures(0), "it is empty"),
        (DataLoader(TensorDataset(X[:, :1], Y), batch_size=3), r"found \(1,\)"),
        (DataLoader(TensorDataset(X / 0, Y), batch_size=3), "20 of 20 examples hold NaN"),
        (X, "found Tensor"),
        (None, "found NoneType"),
        ((X.numpy(), Y.numpy()), r"found tuple \(ndarray, ndarray\). Convert both with torch.as_tensor"),
        ((X, Y.tolist()), r"found tuple \(Tensor, list\). Convert both with torch.as_tensor"),
        ((X, ["a", "b"] * 10), r"Number the classes from 0: y = torch.as_tensor\(\[names.index"),
        ({"x": X, "y": Y}, r"found dict. Give a DataLoader a collate_fn that returns \(\(a, b\), y\)"),
        ([X, X, Y], r"found list \(Tensor, Tensor, Tensor\). It holds 3 tensors: write several inputs as \(\(a, b\), y\)"),
        ([], "found list"),
        ("train.csv", "expected .x, y. of tensors|found str"),
        (iter([(X, Y)]), "An iterator can be read only once; pass what it iterates over"),
        (((X, Y) for _ in range(2)), "An iterator can be read only once"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_a_task_cannot_use_is_refused(train, message):
    with pytest.raises(DataError, match=message) as caught:
        opened(train)
    if "batch" not in str(caught.value):
        assert "training data of task 'a'" in str(caught.value)
    if not isinstance(train, type(iter([]))):
        with pytest.raises(DataError, match=message) as caught:
            opened((X, Y), train)
        if "batch" not in str(caught.value):
            assert "validation data of task 'a'" in str(caught.value)


@pytest.mark.parametrize("batch", [X, (X,), {"x": X, "y": Y}, (X.numpy(), Y.numpy()), (X, Y.tolist())], ids=str)
def test_batches_of_another_form_are_refused(batch):
    with pytest.raises(DataError, match=rf"expected batches \(x, y\) or \(x, y, t\) of tensors, found {type(batch).__name__}"):
        opened(Batches(batch))


class Odd(Dataset):
    """Examples that torch cannot put into one batch."""

    def __init__(self, *examples):
        self.examples = examples

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return self.examples[index % len(self.examples)]


@pytest.mark.parametrize(
    ("examples", "said"), [([(X[0], 0), (X[0, :1], 1)], "equal size"), ([(X[0], None)], "NoneType")], ids=["ragged", "no label"]
)
def test_examples_that_cannot_be_side_by_side_are_refused(examples, said):
    with pytest.raises(
        DataError,
        match=rf"cannot use the training data of task 'a': its examples cannot be put side by side in a batch: .*{said}.*collate_fn",
    ):
        opened(Odd(*examples), (X, Y))


def test_a_loader_that_gives_nothing_is_refused():
    for train in (Batches(), DataLoader(TensorDataset(X[:0], Y[:0]))):
        with pytest.raises(DataError, match=r"gave no batch\. Pass an iterable that can be iterated once per epoch"):
            opened(train)


def test_batches_that_do_not_fit_together_are_refused():
    with pytest.raises(DataError, match="cannot use the validation data of task 'a': its batches do not fit together"):
        opened((X, Y), Batches((X, Y), (X[:, :1], Y)))
    with pytest.raises(DataError, match="the data"):
        in_memory(StreamExamples(Batches((X, Y), (X[:, :1], Y))), "data")


@pytest.mark.parametrize(("low", "high", "found"), [(-1, 1, "-1"), (0, 3, "3"), (-5, 9, "-5")])
def test_labels_out_of_range_are_refused(low, high, found):
    y = Y.clone()
    y[3], y[4] = low, high
    with pytest.raises(DataError, match=f"cannot use the d: expected labels 0 to 2, found {found}. Renumber them"):
        check_labels(y, 3, "d")
    for train, validation, what in (((X, y), (X, Y), "training"), ((X, Y), (X, y), "validation"), (Batches((X, y)), (X, Y), "training")):
        with pytest.raises(DataError, match=f"{what} data of task 'a': expected labels 0 to 2, found {found}"):
            opened(train, validation, n_classes=3)
    check_labels(torch.tensor([0, 2]), 3, "d")


def test_the_number_of_classes_is_taken_from_all_labels():
    assert opened((X, Y)).n_classes == 2
    assert opened((X, Y), (X, Y + 3)).n_classes == 5
    assert opened((X, Y), n_classes=7).n_classes == 7
    assert opened(Batches((X, Y * 4))).n_classes == 5
    with pytest.raises(DataError, match="cannot learn task 'a': a classifier needs at least two classes, found 1"):
        opened((X, Y * 0), (X, Y * 0))
    with pytest.raises(DataError, match="found 1"):
        opened((X, Y), n_classes=1)


def test_a_single_class_is_refused_whatever_its_number():
    for y in (Y * 0, Y * 0 + 1):
        with pytest.raises(DataError, match="cannot learn task 'a': its training data hold a single class"):
            opened((X, y), n_classes=2)


def test_validation_data_may_hold_a_single_class():
    assert opened((X, Y), (X[:1], Y[:1])).n_classes == 2


# ---- what was once broken


def test_a_stream_of_a_single_class_is_refused():
    with pytest.raises(DataError, match="training data hold a single class"):
        opened(Batches((X, Y * 0)), n_classes=2)


def test_validation_data_of_a_single_class_serve_a_stream_too():
    assert opened(Batches((X, Y)), (X[:1], Y[:1]), n_classes=2).n_classes == 2


@pytest.mark.parametrize("y", [Y + 0.7, Y.bool()])
def test_labels_of_a_stream_must_be_integers_too(y):
    with pytest.raises(DataError, match="expected integer labels"):
        opened(Batches((X, y)))


def test_a_tensor_dataset_without_labels_is_refused():
    with pytest.raises(DataError):
        opened(TensorDataset(X))


def test_tensors_without_a_batch_dimension_are_refused():
    with pytest.raises(DataError):
        opened((torch.tensor(1.0), torch.tensor(1)))


def test_training_batches_that_do_not_fit_together_are_refused():
    with pytest.raises(DataError):
        opened(Batches((X, Y), (X[:, :1], Y)))


@pytest.mark.parametrize("train", [One(), DataLoader(One(), batch_size=4)], ids=["dataset", "loader"])
def test_a_dataset_that_can_only_be_iterated_is_one_of_examples(train):
    data = opened(train, One())
    assert [len(y) for *_, y in data.train.batches(0)] in ([4] * 5, [20])
    assert torch.equal(data.validation.x, X)
    assert data.train.n_batches == len(list(data.train.batches(0)))  # a DataLoader of it cannot tell, so they were counted


def test_a_list_of_batches_is_an_iterable():
    data = opened([(X[:8], Y[:8]), (X[8:], Y[8:])], [[X, Y]])
    assert [len(y) for *_, y in data.train.batches(0)] == [8, 12]
    assert data.train.n_batches == 2
    assert torch.equal(data.validation.x, X)


def test_the_batches_of_a_loader_without_a_length_are_counted(monkeypatch):
    monkeypatch.setattr(clnp.sources, "SAMPLE", 4)  # the sample does not need them all
    assert opened(Batches((X[:4], Y[:4]), (X[4:8], Y[4:8]), (X[8:], Y[8:]))).train.n_batches == 3
    assert StreamExamples(Batches((X, Y))).n_batches is None


def test_a_loader_without_a_length_is_learned_as_one_with_it():
    class Sized(Batches):
        def __len__(self):
            return len(self.batches)

    draw = torch.Generator().manual_seed(0)
    x = torch.randn(320, 4, generator=draw)
    y = (x.sum(1) > 0).long()
    batches = list(zip(x.split(32), y.split(32), strict=True))
    found = []
    for kind in (Batches, Sized):
        learner = clnp.Learner(nn.Sequential(nn.Linear(4, 24), nn.ReLU()), torch.zeros(1, 4))
        learner.learn("a", kind(*batches), (x, y), config=LearnConfig(epochs=3, finetune_epochs=1))
        found.append(learner.predict(x, task="a"))
    assert torch.equal(*found)


def test_an_empty_loader_is_refused_by_name():
    with pytest.raises(DataError, match="validation data of task 'a'"):
        opened((X, Y), Batches())


def test_the_sample_of_a_shuffled_loader_depends_on_the_seed_alone():
    orders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        orders.append(opened(DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)).sample.x)
    assert torch.equal(*orders)


def test_opening_data_draws_nothing_from_the_global_generator():
    torch.manual_seed(1234)
    before = torch.random.get_rng_state()
    opened(DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "last", [(X[:1], Y[:1]), (X[:, :1], Y), (X.double(), Y)], ids=["one example before a batch norm", "another shape", "another dtype"]
)
def test_a_batch_of_a_stream_that_does_not_fit_is_refused_in_training_too(last, monkeypatch):
    monkeypatch.setattr(clnp.sources, "SAMPLE", 40)
    learner = clnp.Learner(nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6)), X[:2])
    with pytest.raises(DataError, match="training data of task 'a'"):
        learner.learn("a", Batches((X, Y), (X, Y), last), (X, Y), config=LearnConfig(epochs=1))
