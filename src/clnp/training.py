"""Plain loops: fit, count correct answers, estimate norms again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from clnp import seeds, stopping
from clnp.course import Course, load_trained_
from clnp.emit import positions, with_everyone
from clnp.errors import ConfigError, DataError, TrainingError, first_line
from clnp.inputs import Inputs, cut, each, parts, to_device
from clnp.modes import multiply
from clnp.narrow import moved_labels
from clnp.sources import Examples, StreamExamples, TensorExamples, check_labels
from clnp.split import SplitNetwork
from clnp.wiring.labels import varying
from clnp.work import Work

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from clnp.config import LearnConfig

Progress = Callable[[dict[str, Any]], None]
EVALUATION_BATCH = 250
"""Examples in one step without gradient: a convolutional network's values still fit the cache, a dense one loses nothing."""
ESTIMATE_BATCH = 250
IMPOSSIBLE = -1e9
"""The logit of a class that an example cannot have, where one network answers for several tasks: a number, for infinity times zero is none."""
ESTIMATE_EXAMPLES = 500
"""Examples from which batch-norm statistics are estimated again, always the same ones, for every candidate network. Of the
small VGG and ResNet, narrowed to 50, 70 and 85 %, 4,000 examples gave the same accuracy within the spread over samples."""


class Trainable(Protocol):
    """What `fit` asks of a network: a `SplitNetwork`, or a dense one to compare with."""

    @property
    def head_bias(self) -> Tensor:
        """The head's bias, whose device is where the training happens."""
        ...

    def __call__(self, x: Inputs, meets: tuple[Tensor, ...] | None = None) -> Tensor: ...  # noqa: D102
    def parameters(self) -> Iterator[nn.Parameter]: ...  # noqa: D102
    def weights(self) -> list[nn.Parameter]:
        """The parameters under the L1 penalty."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...  # noqa: D102
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object: ...  # noqa: D102
    def train(self, mode: bool = True) -> object: ...  # noqa: D102
    def eval(self) -> object: ...  # noqa: D102


@runtime_checkable
class Watched(Protocol):
    """A network that watches every step of its optimizer, as methods do that protect earlier tasks."""

    def attach(self, optimizer: torch.optim.Optimizer) -> None: ...  # noqa: D102


def check_device(name: str) -> None:
    """Check that tensors can be put where a configuration says.

    Raises:
        ConfigError: there is no such device, or torch was not built for it.
    """
    try:
        float(torch.zeros(1, device=name))  # "meta" holds no numbers
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"cannot train on device '{name}': expected cpu, or a device of this machine; torch says: {first_line(error)}"
        ) from error


def make_optimizer(parameters: Sequence[nn.Parameter], config: LearnConfig, lr: float) -> torch.optim.Optimizer:
    """Make the optimizer that a configuration asks for. It moves whatever it is given: give it nothing that must stay."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=lr, betas=(config.momentum, 0.999), weight_decay=config.weight_decay, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, config: LearnConfig, lr: float, n_steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Make the course of the learning rate over `n_steps` steps."""
    if config.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(n_steps, 2) + 1, pct_start=0.15, cycle_momentum=False)
    if config.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(n_steps, 1))
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def batch_size_of(train: Examples, config: LearnConfig) -> int:
    """Return how many examples a step has; of a stream the loader decides."""
    return config.batch_size_for(len(train) if isinstance(train, TensorExamples) else None)


def steps_per_epoch(train: Examples, batch_size: int) -> int:
    """Return how many batches an epoch has; 1000 are assumed where nobody has counted them."""
    if isinstance(train, TensorExamples):
        return max(len(train) // batch_size, 1)
    return 1000 if train.n_batches is None else train.n_batches


def kept_values(network: SplitNetwork, data: Examples, limit: int, device: torch.device) -> tuple[Tensor, ...] | None:
    """Compute the claimed graph's values for all examples once, if they fit into `limit` MB; otherwise return None."""
    if isinstance(data, StreamExamples):
        return None
    if network.claimed is None:
        return ()
    one = network.claimed_values(to_device(cut(data.x, 0, 1), device))
    size = sum(value.numel() * value.element_size() for value in one)
    if size * len(data) > limit * 2**20:
        return None
    kept = [torch.empty(len(data), *value.shape[1:], dtype=value.dtype, device=value.device) for value in one]
    for start in range(0, len(data), EVALUATION_BATCH):
        stopping.check()
        x = to_device(cut(data.x, start, start + EVALUATION_BATCH), device)
        for whole, part in zip(kept, network.claimed_values(x), strict=True):
            whole[start : start + len(part)] = part
    return tuple(kept)


def narrow_kept(kept: tuple[Tensor, ...] | None, before: SplitNetwork, after: SplitNetwork) -> tuple[Tensor, ...] | None:
    """Cut kept values of one network down to those that a further narrowed one reads."""
    if kept is None or after is before:
        return kept
    result: list[Tensor] = []
    for name in after.meets:
        labels = moved_labels(before.wiring, name)
        value = kept[before.meets.index(name)]
        for dim in varying(labels):  # one, or none
            old = labels.flatten()[positions(with_everyone(before.claimed_units), labels.flatten())]
            places = positions(with_everyone(after.claimed_units), old)
            if len(places) < len(old):  # else there is nothing to cut, and a copy would cost more than the pass that reads it
                value = value.index_select(dim, places.to(value.device))
        result.append(value)
    return tuple(result)


def batches(
    data: Examples,
    kept: tuple[Tensor, ...] | None,
    batch_size: int,
    device: torch.device,
    generator: torch.Generator | None = None,
    *,
    first: int = 0,
    channels_last: bool = False,
) -> Iterator[tuple[Inputs, Tensor, tuple[Tensor, ...] | None]]:
    """Yield (x, y, meets) on the device, from batch `first` on; meets are None where they must be computed."""

    def laid_out(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if channels_last and x.dim() == 4 else x

    for places, x, y in itertools.islice(data.batches(batch_size, generator), first, None):
        meets = None if kept is None or places is None else tuple(laid_out(value[places.to(value.device)]) for value in kept)
        yield each(to_device(x, device), laid_out), y.to(device), meets


def fit(
    network: Trainable,
    train: Examples,
    kept: tuple[Tensor, ...] | None,
    config: LearnConfig,
    *,
    phase: str,
    epochs: int,
    lr: float,
    l1: float,
    n_classes: int,
    place: tuple[int | str, ...],
    task: str,
    validation: Callable[[], int] | None = None,
    progress: Progress | None = None,
    work: Work | None = None,
) -> None:
    """Train the pool's rows and the head: loss + l1 * sum |w|.

    Args:
        network: changed in place.
        train: the task's training data.
        kept: values of the claimed graph for all examples, see `kept_values`.
        config: optimizer, schedule, batch size, patience.
        phase: "train" or "finetune", for progress.
        epochs: how many passes.
        lr: peak learning rate.
        l1: penalty on every trainable weight.
        n_classes: labels must lie below.
        place: the place in the run, for seeds.
        task: name for messages and progress.
        validation: counts correct answers, for `config.patience`.
        progress: told after each epoch.
        work: where the state is kept; what an earlier process did of this phase is not done again.

    Raises:
        Stopped: a signal asked for it; the state is saved.
        TrainingError: the loss or a weight became NaN or infinite.
    """
    parameters, weights = list(network.parameters()), network.weights()
    # A mask of -inf, say, is a constant of the network, and no weight that training could have spoilt.
    constant = {name for name, tensor in network.state_dict().items() if not bool(torch.isfinite(tensor).all())}
    optimizer = make_optimizer(parameters, config, lr)
    if isinstance(network, Watched):
        network.attach(optimizer)
    batch_size = batch_size_of(train, config)
    schedule = make_schedule(optimizer, config, lr, epochs * steps_per_epoch(train, batch_size))
    device = network.head_bias.device
    name = f"{phase}-{place[-1]}"
    at = Course(work or Work(), name, network, optimizer, schedule, device=device, by_step=isinstance(train, TensorExamples))
    patience = config.patience if validation is not None else None
    while not at.finished and at.epoch < epochs and (patience is None or at.waited < patience):
        network.train()
        generator = seeds.generator(*place, "order", at.epoch)
        with seeds.seeded(*place, "noise", at.epoch, device=device), at.saved_when_stopped():
            at.restore_noise_()
            for x, y, meets in batches(train, kept, batch_size, device, generator, first=at.n, channels_last=config.channels_last):
                if isinstance(train, StreamExamples):
                    _check_batch(network, y, n_classes, task)
                with multiply(config.precision, device):
                    logits = network(x, meets)
                loss = cross_entropy(logits.float(), y, config.label_smoothing)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if l1:
                    add_l1_(weights, l1)
                optimizer.step()
                if schedule.last_epoch < getattr(schedule, "total_steps", math.inf) - 1:
                    schedule.step()
                at.total, at.n = at.total + float(loss.detach()), at.n + 1
                if not math.isfinite(at.total):
                    raise TrainingError(_diverged(network, task, phase, at.epoch, "the loss"))
                at.stepped()
        if progress is not None:
            told = {"event": "epoch", "task": task, "phase": phase, "round": place[-1], "epoch": at.epoch + 1, "epochs": epochs}
            progress({**told, "loss": at.total / at.n})
        if patience is not None and validation is not None:
            with at.saved_when_stopped():
                at.validated(validation())
        at.end_epoch()
    if at.best >= 0:
        load_trained_(network, at.best_state)
    if not all(bool(torch.isfinite(tensor).all()) for name, tensor in network.state_dict().items() if name not in constant):
        raise TrainingError(_diverged(network, task, phase, epochs - 1, "a weight or a statistic"))
    at.finish()
    network.eval()


def _check_batch(network: Trainable, y: Tensor, n_classes: int, task: str) -> None:
    """Check a batch of a stream, of which only the first examples were seen before training."""
    check_labels(y, n_classes, f"training data of task '{task}'")
    if len(y) == 1 and isinstance(network, SplitNetwork) and network.norms:
        raise DataError(
            f"cannot use the training data of task '{task}': a batch holds a single example, which a batch norm cannot norm. "
            f"Give the DataLoader drop_last=True, or another batch size."
        )


def _diverged(network: Trainable, task: str, phase: str, epoch: int, what: str) -> str:
    untouched = "Earlier tasks are" if isinstance(network, SplitNetwork) else "What was saved is"
    strength = ", or the strength of the method (--set strength)" if hasattr(getattr(network, "guard", None), "strength") else ""
    return (
        f"learning task '{task}' was abandoned in epoch {epoch + 1} of phase '{phase}': {what} became NaN or infinite. "
        f"{untouched} untouched. Lower the learning rate{strength}, or look for extreme values in the data."
    )


def cross_entropy(logits: Tensor, y: Tensor, label_smoothing: float) -> Tensor:
    """Return the mean cross-entropy; labels are smoothed over the classes that an example can have, see `IMPOSSIBLE`.

    >>> float(cross_entropy(torch.tensor([[1.0, 1.0, IMPOSSIBLE]]), torch.tensor([0]), 0.1)) == float(torch.tensor(2.0).log())
    True
    """
    if not label_smoothing or bool((possible := logits > IMPOSSIBLE).all()):
        return F.cross_entropy(logits, y, label_smoothing=label_smoothing)
    log_p = F.log_softmax(logits, 1)
    spread = -(log_p * possible).sum(1) / possible.sum(1)
    return ((1 - label_smoothing) * F.nll_loss(log_p, y, reduction="none") + label_smoothing * spread).mean()


@torch.no_grad()
def add_l1_(weights: Sequence[nn.Parameter], l1: float) -> None:
    """Add the (sub)gradient of l1 * sum |w| to the gradients."""
    pairs = [(weight, weight.grad) for weight in weights if weight.grad is not None]
    if not pairs:  # a single head on reused units alone trains its bias
        return
    signs = torch._foreach_sign([weight.detach() for weight, _ in pairs])  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    torch._foreach_add_([gradient for _, gradient in pairs], signs, alpha=l1)  # pyright: ignore[reportPrivateUsage]


@torch.no_grad()
def n_correct(
    network: nn.Module,
    data: TensorExamples,
    kept: tuple[Tensor, ...] | None = None,
    *,
    channels_last: bool = False,
    at_least: int = 0,
) -> int:
    """Count the examples whose largest logit is that of their label; some number below `at_least` where so many cannot be correct any more."""
    return n_correct_and_finite(network, data, kept, channels_last=channels_last, at_least=at_least)[0]


@torch.no_grad()
def n_correct_and_finite(
    network: nn.Module,
    data: TensorExamples,
    kept: tuple[Tensor, ...] | None = None,
    *,
    channels_last: bool = False,
    at_least: int = 0,
) -> tuple[int, int]:
    """Count the correct answers, see `n_correct`, and those whose logits are all finite: weights may be, while a statistic has overflown."""
    correct, n_finite, left = 0, 0, len(data)
    for logits, y in answers(network, data, kept, channels_last=channels_last):
        finite = torch.isfinite(logits).all(1)
        # An answer that is not a number is wrong, whatever argmax makes of it.
        correct, n_finite = correct + int(((logits.argmax(1) == y) & finite).sum()), n_finite + int(finite.sum())
        left -= len(y)
        if correct + left < at_least:
            break
    return correct, n_finite


@torch.no_grad()
def answers(
    network: nn.Module, data: TensorExamples, kept: tuple[Tensor, ...] | None = None, *, channels_last: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (logits, y) batch by batch. With `kept`, the network is a `SplitNetwork`."""
    network.eval()
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    for x, y, meets in batches(data, kept, EVALUATION_BATCH, device, channels_last=channels_last):
        stopping.check()
        # A predictor takes one argument for each input, as the user's own network does.
        yield network(*parts(x)) if isinstance(network, fx.GraphModule) else network(x) if meets is None else network(x, meets), y


@torch.no_grad()
def hardest(
    network: nn.Module, data: TensorExamples, kept: tuple[Tensor, ...] | None, share: float, *, channels_last: bool = False
) -> Tensor:
    """Return the places of the examples that a network gets wrong, and of those that it is least sure of, so large a share of all: the hardest first."""
    leads: list[Tensor] = []
    for logits, y in answers(network, data, kept, channels_last=channels_last):
        right = F.one_hot(y, logits.shape[1]).bool()
        leads.append((logits[right] - logits.masked_fill(right, -torch.inf).amax(1)).nan_to_num(-torch.inf).cpu())
    lead = torch.cat(leads)
    n_hard = int((lead <= 0).sum()) + round(share * len(lead))
    return lead.sort(stable=True).indices[:n_hard]


@torch.no_grad()
def estimate_norms_(
    network: SplitNetwork,
    data: TensorExamples,
    kept: tuple[Tensor, ...] | None,
    *,
    channels_last: bool = False,
    n_examples: int = ESTIMATE_EXAMPLES,
) -> None:
    """Estimate the statistics of the pool's batch norms again, as the mean over the batches of the first `n_examples` of `data`."""
    norms = network.norms
    if not norms:
        return
    network.eval()
    for norm in norms:
        norm.estimating, norm.n_batches = True, 0
    n = min(len(data), n_examples)
    whole = data.first(n - n % ESTIMATE_BATCH or n)
    for x, _, meets in batches(whole, kept, ESTIMATE_BATCH, network.head_bias.device, channels_last=channels_last):
        network(x, meets)
    for norm in norms:
        norm.estimating = False
