"""Put the chapters' SVG outputs into the page itself: their alt text stays, and so do the texts under the pointer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from sphinx.transforms import SphinxTransform

if TYPE_CHECKING:
    from sphinx.application import Sphinx

REFERENCE = re.compile(r'(\bid="|url\(#|href="#)')


def with_own_ids(svg: str, prefix: str) -> str:
    """Make an image's ids its own: matplotlib calls the first axes of every figure ``axes_1``."""
    return REFERENCE.sub(rf"\g<1>{prefix}-", svg)


def as_picture(svg: str, prefix: str) -> nodes.raw:
    """Wrap an image for the page; no other may have the same prefix there."""
    return nodes.raw(text=f'<div class="picture">{with_own_ids(svg, prefix)}</div>', format="html")


class InlineSvg(SphinxTransform):
    """Replace image nodes that MyST-NB made from SVG outputs, before Sphinx collects image files."""

    default_priority = 500

    def apply(self) -> None:
        """Change the document in place."""
        for number, image in enumerate(list(self.document.findall(nodes.image))):
            if getattr(image.parent, "attributes", {}).get("mime_type") == "image/svg+xml":
                svg = Path(f"{self.env.srcdir}{image['uri']}").read_text(encoding="utf-8")
                image.replace_self(as_picture(svg, f"svg{number}"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.add_transform(InlineSvg)
    return {"parallel_read_safe": True}
