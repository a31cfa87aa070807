"""Every operation of the table by itself, between two layers of 5 and 3 units: none is merged, and it can be narrowed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from clnp.errors import WiringError
from clnp.narrow import narrow
from clnp.wiring import RULES, trace
from clnp.wiring.graph import resolve
from clnp.wiring.patterns import UNIT_NORM
from small import sampled
from test_narrow import full_name, state_of
from test_wiring import Net

aten = torch.ops.aten


def truth(test):
    return lambda h: test(h).float() + 0.1 * h


# operation: what is done with rows (B, 5)
ROWS = {
    "__and__.Tensor": truth(lambda h: aten.__and__.Tensor(h > 0, h < 0.5)),
    "__or__.Tensor": truth(lambda h: aten.__or__.Tensor(h > 0.5, h < 0)),
    "bitwise_and.Tensor": truth(lambda h: aten.bitwise_and.Tensor(h > 0, h < 0.5)),
    "bitwise_or.Tensor": truth(lambda h: aten.bitwise_or.Tensor(h > 0.5, h < 0)),
    "bitwise_not": truth(lambda h: aten.bitwise_not.default(h > 0)),
    "logical_and": truth(lambda h: torch.logical_and(h > 0, h < 0.5)),
    "logical_or": truth(lambda h: torch.logical_or(h > 0.5, h < 0)),
    "logical_not": truth(lambda h: torch.logical_not(h > 0)),
    **{f"{op}.Scalar": truth(lambda h, op=op: getattr(aten, op).Scalar(h.round(), 0)) for op in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{
        f"{op}.Tensor": truth(lambda h, op=op: getattr(aten, op).Tensor(h.round(), h.ceil())) for op in ("eq", "ne", "lt", "le", "gt", "ge")
    },
    **{op: truth(lambda h, op=op: getattr(aten, op).default(h)) for op in ("isnan", "isinf", "isfinite")},
    **{op: lambda h, op=op: getattr(torch, op)(torch.tanh(h)) for op in ("acos", "asin", "atan", "tan", "cosh", "sinh", "erfc", "exp2")},
    **{op: lambda h, op=op: getattr(torch, op)(3 * h) for op in ("ceil", "floor", "round")},
    "log2": lambda h: torch.log2(h.abs() + 1),
    "hypot": lambda h: torch.hypot(h, h + 1),
    "clamp_max": lambda h: h.clamp_max(0.1),
    "div.Scalar": lambda h: aten.div.Scalar(h, 2),
    "div.Tensor_mode": lambda h: torch.div(3 * h, h.abs() + 1, rounding_mode="floor"),
    "floor_divide": lambda h: aten.floor_divide.default(3 * h, h.abs() + 1),
    "fmod.Scalar": lambda h: aten.fmod.Scalar(h, 0.3),
    "remainder.Scalar": lambda h: aten.remainder.Scalar(h, 0.3),
    "remainder.Tensor": lambda h: torch.remainder(h, h.abs() + 0.1),
    "rsub.Tensor": lambda h: aten.rsub.Tensor(h, torch.exp(h)),
    "sub.Scalar": lambda h: aten.sub.Scalar(h, 2),
    "where.Scalar": lambda h: aten.where.Scalar(h > 0, 1.0, 2.0) + h,
    "where.ScalarSelf": lambda h: aten.where.ScalarSelf(h > 0, 1.0, h),
    "masked_fill.Tensor": lambda h: aten.masked_fill.Tensor(h, h > 0, torch.tensor(2.0)),
    "concat": lambda h: aten.concat.default([h.unsqueeze(1), torch.tanh(h).unsqueeze(1)], 1).mean(1),
    "constant_pad_nd": lambda h: aten.constant_pad_nd.default(h.unsqueeze(1), [0, 0, 1, 0], 3.0).mean(1),
    # shapes and copies
    "squeeze": lambda h: h.unsqueeze(1).squeeze(),
    "view_as": lambda h: h.view_as(torch.tanh(h)),
    "reshape_as": lambda h: h.unsqueeze(1).reshape_as(h),
    "swapdims": lambda h: aten.swapdims.default(h.unsqueeze(1), 1, 2).flatten(1),
    "movedim.intlist": lambda h: h.unsqueeze(1).movedim((1, 2), (2, 1)).flatten(1),
    "to.device": lambda h: aten.to.device(h, torch.device("cpu"), torch.float32),
    "to.dtype_layout": lambda h: aten.to.dtype_layout(h, dtype=torch.float32),
    "to.other": lambda h: aten.to.other(h, torch.tanh(h)),
    "type_as": lambda h: aten.type_as.default(h, torch.tanh(h)),
    "lift_fresh_copy": aten.lift_fresh_copy.default,
    # tensors that the code makes itself
    "arange": lambda h: h + torch.arange(5),
    "arange.start": lambda h: h + torch.arange(1, 6),
    "arange.start_step": lambda h: h + torch.arange(1, 11, 2),
    "eye": lambda h: h + torch.eye(5)[2],
    "full": lambda h: h + torch.full((5,), 2.0),
    "linspace": lambda h: h + torch.linspace(0, 1, 5),
    "ones": lambda h: h + torch.ones(5),
    "zeros": lambda h: h + torch.zeros(5),
    "scalar_tensor": lambda h: h + aten.scalar_tensor.default(2.0),
    "tril_indices": lambda h: h + torch.tril_indices(5, 1)[0],
    "triu_indices": lambda h: h + torch.triu_indices(1, 5)[1],
    "new_full": lambda h: h + h.new_full((5,), 2.0),
    "new_ones": lambda h: h + h.new_ones(5),
    "new_zeros": lambda h: h + h.new_zeros(5),
    "full_like": lambda h: h * torch.full_like(h, 2.0),
    "ones_like": lambda h: h + torch.ones_like(h),
    "zeros_like": lambda h: torch.maximum(h, torch.zeros_like(h)),
}
# operation: what is done with the first of the tokens (B, 4, 5), along which nothing ties units
TOKENS = {
    "argsort": lambda h: torch.argsort(h, 1).float(),
    "cummax": lambda h: torch.cummax(h, 1)[0],
    "cummin": lambda h: torch.cummin(h, 1)[0],
    "sort": lambda h: aten.sort.default(h, 1)[0],
    "logcumsumexp": lambda h: torch.logcumsumexp(h, 1),
    "any.dim": lambda h: torch.any(h > 0.5, 1, keepdim=True).float() + h,
    "all.dim": lambda h: torch.all(h > -0.5, 1, keepdim=True).float() + h,
    "norm.ScalarOpt_dim": lambda h: aten.norm.ScalarOpt_dim(h, 2, [1], True) + h,
    "var.dim": lambda h: aten.var.dim(h, [1], True, True) + h,
}
# operation: what is done with a map (B, 5, 4, ...) of as many dimensions as its name says
MAPS = {
    **{f"reflection_pad{n}d": lambda h, n=n: getattr(aten, f"reflection_pad{n}d").default(h, [1] * (2 * n)) for n in (1, 2, 3)},
    **{f"replication_pad{n}d": lambda h, n=n: getattr(aten, f"replication_pad{n}d").default(h, [1] * (2 * n)) for n in (1, 2, 3)},
    "_upsample_nearest_exact2d.vec": lambda h: nn.functional.interpolate(h, scale_factor=2, mode="nearest-exact"),
    "_upsample_bilinear2d_aa.vec": lambda h: nn.functional.interpolate(h, size=(3, 3), mode="bilinear", antialias=True),
}
WHOLE = ("max", "min", "mean", "sum")  # over the examples, too: refused
HERE = {**ROWS, **TOKENS, **MAPS}


def network_of(op):
    if op in ROWS:
        return Net(lambda n, x: n.b(ROWS[op](n.a(x))), a=nn.Linear(4, 5), b=nn.Linear(5, 3)), (4,)
    if op in TOKENS:
        return Net(lambda n, x: n.b(TOKENS[op](n.a(x)).mean(1)), a=nn.Linear(4, 5), b=nn.Linear(5, 3)), (4, 4)
    n_dims = next(n for n in (1, 2, 3) if f"{n}d" in op)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n_dims - 1](2, 5, 3, padding=1)
    return Net(lambda n, x: n.b(MAPS[op](n.a(x)).flatten(2).square().mean(2)), a=conv, b=nn.Linear(5, 3)), (2, *[4] * n_dims)


@pytest.mark.parametrize("op", sampled(HERE, 6))
def test_an_operation_of_the_table_can_be_narrowed(op):
    torch.manual_seed(1)
    net, shape = network_of(op)
    wiring = trace(net.eval(), torch.zeros(2, *shape))
    assert full_name(op) in {node.op for node in wiring.graph.nodes}
    assert [group.n_units for group in wiring.groups] == [5, 3], "no unit is merged"
    assert wiring.parameters["b.weight"].columns.tolist() == [0, 1, 2, 3, 4]
    for kept in ([0, 2], [4], [1, 2, 3], [0, 1, 2, 3, 4]):
        units = torch.zeros(8, dtype=torch.bool)
        units[[*kept, 5, 7]] = True
        whole = copy.deepcopy(net)
        whole.b.weight.data[:, [unit for unit in range(5) if unit not in kept]] = 0
        network = narrow(wiring, {**state_of(net), **wiring.graph.constants}, units)
        for n in (6, 3):
            x = torch.randn(n, *shape)
            with torch.no_grad():
                assert torch.allclose(network(x), whole(x)[:, [0, 2]], rtol=1e-5, atol=1e-5)


def test_a_channel_shuffle_moves_units():
    net = Net(lambda n, x: nn.functional.channel_shuffle(n.a(x), 2).mean((2, 3)), a=nn.Conv2d(2, 6, 3)).eval()
    wiring = trace(net, torch.zeros(2, 2, 5, 5))
    assert wiring.features.tolist() == [0, 3, 1, 4, 2, 5]
    units = torch.tensor([True, False, True, True, False, True])
    x = torch.randn(3, 2, 5, 5)
    with torch.no_grad():
        assert torch.allclose(narrow(wiring, state_of(net), units)(x), net(x)[:, [0, 1, 4, 5]], atol=1e-6)


def test_the_native_channel_shuffle_is_captured_for_one_batch_size_only_and_refused():
    net = Net(lambda n, x: aten.native_channel_shuffle.default(n.a(x), 2).mean((2, 3)), a=nn.Conv2d(2, 6, 3))
    with pytest.raises(WiringError, match=r"batch size is hard-coded.*test_wiring\.py:\d+"):
        trace(net, torch.zeros(2, 2, 5, 5))


@pytest.mark.parametrize("op", WHOLE)
def test_what_is_taken_over_everything_mixes_examples_and_is_refused(op):
    net = Net(lambda n, x: (h := n.a(x)) + getattr(torch, op)(h), a=nn.Linear(4, 5))
    with pytest.raises(WiringError, match=rf"aten\.{op}\.default at .*test_wiring\.py:\d+: .* reduces over the examples of a batch"):
        trace(net, torch.zeros(2, 4))


def test_there_is_such_an_operation():
    """That each has a network that holds it is checked by tests/zoo/test_mutation.py and test_ops.py."""
    assert {full_name(op) for op in HERE} <= set(RULES)
    assert all(op == UNIT_NORM or callable(resolve(op)) for op in RULES)


PADS = {
    "pad": lambda h, value: nn.functional.pad(h, [1, 2], value=value),
    "constant_pad_nd": lambda h, value: aten.constant_pad_nd.default(h, [1, 2], value),
}


@pytest.mark.parametrize("value", [0.0, 1.0, 2.0, float("-inf")])
@pytest.mark.parametrize("op", PADS)
def test_what_a_padding_puts_beside_units_is_raw_input_whatever_it_is(op, value):
    net = Net(lambda n, x: PADS[op](n.a(x), value), a=nn.Linear(4, 5)).eval()
    wiring = trace(net, torch.zeros(2, 4))
    assert wiring.features.tolist() == [-1, 0, 1, 2, 3, 4, -1, -1]
    x = torch.randn(3, 4)
    with torch.no_grad():
        found = narrow(wiring, state_of(net), torch.tensor([False, True, True, False, True]))(x)
        assert torch.allclose(found, net(x)[:, [0, 2, 3, 5, 6, 7]], atol=1e-6)


def test_what_a_padding_puts_beside_a_parameter_is_no_part_of_it():
    net = Net(lambda n, x: n.a(x) + nn.functional.pad(n.w, [2, 0]), a=nn.Linear(4, 5), w=nn.Parameter(torch.randn(3))).eval()
    wiring = trace(net, torch.zeros(2, 4))
    assert wiring.parameters["w"].rows.tolist() == [2, 3, 4]
    x = torch.randn(3, 4)
    with torch.no_grad():
        found = narrow(wiring, state_of(net), torch.tensor([True, False, True, False, True]))(x)
        assert torch.allclose(found, net(x)[:, [0, 2, 4]], atol=1e-6)
