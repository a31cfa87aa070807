"""Every operation by itself: what is recalled of the network before is what would be computed, to the bit."""

from __future__ import annotations

import pytest
import torch
from op_networks import OPS
from test_ops import batch_of, model_of

from clnp.learner import Learner
from clnp.recall import Memory, Recalled, recalling
from clnp.split import Head, split
from clnp.training import narrow_kept
from small import sampled


@pytest.mark.parametrize("name", sampled(OPS, 32))
@pytest.mark.parametrize(("any_claimed", "kept"), [(True, True), (True, False), (False, False)], ids=["kept", "computed", "first task"])
def test_what_is_recalled_of_an_operation_is_what_would_be_computed(name, any_claimed, kept):
    """Groups lose a unit in turn, of the pool or a claimed one; values of claimed units are kept of the first network, or each network computes its own."""
    case, generator = OPS[name], torch.Generator().manual_seed(0)
    learner, x = Learner(model_of(case), batch_of(case, 2)), batch_of(case, 4)
    wiring, state = learner.wiring, learner._state
    head = Head(torch.randn(3, len(wiring.features), generator=generator), torch.zeros(3))
    everything = torch.ones(wiring.n_units, dtype=torch.bool)
    claimed = any_claimed & ((torch.rand(wiring.n_units, generator=generator) < 0.5) | wiring.shared)  # as after a first task
    first = split(wiring, state, claimed, ~claimed, head).eval()
    values, memory = first.claimed_values(x), Memory(1e9)
    for group in [*reversed(wiring.groups), *wiring.groups]:
        free = group.mask(wiring.n_units) & ~wiring.shared
        for n_lost in (0, 1):
            visible = everything.clone()
            visible[free.nonzero()[torch.randperm(int(free.sum()), generator=generator)[:n_lost], 0]] = False
            plain, network = (split(wiring, state, visible & claimed, visible & ~claimed, head, values_kept=kept).eval() for _ in range(2))
            meets = narrow_kept(values, first, network) if kept else None
            memory.watch(network)
            with torch.no_grad(), recalling(network, "x"):
                assert torch.equal(network(x, meets), plain(x, meets))
            assert isinstance(network.pool, Recalled)
