"""Pictures: figures in one house style, diagrams of block tables, and widgets that redraw them.

Every picture carries a text equivalent, which is also what the notebook tests compare.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from math import ceil
from typing import Any

MIME = "application/vnd.pagedattn-lab.player+json"  # a recording, for the scripts that draw it anew
# Okabe and Ito 2008, "Color universal design": distinguishable under the common kinds of colour blindness.
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#767676"
)  # fmt: skip
LEAST_LETTERS = 10  # pixels


@dataclass(frozen=True)
class Picture:
    """An SVG image with its text equivalent, as a notebook displays it.

    Args:
        svg: an ``<svg>`` element.
        alt: what the image shows, in words that can stand in for it.
        caption: what a player says above it: words that the image does not hold itself. By default the alt text.

    Raises:
        ValueError: no alt text, or no SVG.

    Example:
        >>> Picture("<svg></svg>", alt="nothing at all").svg
        '<svg role="img" aria-label="nothing at all" style="max-width:100%;height:auto"></svg>'
    """

    svg: str
    alt: str
    caption: str | None = None

    def __post_init__(self) -> None:
        """Write the alt text into the image itself, where screen readers look for it, and let it shrink to fit.

        It shrinks as long as its letters can be read; a narrower screen scrolls it.
        """
        if self.caption is None:
            object.__setattr__(self, "caption", self.alt)
        if not self.alt.strip():
            raise ValueError("a picture needs alt text: say in a sentence what it shows")
        if not self.svg.startswith("<svg"):
            raise ValueError(f"a picture must be an <svg> element, not {self.svg[:30]!r}")
        least = _least_width(self.svg)
        widest = f"max(100%,{least}px)" if least else "100%"
        opening = f'<svg role="img" aria-label="{escape(self.alt)}" style="max-width:{widest};height:auto"'
        if not self.svg.startswith(opening):  # a picture made from a picture's own SVG has it already
            object.__setattr__(self, "svg", opening + self.svg.removeprefix("<svg"))

    def __repr__(self) -> str:
        return self.alt

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"image/svg+xml": self.svg, "text/plain": self.alt}


def _least_width(svg: str) -> int:
    """The width in pixels at which an image's smallest letters are still ``LEAST_LETTERS`` high; 0 if it has none."""
    tag = svg[: svg.index(">")]
    size = re.search(r' width="([\d.]+)(pt)?"', tag)
    box = re.search(r' viewBox="\S+ \S+ ([\d.]+) ', tag)
    letters = [float(number) for number in re.findall(r'font-size(?:="|: )([\d.]+)', svg)]
    if not (size and box and letters):
        return 0
    natural = float(size[1]) * (4 / 3 if size[2] else 1)
    return ceil(min(natural, float(box[1]) * LEAST_LETTERS / min(letters)))
