"""Make each rule of the table wrong in turn, and look whether the tests of single operations notice.

    python tests/zoo/mutate_rules.py [OP ...]

Mutants of labels: "forgotten" (raw input everywhere), "reversed" (along the units' dimension), "merged" (one unit of all),
"made up" (a unit where there is none). Mutants of the kind: the operation is written for fewer units in another way. A mutant is
killed when a check of `test_ops.py`, or one of the two that are here, fails or raises for a network that holds the operation.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import test_ops
import torch
from op_generated import plain_name, tensors_of
from test_ops import CASES, batch_of, choice_of, model_of, unfolded, whole

from clnp.narrow import narrow
from clnp.wiring import EVERYONE, RULES, Rule, Tracer, Value, Wiring, capture, folded
from clnp.wiring.labels import varying
from clnp.wiring.patterns import with_norms
from clnp.wiring.rules import tensors
from clnp.wiring.settle import settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

SAME_EVER = ("clone", "contiguous", "detach", "lift_fresh_copy")
"""Copies: their value is their operand's."""

IN_THE_PLACE_OF = {
    "clnp.recurrent.default": ("aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input"),
    "clnp.unit_norm.default": ("aten.pow.Tensor_Scalar",),
    "aten.bernoulli.p": ("aten.bernoulli.float",),
    "operator.getitem": ("aten.max.dim", "aten.sort.default", "aten.lstm.input"),
}
"""What the capture puts in the place of other operations, or beside them."""


# ---- networks


@dataclass
class Network:
    """A case whose graph was captured; labels are run through it as often as one likes."""

    name: str
    model: Any = None
    graph: Any = None
    fixed: dict[str, Tensor] = field(default_factory=dict)
    without: list[int] = field(default_factory=list)
    """Which groups can be left out altogether; -1: all units but one of each group can."""

    def wiring(self) -> Wiring:
        tracer = Tracer(self.graph, self.fixed)
        tracer.run()
        return settle(tracer)


_networks: dict[str, Network] = {}


def network(name: str) -> Network:
    """Capture the network of a case, once."""
    if name not in _networks:
        case = CASES[name]
        model = model_of(case)
        plain, example = folded(model, batch_of(case, 2)), batch_of(case, 2)
        graph = with_norms(capture(plain, example))
        stored = {**{key: buffer.detach() for key, buffer in plain.named_buffers()}, **graph.constants}
        fixed = {key: tensor for key, tensor in stored.items() if not tensor.is_floating_point()}
        found = Network(name, model, graph, fixed)
        failure = check(found)
        assert failure is None, f"{name} fails with rules that are right: {failure}"
        found.without = [place for place in range(-1, len(case.groups)) if _failure(_check_without, found, place) is None]
        _networks[name] = found
    return _networks[name]


def holders(op: str) -> Iterator[Network]:
    """Return the networks that hold an operation: those made for it, and others that are captured already; without any, all that do."""
    asked = IN_THE_PLACE_OF.get(op, (op,))
    first = [name for name, case in CASES.items() if plain_name(case.op) in asked]
    first.sort(key=lambda name: not name.startswith("generated"))  # small, and raw input meets units there
    for name in [*first, *(name for name in (_networks.copy() if first else CASES) if name not in first)]:
        found = network(name)
        if any(node.op == op for node in found.graph.nodes):
            yield found


# ---- checks


def check(found: Network) -> str | None:
    """Return the first check that fails; None where all are passed."""
    return _failure(_check_all, found)


def _failure(check: Callable[..., None], *arguments: Any) -> str | None:
    try:
        check(*arguments)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is noticed
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]}"
    return None


def _check_all(found: Network) -> None:
    case, wiring = CASES[found.name], found.wiring()
    test_ops.check_labels(case, found.model, wiring)
    test_ops.check_narrowed(case, found.model, wiring)
    for place in found.without:
        _check_without(found, place, wiring)
    if case.norms:
        keep = choice_of(case, 0)
        _check_same(case, found, wiring, torch.ones_like(keep), [(keep[:-1], keep[:-1])])


def _check_without(found: Network, place: int, wiring: Wiring | None = None) -> None:
    """Leave a group out, its branch is deleted; or with place -1 all units but the last of each group."""
    case = CASES[found.name]
    sizes = list(case.groups.values())
    keep = torch.ones(sum(sizes) + 1, dtype=torch.bool)
    for at, name in enumerate(case.groups):
        if name not in case.shared and place in (at, -1):
            keep[sum(sizes[:at]) : sum(sizes[: at + 1]) - (place == -1)] = False
    assert place == -1 or list(case.groups)[place] not in case.shared
    assert all(keep[units].any() for _, units in case.norms.values())
    assert keep[case.features].any()
    _check_same(case, found, wiring or found.wiring(), keep, [])


def _check_same(case: Any, found: Network, wiring: Wiring, keep: Tensor, parts: list[Any]) -> None:
    """Compare with the whole network in which nobody reads the units that are dropped, or that are in no part."""
    read = torch.cat([parts[0][0], torch.tensor([True])]) if parts else keep
    reference, plain = whole(case, found.model, read), unfolded(case, found.model)
    state = {key: tensor for net in (found.model, plain) for key, tensor in (*net.named_parameters(), *net.named_buffers())}
    state |= wiring.graph.constants
    if parts:  # the others are there, but severed
        state |= {key: tensor for key, tensor in reference.named_parameters() if key in state}
    x = batch_of(case, 5)
    with torch.no_grad():
        kept = read[torch.tensor(case.features)[keep[case.features]]]
        result = narrow(wiring, state, keep[:-1], norms=parts)(x.clone())[:, kept]
        expected = reference(x.clone())[:, read[case.features]]
    assert result.shape == expected.shape
    assert torch.allclose(result, expected, rtol=1e-5, atol=1e-5), "differs from the whole network"


# ---- mutants


@dataclass
class Mutant:
    """A rule made wrong; `active` says whether it ever said anything else than the right one."""

    name: str
    rule: Rule
    active: bool = False


def _labelled(name: str, right: Rule, change: Callable[[Tracer, Any, list[Any], Tensor], Tensor]) -> Mutant:
    mutant = Mutant(name, right)

    def changed(tracer: Tracer, node: Any, arguments: list[Any], labels: Tensor) -> Tensor:
        found = change(tracer, node, arguments, labels)
        mutant.active |= found.shape != labels.shape or not torch.equal(found, labels)
        return found

    def label(tracer: Tracer, node: Any, arguments: list[Any]) -> Any:
        found = right.label(tracer, node, arguments)
        if isinstance(found, list):
            return [changed(tracer, node, arguments, labels) for labels in found]
        if isinstance(found, Value):
            return found if found.is_parameter else found._replace(labels=changed(tracer, node, arguments, found.labels))
        return changed(tracer, node, arguments, found)

    mutant.rule = Rule(label, right.kind)
    return mutant


def _forgotten(tracer: Tracer, node: Any, arguments: list[Any], labels: Tensor) -> Tensor:
    return torch.full_like(labels, EVERYONE)


def _reversed(tracer: Tracer, node: Any, arguments: list[Any], labels: Tensor) -> Tensor:
    dims = varying(labels)
    if not dims:
        return labels
    flipped = labels.flip(dims[0])
    return labels.roll(1, dims[0]) if torch.equal(flipped, labels) else flipped


def _merged(tracer: Tracer, node: Any, arguments: list[Any], labels: Tensor) -> Tensor:
    read = [value.labels.flatten() for value in tensors(arguments) if not value.is_parameter]
    units = torch.cat([labels.flatten(), *read])
    units = units[units != EVERYONE].unique()
    if len(units) < 2:
        return labels
    tracer.tie(node, units[:1], units)
    return units[:1].reshape((1,) * labels.dim())


def _made_up(tracer: Tracer, node: Any, arguments: list[Any], labels: Tensor) -> Tensor:
    return tracer.fresh(node, 1).reshape((1,) * labels.dim())


def mutants(op: str) -> list[Mutant]:
    """Return what can be wrong with the rule of an operation."""
    right = RULES[op]
    changes = {"forgotten": _forgotten, "reversed": _reversed, "merged": _merged, "made up": _made_up}
    found = [_labelled(name, right, change) for name, change in changes.items()]
    return [*found, *(Mutant(f"written as {kind}", Rule(right.label, kind)) for kind in ("plain", "noise") if kind != right.kind)]  # pyright: ignore[reportArgumentType]


def equal(op: str, mutant: str) -> str | None:
    """Return why a mutant does what the rule does, where that can be proved; None where it cannot."""
    kind, name = RULES[op].kind, op.removeprefix("aten.")
    rule = RULES[op].label.__name__
    if (rule == "raw" or name == "lift_fresh_copy.default") and mutant in ("forgotten", "reversed", "merged"):
        return "its result belongs to no unit"
    if op in ("aten.mean.default", "aten.sum.default", "aten.max.default", "aten.min.default") and mutant in ("reversed", "merged"):
        return "its result is one number: it has no dimension to reverse, and its units are one"
    if mutant == "written as noise" and rule == "same" and name.startswith(SAME_EVER):
        return "a copy has the value of its operand"
    if mutant == "written as plain":
        if kind == "pointwise" and tensors_of(op) == 1:
            return "there is no second tensor to cut"
        if name in ("flatten.using_ints", "unsqueeze.default"):
            return "its arguments hold no size"
        if name in ("narrow.default", "roll.default", "channel_shuffle.default"):  # numbers alone say what moves where
            return "`settle` sees that units change their places, and writes the choice of positions itself"
        if name == "embedding.default":
            return "no number of groups, and indices are not cut"
    return None


# ---- the run


@dataclass
class Verdict:
    """What became of a mutant."""

    op: str
    mutant: str
    fate: str
    why: str = ""


def verdicts(op: str) -> list[Verdict]:
    """Try all mutants of an operation's rule until each is killed, or no network is left that holds it."""
    right = RULES[op]
    found: list[Verdict] = []
    for mutant in mutants(op):
        reason = equal(op, mutant.name)
        if reason is not None:
            found.append(Verdict(op, mutant.name, "equal", reason))
            continue
        verdict = Verdict(op, mutant.name, "survived", "no network holds it")
        for held in holders(op):
            RULES[op] = mutant.rule
            try:
                failure = check(held)
            finally:
                RULES[op] = right
            if failure is not None:
                verdict = Verdict(op, mutant.name, "killed", f"{held.name}: {failure}")
                break
            verdict.why = "no check fails" if mutant.active or mutant.name.startswith("written") else "it is never wrong"
        found.append(verdict)
    return found


def run(ops: Sequence[str] | None = None, say: Callable[[str], Any] = lambda line: None) -> list[Verdict]:
    """Mutate the rules of operations, all of them by default."""
    found: list[Verdict] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for op in ops or list(RULES):
            new = verdicts(op)
            found += new
            fates = Counter(verdict.fate for verdict in new)
            say(f"{op}: {', '.join(f'{n} {fate}' for fate, n in fates.items())}")
            for verdict in new:
                if verdict.fate != "killed":
                    say(f"    {verdict.mutant} {verdict.fate}: {verdict.why}")
    return found


def score(found: list[Verdict]) -> float:
    """Return the percentage of mutants that were killed, of those that are not equal to the rule."""
    fates = Counter(verdict.fate for verdict in found)
    return 100 * fates["killed"] / max(1, fates["killed"] + fates["survived"])


def main(ops: list[str]) -> int:
    """Print a report; 1 below 100 %."""
    start = time.perf_counter()
    found = run(ops, lambda line: print(line, flush=True))  # noqa: T201
    fates = Counter(verdict.fate for verdict in found)
    for verdict in found:
        if verdict.fate == "survived":
            print(f"SURVIVED {verdict.op}: {verdict.mutant} ({verdict.why})")  # noqa: T201
    print(  # noqa: T201
        f"{len({verdict.op for verdict in found})} rules, {len(found)} mutants: {fates['killed']} killed, {fates['survived']} survived, "
        f"{fates['equal']} equal to the rule; score {score(found):.1f} % in {time.perf_counter() - start:.0f} s"
    )
    return 0 if fates["survived"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
