"""Capture a network once, with `torch.export`.

The graph is captured in training mode, where batch norm and dropout are still single operations. In-place operations are
turned into their plain twins: what reads the changed tensor later reads the operation's result in the captured graph already. A
change through a view is not seen that way; `clnp.narrow.check_narrowing` finds it. Operations that return several tensors by
cutting one are turned into slices, several outputs into one, `addmm`, and a linear layer
whose bias is computed, into a product and a sum, recurrent layers into one step for each
layer and direction.
"""

from __future__ import annotations

import inspect
import re
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from clnp.errors import WiringError, first_line
from clnp.wiring.graph import CONSTANT, INPUT, MASK, OUTPUT, PARAMETER, SIZE_OPERATIONS, Graph, Node, Ref, Size, live, resolve
from clnp.wiring.prepare import of_user, ready, two_or_more

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from clnp.inputs import Inputs

_ADDED = {"aten.addmm.default": "aten.mm.default", "aten.baddbmm.default": "aten.bmm.default"}
_EMPTY = ("aten.empty.memory_format", "aten.empty_like.default", "aten.new_empty.default")
_CUT = ("aten.split.", "aten.split_with_sizes.", "aten.chunk.", "aten.tensor_split.")


def capture(model: nn.Module, example: Inputs) -> Graph:
    """Capture `model` on an example batch (B, ...), or on a tuple of them for a network with several inputs.

    The graph stays independent of B, and of every other size that the network's code does not fix.

    Raises:
        WiringError: torch.export cannot follow the model (data-dependent control flow), or its batch size is hard-coded.
    """
    batch = two_or_more(example)
    dynamic = torch.export.Dim.AUTO
    every = tuple(dict.fromkeys(range(x.dim()), dynamic) for x in batch)
    failure: Exception | None = None
    with ready(model):
        for sizes in (every, tuple({0: dynamic} for _ in batch)):
            try:
                return _any_length(model, batch, _captured(model, batch, sizes))
            except WiringError:
                raise
            except Exception as error:  # noqa: BLE001  # whatever torch.export says
                failure = error
    shapes = ", ".join(str(tuple(x.shape)) for x in batch)
    raise WiringError(
        f"cannot capture {type(model).__name__}: torch.export could not follow it on an input of shape {shapes}{_where(failure, model)}. "
        f"Control flow that depends on the data, and input of another shape, are the usual reasons. "
        f"It said: {first_line(failure or RuntimeError())}"
    ) from failure


def _captured(model: nn.Module, batch: tuple[Tensor, ...], sizes: Any) -> Graph:
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:  # forward(self, *inputs): torch.export wants those in a tuple of their own
        first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
        sizes = (*sizes[:first], tuple(sizes[first:]))
    return _Conversion(torch.export.export(model, batch, dynamic_shapes=sizes, strict=False), model).graph()


def _any_length(model: nn.Module, batch: tuple[Tensor, ...], graph: Graph) -> Graph:
    """Capture sequences once more that are shorter by one, where their length was fixed.

    A mask that is cut to the longest length is not cut at all, and torch.export takes the length for a constant.
    """
    fixed = [x.dim() in (2, 3) and x.shape[1] > 3 and node.sizes[1] is None for x, node in zip(batch, graph.inputs, strict=True)]
    if not any(fixed):
        return graph
    shorter = tuple(x[:, :-1] if cut else x for x, cut in zip(batch, fixed, strict=True))
    try:
        found = _captured(model, shorter, tuple(dict.fromkeys(range(x.dim()), torch.export.Dim.AUTO) for x in shorter))
    except Exception:  # noqa: BLE001  # no sequence, or one of a fixed length
        return graph
    free = [any(size is not None for size in node.sizes[1:]) for node in found.inputs]
    return found if all(is_free or not cut for is_free, cut in zip(free, fixed, strict=True)) else graph


def _where(error: BaseException | None, model: nn.Module) -> str:
    """Return the line of the user's code where an error arose."""
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    own = [frame for frame in frames if of_user(frame.filename)]
    if not own:
        return ""
    file, line = own[-1].filename, own[-1].lineno or 0
    module = next((name or "(top level)" for name, part in model.named_modules() if _defines(part, file, line)), "(top level)")
    return f", at '{module}' ({file}:{line}: {(own[-1].line or '').strip()})"


def _defines(module: nn.Module, file: str, line: int) -> bool:
    """Tell whether a line is part of a module's forward method."""
    code = getattr(type(module).forward, "__code__", None)
    if code is None or code.co_filename != file:
        return False
    lines = [number for _, _, number in code.co_lines() if number is not None]
    return bool(lines) and min(lines) <= line <= max(lines)


class DependsOnDataError(NotImplementedError):
    """A size of a captured network is known only when it runs."""


class _Conversion:
    """Turns an exported program into plain records."""

    def __init__(self, program: torch.export.ExportedProgram, model: nn.Module) -> None:
        self.program = program
        self.model = model
        self.nodes: list[Node] = []
        self.symbols: dict[str, Size] = {}
        self.tuples: dict[str, Any] = {}
        self.stacks: dict[str, tuple[list[Ref], int]] = {}
        self.renamed: dict[str, Ref | Any] = {}
        self.through_views: list[str] = []

    def graph(self) -> Graph:
        signature = self.program.graph_signature
        stored = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        canonical = _canonical_names(self.model)
        for raw in self.program.graph.nodes:
            if raw.op == "placeholder" and raw.name not in stored:
                self._learn_symbols(raw)
                self.nodes.append(self._record(raw, INPUT, ()))
        for raw in self.program.graph.nodes:
            if raw.op == "placeholder" and raw.name in stored:
                kind = PARAMETER if raw.name in signature.inputs_to_parameters else CONSTANT
                name = stored[raw.name]
                self.nodes.append(self._record(raw, kind, (canonical.get(name, name),)))
        self._convert(self.program.graph, self.program.graph_module)
        nodes = live(self.nodes)
        _check_batch(nodes)
        made = {
            name: tensor.detach().cpu()
            for name in signature.inputs_to_lifted_tensor_constants.values()
            if isinstance(tensor := self.program.constants[name], Tensor)
        }
        trainable = frozenset(canonical[name] for name, _ in self.model.named_parameters())
        return Graph(tuple(nodes), trainable, made, tuple(self.through_views))

    def _learn_symbols(self, raw: Any) -> None:
        """Remember which size of which input a symbol stands for; all inputs have as many examples, whether or not the code says so."""
        for dim, size in enumerate(raw.meta["val"].shape):
            if not isinstance(size, int):
                batch = self.nodes[0].sizes[0] if self.nodes and dim == 0 else None
                self.symbols.setdefault(str(size), batch or Size("input", (raw.name, dim), int(size.node.hint)))

    def _convert(self, graph: Any, module: Any) -> None:
        """Convert the calls of a graph, and of graphs inside it that only switch gradients off."""
        for raw in graph.nodes:
            if raw.op == "output":
                if graph is self.program.graph:
                    self._output(raw)
            elif raw.op == "call_function":
                if "wrap_with_set_grad_enabled" in str(raw.target):
                    self._inline(raw, module)
                else:
                    self._call(raw)
            elif raw.op not in ("placeholder", "get_attr"):
                raise WiringError(f"cannot capture {type(self.model).__name__}: it holds '{raw.op} {raw.target}'.")

    def _inline(self, raw: Any, module: Any) -> None:
        """Put the steps of a nested graph in the place where it is called."""
        inner = getattr(module, raw.args[1].target)
        places = [node for node in inner.graph.nodes if node.op == "placeholder"]
        for place, given in zip(places, raw.args[2:], strict=True):
            self.renamed[place.name] = self._plain(given)
        self._convert(inner.graph, inner)
        out = next(node for node in inner.graph.nodes if node.op == "output")
        self.tuples[raw.name] = [self._plain(value) for value in out.args[0]]

    def _call(self, raw: Any) -> None:
        op = _operation(raw.target)
        args, kwargs = self._plain(raw.args), {key: self._plain(value) for key, value in raw.kwargs.items()}
        if not isinstance(raw.meta.get("val"), (Tensor, tuple, list)):
            return  # a size: whoever uses it holds its formula
        if op == "operator.getitem" and isinstance(raw.args[0], torch.fx.Node):
            whole = raw.args[0]
            if whole.name in self.tuples and isinstance(self.tuples[whole.name], list):
                self.renamed[raw.name] = self.tuples[whole.name][raw.args[1]]
                return
            if whole.name in self.tuples:
                op, args = self._piece(whole, raw.args[1])
        elif op.startswith(_CUT) or op == "aten.unbind.int":
            self.tuples[raw.name] = op, args
            return
        elif op == "aten.select.int" and isinstance(args[0], Ref) and args[0].name in self.stacks:
            refs, dim = self.stacks[args[0].name]
            if isinstance(args[2], int) and args[1] % raw.args[0].meta["val"].dim() == dim:
                self.renamed[raw.name] = refs[args[2]]
                return
        elif op == "aten.rrelu.default":  # a random slope in training, its mean ever after: here the mean always
            op, args, kwargs = "aten.leaky_relu.default", (args[0], (args[1] + args[2]) / 2 if len(args) > 2 else (1 / 8 + 1 / 3) / 2), {}
        elif op == "aten.stack.default":
            self.stacks[raw.name] = args[0], (args[1] if len(args) > 1 else 0) % raw.meta["val"].dim()
            args = ([self._unsqueezed(raw, index, ref, args) for index, ref in enumerate(args[0])], *args[1:])
            op = "aten.cat.default"
        elif op in _EMPTY:  # to be drawn into, or its content would be anything
            like = raw.meta["val"]
            op, args, kwargs = (
                "aten.full.default",
                ([self._size(size) for size in like.shape], 0.0),
                {"dtype": like.dtype, "device": like.device},
            )
        elif op == MASK:  # torch.export leaves out a probability that is the operation's default
            args, kwargs = (args[0], args[1] if len(args) > 1 else kwargs.get("p", 0.5)), {}
        elif op == "aten.linear.default" and len(args) > 2 and self._is_computed(args[2]):
            op, args, kwargs = self._added(raw, op, (args[2], *args[:2]), {})
        elif op in _ADDED:
            op, args, kwargs = self._added(raw, _ADDED[op], args, kwargs)
        self.nodes.append(self._record(raw, op, args, kwargs))
        if _changes_a_view(raw):
            self.through_views.append(self.nodes[-1].place)

    def _piece(self, whole: Any, index: int) -> tuple[str, tuple[Any, ...]]:
        """Say one of several pieces of a tensor as a slice or a selection."""
        op, args = self.tuples[whole.name]
        if op == "aten.unbind.int":
            return "aten.select.int", (args[0], args[1] if len(args) > 1 else whole.kwargs.get("dim", 0), index)
        dim = args[2] if len(args) > 2 else whole.kwargs.get("dim", 0)
        stops: list[Any] = [0]
        for value in whole.meta["val"]:
            stops.append(_sum(stops[-1], self._size(value.shape[dim])))
        return "aten.slice.Tensor", (args[0], dim, stops[index], stops[index + 1])

    def _is_computed(self, bias: Any) -> bool:
        """Tell whether a bias is neither a parameter nor a buffer: one that is put together from parts, say."""
        return isinstance(bias, Ref) and next(node.op for node in self.nodes if node.name == bias.name) not in (PARAMETER, CONSTANT)

    def _added(
        self, raw: Any, product_op: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Say beta * start + alpha * (a @ b) as a product and a sum: either of them may lose all its units, or be computed."""
        start, beta = args[0], kwargs.get("beta", 1)
        product = replace(self._record(raw, product_op, args[1:3]), name=f"{raw.name}_product")
        self.nodes.append(product)
        if beta != 1:
            scaled = replace(self._record(raw.args[0], "aten.mul.Tensor", (start, beta)), name=f"{raw.name}_start", module=product.module)
            self.nodes.append(replace(scaled, source=product.source))
            start = Ref(scaled.name)
        return "aten.add.Tensor", (start, Ref(product.name)), {"alpha": kwargs.get("alpha", 1)}

    def _unsqueezed(self, raw: Any, index: int, ref: Ref, args: tuple[Any, ...]) -> Ref:
        """Add a dimension of size 1 to an operand of a stack."""
        dim = args[1] if len(args) > 1 else 0
        like = self._record(raw, "aten.unsqueeze.default", ())
        dim %= len(like.shape or ())
        shape, sizes = list(like.shape or ()), list(like.sizes)
        shape[dim], sizes[dim] = 1, None
        name = f"{raw.name}_{index}_of_stack"
        self.nodes.append(Node(name, like.op, (ref, dim), {}, tuple(shape), tuple(sizes), like.module, like.source))
        return Ref(name)

    def _plain(self, value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            if value.name in self.renamed:
                return self.renamed[value.name]
            found = value.meta.get("val")
            return self._size(found) if isinstance(found, (torch.SymInt, int)) else Ref(value.name)
        if isinstance(value, (list, tuple)):
            return type(value)([self._plain(item) for item in value])
        return value

    def _size(self, value: Any) -> Any:
        """Return how a size follows from the inputs' sizes."""
        return value if isinstance(value, int) else self._formula(value.node.expr)

    def _formula(self, expr: Any) -> Any:
        if expr.is_Integer:
            return int(expr)
        if expr.is_Symbol:
            if str(expr) not in self.symbols:
                raise DependsOnDataError(f"the size {expr} depends on the data")
            return self.symbols[str(expr)]
        name = {"Add": "+", "Mul": "*", "FloorDiv": "//", "Mod": "%", "PythonMod": "%", "Pow": "**", "Max": "max", "Min": "min"}.get(
            expr.func.__name__
        )
        if name is None:
            raise NotImplementedError(f"the size {expr} is computed with {expr.func.__name__}")
        first, *others = [self._formula(arg) for arg in expr.args]
        for other in others:
            hints = [part.hint if isinstance(part, Size) else part for part in (first, other)]
            first = Size(name, (first, other), int(SIZE_OPERATIONS[name](*hints)))
        return first

    def _record(self, raw: Any, op: str, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Node:
        value = raw.meta.get("val")
        if isinstance(value, (tuple, list)) and value and isinstance(value[0], Tensor):
            value = value[0]
        stack = list((raw.meta.get("nn_module_stack") or {}).values())
        try:
            formulas = [self._size(size) for size in value.shape] if isinstance(value, Tensor) else None
        except DependsOnDataError as error:
            module = stack[-1][0] if stack else ""
            place = Node(raw.name, op, module=module, source=_source(raw.meta.get("stack_trace") or "")).place
            raise WiringError(
                f"cannot capture {type(self.model).__name__}: the size of the result of {op} at {place} depends on the data."
            ) from error
        return Node(
            name=raw.name,
            op=op,
            args=args,
            kwargs=dict(kwargs or {}),
            shape=None if formulas is None else tuple(size.hint if isinstance(size, Size) else size for size in formulas),
            sizes=tuple(size if isinstance(size, Size) else None for size in formulas or ()),
            module=stack[-1][0] if stack and "metadata_hook" not in stack[-1][0] else "",
            source=_source(raw.meta.get("stack_trace") or ""),
        )

    def _output(self, raw: Any) -> None:
        """Close the graph; several outputs (B, F_i) are put side by side."""
        refs = [self._plain(value) for value in raw.args[0] if isinstance(value, torch.fx.Node)]
        by_name = {node.name: node for node in self.nodes}
        outputs = [by_name[ref.name] for ref in refs if isinstance(ref, Ref)]
        for node in outputs:
            if len(node.shape or ()) != 2:
                raise WiringError(
                    f"cannot use this network as a trunk: expected {'an output' if len(outputs) == 1 else 'outputs'} of shape (B, features), "
                    f"found {node.shape} at {node.place}. Flatten it."
                )
        if not outputs:
            raise WiringError("cannot use this network as a trunk: expected an output tensor, found none.")
        last = outputs[0]
        if len(outputs) > 1:
            shape = ((last.shape or (0,))[0], sum((node.shape or (0, 0))[1] for node in outputs))
            last = Node("outputs", "aten.cat.default", ([Ref(node.name) for node in outputs], 1), {}, shape, (last.sizes[0], None))
            self.nodes.append(last)
        self.nodes.append(Node(name="output", op=OUTPUT, args=(Ref(last.name),)))


def _operation(target: Any) -> str:
    """Name an operation; one that works in place by its plain twin, where it has one."""
    if not isinstance(target, OpOverload):
        return f"operator.{getattr(target, '__name__', target)}"
    if str(target) == "aten.bernoulli_.float":
        return MASK
    plain = re.sub(r"(?<=[a-z0-9])_\.", ".", str(target), count=1)
    try:
        resolve(plain)
    except AttributeError:
        return str(target)
    return plain


def _changes_a_view(raw: Any) -> bool:
    """Tell whether a call changes a tensor in place that is a view of another one: a slice of it, say."""
    changed = raw.args[0] if raw.args and isinstance(raw.target, OpOverload) and raw.target._schema.is_mutable else None  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    viewer = getattr(changed, "target", None)
    return isinstance(viewer, OpOverload) and viewer.is_view


def _sum(a: Any, b: Any) -> Any:
    """Add two sizes."""
    hints = [part.hint if isinstance(part, Size) else part for part in (a, b)]
    return Size("+", (a, b), sum(hints)) if isinstance(a, Size) or isinstance(b, Size) else a + b


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """Map every name of a tensor to its first name: tied parameters have several."""
    first: dict[int, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def _source(stack_trace: str) -> str:
    """Return "file.py:12: code" of the innermost frame that is not torch's own, nor ours."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)', stack_trace)
    own = [frame for frame in frames if of_user(frame[0])] or frames
    return f"{own[-1][0]}:{own[-1][1]}: {own[-1][2].strip()}" if own else ""


def _check_batch(nodes: list[Node]) -> None:
    """Refuse a network that works for one batch size only, or whose output is not one row per example."""
    by_name = {node.name: node for node in nodes}
    inputs, output = [node for node in nodes if node.op == INPUT], by_name[nodes[-1].args[0].name]
    batch = inputs[0].sizes[0]
    if batch is None or any(node.sizes[0] != batch for node in inputs) or output.sizes[0] != batch:
        raise WiringError(
            f"cannot capture the network: its batch size is hard-coded, or its output has no row per example "
            f"(traced with a batch of {(inputs[0].shape or (0,))[0]}: input {inputs[0].shape}, output {output.shape} at {output.place}). "
            f"Use x.shape[0] or -1 where the code has a fixed batch size; len(x) is one, too."
        )
