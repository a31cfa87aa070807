"""Capture a network and find out which units it has and what ties them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from clnp.errors import WiringError
from clnp.wiring.capture import capture
from clnp.wiring.patterns import with_norms
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
    normed = weight_norms(model)
    model = folded(model)
    graph = with_norms(capture(model, example))
    buffers: dict[str, Tensor] = {name: buffer.detach().cpu() for name, buffer in model.named_buffers()}
    fixed = {name: tensor for name, tensor in {**buffers, **graph.constants}.items() if not tensor.is_floating_point()}
    tracer = Tracer(graph, fixed)
    tracer.run()
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


def folded(model: nn.Module) -> nn.Module:
    """Return the network with weight norm folded into plain weights: a copy, or the network itself where it has none.

    Raises:
        WiringError: a weight is computed from parameters in another way (spectral norm, ...); the message names it.
    """
    plain = model
    for name, module in model.named_modules():
        hooks = [hook for hook in module._forward_pre_hooks.values() if type(hook).__module__.startswith("torch.nn.utils.")]  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        for hook in hooks:
            plain = _without(model, plain, name, getattr(hook, "name", "weight"), type(hook).__name__)
        if parametrize.is_parametrized(module):
            for tensor, steps in module.parametrizations.items():  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue, reportAttributeAccessIssue]
                for step in steps:
                    plain = _without(model, plain, name, tensor, type(step).__name__)
    return plain


def _without(model: nn.Module, plain: nn.Module, path: str, tensor: str, kind: str) -> nn.Module:
    """Fold one weight norm; refuse everything else."""
    if "WeightNorm" not in kind:
        module = model.get_submodule(path)
        code = type(model).forward.__code__ if hasattr(type(model).forward, "__code__") else None
        where = f" (used by {code.co_filename}:{code.co_firstlineno})" if code is not None else ""
        what = "spectral_norm" if "SpectralNorm" in kind else kind.lstrip("_")
        raise WiringError(
            f"cannot isolate tasks in this network: {what} of '{tensor}' in {type(module).__name__} '{path or '(top level)'}'{where} "
            f"mixes all rows of the weight: a new task would move old rows. Remove it (torch.nn.utils.parametrize.remove_parametrizations), "
            f"or use weight_norm, which keeps rows apart."
        )
    if plain is model:
        plain = copy.deepcopy(model)
    module = plain.get_submodule(path)
    if parametrize.is_parametrized(module, tensor):
        parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
    else:
        nn.utils.remove_weight_norm(module, tensor)
    weight = module.get_parameter(tensor) if tensor in dict(module.named_parameters(recurse=False)) else module.get_buffer(tensor)
    if not isinstance(weight, nn.Parameter):  # what torch leaves where no gradient was asked for
        delattr(module, tensor)
        module.register_parameter(tensor, nn.Parameter(weight, requires_grad=False))
    return plain
