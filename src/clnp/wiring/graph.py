"""Capture a network once, with `torch.export`, as a list of plain records.

The graph is captured in training mode, where batch norm and dropout are still single operations. In-place operations are
turned into their plain twins: what reads the changed tensor later reads the operation's result in the captured graph already. A
change through a view is not seen that way; `clnp.narrow.check_narrowing` finds it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import operator
import re
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from clnp.errors import WiringError, first_line
from clnp.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

INPUT, PARAMETER, CONSTANT, OUTPUT = "input", "parameter", "constant", "output"
_OPERATORS: dict[str, Callable[..., Any]] = {
    f"operator.{name}": getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "getitem")
}


@dataclass(frozen=True)
class Ref:
    """An argument that is the value of another node."""

    name: str


@dataclass(frozen=True)
class Node:
    """One step of the captured network.

    `shape` has the sizes that were traced (None: not a tensor, but a size or a tuple); `dynamic` tells which of them change with the batch. `module` and `source` say
    where in the user's code the step comes from.
    """

    name: str
    op: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    shape: tuple[int, ...] | None = None
    dynamic: tuple[bool, ...] = ()
    module: str = ""
    source: str = ""

    @property
    def place(self) -> str:
        """Where in the user's model this is, for messages."""
        return f"'{self.module or '(top level)'}' ({self.source or 'no source line'})"


@dataclass(frozen=True)
class Graph:
    """A captured network: its nodes in the order of execution, and the values that it starts from."""

    nodes: tuple[Node, ...]
    trainable: frozenset[str]
    """Names of the parameters (the rest of the state are buffers)."""
    constants: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Tensors that the network's code makes itself, by name."""

    @property
    def output(self) -> str:
        """The name of the node whose value the network returns."""
        return self.nodes[-1].args[0].name

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """The nodes by name."""
        return {node.name: node for node in self.nodes}

    @property
    def input(self) -> Node:
        """The node that is the network's input."""
        return next(node for node in self.nodes if node.op == INPUT)

    @property
    def hash(self) -> str:
        """SHA-256 of what the graph computes: equal for the same architecture, whatever its weights."""
        rows = [dataclasses.astuple(dataclasses.replace(node, source="")) for node in self.nodes]
        return hashlib.sha256(repr(rows).encode()).hexdigest()


def resolve(op: str) -> Callable[..., Any]:
    """Return the function that a node's `op` names: "aten.relu.default" or "operator.mul"."""
    if op in _OPERATORS:
        return _OPERATORS[op]
    packet: Any = torch.ops
    for part in op.split("."):
        packet = getattr(packet, part)
    return packet


def references(value: Any) -> list[str]:
    """Return the names of all nodes that an argument (or a nest of arguments) refers to."""
    if isinstance(value, Ref):
        return [value.name]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [name for item in value for name in references(item)]
    return []


def capture(model: nn.Module, example: Tensor) -> Graph:
    """Capture `model` on an example batch (B, ...); any B, of which the graph stays independent.

    Raises:
        WiringError: torch.export cannot follow the model (data-dependent control flow), or its batch size is hard-coded.
    """
    if not isinstance(example, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise WiringError(f"cannot capture the network: expected a tensor as the example input, found {type(example).__name__}.")
    if example.dim() < 1 or example.shape[0] < 1:
        raise WiringError(f"cannot capture the network: the example input needs a batch dimension, found shape {tuple(example.shape)}.")
    # torch.export treats sizes 0 and 1 as constants: trace with two examples.
    example = torch.cat([example[:1], example[:1]])
    with mode(model, training=True), _fixed_momentum(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False)
        except Exception as error:
            raise WiringError(
                f"cannot capture {type(model).__name__}: torch.export could not follow it on an input of shape {tuple(example.shape)}. "
                f"Control flow that depends on the data, and input of another shape, are the usual reasons. "
                f"It said: {first_line(error)}"
            ) from error
    return _convert(program, model)


def without_head(model: nn.Module, path: str, example: Tensor) -> tuple[nn.Module, nn.Linear]:
    """Return a copy of a network whose linear layer at `path` passes its input on, and that layer.

    Raises:
        WiringError: there is no such layer, it is not linear, or something follows it on an example batch (B, ...).
    """
    trunk = copy.deepcopy(model)
    parent, _, last = path.rpartition(".")
    try:
        layer = model.get_submodule(path)
        if not path or not isinstance(layer, nn.Linear):
            raise WiringError(f"cannot use '{path}' as the head: expected a linear layer, found {type(layer).__name__}.")
        setattr(trunk.get_submodule(parent), last, nn.Identity())
    except AttributeError:
        known = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        raise WiringError(
            f"cannot use '{path}' as the head: no such layer. The linear layers are: {', '.join(known) or '(none)'}."
        ) from None
    whole, headless = copy.deepcopy(model).eval(), copy.deepcopy(trunk).eval()
    with torch.no_grad():
        try:
            example = noisy(example)
            features = headless(example)
        except Exception as error:
            raise WiringError(f"cannot run the network on an input of shape {tuple(example.shape)}: {first_line(error)}") from error
        fits = isinstance(features, Tensor) and features.dim() == 2 and features.shape[1] == layer.in_features
        if not fits or not torch.allclose(whole(example), layer(features), rtol=1e-3, atol=1e-5):
            raise WiringError(
                f"cannot use '{path}' as the head: it must be the last step of the network and read features (B, {layer.in_features})."
            )
    return trunk, layer


def noisy(example: Tensor, n: int | None = None) -> Tensor:
    """Return examples like the given ones, (n, ...), with noise where they are real numbers: zeros would hide differences."""
    x = example if n is None else example[:1].expand(n, *example.shape[1:])
    return x + torch.randn(x.shape, generator=generator("noise", len(x))).to(x) if x.is_floating_point() else x.clone()


@contextlib.contextmanager
def mode(model: nn.Module, *, training: bool) -> Generator[None]:
    """Put a user's model in training or evaluation mode for a while, and back after, module by module."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.train(training)
        yield
    finally:
        for module, was_training in before:
            module.training = was_training


@contextlib.contextmanager
def _fixed_momentum(model: nn.Module) -> Generator[None]:
    """Give every batch norm of the model a momentum for the capture, and put None back after."""
    # momentum=None would make the captured statistics depend on a counter's value; they are estimated anew at commit anyway.
    cumulative = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.momentum is None  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    ]
    try:
        for module in cumulative:
            module.momentum = 0.1
        yield
    finally:
        for module in cumulative:
            module.momentum = None


def _convert(program: torch.export.ExportedProgram, model: nn.Module) -> Graph:
    """Turn an exported program into plain records."""
    signature = program.graph_signature
    stored = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    canonical = _canonical_names(model)
    nodes: list[Node] = []
    symbols: dict[str, tuple[str, int]] = {}
    for raw in program.graph.nodes:
        if raw.op == "placeholder":
            name = stored.get(raw.name)
            if name is None:
                nodes.append(_record(raw, INPUT, ()))
                symbols |= {str(size): (raw.name, dim) for dim, size in enumerate(raw.meta["val"].shape) if not isinstance(size, int)}
            else:
                kind = PARAMETER if raw.name in signature.inputs_to_parameters else CONSTANT
                nodes.append(_record(raw, kind, (canonical.get(name, name),)))
        elif raw.op == "output":
            nodes.append(_output(raw))
        elif raw.op == "call_function":
            _convert_call(raw, nodes, symbols)
        else:
            raise WiringError(
                f"cannot capture {type(model).__name__}: it holds a nested graph ('{raw.op} {raw.target}'), a form of control flow."
            )
    nodes = _live(nodes)
    _check_batch(nodes)
    made = {
        name: tensor.detach().cpu()
        for name in signature.inputs_to_lifted_tensor_constants.values()
        if isinstance(tensor := program.constants[name], Tensor)
    }
    return Graph(tuple(nodes), frozenset(canonical[name] for name, _ in model.named_parameters()), made)


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """Map every name of a tensor to its first name: tied parameters have several."""
    first: dict[int, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def _convert_call(raw: Any, nodes: list[Node], symbols: dict[str, tuple[str, int]]) -> None:
    op = str(raw.target) if isinstance(raw.target, OpOverload) else f"operator.{raw.target.__name__}"
    args = _plain(raw.args)
    if op == "aten.sym_size.int":
        # Ask the input for its batch size, not an activation that a narrowed network may not have.
        name, dim = symbols.get(str(raw.meta["val"]), (args[0].name, args[1]))
        nodes.append(_record(raw, op, (Ref(name), dim)))
        return
    plain = re.sub(r"_\.", ".", op, count=1)
    nodes.append(_record(raw, plain, args, {key: _plain(value) for key, value in raw.kwargs.items()}))


def _plain(value: Any) -> Any:
    if isinstance(value, torch.fx.Node):
        return Ref(value.name)
    if isinstance(value, (list, tuple)):
        return type(value)([_plain(item) for item in value])
    return value


def _record(raw: Any, op: str, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Node:
    value = raw.meta.get("val")
    if isinstance(value, (tuple, list)) and value and isinstance(value[0], Tensor):
        value = value[0]  # pooling that returns indices, too: both have one shape
    sizes: tuple[Any, ...] | None = tuple(value.shape) if isinstance(value, Tensor) else None
    stack = list((raw.meta.get("nn_module_stack") or {}).values())
    module = stack[-1][0] if stack and "metadata_hook" not in stack[-1][0] else ""
    return Node(
        name=raw.name,
        op=op,
        args=args,
        kwargs=dict(kwargs or {}),
        shape=None if sizes is None else tuple(size if isinstance(size, int) else int(size.node.hint) for size in sizes),
        dynamic=tuple(not isinstance(size, int) for size in sizes or ()),
        module=module,
        source=_source(raw.meta.get("stack_trace") or ""),
    )


def _source(stack_trace: str) -> str:
    """Return "file.py:12: code" of the innermost frame that is not torch's own."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)', stack_trace)
    own = [frame for frame in frames if "/torch/" not in frame[0]] or frames
    return f"{own[-1][0]}:{own[-1][1]}: {own[-1][2].strip()}" if own else ""


def _output(raw: Any) -> Node:
    values = [value for value in raw.args[0] if isinstance(value, torch.fx.Node)]
    if len(values) != 1:
        raise WiringError(f"cannot use this network as a trunk: expected one output tensor, found {len(values)} outputs.")
    return Node(name="output", op=OUTPUT, args=(_plain(values[0]),))


def _live(nodes: list[Node]) -> list[Node]:
    """Leave out what the output does not need: unused parameters, counters of batch norms. The input stays."""
    needed: set[str] = set()
    for node in reversed(nodes):
        if node.op == OUTPUT or node.name in needed:
            needed |= set(references([list(node.args), dict(node.kwargs)]))
    return [node for node in nodes if node.name in needed or node.op in (INPUT, OUTPUT)]


def _check_batch(nodes: list[Node]) -> None:
    """Refuse a network that works for one batch size only, or whose output is not one row per example."""
    by_name = {node.name: node for node in nodes}
    inputs, output = next(node for node in nodes if node.op == INPUT), by_name[nodes[-1].args[0].name]
    if not any(inputs.dynamic) or not output.dynamic or not output.dynamic[0] or (output.shape or ())[:1] != (inputs.shape or ())[:1]:
        raise WiringError(
            f"cannot capture the network: its batch size is hard-coded, or its output has no row per example "
            f"(traced with a batch of 2: input {inputs.shape}, output {output.shape} at {output.place}). "
            f"Use x.shape[0] or -1 where the code has a fixed batch size."
        )
