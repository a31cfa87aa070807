"""Every operation by itself: units and labels as worked out by hand, and a narrowed network against the whole one."""

from __future__ import annotations

import functools
import pickle
import random
import re
import warnings
from pathlib import Path

import pytest
import torch
from op_networks import MERGED, OPS, REFUSED, UNSURE
from torch import nn
from torch.nn.utils import parametrize

from clnp.errors import WiringError
from clnp.learner import Learner
from clnp.narrow import narrow
from clnp.wiring import trace
from small import sampled

CASES = {**OPS, **MERGED}
SOURCE = Path(__file__).with_name("op_refused.py")
LOST = "capacity lost here"
SEEDS = 2
SOME = sampled(CASES, 16)
"""To capture a network takes a fifth of a second: an eighth of them in the fast suite, all of them in CI."""


# ---- what the table says, without the library


def model_of(case, seed=0):
    """A network in evaluation mode whose scales, shifts and statistics are all different."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = case.build()
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and tensor.dim() < 2 and (isinstance(tensor, nn.Parameter) or "running" in name):
                tensor.data = torch.rand_like(tensor) + 0.5
    return model.eval()


def batch_of(case, n, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(100 + seed)
        return case.batch(n)


def unfolded(case, model):
    """A copy whose weights are plain parameters."""
    with torch.random.fork_rng():
        copied = case.build().eval()  # weight_norm of the old style cannot be deep-copied
    copied.load_state_dict(model.state_dict())
    for module in copied.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
        elif hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)
    return copied


def choice_of(case, seed):
    """At least one unit of each group, and all that are shared: bool (n_units + 1,), the last for raw input."""
    rng = random.Random(f"{case.groups} {seed}")
    keep = []
    for group, n in case.groups.items():
        chosen = range(n) if group in case.shared else rng.sample(range(n), rng.randint(1, max(1, n - 1)))
        keep += [unit in chosen for unit in range(n)]
    return torch.tensor([*keep, True])


class Over(nn.Module):
    """A layer norm, RMS norm or group norm with one group, over the kept positions along a dimension."""

    def __init__(self, norm, dim, kept):
        super().__init__()
        self.norm, self.dim, self.kept = norm, dim, kept

    def forward(self, x):
        if getattr(self.norm, "channels_first", False):
            return self.over(x.movedim(1, -1), -1).movedim(-1, 1)
        return self.over(x, self.dim)

    def over(self, x, dim):
        grouped = isinstance(self.norm, nn.GroupNorm)
        n_dims = x.dim() - 1 if grouped else len(self.norm.normalized_shape)
        over, dim = tuple(range(-n_dims, 0)), dim % x.dim()
        read = x.index_select(dim, self.kept.nonzero()[:, 0])
        mean = 0.0 if isinstance(self.norm, nn.RMSNorm) else read.mean(over, keepdim=True)
        eps = torch.finfo(x.dtype).eps if self.norm.eps is None else self.norm.eps
        y = (x - mean) / torch.sqrt((read - mean).square().mean(over, keepdim=True) + eps)
        for name, act in (("weight", torch.mul), ("bias", torch.add)):
            own = getattr(self.norm, name, None)
            if own is not None:
                y = act(y, own.view(-1, *[1] * (n_dims - 1)) if grouped else own)
        return y


def whole(case, model, keep):
    """The network at full width in which nobody reads the units that are not kept."""
    net = unfolded(case, model)
    state = dict(net.named_parameters(remove_duplicate=False))
    for name, (_, columns) in case.labels.items():
        if columns is not None:
            dropped = (~keep[columns]).nonzero()[:, 0]
            state[name].data.index_fill_(case.dims_of(name)[1], dropped, 0.0)
    for name, (dim, units) in case.norms.items():
        setattr(net, name, Over(net.get_submodule(name), dim, keep[units]))
    return net


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_network_holds_the_operation(name):
    case = CASES[name]
    model = model_of(case).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (case.batch(2),), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False)
    assert case.op in {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("name", CASES)
def test_units_that_are_not_read_do_not_matter(name):
    """The table is right by itself: with their readers at zero, units can be anything."""
    case = CASES[name]
    for seed in range(SEEDS):
        model, keep, x = model_of(case, seed), choice_of(case, seed), batch_of(case, 4, seed)
        net = whole(case, model, keep)
        with torch.no_grad():
            before = net(x.clone())
            state = dict(net.named_parameters(remove_duplicate=False)) | dict(net.named_buffers(remove_duplicate=False))
            for parameter, (rows, _) in case.labels.items():
                full = next((key for key in (parameter, ".norm.".join(parameter.rsplit(".", 1))) if key in state), None)
                if full is not None and state[full].dim():
                    dim = case.dims_of(parameter)[0]
                    dropped = (~keep[rows]).nonzero()[:, 0]
                    other = torch.rand_like(state[full].index_select(dim, dropped)) + 0.5
                    state[full].data.index_copy_(dim, dropped, other)
            kept = keep[case.features]
            assert torch.allclose(net(x.clone())[:, kept], before[:, kept], rtol=1e-5, atol=1e-6)


# ---- the library


@functools.cache
def traced(name):
    case = CASES[name]
    model = model_of(case)
    return model, trace(model, batch_of(case, 2))


def n_positions(shape, dim):
    return shape[dim] if shape else 1


@pytest.mark.parametrize("name", SOME)
def test_units_and_labels_are_those_computed_by_hand(name):
    check_labels(CASES[name], *traced(name))


def check_labels(case, model, wiring):
    assert {group.name: group.n_units for group in wiring.groups} == case.groups
    assert list(case.groups) == [group.name for group in wiring.groups], "in order of execution"
    assert {group.name for group in wiring.groups if group.shared} == set(case.shared)
    shared = {unit for group in wiring.groups if group.shared for unit in range(group.start, group.start + group.n_units)}
    plain = unfolded(case, model)
    state = dict(plain.named_parameters()) | dict(plain.named_buffers())
    for parameter, (rows, columns) in case.labels.items():
        if parameter == "features":
            assert wiring.features.tolist() == rows
            continue
        found = wiring.parameters[parameter]
        if set(rows) <= shared:
            assert set(found.rows.flatten().tolist()) == set(rows), parameter
            continue
        row_dim, column_dim = case.dims_of(parameter)
        assert (found.rows.tolist(), found.row_dim) == (rows, row_dim), parameter
        assert (None if found.columns is None else found.columns.tolist()) == columns, parameter
        assert columns is None or found.column_dim == column_dim, parameter
        assert n_positions(state[parameter].shape, row_dim) == len(rows)
    assert wiring.features.tolist() == case.features
    assert case.merged in (None, LOST in wiring.explain())


@pytest.mark.parametrize("name", SOME)
def test_every_parameter_is_labelled(name):
    model, wiring = traced(name)
    assert {key for key, _ in unfolded(CASES[name], model).named_parameters()} <= set(wiring.parameters)


@pytest.mark.parametrize("name", SOME)
def test_a_narrowed_network_is_the_whole_one_without_the_other_units(name):
    check_narrowed(CASES[name], *traced(name))


def check_narrowed(case, model, wiring):
    plain = unfolded(case, model)
    state = {key: tensor for net in (model, plain) for key, tensor in (*net.named_parameters(), *net.named_buffers())}
    state |= wiring.graph.constants
    for seed in range(SEEDS):
        keep = choice_of(case, seed)
        network, reference = narrow(wiring, state, keep[:-1]), whole(case, model, keep)
        for n in (1, 5):
            x = batch_of(case, n, seed)
            with torch.no_grad():
                expected = reference(x.clone())[:, keep[case.features]]
                found = network(x.clone())
            assert found.shape == expected.shape
            assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
        if not seed:
            with torch.no_grad():
                assert torch.equal(pickle.loads(pickle.dumps(network))(x.clone()), found)


@pytest.mark.parametrize("name", sampled(MERGED))
def test_what_has_no_rule_is_one_unit_and_said_so(name):
    case = MERGED[name]
    _, wiring = traced(name)
    text = wiring.explain()
    assert LOST in text
    assert re.search(rf"{LOST}[^\n]*{re.escape(case.op.split('.')[1])}|{re.escape(case.op.split('.')[1])}[^\n]*{LOST}", text), text


# ---- refusals


def test_the_lines_that_refusals_must_show_are_there():
    text = SOURCE.read_text()
    assert all(f"{refusal.line}" in text for refusal in REFUSED.values())


@pytest.mark.parametrize("name", [name for name, refusal in REFUSED.items() if "example|batch" in refusal.pattern])
def test_what_is_refused_for_mixing_examples_does_so(name):
    refusal = REFUSED[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = refusal.build().eval()
        for parameter in model.parameters():
            parameter.data = torch.randn_like(parameter)
        x = torch.randn(6, *refusal.shape)
        with torch.no_grad():
            whole = model(x)
            other = x.clone()
            other[[0, 2, 3, 4, 5]] = torch.randn(5, *refusal.shape)
            assert not torch.allclose(model(other)[1], whole[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sampled(REFUSED))
def test_what_cannot_be_isolated_is_refused_by_name(name):
    refusal = REFUSED[name]
    with pytest.raises(WiringError) as caught:
        Learner(refusal.build(), torch.randn(2, *refusal.shape))
    message = str(caught.value)
    assert re.search(refusal.pattern, message), message
    assert f"'{refusal.path or '(top level)'}" in message, message
    lines = SOURCE.read_text().splitlines()
    assert any(refusal.line in lines[int(number) - 1] for number in re.findall(rf"{SOURCE.name}:(\d+)", message)), message


@pytest.mark.parametrize("name", UNSURE)
def test_what_may_be_merged_is_never_guessed(name):
    build, shape = UNSURE[name]
    try:
        wiring = trace(build(), torch.randn(2, *shape))
    except WiringError as error:
        text, wanted = str(error), f"{SOURCE.name}:"
    else:
        text, wanted = wiring.explain(), LOST
        assert wiring.groups[0].n_units == 1, text
    assert wanted in text
