"""A configuration that cannot work is refused where it is written, by the name of its field."""

from __future__ import annotations

import copy
import math
import pickle
import re
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clnp.config import Criterion, LearnConfig
from clnp.errors import ClnpError, ConfigError
from clnp.importance import CRITERIA

FAST = settings(deadline=None, max_examples=100, derandomize=True)
BAD = [
    ("epochs", 0),
    ("epochs", -1),
    ("epochs", 1.5),
    ("epochs", None),
    ("epochs", "many"),
    ("claim_weight", 0),
    ("claim_weight", 1.5),
    ("batch_size", 0),
    ("batch_size", 1),
    ("optimizer", "lion"),
    ("optimizer", "Adam"),
    ("lr", 0),
    ("lr", -0.1),
    ("lr", math.nan),
    ("schedule", "linear"),
    ("momentum", 1.0),
    ("momentum", -0.1),
    ("weight_decay", -1e-9),
    ("l1", -1e-9),
    ("l1", math.nan),
    ("margin", -0.001),
    ("margin", 1.0),
    ("margin", math.nan),
    ("pool", "some"),
    ("pool", -1),
    ("pool", -0.1),
    ("pool", 1.01),
    ("pool", 2.0),
    ("pool", math.nan),
    ("pool", None),
    ("pool", [3]),
    ("pool", {}),
    ("pool", {"conv*": 2.0}),
    ("pool", {"conv*": True}),
    ("pool", {"conv*": {"*": 3}}),
    ("pool", "1.5"),
    ("criterion", "magnitude"),
    ("rounds", 0),
    ("finetune_epochs", -1),
    ("patience", 0),
    ("loss", "mse"),
    ("label_smoothing", -0.1),
    ("label_smoothing", 1.0),
    ("precision", "float8"),
    ("channels_last", 2),
    ("head", "triple"),
    ("reuse", "perhaps"),
    ("private", 2),
    ("strength", -0.1),
    ("strength", math.inf),
    ("damping", 0.0),
    ("share", 0.0),
    ("share", 1.5),
    ("contexts", "quaternion"),
    ("device", 0),
    ("threads", 0),
    ("memory_limit", -1),
]


@pytest.mark.parametrize(("field", "value"), BAD, ids=str)
def test_a_value_that_cannot_work_is_refused_by_the_name_of_its_field(field, value):
    with pytest.raises(ConfigError) as caught:
        LearnConfig(**{field: value})
    message = str(caught.value)
    assert message.startswith(f"cannot use these settings: {field}: "), message
    assert re.search(rf"\(found {re.escape(repr(value))}\)", message), message
    assert "\n" not in message
    assert isinstance(caught.value, ClnpError)
    assert isinstance(caught.value, ValueError)


def test_every_field_has_a_bad_value_in_the_table_and_a_text():
    assert {field for field, _ in BAD} == set(LearnConfig.model_fields)
    for name, field in LearnConfig.model_fields.items():
        assert len(field.description or "") > 10, f"{name} is explained in --help"


@pytest.mark.parametrize("name", ["marign", "Margin", "model_config", "dropout"])
def test_an_unknown_setting_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=rf"^cannot use these settings: {name}: no such setting\. See LearnConfig"):
        LearnConfig(**{name: 1})


def test_the_first_of_several_mistakes_is_told():
    with pytest.raises(ConfigError, match=r"lr: .*greater than 0 \(found -1\)"):
        LearnConfig(lr=-1, margin=7)


@pytest.mark.parametrize("pool", ["all", 0, 1, 400, 0.0, 0.25, 1.0])
def test_a_pool_keeps_its_kind(pool):
    # 1 is a count and 1.0 a fraction: they must not be mistaken for each other.
    kept = LearnConfig(pool=pool).pool
    assert kept == pool
    assert type(kept) is type(pool)


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("0.5", 0.5), ("all", "all")])
def test_a_pool_may_be_written_as_text(text, value):
    kept = LearnConfig(pool=text).pool
    assert kept == value
    assert type(kept) is type(value)


@FAST
@given(st.floats(0, 1), st.integers(0, 10**6))
def test_every_fraction_and_every_count_is_a_pool(fraction, count):
    assert LearnConfig(pool=fraction).pool == fraction
    assert LearnConfig(pool=count).pool == count


def test_the_first_pattern_that_matches_a_group_gives_its_pool():
    config = LearnConfig(pool={"conv1*": "all", "conv*": 0.5, "dense": "3", 2: 7})
    assert [config.pool_of(group) for group in ("conv1_2", "conv2_1", "dense", "2", "other")] == ["all", 0.5, 3, 7, None]
    assert [LearnConfig(pool=0.5).pool_of(group) for group in ("conv1_2", "other")] == [0.5, 0.5]
    assert LearnConfig.model_validate_json(config.model_dump_json()).pool == config.pool


@pytest.mark.parametrize("field", ["epochs", "batch_size", "lr", "strength", "threads", "patience"])
def test_a_truth_value_is_no_number(field):
    with pytest.raises(ConfigError, match=f"{field}: expected a number .found True"):
        LearnConfig(**{field: True})


@pytest.mark.parametrize(("field", "most"), [("epochs", 100_000), ("finetune_epochs", 100_000), ("rounds", 100)])
def test_what_would_never_end_is_refused(field, most):
    assert getattr(LearnConfig(**{field: most}), field) == most
    with pytest.raises(ConfigError, match=f"{field}: input should be less than or equal to {most}"):
        LearnConfig(**{field: most + 1})


def test_a_truth_value_is_no_pool():
    with pytest.raises(ConfigError, match="pool"):
        LearnConfig(pool=True)


@pytest.mark.parametrize("field", ["lr", "l1", "weight_decay"])
def test_an_infinite_rate_is_refused(field):
    with pytest.raises(ConfigError, match=field):
        LearnConfig(**{field: math.inf})


def test_a_configuration_cannot_be_changed():
    config = LearnConfig(margin=0.01)
    with pytest.raises(ValueError, match="frozen"):
        config.margin = 0.5
    assert config.margin == 0.01
    assert hash(config) == hash(LearnConfig(margin=0.01))


def test_copies_and_pickles_are_equal():
    config = LearnConfig(pool=3, margin=0.01, patience=4, threads=2, head="single", private=True)
    assert pickle.loads(pickle.dumps(config)) == config
    assert copy.deepcopy(config) == config
    assert LearnConfig(**config.model_dump()) == config
    assert LearnConfig(**LearnConfig.model_validate_json(config.model_dump_json()).model_dump()) == config
    assert type(LearnConfig.model_validate_json(LearnConfig(pool=1.0).model_dump_json()).pool) is float


def test_the_criteria_are_those_that_importance_has():
    assert set(get_args(Criterion)) == set(CRITERIA)
    for name in CRITERIA:
        assert LearnConfig(criterion=name).criterion == name


def test_the_defaults_are_the_ones_that_the_design_names():
    config = LearnConfig()
    assert isinstance(config.pool, float), "a fraction: one task can never fill the network"
    assert 0 < config.pool < 1
    assert (config.head, config.reuse, config.private, config.patience, config.threads) == ("multi", True, False, None, None)
    assert config.device == "cpu"


def test_a_batch_size_is_found_for_small_data():
    assert LearnConfig(batch_size=64).batch_size_for(10) == 64
    assert LearnConfig().batch_size_for(None) == 128
    for n in (2, 17, 300, 513, 4095, 4096, 55_000):
        size = LearnConfig().batch_size_for(n)
        assert size in (16, 32, 64, 128)
        assert size == 16 or n >= 32 * size, "a pass has 32 steps"
        assert size == 128 or n < 64 * size, "and no smaller batches than that needs"


def test_total_epochs_counts_every_round():
    assert LearnConfig(epochs=5, rounds=3, finetune_epochs=2).total_epochs == 11
    assert LearnConfig(epochs=5, rounds=3, finetune_epochs=0).total_epochs == 5
