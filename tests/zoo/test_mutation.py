"""The tests of single operations notice every rule that is wrong: each is made wrong in turn."""

from __future__ import annotations

import pytest
from mutate_rules import IN_THE_PLACE_OF, equal, mutants, run, score
from op_generated import plain_name
from op_networks import MERGED, OPS

from clnp.wiring import RULES

FEW = ("aten.relu.default", "aten.add.Tensor", "aten.slice.Tensor", "aten.linear.default", "aten.layer_norm.default", "aten.zeros.default")


def survivors(found):
    return [f"{verdict.op}: {verdict.mutant} ({verdict.why})" for verdict in found if verdict.fate == "survived"]


def test_every_rule_has_a_network_of_its_own():
    """That the networks hold what they say is `test_the_network_holds_the_operation`."""
    held = {plain_name(case.op) for case in (*OPS.values(), *MERGED.values())}
    missing = [op for op in RULES if not held & set(IN_THE_PLACE_OF.get(op, (op,)))]
    assert missing == []


def test_every_rule_has_mutants_that_are_not_equal_to_it():
    assert [op for op in RULES if all(equal(op, mutant.name) for mutant in mutants(op))] == []


def test_some_rules_that_are_wrong_are_noticed():
    before = dict(RULES)
    found = run(FEW)
    assert survivors(found) == []
    assert {verdict.op for verdict in found} == set(FEW)
    assert before == RULES, "the rules are as they were"


@pytest.mark.slow
def test_every_rule_that_is_wrong_is_noticed():
    found = run()
    assert survivors(found) == []
    assert score(found) == 100.0
    assert {verdict.op for verdict in found} == set(RULES), "the rules were all tried"
