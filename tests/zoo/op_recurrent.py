"""Recurrent layers: a hidden unit, with all of its gates, is one unit."""

from __future__ import annotations

import torch
from op_case import TOKENS, Net, OpCase, R, span
from torch import nn

GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def layer(kind, name, suffix, units, read):
    """The labels of one layer and direction."""
    rows = units * GATES[kind]
    return {
        f"{name}.weight_ih_{suffix}": (rows, read),
        f"{name}.weight_hh_{suffix}": (rows, units),
        f"{name}.bias_ih_{suffix}": (rows, None),
        f"{name}.bias_hh_{suffix}": (rows, None),
    }


def one(op, run, make, kind, read=None, more=None, **parts):
    """One layer of 3 hidden units between a linear layer of 2 and one that reads it."""
    read = [2, 3, 4] if read is None else read
    return OpCase(
        op,
        lambda: Net(run, a=nn.Linear(4, 2), r=make(), b=nn.Linear(len(read), 2), **{name: part() for name, part in parts.items()}),
        TOKENS,
        {"a": 2, "r" if more is None else "c": 3, "b": 2},
        {
            "a.weight": ([0, 1], [R] * 4),
            **layer(kind, "r", "l0", [2, 3, 4], [0, 1]),
            **(more or {}),
            "b.weight": ([5, 6], read),
        },
    )


def last(net, x):
    return net.b(net.r(net.a(x))[0][:, -1])


def time_first(net, x):
    y, _ = net.r(net.a(x).transpose(0, 1))
    return net.b(y.mean(0))


def states(net, x):
    _, (h, c) = net.r(net.a(x))
    return net.b(torch.cat([c[-1], h[-1].flip(1)], 1))


def state(net, x):
    return net.b(net.r(net.a(x))[1][-1])


def both_ends(net, x):
    """The last states of both directions, as texts are classified."""
    _, (h, _) = net.r(net.a(x))
    return net.b(torch.cat([h[-2], h[-1]], 1))


def started(net, x):
    y, _ = net.r(net.a(x), net.c(x[:, 0]).unsqueeze(0))
    return net.b(y[:, -1])


def from_zeros(net, x):
    zeros = torch.zeros(1, x.shape[0], 3)
    return net.b(net.r(net.a(x), (zeros, zeros))[0].mean(1))


def deep(op, kind, make, run):
    """Two layers, two directions: four groups."""
    return OpCase(
        op,
        lambda: Net(run, a=nn.Linear(4, 2), r=make(), b=nn.Linear(6, 2)),
        TOKENS,
        {"a": 2, "r": 3, "r#2": 3, "r#3": 3, "r#4": 3, "b": 2},
        {
            "a.weight": ([0, 1], [R] * 4),
            **layer(kind, "r", "l0", span(2, 3), [0, 1]),
            **layer(kind, "r", "l0_reverse", span(5, 3), [0, 1]),
            **layer(kind, "r", "l1", span(8, 3), span(2, 6)),
            **layer(kind, "r", "l1_reverse", span(11, 3), span(2, 6)),
            "b.weight": ([14, 15], span(8, 6)),
        },
    )


OPS = {
    "lstm": one("aten.lstm.input", last, lambda: nn.LSTM(2, 3, batch_first=True), "lstm"),
    "lstm, time first": one("aten.lstm.input", time_first, lambda: nn.LSTM(2, 3), "lstm"),
    "lstm, last states": one("aten.lstm.input", states, lambda: nn.LSTM(2, 3, batch_first=True), "lstm", [2, 3, 4, 4, 3, 2]),
    "lstm from zeros": one("aten.lstm.input", from_zeros, lambda: nn.LSTM(2, 3, batch_first=True), "lstm"),
    "lstm, two directions": OpCase(
        "aten.lstm.input",
        lambda: Net(both_ends, a=nn.Linear(4, 2), r=nn.LSTM(2, 3, batch_first=True, bidirectional=True), b=nn.Linear(6, 2)),
        TOKENS,
        {"a": 2, "r": 3, "r#2": 3, "b": 2},
        {
            "a.weight": ([0, 1], [R] * 4),
            **layer("lstm", "r", "l0", span(2, 3), [0, 1]),
            **layer("lstm", "r", "l0_reverse", span(5, 3), [0, 1]),
            "b.weight": ([8, 9], span(2, 6)),
        },
    ),
    "lstm, two layers and directions": deep(
        "aten.lstm.input", "lstm", lambda: nn.LSTM(2, 3, 2, batch_first=True, bidirectional=True, dropout=0.1), last
    ),
    "lstm, two layers and directions, time first": deep(
        "aten.lstm.input", "lstm", lambda: nn.LSTM(2, 3, num_layers=2, bidirectional=True), time_first
    ),
    "gru": one("aten.gru.input", last, lambda: nn.GRU(2, 3, batch_first=True), "gru"),
    "gru, last state": one("aten.gru.input", state, lambda: nn.GRU(2, 3, batch_first=True), "gru"),
    "gru, two layers and directions": deep("aten.gru.input", "gru", lambda: nn.GRU(2, 3, 2, batch_first=True, bidirectional=True), last),
    # The first state is made by a layer, which names the group: it runs before the recurrent one.
    "gru from a state": one(
        "aten.gru.input",
        started,
        lambda: nn.GRU(2, 3, batch_first=True),
        "gru",
        more={"c.weight": ([2, 3, 4], [R] * 4)},
        c=lambda: nn.Linear(4, 3),
    ),
    "rnn, tanh": one("aten.rnn_tanh.input", last, lambda: nn.RNN(2, 3, batch_first=True), "rnn"),
    "rnn, relu, time first": one("aten.rnn_relu.input", time_first, lambda: nn.RNN(2, 3, nonlinearity="relu"), "rnn"),
}
