"""The ways to learn a sequence of tasks, one file each, behind one signature. The table METHODS is all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from clnp.methods.clnp import Clnp
from clnp.methods.ewc import ewc, online_ewc
from clnp.methods.finetune import finetune
from clnp.methods.hat import hat
from clnp.methods.joint import Joint
from clnp.methods.packnet import packnet
from clnp.methods.si import si
from clnp.methods.single import Single
from clnp.methods.superposition import superposition
from clnp.methods.wsn import wsn

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from clnp.config import LearnConfig
    from clnp.data.task import Task
    from clnp.inputs import Inputs

__all__ = ["METHODS", "Make", "Method"]


class Method(Protocol):
    """What an experiment asks of a method. Learning a task must depend on nothing but the seed, the task's place and the model so far."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks learned, in order."""
        ...

    def revisit(self, tasks: Sequence[Task]) -> None:
        """Take the data of the tasks learned so far; only the upper bound looks at them."""
        ...

    def learn(
        self,
        task_name: str,
        train: tuple[Inputs, Tensor],
        validation: tuple[Inputs, Tensor],
        n_classes: int,
        progress: Callable[[dict[str, Any]], None],
        work: Path | None = None,
    ) -> dict[str, Any]:
        """Learn one task and return what its `task_learned` event says beside name and times; see `clnp.work` for `work`."""
        ...

    def predict(self, x: Inputs, task: str) -> Tensor:
        """Return the logits of a batch, (n, n_classes), as a learned task sees it."""
        ...

    def save(self, directory: Path) -> None:
        """Write the state so that a crash at any moment leaves this state or the last saved one."""
        ...

    def load(self, directory: Path) -> None:
        """Take the state that was saved last; stay without tasks where the first save was cut short."""
        ...

    def capacity(self) -> dict[str, dict[str, Any]] | None:
        """Return {group: {n_units, free, claimed: {task: n}, reused: {task: n}}}; None for methods that own no units."""
        ...

    def forecast(self) -> dict[str, Any] | None:
        """Return {tasks, limiting_group, assumption}: how many more tasks fit; None for methods that never fill up."""
        ...


Make = Callable[["Callable[[], nn.Module]", "Inputs", "LearnConfig", int], Method]
"""(builds the network without a head, with fresh weights that are always the same; a batch of one example; settings; seed) -> a method"""

METHODS: Mapping[str, Make] = {
    "clnp": Clnp,
    "single": Single,
    "finetune": finetune,
    "joint": Joint,
    "ewc": ewc,
    "online-ewc": online_ewc,
    "si": si,
    "superposition": superposition,
    "packnet": packnet,
    "hat": hat,
    "wsn": wsn,
}
