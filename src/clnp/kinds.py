"""How each kind of operation is written for some units only, in evaluation mode: one function per kind, one table, `KINDS`."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from clnp.emit import Emitter, Member, kept_positions, positions, present, restricted_sizes, substitute
from clnp.wiring import EVERYONE
from clnp.wiring.graph import MASK, references
from clnp.wiring.patterns import UNIT_NORM
from clnp.wiring.rules.base import moved
from clnp.wiring.rules.norms import NormForm, norm_form

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from clnp.wiring import Node

Part = tuple[Tensor, Tensor]
"""Units that are normalised together, and the units over which: those of one owner, and those that it needs. Each bool (n_units,)."""


@dataclass
class Step:
    """One operation to write: where to, for which units, and where its operands are.

    Attributes:
        emitter: the graph that is written.
        node: the operation.
        member: which units are left.
        operand: name of a node -> its value in this graph, restricted to the members; None when it has none.
        parts: for norms over units.
        cut: whether operands come cut to what the operation has left.
    """

    emitter: Emitter
    node: Node
    member: Member
    operand: Callable[[str], Any]
    parts: Sequence[Part] = field(default_factory=tuple[Part, ...])
    cut: bool = False

    def value(self, argument: Any) -> Any:
        """Return an argument as it is in this graph."""
        return substitute(argument, self.operand, self.emitter.size)

    def aligned(self, argument: Any) -> Any:
        """Return an argument whose tensors are cut to what this operation has left."""

        def cut(name: str) -> Any:
            value = self.operand(name)
            return value if self.cut else self.emitter.align(value, name, self.node, self.member)

        return substitute(argument, cut, self.emitter.size)

    @property
    def sizes(self) -> list[Any]:
        """The sizes of the result."""
        return [self.emitter.size(size) for size in restricted_sizes(self.emitter.wiring, self.node, self.member)]


def emit(step: Step) -> Any:
    """Write one operation, or return None when none of its value's units is left."""
    if not present(step.emitter.wiring, step.node.name, step.member):
        return None
    return KINDS[step.emitter.wiring.kind(step.node)](step)


def _plain(step: Step) -> Any:
    node = step.node
    if node.op == "operator.getitem":
        whole = step.value(node.args[0])
        return whole[node.args[1]] if isinstance(whole, tuple) else step.emitter.call(node, (whole, node.args[1]))
    if node.op == UNIT_NORM:
        value = step.value(node.args[0])
        return normalised(step.emitter, norm_form(node, len(node.shape or ())), value, step.sizes)
    args = step.value(node.args)
    if node.op.startswith("aten.new_") and args[0] is None:  # only its dtype and device matter
        args[0] = next(iter(step.emitter.inputs.values()))
    return step.emitter.call(node, args, step.value(dict(node.kwargs)))


def _pointwise(step: Step) -> fx.Node:
    return step.emitter.call(step.node, step.aligned(step.node.args), step.aligned(dict(step.node.kwargs)))


def _shape(step: Step) -> fx.Node:
    return step.emitter.run("reshape.default", step.value(step.node.args[0]), step.sizes)


def _expand(step: Step) -> fx.Node:
    return step.emitter.run("expand.default", step.value(step.node.args[0]), step.sizes)


def _dim(node: Node, n_dims: int) -> int:
    """Return along which of its dimensions an operation cuts or joins."""
    return (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % n_dims


def _cut(step: Step) -> fx.Node:
    """Write a slice or a selection: along the units' own dimension its numbers change."""
    node, source, emitter = step.node, step.node.args[0].name, step.emitter
    before = kept_positions(emitter.wiring, source, step.member)
    shape = emitter.wiring.node(source).shape or ()
    dim = _dim(node, len(shape))
    value = step.value(node.args[0])
    if before is None or before[0] != dim:
        return emitter.call(node, [value, *step.value(node.args[1:])], step.value(dict(node.kwargs)))
    line = torch.arange(emitter.wiring.node(source).size(dim)).reshape([-1 if d == dim else 1 for d in range(len(shape))])
    places = moved(node, line).flatten()  # of the whole value's result
    left = torch.isin(places, before[1])
    index = torch.searchsorted(before[1], places[left])
    if node.op == "aten.select.int":
        return emitter.run("select.int", value, dim, int(index[0]))
    return emitter.index(value, dim, index)


def _gather(step: Step) -> fx.Node:
    """Write a value whose units only changed places."""
    wiring, emitter = step.emitter.wiring, step.emitter
    found = wiring.gathers[step.node.name]
    after = kept_positions(wiring, step.node.name, step.member)
    wanted = found.positions if after is None else found.positions[after[1]]
    held: list[Tensor] = []
    values: list[Any] = []
    start = 0
    for name in found.sources:
        if step.operand(name) is not None:
            values.append(step.operand(name))
            held.append(emitter.held(name, found.dim, step.member) + start)
        start += wiring.node(name).size(found.dim)
    value = values[0] if len(values) == 1 else emitter.run("cat.default", values, found.dim)
    index = torch.searchsorted(torch.cat(held), wanted)
    return value if torch.equal(index, torch.arange(sum(len(part) for part in held))) else emitter.index(value, found.dim, index)


def _cat(step: Step) -> fx.Node:
    node, wiring = step.node, step.emitter.wiring
    dim = _dim(node, len(node.shape or ()))
    kept = kept_positions(wiring, node.name, step.member)
    refs = [ref for ref in node.args[0] if step.operand(ref.name) is not None]
    values = step.value(refs) if kept is None or kept[0] == dim else step.aligned(refs)
    return values[0] if len(values) == 1 else step.emitter.call(node, [values, dim])


def _pad(step: Step) -> Any:
    """Write a padding. What it puts beside units along their own dimension is raw input, which the pool does without."""
    node, emitter = step.node, step.emitter
    kept = kept_positions(emitter.wiring, node.name, step.member)
    amounts = list(node.args[1])
    n = len(node.shape or ())
    place = None if kept is None else 2 * (n - 1 - kept[0])
    sides = [0, 0] if place is None or place >= len(amounts) else amounts[place : place + 2]
    value = step.value(node.args[0])
    if kept is None or place is None or not any(sides) or not bool((emitter.wiring.values[node.name] == EVERYONE).any()):
        return emitter.call(node, [value, *step.value(node.args[1:])], step.value(dict(node.kwargs)))
    amounts[place : place + 2] = [0, 0]
    if value is not None and any(amounts):
        value = emitter.call(node, [value, *step.value([amounts, *node.args[2:]])], step.value(dict(node.kwargs)))
    at = 2 if node.op == "aten.constant_pad_nd.default" else 3
    fill = float(node.args[at] if len(node.args) > at and node.args[at] is not None else node.kwargs.get("value") or 0.0)
    sizes = step.sizes

    def beside(amount: int) -> list[Any]:
        there = amount > 0 and bool(step.member[-1])
        shape = [amount if dim == kept[0] else size for dim, size in enumerate(sizes)]
        return [emitter.full(shape, fill, value)] if there else []

    parts = [*beside(sides[0]), *([] if value is None else [value]), *beside(sides[1])]
    return parts[0] if len(parts) == 1 else emitter.run("cat.default", parts, kept[0])


def weight_of(step: Step) -> tuple[str, str, str | None]:
    """Return the names of a layer's weight, of what it reads, and of its bias."""
    wiring, names = step.emitter.wiring, references(list(step.node.args))
    weight = next(name for name in names if name in wiring.operands and wiring.operands[name].columns is not None)
    value = next(name for name in names if name != weight)
    rest = [name for name in names if name not in (weight, value)]
    return weight, value, rest[0] if rest else None


def constant_rows(step: Step, bias: Any) -> fx.Node:
    """Write the result of a layer that reads nothing: its bias everywhere."""
    emitter = step.emitter
    if bias is None:
        return emitter.full(step.sizes, 0.0)
    n = len(step.node.shape or ())
    kept = kept_positions(emitter.wiring, step.node.name, step.member)
    dim = kept[0] if kept is not None else (1 if "conv" in step.node.op else n - 1)
    return emitter.run("expand.default", emitter.run("reshape.default", bias, [-1 if d == dim else 1 for d in range(n)]), step.sizes)


def _weight(step: Step) -> fx.Node:
    _, source, bias = weight_of(step)
    if step.operand(source) is None:
        return constant_rows(step, None if bias is None else step.operand(bias))
    return step.emitter.call(step.node, step.value(step.node.args), step.value(dict(step.node.kwargs)))


GROUPS_ARGUMENT = {"aten.group_norm.default": 1, "aten.conv_transpose": 6, "aten.conv": 6}


def _own(step: Step) -> fx.Node:
    """Write an operation in which each unit has its own parameters; a number of groups becomes that of those left."""
    node, wiring = step.node, step.emitter.wiring
    args = step.value(node.args)
    if node.op in ("aten.instance_norm.default", "aten.group_norm.default", "aten.prelu.default"):
        args[0] = step.aligned(node.args[0])
    place = next((place for op, place in GROUPS_ARGUMENT.items() if node.op.startswith(op)), None)
    kept = kept_positions(wiring, node.name, step.member)
    if place is not None and kept is not None:
        groups, full = node.args[place], node.size(kept[0])
        args[place] = groups * len(kept[1]) // full
        if node.op.startswith("aten.conv") and step.emitter.is_raw(node.args[0].name):
            n_in = wiring.node(node.args[0].name).size(1) // groups
            left = torch.unique(kept[1] // (full // groups))
            channels = (left[:, None] * n_in + torch.arange(n_in)).flatten()
            args[0] = step.emitter.index(step.value(node.args[0]), 1, channels)
    return step.emitter.call(node, args, step.value(dict(node.kwargs)))


def _norm(step: Step) -> fx.Node:
    """Write a batch norm that uses its stored statistics."""
    args = step.aligned(step.node.args)
    args[5] = False
    return step.emitter.call(step.node, args)


def scale_and_shift(step: Step, form: NormForm, value: fx.Node) -> fx.Node:
    """Write the affine part of a norm over units."""
    n = len(step.node.shape or ())
    for part, op in ((form.scale, "mul.Tensor"), (form.shift, "add.Tensor")):
        if part is not None:
            tensor = step.operand(part.name)
            if step.node.op == "aten.group_norm.default":
                tensor = step.emitter.run("reshape.default", tensor, [-1] + [1] * (n - 2))
            value = step.emitter.run(op, value, tensor)
    return value


def normalised(emitter: Emitter, form: NormForm, value: fx.Node, sizes: Sequence[Any]) -> fx.Node:
    """Write the norm of a value of some sizes over all that it holds: with torch's own norm, which is several times faster, where it can."""
    dims = list(form.dims)
    if dims == list(range(len(sizes) - len(dims), len(sizes))):
        shape = [sizes[dim] for dim in dims]
        if form.centred:
            return emitter.run("layer_norm.default", value, shape, None, None, form.eps)
        return emitter.run("rms_norm.default", value, shape, None, form.eps)
    eps = torch.finfo(torch.float32).eps if form.eps is None else form.eps
    if form.centred:
        both = emitter.run("var_mean.correction", value, dims, correction=0, keepdim=True)
        variance, mean = (emitter.graph.call_function(operator.getitem, (both, i)) for i in (0, 1))
        value = emitter.run("sub.Tensor", value, mean)
    else:
        variance = emitter.run("mean.dim", emitter.run("pow.Tensor_Scalar", value, 2), dims, True)
    return emitter.run("mul.Tensor", value, emitter.run("rsqrt.default", emitter.run("add.Tensor", variance, eps)))


def _over(step: Step) -> fx.Node:
    """Write a norm over units: each is normalised over those that its owner needs."""
    node, emitter, wiring = step.node, step.emitter, step.emitter.wiring
    form = norm_form(node, len(node.shape or ()))
    source = node.args[0].name
    value = step.value(node.args[0])
    kept = kept_positions(wiring, node.name, step.member)
    sizes = step.sizes
    if emitter.is_raw(source):
        if kept is not None:
            sizes[kept[0]] = node.size(kept[0])
        whole = normalised(emitter, form, value, sizes)
        if kept is not None and len(kept[1]) < node.size(kept[0]):
            whole = emitter.index(whole, kept[0], kept[1])
        return scale_and_shift(step, form, whole)
    if kept is None:
        return _native(step, form, value)
    dim, places = kept
    units = wiring.values[node.name].flatten()[places]
    everyone = torch.ones(len(units), dtype=torch.bool)
    rest = everyone.clone()
    read: list[fx.Node] = []
    place = torch.zeros(len(units), dtype=torch.long)  # of each unit in what is read, one norm after another
    n_read = 0
    for own, over in [*((own[units], over[units]) for own, over in step.parts), (everyone, everyone)]:
        mine = own & rest
        rest &= ~own
        if not bool(mine.any()):
            continue
        if bool(mine.all()) and bool(over.all()):
            return _native(step, form, value)
        sizes[dim] = int(over.sum())
        read.append(normalised(emitter, form, value if bool(over.all()) else emitter.index(value, dim, over.nonzero()[:, 0]), sizes))
        place[mine] = n_read + (over.cumsum(0) - 1)[mine]
        n_read += sizes[dim]
    joined = read[0] if len(read) == 1 else emitter.run("cat.default", read, dim)
    return scale_and_shift(step, form, emitter.index(joined, dim, place))


def _native(step: Step, form: NormForm, value: fx.Node) -> fx.Node:
    """Write a norm over units as it is in the model."""
    if step.node.op == UNIT_NORM:
        return normalised(step.emitter, form, value, step.sizes)
    args = step.value(step.node.args)
    args[0] = value
    if step.node.op != "aten.group_norm.default":
        args[1] = [step.sizes[dim] for dim in form.dims]
    return step.emitter.call(step.node, args)


def _noise(step: Step) -> Any:
    if step.node.op == MASK:
        return step.emitter.full(step.sizes, float(step.node.args[1]))
    return step.operand(step.node.args[0].name)


def attention_arguments(step: Step) -> tuple[list[Any], float, bool, dict[str, Any]]:
    """Return query, key, value and mask; the dropout; whether it is causal; and the other arguments of an attention."""
    args, kwargs = list(step.node.args), dict(step.node.kwargs)
    mask = args[3] if len(args) > 3 else kwargs.pop("attn_mask", None)
    dropout = args[4] if len(args) > 4 else kwargs.pop("dropout_p", 0.0)
    causal = args[5] if len(args) > 5 else kwargs.pop("is_causal", False)
    return [*step.value(args[:3]), None if mask is None else step.aligned(mask)], float(dropout), bool(causal), kwargs


def _attention(step: Step) -> fx.Node:
    tensors, _, causal, kwargs = attention_arguments(step)
    return step.emitter.call(step.node, [*tensors, 0.0, causal], kwargs)


GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def recurrent_layer(
    emitter: Emitter, node: Node, value: Any, weights: Sequence[Any], start: Sequence[Any], n_units: int
) -> tuple[Any, Any]:
    """Write one layer in one direction, as torch's own operation: outputs (B, T, H) and the last cell state (B, H).

    Args:
        emitter: the graph that is written.
        node: a `clnp.recurrent` step.
        value: the input (B, T, I).
        weights: w_ih, w_hh and, where there are biases, b_ih and b_hh.
        start: h0 and c0 (B, H), or None for zeros.
        n_units: H.
    """
    mode, reverse = node.args[7], node.args[8]
    batch = emitter.size(node.sizes[0] or (node.shape or (0,))[0])
    zero = emitter.full([1, batch, n_units], 0.0, value)
    h0, c0 = (zero if given is None else emitter.run("unsqueeze.default", given, 0) for given in start)
    if reverse:
        value = emitter.run("flip.default", value, [1])
    state: Any = [h0, c0] if mode == "lstm" else h0
    results = emitter.run(f"{mode}.input", value, state, list(weights), len(weights) > 2, 1, 0.0, False, False, True)
    out = emitter.graph.call_function(operator.getitem, (results, 0))
    last = emitter.run("squeeze.dim", emitter.graph.call_function(operator.getitem, (results, 2 if mode == "lstm" else 1)), 0)
    return emitter.run("flip.default", out, [1]) if reverse else out, last


def nothing_read(emitter: Emitter, node: Node) -> fx.Node:
    """Write the input of a recurrent layer that reads nothing but itself: zeros (B, T, 1)."""
    sizes = [emitter.size(size or full) for size, full in zip(node.sizes[:2], (node.shape or ())[:2], strict=True)]
    return emitter.full([*sizes, 1], 0.0)


def _recurrent(step: Step) -> tuple[Any, Any]:
    node, wiring = step.node, step.emitter.wiring
    kept = kept_positions(wiring, node.name, step.member)
    n = len(kept[1]) if kept is not None else (node.shape or (0, 0, 0))[2]
    value = step.value(node.args[0])
    weights = [step.operand(ref.name) for ref in node.args[1:5] if ref is not None]
    if value is None:  # reads nothing but itself
        rows = len(positions(step.member, wiring.operands[node.args[1].name].rows))
        value = nothing_read(step.emitter, node)
        weights[0] = step.emitter.full([rows, 1], 0.0)
    start = [None if ref is None else step.aligned(ref) for ref in node.args[5:7]]
    return recurrent_layer(step.emitter, node, value, weights, start, n)


KINDS: Mapping[str, Callable[[Step], Any]] = {
    "plain": _plain,
    "pointwise": _pointwise,
    "shape": _shape,
    "expand": _expand,
    "slice": _cut,
    "select": _cut,
    "gather": _gather,
    "cat": _cat,
    "pad": _pad,
    "weight": _weight,
    "own": _own,
    "norm": _norm,
    "over": _over,
    "noise": _noise,
    "attention": _attention,
    "recurrent": _recurrent,
}
