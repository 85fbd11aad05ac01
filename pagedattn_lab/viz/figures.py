"""Matplotlib in the book's house style: deterministic SVG, colours that colour-blind readers can tell apart.

Importing this module sets matplotlib's defaults to the style. Figures are made without pyplot, so a notebook shows a
figure exactly once: where :func:`show` says so.
"""

from __future__ import annotations

import hashlib
import io
import re
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from pagedattn_lab.viz import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, Picture

__all__ = [
    "ALPACA", "BLUE", "GREEN", "GREY", "ON_COLOUR", "ORANGE", "PURPLE", "SHAREGPT", "SKY", "VERMILION", "show",
    "subplots",
]  # fmt: skip

SHAREGPT, ALPACA = GREEN, PURPLE
"""One meaning a colour, in all figures of the book:

====================  ==================================================================
blue                  what holds tokens, is right, or goes the way that the book goes
vermilion             what is lost or wrong, or goes another way
orange                keys and values, and the room that is kept for them
sky                   weights, and what was there already
green, purple         the two loads that come back: chats like ShareGPT's, short instructions like Alpaca's
grey                  limits, and what others have reported
====================  ==================================================================

A board gives its requests colours of its own (:data:`pagedattn_lab.viz.looks.COLOURS`): there a colour is a name.
"""

ON_COLOUR = "#111"
"""Dark letters on a full colour. Black ones turn light where the page is dark (``pictures.css``)."""

STYLE: dict[str, Any] = {
    "axes.prop_cycle": matplotlib.cycler(color=[BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.figsize": (5.8, 3.4),  # inches: narrow, so that letters stay legible when a phone shrinks it
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "font.size": 10.5,
    "savefig.facecolor": "white",
    "svg.fonttype": "none",  # letters stay letters: searchable, small, and read aloud
    "svg.hashsalt": "pagedattn_lab",  # ids that do not change from run to run
}

matplotlib.rcParams.update(STYLE)


def subplots(rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Make a figure and its axes in the house style; options as for ``Figure`` (``figsize``) and ``subplots``.

    Example:
        >>> figure, axes = subplots(figsize=(4, 2))
        >>> _ = axes.set_title("Waste halves with every halving of the block")
        >>> show(figure, alt="An empty pair of axes.")
        An empty pair of axes.
    """
    size = {"figsize": options.pop("figsize")} if "figsize" in options else {}
    figure = Figure(layout="constrained", **size)
    return figure, figure.subplots(rows, columns, **options)


def show(figure: Figure, alt: str) -> Picture:
    """Render a figure as SVG with its text equivalent.

    The title, where there is one for the whole figure, gets the whole width and as many lines as it needs.

    Raises:
        ValueError: no alt text; no title, which states what the figure shows; or a legend, which makes readers match
            colours where a label beside each line or bar would tell them.
    """
    titles = [title for axes in figure.axes if (title := axes.get_title(loc="left"))]
    if not (figure.get_suptitle() or titles):
        raise ValueError("the figure has no title: state its finding in one")
    if any(axes.get_legend() for axes in figure.axes):
        raise ValueError("the figure has a legend: write each label beside what it names instead")
    if figure.get_suptitle() or len(titles) == 1:
        figure.suptitle(figure.get_suptitle() or titles[0], x=0.01, ha="left", wrap=True)
        if len(titles) == 1:
            next(axes for axes in figure.axes if axes.get_title(loc="left")).set_title("")
    title = figure.get_suptitle() or titles[0]
    caption = alt.removeprefix(title).lstrip(" .:;,") if alt.startswith(title) else None
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return Picture(_name_by_content(text[text.index("<svg") :].strip()), alt, caption)


def _name_by_content(svg: str) -> str:
    """Name clip paths, markers and hatches by what the whole figure draws.

    Matplotlib's own names hash coordinates to the last bit, which differs between processors; what it draws is rounded.
    """
    names = list(dict.fromkeys(re.findall(r'\bid="([a-z][0-9a-f]{10})"', svg)))
    for number, name in enumerate(names):
        svg = svg.replace(name, f"\0{number}\0")
    digest = hashlib.sha256(svg.encode()).hexdigest()[:8]
    return re.sub(r"\0(\d+)\0", rf"part-{digest}-\1", svg)
