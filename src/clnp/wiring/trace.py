"""Capture a network and find out which units it has and what ties them."""

from __future__ import annotations

import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from clnp.errors import WiringError
from clnp.inputs import parts
from clnp.wiring.capture import capture
from clnp.wiring.labels import varying
from clnp.wiring.patterns import with_norms
from clnp.wiring.prepare import check_module, copied, mode, of_user
from clnp.wiring.rules import Value
from clnp.wiring.rules.base import refusal
from clnp.wiring.settle import settle
from clnp.wiring.tracer import Tracer

if TYPE_CHECKING:
    from clnp.inputs import Inputs
    from clnp.wiring.plan import Wiring


def trace(model: nn.Module, example: Inputs) -> Wiring:
    """Capture a network and find out which units it has and what ties them.

    Args:
        model: the network, or the trunk of one; it is left as it was.
        example: a batch of its input (B, ...), or a tuple of them; only shapes and dtypes matter, and B may be any number.

    Raises:
        WiringError: the network cannot be captured, or holds an operation whose units cannot be told apart; the message
            names the operation, the module and the source line.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> print(trace(net, torch.zeros(1, 4)).explain())
    5 units in 2 groups
      0: 3 units
      2: 2 units
    heads read 2 features
    """
    check_module(model)
    normed = weight_norms(model)
    model = folded(model, example)
    graph = with_norms(capture(model, example))
    buffers: dict[str, Tensor] = {name: buffer.detach().cpu() for name, buffer in model.named_buffers()}
    fixed = {name: tensor for name, tensor in {**buffers, **graph.constants}.items() if not tensor.is_floating_point()}
    tracer = Tracer(graph, fixed)
    tracer.run()
    _check_output(tracer)
    return replace(settle(tracer), normed=normed)


def weight_norms(model: nn.Module) -> dict[str, int]:
    """Return the weights under weight norm, and the dimension along which each has lengths."""
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        steps: list[tuple[str, Any]] = [(getattr(hook, "name", ""), hook) for hook in module.__dict__["_forward_pre_hooks"].values()]
        if parametrize.is_parametrized(module):
            chains: Any = module.parametrizations
            steps += [(tensor, step) for tensor, chain in chains.items() for step in chain]
        for tensor, step in steps:
            if "WeightNorm" in type(step).__name__:
                found[f"{name}.{tensor}" if name else tensor] = int(step.dim)
    return found


def _check_output(tracer: Tracer) -> None:
    """Refuse an output that is no value of each example."""
    output, node = tracer.values[tracer.graph.output], tracer.graph.by_name[tracer.graph.output]
    if isinstance(output, Value) and output.is_parameter:
        raise WiringError("cannot use this network as a trunk: its output is a parameter.")
    if isinstance(output, Value) and 0 in varying(output.labels):
        raise refusal(node, "mixes the examples of a batch: what is at one place belongs to different units from example to example.")


def folded(model: nn.Module, example: Inputs | None = None) -> nn.Module:
    """Return the network with weight norm folded into plain weights: a copy, or the network itself where it has none.

    Args:
        model: left as it was.
        example: a batch; with it the message of a refusal says where the user's code calls the layer.

    Raises:
        WiringError: a weight is computed from parameters in another way (spectral norm, ...); the message names it.
    """
    plain = model
    for name, module in model.named_modules():
        hooks = [hook for hook in module._forward_pre_hooks.values() if type(hook).__module__.startswith("torch.nn.utils.")]  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        for hook in hooks:
            plain = _without(model, plain, name, getattr(hook, "name", "weight"), type(hook).__name__, example)
        if parametrize.is_parametrized(module):
            for tensor, steps in module.parametrizations.items():  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue, reportAttributeAccessIssue]
                for step in steps:
                    plain = _without(model, plain, name, tensor, type(step).__name__, example)
    return plain


def _without(model: nn.Module, plain: nn.Module, path: str, tensor: str, kind: str, example: Inputs | None) -> nn.Module:
    """Fold one weight norm; refuse everything else."""
    if "WeightNorm" not in kind:
        module = model.get_submodule(path)
        where = "" if example is None else _caller(model, module, example)
        what = "spectral_norm" if "SpectralNorm" in kind else kind.lstrip("_")
        raise WiringError(
            f"cannot isolate tasks in this network: {what} of '{tensor}' at '{path or '(top level)'}'{where} "
            f"computes the weight in a way that may mix its rows: a new task would move old rows. Remove it (torch.nn.utils.parametrize.remove_parametrizations), "
            f"or use weight_norm, which keeps rows apart."
        )
    if plain is model:
        plain = copied(model)
    module = plain.get_submodule(path)
    if parametrize.is_parametrized(module, tensor):
        # torch gives a parametrized module a class of its own, which copies share: what is removed here would be gone in the user's model.
        own = type(module)
        module.__class__ = type(own.__name__, own.__bases__, {k: v for k, v in vars(own).items() if k not in ("__dict__", "__weakref__")})  # pyright: ignore[reportAttributeAccessIssue]
        parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
    else:
        nn.utils.remove_weight_norm(module, tensor)
    weight = module.get_parameter(tensor) if tensor in dict(module.named_parameters(recurse=False)) else module.get_buffer(tensor)
    if not isinstance(weight, nn.Parameter):  # what torch leaves where no gradient was asked for
        delattr(module, tensor)
        module.register_parameter(tensor, nn.Parameter(weight, requires_grad=False))
    return plain


def _caller(model: nn.Module, module: nn.Module, example: Inputs) -> str:
    """Return the line of the user's code that calls a module, " (file.py:12: code)"."""
    lines: list[str] = []

    def look(*_: Any) -> None:
        own = [frame for frame in traceback.extract_stack() if of_user(frame.filename)]
        lines.append(f" ({own[-1].filename}:{own[-1].lineno}: {(own[-1].line or '').strip()})")

    handle = module.register_forward_pre_hook(look)
    try:
        with mode(model, training=False), torch.no_grad():
            model(*parts(example))
    except Exception:  # noqa: BLE001  # the refusal itself is what the user must read
        return ""
    finally:
        handle.remove()
    return lines[0] if lines else ""
