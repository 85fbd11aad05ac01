"""Pictures: figures in one house style, diagrams of block tables, and widgets that redraw them.

Every picture carries a text equivalent, which is also what the notebook tests compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

MIME = "application/vnd.pagedattn-lab.player+json"  # a recording, for the scripts that draw it anew
# Okabe and Ito 2008, "Color universal design": distinguishable under the common kinds of colour blindness.
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#767676"
)  # fmt: skip


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
        """Write the alt text into the image itself, where screen readers look for it, and let it shrink to fit."""
        if self.caption is None:
            object.__setattr__(self, "caption", self.alt)
        if not self.alt.strip():
            raise ValueError("a picture needs alt text: say in a sentence what it shows")
        if not self.svg.startswith("<svg"):
            raise ValueError(f"a picture must be an <svg> element, not {self.svg[:30]!r}")
        opening = f'<svg role="img" aria-label="{escape(self.alt)}" style="max-width:100%;height:auto"'
        if not self.svg.startswith(opening):  # a picture made from a picture's own SVG has it already
            object.__setattr__(self, "svg", opening + self.svg.removeprefix("<svg"))

    def __repr__(self) -> str:
        return self.alt

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"image/svg+xml": self.svg, "text/plain": self.alt}
