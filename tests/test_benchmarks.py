from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from clnp.benchmarks import BENCHMARKS, get_benchmark, rotated_tasks, split_tasks
from clnp.data import download
from clnp.data.digits import load_digits
from clnp.data.idx import load_mnist
from clnp.data.images import rotate
from clnp.errors import ConfigError, DataError
from clnp.models import MODELS, get_model
from clnp.seeds import generator
from test_data import write_cifar10, write_cifar100, write_mnist

SPLITS = ("train", "validation", "test")
NAMES = list(BENCHMARKS)
PERMUTED = ["permuted-digits", "permuted-mnist"]
SPLIT = [name for name in NAMES if name not in (*PERMUTED, "rotated-mnist")]
REAL = os.environ.get("CLNP_DATA")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Small files in the official layouts; every image is unique and carries its label."""
    folder = tmp_path_factory.mktemp("data")
    write_mnist(folder)
    write_mnist(folder, "fashion-mnist", seed=1)
    write_cifar10(folder)
    write_cifar100(folder)
    return folder


@pytest.fixture(autouse=True)
def no_net(monkeypatch):
    def refuse(*_args, **_kwargs):
        pytest.fail("a data directory was given, and still something was to be downloaded")

    monkeypatch.setattr(download, "fetch", refuse)


def the_tasks(name, data, seed=0, n_tasks=None):
    benchmark = BENCHMARKS[name]
    return benchmark.tasks(data, seed, n_tasks or benchmark.n_tasks)


def sorted_images(x):
    return sorted(x.flatten(1).tolist())


# Promises of every benchmark in the table


def test_the_table_holds_what_the_issue_names():
    expected = {
        "digits": ("task-incremental", 5, 5, "mlp-small"),
        "permuted-digits": ("domain-incremental", 5, None, "mlp-small"),
        "permuted-mnist": ("domain-incremental", 10, None, "mlp-2000"),
        "rotated-mnist": ("domain-incremental", 10, None, "mlp-2000"),
        "split-mnist": ("task-incremental", 5, 5, "mlp-256"),
        "split-fashion-mnist": ("task-incremental", 5, 5, "mlp-256"),
        "split-cifar10": ("task-incremental", 5, 5, "vgg-small"),
        "cifar10-100": ("task-incremental", 6, 11, "zenke"),
        "cifar10-100-mirrored": ("task-incremental", 6, 11, "zenke"),
        "mixed": ("task-incremental", 15, 15, "vgg-small"),
        "split-cifar100-10x10": ("task-incremental", 10, 10, "resnet18-narrow"),
        "split-cifar100-20x5": ("task-incremental", 20, 20, "resnet18-narrow"),
    }
    assert {b.name: (b.scenario, b.n_tasks, b.max_tasks, b.model) for b in BENCHMARKS.values()} == expected
    assert list(BENCHMARKS) == [b.name for b in BENCHMARKS.values()]
    assert all(b.description for b in BENCHMARKS.values())


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_float32_and_labels_count_from_0_in_every_split(name, data):
    tasks = the_tasks(name, data)
    assert len(tasks) == BENCHMARKS[name].n_tasks
    assert len({task.name for task in tasks}) == len(tasks)
    for task in tasks:
        assert len(task.classes) == task.n_classes
        for split in SPLITS:
            x, y = task.load(split)
            assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
            assert x.is_contiguous()
            assert len(x) == len(y) == task.details[f"n_{split}"]
            assert x.isfinite().all()
            assert y.unique().tolist() == list(range(task.n_classes))  # every class is in every split


@pytest.mark.parametrize("name", NAMES)
def test_the_default_model_takes_the_examples(name, data):
    x, _ = the_tasks(name, data)[0].test
    assert (tuple(x.shape[1:]),) == BENCHMARKS[name].shapes
    model = get_model(BENCHMARKS[name].model)(tuple(x.shape[1:]))
    assert model(x[:2]).ndim == 2
    assert BENCHMARKS[name].model in MODELS


@pytest.mark.parametrize("name", [name for name in NAMES if "digits" not in name])  # there equal images occur
def test_no_image_is_in_two_splits_of_a_task(name, data):
    for task in the_tasks(name, data)[:2]:
        images = [tuple(image) for split in SPLITS for image in task.load(split)[0].flatten(1).tolist()]
        assert len(set(images)) == len(images)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_tasks_in_whatever_order_they_are_loaded(name, data):
    first = the_tasks(name, data, seed=5)[:3]
    loaded = {(t, split): task.load(split) for t, task in enumerate(first) for split in SPLITS}
    torch.manual_seed(1234)
    again = the_tasks(name, data, seed=5)[:3]
    for t, split in reversed(loaded):
        torch.rand(3)
        for task in (again[t], first[t]):  # another list of tasks, and the same one a second time
            x, y = task.load(split)
            assert torch.equal(x, loaded[t, split][0])
            assert torch.equal(y, loaded[t, split][1])
    assert [task.details for task in first] == [task.details for task in again]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_loaded_belongs_to_the_caller(name, data):
    task = the_tasks(name, data)[0]
    x, y = task.train
    kept = x.clone(), y.clone()
    x.zero_()
    y.zero_()
    assert torch.equal(task.train[0], kept[0])
    assert torch.equal(task.train[1], kept[1])


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_holds_out_other_examples_and_never_touches_test_data(name, data):
    one = the_tasks(name, data, seed=0)[0]
    two = next(task for task in the_tasks(name, data, seed=1) if task.name == one.name)  # seeds mix in orders of their own
    assert one.details["validation_sha256"] != two.details["validation_sha256"]
    if name not in PERMUTED:
        assert torch.equal(one.test[0], two.test[0])
        n_images = one.details["n_train"] // (2 if "mirrored" in name else 1)  # their mirror images come after them
        pool = [sorted_images(torch.cat([task.train[0][:n_images], task.validation[0]])) for task in (one, two)]
        assert pool[0] == pool[1]
    assert torch.equal(one.test[1], two.test[1])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "rotated-mnist"])
def test_fewer_tasks_are_the_first_of_more(name, data):
    few, more = the_tasks(name, data, n_tasks=2), the_tasks(name, data, n_tasks=4)
    assert len(few) == 2
    for one, other in zip(few, more, strict=False):
        assert (one.name, one.classes, one.details) == (other.name, other.classes, other.details)


@pytest.mark.parametrize("name", NAMES)
def test_details_can_be_written_as_json_and_carry_the_seed(name, data):
    for task in the_tasks(name, data, seed=7):
        assert json.loads(json.dumps(task.details))["seed"] == 7
        assert len(task.details["validation_sha256"]) == 64


@pytest.mark.parametrize("name", NAMES)
def test_a_number_of_tasks_that_is_not_there_is_refused_before_data_are_read(name, tmp_path):
    benchmark = BENCHMARKS[name]
    for n_tasks in (0, -1, *([] if benchmark.max_tasks is None else [benchmark.max_tasks + 1])):
        with pytest.raises(ConfigError, match=rf"'{name}'.*found {n_tasks}"):
            benchmark.tasks(tmp_path / "nowhere", 0, n_tasks)


@pytest.mark.parametrize("name", [name for name in NAMES if "digits" not in name])
def test_missing_data_are_noticed_when_tasks_are_made(name, tmp_path):
    with pytest.raises(DataError, match="there is no directory"):
        BENCHMARKS[name].tasks(tmp_path / "nowhere", 0, 1)
    with pytest.raises(DataError, match="there is no directory"):
        BENCHMARKS[name].tasks(str(tmp_path / "nowhere"), 0, 1)


@pytest.mark.parametrize("name", NAMES)
def test_more_tasks_than_the_default_where_there_are_more(name, data):
    benchmark = BENCHMARKS[name]
    most = benchmark.max_tasks or benchmark.n_tasks + 2
    assert len(benchmark.tasks(data, 0, most)) == most


# Permuted


@pytest.mark.parametrize("name", PERMUTED)
def test_every_task_has_its_own_permutation_the_first_too_and_one_for_all_splits(name, data):
    source = load_digits() if name == "permuted-digits" else load_mnist(data)
    rows = source.rows(0)
    tasks = the_tasks(name, data, n_tasks=3)
    assert len({task.details["permutation_sha256"] for task in tasks}) == 3
    assert len({task.details["validation_sha256"] for task in tasks}) == 1
    for t, task in enumerate(tasks):
        permutation = torch.randperm(source.x_train[0].numel(), generator=generator(0, "task", t, "permutation"))
        assert permutation.tolist() != sorted(permutation.tolist())
        assert task.details["permutation_sha256"] == hashlib.sha256(permutation.numpy().astype("<i8").tobytes()).hexdigest()
        for split in SPLITS:
            x, y = task.load(split)
            plain = source.to_float(source.images(split, rows[split])).flatten(1)
            assert torch.equal(x, plain[:, permutation])
            assert torch.equal(y, source.labels(split)[rows[split]])


def test_permutations_differ_between_seeds_and_stay_what_they_were():
    hashes = [[task.details["permutation_sha256"] for task in the_tasks("permuted-digits", None, seed, 2)] for seed in (0, 1)]
    assert len({*hashes[0], *hashes[1]}) == 4
    # What a release once drew must be drawn for ever, or runs cannot be repeated.
    assert hashes[0][0] == "f9dc5012c5e018e3ee168b6e4ce7ee4b8dbbc2eb21ced89ef584436e91008228"
    assert (
        the_tasks("permuted-digits", None, 0, 1)[0].details["validation_sha256"]
        == "a197ffdd2248778048699d5d97f7241a7c8a742f9b4012261b6d3721939af83f"
    )


# Rotated


def test_angles_are_even_over_the_half_circle(data):
    assert [task.details["angle_degrees"] for task in the_tasks("rotated-mnist", data)] == [18.0 * t for t in range(10)]
    assert [task.details["angle_degrees"] for task in the_tasks("rotated-mnist", data, n_tasks=4)] == [0, 45, 90, 135]


def test_rotated_tasks_hold_the_images_turned_and_the_labels_as_they_were(data):
    tasks = the_tasks("rotated-mnist", data, n_tasks=4)
    for split in SPLITS:
        upright, y = tasks[0].load(split)
        assert upright.shape[1:] == (1, 28, 28)
        turned, labels = tasks[2].load(split)
        assert torch.allclose(turned, torch.rot90(upright, 1, (2, 3)), atol=1e-4)
        assert torch.equal(y, labels)


def test_rotation_is_anticlockwise_bilinear_and_exact_at_0():
    x = torch.rand(5, 2, 9, 9)
    assert torch.equal(rotate(x, 0), x)
    assert torch.allclose(rotate(x, 180), torch.rot90(x, 2, (2, 3)), atol=1e-5)
    assert torch.allclose(rotate(x, 90), torch.rot90(x, 1, (2, 3)), atol=1e-5)
    dot = torch.zeros(1, 1, 9, 9)
    dot[0, 0, 4, 8] = 1  # right of the centre
    turned = rotate(dot, 45)[0, 0]
    row, column = divmod(int(turned.argmax()), 9)
    assert row < 4 < column  # up and to the right
    assert 0 < float(turned.max()) < 1  # between pixels
    assert torch.equal(rotate(torch.ones(1, 1, 9, 9), 45)[0, 0, 0, 0], torch.tensor(0.0))  # a corner looks outside


def test_rotation_keeps_angles_true_where_images_are_not_square():
    wide = torch.zeros(1, 1, 9, 21)
    wide[0, 0, 4, 13] = 1  # 3 right of the centre
    assert divmod(int(rotate(wide, 90).argmax()), 21) == (1, 10)  # 3 above it


def test_rotation_in_pieces_equals_rotation_at_once():
    x = torch.rand(4100, 1, 4, 4)
    assert torch.equal(rotate(x, 30)[4090:], rotate(x[4090:], 30))


# Split


@pytest.mark.parametrize("name", [name for name in SPLIT if name not in ("digits", "cifar10-100", "cifar10-100-mirrored", "mixed")])
def test_a_split_task_holds_all_images_of_its_classes_and_no_others(name, data):
    tasks = the_tasks(name, data)
    size = tasks[0].n_classes
    seen = dict.fromkeys(SPLITS, 0)
    for t, task in enumerate(tasks):
        assert task.details["source_classes"] == list(range(size * t, size * (t + 1)))  # the natural order
        for split in SPLITS:
            x, y = task.load(split)
            seen[split] += len(y)
            assert torch.equal(written_label(name, x), y + size * t)
    n_train, n_test = {"mnist": (240, 30), "cifar10": (200, 40), "cifar100": (1000, 200)}[
        tasks[0].details["source"].replace("fashion-", "")
    ]
    assert seen["train"] + seen["validation"] == n_train
    assert seen["test"] == n_test


def written_label(name, x):
    """The label that write_mnist and the like have left in the image, from the floats."""
    if "cifar" not in name:
        return (x[:, 0, 14, 14] * 255).round().long()
    mean, std = (129.30417, 68.17024) if "cifar100" in name else (125.30692, 62.99322)
    return (x[:, 0, 0, 0] * std + mean).round().long()


def test_classes_are_named(data):
    assert [task.classes for task in the_tasks("digits", None)] == [("0", "1"), ("2", "3"), ("4", "5"), ("6", "7"), ("8", "9")]
    assert the_tasks("split-fashion-mnist", data)[4].classes == ("Bag", "Ankle boot")
    assert the_tasks("split-cifar10", data)[1].classes == ("bird", "cat")
    assert the_tasks("split-cifar100-20x5", data)[19].classes == ("whale", "willow_tree", "wolf", "woman", "worm")


def test_cifar10_comes_first_and_then_cifar100_by_tens(data):
    tasks = the_tasks("cifar10-100", data)
    assert [task.name for task in tasks] == ["cifar10", "cifar100-0", "cifar100-1", "cifar100-2", "cifar100-3", "cifar100-4"]
    assert tasks[0].classes == the_tasks("split-cifar10", data, n_tasks=1)[0].classes + tasks[0].classes[2:]
    for t, task in enumerate(tasks):
        assert task.details["source_classes"] == (list(range(10)) if t == 0 else list(range(10 * t - 10, 10 * t)))
        x, y = task.train
        assert torch.equal(written_label(task.details["source"], x), y + max(0, 10 * t - 10))


def test_mirrored_tasks_have_every_training_image_twice_and_no_other_image_changed(data):
    for task, plain in zip(the_tasks("cifar10-100-mirrored", data), the_tasks("cifar10-100", data), strict=True):
        (x, y), (x_plain, y_plain) = task.train, plain.train
        n = len(y_plain)
        assert torch.equal(x[:n], x_plain)
        assert torch.equal(x[n:, :, :, 0], x_plain[:, :, :, -1])
        assert torch.equal(x[n:].flip(3), x_plain)
        assert torch.equal(y, torch.cat([y_plain, y_plain]))
        assert task.details == {**plain.details, "mirrored": True, "n_train": 2 * n}
        for split in ("validation", "test"):
            assert all(torch.equal(a, b) for a, b in zip(task.load(split), plain.load(split), strict=True))


def test_each_seed_mixes_three_data_sets_in_an_order_of_its_own(data):
    orders = [[task.name for task in the_tasks("mixed", data, seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert (
        sorted(orders[0]) == sorted(orders[2]) == sorted(f"{name}-{t}" for name in ("mnist", "fashion-mnist", "cifar10") for t in range(5))
    )
    assert [task.name for task in the_tasks("mixed", data, n_tasks=4)] == orders[0][:4]
    for task in the_tasks("mixed", data):
        name, number = task.name.rsplit("-", 1)
        (plain,) = (other for other in the_tasks(f"split-{name}", data) if other.name.endswith(number))
        (x, y), (same, labels) = task.validation, plain.validation
        assert torch.equal(y, labels)
        if name == "cifar10":
            assert torch.equal(x, same)
        else:
            assert torch.equal(x[:, :, 2:-2, 2:-2], same.expand(-1, 3, -1, -1))
            assert x.unique().numel() > 1
            assert set(x[:, :, 0].unique().tolist()) == {x.min().item()}, "the border is black"


def test_cifar10_alone_needs_no_cifar100(tmp_path):
    write_cifar10(tmp_path)
    assert len(BENCHMARKS["cifar10-100"].tasks(tmp_path, 0, 1)) == 1


def test_digits_tasks_share_out_the_whole_set():
    tasks = the_tasks("digits", None)
    assert sum(task.details[f"n_{split}"] for task in tasks for split in SPLITS) == 1797
    assert all(task.train[0].shape[1:] == (1, 8, 8) for task in tasks)
    assert max(float(task.train[0].max()) for task in tasks) == 1.0


def test_a_user_makes_tasks_of_a_source_and_classes_in_any_order():
    tasks = split_tasks("mine", load_digits(), 0, [[7, 3], [1]])
    assert [task.name for task in tasks] == ["mine-0", "mine-1"]
    assert tasks[0].classes == ("7", "3")
    x, y = tasks[0].test
    source = load_digits()
    assert torch.equal(x[y == 0], source.to_float(source.x_test[source.y_test == 7]))
    assert torch.equal(x[y == 1], source.to_float(source.x_test[source.y_test == 3]))
    assert rotated_tasks("mine", source, 0, 2)[1].test[0].shape == (355, 1, 8, 8)


# Names


def test_an_unknown_benchmark_is_answered_with_the_nearest_and_the_list():
    assert get_benchmark("split-mnist") is BENCHMARKS["split-mnist"]
    with pytest.raises(ConfigError) as raised:
        get_benchmark("permutedmnist")
    assert "unknown benchmark 'permutedmnist'" in str(raised.value)
    assert "Did you mean 'permuted-mnist'?" in str(raised.value)
    assert all(name in str(raised.value) for name in NAMES)
    with pytest.raises(ConfigError, match=r"Did you mean 'split-cifar100-10x10' or 'split-cifar100-20x5'\?"):
        get_benchmark("split-cifar100")


@pytest.mark.skipif(REAL is None, reason="CLNP_DATA does not name a directory with the real MNIST")
def test_the_real_permuted_mnist_has_the_sizes_of_the_literature():
    task = BENCHMARKS["permuted-mnist"].tasks(Path(REAL), 0, 1)[0]
    assert [task.details[f"n_{split}"] for split in SPLITS] == [55000, 5000, 10000]
    x, y = task.test
    assert x.shape == (10000, 784)
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    assert np.bincount(y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
