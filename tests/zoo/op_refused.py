"""Networks whose tasks cannot be isolated: each must be refused with a module's path and a line of this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from op_case import Weight
from torch import nn
from torch.nn.utils import parametrizations

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Refusal:
    """A network that is refused.

    Attributes:
        build: makes it.
        shape: of an example.
        path: of the module that must be named.
        pattern: of the message, a regular expression.
        line: a part of the line of code that must be shown.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    path: str
    pattern: str
    line: str


class Outer(nn.Module):
    """A network around the module that is at fault, so that a path has two parts."""

    def __init__(self, inner: nn.Module, head: nn.Module | None = None, tail: nn.Module | None = None) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3) if head is None else head
        self.part = nn.ModuleDict({"inner": inner})
        self.tail = nn.Linear(3, 2) if tail is None else tail

    def forward(self, x):
        return self.tail(self.part["inner"](self.head(x)))


class TokensOuter(Outer):
    """The same for tokens."""

    def forward(self, x):
        return self.tail(self.part["inner"](self.head(x))).mean(1)


class Spectral(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.fc = wrap(nn.Linear(3, 3))

    def forward(self, x):
        return torch.relu(self.fc(x))


class BatchStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3, track_running_stats=False)

    def forward(self, x):
        return torch.relu(self.norm(x))


class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return torch.relu(x)
        return x


class PickedExamples(nn.Module):
    def forward(self, x):
        return x[x[:, 0] > 0].mean(0, keepdim=True) + x


class LengthFromData(nn.Module):
    def forward(self, x):
        return x[:, : int(x.abs().max().item()) + 1].sum(1, keepdim=True) * x


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class NormalNoise(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn(x.shape)


class Sampled(nn.Module):
    def forward(self, x):
        return torch.bernoulli(torch.sigmoid(x))


class BatchMean(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class BatchMeanKept(nn.Module):
    def forward(self, x):
        return x - torch.mean(x, dim=0, keepdim=True)


class MeanOfAll(nn.Module):
    def forward(self, x):
        return x / x.abs().mean()


class NormOfAll(nn.Module):
    def forward(self, x):
        return x / x.norm()


class BatchMax(nn.Module):
    def forward(self, x):
        return x - x.amax(0, keepdim=True)


class BatchRoll(nn.Module):
    def forward(self, x):
        return x + torch.roll(x, 1, 0)


class FlatRoll(nn.Module):
    def forward(self, x):
        return x + torch.roll(x, 1)


class BatchFlip(nn.Module):
    def forward(self, x):
        return x + x.flip(0)


class BatchSum(nn.Module):
    def forward(self, x):
        return torch.cumsum(x, 0)


class BatchSoftmax(nn.Module):
    def forward(self, x):
        return x.softmax(0)


class BatchSort(nn.Module):
    def forward(self, x):
        return x.sort(0).values


class FirstExample(nn.Module):
    def forward(self, x):
        return x - x[0]


class LastExample(nn.Module):
    def forward(self, x):
        return x - x[-1:]


class PooledExamples(nn.Module):
    def forward(self, x):
        return F.max_pool2d(x.unsqueeze(0), 3, 1, 1).squeeze(0)


class PooledAlongExamples(nn.Module):
    def forward(self, x):
        return F.avg_pool1d(x.t().unsqueeze(0), 3, 1, 1).squeeze(0).t()


class ConvolvedExamples(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(x.t().unsqueeze(0)).squeeze(0).t()


class Similarities(nn.Module):
    def forward(self, x):
        return (x @ x.t()).softmax(-1) @ x


class SharedView(nn.Module):
    """The shape is right again, the examples are not."""

    def forward(self, x):
        return x.reshape(3, -1).t()


class SwappedAttention(nn.Module):
    """The usual mistake: tokens are expected first."""

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(4, 2)

    def forward(self, x):
        return self.attn(x, x, x, need_weights=False)[0]


class SwappedLstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 3)

    def forward(self, x):
        return self.lstm(x)[0]


class AttendedExamples(nn.Module):
    def forward(self, x):
        q = x.transpose(0, 1)
        return F.scaled_dot_product_attention(q, q, q).transpose(0, 1)


class NormedExamples(nn.Module):
    def forward(self, x):
        return F.batch_norm(x, None, None, training=True)


class TiedWords(nn.Module):
    """Words are embedded, and scored, by one table: its columns are units here, and are read there."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 3))
        self.mix = nn.Linear(7, 3)

    def forward(self, x):
        h = torch.softmax(x, -1) @ self.table
        return self.mix(torch.relu(F.linear(torch.relu(h), self.table)))


class TiedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.inner = nn.Linear(3, 3)
        self.tail = nn.Linear(7, 2)

    def forward(self, x):
        h = torch.relu(self.inner(self.embed(x.argmax(-1))))
        return self.tail(torch.relu(F.linear(h, self.embed.weight))).mean(1)


class TwoRoles(nn.Module):
    """An autoencoder with one weight: rows in one use, columns in the other."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3))

    def forward(self, x):
        return torch.relu(F.linear(x, self.weight)) @ self.weight


TOKENS = (5, 4)
MIXES = "example|batch"


def vectors(inner, line, pattern=MIXES, path="part.inner"):
    return Refusal(lambda: Outer(inner()), (4,), path, pattern, line)


def tokens(inner, line, pattern=MIXES, path="part.inner", **parts):
    return Refusal(lambda: TokensOuter(inner(), **{name: part() for name, part in parts.items()}), TOKENS, path, pattern, line)


REFUSED: dict[str, Refusal] = {
    "spectral_norm": vectors(
        lambda: Spectral(parametrizations.spectral_norm), "self.fc(x)", "spectral_norm|spectral norm", "part.inner.fc"
    ),
    "spectral_norm, old style": vectors(
        lambda: Spectral(nn.utils.spectral_norm), "self.fc(x)", "spectral_norm|spectral norm", "part.inner.fc"
    ),
    "a branch that depends on the data": vectors(Branch, "if x.sum() > 0", "[Cc]ontrol flow"),
    "chosen examples": vectors(PickedExamples, "x[x[:, 0] > 0]", "depend|data|example|batch"),
    "a size that depends on the data": vectors(LengthFromData, ".item()", "depend|data"),
    "random numbers": vectors(Noise, "torch.rand_like(x)", "random"),
    "normal random numbers": vectors(NormalNoise, "torch.randn(x.shape)", "random"),
    "sampled values": vectors(Sampled, "torch.bernoulli", "random"),
    "batch_norm without running statistics": vectors(
        BatchStatistics, "self.norm(x)", "track_running_stats=True|running statistics", "part.inner.norm"
    ),
    "batch_norm that is always in training": vectors(NormedExamples, "F.batch_norm(", "running statistics|" + MIXES),
    "the mean of a batch": vectors(BatchMean, "x.mean(0)"),
    "the mean of a batch, kept": vectors(BatchMeanKept, "torch.mean(x, dim=0"),
    "the mean of everything": vectors(MeanOfAll, "x.abs().mean()"),
    "the norm of everything": vectors(NormOfAll, "x.norm()"),
    "the maximum of a batch": vectors(BatchMax, "x.amax(0"),
    "a batch that is rolled": vectors(BatchRoll, "torch.roll(x, 1, 0)"),
    "a batch that is rolled flat": vectors(FlatRoll, "torch.roll(x, 1)"),
    "a batch that is flipped": vectors(BatchFlip, "x.flip(0)"),
    "a sum along the batch": vectors(BatchSum, "torch.cumsum(x, 0)"),
    "softmax along the batch": vectors(BatchSoftmax, "x.softmax(0)"),
    "sort along the batch": vectors(BatchSort, "x.sort(0)"),
    "the first example": vectors(FirstExample, "x[0]"),
    "the last example": vectors(LastExample, "x[-1:]"),
    "a pool of examples": vectors(PooledExamples, "F.max_pool2d(x.unsqueeze(0)"),
    "a pool along examples": vectors(PooledAlongExamples, "F.avg_pool1d("),
    "a convolution along examples": vectors(ConvolvedExamples, "self.conv(", path="part.inner.conv"),
    "products of examples": vectors(Similarities, "x @ x.t()"),
    "a view that mixes examples": vectors(SharedView, "x.reshape(3, -1)"),
    "nn.MultiheadAttention that takes examples for tokens": tokens(
        SwappedAttention, "self.attn(x, x, x", path="part.inner.attn", head=lambda: nn.Linear(4, 4), tail=lambda: nn.Linear(4, 2)
    ),
    "an LSTM that takes examples for time": tokens(SwappedLstm, "self.lstm(x)", path="part.inner.lstm"),
    "attention between examples": tokens(AttendedExamples, "F.scaled_dot_product_attention("),
    "words embedded and scored by one table": Refusal(
        lambda: Outer(TiedWords(), nn.Linear(4, 7)),
        (4,),
        "part.inner",
        "two ways|rows|columns|tied|roles",
        "F.linear(torch.relu(h), self.table)",
    ),
    "an embedding that is an output, too": Refusal(
        TiedEmbedding,
        (5, 4),
        "",
        "embed.weight.*(two ways|rows|columns|tied|roles)|(two ways|rows|columns|tied|roles).*embed.weight",
        "self.embed.weight",
    ),
    "a weight with two roles": vectors(TwoRoles, "F.linear(x, self.weight)) @ self.weight", "two ways|rows|columns|tied|roles"),
}
"""name -> a network, and what the refusal must say."""


def outer_product(net, x):
    """Units along two dimensions at once: (B, 3, 4)."""
    return net.b(torch.relu(net.a(x).mT @ net.c(x)).flatten(1))


def standardised(weight, x):
    """Each row of the weight is centred before it is used."""
    return F.linear(x, weight - weight.mean(1, keepdim=True))


class Net(nn.Module):
    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.run(self, x)


def chain(net, x):
    return net.b(net.m(torch.relu(net.a(x))))


def middle(m):
    return lambda: Net(chain, a=nn.Linear(4, 3), m=m(), b=nn.Linear(5, 2))


UNSURE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "a weight that is centred over its rows": (middle(lambda: Weight(lambda w, x: F.linear(x, w - w.mean(0)), 5, 3)), (4,)),
    "a weight that is standardised": (middle(lambda: Weight(standardised, 5, 3)), (4,)),
    "an orthogonal weight": (middle(lambda: parametrizations.orthogonal(nn.Linear(3, 5))), (4,)),
    "products of two layers": (lambda: Net(outer_product, a=nn.Linear(4, 3), c=nn.Linear(4, 2), b=nn.Linear(6, 2)), TOKENS),
}
"""Either is right: a refusal with a line of this file, or units merged and "capacity lost here"."""
