"""Networks of timm, which somebody else wrote, where timm is installed: `pip install '.[timm]'`."""

from __future__ import annotations

import contextlib
import importlib

import pytest
import torch
import zoo_oracle as oracle
from zoo_entry import Entry, images

from clnp.narrow import check_narrowing, narrow
from clnp.wiring import trace


def timm():
    """Import timm. Where torchvision is built for another torch, it lacks the operators that it describes: networks do not use them."""
    with contextlib.suppress(RuntimeError):
        for schema in (
            "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        ):
            torch.library.define(f"torchvision::{schema.partition('(')[0]}", f"({schema.partition('(')[2]}")
    try:
        return importlib.import_module("timm")
    except Exception as error:  # noqa: BLE001  # absent, or torchvision does not fit
        pytest.skip(f"timm cannot be imported: {error}")


# name: size of its images, other arguments, groups, units; the units of some groups
MODELS = {
    "resnet18": (64, {}, 12, 2880, {"conv1": 64, "layer4.0.conv1": 512}),
    "resnetv2_50": (64, {}, 37, 11456, {"stem.conv": 64}),
    "densenet121": (64, {}, 120, 10240, {"features.conv0": 64, "features.denseblock1.denselayer1.conv2": 32}),
    "vgg11": (224, {}, 10, 10944, {"features.0": 64}),
    "inception_v3": (128, {}, 94, 17216, {"Conv2d_1a_3x3.conv": 32}),
    "regnety_002": (64, {}, 31, 1772, {"stem.conv": 32, "s1.b1.se.fc1": 8}),
    "mobilenetv3_small_050": (64, {}, 26, 3072, {"conv_stem": 16, "blocks.0.0.se.conv_reduce": 8}),
    "efficientnet_b0": (64, {}, 40, 11404, {"conv_stem": 32}),
    "ghostnet_050": (64, {}, 31, 4064, {"conv_stem": 4}),  # channels and their ghosts are added to the stem's: two by two
    "convnext_atto": (64, {"drop_path_rate": 0.1}, 16, 7960, {"stem.0": 40, "stages.0.blocks.0.mlp.fc1": 160}),
    "poolformer_s12": (64, {}, 16, 14336, {"stem.conv": 64}),
    "vit_tiny_patch16_224": (64, {"img_size": 64}, 25, 9444, {"patch_embed.proj": 192, "blocks.0.attn.qkv": 3, "blocks.0.mlp.fc1": 768}),
    "swin_tiny_patch4_window7_224": (56, {"img_size": 56}, 28, 19242, {"patch_embed.proj": 96, "layers.0.blocks.0.attn.qkv": 3}),
    "eva02_tiny_patch14_224": (56, {"img_size": 56}, 25, 6372, {"patch_embed.proj": 192, "blocks.0.attn": 3}),
    "mixer_s32_224": (64, {"img_size": 64}, 25, 16912, {"stem.proj": 512}),
    "gmlp_ti16_224": (64, {"img_size": 64}, 61, 11678, {"stem.proj": 128}),
}
ORACLE = ("resnet18", "mobilenetv3_small_050", "regnety_002", "vit_tiny_patch16_224")
"""The oracle replaces norms; those that timm wrote itself it does not know."""


def entry_of(name):
    size, options, *_ = MODELS[name]
    library = timm()
    return Entry(name, lambda: library.create_model(name, pretrained=False, num_classes=0, **options), images(3, size, size), {})


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_network_of_timm_is_isolated(name):
    entry = entry_of(name)
    _, _, n_groups, n_units, some = MODELS[name]
    model = oracle.plain(entry)
    wiring = trace(model, entry.example(2))
    found = {group.name: group.n_units for group in wiring.groups}
    assert (len(found), wiring.n_units) == (n_groups, n_units)
    assert {group: found.get(group) for group in some} == some
    assert "capacity lost" not in wiring.explain()
    state = oracle.tensors_of(model) | dict(wiring.graph.constants)
    check_narrowing(wiring, state, model, entry.example(2))
    # Half of each group, drawn at random: what is left must compute, at any batch size.
    half = torch.zeros(wiring.n_units, dtype=torch.bool)
    for group in wiring.groups:
        half[torch.randperm(group.n_units)[: (group.n_units + 1) // 2] + group.start] = True
    network = narrow(wiring, state, half).eval()
    assert sum(p.numel() for p in network.parameters()) < 0.5 * sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        assert network(entry.example(3)).shape == (3, int(half[wiring.features].sum()))
    if name in ORACLE:
        for seed in range(3):
            oracle.check_isolation(entry, wiring, seed, n=2)
