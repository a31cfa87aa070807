"""Capture a network and find out which unit each position of each tensor belongs to."""

from clnp.wiring.graph import Graph, Node, Ref, capture, noisy, without_head
from clnp.wiring.labels import EVERYONE
from clnp.wiring.rules import RULES, Rule, Value, kind_of
from clnp.wiring.trace import Group, ParameterLabels, Tracer, Wiring, trace

__all__ = [
    "EVERYONE",
    "RULES",
    "Graph",
    "Group",
    "Node",
    "ParameterLabels",
    "Ref",
    "Rule",
    "Tracer",
    "Value",
    "Wiring",
    "capture",
    "kind_of",
    "noisy",
    "trace",
    "without_head",
]
