"""The map of the chapters in the built book: its boxes are links, and say how long a chapter takes to read."""

from __future__ import annotations

import html
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from sphinx.transforms import SphinxTransform

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PAGE = "book/map"
BOX = re.compile(r'(<rect x="[^>]+/>)\n(<text x="(\d+)" y="(\d+)" [^>]*><tspan [^>]*>(\d\d)</tspan>[^<]*</text>)')
WORDS_PER_MINUTE = 200
KINDS = ("markdown", "code")
LINES_PER_MINUTE = 20  # of code


def minutes(notebook: Path) -> int:
    """Return how long a chapter takes to read, to 5 minutes: 200 words of text or 20 lines of code in a minute."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = {kind: "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == kind) for kind in KINDS}
    words = len(sources["markdown"].split())
    lines = sum(1 for line in sources["code"].splitlines() if line.strip())
    return 5 * math.ceil((words / WORDS_PER_MINUTE + lines / LINES_PER_MINUTE) / 5)


def with_links(svg: str, chapters: dict[str, Path]) -> str:
    """Wrap the boxes of written chapters into links, each with a second line for its minutes.

    Args:
        svg: the picture; a box is a rectangle and a text that begins with the chapter's number.
        chapters: the notebooks by number.
    """

    def link(box: re.Match[str]) -> str:
        rectangle, text, x, y, number = box.groups()
        path = chapters.get(number)
        if path is None:
            return box[0]
        title = text.replace(f'y="{y}"', f'y="{int(y) - 8}"')
        below = f'<text class="minutes" x="{x}" y="{int(y) + 9}" text-anchor="middle" font-size="11">'
        address = f"../chapters/{path.stem}.html"
        return (
            f'<a href="{address}" data-chapter="{path.stem}">{rectangle}\n{title}\n'
            f"{below}{minutes(path)} minutes</text></a>"
        )

    return BOX.sub(link, svg)


class LinkMap(SphinxTransform):
    """Replace the picture on the map's page, which elsewhere stays an image."""

    default_priority = 500

    def apply(self) -> None:
        """Change the document in place."""
        if self.env.docname != PAGE:
            return
        root = Path(self.env.srcdir)
        chapters = {path.stem[:2]: path for path in (root / "chapters").glob("*.ipynb")}
        for image in list(self.document.findall(nodes.image)):
            svg = with_links((root / "book" / image["uri"]).read_text(encoding="utf-8"), chapters)
            label = html.escape(image["alt"])
            svg = svg.replace("<svg ", f'<svg role="group" aria-label="{label}" ', 1)
            image.replace_self(nodes.raw(text=f'<div class="map">{svg}</div>', format="html"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.add_transform(LinkMap)
    app.connect("env-get-outdated", lambda *_: [PAGE])  # what it shows comes from the chapters
    return {"parallel_read_safe": True}
