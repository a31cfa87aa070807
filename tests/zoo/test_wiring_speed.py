"""Networks of the usual size are captured and labelled in seconds, and their weights are never expanded element by element."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource, sys, time
import torch
from torch import nn
torch.set_num_threads(1)

class Block(nn.Module):
    def __init__(self, n_in, n, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n, 3, stride, 1, bias=False), nn.BatchNorm2d(n)
        self.conv2, self.bn2 = nn.Conv2d(n, n, 3, 1, 1, bias=False), nn.BatchNorm2d(n)
        self.down = nn.Identity() if stride == 1 and n_in == n else nn.Sequential(nn.Conv2d(n_in, n, 1, stride, bias=False), nn.BatchNorm2d(n))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.down(x))

def resnet18():
    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    n = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(n, width, stride), Block(width, width, 1)]
        n = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

class Layer(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.proj = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, d))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))

class ViT(nn.Module):
    def __init__(self, dim=384, depth=12, heads=6):
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 16, 16)
        self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, dim)), nn.Parameter(torch.zeros(1, 197, dim))
        self.layers, self.norm = nn.Sequential(*[Layer(dim, heads) for _ in range(depth)]), nn.LayerNorm(dim)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        return self.norm(self.layers(x))[:, 0]

model = {"resnet18": resnet18, "vit-s": ViT}[sys.argv[1]]()
from clnp.wiring import trace
start = time.process_time()
wiring = trace(model, torch.zeros(2, 3, 224, 224))
print(json.dumps({
    "seconds": time.process_time() - start,
    "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "parameters": sum(p.numel() for p in model.parameters()),
    "groups": {group.name: group.n_units for group in wiring.groups},
    "integers": sum(t.numel() for labels in wiring.parameters.values() for t in (labels.rows, labels.columns) if t is not None),
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "millions"), [("resnet18", 11), ("vit-s", 21)])
def test_networks_of_the_usual_size_are_labelled_in_seconds(name, millions):
    done = subprocess.run([sys.executable, "-c", SCRIPT, name], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["parameters"] > millions * 1e6
    assert found["seconds"] < 20, found["seconds"]
    assert found["megabytes"] < 2048, found["megabytes"]
    assert found["integers"] < 0.01 * found["parameters"], "weights are not expanded"
    if name == "vit-s":
        assert found["groups"]["patch"] == 384
        assert found["groups"]["layers.0.qkv"] == 6
        assert len(found["groups"]) == 25
    else:
        assert list(found["groups"].values()) == [64, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512]
