"""Operations that mix positions: products of tensors, attention, reductions, pooling, and what nobody knows."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

import torch

from clnp.wiring.graph import resolve
from clnp.wiring.labels import EVERYONE, along, varying
from clnp.wiring.rules.base import Labels, Value, refusal, refuse_mixture, tensors
from clnp.wiring.rules.pointwise import meet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clnp.wiring.graph import Node
    from clnp.wiring.tracer import Tracer


def einsum(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Multiply and sum, in Einstein's notation."""
    values = tensors(arguments[1:2])
    inputs, arrow, output = arguments[0].replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow:
        letters = sorted(letter for letter in set(inputs) if letter.isalpha() and inputs.count(letter) == 1)
        output = ("..." if "..." in inputs else "") + "".join(letters)
    spare = [letter for letter in string.ascii_letters if letter not in inputs]
    widths = [len(value.shape) - len(term.replace("...", "")) for value, term in zip(values, terms, strict=True)]
    most = max([width for width, term in zip(widths, terms, strict=True) if "..." in term], default=0)
    spelled = [term.replace("...", "".join(spare[most - width : most])) for term, width in zip(terms, widths, strict=True)]
    return product(tracer, node, values, spelled, output.replace("...", "".join(spare[:most])))


def matmul(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Multiply matrices: (..., i, k) with (..., k, j)."""
    a, b = tensors(arguments[:2])
    n = len(node.shape or ())
    if min(len(a.shape), len(b.shape)) < 2:
        first = string.ascii_letters[: len(a.shape)]
        second = first[-1] if len(b.shape) == 1 else string.ascii_letters[26 : 26 + len(b.shape) - 2] + first[-1] + "Z"
        return product(tracer, node, [a, b], [first, second], (first[:-1] + second).replace(first[-1], ""))
    lead = string.ascii_letters[: n - 2]
    one, two = lead[n - len(a.shape) :] + "YX", lead[n - len(b.shape) :] + "XZ"
    return product(tracer, node, [a, b], [one, two], lead + "YZ")


def product(tracer: Tracer, node: Node, values: list[Value], terms: list[str], output: str) -> Labels:
    """Multiply tensors and sum over what the output does not have.

    With one parameter it is a layer: rows are its letters in the output, columns those that are summed. Without one, all that
    meets in a position of the output becomes one unit: the channels of an attention head.
    """
    if any(len(set(term)) < len(term) for term in terms):
        return tracer.merge(node, values, "reads a diagonal")
    if len(values) == 2 and sum(value.is_parameter for value in values) == 1:
        which = 0 if values[0].is_parameter else 1
        found = _layer(tracer, node, values[1 - which], terms[1 - which], values[which], terms[which], output)
        if found is not None:
            return found
    values = [tracer.plain(node, value) for value in values]
    met: list[Value] = []
    for value, term in zip(values, terms, strict=True):
        kept = {dim for dim, letter in enumerate(term) if letter in output}
        labels = tracer.only_along(node, value, kept)
        places = [labels.shape[term.index(letter)] if letter in term else 1 for letter in output]
        order = sorted(kept, key=lambda dim, term=term: output.index(term[dim]))
        shaped = labels.squeeze(tuple(dim for dim in range(len(term)) if dim not in kept)) if len(kept) < len(term) else labels
        ranks = sorted(kept)
        shaped = shaped.permute([ranks.index(dim) for dim in order]).reshape(places)
        met.append(Value(shaped, node.shape or ()))
    tracer.multiplied(node, [value.labels for value in values])
    return meet(tracer, node, met, len(output))


def _layer(tracer: Tracer, node: Node, value: Value, term: str, weight: Value, letters: str, output: str) -> Labels | None:
    """Take a product with a parameter as a layer; None where it is not one."""
    summed = [letter for letter in letters if letter in term and letter not in output]
    both = [letter for letter in letters if letter in term and letter in output]
    made = [letter for letter in letters if letter not in term]
    units = [term[dim] for dim in varying(value.labels)]
    if both or any(letter not in output for letter in made):
        return None
    if units and not any(letter in summed for letter in units):
        refuse_mixture(node, value)
        tracer.share(node, [weight])
        dims = [term.index(letter) if letter in term else None for letter in output]
        return tracer.spread(value, dims)
    if not summed or not made:
        return None
    tracer.kinds[node.name] = "weight"
    read = next((letter for letter in summed if letter in units), summed[0])
    dim = term.index(read)
    columns = along(tracer.only_along(node, value, {dim}), dim, value.shape[dim])
    rows = tracer.weight(node, weight, letters.index(made[0]), letters.index(read), columns, value.node)
    return rows.reshape([-1 if letter == made[0] else 1 for letter in output])


def attention(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Make one unit of each head: query, key and value (..., tokens, channels); a key head with all its query heads."""
    q, k, v = (tracer.plain(node, value) for value in arguments[:3])
    mask = arguments[3] if len(arguments) > 3 and isinstance(arguments[3], Value) else None
    n = len(q.shape)
    heads: list[Value] = []
    for value in (q, k, v):
        labels = tracer.only_along(node, value, set(range(len(value.shape) - 2)))
        if value.shape[:-2] != q.shape[:-2] and labels.dim() == n and labels.shape[n - 3] > 1:
            labels = labels.repeat_interleave(q.shape[n - 3] // value.shape[n - 3], n - 3)
        heads.append(Value(labels, q.shape))
    if mask is not None:
        mask = tracer.plain(node, mask)
        lead = set(range(len(mask.shape) - 2))
        heads.append(mask._replace(labels=tracer.only_along(node, mask, lead)))
    tracer.multiplied(node, [value.labels for value in (q, k, v)])
    return meet(tracer, node, heads, n)


def _reduced(node: Node, place: int, n: int, default: Any = None) -> set[int]:
    """Return the dimensions that an operation reduces."""
    dims = node.args[place] if len(node.args) > place else node.kwargs.get("dim", default)
    if dims is None or dims == []:
        return set(range(n))
    return {dim % n for dim in ([dims] if isinstance(dims, int) else dims)}


def reduce(place: int) -> Any:
    """Make the rule of a reduction whose dimensions are argument number `place`."""

    def rule(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
        """Reduce over dimensions: whatever units lie along them are merged."""
        value = tracer.plain(node, arguments[0])
        n = len(value.shape)
        dims = _reduced(node, place, n)
        tracer.refuse_batch(node, value, dims, "reduces over the examples of a batch")
        stacked = node.args[0].name in tracer.graph.by_name and tracer.is_stack(node.args[0].name)  # a sum of what was stacked is a sum
        labels = tracer.only_along(node, value, set(range(n)) - dims, lost="" if stacked else "mixes units without a weight")
        keep = len(node.shape or ()) == n and node.shape != tuple(size for dim, size in enumerate(value.shape) if dim not in dims)
        return labels if keep or n == len(dims) == len(node.shape or ()) else labels.squeeze(tuple(sorted(dims)))

    return rule


def along_dim(place: int) -> Any:
    """Make the rule of an operation that runs along one dimension, argument number `place`: softmax, a cumulative sum."""

    def rule(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
        """Run along a dimension: whatever units lie along it are merged."""
        value = tracer.plain(node, arguments[0])
        n = len(value.shape)
        dims = _reduced(node, place, n, -1)
        tracer.refuse_batch(node, value, dims, "runs along the examples of a batch")
        return tracer.only_along(node, value, set(range(n)) - dims, lost="mixes units without a weight")

    return rule


def spatial(n_spatial: int) -> Any:
    """Make the rule of an operation on positions, the last `n_spatial` dimensions: pooling, upsampling."""

    def rule(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
        """Work on positions: each channel stays what it is."""
        value = tracer.plain(node, arguments[0])
        n = len(value.shape)
        tracer.refuse_batch(node, value, set(range(n - n_spatial, n)), "runs over the examples of a batch")
        return tracer.only_along(node, value, set(range(n - n_spatial)), lost="mixes units without a weight")

    return rule


def columns_of_patches(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Cut patches (B, C, H, W) -> (B, C * k * k, L): each position of a patch belongs to its channel."""
    value = tracer.plain(node, arguments[0])
    channels = along(tracer.only_along(node, value, {1}), 1, value.shape[1])
    per_channel = (node.shape or (0, 0))[1] // len(channels)
    return channels.repeat_interleave(per_channel).reshape(1, -1, 1)


def unknown(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Merge all that an operation without a rule reads into one unit: coarse, but no guess. What is not a function is refused."""
    if node.op.startswith("operator.") or node.op.split(".")[0] not in dir(torch.ops):
        raise refusal(node, "is no operation that a network can be cut by. clnp.wiring.RULES lists those that have a rule.")
    function: Any = resolve(node.op)
    if torch.Tag.nondeterministic_seeded in function.tags:
        raise refusal(node, "draws random numbers: no predictor could repeat its answers. nn.Dropout is drawn in training alone.")
    if function._schema.is_mutable:  # noqa: SLF001
        raise refusal(node, "changes a tensor in place, in a way that a capture cannot follow.")
    return tracer.merge(node, tensors([*arguments, *node.kwargs.values()]), "has no rule: see clnp.wiring.RULES")


def raw(tracer: Tracer, node: Node, arguments: list[Any]) -> Labels:
    """Make a tensor of nothing but sizes and numbers."""
    del tracer, arguments
    return torch.full((1,) * len(node.shape or ()), EVERYONE)


def like(tracer: Tracer, node: Node, arguments: Sequence[Any]) -> Labels:
    """Make a tensor of the size of another: a unit's positions are still its own."""
    value = tracer.plain(node, arguments[0])
    return value.labels
