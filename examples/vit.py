"""A vision transformer learns three real image tasks, one after another, and forgets nothing.

    python examples/vit.py                # no download: 8 x 8 handwritten digits from the package, in three tasks (0-3, 4-6, 7-9)
    python examples/vit.py --data DIR     # MNIST, Fashion-MNIST and, in grey, CIFAR-10 (animal or vehicle?), 10,000 training images each

It prints what every task so far can do after each, checks that no old output changed by one bit, and says what one task's
own small network costs beside the whole one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clnp
from clnp.data.cifar import CIFAR10_CLASSES, load_cifar10
from clnp.data.digits import load_digits
from clnp.data.idx import load_fashion_mnist, load_mnist
from common import Task, learn_all, options_parser, report

if TYPE_CHECKING:
    from clnp.data import Source

# ---- the network: nothing in it knows of clnp


class Block(nn.Module):
    """Let patches attend to one another, then think for themselves."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Add what attention and the layers say to the stream (B, T, width)."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, T, head width)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Turn square grey images (B, 1, size, size) into features (B, width): what the class token has gathered."""

    def __init__(self, size: int, patch: int, width: int = 128, depth: int = 3, heads: int = 16, hidden: int = 256) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + (size // patch) ** 2, width))
        self.blocks = nn.Sequential(*[Block(width, heads, hidden) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Look at the patches."""
        x = self.patches(x).flatten(2).transpose(1, 2)  # (B, T, width)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.norm(self.blocks(x))[:, 0]


# ---- the tasks


def tasks_of(data: Path | None, seed: int, limit: int) -> list[Task]:
    """Split the digits of the package into three tasks, or read three data sets in their official layout."""
    if data is None:
        source = load_digits()
        groups = {"digits 0-3": range(4), "digits 4-6": range(4, 7), "digits 7-9": range(7, 10)}
        return [image_task(name, source, {digit: digit - of[0] for digit in of}, seed, limit) for name, of in groups.items()]
    ten = {label: label for label in range(10)}
    vehicle = {label: int(name in ("airplane", "automobile", "ship", "truck")) for label, name in enumerate(CIFAR10_CLASSES)}
    return [
        image_task("MNIST", load_mnist(data), ten, seed, limit),
        image_task("Fashion-MNIST", load_fashion_mnist(data), ten, seed, limit),
        image_task("CIFAR-10, animal or vehicle", load_cifar10(data), vehicle, seed, limit),
    ]


def image_task(name: str, source: Source, labels: dict[int, int], seed: int, limit: int) -> Task:
    """Take the examples that have a label here; grey, 28 x 28 at most."""
    rows, parts = source.rows(seed), []
    for split in ("train", "validation", "test"):
        chosen = [row for row in rows[split].tolist() if int(source.labels(split)[row]) in labels]
        chosen = chosen[: limit if split == "train" else limit // 5]
        x = source.to_float(source.images(split, torch.tensor(chosen))).mean(1, keepdim=True)
        margin = max(0, x.shape[-1] - 28) // 2
        y = torch.tensor([labels[int(source.labels(split)[row])] for row in chosen])
        parts.append((x[:, :, margin : x.shape[-1] - margin, margin : x.shape[-1] - margin].contiguous(), y))
    return Task(name, max(labels.values()) + 1, *parts)


def main(arguments: list[str] | None = None) -> None:
    """Learn, check, report."""
    parser = options_parser(__doc__, limit=10_000)
    parser.add_argument("--data", type=Path, help="directory with mnist, fashion-mnist and cifar-10-batches-bin")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)  # networks this small gain nothing from more, and clocks are steadier
    tasks = tasks_of(options.data, options.seed, options.limit)
    trunk = ViT(tasks[0].test[0].shape[-1], patch=2 if options.data is None else 7).eval()
    epochs = options.epochs or (30 if options.data is None else 10)
    learner = clnp.Learner(trunk, tasks[0].test[0][:2], seed=options.seed)
    # Chosen by validation accuracy. Each task may train in a quarter of each group, so that there is room for a fourth.
    config = clnp.LearnConfig(epochs=epochs, finetune_epochs=max(1, epochs // 5), pool=0.25, margin=0.005, lr=4e-3, l1=1e-5)
    learn_all(learner, tasks, config)
    report(learner, trunk, tasks, options.rounds)


if __name__ == "__main__":
    main()
