"""Bars as inline SVG, and colours that tell tasks apart; widths are percentages, so that one drawing fits a phone and a desk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Sequence

# Tasks come in an order, so their colours do too: lightness rises all along the ramp, hue from blue to yellow, which is the axis that
# every common form of colour blindness keeps. Each ramp keeps 3 : 1 contrast to the page's background in its scheme, at its far end
# by the outline that style.css draws. Nothing is told by colour alone: segments carry numbers.
LIGHT_RAMP = ((43, 58, 128), (33, 104, 154), (24, 143, 142), (86, 176, 104), (206, 190, 60))
DARK_RAMP = ((88, 108, 196), (62, 140, 194), (52, 168, 160), (116, 196, 118), (228, 212, 92))
N_HEAT_STEPS = 9


@dataclass(frozen=True)
class Segment:
    """One piece of a bar: its part of the whole width in [0, 1], its CSS class, the text on it, and its tooltip."""

    fraction: float
    css: str
    text: str = ""
    title: str = ""


def bar(segments: Sequence[Segment], label: str, *, height: int = 28) -> Markup:
    """Draw segments side by side, from the left, as one SVG image.

    Text is left out where it cannot fit a desktop bar and carries the class `tight` where it would not fit a phone's.

    Args:
        segments: left to right; empty ones are skipped, and what reaches beyond the bar is cut off.
        label: what the bar says, for screen readers.
        height: in CSS pixels.
    Returns: markup in which every given text is escaped.

    >>> "&lt;b&gt;" in bar([Segment(0.5, "new", title="<b>")], "half")
    True
    """
    pieces: list[Markup] = []
    start = 0.0
    for segment in segments:
        width = min(max(segment.fraction, 0.0), 1.0 - start)
        if width <= 0:
            continue
        pieces.append(_segment(segment, start, width, height))
        start += width
    return Markup('<svg class="bar" role="img" aria-label="{}" width="100%" height="{}">{}</svg>').format(
        label, height, Markup("").join(pieces)
    )


def _segment(segment: Segment, start: float, width: float, height: int) -> Markup:
    """Draw one segment with its tooltip and, where it fits, its text."""
    title = Markup("<title>{}</title>").format(segment.title) if segment.title else Markup("")
    rect = Markup('<rect class="{}" x="{:.3f}%" y="0" width="{:.3f}%" height="{}">{}</rect>').format(
        segment.css, 100 * start, 100 * width, height, title
    )
    room = 0.008 * len(segment.text) + 0.007  # of a bar of about 1,000 pixels, with text 12 pixels high
    if not segment.text or width < room:
        return rect
    tight = " tight" if width < 2.6 * room else ""
    text = Markup('<text class="{}{}" x="{:.3f}%" y="{}">{}</text>').format(
        segment.css, tight, 100 * (start + width / 2), height // 2, segment.text
    )
    return rect + text


def task_colours(n_tasks: int) -> Markup:
    """Return the CSS that gives task i its colour `--c` and the ink `--ink` that reads on it, in both schemes."""
    light = "".join(_rule(index, n_tasks, LIGHT_RAMP) for index in range(n_tasks))
    dark = "".join(_rule(index, n_tasks, DARK_RAMP) for index in range(n_tasks))
    return Markup(f"{light}@media screen and (prefers-color-scheme:dark){{{dark}}}")  # noqa: S704  numbers of ours, no text of others


def _rule(index: int, n_tasks: int, ramp: Sequence[tuple[int, int, int]]) -> str:
    """Return the CSS rule of one task."""
    position = index / max(n_tasks - 1, 1) * (len(ramp) - 1)
    low = min(int(position), len(ramp) - 2)
    mix = position - low
    colour = tuple(round(a + (b - a) * mix) for a, b in zip(ramp[low], ramp[low + 1], strict=True))
    ink = max(((255, 255, 255), (0, 0, 0)), key=lambda candidate: contrast(candidate, colour))
    return f".t{index}{{--c:rgb{colour};--ink:rgb{ink}}}".replace(" ", "")


def contrast(one: Sequence[int], other: Sequence[int]) -> float:
    """Return the contrast ratio of two sRGB colours, from 1 to 21.

    Reference: WCAG 2.2, relative luminance and contrast ratio.

    >>> round(contrast((255, 255, 255), (0, 0, 0)))
    21
    """
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: Sequence[int]) -> float:
    """Return the relative luminance of an sRGB colour."""
    linear = [value / 255 / 12.92 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def heat_step(value: float, low: float, high: float) -> int:
    """Return the step 0..8 of a value on the scale from low to high.

    >>> heat_step(0.5, 0.5, 1.0), heat_step(1.0, 0.5, 1.0), heat_step(0.7, 0.7, 0.7)
    (0, 8, 8)
    """
    if high <= low:
        return N_HEAT_STEPS - 1
    return min(max(int((value - low) / (high - low) * N_HEAT_STEPS), 0), N_HEAT_STEPS - 1)
