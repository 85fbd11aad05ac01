"""A curve of how many requests fit at once, by how many tokens each has: logarithmic both ways.

The same in ``calculator.js``, string for string.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pagedattn_lab.viz import BLUE, ORANGE
from pagedattn_lab.viz.vram import hatch, text

CURVE_HEIGHT = 210
LENGTHS = tuple(round(2 ** (half / 2)) for half in range(8, 35))
"""Tokens of a request, from 16 to 131,072."""

_LEFT, _RIGHT, _TOP = 48, 394, 26
_OCTAVE_X, _OCTAVE_Y = 26, 9  # units for twice as much
_FIRST_X, _LEAST_Y, _MOST_Y = 4, -2, 16  # octaves
_BOTTOM = _TOP + _OCTAVE_Y * (_MOST_Y - _LEAST_Y)
_LETTER, _HEIGHT = 7, 12  # that a label takes


class Point(NamedTuple):
    """A point of the plot, with its label: so many requests (a fraction) of so many tokens."""

    tokens: int
    requests: tuple[int, int]
    label: str


Place = tuple[int, int]
Box = tuple[int, int, int, int]  # left, top, right, bottom


def place(tokens: int, requests: tuple[int, int]) -> Place:
    """Say where a point stands; what lies outside the plot stands at its edge.

    Example:
        >>> place(1024, (4, 1)), place(1024, (0, 1))
        ((204, 152), (204, 188))
    """
    x = _LEFT + math.floor(_OCTAVE_X * (math.log2(max(tokens, 16)) - _FIRST_X) + 0.5)
    number, of = requests
    octaves = min(max(math.log2(number / of), _LEAST_Y), _MOST_Y) if number > 0 else _LEAST_Y
    return x, _TOP + math.floor(_OCTAVE_Y * (_MOST_Y - octaves) + 0.5)


def draw_concurrency(
    most: Sequence[tuple[int, int]], held: Sequence[tuple[int, int]], worst: Point, typical: Point, wanted: Point
) -> Iterator[str]:
    """Draw the curve of what vLLM reserves for a request at most, and that of what it holds once it decodes.

    Args:
        most, held: how many requests fit at each of :data:`LENGTHS`, by the one measure and by the other.
        worst: the point that vLLM logs.
        typical: how many requests of a typical length fit.
        wanted: how many of them there are.
    """
    yield text("Requests at once, by the tokens of each", _LEFT, 14, "start", bold=True)
    one = place(16, (1, 1))[1]
    yield f'<rect x="{_LEFT}" y="{one}" width="{_RIGHT - _LEFT}" height="{_BOTTOM - one}" fill="#f4f4f4"/>'
    yield hatch(_LEFT, one, _RIGHT - _LEFT, _BOTTOM - one, 6, "#aaa")
    grid = "".join(f"M{_LEFT},{place(16, (4**power, 1))[1]}H{_RIGHT}" for power in range(1, 9))
    grid += "".join(f"M{place(4**power, (1, 1))[0]},{_TOP}V{_BOTTOM}" for power in range(2, 9))
    yield f'<path d="{grid}" stroke="#d9d9d9" fill="none"/>'
    yield f'<path d="M{_LEFT},{one}H{_RIGHT}" stroke="#222" stroke-width="2"/>'
    for power in range(9):
        yield text(f"{4**power:,}", _LEFT - 5, place(16, (4**power, 1))[1] + 4, "end")
    for power in range(2, 9):
        yield text(f"{4**power:,}", place(4**power, (1, 1))[0], _BOTTOM + 16, "middle")
    curves = [[place(*point) for point in zip(LENGTHS, each, strict=True)] for each in (most, held)]
    yield _line(curves[1], f'stroke="{ORANGE}" stroke-width="5" stroke-opacity="0.5"')
    yield _line(curves[0], f'stroke="{BLUE}" stroke-width="2"')
    points = [(place(point.tokens, point.requests), point.label) for point in (worst, typical, wanted)]
    (x, y), (typical_x, typical_y), (wanted_x, wanted_y) = (at for at, _ in points)
    yield f'<path d="M{typical_x},{typical_y}V{wanted_y}" stroke="#222" stroke-dasharray="3 2"/>'
    yield f'<circle cx="{x}" cy="{y}" r="5" fill="{BLUE}" class="pa-filled" stroke="#555"/>'
    yield f'<path d="M{typical_x},{typical_y - 7}l7,7l-7,7l-7,-7z" fill="{ORANGE}" class="pa-filled" stroke="#555"/>'
    yield f'<path d="M{wanted_x - 6},{wanted_y}h12M{wanted_x},{wanted_y - 6}v12" stroke="#222" stroke-width="3"/>'
    taken = [(x - 8, y - 8, x + 8, y + 8) for (x, y), _ in points]
    taken += [(x - 3, y - 3, x + 3, y + 3) for curve in curves for x, y in curve]
    for (x, y), label in points:
        width = _LETTER * len(label)
        frame = _least_covered(_candidates(x, y, width), taken)
        taken.append(frame)
        yield (
            f'<rect x="{frame[0]}" y="{frame[1]}" width="{width}" height="{_HEIGHT}" fill="#fff" fill-opacity="0.8"/>'
            + text(label, frame[0] + width // 2, frame[1] + 10, "middle")
        )


def _line(curve: Sequence[Place], look: str) -> str:
    points = " ".join(f"{x},{y}" for x, y in curve)
    return f'<polyline points="{points}" fill="none" {look}/>'


def _candidates(x: int, y: int, width: int) -> list[Box]:
    """Where the label of a point can stand, the better places first; all are inside the plot."""
    found = []
    for away in (12, 26, 40):
        lefts = (x + away, x - away - width, x - width // 2, x + 4, x - width - 4)
        tops = (y - away - _HEIGHT // 2, y + away - _HEIGHT // 2)
        for left in lefts:
            for top in (y - _HEIGHT // 2, *tops) if abs(left + width // 2 - x) >= width // 2 + 8 else tops:
                left_in = min(max(left, _LEFT + 2), _RIGHT - width)
                top_in = min(max(top, _TOP), _BOTTOM - _HEIGHT)
                found.append((left_in, top_in, left_in + width, top_in + _HEIGHT))
    return found


def _least_covered(frames: Sequence[Box], taken: Sequence[Box]) -> Box:
    best, least = frames[0], -1
    for frame in frames:
        covered = sum(_overlap(frame, other) for other in taken)
        if covered == 0:
            return frame
        if least < 0 or covered < least:
            best, least = frame, covered
    return best


def _overlap(first: Box, second: Box) -> int:
    wide = min(first[2], second[2]) - max(first[0], second[0])
    high = min(first[3], second[3]) - max(first[1], second[1])
    return wide * high if wide > 0 and high > 0 else 0
