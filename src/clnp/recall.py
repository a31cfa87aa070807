"""What a network has in common with the one that was asked before it is not computed again.

Selection asks about many networks that differ in one group of units. All that lies before the group is the same in them,
to the bit. A node of a pool graph is known by its key: a hash of the operation, of the tensors that it holds and of the
keys of what it reads. Where a value with this key was kept of a network before, it is taken, and nothing that leads to
it is computed. Statistics of batch norms are known in the same way. A key that cannot be told is unlike all others.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from clnp.emit import positions, with_everyone
from clnp.layers import Attention, Noise, PoolNorm
from clnp.narrow import moved_labels

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from clnp.split import SplitNetwork

Key = bytes
PLAIN = (bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format, type(None))
_UNIQUE = count()


def _digest(*parts: bytes) -> Key:
    """Return a hash of some parts, each of which counts as a whole."""
    return hashlib.blake2b(b"".join(len(part).to_bytes(8, "big") + part for part in parts), digest_size=16).digest()


def _unique() -> Key:
    return _digest(b"unique", str(next(_UNIQUE)).encode())


def _of_tensor(tensor: Tensor) -> Key:
    data = tensor.detach().resolve_conj().resolve_neg().contiguous().cpu()
    return _digest(str((data.dtype, tuple(data.shape))).encode(), data.flatten().view(torch.uint8).numpy().tobytes())


def _of_module(name: str, module: nn.Module) -> Key:
    """Return the key of a module of the pool graph, as it is in evaluation; a norm's statistics are what is estimated, for each norm anew."""
    if isinstance(module, PoolNorm):
        tensors = [b"" if tensor is None else _of_tensor(tensor) for tensor in (module.weight, module.bias)]
        return _digest(b"norm", str((name, module.momentum, module.eps)).encode(), *tensors)
    if isinstance(module, Noise):
        return _digest(b"noise", str((module.op, module.p)).encode())
    if isinstance(module, Attention):
        return _digest(b"attention", str((module.op, module.causal, sorted(module.others.items()))).encode())
    return _unique()


def _of_argument(value: Any, keys: Mapping[fx.Node, Key]) -> Key:
    if isinstance(value, fx.Node):
        return keys[value]
    if isinstance(value, (list, tuple)):
        return _digest(b"list", *(_of_argument(part, keys) for part in value))
    if isinstance(value, dict):
        return _digest(b"dict", *(_digest(str(name).encode(), _of_argument(part, keys)) for name, part in value.items()))
    return _digest(str((type(value), value)).encode()) if isinstance(value, PLAIN) else _unique()


def keys_of(network: SplitNetwork) -> dict[fx.Node, Key]:
    """Return the key of every node of a network's pool graph: nodes with one key have one value, in evaluation and on the same examples."""
    module = network.pool
    keys: dict[fx.Node, Key] = {}
    for node in _graph(module).nodes:
        target = str(node.target)
        arguments = _of_argument(node.args, keys), _of_argument(dict(node.kwargs), keys)
        if node.op == "placeholder":
            keys[node] = _digest(b"placeholder", target.encode(), _of_meet(network, target.removeprefix("meet_")))
        elif node.op == "get_attr":
            keys[node] = _of_tensor(attrgetter(target)(module))
        else:
            what = _of_module(target, module.get_submodule(target)) if node.op == "call_module" else target.encode()
            keys[node] = _digest(node.op.encode(), what, *arguments)
    return keys


def _of_meet(network: SplitNetwork, name: str) -> Key:
    """Return the key of what the claimed graph gives; a network that computes it has its own narrowing of that graph, and its own rounding."""
    if name not in network.meets:
        return _digest(b"input")
    if network.claimed is not None:
        return _of_tensor(network.claimed_units)
    return _of_tensor(positions(with_everyone(network.claimed_units), moved_labels(network.wiring, name).flatten()))


def _graph(module: nn.Module) -> fx.Graph:
    assert isinstance(module, fx.GraphModule)
    return module.graph


@contextmanager
def recalling(network: SplitNetwork, part: str, *, estimates: bool = False) -> Generator[None]:
    """Say over which examples the passes inside go, always the same ones, and whether they estimate the statistics of norms."""
    recalled = network.pool
    if not isinstance(recalled, Recalled):
        yield
        return
    recalled.begin(part, uniform=estimates)
    try:
        yield
    except BaseException:
        recalled.memory.values.pop(part, None)  # some batches have seen this network, others have not
        raise
    if estimates:
        recalled.take_statistics()


@dataclass
class Memory:
    """What was computed of networks before: values by part of the data and batch, and the statistics of norms.

    Attributes:
        room: bytes that the values of one example may take in memory, with what they are views of. The small ones are kept: they lie far behind in a network.
        values: part -> batch -> key -> value.
        statistics: key of a norm -> mean and variance.
    """

    room: float
    values: dict[str, list[dict[Key, Tensor]]] = field(default_factory=dict[str, "list[dict[Key, Tensor]]"])
    statistics: dict[Key, tuple[Tensor, Tensor]] = field(default_factory=dict[Key, "tuple[Tensor, Tensor]"])

    def watch(self, network: SplitNetwork) -> None:
        """Let a network take from here what it has in common with those before."""
        modules = [str(node.target) for node in _graph(network.pool).nodes if node.op == "call_module"]
        if len(modules) == len(set(modules)):  # a norm that is used twice has one statistic of two values
            network.pool = Recalled(network, self)


def _held(value: Tensor) -> int:
    """Return the bytes that a value keeps alive: a view has the whole of what it is a view of."""
    return value.untyped_storage().nbytes()


class Recalled(nn.Module):
    """A pool graph that computes only what the memory does not have.

    Before each pass `recalling` says over which part of the data it goes; batches come in order.
    """

    def __init__(self, network: SplitNetwork, memory: Memory) -> None:
        super().__init__()
        self.graph_module, self.memory = network.pool, memory
        self.keys = keys_of(network)
        self.mine = set(self.keys.values())
        self.constant: set[fx.Node] = set()
        """Weights, and what is computed of weights alone."""
        for node in self.keys:
            sources = node.all_input_nodes
            if node.op == "get_attr" or (sources and self.constant.issuperset(sources)):
                self.constant.add(node)
        self.part, self.n = "", 0
        self.usable: set[Key] | None = None
        self.ran: set[Key] = set()

    def begin(self, part: str, *, uniform: bool = False) -> None:
        """Begin a pass.

        Args:
            part: which examples.
            uniform: every batch computes the same nodes, as estimates must, which are means over batches.
        """
        self.part, self.n, self.ran = part, 0, set()
        batches = self.memory.values.setdefault(part, [])
        self.usable = set.intersection(*(set(values) for values in batches)) if uniform and batches else set() if uniform else None

    def forward(self, *inputs: Any) -> Any:
        """Run the graph on the next batch of the pass."""
        batches = self.memory.values[self.part]
        known = batches[self.n].items() if self.n < len(batches) else ()
        kept = {key: value for key, value in known if key in self.mine}
        batches[self.n : self.n + 1] = [kept]
        del known  # what nobody reads any more is gone before anything is added
        self.n += 1
        return self._run(inputs, kept)

    def _run(self, inputs: Sequence[Any], kept: dict[Key, Tensor]) -> Any:
        """Return the output, and put what weights read into `kept` as long as there is room."""
        nodes, room = list(self.keys), self.memory.room * len(inputs[0])
        places = dict(zip((node for node in nodes if node.op == "placeholder"), inputs, strict=True))
        usable = {key: value for key, value in kept.items() if self.usable is None or key in self.usable}
        needed, waiting = set[fx.Node](), [nodes[-1]]
        while waiting:
            node = waiting.pop()
            if node not in needed and self.keys[node] not in usable:
                waiting += node.all_input_nodes
            needed.add(node)
        run = fx.Interpreter(self.graph_module, garbage_collect_values=False)
        computed = [node for node in nodes if node in needed and self.keys[node] not in usable]
        last = {source: node for node in computed for source in node.all_input_nodes}
        env = run.env = {node: usable[self.keys[node]] for node in needed if self.keys[node] in usable}
        usable.clear()  # what is dropped for want of room is gone when it was read
        for node in computed:
            env[node] = places[node] if node.op == "placeholder" else run.run_node(node)
            self.ran.add(self.keys[node])
            sources = node.all_input_nodes
            tensors = [source for source in sources if isinstance(env[source], Tensor)]
            if any(source in self.constant and env[source].dim() > 1 for source in tensors):
                read = [source for source in tensors if source not in self.constant and source.op != "placeholder"]
                _keep(kept, {self.keys[source]: env[source] for source in read}, room)
            for source in sources:
                if last[source] is node:
                    del env[source]
        return env[nodes[-1]]

    def take_statistics(self) -> None:
        """Take the statistics of norms that were not computed from the memory, and leave all there."""
        found: dict[Key, tuple[Tensor, Tensor]] = {}
        for node, key in self.keys.items():
            norm = self.graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
            if not isinstance(norm, PoolNorm):
                continue
            if key not in self.ran:
                mean, var = self.memory.statistics[key]
                norm.mean.copy_(mean)
                norm.var.copy_(var)
            found[key] = (norm.mean, norm.var)
        self.memory.statistics = found


def _keep(kept: dict[Key, Tensor], more: Mapping[Key, Tensor], room: float) -> None:
    """Add values to those that are kept, and drop the largest where they do not fit."""
    kept |= more
    while kept and sum(_held(value) for value in kept.values()) > room:
        del kept[max(kept, key=lambda key: _held(kept[key]))]
