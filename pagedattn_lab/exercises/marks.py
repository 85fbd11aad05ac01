"""What drawings of touched memory are made of: cells with marks, words, and the numbers of what looks the same."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape

from pagedattn_lab.viz import SKY, VERMILION, Picture

WIDTH = 400
"""Pixels: two of them stand side by side in a notebook, and one fits a phone."""
LOOKS = {  # of a cell: its mark, what it means, and how it is drawn
    "loaded": ("✓", "needed and loaded", f'fill="{SKY}" stroke="#555"'),
    "missing": ("○", "needed, not loaded", 'fill="#fff" stroke="#222" stroke-width="2" stroke-dasharray="4 3"'),
    "without need": ("✗", "loaded, not needed", f'fill="{VERMILION}" stroke="#222" stroke-width="2"'),
    "outside": ("!", "out of bounds", f'fill="#fff" stroke="{VERMILION}" stroke-width="3"'),
    "again": ("↻", "loaded more than once", f'fill="#fff" stroke="{VERMILION}" stroke-width="3"'),
    "idle": ("", "neither", 'fill="#f4f4f4" stroke="#aaa"'),
}
PAD, CELL, GAP, LABEL = 10, 22, 12, 98
MOST_NUMBERS = 6
"""More of them in one place would not be read."""


def picture(parts: Sequence[str], height: float, alt: str) -> Picture:
    """Put what has been drawn on a white ground."""
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif"><rect width="{WIDTH}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>'
    )
    return Picture(svg, alt)


def text(
    words: str, x: float, y: float, size: int = 12, anchor: str = "start", bold: bool = False, ink: str = "#222"
) -> list[str]:
    """Words at a place."""
    weight = ' font-weight="bold"' if bold else ""
    return [
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}"{weight} fill="{ink}">{escape(words)}</text>'
    ]


def cell(x: float, y: float, width: float, look: str, mark: str, above: str = "", size: int = 12) -> list[str]:
    """A cell with a mark; a value above the mark makes it higher."""
    height = CELL + 14 if above else CELL
    drawn = [f'<rect x="{x}" y="{y}" width="{width}" height="{height}" {LOOKS[look][2]}/>']
    ink = "#000" if look in ("loaded", "without need") else "#222"  # on a colour it stays dark on a dark page
    if above:
        drawn += text(above, x + width / 2, y + 14, anchor="middle", ink=ink)
    return drawn + text(mark, x + width / 2, y + height - 7, size, anchor="middle", bold=True, ink=ink)


def named(noun: str, numbers: Collection[int]) -> str:
    """Write numbers in order with what they count, three or more in a row as a range, many of them cut."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    parts = [
        part for run in found for part in ([f"{run[0]}–{run[-1]}"] if len(run) > 2 else [str(number) for number in run])
    ]
    words = noun if len(numbers) == 1 else f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{words} {', '.join(parts[:MOST_NUMBERS])}{' and more' if len(parts) > MOST_NUMBERS else ''}"
