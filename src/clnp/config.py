"""The settings of learning one task: one frozen, validated record, whose field texts are the `--help`."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, ValidatorFunctionWrapHandler, field_validator

from clnp.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PoolSize = Literal["all"] | int | float
Pool = PoolSize | dict[str, PoolSize]
A_POOL = "a pool is 'all', a count, a fraction from 0.0 to 1.0, or a mapping from names of groups (* stands for anything) to such sizes"
Criterion = Literal["activity", "firing", "std", "activity-weight", "firing-weight", "std-weight", "taylor"]


def _sizes(pool: Any) -> list[Any]:
    """Return the sizes of pools that are given."""
    return [*cast("dict[str, Any]", pool).values()] if isinstance(pool, dict) else [pool]


MOST_EPOCHS = 100_000
"""More would never end; a slip of the finger is told of as one."""


class LearnConfig(BaseModel):
    """How one task is learned. The defaults work untuned on the digits, MNIST and CIFAR.

    Raises:
        ConfigError: a field is unknown, or its value cannot work; the message names the field, what was expected and
            what was found.

    >>> LearnConfig(margin=0.01).margin
    0.01
    >>> LearnConfig(margin=2.0)
    Traceback (most recent call last):
        ...
    clnp.errors.ConfigError: cannot use these settings: margin: input should be less than 1 (found 2.0). See LearnConfig for every field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(
        12, ge=1, le=MOST_EPOCHS, description="passes over the training data with the whole pool, before anything is pruned"
    )
    batch_size: int | None = Field(
        None, ge=2, description="examples in one step; by default 128, or so few (at least 16) that a pass has 32 steps"
    )
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="it is given the pool's rows and the head, nothing else")
    lr: float = Field(2e-3, gt=0, description="the peak learning rate")
    schedule: Literal["one-cycle", "cosine", "constant"] = Field("one-cycle", description="the course of the learning rate over all steps")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd; the first beta of adam and adamw")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of the optimizer; it cannot move a claimed weight")
    l1: float = Field(5e-5, ge=0, description="the L1 penalty on every trainable weight: keeps a task small")
    margin: float = Field(0.002, ge=0, lt=1, description="validation accuracy a task may give up, once, to leave room; 0.002 is 0.2 points")
    pool: Pool = Field(
        0.25,
        description="free units a task may train in, per group: 'all', a count, or a fraction of the group, as many as are free; 0 trains a head on reused units alone; "
        "sizes by group: {conv*: all, '*': 80}, the first pattern that matches counts",
    )
    criterion: Criterion = Field("activity-weight", description="the importance of a unit, see clnp.importance.CRITERIA")
    claim_weight: float = Field(
        0.1,
        gt=0,
        le=1,
        description="what the importance of a free unit counts beside that of a claimed one: below 1, a task rather reuses than claims",
    )
    rounds: int = Field(2, ge=1, le=100, description="rounds of pruning; between two rounds the survivors train on")
    finetune_epochs: int = Field(4, ge=0, le=MOST_EPOCHS, description="epochs in which the survivors of a round train on; 0 prunes only")
    patience: int | None = Field(None, ge=1, description="stop training after so many epochs without a better validation accuracy")
    loss: Literal["cross-entropy"] = Field("cross-entropy", description="the training loss")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of each label that is spread over all classes in the training loss")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="bfloat16: training steps, and what selection screens by, multiply in it (autocast); weights, what is measured, and predictions stay float32. Slow where the processor does not multiply in it",
    )
    channels_last: bool = Field(
        False,
        description="whether images are trained on in channels-last memory, which convolutions are faster on; not with `view` behind them",
    )
    head: Literal["multi", "single"] = Field("multi", description="output rows of its own for each task, or one shared row per class")
    reuse: bool = Field(True, description="whether the task may read units of earlier tasks")
    private: bool = Field(False, description="whether later tasks are kept from reading this task's units")
    strength: float | None = Field(
        None, ge=0, le=1e12, description="of methods that are compared with: lambda of ewc, c of si and hat; by default the method's own"
    )
    damping: float | None = Field(None, gt=0, description="si: xi, which keeps weights that hardly moved from being held for ever")
    share: float | None = Field(
        None, gt=0, le=1, description="packnet: the free weights of a layer that a task keeps; wsn: the weights that it reads"
    )
    contexts: Literal["binary", "complex", "rotation"] = Field("binary", description="superposition: what tells its networks apart")
    device: str = Field("cpu", description="where to train: cpu, cuda, cuda:1, mps")
    threads: int | None = Field(None, ge=1, le=1024, description="torch threads; None leaves them as they are")
    memory_limit: int = Field(
        4096,
        ge=0,
        description="MB that kept outputs of claimed units may take, and a quarter as much those of the network that selection asked before; what does not fit is computed anew",
    )

    def __init__(self, **settings: Any) -> None:
        """Validate the settings and say in one line what is wrong with the first that cannot work."""
        try:
            super().__init__(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"][:1])
            if first["type"] == "extra_forbidden":
                message = f"{where}: no such setting"
            else:
                said = first["msg"].removeprefix("Value error, ")
                message = f"{where}: {said[0].lower()}{said[1:]} (found {first['input']!r})"
            raise ConfigError(f"cannot use these settings: {message}. See LearnConfig for every field.") from None

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_is_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {kind, *get_args(kind)} and info.field_name != "pool":  # it would pass for 0 or 1
            raise ValueError("expected a number")
        return value

    @field_validator("pool", mode="wrap")
    @classmethod
    def _is_a_pool(cls, pool: Any, parse: ValidatorFunctionWrapHandler) -> Pool:
        if isinstance(pool, dict):
            pool = {str(pattern): size for pattern, size in cast("dict[Any, Any]", pool).items()}  # YAML reads the name "2" as a number
        if any(isinstance(size, bool) for size in _sizes(pool)):  # they would pass for 0 and 1
            raise ValueError(A_POOL)
        try:
            parsed: Pool = parse(pool)
        except ValidationError:
            raise ValueError(A_POOL) from None
        sizes = _sizes(parsed)
        if not sizes or any(size != "all" and (size < 0 or (isinstance(size, float) and size > 1)) for size in sizes):
            raise ValueError(A_POOL)
        return parsed

    def pool_of(self, group: str) -> PoolSize | None:
        """Return the size of the pool in a group; None where `pool` names sizes by group and no pattern matches this one.

        >>> config = LearnConfig(pool={"conv*": "all", "*": 80})
        >>> config.pool_of("conv1_2"), config.pool_of("dense")
        ('all', 80)
        """
        if not isinstance(self.pool, dict):
            return self.pool
        return next((size for pattern, size in self.pool.items() if fnmatchcase(group, pattern)), None)

    def batch_size_for(self, n_examples: int | None) -> int:
        """Return the batch size for so many training examples (None: not known).

        >>> LearnConfig().batch_size_for(55_000), LearnConfig().batch_size_for(290), LearnConfig(batch_size=64).batch_size_for(290)
        (128, 16, 64)
        """
        if self.batch_size is not None:
            return self.batch_size
        return 128 if n_examples is None else next((size for size in (128, 64, 32) if n_examples >= 32 * size), 16)

    @property
    def total_epochs(self) -> int:
        """Epochs one task takes at most: what a comparison at equal epochs must grant the others."""
        return self.epochs + self.rounds * self.finetune_epochs


def given(config: LearnConfig | None) -> LearnConfig:
    """Return the settings that a caller gave, or the defaults.

    Raises:
        ConfigError: it gave something else, a dictionary say.
    """
    if config is not None and not isinstance(config, LearnConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
        hint = " Write LearnConfig(**settings)." if isinstance(config, dict) else ""
        raise ConfigError(f"cannot learn with these settings: expected a clnp.LearnConfig, found {type(config).__name__}.{hint}")
    return config or LearnConfig()


METHODS_OF: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("l1", "margin", "pool", "criterion", "claim_weight", "reuse", "private", "memory_limit"), ("clnp",)),
    "strength": ("ewc", "online-ewc", "si", "hat"),
    "damping": ("si",),
    "share": ("packnet", "wsn"),
    "contexts": ("superposition",),
}
"""Settings that not every method reads, and those that do."""


def unread(method: str, settings: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return those of some settings that a method does not read, and the methods that do.

    >>> unread("ewc", ["epochs", "strength", "share"])
    {'share': ('packnet', 'wsn')}
    """
    return {key: METHODS_OF[key] for key in settings if key in METHODS_OF and method not in METHODS_OF[key]}
