"""torch-pruning, which follows autograd and shares nothing with us, finds the same units in convolutional networks.

It cannot judge all of the zoo: it fails on the shuffle of ShuffleNet, prunes single channels of ResNeXt's groups (there, a whole
group is our unit), and takes the parallel branches of `text-cnn`, which are joined and never meet, for one.
"""

from __future__ import annotations

from collections import defaultdict

import pytest
import zoo_oracle as oracle
from torch import nn
from zoo_networks import ZOO, network, trunk

from clnp.wiring import trace
from small import sampled

tp = pytest.importorskip("torch_pruning")
pytestmark = pytest.mark.filterwarnings("ignore")
NETWORKS = ("vgg", "resnet", "resnet-preact", "densenet", "unet", "mobilenet-v2", "mobilenet-v3", "inception", "volume", "tcn")
EVERY = 5  # channels; all would take a minute


def our_unit(wiring, unit):
    """The rows and the columns of layers and norms that belong to a unit: weight -> positions."""
    rows, columns = {}, {}
    for name, labels in wiring.parameters.items():
        for found, which in ((rows, labels.rows), (columns, labels.columns)):
            places = set() if which is None or not name.endswith(".weight") else set((which == unit).nonzero()[:, 0].tolist())
            if places:
                found[name] = places
    return rows, columns


def their_unit(graph, names, layer, channel):
    """What torch-pruning would cut together with one output channel of a layer."""
    prune = tp.prune_linear_out_channels if isinstance(layer, nn.Linear) else tp.prune_conv_out_channels
    if not isinstance(layer, nn.Linear) and layer.groups == layer.out_channels > 1:
        prune = tp.prune_depthwise_conv_out_channels
    rows, columns = defaultdict(set), defaultdict(set)
    for dependency, places in graph.get_pruning_group(layer, prune, [channel]):
        module = dependency.target.module
        if module in names and getattr(module, "weight", None) is not None:
            found = rows if graph.is_out_channel_pruning_fn(dependency.handler) else columns
            found[f"{names[module]}.weight"] |= set(places)
    return dict(rows), dict(columns)


@pytest.mark.parametrize("name", sampled(NETWORKS, 6))
def test_a_unit_is_what_torch_pruning_would_cut_together(name):
    entry = ZOO[name]
    wiring, model = trace(trunk(entry, network(entry)), entry.example(2)), oracle.plain(entry).requires_grad_()
    names = {module: path for path, module in model.named_modules()}
    graph = tp.DependencyGraph().build_dependency(model, entry.example(2))
    n_compared = 0
    for path, layer in model.named_modules():
        if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
            labels = wiring.parameters[f"{path}.weight"]
            for channel in range(0, len(labels.rows), EVERY):
                assert our_unit(wiring, int(labels.rows[channel])) == their_unit(graph, names, layer, channel), f"{path}, channel {channel}"
                n_compared += 1
    assert n_compared >= len(wiring.groups)
