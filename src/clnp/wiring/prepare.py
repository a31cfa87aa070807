"""Prepare a network and its example inputs: for a capture, without its head, in one mode for a while."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clnp.errors import WiringError, first_line
from clnp.inputs import Inputs, parts
from clnp.seeds import generator
from clnp.wiring.recurrent import layer_by_layer

if TYPE_CHECKING:
    from collections.abc import Generator


def two_or_more(example: Inputs) -> tuple[Tensor, ...]:
    """Return example inputs with so many examples as no other size is: torch.export takes 0 and 1 for constants."""
    batch = parts(example)
    for x in batch:
        if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise WiringError(f"cannot capture the network: expected a tensor as the example input, found {type(x).__name__}.")
        if x.dim() < 1 or x.shape[0] < 1:
            raise WiringError(f"cannot capture the network: the example input needs a batch dimension, found shape {tuple(x.shape)}.")
    if not batch:
        raise WiringError("cannot capture the network: expected an example input, found an empty tuple.")
    others = {size for x in batch for size in x.shape[1:]}
    n = next(n for n in range(2, 100) if n not in others)
    return tuple(x[:1].expand(n, *x.shape[1:]).contiguous() for x in batch)


@contextlib.contextmanager
def ready(model: nn.Module) -> Generator[None]:
    """Prepare a model and torch for a capture: training mode, fixed momentum, recurrent layers step by step, no chatter."""
    disabled = logging.root.manager.disable
    with mode(model, training=True), _fixed_momentum(model), layer_by_layer(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            logging.disable(logging.CRITICAL)
            # torch prints whole graphs where it gives up: the error that we raise says it in a line.
            with torch.enable_grad(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                yield
        finally:
            logging.disable(disabled)


PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"


def of_user(file: str) -> bool:
    """Tell whether a line of a file is one to show: not of torch, nor of ours, but for the networks that we offer."""
    return "/torch/" not in file and (not file.startswith(PACKAGE) or file == f"{PACKAGE}models.py")


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


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model, also of one with the older weight norm, whose computed weights torch does not copy."""
    for module in model.modules():
        for name, value in list(module.__dict__.items()):
            if isinstance(value, Tensor) and not value.is_leaf:
                module.__dict__[name] = value.detach()  # computed anew before each forward pass
    return copy.deepcopy(model)


def check_module(model: object) -> None:
    """Check that what was given as a network is one.

    Raises:
        WiringError: it is a class, a list of layers, ...
    """
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        hint = (
            " Make one of it: Net()." if isinstance(model, type) else " Put layers into nn.Sequential." if isinstance(model, list) else ""
        )
        raise WiringError(f"cannot use this as a network: expected an nn.Module, found {what}.{hint}")


def without_head(model: nn.Module, path: str, example: Inputs | None) -> tuple[nn.Module, nn.Linear]:
    """Return a copy of a network whose linear layer at `path` passes its input on, and that layer.

    Args:
        model: left as it was.
        path: of the layer.
        example: a batch, on which it is tried that nothing follows the layer; None: it was tried before.

    Raises:
        WiringError: there is no such layer, it is not linear, or something follows it on an example batch (B, ...).
    """
    check_module(model)
    trunk = copied(model)
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
    if example is None:
        return trunk, layer
    whole, headless = copied(model).eval(), copied(trunk).eval()
    with torch.no_grad():
        try:
            noise = parts(noisy(example))
            features = headless(*noise)
        except Exception as error:
            shapes = ", ".join(str(tuple(x.shape)) for x in parts(example))
            raise WiringError(f"cannot run the network on an input of shape {shapes}: {first_line(error)}") from error
        fits = isinstance(features, Tensor) and features.dim() == 2 and features.shape[1] == layer.in_features
        if not fits or not torch.allclose(whole(*noise), layer(features), rtol=1e-3, atol=1e-5):
            raise WiringError(
                f"cannot use '{path}' as the head: it must be the last step of the network and read features (B, {layer.in_features})."
            )
    return trunk, layer


def noisy(example: Inputs, n: int | None = None) -> Any:
    """Return examples like the given ones, (n, ...), with noise where they are real numbers: zeros would hide differences."""
    if isinstance(example, tuple):
        return tuple(noisy(part, n) for part in example)
    x = example if n is None else example[:1].expand(n, *example.shape[1:])
    return x + torch.randn(x.shape, generator=generator("noise", len(x))).to(x) if x.is_floating_point() else x.clone()
