"""Who takes part: each gives a function that does so many training steps of 784-2000-2000-10, from where its second task begins.

All have the same examples in memory, batches of 256, Adam with a learning rate of 1e-3 in its fused form where they let one choose.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, N_BATCHES, WIDTH, N_INPUTS, N_CLASSES, POOL = 256, 16, 2000, 784, 10, 400
LR = 1e-3
MANY = 12
"""Avalanche's PackNet cannot train a task twice: so many are there for its turns."""
ANEW = 8
"""Turns after which plain PyTorch begins anew: as many as the others have."""
Step = Callable[[], None]
"""Trains for N_BATCHES steps."""


def data(task: int) -> tuple[Tensor, Tensor]:
    """Return the examples of a task; their values do not matter for time, but for denormal numbers, which these are not."""
    generator = torch.Generator().manual_seed(task)
    n = BATCH * N_BATCHES
    return torch.rand(n, N_INPUTS, generator=generator), torch.randint(0, N_CLASSES, (n,), generator=generator)


def dense(n_in: int = N_INPUTS, width: int = WIDTH) -> nn.Sequential:
    """Build the network, with its head."""
    return nn.Sequential(nn.Linear(n_in, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, N_CLASSES))


def loop(network: nn.Module, after_backward: Callable[[], None] | None = None) -> Step:
    """Return plain PyTorch: shuffle, loss, backward, step.

    It begins anew after a few turns: what all are measured against has hundreds of them. By then units have died, Adam's averages of their
    gradients have shrunk to denormal numbers, and a step takes twice as long.
    """
    x, y = data(1)
    optimizer = torch.optim.Adam(network.parameters(), lr=LR, fused=True)
    first, turns = copy.deepcopy(network.state_dict()), itertools.count()

    def step() -> None:
        if next(turns) % ANEW == 0:
            network.load_state_dict(first)
            optimizer.state.clear()
        for places in torch.randperm(len(y)).split(BATCH):
            loss = F.cross_entropy(network(x[places]), y[places])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if after_backward is not None:
                after_backward()
            optimizer.step()

    return step


def masked(share: float) -> Step:
    """Return what most implementations do: the whole network, gradients of frozen rows multiplied by 0 after each backward pass."""
    network = dense()
    masks = [
        (torch.arange(len(p)) >= share * len(p)).float().view(-1, *[1] * (p.dim() - 1)).expand_as(p).clone() for p in network.parameters()
    ]

    def mask() -> None:
        for parameter, free in zip(network.parameters(), masks, strict=True):
            assert parameter.grad is not None
            parameter.grad.mul_(free)

    return loop(network, mask)


def split_network(share: float, pool: int = POOL) -> tuple[Any, Any]:
    """Return clnp's training form with a share of each layer's units claimed (and read), and a pool; and its examples."""
    from clnp.sources import TensorExamples
    from clnp.split import Head, split
    from clnp.wiring import trace

    trunk = dense()[:-1]
    wiring = trace(trunk, torch.zeros(2, N_INPUTS))
    claimed, free = torch.zeros(2, wiring.n_units, dtype=torch.bool)
    for group in wiring.groups:
        units = group.mask(wiring.n_units).nonzero()[:, 0]
        n = round(share * len(units))
        claimed[units[:n]] = True
        free[units[n : n + pool]] = True
    head = Head(torch.randn(N_CLASSES, WIDTH) / WIDTH**0.5, torch.zeros(N_CLASSES))
    state = {name: tensor.detach() for name, tensor in trunk.state_dict().items()}
    return split(wiring, state, claimed, free, head), TensorExamples(*data(1))


def clnp_steps(share: float, *, keep: bool = True) -> Step:
    """Return clnp's own training, L1 penalty and all; `keep`: claimed units' outputs are computed once, as for data in memory."""
    from clnp import training
    from clnp.config import LearnConfig

    network, examples = split_network(share)
    config = LearnConfig(batch_size=BATCH, lr=LR, schedule="constant")
    kept = training.kept_values(network, examples, 4096, torch.device("cpu")) if keep else None
    fit = partial(training.fit, network, examples, kept, config, phase="train", epochs=1, lr=LR, l1=2e-5, n_classes=N_CLASSES, task="t")
    return lambda: fit(place=(0,))


def clnp_keep(share: float) -> Step:
    """Return the computation of the claimed units' outputs, once a task."""
    from clnp import training

    network, examples = split_network(share)
    return lambda: torch._assert(training.kept_values(network, examples, 4096, torch.device("cpu")) is not None, "")  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def declare_operators() -> None:
    """Declare the operators that torchvision describes but lacks where it was built for another torch."""
    with contextlib.suppress(RuntimeError):
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def avalanche(kind: str) -> Step:
    """Return Avalanche's training of the second experience."""
    declare_operators()
    from avalanche.benchmarks import benchmark_from_datasets  # pyright: ignore[reportMissingImports]
    from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute  # pyright: ignore[reportMissingImports]
    from avalanche.models.packnet import PackNetModel, PackNetPlugin  # pyright: ignore[reportMissingImports]
    from avalanche.training.plugins import EvaluationPlugin  # pyright: ignore[reportMissingImports]
    from avalanche.training.supervised import EWC, Naive  # pyright: ignore[reportMissingImports]
    from torch.utils.data import TensorDataset

    def dataset(task: int) -> Any:
        x, y = data(task)
        labels = DataAttribute(y.tolist(), "targets")
        tasks = DataAttribute([task] * len(y), "targets_task_labels", use_in_getitem=True)
        return AvalancheDataset([TensorDataset(x, y)], data_attributes=[labels, tasks])

    sets = [dataset(task) for task in range(MANY)]
    stream = list(benchmark_from_datasets(train=sets, test=sets).train_stream)
    for task, experience in enumerate(stream):
        experience.classes_in_this_experience, experience.task_labels = list(range(N_CLASSES)), [task]  # PackNet's model asks for them
    network: Any = dense()
    plugins: list[Any] = []
    if kind == "packnet":
        network, plugins = PackNetModel(network), [PackNetPlugin(post_prune_epochs=1, prune_proportion=0.5)]
    common: dict[str, Any] = {
        "model": network,
        "optimizer": torch.optim.Adam(network.parameters(), lr=LR, fused=True),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": BATCH,
        "train_epochs": 2 if kind == "packnet" else 1,
        "evaluator": EvaluationPlugin(),
        "plugins": plugins,
    }
    strategy = EWC(ewc_lambda=100.0, **common) if kind == "ewc" else Naive(**common)
    tasks = iter(stream)
    strategy.train(next(tasks))
    for plugin in strategy.plugins:
        if type(plugin).__name__ == "EWCPlugin":
            plugin.after_training_exp = lambda *_, **__: None  # the Fisher information is not part of a step
    return lambda: strategy.train(next(tasks))


def clarena_hat() -> Step:
    """Return CLArena's HAT in its second task, its own training step without Lightning's loop around it."""
    declare_operators()
    from clarena.backbones import HATMaskMLP  # pyright: ignore[reportMissingImports]
    from clarena.cl_algorithms import HAT  # pyright: ignore[reportMissingImports]
    from clarena.heads import HeadsTIL  # pyright: ignore[reportMissingImports]

    class Alone(HAT):  # pyright: ignore[reportUntypedBaseClass]
        trainer = SimpleNamespace(num_training_batches=N_BATCHES)  # pyright: ignore[reportAssignmentType]

        def optimizers(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return optimizer

        def manual_backward(self, loss: Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            loss.backward()

    backbone = HATMaskMLP(N_INPUTS, [WIDTH], WIDTH, gate="sigmoid", batch_normalization=None)
    method = Alone(backbone, HeadsTIL(WIDTH), adjustment_mode="hat", s_max=400.0, clamp_threshold=50.0, mask_sparsity_reg_factor=0.75)
    optimizer: Any = None
    for task in (1, 2):
        method.setup_task_id(task, N_CLASSES, None, None)
        method.on_train_start()
        optimizer = torch.optim.Adam(method.parameters(), lr=LR, fused=True)
        x, y = data(task)

        def step(x: Tensor = x, y: Tensor = y) -> None:
            for number, places in enumerate(torch.randperm(len(y)).split(BATCH)):
                method.training_step((x[places], y[places]), number)

        step()
        if task == 1:
            method.on_train_end()
    return step


SHARES = (0.0, 0.25, 0.5, 0.75, 0.9)
CONTESTANTS: dict[str, Callable[[], Step]] = {
    "plain PyTorch": lambda: loop(dense()),
    **{f"clnp, {100 * share:.0f} % claimed": partial(clnp_steps, share) for share in SHARES},
    "clnp, 50 % claimed, nothing kept": partial(clnp_steps, 0.5, keep=False),
    **{f"claimed outputs once, {100 * share:.0f} %": partial(clnp_keep, share) for share in SHARES[1:]},
    **{f"gradients masked, {100 * share:.0f} % frozen": partial(masked, share) for share in SHARES},
    "Avalanche, naive": partial(avalanche, "naive"),
    "Avalanche, PackNet": partial(avalanche, "packnet"),
    "Avalanche, EWC": partial(avalanche, "ewc"),
    "CLArena, HAT": clarena_hat,
}
"""The first is what all are measured against. The steps of Avalanche's PackNet are of two epochs: see `EPOCHS`."""
EPOCHS = {"Avalanche, PackNet": 2}
