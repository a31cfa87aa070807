"""What isolation is, worked out anew in the original network: an oracle that shares no code with the training or the narrowing.

It takes from clnp nothing but the labels of a wiring: which unit each row and column of a parameter belongs to. Everything
happens at full width, in the user's own modules: weights are zeroed, rows are replaced by random numbers, outputs compared.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from zoo_entry import Entry, network, trunk
from zoo_language import HandRMSNorm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zoo_entry import Input

    from clnp.wiring import ParameterLabels, Wiring

FREE = -1
NORMS = (nn.LayerNorm, nn.RMSNorm, HandRMSNorm)


# ---- the original network


def plain(entry: Entry, seed: int = 0) -> nn.Module:
    """Build the trunk of a network in evaluation mode, with weights in the place of parametrizations."""
    model = trunk(entry, network(entry, seed)).eval()
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name)
    return model.requires_grad_(requires_grad=False)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, by all their names."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def labelled(model: nn.Module, wiring: Wiring) -> Iterator[tuple[str, Tensor, ParameterLabels]]:
    """Yield each tensor of the model that has units: its name, itself, its labels."""
    tensors = tensors_of(model)
    for name, labels in wiring.parameters.items():
        if name in tensors:
            yield name, tensors[name], labels


@torch.no_grad()
def features_of(model: nn.Module, x: Input) -> Tensor:
    """Return what a head would read: several outputs side by side. Torch's fused form of its encoder layers is not used."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        out = model(*x) if isinstance(x, tuple) else model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    if isinstance(out, dict):
        out = tuple(out.values())
    return torch.cat(list(out), 1) if isinstance(out, (tuple, list)) else out


def with_raw(units: Tensor, raw: bool) -> Tensor:
    """Append the answer for raw input, so that `result[labels]` answers for label -1 too."""
    return torch.cat([units, torch.tensor([raw])])


def shared_units(wiring: Wiring) -> Tensor:
    """Return which units are shared, bool (n_units,)."""
    shared = torch.zeros(wiring.n_units, dtype=torch.bool)
    for group in wiring.groups:
        shared[group.slice] = group.shared
    return shared


# ---- allocations


def norms_of(model: nn.Module, wiring: Wiring) -> dict[str, Tensor]:
    """Return the norms that mix units, by name: the unit of each of their channels."""
    shared = shared_units(wiring)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, NORMS) or (isinstance(module, nn.GroupNorm) and module.num_groups == 1):
            units = wiring.parameters[f"{name}.weight"].rows
            if not bool(shared[units].all()):  # such a norm runs inside a head: it mixes no units
                found[name] = units
    return found


def close(units: Tensor, owner: Tensor, needed: Tensor, wiring: Wiring, norms: dict[str, Tensor]) -> Tensor:
    """Return the smallest closed set that holds `units`: with a unit of task s all of needed[s] that it reads."""
    edges = [(labels.rows, labels.columns[labels.columns >= 0]) for labels in wiring.parameters.values() if labels.columns is not None]
    edges += [(channels, channels) for channels in norms.values()]
    closed = units.clone()
    while True:
        size = int(closed.sum())
        for rows, columns in edges:
            for task in owner[rows[closed[rows]]].unique().tolist():
                if task != FREE:
                    closed[columns[needed[task][columns]]] = True
        if int(closed.sum()) == size:
            return closed


def draw(n: int, candidates: Tensor, generator: torch.Generator) -> Tensor:
    """Return n of the candidates."""
    return candidates[torch.randperm(len(candidates), generator=generator)[:n]]


def random_allocation(wiring: Wiring, norms: dict[str, Tensor], generator: torch.Generator, n_tasks: int = 3) -> tuple[Tensor, Tensor]:
    """Draw an allocation: owner (n_units,), and a closed needed (n_tasks, n_units); every task has units in every group."""
    owner = torch.full((wiring.n_units,), FREE)
    needed = torch.zeros(n_tasks, wiring.n_units, dtype=torch.bool)
    shared = shared_units(wiring)
    for task in range(n_tasks):
        # Of all earlier units a task reuses none, some or nearly all.
        share = (0.0, 0.3, 0.9)[int(torch.randint(3, (1,), generator=generator))]
        units = (torch.rand(wiring.n_units, generator=generator) < share) & (owner != FREE)
        claimed = shared.clone() if task == 0 else torch.zeros_like(shared)
        for group in wiring.groups:
            if not group.shared:
                places = torch.arange(group.start, group.start + group.n_units)
                most = max(1, group.n_units // n_tasks)
                n = int(torch.randint(1, most + 1, (1,), generator=generator))
                free = places[owner[places] == FREE]
                if len(free):
                    claimed[draw(n, free, generator)] = True
                else:
                    units[draw(n, places, generator)] = True
        needed[task] = close(units | claimed | shared, owner, needed, wiring, norms)
        owner[claimed] = task
    return owner, needed


# ---- changes to the original network


def spread(mask: Tensor, labels: ParameterLabels, n_dims: int) -> Tensor:
    """Lay a mask (rows, columns) along the dimensions of a parameter that rows and columns lie in."""
    sizes = [1] * n_dims
    sizes[labels.row_dim], sizes[labels.column_dim] = mask.shape
    return (mask if labels.row_dim < labels.column_dim else mask.t()).reshape(sizes)


def sever_(model: nn.Module, wiring: Wiring, owner: Tensor, needed: Tensor) -> None:
    """Zero the weights of claimed rows whose column's unit the row's owner does not need."""
    allowed = torch.cat([needed, torch.ones(len(needed), 1, dtype=torch.bool)], 1)  # the last column answers for raw input
    for _, tensor, labels in labelled(model, wiring):
        if labels.columns is not None:
            of_rows = owner[labels.rows]
            severed = (of_rows != FREE)[:, None] & ~allowed[of_rows.clamp(min=0)][:, labels.columns]
            tensor.data.masked_fill_(spread(severed, labels, tensor.dim()), 0)


def randomise_(model: nn.Module, wiring: Wiring, units: Tensor, generator: torch.Generator) -> None:
    """Give all rows of some units new random values: of weights, vectors and statistics."""
    for name, tensor, labels in labelled(model, wiring):
        fresh = 0.7 * torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            fresh = 0.5 + fresh.abs()
        places = units[labels.rows].nonzero()[:, 0]
        tensor.data.index_copy_(labels.row_dim, places, fresh.index_select(labels.row_dim, places))


def randomise_free_(model: nn.Module, wiring: Wiring, owner: Tensor, generator: torch.Generator) -> None:
    """Give all rows of free units new random values."""
    randomise_(model, wiring, owner == FREE, generator)


def stir_(model: nn.Module, wiring: Wiring, generator: torch.Generator) -> None:
    """Move scales, shifts and statistics away from the ones and zeros that they start from."""
    for name, tensor, labels in labelled(model, wiring):
        if labels.columns is None:
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.data.copy_(0.5 + noise.abs() if name.endswith("running_var") else tensor + 0.2 * noise)


class NormOverNeeded(nn.Module):
    """A norm in which the channels of each owner are normalised over the channels that this owner needs."""

    def __init__(self, norm: nn.Module, units: Tensor, owner: Tensor, needed: Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, getattr(norm, "bias", None), norm.eps
        self.whole_example = isinstance(norm, nn.GroupNorm)
        self.centred = isinstance(norm, (nn.GroupNorm, nn.LayerNorm))
        everything = torch.ones_like(units, dtype=torch.bool)
        self.parts = [
            (owner[units] == task, everything if task == FREE else needed[task][units]) for task in owner[units].unique().tolist()
        ]

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1) if self.whole_example else x  # channels last
        dims = tuple(range(1, x.dim())) if self.whole_example else (-1,)
        out = torch.empty_like(x)
        for own, read in self.parts:
            part = x[..., read]
            mean = part.mean(dims, keepdim=True) if self.centred else torch.zeros(())
            square = (part - mean).square().mean(dims, keepdim=True)
            eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
            out[..., own] = ((x - mean) / (square + eps).sqrt())[..., own]
        out = out * self.weight if self.bias is None else out * self.weight + self.bias
        return out.movedim(-1, 1) if self.whole_example else out


def norms_over_needed_(model: nn.Module, wiring: Wiring, owner: Tensor, needed: Tensor) -> None:
    """Replace every norm that mixes units by one over needed units; its parameters keep their names."""
    for name, units in norms_of(model, wiring).items():
        model.set_submodule(name, NormOverNeeded(model.get_submodule(name), units, owner, needed))


# ---- the checks


def outputs_of_claimed(model: nn.Module, x: Input, wiring: Wiring, needed: Tensor, task: int) -> Tensor:
    """Return the features that a task reads, computed in the full-width network."""
    return features_of(model, x)[:, with_raw(needed[task], raw=True)[wiring.features]]


def isolated(entry: Entry, wiring: Wiring, seed: int, n_tasks: int = 3) -> tuple[nn.Module, Tensor, Tensor]:
    """Build a network in which random units are claimed: weights are severed, norms run over needed units."""
    generator = torch.Generator().manual_seed(seed)
    model = plain(entry, seed)
    stir_(model, wiring, generator)
    owner, needed = random_allocation(wiring, norms_of(model, wiring), generator, n_tasks)
    sever_(model, wiring, owner, needed)
    norms_over_needed_(model, wiring, owner, needed)
    return model, owner, needed


def check_isolation(entry: Entry, wiring: Wiring, seed: int, n_tasks: int = 3, n: int = 6) -> None:
    """Assert that a task's features keep every bit, whatever free units and units of later tasks become."""
    model, owner, needed = isolated(entry, wiring, seed, n_tasks)
    generator = torch.Generator().manual_seed(1000 + seed)
    x = entry.example(n)
    before = [outputs_of_claimed(model, x, wiring, needed, task) for task in range(n_tasks)]
    for task, values in enumerate(before):
        assert bool(values.isfinite().all()), f"the test needs finite values (task {task})"
        assert values.numel(), f"the test needs features of task {task}"
    for last in reversed(range(n_tasks)):  # first the free units alone, then with the newest task's, ...
        randomise_(model, wiring, (owner == FREE) | (owner > last), generator)
        for task in range(last + 1):
            after = outputs_of_claimed(model, x, wiring, needed, task)
            assert torch.equal(before[task], after), f"{entry.name}, seed {seed}: task {task} moved with units of tasks after {last}"
    randomise_(model, wiring, owner == 0, generator)
    assert not torch.equal(before[0], outputs_of_claimed(model, x, wiring, needed, 0)), "the test must be able to fail"


def reference(model: nn.Module, wiring: Wiring, units: Tensor, x: Input, parts: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Compute the features of some units where nothing else exists: all weights that read other units are zero.

    Args:
        model: the original network at full width; left as it was.
        wiring: of it.
        units: bool (n_units,).
        x: a batch.
        parts: owner and needed, over which norms run; without them norms run over `units`.
    """
    model = copy.deepcopy(model)
    keeps = with_raw(units, raw=True)
    for _, tensor, labels in labelled(model, wiring):
        if labels.columns is not None:
            others = ~keeps[labels.columns][None].expand(len(labels.rows), -1)
            tensor.data.masked_fill_(spread(others, labels, tensor.dim()), 0)
    owner, needed = parts or (torch.zeros(wiring.n_units, dtype=torch.long), units[None])
    norms_over_needed_(model, wiring, owner, needed)
    return features_of(model, x)[:, keeps[wiring.features]]


def doubled(x: Input) -> Input:
    """Return an input in double precision; tokens as they are."""
    if isinstance(x, tuple):
        return tuple(doubled(part) for part in x)
    return x.double() if x.is_floating_point() else x


def precise(model: nn.Module, wiring: Wiring, units: Tensor, x: Input, parts: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Compute the reference in double precision. A norm over a few like values makes much of the rounding of single precision."""
    return reference(copy.deepcopy(model).double(), wiring, units, doubled(x), parts)
