"""What each unit does on a task's data: its activities where they are read, and how the loss depends on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clnp import stopping
from clnp.emit import operand_view, positions, with_everyone
from clnp.importance import Activity
from clnp.inputs import length, parts
from clnp.narrow import moved_labels, narrow
from clnp.training import EVALUATION_BATCH, batches
from clnp.wiring.labels import varying

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from clnp.importance import Moment
    from clnp.kinds import Part
    from clnp.sources import TensorExamples
    from clnp.split import Head
    from clnp.wiring import Wiring


def activities(
    wiring: Wiring,
    state: Mapping[str, Tensor],
    visible: Tensor,
    head: Head,
    data: TensorExamples,
    owner_free: Tensor,
    norms: Sequence[Part] = (),
    *,
    moments: Collection[Moment],
    channels_last: bool = False,
) -> list[tuple[Tensor, Activity]]:
    """Measure what each layer reads, over examples and positions, in the network of the visible units.

    Args:
        wiring: of the network.
        state: full-width parameters, the trained pool rows among them.
        visible: bool (n_units,).
        head: the task's head at full width.
        data: examples to measure on.
        owner_free: bool (n_units,): the units whose rows the task trains; only their weights count as outgoing.
        norms: for norms over units, what is normalised over what.
        moments: what to measure. `taylor`, how the loss depends on each unit, costs a backward pass.
        channels_last: whether images pass through in that memory format, as in training.

    Returns: for each place where units are read, the units (k,) and their `Activity`.
    """
    member = with_everyone(visible, everyone=False)
    reads = list(dict.fromkeys([*(source for _, source in wiring.reads), wiring.graph.output]))
    reads = [name for name in reads if bool(member[wiring.values[name]].any())]
    everyone = with_everyone(visible)
    features = positions(everyone, wiring.features).to(head.weight.device)
    network = narrow(wiring, state, visible, norms=norms, outputs=[*reads, wiring.graph.output], moved=False).eval()
    gradients = "taylor" in moments
    if gradients:  # every value depends on a weight or an input that asks for one, and so has a slope
        network.requires_grad_()
        for name, buffer in network.named_buffers():  # what the user froze
            buffer.requires_grad_(buffer.is_floating_point() and not name.endswith(("running_mean", "running_var")))
    dims = [wiring.graph.batch_dim(wiring.node(name)) or 0 for name in reads]
    sums: list[dict[str, Tensor]] = []
    n = 0
    for x, y, _ in batches(data, None, EVALUATION_BATCH // 2, head.weight.device, channels_last=channels_last):
        stopping.check()
        with torch.set_grad_enabled(gradients):
            *values, output = network(*(part.detach().requires_grad_(gradients and part.is_floating_point()) for part in parts(x)))
        slopes: list[Tensor | None] = [None] * len(values)
        if gradients:
            logits = F.linear(output, head.weight.detach()[:, features], head.bias.detach())
            loss = F.cross_entropy(logits, y, reduction="sum")  # so that each example's slope is its own
            slopes = list(torch.autograd.grad(loss, values, allow_unused=True, materialize_grads=True))
        n_examples = length(x)
        found = [
            _means(value.detach().movedim(dim, 0), slope if slope is None else slope.movedim(dim, 0), wiring, name, moments)
            for value, slope, dim, name in zip(values, slopes, dims, reads, strict=True)
        ]
        found = [{key: mean * n_examples for key, mean in means.items()} for means in found]  # every example counts the same
        sums = found if not sums else [{key: old[key] + new[key] for key in old} for old, new in zip(sums, found, strict=True)]
        n += n_examples
    measured: list[tuple[Tensor, Activity]] = []
    for name, means in zip(reads, sums, strict=True):
        labels = moved_labels(wiring, name).flatten()
        units, inverse = torch.unique(labels[positions(everyone, labels)], return_inverse=True)
        inverse = inverse.to(head.weight.device)
        count = torch.bincount(inverse)
        of_units = {
            key: (torch.zeros(len(units), dtype=torch.float32, device=inverse.device).index_add_(0, inverse, mean / n) / count).cpu()
            for key, mean in means.items()
        }
        if "std" in moments:
            of_units["std"] = (of_units["square"] - of_units["mean"] ** 2).clamp(min=0).sqrt()
        real = units >= 0
        outgoing = _outgoing(wiring, state, head.weight, name, owner_free & visible, units).cpu()
        measured.append((units[real], Activity({moment: of_units[moment][real] for moment in moments}, outgoing[real])))
    return measured


def _means(value: Tensor, slope: Tensor | None, wiring: Wiring, name: str, moments: Collection[Moment]) -> dict[str, Tensor]:
    """Return the means, over all dimensions but that of the units, that some moments are made of, and of |sum a g| over examples: each (k,)."""
    dims = varying(moved_labels(wiring, name))
    value = value.float()  # under autocast it may be half precision
    flat = value.transpose(0, dims[0]).flatten(1) if dims else value.reshape(1, -1)  # (k, B * positions)
    means: dict[str, Tensor] = {}
    if "mean_abs" in moments:
        means["mean_abs"] = flat.abs().mean(1)
    if "firing" in moments:
        means["firing"] = (flat != 0).float().mean(1)
    if "std" in moments:
        means["mean"], means["square"] = flat.mean(1), flat.square().mean(1)
    if slope is not None:
        effect = value * slope
        effect = effect.movedim(dims[0], 1) if dims else effect.unsqueeze(1)  # (B, k, ...)
        means["taylor"] = effect.reshape(*effect.shape[:2], -1).sum(2).abs().mean(0)
    return means


def _outgoing(wiring: Wiring, state: Mapping[str, Tensor], head_weight: Tensor, name: str, rows_of: Tensor, units: Tensor) -> Tensor:
    """Sum |weight| from each unit into the rows that the task trains and that read the value `name`: (len(units),)."""
    total = torch.zeros(wiring.n_units + 1, dtype=torch.float32, device=head_weight.device)
    for weight, source in wiring.reads:
        labels = wiring.operands[weight]
        if source == name and labels.columns is not None and labels.column_dim is not None and labels.row_dim is not None:
            tensor = operand_view(wiring, state, weight)
            tensor = tensor.index_select(labels.row_dim, rows_of[labels.rows].nonzero()[:, 0].to(tensor.device))
            columns = tensor.abs().sum([d for d in range(tensor.dim()) if d != labels.column_dim])
            total.index_add_(0, (labels.columns % len(total)).to(total.device), columns)  # raw input, label -1: the last place
    if name == wiring.graph.output:
        total.index_add_(0, (wiring.features % len(total)).to(total.device), head_weight.detach().abs().sum(0))
    return total[units.to(total.device)]
