"""A Llama-like network learns three real text tasks, one after another, and forgets nothing.

    python examples/llama_text.py            # no download: the text is what every Python brings along

RMSNorm, rotary positions, grouped-query attention, SwiGLU; a token is one ASCII character. The three tasks:

- "prose or code": is a line of the standard library's sources code, or prose (a comment or docstring, without its # and quotes)?
- "hidden keyword": which keyword began this line of code: if, return, def, for or raise?
- "kind of character": is the Unicode character of this name a letter, a mark, a number or a symbol?

Sources are split by file, names by family (what precedes the last word), so that close relatives never stand on both sides;
what occurs twice is taken once. The text, and so every number below, varies with the version of Python.
"""

from __future__ import annotations

import ast
import io
import sysconfig
import tokenize
import unicodedata
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clnp
from common import Task, learn_all, options_parser, report

if TYPE_CHECKING:
    from collections.abc import Iterator

LENGTH = 48  # characters in one example
KEYWORDS = ("if", "return", "def", "for", "raise")
CHARACTERS = {"L": "letter", "M": "mark", "N": "number", "S": "symbol"}


# ---- the network: nothing in it knows of clnp


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of coordinates (i, i + half) by an angle that grows with the position."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


class Block(nn.Module):
    """Let positions attend to earlier ones, then think for themselves."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, head_width
        self.norm1 = nn.RMSNorm(width)
        self.q = nn.Linear(width, heads * head_width, bias=False)
        self.k = nn.Linear(width, kv_heads * head_width, bias=False)
        self.v = nn.Linear(width, kv_heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)
        self.norm2 = nn.RMSNorm(width)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # (B, T, width)
        """Add what attention and the gated layer say to the stream."""
        y = self.norm1(x)
        q = self.q(y).unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)  # (B, heads, T, head_width)
        k = self.k(y).unflatten(-1, (self.kv_heads, self.head_width)).transpose(1, 2)
        v = self.v(y).unflatten(-1, (self.kv_heads, self.head_width)).transpose(1, 2)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """Turn text (B, LENGTH) into features (B, width): the mean over positions."""

    def __init__(
        self, width: int = 128, depth: int = 2, heads: int = 24, kv_heads: int = 12, head_width: int = 8, hidden: int = 256
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, width)
        self.blocks = nn.ModuleList([Block(width, heads, kv_heads, head_width, hidden) for _ in range(depth)])
        self.norm = nn.RMSNorm(width)
        angles = torch.outer(torch.arange(LENGTH), 100.0 ** -torch.linspace(0, 1, head_width // 2)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())  # (LENGTH, head_width)
        self.register_buffer("sin", angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        """Read the characters."""
        x = self.embedding(x)  # (B, LENGTH, width)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.norm(x).mean(1)


# ---- the tasks


def source_lines() -> Iterator[tuple[str, str, bool]]:
    """Read the standard library: for each line its file, its text without indentation, # and quotes, and whether it is prose."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        source = path.read_text("utf-8", errors="replace")
        prose, strings = set[int](), set[int]()  # lines; a string over several lines that documents nothing is neither prose nor code
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node):
                prose |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip():
                prose.add(token.start[0])
            elif token.type == tokenize.STRING and token.start[0] < token.end[0]:
                strings |= set(range(token.start[0], token.end[0] + 1))
        for number, line in enumerate(source.splitlines(), 1):
            if number in prose or number not in strings:
                yield path.name, line.strip(" \t#\"'"), number in prose


def text_task(name: str, n_classes: int, examples: list[tuple[str, str, int]], limit: int, seed: int) -> Task:
    """Make a task of (origin, text, label): an origin is all in one part, a text occurs once, classes are equally frequent."""
    origins = sorted({origin for origin, _, _ in examples}, key=lambda origin: zlib.crc32(origin.encode()))
    place = {origin: number / len(origins) for number, origin in enumerate(origins)}
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    parts, taken = [], set[str]()
    for start, end, share in ((0.85, 1, 0.25), (0.7, 0.85, 0.25), (0, 0.7, 1)):  # test, validation, training data
        by_class: list[list[str]] = [[] for _ in range(n_classes)]
        for origin, text, label in (examples[number] for number in order):
            if start <= place[origin] < end and text[:LENGTH] not in taken and len(text) >= 8:
                taken.add(text[:LENGTH])
                by_class[label].append(text[:LENGTH].ljust(LENGTH))
        n = min(int(limit * share) // n_classes, *map(len, by_class))
        codes = [list(text.encode("ascii", errors="replace")) for texts in by_class for text in texts[:n]]
        parts.append((torch.tensor(codes), torch.arange(n_classes).repeat_interleave(n)))
    return Task(name, n_classes, *reversed(parts))


def tasks_of(limit: int, seed: int) -> list[Task]:
    """Read all three tasks from the Python that runs this."""
    lines = list(source_lines())
    kinds = [(file, text, int(prose)) for file, text, prose in lines]
    words = [(file, *text.partition(" ")[::2]) for file, text, prose in lines if not prose]
    hidden = [(file, "... " + rest, KEYWORDS.index(word)) for file, word, rest in words if word in KEYWORDS]
    names = [(unicodedata.name(chr(code), ""), unicodedata.category(chr(code))[0]) for code in range(0x20000)]
    characters = [
        (name.rpartition(" ")[0], name, list(CHARACTERS).index(kind))  # a family: all names that differ in the last word
        for name, kind in names
        if kind in CHARACTERS and name and not name.startswith("HANGUL SYLLABLE") and not any(char.isdigit() for char in name)
    ]
    return [
        text_task("prose or code", 2, kinds, limit, seed),
        text_task("hidden keyword", len(KEYWORDS), hidden, limit, seed),
        text_task("kind of character", len(CHARACTERS), characters, limit, seed),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Learn, check, report."""
    options = options_parser(__doc__, limit=4000).parse_args(arguments)
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)  # networks this small gain nothing from more, and clocks are steadier
    tasks = tasks_of(options.limit, options.seed)
    trunk = Llama().eval()
    learner = clnp.Learner(trunk, tasks[0].test[0][:2], seed=options.seed)
    epochs = options.epochs or 6
    # Chosen by validation accuracy. Each task may train in a quarter of each group, so that there is room for a fourth.
    config = clnp.LearnConfig(epochs=epochs, finetune_epochs=max(1, epochs // 5), pool=0.25, margin=0.005, lr=3e-3, l1=1e-5)
    learn_all(learner, tasks, config)
    report(learner, trunk, tasks, options.rounds)


if __name__ == "__main__":
    main()
