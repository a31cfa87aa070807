"""Modes of torch that the caller may be in: they are kept out, and given back."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import clnp
from clnp import modes

MATMUL, CONV = torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv
CONFIG = clnp.LearnConfig(epochs=2, rounds=1, finetune_epochs=0, pool="all")


def fewer_bits():
    """Let products be as coarse as the processor can; a caller's one-liner."""
    torch.set_float32_matmul_precision("medium")


def fewer_bits_of_each():
    """Say the same of every operation."""
    torch.backends.fp32_precision = "bf16"


@pytest.fixture(autouse=True)
def given_back():
    yield
    torch.set_float32_matmul_precision("highest")
    # By the way that torch itself takes: `torch.backends.mkldnn.fp32_precision = "none"` sets another backend's, and an export keeps this one's.
    for place in (("generic", "all"), ("mkldnn", "all"), ("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn"), ("cuda", "matmul")):
        torch._C._set_fp32_precision_setter(*place, "none")


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with modes.threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with modes.threads(None):
        assert torch.get_num_threads() == before

    def fail():
        with modes.threads(before + 2):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("ask", [fewer_bits, fewer_bits_of_each])
def test_products_are_exact_within_and_as_they_were_set_behind(ask):
    ask()
    before = MATMUL.fp32_precision, CONV.fp32_precision
    assert before[0] == "bf16"
    with modes.exactly():
        assert MATMUL.fp32_precision == "ieee"
        assert CONV.fp32_precision in ("none", "ieee")
    assert (MATMUL.fp32_precision, CONV.fp32_precision) == before
    if ask is fewer_bits:
        assert torch.get_float32_matmul_precision() == "medium"
    else:  # what is said for all operations still holds for each
        torch.backends.fp32_precision = "ieee"
        assert MATMUL.fp32_precision == CONV.fp32_precision == "ieee"


def test_the_last_of_several_threads_gives_back_what_was_set():
    fewer_bits()
    first_is_in, second_is_in, seen = threading.Event(), threading.Event(), []

    def second():
        first_is_in.wait()
        with modes.exactly():
            second_is_in.set()
            first.join()
            seen.append(MATMUL.fp32_precision)

    def first_():
        with modes.exactly():
            first_is_in.set()
            second_is_in.wait()

    first, other = threading.Thread(target=first_), threading.Thread(target=second)
    first.start()
    other.start()
    other.join()
    assert seen == ["ieee"]
    assert MATMUL.fp32_precision == "bf16"


def test_an_error_within_gives_back_what_was_set():
    fewer_bits()
    with pytest.raises(RuntimeError, match="stop"), modes.exactly():
        raise RuntimeError("stop")
    assert MATMUL.fp32_precision == "bf16"


def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())


def task():
    x = torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long()


def learned():
    torch.manual_seed(0)
    learner = clnp.Learner(wide(), torch.zeros(2, 64))
    learner.learn("a", task(), task(), config=CONFIG)
    return learner


@pytest.mark.parametrize("ask", [fewer_bits, fewer_bits_of_each, None], ids=["all", "each", "autocast"])
def test_a_network_is_captured_learned_and_asked_the_same_whatever_the_callers_precision_is(ask, tmp_path):
    expected = learned()
    x = task()[0]
    answers = expected.predict(x, task="a")
    if ask is not None:
        ask()
    with torch.autocast("cpu", torch.bfloat16, enabled=ask is None):
        learner = learned()
        found = learner.predict(x, task="a")
        learner.save(tmp_path / "model")
        assert clnp.verify(tmp_path / "model", wide()).tasks[0].comparison.verdict == "bitwise"
        assert expected.receipt("a")[1].verdict == learner.receipt("a")[1].verdict == "bitwise"
        assert expected.export(tmp_path / "a.onnx", task="a", inputs=x).top1_agreement == 1
    assert found.dtype == torch.float32
    assert torch.equal(found, answers)


@pytest.fixture
def anew():
    modes._warn_of_emulation.cache_clear()
    yield
    modes._warn_of_emulation.cache_clear()


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize(
    ("precision", "able", "said"),
    [
        ("bfloat16", {"avx512_bf16": False, "avx2": True, "cpu_name": "of 2020"}, True),
        ("bfloat16", {"avx512_bf16": True, "cpu_name": "of 2023"}, False),
        ("bfloat16", {"amx_bf16": True}, False),
        ("bfloat16", {"neon": True, "bf16": False}, True),
        ("bfloat16", {"neon": True, "bf16": True}, False),
        ("bfloat16", {"architecture": "of another kind"}, False),  # nobody knows
        ("bfloat16", None, False),  # nor does an older torch
        ("float32", {"avx512_bf16": False}, False),
    ],
)
def test_bfloat16_on_a_processor_without_it_is_said_to_be_slow_once(precision, able, said, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    if able is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    learner = clnp.Learner(nn.Sequential(nn.Linear(8, 6), nn.ReLU()), torch.zeros(2, 8))
    for name in "ab":
        data = torch.randn(40, 8), torch.arange(40) % 2
        learner.learn(name, data, data, config=CONFIG.model_copy(update={"precision": precision, "pool": 2}))
    told = [record.getMessage() for record in caplog.records if record.name == "clnp" and "bfloat16" in record.getMessage()]
    assert len(told) == said
    assert not told or f"this processor ({able.get('cpu_name', 'unknown')}) does not multiply in it" in told[0]
