"""Each guard of the code, removed by hand, breaks a promise: so the promises in test_method.py do check something."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import clnp
import clnp.isolation
import clnp.learner
import clnp.narrow
import clnp.pruning
import clnp.selection
import clnp.split
import clnp.training
import promises
import small
from clnp.layers import PoolNorm


def no_severing(patch):
    def nothing(owner, needed, rows, columns):
        return torch.zeros(len(rows), len(columns), dtype=torch.bool)

    patch.setattr(clnp.pruning, "severed", nothing)


def no_closure(patch):
    patch.setattr(clnp.pruning, "closure", lambda units, owner, needed, edges: units)


def claimed_graph_in_training_mode(patch):
    """Statistics of claimed channels move with every batch, as in plain train-mode batch norm."""
    real = clnp.split.narrow

    def leaking(*args, **kwargs):
        network = real(*args, **kwargs)
        for node in network.graph.nodes:
            if node.op == "call_function" and "batch_norm" in str(node.target):
                node.args = (*node.args[:5], True, *node.args[6:])
        network.recompile()
        return network

    patch.setattr(clnp.split, "narrow", leaking)


def optimizer_holds_claimed_rows(patch):
    """Weight decay and momentum move whatever an optimizer is given, gradient or not."""
    real = clnp.training.make_optimizer

    def leaking(parameters, *args):
        return real([*parameters, *leaking.claimed], *args)

    leaking.claimed = []
    split = clnp.learner.split

    def remember(*args, **kwargs):
        network = split(*args, **kwargs)
        leaking.claimed = []
        if network.claimed is not None:
            for module in network.claimed.modules():
                for name, buffer in list(module.named_buffers(recurse=False)):
                    if buffer.is_floating_point():
                        del module._buffers[name]
                        parameter = torch.nn.Parameter(buffer)
                        parameter.grad = torch.zeros_like(buffer)
                        module.register_parameter(name, parameter)
                        leaking.claimed.append(parameter)
        return network

    patch.setattr(clnp.learner, "split", remember)
    patch.setattr(clnp.training, "make_optimizer", leaking)


def norms_not_estimated_again(patch):
    """The batch norm of the narrowed network keeps moving after it was measured."""
    real = clnp.pruning.n_correct

    def moving(network, *args, **named):
        for module in network.modules():
            if isinstance(module, PoolNorm):
                module.estimating, module.n_batches = True, 1
        return real(network, *args, **named)

    patch.setattr(clnp.pruning, "n_correct", moving)


def claimed_rows_written(patch):
    """Put the pool's rows one place too early."""
    real = clnp.split.write_back

    def early(dim, index):
        return index - 1 if dim == 0 and index.numel() and int(index.min()) > 0 else index

    def shifted(wiring, pieces, *stores):
        moved = [p if p.of_head else replace(p, places=[(dim, early(dim, index)) for dim, index in p.places]) for p in pieces]
        real(wiring, moved, *stores)

    patch.setattr(clnp.split, "write_back", shifted)


def order_of_units_not_fixed(patch):
    """A predictor whose units are gathered in another order has other bits."""
    real = clnp.learner.narrow

    def reversed_head(*args, **kwargs):
        network = real(*args, **kwargs)
        with torch.no_grad():
            network.head.weight.copy_(network.head.weight.flip(1))
        return network

    patch.setattr(clnp.learner, "narrow", reversed_head)


def global_random_numbers(patch):
    patch.setattr(clnp.training.seeds, "generator", lambda *place: torch.Generator().manual_seed(int(torch.randint(2**31, ()))))


def isolation_holds():
    learner = small.learned("resnet", 3)
    promises.interference_is_zero(learner)
    promises.full_width_agrees(learner)


def training_holds_still():
    promises.training_network_holds_still("vgg", **small.OPTIMIZERS["sgd-decay"])


def reused_units_keep_their_inputs():
    for seed in range(4):  # most selections happen to be closed
        no_unit_is_read_without_its_inputs(small.learned("mlp", 3, seed))


def no_unit_is_read_without_its_inputs(learner):
    for task, needed in learner.allocation.needed.items():
        units = learner.wiring.join(needed)
        for labels in learner.wiring.parameters.values():
            if labels.columns is None:
                continue
            for unit in labels.rows[units[labels.rows]].tolist():
                owner = learner.tasks[int(learner.wiring.join(learner.allocation.owner)[unit])]
                reads = labels.columns[(labels.columns >= 0)]
                reads = reads[learner.wiring.join(learner.allocation.needed[owner])[reads]]
                assert units[reads].all(), f"{task} reads a unit of {owner} without its inputs"


GUARDS = {
    "interference weights are severed": (no_severing, isolation_holds),
    "needed is closed": (no_closure, reused_units_keep_their_inputs),
    "claimed statistics are frozen": (claimed_graph_in_training_mode, training_holds_still),
    "the optimizer gets pool rows only": (optimizer_holds_claimed_rows, training_holds_still),
    "norms hold still once estimated": (norms_not_estimated_again, training_holds_still),
    "pool rows are written to pool rows": (claimed_rows_written, lambda: promises.nothing_forgotten("mlp")),
    "the predictor is the trained network": (order_of_units_not_fixed, training_holds_still),
}


@pytest.mark.parametrize("guard", small.sampled({promise: guard for guard, (_, promise) in GUARDS.items()}.values(), 2))
def test_the_promise_holds(guard):
    """Once for the guards that keep the same one."""
    GUARDS[guard][1]()


@pytest.mark.parametrize("guard", small.sampled(GUARDS, 2))
def test_without_the_guard_the_promise_breaks(guard, monkeypatch):
    remove, promise = GUARDS[guard]
    remove(monkeypatch)
    with pytest.raises(AssertionError):
        promise()


def test_without_seeds_of_their_own_runs_differ(monkeypatch):
    global_random_numbers(monkeypatch)
    one, two = small.learned("mlp", 1), small.learned("mlp", 1)
    with pytest.raises(AssertionError):
        promises.assert_same(promises.logits_of(one), promises.logits_of(two))


def test_without_the_budget_the_margin_breaks(monkeypatch):
    margin_is_kept()
    monkeypatch.setattr(clnp.pruning, "allowed_loss", lambda margin, n: n)
    with pytest.raises(AssertionError):
        margin_is_kept()


def margin_is_kept():
    learner = clnp.Learner(small.network("mlp"), torch.zeros(2, *small.SHAPE))
    for number in range(3):
        result = small.learn(learner, number, epochs=8, finetune_epochs=0, rounds=1)
        x, y = small.task(number)
        accuracy = float((learner.predict(x[180:], task=result.task).argmax(1) == y[180:]).double().mean())
        assert accuracy == pytest.approx(result.accuracy)
        assert result.accuracy_unpruned - accuracy <= 0.02
