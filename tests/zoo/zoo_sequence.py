"""Networks of the zoo that read sequences: recurrent layers, causal and gated convolutions in time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from zoo_entry import Entry, images
from zoo_language import LONGER, SHORTER, TEXT, VOCABULARY


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 32, batch_first=True)
        self.fc = nn.Linear(32, 24)

    def forward(self, x):
        out, _ = self.lstm(x)
        return torch.relu(self.fc(out[:, -1]))


class BiLstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.lstm = nn.LSTM(16, 16, num_layers=2, bidirectional=True, batch_first=True, dropout=0.05)

    def forward(self, x):
        _, (h, _) = self.lstm(self.embedding(x))
        return torch.cat([h[-2], h[-1]], dim=1)


class Gru(nn.Module):
    """Time comes first."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(8, 16)
        self.gru = nn.GRU(16, 24, num_layers=2)

    def forward(self, x):
        x = F.relu(self.proj(x)).transpose(0, 1)
        out, last = self.gru(x)
        return torch.cat([out.mean(dim=0), last[-1]], dim=-1)


class Chomp(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return x[:, :, : -self.size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, n_in, n_out, dilation):
        super().__init__()
        padding = 2 * dilation
        self.conv1 = nn.Conv1d(n_in, n_out, 3, padding=padding, dilation=dilation)
        self.conv2 = nn.Conv1d(n_out, n_out, 3, padding=padding, dilation=dilation)
        # As in the code of the paper: every layer has two paths, and is called by the second.
        self.net = nn.Sequential(self.conv1, Chomp(padding), nn.ReLU(), self.conv2, Chomp(padding), nn.ReLU(), nn.Dropout(0.05))
        self.downsample = nn.Conv1d(n_in, n_out, 1) if n_in != n_out else None

    def forward(self, x):
        out = self.net(x)
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class Tcn(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(TemporalBlock(8, 20, 1), TemporalBlock(20, 20, 2), TemporalBlock(20, 24, 4))

    def forward(self, x):
        return self.blocks(x)[:, :, -1]


class NormedTcn(nn.Module):
    """Causal convolutions whose weights are a direction and a length."""

    def __init__(self):
        super().__init__()
        self.first = weight_norm(nn.Conv1d(8, 24, 3))
        self.second = weight_norm(nn.Conv1d(24, 24, 3, dilation=2))
        self.third = weight_norm(nn.Conv1d(24, 24, 3, dilation=4))
        self.out = weight_norm(nn.Linear(24, 32))

    def forward(self, x):
        x = F.relu(self.first(F.pad(x, (2, 0))))
        x = x + F.relu(self.second(F.pad(x, (4, 0))))
        x = x + F.relu(self.third(F.pad(x, (8, 0))))
        return F.relu(self.out(x[..., -1]))


class WaveLayer(nn.Module):
    def __init__(self, dilation):
        super().__init__()
        self.dilation = dilation
        self.conv = nn.Conv1d(16, 32, 2, dilation=dilation)
        self.residual = nn.Conv1d(16, 16, 1)
        self.skip = nn.Conv1d(16, 24, 1)

    def forward(self, x):
        filtered, gate = torch.split(self.conv(F.pad(x, (self.dilation, 0))), 16, dim=1)
        z = torch.tanh(filtered) * torch.sigmoid(gate)
        return x + self.residual(z), self.skip(z)


class WaveNet(nn.Module):
    """Gated causal convolutions, whose skips are stacked and summed. Nothing reads the last residual."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.layers = nn.ModuleList([WaveLayer(d) for d in (1, 2, 4)])

    def forward(self, x):
        x = self.embedding(x).permute(0, 2, 1)
        skips = []
        for layer in self.layers:
            x, skip = layer(x)
            skips.append(skip)
        return F.relu(torch.stack(skips).sum(0)).mean(-1)


class TextCnn(nn.Module):
    """Convolutions of three widths over characters, and the largest value of each in time."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 24)
        self.convs = nn.ModuleList([nn.Conv2d(1, 12, (k, 24)) for k in (2, 3, 4)])
        self.flat = nn.Conv1d(24, 12, 3)

    def forward(self, x):
        x = self.embedding(x)
        maps = [F.relu(conv(x.unsqueeze(1))).squeeze(3) for conv in self.convs]
        maps.append(F.relu(self.flat(x.transpose(1, 2))))
        return torch.cat([F.max_pool1d(m, m.size(2)).squeeze(2) for m in maps], 1)


ROWS = images(8, 8)  # 8 steps of 8 numbers
LONGER_ROWS = (images(13, 8),)
GATED = "a gate and what it gates are one unit"
ENTRIES = [
    Entry("lstm", Lstm, ROWS, {"lstm": 32, "fc": 24}, varying=LONGER_ROWS),
    Entry(
        "lstm-bidirectional",
        BiLstm,
        TEXT,
        # Layer 0 forward and in reverse, layer 1 forward and in reverse: 16 hidden units each.
        {"embedding": 16, "lstm": 16, "lstm#2": 16, "lstm#3": 16, "lstm#4": 16},
        varying=(SHORTER,),
    ),
    Entry("gru", Gru, ROWS, {"proj": 16, "gru": 24, "gru#2": 24}, varying=LONGER_ROWS),
    Entry(
        "tcn",
        Tcn,
        ROWS,
        # Streams: block 0's second convolution (it runs before the projection, and names it) with block 1's; block 2's.
        {"blocks.0.net.0": 20, "blocks.0.net.3": 20, "blocks.1.net.0": 20, "blocks.2.net.0": 24, "blocks.2.net.3": 24},
        varying=(images(8, 12),),
    ),
    Entry("tcn-weight-norm", NormedTcn, ROWS, {"first": 24, "out": 32}, varying=(images(8, 12),)),  # second and third are added to first
    Entry(
        "wavenet",
        WaveNet,
        TEXT,
        # conv has 32 rows: filter i is gated by 16 + i. Residuals join the embedding, all skips are one group.
        {"embedding": 16, "layers.0.conv": 16, "layers.0.skip": 24, "layers.1.conv": 16, "layers.2.conv": 16},
        varying=(SHORTER, LONGER),
        merged={f"layers.{i}.conv": GATED for i in range(3)},
    ),
    Entry(
        "text-cnn",
        TextCnn,
        TEXT,
        # The 2-d convolutions read the embedding's columns along the width of their kernels: the embedding is merged.
        # torch's pooling takes the length of the sequence for a constant, m.size(2): no other length is allowed.
        {"embedding": 1, "convs.0": 12, "convs.1": 12, "convs.2": 12, "flat": 12},
        merged={"embedding": "a convolution runs along the embedding's columns"},
    ),
]
