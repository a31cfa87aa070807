"""Names of tasks are data: any text a person can read."""

from __future__ import annotations

import unicodedata

import pytest

import clnp
import ledgers
from clnp.names import MAX_NAME, clean_name

GOOD = [
    "a", "two words", "../../etc/passwd", "/", "C:\\x", "..", "model.json", "000.safetensors", "ß 任務 \N{SNOWMAN}", "[bold]x[/bold]",
    "<script>alert(1)</script>", "{{ name }}", "%s %n", "$(rm -rf)", "'; DROP TABLE", '"', "-rf", "x" * MAX_NAME, "\N{SNOWMAN}" * MAX_NAME,
    "CON", "null", "true", "1", " ", "\N{LATIN SMALL LETTER E WITH ACUTE}",
]  # fmt: skip
BAD = [
    "", "x" * (MAX_NAME + 1), "a\nb", "a\tb", "a\0b", "\x1b[31mred", "a\x7f", "a\x85b", "a\N{ZERO WIDTH SPACE}b", "a\N{RIGHT-TO-LEFT OVERRIDE}b",
    "a\N{LINE SEPARATOR}b", "a\N{NO-BREAK SPACE}b", "\ud800", "a\ue000", "\U0010ffff", "\N{SOFT HYPHEN}", "\ufeffa", "a\r",
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_a_person_can_read_is_a_name(name):
    assert clean_name(name) == name
    assert clean_name(unicodedata.normalize("NFD", name)) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize("name", BAD)
def test_what_nobody_can_read_is_none(name):
    with pytest.raises(ValueError, match="1 to 200 printable characters"):
        clean_name(name)


@pytest.mark.parametrize("name", BAD)
def test_a_task_of_such_a_name_is_refused_before_anything_is_trained(name):
    learner = ledgers._empty("mlp", 0)
    with pytest.raises(clnp.TaskError) as caught:
        ledgers.learn(learner, name)
    assert str(caught.value).isprintable(), "nothing of a message steers a terminal"
    assert learner.tasks == ()


def test_length_is_counted_in_the_composed_form():
    assert len(clean_name("e\N{COMBINING ACUTE ACCENT}" * MAX_NAME)) == MAX_NAME


def test_what_looks_the_same_is_one_task(tmp_path):
    learner = ledgers.empty()
    ledgers.learn(learner, "cafe\N{COMBINING ACUTE ACCENT}", epochs=1)
    assert learner.tasks == ("caf\N{LATIN SMALL LETTER E WITH ACUTE}",)
    with pytest.raises(clnp.TaskError, match="learned already"):
        ledgers.learn(learner, "caf\N{LATIN SMALL LETTER E WITH ACUTE}", epochs=1)
    learner.save(tmp_path)
    assert ledgers.records_of(tmp_path)[1]["task"] == "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    log = (tmp_path / "log.jsonl").read_bytes()
    assert b"caf\\u00e9" in log
    records = ledgers.records_of(tmp_path)
    records[1]["task"] = "cafe\N{COMBINING ACUTE ACCENT}"
    ledgers.rechain(tmp_path, records)
    with pytest.raises(clnp.DamageError, match="record 1"):
        clnp.store.read(tmp_path, learner.wiring)


@pytest.mark.parametrize("name", [None, 5, b"bytes", ("a",)])
def test_a_name_is_text(name):
    with pytest.raises(clnp.TaskError, match="a task's name is text"):
        ledgers.learn(ledgers._empty("mlp", 0), name)
