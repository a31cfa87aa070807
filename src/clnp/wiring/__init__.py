"""Capture a network and find out which unit each position of each tensor belongs to."""

from clnp.wiring.capture import capture
from clnp.wiring.graph import Graph, Node, Ref, Size
from clnp.wiring.labels import EVERYONE
from clnp.wiring.plan import Group, ParameterLabels, Wiring
from clnp.wiring.prepare import mode, noisy, without_head
from clnp.wiring.rules import RULES, Rule, Value, register
from clnp.wiring.trace import folded, trace
from clnp.wiring.tracer import Tracer

__all__ = [
    "EVERYONE",
    "RULES",
    "Graph",
    "Group",
    "Node",
    "ParameterLabels",
    "Ref",
    "Rule",
    "Size",
    "Tracer",
    "Value",
    "Wiring",
    "capture",
    "folded",
    "mode",
    "noisy",
    "register",
    "trace",
    "without_head",
]
