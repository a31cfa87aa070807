"""The narrowed network: the captured graph and a set of units in, a smaller dense network out.

Every size in the graph is rewritten and every tensor holds the chosen units only: no masks. What the chosen units do not
read is not computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from clnp.emit import Emitter, operand_places, operand_view, positions, present, take, with_everyone
from clnp.errors import WiringError, first_line
from clnp.inputs import Inputs, parts
from clnp.kinds import Part, Step, emit
from clnp.modes import exactly
from clnp.wiring import Wiring, mode, noisy
from clnp.wiring.graph import CONSTANT, INPUT, OUTPUT, references

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def narrow(
    wiring: Wiring,
    state: Mapping[str, Tensor],
    units: Tensor,
    *,
    norms: Sequence[Part] = (),
    outputs: Sequence[str] | None = None,
    moved: bool = True,
    buffers: bool = False,
    head: tuple[Tensor, Tensor] | None = None,
) -> fx.GraphModule:
    """Build the dense network of some units, in evaluation mode for ever.

    Args:
        wiring: of the network.
        state: its full-width parameters and buffers by name.
        units: the units to keep, bool (n_units,). Weights between kept units are copied as they are.
        norms: for layer norms and their kin: which units are normalised over which, see `clnp.isolation.norm_parts`. Units that
            are in none of them are normalised over all that are kept.
        outputs: names of nodes to return (a tuple, see `moved`) instead of the trunk's output.
        moved: move the examples of each of `outputs` to dimension 0; otherwise they stay where the network has them.
        buffers: keep the weights as buffers, so that no optimizer can ever be given them.
        head: weight (classes, F) and bias (classes,) of a linear head on the trunk's F features.

    Returns: a module from input (B, ...) to logits (B, classes), to features, or to the tuple of `outputs`. Its
        parameters keep the names that they have in the model; none of them asks for a gradient.
    """
    emitter = Emitter(wiring, state)
    member = with_everyone(units)
    values: dict[str, Any] = dict(emitter.take_inputs())

    def operand(name: str) -> Any:
        if name not in values and name in wiring.operands:
            tensor = take(operand_view(wiring, state, name), operand_places(wiring, name, member))
            found = wiring.operands[name]
            trained = found.parameter in wiring.graph.trainable and not buffers
            stored = nn.Parameter(tensor, requires_grad=False) if trained else tensor
            values[name] = emitter.store(found.parameter, stored) if tensor.numel() or not bool((found.rows != -1).any()) else None
        return values.get(name)

    for node in wiring.graph.nodes:
        if node.op in (OUTPUT, INPUT) or node.name in wiring.hidden or node.name in wiring.operands:
            continue
        values[node.name] = emitter.constant(node) if node.op == CONSTANT else emit(Step(emitter, node, member, operand, norms))
    if outputs is not None:
        return emitter.finish(tuple(output(emitter, wiring, name, operand(name), moved=moved) for name in outputs))
    result = operand(wiring.graph.output)
    if head is not None:
        columns = positions(member, wiring.features).to(head[0].device)
        name = next(name for name in ("head", "task_head", "head_of_the_task") if not hasattr(emitter.root, name))
        weight = emitter.store(f"{name}.weight", nn.Parameter(head[0].detach()[:, columns], requires_grad=False))
        bias = emitter.store(f"{name}.bias", nn.Parameter(head[1].detach().clone(), requires_grad=False))
        result = emitter.run("linear.default", result, weight, bias)
    return emitter.finish(result)


def reaches(wiring: Wiring, units: Tensor) -> bool:
    """Tell whether the output of the network of some units still depends on its input.

    A group without units deletes its branch: what read it goes on with a bias. Where the branch was the only path, nothing gets through.
    """
    member = with_everyone(units)
    alive: set[str] = set()
    for node in wiring.graph.nodes:
        if node.op in (INPUT, OUTPUT) or node.name in wiring.operands:
            if node.op == INPUT:
                alive.add(node.name)
            continue
        read = references([list(node.args), dict(node.kwargs)])
        if (node.name in wiring.hidden or present(wiring, node.name, member)) and any(name in alive for name in read):
            alive.add(node.name)
    return wiring.graph.output in alive


def output(emitter: Emitter, wiring: Wiring, name: str, value: Any, *, moved: bool) -> fx.Node:
    """Return a value for the end of a graph; `moved`: with its examples along dimension 0."""
    if isinstance(value, tuple):
        value = value[0]
    dim = wiring.graph.batch_dim(wiring.node(name))
    return value if not dim or not moved else emitter.run("movedim.int", value, dim, 0)


def moved_labels(wiring: Wiring, name: str) -> Tensor:
    """Return the labels of a value whose examples were moved to dimension 0, as `output` does."""
    dim = wiring.graph.batch_dim(wiring.node(name))
    labels = wiring.values[name]
    return labels if not dim else labels.movedim(dim, 0)


def whole(wiring: Wiring, state: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> fx.GraphModule:
    """Build the network of all units, see `narrow`."""
    return narrow(wiring, state, torch.ones(wiring.n_units, dtype=torch.bool), outputs=outputs)


CHECKED_BATCHES = (1, 3, 17)
"""Batch sizes that a network is tried with: the capture saw one, and the code may ask how large a batch is."""


@exactly()
def check_narrowing(wiring: Wiring, state: Mapping[str, Tensor], trunk: nn.Module, example: Inputs) -> None:
    """Check that the captured network, with all its units, does what the trunk does, at several batch sizes, example by example.

    Raises:
        WiringError: it does not: the code of the trunk depends on something that the capture could not see.
    """
    network = whole(wiring, state)
    # A counter that it keeps, or a weight that it renormalises, is the caller's. One copy for all calls: what one of them changes, the next shows.
    own = {name: tensor.detach().clone() for name, tensor in (*trunk.named_parameters(), *trunk.named_buffers())}
    for n in CHECKED_BATCHES:
        x = parts(noisy(example, n))
        with mode(trunk, training=False), torch.no_grad():
            try:
                expected = joined(functional_call(trunk, own, x))
            except (RuntimeError, IndexError, ValueError) as error:
                given = ", ".join(f"{tuple(part.shape)} {part.dtype}" for part in x)
                raise WiringError(f"cannot run the network on an input of shape {given}: {first_line(error)}") from error
            found = network(*(part.cpu() for part in x))
            alone = torch.cat([network(*(part[place : place + 1].cpu() for part in x)) for place in (0, n - 1)])
        expected = expected.cpu()
        tolerance = 1e-4 * max(1.0, float(expected.abs().max()))
        if expected.shape != found.shape or float((expected - found).abs().max()) > tolerance:
            raise WiringError(
                f"cannot use this network: what was captured does not compute what it computes (batch of {n}). {_unseen(wiring)}"
            )
        if float((alone - found[[0, -1]]).abs().max()) > tolerance:
            raise WiringError(
                f"cannot isolate tasks in this network: it mixes the examples of a batch, {_mixer(wiring, state, x)}. "
                f"An example's output in a batch of {n} is not the one that it has alone."
            )


def _unseen(wiring: Wiring) -> str:
    """Say what a capture may not have seen of a network."""
    places = wiring.graph.through_views
    if places:
        return (
            f"A part of a tensor is changed in place, at {places[0]}, which a capture does not see in the whole. "
            f"Make a new tensor of the parts (torch.cat, torch.where)."
        )
    return "Its forward pass may depend on the mode, on the batch, on chance, or on what it changed in an earlier call."


def _mixer(wiring: Wiring, state: Mapping[str, Tensor], x: tuple[Tensor, ...]) -> str:
    """Say which operation is the first whose result for an example depends on the others."""
    names = [node.name for node in wiring.graph.nodes if wiring.graph.batch_dim(node) is not None and node.op not in (INPUT, OUTPUT)]
    names = [name for name in names if name in wiring.values and name not in wiring.hidden]
    network = whole(wiring, state, names)
    together = network(*(part.cpu() for part in x))
    first, last = (network(*(part[place : place + 1].cpu() for part in x)) for place in (0, len(x[0]) - 1))
    for name, many, *ends in zip(names, together, first, last, strict=True):
        one = torch.cat(ends)
        exact = torch.complex128 if many.is_complex() else torch.float64
        if one.shape[1:] != many.shape[1:] or not torch.allclose(many[[0, -1]].to(exact), one.to(exact), rtol=1e-3, atol=1e-5):
            node = wiring.node(name)
            return f"at {node.op} in {node.place}"
    return "along dimension 0"


@exactly()
def free_sizes(wiring: Wiring, state: Mapping[str, Tensor], example: Inputs) -> list[tuple[int, ...]]:
    """Return, for each input, which sizes of an example may be another one: 0 where the size is fixed, else the number of its length.

    Sizes of one number are one length, in whatever inputs they are: the tokens of a text, say, and its mask. A length is free if twice
    of it and one less can be read.

    Args:
        wiring: of the network.
        state: its full-width parameters and buffers by name.
        example: is tried at other lengths. Where the network cannot read it (zeros, made up for a network of lengths of sequences,
            say), what the capture left open is free.
    """
    network = whole(wiring, state)
    x = parts(noisy(example, 1))
    x = None if _answer(network, x) is None else x
    sizes = [node.sizes[1:] for node in wiring.graph.inputs]
    lengths = list(dict.fromkeys(size for found in sizes for size in found if size is not None))
    free: list[Any] = [None]  # a length's place is its number
    for length in lengths:
        tied = [(place, dim) for place, found in enumerate(sizes) for dim, size in enumerate(found, start=1) if size == length]
        if x is None or any(_answer(network, other) is not None for other in _resized(x, tied)):
            free.append(length)
    return [tuple(free.index(size) if size in free else 0 for size in found) for found in sizes]


def readable(network: fx.GraphModule, examples: Iterable[Inputs], n: int = 3) -> tuple[Tensor, ...] | None:
    """Return n examples, with noise, like the first of some to which a network has a finite answer; None where it has none."""
    for example in examples:
        x = parts(noisy(example, n))
        answer = _answer(network, x)
        if answer is not None and bool(torch.isfinite(answer).all()):
            return x
    return None


def _resized(x: Sequence[Tensor], tied: Sequence[tuple[int, int]]) -> list[list[Tensor]]:
    """Return inputs with a length that is twice as large, and one less: (input, dimension) of it."""
    twice, less = list(x), list(x)
    for place, dim in tied:
        twice[place] = torch.cat([twice[place], twice[place]], dim)
        less[place] = less[place].narrow(dim, 0, less[place].shape[dim] - 1)
    return [twice, less] if all(x[place].shape[dim] > 1 for place, dim in tied) else []


def _answer(network: nn.Module, x: Sequence[Tensor]) -> Tensor | None:
    """Return the answer of a network to some inputs; None where it cannot read them."""
    try:
        with torch.no_grad():
            return network(*(part.cpu() for part in x))
    except (RuntimeError, IndexError):
        return None


def joined(output: Any) -> Tensor:
    """Return the output of a trunk, several of them side by side.

    Raises:
        WiringError: it is no tensor.
    """
    leaves = tree_leaves(output)
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise WiringError(f"cannot use this network as a trunk: expected tensors as its output, found {type(output).__name__}.")
    return leaves[0] if len(leaves) == 1 else torch.cat(leaves, 1)


__all__ = ["check_narrowing", "joined", "moved_labels", "narrow", "positions", "present", "readable", "take", "with_everyone"]
