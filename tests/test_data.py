from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from clnp.data import Source, Task, download, load_csv, load_folder, load_npz
from clnp.data.cifar import CIFAR10, CIFAR10_CLASSES, CIFAR100, CIFAR100_CLASSES, load_cifar10, load_cifar100
from clnp.data.digits import load_digits
from clnp.data.download import Published, fetch, locate
from clnp.data.idx import FASHION_MNIST, MNIST, load_fashion_mnist, load_mnist, read_idx
from clnp.errors import DataError

REAL = os.environ.get("CLNP_DATA")
needs_real = pytest.mark.skipif(REAL is None, reason="CLNP_DATA does not name a directory with the real MNIST")


# Small files in the official layouts; tests/test_benchmarks.py uses them too.


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(data: Path, folder: str = "mnist", *, per_class: int = 24, per_class_test: int = 3, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    (data / folder).mkdir(parents=True, exist_ok=True)
    for part, n in (("train", per_class), ("t10k", per_class_test)):
        y = rng.permutation(np.repeat(np.arange(10), n))
        x = rng.integers(0, 256, (len(y), 28, 28))
        x[:, 14, 14] = y  # the image carries its label
        (data / folder / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(x))
        (data / folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(y))


def cifar_records(n_classes: int, per_class: int, label_bytes: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(n_classes), per_class))
    rows = rng.integers(0, 256, (len(y), label_bytes + 3072)).astype(np.uint8)
    rows[:, label_bytes - 1] = y
    rows[:, label_bytes] = y  # the image carries its label in its first red byte
    return rows


def write_cifar10(data: Path) -> None:
    (data / "cifar-10-batches-bin").mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(CIFAR10.files):
        (data / "cifar-10-batches-bin" / name).write_bytes(cifar_records(10, 4, 1, i).tobytes())


def write_cifar100(data: Path) -> None:
    (data / "cifar-100-binary").mkdir(parents=True, exist_ok=True)
    for name, per_class in (("train.bin", 10), ("test.bin", 2)):
        (data / "cifar-100-binary" / name).write_bytes(cifar_records(100, per_class, 2, per_class).tobytes())


@pytest.fixture
def no_net(monkeypatch):
    def refuse(*_args, **_kwargs):
        pytest.fail("a data directory was given, and still something was to be downloaded")

    monkeypatch.setattr(download, "fetch", refuse)


# The embedded digits


def test_the_shipped_digits_are_the_uci_digits_byte_for_byte():
    shipped = files("clnp.data").joinpath("digits.npz").read_bytes()
    assert hashlib.sha256(shipped).hexdigest() == "6f801551877abf69fbf3711373bb642a18dc933430a3385cd6febc235225ea6f"
    arrays = np.load(io.BytesIO(shipped), allow_pickle=False)
    assert arrays["x"].shape == (1797, 8, 8)
    assert arrays["x"].max() == 16
    # Of scikit-learn's own arrays, as bytes.
    assert hashlib.sha256(arrays["x"].tobytes()).hexdigest() == "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"
    assert hashlib.sha256(arrays["y"].tobytes()).hexdigest() == "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0"


def test_the_digits_carry_their_licence_and_source():
    licence = files("clnp.data").joinpath("digits.LICENSE").read_text()
    for word in ("Alpaydin", "Kaynak", "1998", "CC BY 4.0", "https://doi.org/10.24432/C50P49", "Changes made"):
        assert word in licence


def test_digits_test_part_is_a_fifth_of_each_class_and_always_the_same():
    one, two = load_digits(), load_digits()
    assert torch.equal(one.x_test, two.x_test)
    assert torch.equal(one.y_test, two.y_test)
    assert one.y_train.bincount().add(one.y_test.bincount()).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert one.y_test.bincount().tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    together = torch.cat([one.x_train, one.x_test]).flatten(1)
    everything = torch.from_numpy(np.load(files("clnp.data").joinpath("digits.npz").open("rb"))["x"]).flatten(1)
    assert sorted(together.tolist()) == sorted(everything.tolist())


# Held-out examples


def a_source(counts: list[int], fraction: float = 0.1) -> Source:
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    x = torch.zeros(len(y), 1, 1, 1, dtype=torch.uint8)
    return Source("fake", x, y, x[:4], y[:4], tuple(map(str, range(len(counts)))), (0.0,), (1.0,), fraction)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("counts", "fraction"), [([10, 20, 30], 0.1), ([7, 13, 1, 29], 0.1), ([5923, 6742, 5958], 1 / 12), ([3, 3], 0.5)])
def test_training_and_validation_rows_are_disjoint_exhaustive_and_stratified(seed, counts, fraction):
    source = a_source(counts, fraction)
    rows = source.rows(seed)
    assert sorted(torch.cat([rows["train"], rows["validation"]]).tolist()) == list(range(sum(counts)))
    assert len(rows["validation"]) == round(sum(counts) * fraction)
    held_out = source.y_train[rows["validation"]].bincount(minlength=len(counts))
    assert all(abs(n - count * fraction) < 1 for n, count in zip(held_out.tolist(), counts, strict=True))
    assert rows["test"].tolist() == [0, 1, 2, 3]


def test_the_seed_alone_decides_the_validation_rows():
    source = a_source([50, 50])
    first = source.rows(3)
    source.rows(4)
    torch.manual_seed(99)
    again = source.rows(3)
    assert all(torch.equal(first[split], again[split]) for split in first)
    assert set(source.rows(4)["validation"].tolist()) != set(first["validation"].tolist())


def test_training_rows_of_a_file_sorted_by_class_come_mixed():
    source = a_source([500, 500])
    head = source.y_train[source.rows(0)["train"][:100]]
    assert 20 < int(head.sum()) < 80


def test_five_thousand_of_sixty_thousand_are_held_out_of_mnist(tmp_path):
    write_mnist(tmp_path, per_class=24)
    source = load_mnist(tmp_path)
    assert source.validation_fraction * 60_000 == 5_000
    assert len(source.rows(0)["validation"]) == 20


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"y_train": torch.tensor([0, 1, 1])}, "3 labels and 2 images"),
        ({"y_test": torch.zeros(0, dtype=torch.int64), "x_test": torch.zeros(0, 1, 1, 1, dtype=torch.uint8)}, "0 labels and 0 images"),
        ({"y_train": torch.tensor([0, 2])}, "found 0 to 2"),
        ({"y_test": torch.tensor([-1, 0])}, "found -1 to 0"),
    ],
)
def test_a_source_whose_parts_do_not_fit_is_refused(change, found):
    x, y = torch.zeros(2, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 1])
    parts = {"x_train": x, "y_train": y, "x_test": x, "y_test": y} | change
    with pytest.raises(DataError, match=found):
        Source("fake", **parts, classes=("a", "b"), mean=(0.0,), std=(1.0,))


def test_a_task_loads_the_split_that_is_asked_for():
    task = Task("t", 2, ("a", "b"), lambda split: (torch.zeros(1), torch.tensor([len(split)])), {})
    assert [int(task.train[1]), int(task.validation[1]), int(task.test[1])] == [5, 10, 4]


# idx


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", [(5,), (3, 4, 2), (0, 28, 28)])
def test_idx_gives_back_what_was_written(tmp_path, shape, packed):
    array = np.random.default_rng(0).integers(0, 256, shape)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    read = read_idx(path)
    assert read.dtype == torch.uint8
    assert read.tolist() == array.tolist()


GOOD = idx_bytes(np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x00\x08",
        b"\x00\x00\x09\x01" + struct.pack(">I", 4) + b"\x00" * 4,  # signed bytes
        b"\x01" + GOOD[1:],
        GOOD[:9],
        GOOD[:-1],
        GOOD + b"\x00",
        b"<!DOCTYPE html><title>Not found</title>",
        # No time of day: it would be part of the name of the test, and differ between the processes that run them.
        gzip.compress(GOOD, mtime=0)[:-9],
        gzip.compress(GOOD, mtime=0)[:12] + b"damage" + gzip.compress(GOOD, mtime=0)[18:],
    ],
)
def test_a_malformed_idx_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*train-images-idx3-ubyte"):
        read_idx(path)


@pytest.mark.parametrize(
    ("file", "array", "found"),
    [
        ("train-images-idx3-ubyte", np.zeros((240, 28, 27)), r"28 x 28 .*found shape \(240, 28, 27\)"),
        ("train-images-idx3-ubyte", np.zeros(240), r"found shape \(240,\)"),
        ("t10k-labels-idx1-ubyte", np.zeros((30, 1)), r"labels in one dimension, found shape \(30, 1\)"),
        ("train-labels-idx1-ubyte", np.zeros(239), "239 labels and 240 images"),
        ("t10k-labels-idx1-ubyte", np.full(30, 10), "from 0 to 9, found 10 to 10"),
    ],
)
def test_mnist_files_that_do_not_fit_are_refused(tmp_path, no_net, file, array, found):
    write_mnist(tmp_path)
    (tmp_path / "mnist" / file).write_bytes(idx_bytes(array))
    with pytest.raises(DataError, match=found):
        load_mnist(tmp_path)


@pytest.mark.parametrize(
    ("load", "folders"), [(load_mnist, ("mnist", "MNIST/raw")), (load_fashion_mnist, ("fashion-mnist", "FashionMNIST/raw"))]
)
def test_mnist_is_read_from_every_known_layout_plain_or_gzipped(tmp_path, no_net, load, folders):
    sources = []
    for folder in folders:
        data = tmp_path / folder.partition("/")[0] / "data"
        write_mnist(data, folder)
        for path in list((data / folder).glob("train*")):
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
        sources.append(load(data))
    for source in sources:
        assert source.x_train.shape == (240, 1, 28, 28)
        assert source.y_test.bincount().tolist() == [3] * 10
        assert torch.equal(source.x_train[:, 0, 14, 14].long(), source.y_train)
        assert source.to_float(torch.full((1, 1, 1, 1), 51, dtype=torch.uint8)).item() == pytest.approx(0.2)


def test_a_missing_file_is_named_with_the_places_searched_and_the_remedy(tmp_path, no_net):
    write_mnist(tmp_path)
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError) as raised:
        load_mnist(tmp_path)
    message = str(raised.value)
    for part in (
        "MNIST",
        "'t10k-labels-idx1-ubyte'",
        "'t10k-labels-idx1-ubyte.gz'",
        str(tmp_path / "mnist"),
        str(tmp_path / "MNIST/raw"),
        "--data",
    ):
        assert part in message


def test_a_data_directory_that_is_not_there_is_said_to_be_so(tmp_path, no_net):
    with pytest.raises(DataError, match="there is no directory"):
        load_cifar10(tmp_path / "nowhere")


# CIFAR


def test_cifar10_labels_and_planes_are_read_in_order(tmp_path, no_net):
    write_cifar10(tmp_path)
    source = load_cifar10(tmp_path)
    rows = np.concatenate([cifar_records(10, 4, 1, i) for i in range(5)])
    assert source.y_train.tolist() == rows[:, 0].tolist()
    assert source.x_train.shape == (200, 3, 32, 32)
    assert source.x_train[7].flatten().tolist() == rows[7, 1:].tolist()  # red, green, blue; row after row
    assert source.y_test.tolist() == cifar_records(10, 4, 1, 5)[:, 0].tolist()
    assert len(source.rows(0)["validation"]) == 20


def test_cifar100_reads_the_fine_label_and_not_the_coarse_one(tmp_path, no_net):
    write_cifar100(tmp_path)
    source = load_cifar100(tmp_path)
    rows = cifar_records(100, 10, 2, 10)
    assert source.y_train.tolist() == rows[:, 1].tolist()
    assert source.x_train[3].flatten().tolist() == rows[3, 2:].tolist()


def test_cifar_names_are_in_official_order():
    assert len(set(CIFAR10_CLASSES)) == 10
    assert list(CIFAR100_CLASSES) == sorted(set(CIFAR100_CLASSES))
    assert len(CIFAR100_CLASSES) == 100
    # MD5 of the official file of names would need the net; its SHA-256 here is of the file that the data's preparation writes.
    text = "\n".join(CIFAR100_CLASSES) + "\n"
    assert hashlib.sha256(text.encode()).hexdigest() == "4a53f81a8af29bb6aa646bfe2c455db1b061edfde82a39c0cfc313ef536c681b"


def test_cifar_floats_are_standardised_per_channel(tmp_path, no_net):
    write_cifar10(tmp_path)
    source = load_cifar10(tmp_path)
    x = source.to_float(torch.full((1, 3, 1, 1), 200, dtype=torch.uint8)).flatten().tolist()
    expected = [(200 / 255 - mean) / std for mean, std in ((0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616))]
    assert x == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("content", [b"", b"\x00" * 3072, b"\x00" * (2 * 3073 + 1), gzip.compress(b"\x00" * 3073, mtime=0)[:-4]])
def test_a_cut_off_cifar_file_is_refused_by_name(tmp_path, no_net, content):
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"data_batch_3\.bin"):
        load_cifar10(tmp_path)


def test_a_cifar_label_without_a_class_is_refused(tmp_path, no_net):
    write_cifar100(tmp_path)
    rows = cifar_records(100, 2, 2, 2)
    rows[5, 1] = 100
    (tmp_path / "cifar-100-binary" / "test.bin").write_bytes(rows.tobytes())
    with pytest.raises(DataError, match="from 0 to 99, found 0 to 100"):
        load_cifar100(tmp_path)


# Downloads


class Server:
    """Files in a folder, served on 127.0.0.1; `asked` counts what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path)
                super().do_GET()

            def log_message(self, *_args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def address(self, folder: str) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/{folder}/"


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "served").mkdir()
    server = Server(tmp_path / "served")
    yield server
    server.http.shutdown()
    server.http.server_close()


CONTENT = {"a-ubyte": b"content of a" * 1000, "b-ubyte": b"content of b"}
HASHES = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}


def serve_gz(server: Server, folder: str, content: dict[str, bytes], level: int = 9) -> str:
    (server.folder / folder).mkdir()
    for name, data in content.items():
        (server.folder / folder / f"{name}.gz").write_bytes(gzip.compress(data, level))
    return server.address(folder)


def serve_tar(server: Server, folder: str, members: dict[str, bytes | str]) -> str:
    (server.folder / folder).mkdir()
    with tarfile.open(server.folder / folder / "all.tar.gz", "w:gz") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            if isinstance(data, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, data
                archive.addfile(entry)
            else:
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return server.address(folder)


def published(*addresses: str, archive: str | None = None) -> Published:
    return Published("Fake", "fake", HASHES, addresses, archive)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("level", [1, 9])
def test_a_download_is_unpacked_and_checked_by_its_content_and_fetched_once(tmp_path, server, level):
    fake = published(serve_gz(server, "good", CONTENT, level))
    assert content_of(fetch(fake, tmp_path / "cache")) == CONTENT
    assert content_of(fetch(fake, tmp_path / "cache")) == CONTENT
    assert sorted(server.asked) == ["/good/a-ubyte.gz", "/good/b-ubyte.gz"]


def test_without_a_data_directory_the_cache_is_filled_and_read(tmp_path, server, monkeypatch):
    monkeypatch.setattr(download, "cache_directory", lambda: tmp_path / "cache")
    paths = locate(published(serve_gz(server, "good", CONTENT)), None)
    assert {name: path.read_bytes() for name, path in paths.items()} == CONTENT


def test_mnist_downloads_into_a_source(tmp_path, server, monkeypatch):
    write_mnist(tmp_path / "made")
    made = {path.name: path.read_bytes() for path in (tmp_path / "made" / "mnist").iterdir()}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in made.items()}
    fake = Published("MNIST", "mnist", hashes, (serve_gz(server, "mnist", made),))
    monkeypatch.setattr("clnp.data.idx.MNIST", fake)
    monkeypatch.setattr(download, "cache_directory", lambda: tmp_path / "cache")
    assert torch.equal(load_mnist(None).x_train, load_mnist(tmp_path / "made").x_train)


def test_the_next_address_is_tried_when_one_is_gone_or_gives_other_content(tmp_path, server):
    gone = server.address("gone")
    wrong = serve_gz(server, "wrong", {**CONTENT, "a-ubyte": b"other"})
    (server.folder / "page").mkdir()
    (server.folder / "page" / "a-ubyte.gz").write_bytes(b"<html>please log in</html>")
    cut = serve_gz(server, "cut", CONTENT)
    packed = server.folder / "cut" / "a-ubyte.gz"
    packed.write_bytes(packed.read_bytes()[:-10])
    good = serve_gz(server, "good", CONTENT)
    assert content_of(fetch(published(gone, wrong, server.address("page"), cut, good), tmp_path / "cache")) == CONTENT


def test_wrong_content_is_never_kept_and_every_address_is_named(tmp_path, server):
    wrong = serve_gz(server, "wrong", {**CONTENT, "b-ubyte": b"other"})
    gone = server.address("gone")
    with pytest.raises(DataError) as raised:
        fetch(published(wrong, gone), tmp_path / "cache")
    message = str(raised.value)
    for part in ("Fake", wrong, gone, "404", HASHES["b-ubyte"], str(tmp_path / "cache"), "--data"):
        assert part in message
    assert content_of(tmp_path / "cache" / "fake") == {"a-ubyte": CONTENT["a-ubyte"]}  # what was right is kept, nothing else


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path, server):
    fake = published(serve_gz(server, "good", CONTENT))
    folder = fetch(fake, tmp_path / "cache")
    (folder / "a-ubyte").write_bytes(CONTENT["a-ubyte"][:-1] + b"!")
    assert content_of(fetch(fake, tmp_path / "cache")) == CONTENT
    assert server.asked.count("/good/a-ubyte.gz") == 2
    assert server.asked.count("/good/b-ubyte.gz") == 1


def test_nobody_answers(tmp_path, server):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(DataError, match=r"none of 1 addresses .* \(http://[^ ]+: (?!HTTP)[^()]*refused") as told:
        fetch(published(server.address("good")), tmp_path / "cache")
    assert "ConnectionPool" not in str(told.value)


def test_a_cache_that_cannot_be_written_is_said_to_be_so(tmp_path, server):
    (tmp_path / "cache").write_text("a file where the directory should be")
    with pytest.raises(DataError, match=r"cannot write in .*cache.*--data"):
        fetch(published(serve_gz(server, "good", CONTENT)), tmp_path / "cache")


def test_an_archive_is_fetched_once_for_all_its_members(tmp_path, server):
    members = {"fake-bin/readme.html": b"x", **{f"fake-bin/{name}": content for name, content in CONTENT.items()}}
    address = serve_tar(server, "tar", members)
    assert content_of(fetch(published(address, archive="all.tar.gz"), tmp_path / "cache")) == CONTENT
    assert server.asked == ["/tar/all.tar.gz"]


def test_paths_and_links_of_an_archive_never_reach_the_disk(tmp_path, server):
    members = {"../../escaped/a-ubyte": CONTENT["a-ubyte"], "/b-ubyte": CONTENT["b-ubyte"], "evil": b"x"}
    address = serve_tar(server, "tar", members)
    folder = fetch(published(address, archive="all.tar.gz"), tmp_path / "cache")
    assert content_of(folder) == CONTENT
    assert not list(tmp_path.rglob("escaped"))
    assert not Path("/b-ubyte").exists()
    (tmp_path / "secret").write_bytes(CONTENT["a-ubyte"])
    linked = serve_tar(server, "link", {"a-ubyte": str(tmp_path / "secret"), "b-ubyte": CONTENT["b-ubyte"]})
    with pytest.raises(DataError, match="no file 'a-ubyte'"):
        fetch(published(linked, archive="all.tar.gz"), tmp_path / "other")


@pytest.mark.parametrize("members", [{"b-ubyte": CONTENT["b-ubyte"]}, {**CONTENT, "a-ubyte": b"other"}])
def test_an_archive_that_lacks_a_member_or_holds_another_is_refused(tmp_path, server, members):
    address = serve_tar(server, "tar", members)
    with pytest.raises(DataError, match="a-ubyte"):
        fetch(published(address, archive="all.tar.gz"), tmp_path / "cache")


@pytest.mark.parametrize("data", [MNIST, FASHION_MNIST, CIFAR10, CIFAR100], ids=lambda data: data.title)
def test_every_published_file_has_a_hash_and_a_mirror(data):
    assert len(data.addresses) >= 2
    assert all(address.startswith("http") and address.endswith("/") for address in data.addresses)
    assert all(len(sha256) == 64 and int(sha256, 16) for sha256 in data.files.values())


# The real files


@needs_real
@pytest.mark.parametrize("data", [MNIST, FASHION_MNIST, CIFAR10], ids=lambda data: data.title)
def test_the_real_files_have_the_published_content(data):
    if data is not MNIST and not (Path(REAL) / data.folder).is_dir():
        pytest.skip(f"CLNP_DATA holds no {data.title}")
    for name, path in locate(data, Path(REAL)).items():
        assert hashlib.sha256(download.read_bytes(path)).hexdigest() == data.files[name]


@needs_real
def test_the_real_mnist_has_its_well_known_counts():
    source = load_mnist(Path(REAL))
    assert source.y_train.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert source.x_test.shape == (10000, 1, 28, 28)
    assert len(source.rows(0)["validation"]) == 5000
    assert source.to_float(source.x_train).mean().item() == pytest.approx(0.1307, abs=1e-4)


@needs_real
@pytest.mark.parametrize(("load", "folder"), [(load_cifar10, CIFAR10.folder), (load_cifar100, CIFAR100.folder)])
def test_the_real_cifar_is_standardised_by_its_constants(load, folder):
    if not (Path(REAL) / folder).is_dir():
        pytest.skip("CLNP_DATA holds no CIFAR")
    source = load(Path(REAL))
    x = source.x_train.permute(1, 0, 2, 3).flatten(1)
    assert [float(plane.double().mean()) for plane in x] == pytest.approx(source.mean, abs=1e-4)
    assert [float(plane.double().std()) for plane in x] == pytest.approx(source.std, abs=2e-3)


# The user's own files


def test_csv_with_named_and_numbered_columns(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("\ufeffa,kind,b\n1,0,2.5\n\n-3e2, 1 ,4\n", encoding="utf-8")
    x, y = load_csv(path, label="kind")
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert x.tolist() == [[1, 2.5], [-300, 4]]
    assert y.tolist() == [0, 1]
    path.write_text("1;0.5;7\n2;0.25;0\n")
    x, y = load_csv(str(path), label=-1, delimiter=";")
    assert x.tolist() == [[1, 0.5], [2, 0.25]]
    assert y.tolist() == [7, 0]


def test_csv_classes_number_every_file_alike(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("x,label\n1,dog\n2,cat\n")
    assert load_csv(path, classes=["cat", "dog"])[1].tolist() == [1, 0]
    path.write_text("x,label\n1,dog\n")
    assert load_csv(path, classes=["cat", "dog"])[1].tolist() == [1]
    with pytest.raises(DataError, match=r"line 2: expected a whole number from 0 as label, found 'dog'.*classes="):
        load_csv(path)
    with pytest.raises(DataError, match="found 'dog'"):
        load_csv(path, classes=["cat"])


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        ("", "label", r"expected a column 'label'.*\(none\)"),
        ("", 0, "found 0 lines"),
        ("x,label\n", "label", "found 0 lines"),
        ("label\n1\n", "label", "one number"),
        ("x,y\n1,2\n", "label", "found the columns x, y"),
        ("x,label\n1,0\n1,2,3\n", "label", "line 3: expected 2 columns as in the lines before, found 3"),
        ("1,0\n1\n", 0, "line 2: expected 2 columns"),
        ("1,0\n", 2, "line 1: expected a label in column 2, found 2 columns"),
        ("x,label\n1,0\none,1\n", "label", "line 3: expected finite numbers beside the label, found 'one'"),
        ("x,label\n,1\n", "label", "found ''"),
        ("x,label\nnan,1\n", "label", "found 'nan'"),
        ("x,label\ninf,1\n", "label", "found 'inf'"),
        ("x,label\n1e39,1\n", "label", "found '1e39'"),
        ("x,label\n1,-1\n", "label", "found '-1'"),
        ("x,label\n1,1.0\n", "label", r"found '1\.0'"),
        ("x,label\n1,99999999999999999999\n", "label", "found '9999"),
    ],
)
def test_a_malformed_csv_is_refused_by_file_and_line(tmp_path, text, label, message):
    path = tmp_path / "data.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        load_csv(path, label)
    assert str(path) in str(raised.value)


def test_a_csv_that_is_no_text_or_not_there_is_refused(tmp_path):
    (tmp_path / "data.csv").write_bytes(b"x,label\n\xff\xfe,1\n")
    for name in ("data.csv", "missing.csv"):
        with pytest.raises(DataError, match=f"{name} as CSV"):
            load_csv(tmp_path / name)


def test_npz_arrays_become_float32_and_int64_and_keep_their_values(tmp_path):
    x, y = np.arange(12, dtype=np.uint8).reshape(3, 2, 2), np.array([2, 0, 1], dtype=np.uint16)
    np.savez(tmp_path / "data.npz", x=x, y=y, images=x + 1)
    got_x, got_y = load_npz(tmp_path / "data.npz")
    assert (got_x.dtype, got_y.dtype) == (torch.float32, torch.int64)
    assert got_x.tolist() == x.tolist()
    assert got_y.tolist() == [2, 0, 1]
    assert load_npz(tmp_path / "data.npz", x="images")[0].tolist() == (x + 1).tolist()


X, Y = np.zeros((3, 2)), np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": Y}, "expected an archive with arrays 'x' and 'y', found y"),
        ({"x": X, "labels": Y}, "found x, labels"),
        ({"x": X, "y": Y[:2]}, r"found \(3, 2\) and \(2,\)"),
        ({"x": X, "y": Y[:, None]}, r"found \(3, 2\) and \(3, 1\)"),
        ({"x": X[:, 0], "y": Y}, r"found \(3,\) and \(3,\)"),
        ({"x": X[:0], "y": Y[:0]}, "n > 0"),
        ({"x": X, "y": Y + 0.5}, "whole numbers as y"),
        ({"x": X.astype("U3"), "y": Y}, "numbers as x"),
        ({"x": X.astype(complex), "y": Y}, "numbers as x"),
        ({"x": np.array([[0, 0], [np.nan, 1], [np.inf, 2]]), "y": Y}, "in 2 of 3 examples, first in example 1"),
        ({"x": X + 1e300, "y": Y}, "in 3 of 3"),
        ({"x": X, "y": Y - 1}, "labels from 0, found -1"),
    ],
)
def test_a_malformed_npz_is_refused_by_name(tmp_path, arrays, message):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=message) as raised:
        load_npz(path)
    assert str(path) in str(raised.value)


class Boom:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_npz_and_npy_never_unpickle(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.array([Boom()], dtype=object), y=np.array([0]))
    np.save(tmp_path / "single.npy", X)
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "text.npz").write_text("x")
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("data.npz", "single.npy", "junk.npz", "text.npz", "empty.npz", "missing.npz"):
        with pytest.raises(DataError, match=name):
            load_npz(tmp_path / name)


def test_a_damaged_npz_is_refused(tmp_path):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(50, 20)), y=np.zeros(50, dtype=int))
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"data\.npz"):
        load_npz(path)


@pytest.fixture
def images(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is an optional dependency")
    for name, colour, size in (
        ("dog/1.png", (255, 0, 51), (4, 2)),
        ("cat/b.PNG", (0, 0, 0), (4, 2)),
        ("cat/a.bmp", (255, 255, 255), (4, 2)),
    ):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", size, colour).save(path)
    (tmp_path / "images" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "images" / "cat" / "._a.png").write_text("left by a file manager")
    (tmp_path / "images" / ".cache").mkdir()
    return tmp_path / "images"


def test_image_folders_give_sorted_classes_and_files(images):
    x, y = load_folder(images)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert x.shape == (3, 3, 2, 4)
    assert y.tolist() == [0, 0, 1]
    assert x[:, :, 0, 0].flatten().tolist() == pytest.approx([1, 1, 1, 0, 0, 0, 1, 0, 0.2])
    assert load_folder(images, classes=["dog", "cat"])[1].tolist() == [0, 1, 1]
    assert load_folder(images, mode="L", size=(3, 5))[0].shape == (3, 1, 3, 5)


def test_image_folders_that_cannot_be_used_are_refused(images, tmp_path):
    with pytest.raises(DataError, match="found no such folder"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="found no subfolder"):
        load_folder(images / "dog")
    with pytest.raises(DataError, match="class 'cow'"):
        load_folder(images, classes=["cat", "cow"])
    pillow = pytest.importorskip("PIL.Image")
    pillow.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(images / "dog" / "2.png")
    with pytest.raises(DataError, match=r"2\.png: expected 2 x 4 pixels as the images before, found 8 x 8"):
        load_folder(images)
    assert load_folder(images, size=(2, 4))[0].shape == (4, 3, 2, 4)
    content = (images / "dog" / "2.png").read_bytes()
    for broken in (b"", b"no image", content[:99], content[:60] + b"xx" + content[62:]):
        (images / "dog" / "2.png").write_bytes(broken)
        with pytest.raises(DataError, match=r"2\.png"):
            load_folder(images, size=(2, 4))


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_images_of_more_than_eight_bits_are_refused_and_not_cut(tmp_path, dtype):
    pillow = pytest.importorskip("PIL.Image")
    (tmp_path / "a").mkdir()
    pillow.fromarray(np.full((4, 4), 300, dtype=dtype)).save(tmp_path / "a" / "x.tiff")
    with pytest.raises(DataError, match="expected 8 bits a channel"):
        load_folder(tmp_path, size=(4, 4), mode="L")


def test_image_folders_say_when_pillow_is_missing(images, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match="pip install pillow"):
        load_folder(images)
