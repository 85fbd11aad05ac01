"""How requests look on a board: colours, stripes, letters. The same in ``looks.js``, string for string."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pagedattn_lab.viz import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION

COLOURS = (
    (BLUE, "#fff"), (ORANGE, "#000"), (GREEN, "#000"), (PURPLE, "#000"), (SKY, "#000"), (VERMILION, "#000"),
    ("#F0E442", "#000"),
    ("#00415F", "#fff"), ("#774D00", "#fff"), ("#00543D", "#fff"), ("#7D2458", "#fff"), ("#3F4757", "#fff"),
    ("#8C2200", "#fff"), ("#5A5600", "#fff"),
    ("#B4D9F0", "#000"), ("#F9DEA4", "#000"), ("#AFE0CF", "#000"), ("#F2CFE2", "#000"), ("#D3CBF2", "#000"),
    ("#F8C5A8", "#000"), ("#F6F3B8", "#000"),
)  # fmt: skip
"""A request's colour and that of letters on it: every pair has a contrast of at least 4.5 to 1 (WCAG 2.1, 1.4.3). Full
colours come first, then dark shades, then tints; whoever comes later has lines across the colour, one a round."""

INK = 'class="pa-ink" fill="#222"'
_SLANT = 3

Look = tuple[int, str]
"""A request's colour and its mark."""


def paint(looks: Sequence[Look], x: int, y: int, width: int, height: int, title: str = "") -> str:
    """Paint a box in the colours of all whose tokens lie in it: a stripe each, from left to right.

    Example:
        >>> paint([(0, "A")], 0, 0, 18, 18)
        '<rect x="0" y="0" width="18" height="18" class="pa-filled" fill="#0072B2" stroke="#555"></rect>'
        >>> paint([(0, "A"), (1, "B")], 0, 0, 18, 18).count("<path")
        1
    """
    fill = COLOURS[looks[0][0] % len(COLOURS)][0]
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" class="pa-filled" fill="{fill}" stroke="#555">'
        f"{title}</rect>"
    ]
    stripes = looks[: width // 3]  # a stripe can be seen from 3 pixels on
    slant = min(_SLANT, width // (3 * len(stripes)))
    for index, (colour, _) in enumerate(stripes):
        left = x + width * index // len(stripes)
        if index:
            fill = COLOURS[colour % len(COLOURS)][0]
            parts.append(
                f'<path d="M{left + slant},{y + 1}H{x + width - 1}V{y + height - 1}H{left - slant}z" '
                f'class="pa-stripe" fill="{fill}" pointer-events="none"/>'
            )
        right = x + width * (index + 1) // len(stripes)
        parts += [
            f'<path d="M{left},{y + 2 * line}H{right}" stroke="{COLOURS[colour % len(COLOURS)][1]}" '
            f'pointer-events="none"/>'
            for line in range(1, min(colour // len(COLOURS), height // 2 - 1) + 1)
        ]
    return "".join(parts)


def label(text: str, looks: Sequence[Look], x: int, y: int, size: int) -> str:
    """Write on what :func:`paint` has painted: in the one colour's ink, or black on a white edge across stripes."""
    if len(looks) == 1:
        return text_at(escape(text), x, y, "middle", "pa-mark", COLOURS[looks[0][0] % len(COLOURS)][1], size)
    outline = ' stroke="#fff" stroke-width="3" paint-order="stroke" font-weight="bold"'
    return text_at(escape(text), x, y, "middle", "pa-mark", "#000", size, outline)


def text_at(body: str, x: int, y: int, anchor: str, kind: str, fill: str, size: int, more: str = "") -> str:
    """Write a text at a place; ``body`` is markup, ``kind`` its class."""
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" class="{kind}" fill="{fill}"{more} '
        f'pointer-events="none">{body}</text>'
    )


def heading(text: str, x: int, y: int) -> str:
    """Write what a part of the board is."""
    return f'<text x="{x}" y="{y}" font-size="13" font-weight="bold" {INK}>{text}</text>'


def halo(width: int, height: int, changed: bool) -> str:
    """The outline of a group: drawn for what an event has changed, and by the stylesheet for what is pointed at."""
    stroke = "#222" if changed else "none"
    kind = "pa-halo pa-changed" if changed else "pa-halo"
    return (
        f'<rect class="{kind}" x="-4" y="-4" width="{width + 8}" height="{height + 8}" rx="4" fill="none" '
        f'stroke="{stroke}" stroke-width="2" pointer-events="all"/>'
    )


def shorten(text: str, letters: int) -> str:
    """Cut a text to so many letters, the last of them an ellipsis, if it has more."""
    return text if len(text) <= letters else text[: letters - 1] + "…"
