"""Where a fit is, so that it can be saved after any step and gone on with to the same bits."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from clnp import seeds, stopping

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from clnp.work import Work

CLAIMED = "claimed."
"""What begins the names of tensors that no training moves: they are not worth saving."""


class Stateful(Protocol):
    """A network, as far as its state goes."""

    def state_dict(self) -> dict[str, Tensor]: ...  # noqa: D102
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object: ...  # noqa: D102


class Course:
    """The counters of one fit, and everything else that its next step depends on.

    The order of an epoch and its dropout come from the seed and the epoch's place, so a number of batches to skip and the state of
    the noise are all that is needed to go on in the middle of it. A stream's order is its loader's own, and its examples may be drawn
    from the same noise as dropout: it is saved between epochs only. Its bits are the same if the loader draws from torch's generators alone.

    Args:
        work: where the state is kept; what it has of this phase is loaded at once.
        phase: the name under which it is kept.
        network: that is trained.
        optimizer: of its parameters.
        schedule: of the optimizer.
        device: where dropout draws.
        by_step: whether the data's order is known, so that the state within an epoch is worth keeping.
    """

    def __init__(
        self,
        work: Work,
        phase: str,
        network: Stateful,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        *,
        device: torch.device,
        by_step: bool,
    ) -> None:
        self.work, self.phase, self.network, self.optimizer, self.schedule = work, phase, network, optimizer, schedule
        self.device, self.by_step = device, by_step
        self.epoch, self.n, self.total = 0, 0, 0.0  # finished epochs; steps of the one under way, and the sum of their losses
        self.best, self.best_state, self.waited = -1, dict[str, Tensor](), 0  # for patience
        self.finished = False
        self._noise: dict[str, Tensor] | None = None
        self._resume_()

    def _resume_(self) -> None:
        """Take over what was kept of this phase."""
        state = self.work.recall(self.phase)
        if state is None:
            return
        kept = unpack(state.facts["state"], state.tensors)
        load_trained_(self.network, kept["network"])
        self.epoch, self.finished = state.facts["epoch"], state.finished
        if not self.finished:
            self.n, self.total = kept["n"], kept["total"]
            self.best, self.best_state, self.waited = kept["best"], kept["best_state"], kept["waited"]
            self.optimizer.load_state_dict(kept["optimizer"])
            self.schedule.load_state_dict(kept["schedule"])
            self._noise = kept["noise"]

    def save(self) -> None:
        """Save the state after a step, or between two epochs."""
        self._keep(
            n=self.n,
            total=self.total,
            best=self.best,
            best_state=self.best_state,
            waited=self.waited,
            optimizer=self.optimizer.state_dict(),
            schedule=self.schedule.state_dict(),
            noise=seeds.noise(self.device),
        )

    def _keep(self, **state: Any) -> None:
        tensors: dict[str, Tensor] = {}
        packed = pack({"network": trained_state(self.network), **state}, tensors)
        self.work.keep(self.phase, {"epoch": self.epoch, "state": packed}, tensors, finished=self.finished)

    def restore_noise_(self) -> None:
        """Within a seeded epoch that was begun by an earlier process: draw on where it stopped."""
        if self._noise is not None and self.n:
            seeds.set_noise_(self._noise, self.device)
        self._noise = None

    def stepped(self) -> None:
        """After a step: save when it is due, and stop when a signal asks for it."""
        if self.by_step and self.work.due():
            self.save()
        stopping.check()

    def validated(self, correct: int) -> None:
        """Take a note of the validation after an epoch, and of the best network so far."""
        if correct > self.best:
            self.best, self.waited = correct, 0
            self.best_state = {name: value.clone() for name, value in trained_state(self.network).items()}
        else:
            self.waited += 1

    def end_epoch(self) -> None:
        """Go on to the next epoch."""
        self.epoch, self.n, self.total = self.epoch + 1, 0, 0.0
        if not self.by_step and self.work.due():
            self.save()

    def finish(self) -> None:
        """Keep the outcome."""
        if not self.finished:
            self.finished = True
            self._keep()

    @contextlib.contextmanager
    def saved_when_stopped(self) -> Generator[None]:
        """Save the state when the block is stopped: `Stopped` comes between two steps, or while an epoch is validated."""
        try:
            yield
        except stopping.Stopped:
            if self.by_step:
                self.save()
            raise


def trained_state(network: Stateful) -> dict[str, Tensor]:
    """Return the tensors of a network that training moves."""
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(CLAIMED)}


def load_trained_(network: Stateful, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `trained_state` gave."""
    network.load_state_dict({**network.state_dict(), **tensors})


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a tree of dictionaries, sequences, tensors and plain values as JSON; its tensors are put into `tensors`.

    >>> pack({0: (1, "a")}, {})
    {'dict': [[0, {'tuple': [1, 'a']}]]}

    Raises:
        TypeError: it holds something else.
    """
    if isinstance(value, Tensor):
        name = f"{len(tensors)}"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, pack(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, (tuple, list)):
        return {type(value).__name__: [pack(inner, tensors) for inner in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    msg = f"cannot keep a {type(value).__name__} as JSON"
    raise TypeError(msg)


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what `pack` was given.

    >>> unpack(pack({0: (1, "a")}, {}), {})
    {0: (1, 'a')}
    """
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unpack(inner, tensors) for key, inner in content}
    items = [unpack(inner, tensors) for inner in content]
    return tuple(items) if kind == "tuple" else items
