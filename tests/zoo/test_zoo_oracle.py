"""The oracle itself, against labels written by hand: it holds where the labels are right, and breaks where one thing is wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import zoo_oracle
from torch import Tensor, nn
from zoo_networks import ZOO


@dataclass(frozen=True)
class Group:
    name: str
    n_units: int
    start: int
    shared: bool = False

    @property
    def slice(self):
        return slice(self.start, self.start + self.n_units)


@dataclass(frozen=True)
class Labels:
    rows: Tensor
    columns: Tensor | None = None
    row_dim: int = 0
    column_dim: int = 1


@dataclass(frozen=True)
class Wiring:
    groups: tuple
    parameters: dict
    features: Tensor

    @property
    def n_units(self):
        return sum(group.n_units for group in self.groups)


def wire(name, layers, features, extra=()):
    """Write a wiring down: module -> (labels of its outputs, labels of its inputs or None)."""
    entry = ZOO[name]
    model = zoo_oracle.plain(entry)
    groups, start = [], 0
    for group, n in entry.groups.items():
        groups.append(Group(group, n, start, group in entry.shared))
        start += n
    of = {group.name: torch.arange(group.start, group.start + group.n_units) for group in groups}
    layers = layers(of)
    parameters = dict(extra(of)) if extra else {}
    for path, (rows, columns) in layers.items():
        module = model.get_submodule(path)
        for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.dim() == 0:
                continue
            turned = isinstance(module, (nn.Embedding, nn.ConvTranspose2d))
            reads = columns if tensor.dim() > 1 and not isinstance(module, nn.Embedding) else None
            if key == "weight_hh_l0":
                reads = rows
            repeat = tensor.shape[int(turned and tensor.dim() > 1)] // len(rows)
            parameters[f"{path}.{key}"] = Labels(rows.repeat(repeat), reads, int(turned and tensor.dim() > 1), 0 if turned else 1)
    assert set(parameters) >= set(dict(model.named_parameters()))
    return Wiring(tuple(groups), parameters, features(of))


R = torch.tensor([-1])


def mlp():
    layers = lambda u: {  # noqa: E731
        "1": (u["1"], R.repeat(64)),
        "4": (u["4"], u["1"]),
        "5": (u["4"], None),
        "7": (u["7"], u["4"]),
        "8": (u["7"], None),
    }
    return wire("mlp", layers, lambda u: u["7"])


def unet():
    def layers(u):
        pairs = {
            "down1": (u["down1.0"], R),
            "down2": (u["down2.0"], u["down1.0"]),
            "bottom": (u["bottom.0"], u["down2.0"]),
            "mix2": (u["mix2.0"], torch.cat([u["down2.0"], u["up2"]])),
            "mix1": (u["mix1.0"], torch.cat([u["down1.0"], u["up1"]])),
        }
        found = {f"{name}.0": pair for name, pair in pairs.items()} | {f"{name}.1": (rows, None) for name, (rows, _) in pairs.items()}
        return found | {"up2": (u["up2"], u["bottom.0"]), "up1": (u["up1"], u["mix2.0"])}

    return wire("unet", layers, lambda u: u["mix1.0"].repeat_interleave(4))


def vit():
    def layers(u):
        stream = u["patches.proj"]
        found = {"patches.proj": (stream, R), "norm": (stream, None)}
        for block in ("blocks.0", "blocks.1"):
            heads = u[f"{block}.attn.qkv"].repeat_interleave(4)
            hidden = u[f"{block}.mlp.fc1"]
            found |= {f"{block}.norm1": (stream, None), f"{block}.norm2": (stream, None)}
            found |= {f"{block}.attn.qkv": (heads, stream), f"{block}.attn.proj": (stream, heads)}
            found |= {f"{block}.mlp.fc1": (hidden, stream), f"{block}.mlp.fc2": (stream, hidden)}
        return found

    return wire(
        "vit-einsum",
        layers,
        lambda u: u["patches.proj"],
        lambda u: {name: Labels(u["patches.proj"], None, 2) for name in ("extra", "position")},
    )


def lstm():
    return wire("lstm", lambda u: {"lstm": (u["lstm"], R.repeat(8)), "fc": (u["fc"], u["lstm"])}, lambda u: u["fc"])


def gpt():
    def layers(u):
        stream = u["emb"]
        found = {"emb": (stream, None), "pos": (stream, None), "ln_f": (stream, None)}
        for block in ("h.0", "h.1"):
            heads = u[f"{block}.attn.c_attn"].repeat_interleave(4)
            hidden = u[f"{block}.mlp.0"]
            found |= {f"{block}.ln_1": (stream, None), f"{block}.ln_2": (stream, None)}
            found |= {f"{block}.attn.c_attn": (heads, stream), f"{block}.attn.c_proj": (stream, heads)}
            found |= {f"{block}.mlp.0": (hidden, stream), f"{block}.mlp.2": (stream, hidden)}
        return found

    return wire("gpt-tied", layers, lambda u: u["emb"])


def mixer():
    def layers(u):
        stream = u["patches.proj"]
        found = {"patches.proj": (stream, R), "norm": (stream, None)}
        for block in ("blocks.0", "blocks.1"):
            hidden = u[f"{block}.channel_mixing.fc1"]
            found |= {f"{block}.norm1": (stream, None), f"{block}.norm2": (stream, None)}
            found |= {f"{block}.token_mixing.fc1": (u[f"{block}.token_mixing.fc1"].repeat(12), None)}
            found |= {f"{block}.token_mixing.fc2": (u[f"{block}.token_mixing.fc2"].repeat(16), None)}
            found |= {f"{block}.channel_mixing.fc1": (hidden, stream), f"{block}.channel_mixing.fc2": (stream, hidden)}
        return found

    return wire("mixer", layers, lambda u: u["patches.proj"])


WIRINGS = {"mlp": mlp, "unet": unet, "vit-einsum": vit, "lstm": lstm, "gpt-tied": gpt, "mixer": mixer}


@pytest.mark.parametrize("name", WIRINGS)
def test_right_labels_are_isolated(name):
    wiring = WIRINGS[name]()
    for seed in range(4):
        zoo_oracle.check_isolation(ZOO[name], wiring, seed)


@pytest.mark.parametrize("name", WIRINGS)
def test_weights_that_are_not_severed_are_caught(name, monkeypatch):
    monkeypatch.setattr(zoo_oracle, "sever_", lambda *_: None)
    with pytest.raises(AssertionError, match="moved with units"):
        zoo_oracle.check_isolation(ZOO[name], WIRINGS[name](), 0)


@pytest.mark.parametrize("name", ["mlp", "vit-einsum", "gpt-tied", "mixer"])
def test_norms_over_everything_are_caught(name, monkeypatch):
    monkeypatch.setattr(zoo_oracle, "norms_over_needed_", lambda *_: None)
    with pytest.raises(AssertionError, match="moved with units"):
        zoo_oracle.check_isolation(ZOO[name], WIRINGS[name](), 0)


@pytest.mark.parametrize(
    ("name", "weight"),
    [("mlp", "7.weight"), ("unet", "up1.weight"), ("vit-einsum", "blocks.0.attn.proj.weight"), ("lstm", "lstm.weight_hh_l0")],
)
def test_columns_of_other_units_are_caught(name, weight):
    right = WIRINGS[name]()
    labels = right.parameters[weight]
    wrong = replace(right, parameters={**right.parameters, weight: replace(labels, columns=labels.columns.flip(0))})
    with pytest.raises(AssertionError, match="moved with units"):
        zoo_oracle.check_isolation(ZOO[name], wrong, 0)


@pytest.mark.parametrize("name", WIRINGS)
def test_an_allocation_is_closed_and_every_task_has_units_everywhere(name):
    wiring = WIRINGS[name]()
    norms = zoo_oracle.norms_of(zoo_oracle.plain(ZOO[name]), wiring)
    for seed in range(5):
        owner, needed = zoo_oracle.random_allocation(wiring, norms, torch.Generator().manual_seed(seed))
        for task in range(3):
            assert torch.equal(zoo_oracle.close(needed[task], owner, needed, wiring, norms), needed[task])
            assert bool(needed[task][owner == task].all())
            assert not bool(needed[task][owner > task].any())
            assert not bool(needed[task][owner == zoo_oracle.FREE].any())
            assert all(bool(needed[task][group.slice].any()) for group in wiring.groups)


@pytest.mark.parametrize("name", WIRINGS)
def test_the_reference_of_all_units_is_the_network(name):
    wiring, entry = WIRINGS[name](), ZOO[name]
    model = zoo_oracle.plain(entry)
    found = zoo_oracle.reference(model, wiring, torch.ones(wiring.n_units, dtype=torch.bool), entry.example(3))
    assert torch.allclose(found, zoo_oracle.features_of(model, entry.example(3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", WIRINGS)
def test_a_task_computes_the_same_alone_and_among_all(name):
    wiring, entry = WIRINGS[name](), ZOO[name]
    for seed in range(3):
        model, owner, needed = zoo_oracle.isolated(entry, wiring, seed)
        x = entry.example(5)
        among = [zoo_oracle.outputs_of_claimed(model, x, wiring, needed, task) for task in range(3)]
        for task in range(3):
            # The norms of `model` run over needed units already, and are no longer found.
            alone = zoo_oracle.reference(model, wiring, needed[task], x, (owner, needed))
            assert torch.allclose(alone, among[task], rtol=1e-4, atol=1e-5)
