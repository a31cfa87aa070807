"""Which weights are frozen, severed or trainable: derived from owner, needed and the labels of a weight.

For a weight from unit v to unit u (DESIGN.md section 2): u claimed by task s and v in needed[s]: frozen; u claimed by s
and any other v: severed (zero for ever); u free: trainable. Raw input is needed by everyone. So a weight trains exactly
when its row's unit is free.

All functions work on units numbered through the whole network: `owner` int64 (n_units,), `needed` bool (n_tasks, n_units).
Labels of -1 are raw input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clnp.allocation import FREE


def trainable(owner: Tensor, rows: Tensor) -> Tensor:
    """Return which rows of a parameter may be trained: those of free units, bool (rows,).

    >>> trainable(torch.tensor([0, -1]), torch.tensor([0, 1, 1]))
    tensor([False,  True,  True])
    """
    return owner[rows] == FREE


def severed(owner: Tensor, needed: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return which weights are zero for ever: claimed rows, columns that their owner does not need; bool (rows, columns).

    >>> owner, needed = torch.tensor([0, 1, -1]), torch.tensor([[True, False, False], [False, True, False]])
    >>> severed(owner, needed, torch.tensor([0, 1, 2]), torch.tensor([-1, 0, 1, 2]))
    tensor([[False, False,  True,  True],
            [False,  True, False,  True],
            [False, False, False, False]])
    """
    of_rows = owner[rows]  # (rows,)
    if len(needed) == 0:
        return torch.zeros(len(rows), len(columns), dtype=torch.bool)
    allowed = torch.cat([needed, torch.ones(len(needed), 1, dtype=torch.bool)], 1)  # the last place answers for raw input, label -1
    return (of_rows != FREE)[:, None] & ~allowed[of_rows.clamp(min=0)][:, columns]


def norm_parts(owner: Tensor, needed: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return, for norms over units, which units are normalised over which: those of a task over those that it needs.

    >>> owner, needed = torch.tensor([0, 1, -1]), torch.tensor([[True, False, False], [True, True, False]])
    >>> [(own.tolist(), over.tolist()) for own, over in norm_parts(owner, needed)][1]
    ([False, True, False], [True, True, False])
    """
    return [(owner == task, needed[task]) for task in range(len(needed))]


def closure(units: Tensor, owner: Tensor, needed: Tensor, edges: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the smallest closed set that holds `units`: with a claimed unit, all units of `needed[owner]` that it reads.

    Without it a reused unit would be computed from other inputs than those it was trained with.

    Args:
        units: bool (n_units,).
        owner: int64 (n_units,).
        needed: bool (n_tasks, n_units).
        edges: for each weight, the labels of its rows and of its columns.
    """
    closed = units.clone()
    while True:
        before = closed.clone()
        for rows, columns in edges:
            of_rows = owner[rows[closed[rows]]]
            real = columns[columns >= 0]
            for task in torch.unique(of_rows[of_rows != FREE]).tolist():
                closed[real[needed[task][real]]] = True
        if torch.equal(before, closed):
            return closed
