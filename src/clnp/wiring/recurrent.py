"""Recurrent layers as single steps of the captured graph: one for each layer and direction.

torch.export would unroll a recurrent layer over time, or fix the length of the sequence. While a network is captured, its LSTM, GRU
and RNN modules therefore call `clnp::recurrent`, an operation that only says which shape comes out.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clnp.errors import WiringError

if TYPE_CHECKING:
    from collections.abc import Generator

MODES = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}


@torch.library.custom_op("clnp::recurrent", mutates_args=())
def recurrent(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    mode: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Run one layer in one direction: x (B, T, I) -> outputs (B, T, H) and the last cell state (B, H)."""
    message = "clnp::recurrent stands in captured graphs only"
    raise NotImplementedError(message)


@recurrent.register_fake
def _(
    x: Tensor,
    w_ih: Tensor,  # noqa: ARG001
    w_hh: Tensor,
    b_ih: Tensor | None,  # noqa: ARG001
    b_hh: Tensor | None,  # noqa: ARG001
    h0: Tensor | None,  # noqa: ARG001
    c0: Tensor | None,  # noqa: ARG001
    mode: str,  # noqa: ARG001
    reverse: bool,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    n = w_hh.shape[1]
    return x.new_empty(x.shape[0], x.shape[1], n), x.new_empty(x.shape[0], n)


@contextlib.contextmanager
def layer_by_layer(model: nn.Module) -> Generator[None]:
    """Let the recurrent modules of a model say each layer and direction as one operation, for a while."""
    modules = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.RNNBase)]
    try:
        for name, module in modules:
            module.forward = partial(_forward, module, name)
        yield
    finally:
        for _, module in modules:
            module.__dict__.pop("forward", None)


def _forward(module: nn.RNNBase, name: str, x: Any, hx: Any = None) -> tuple[Tensor, Any]:
    """Do what `module(x, hx)` does."""
    kind = type(module).__name__
    if not isinstance(x, Tensor):
        raise WiringError(
            f"cannot capture '{name}': {kind} was given a {type(x).__name__}; only padded sequences (B, T, I) can be captured."
        )
    if module.proj_size:
        raise WiringError(
            f"cannot isolate tasks in this network: '{name}' is an {kind} with proj_size, whose units cannot be told apart yet."
        )
    if x.dim() != 3:
        raise WiringError(f"cannot capture '{name}': expected sequences (B, T, I), found shape {tuple(x.shape)}.")
    if not module.batch_first:
        x = x.transpose(0, 1)
    states, cells = (hx, None) if isinstance(hx, Tensor) or hx is None else hx
    hidden: list[Tensor] = []
    last_cells: list[Tensor] = []
    n_directions = 2 if module.bidirectional else 1
    for layer in range(module.num_layers):
        outputs: list[Tensor] = []
        for direction in range(n_directions):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            w_ih, w_hh, b_ih, b_hh = (getattr(module, f"{part}{suffix}", None) for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            assert w_ih is not None
            assert w_hh is not None
            place = layer * n_directions + direction
            h0, c0 = (None if given is None else given[place] for given in (states, cells))
            out, cell = torch.ops.clnp.recurrent(x, w_ih, w_hh, b_ih, b_hh, h0, c0, MODES[module.mode], bool(direction))
            outputs.append(out)
            hidden.append(out.select(1, 0 if direction else -1))
            last_cells.append(cell)
        x = torch.cat(outputs, -1) if n_directions > 1 else outputs[0]
        if module.dropout and layer < module.num_layers - 1:
            x = torch.dropout(x, module.dropout, module.training)
    y = x if module.batch_first else x.transpose(0, 1)
    h_n = torch.stack(hidden)
    return y, (h_n, torch.stack(last_cells)) if module.mode == "LSTM" else h_n
