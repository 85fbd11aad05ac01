"""Put the glossary's terms into the general index: where each is defined, and every place that links to it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PAGE = "book/glossary"


def anchor(heading: str) -> str:
    """Return the fragment under which GitHub, and MyST after it, link to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def index_entry(term: str, target: str, definition: bool) -> addnodes.index:
    """Make the node that lists ``target`` under ``term``; a definition is listed first."""
    return addnodes.index(entries=[("single", term, target, "main" if definition else "", None)])


class IndexGlossary(SphinxTransform):
    """Add index entries to the glossary's headings, and to links that lead to them."""

    default_priority = 500

    def apply(self) -> None:
        """Change the document in place."""
        if self.env.docname == PAGE:
            self.mark_definitions()
        else:
            self.mark_uses()

    def mark_definitions(self) -> None:
        """Index each term's section, and drop the extra anchors, which JupyterLab needs for capitals."""
        for raw in list(self.document.findall(nodes.raw)):
            if raw.astext().startswith(("<span id=", "</span>")):
                raw.parent.remove(raw)
        for section in self.document.findall(nodes.section):
            if section.parent is not self.document:
                section.insert(1, index_entry(section[0].astext(), section["ids"][0], definition=True))

    def mark_uses(self) -> None:
        """Index each link into the glossary at the place where it stands."""
        text = (Path(self.env.srcdir) / f"{PAGE}.md").read_text(encoding="utf-8")
        terms = {anchor(heading): heading for heading in re.findall(r"^## (.+)$", text, flags=re.MULTILINE)}
        for number, link in enumerate(list(self.document.findall(addnodes.pending_xref))):
            if link.get("reftarget") == PAGE and link.get("reftargetid") in terms:
                target = f"term-{number}"
                entry = index_entry(terms[link["reftargetid"]], target, definition=False)
                place = link.parent.index(link)
                link.parent.insert(place, [entry, nodes.target("", "", ids=[target])])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.add_transform(IndexGlossary)
    return {"parallel_read_safe": True}
