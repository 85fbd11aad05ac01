"""The glossary in the built book: its terms in the general index, letters to jump to, and definitions for cards.

The index lists where a term is defined, under each of its names, and every place that links to it.
"""

from __future__ import annotations

import html
import json
import re
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PAGE = "book/glossary"
ALSO = re.compile(r"Also: (.+?)\.")


def anchor(heading: str) -> str:
    """Return the fragment under which GitHub, and MyST after it, link to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def index_entry(term: str, target: str, definition: bool) -> addnodes.index:
    """Make the node that lists ``target`` under ``term``; a definition is listed first."""
    return addnodes.index(entries=[("single", term, target, "main" if definition else "", None)])


def entries_of(document: nodes.document) -> list[nodes.section]:
    """Return the glossary's entries, one section each."""
    return [section for section in document.findall(nodes.section) if section.parent is not document]


def letters(sections: list[nodes.section]) -> str:
    """Make a bar of letters, each a link to its first entry."""
    groups = groupby(sections, key=lambda section: section[0].astext()[0].upper())
    links = [f'<a href="#{next(group)["ids"][0]}">{html.escape(letter)}</a>' for letter, group in groups]
    return f'<nav class="letters" aria-label="Letters">{" ".join(links)}</nav>'


def write_terms(app: Sphinx, exception: Exception | None) -> None:
    """Write each entry's name and definition, for ``glossary_card.js``: a page opened as a file can fetch no other."""
    if exception or app.builder.format != "html":
        return
    terms = {}
    for section in entries_of(app.env.get_doctree(PAGE)):
        *definition, _ = (paragraph.astext() for paragraph in section.findall(nodes.paragraph))
        terms[section["ids"][0]] = section[0].astext(), " ".join(" ".join(definition).split())
    script = f"window.glossaryTerms = {json.dumps(terms, ensure_ascii=False)};\n"
    (Path(app.outdir) / "_static" / "glossary_terms.js").write_text(script, encoding="utf-8")


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
        sections = entries_of(self.document)
        for section in sections:
            other_names = ALSO.search(section.astext())
            for name in (section[0].astext(), *(other_names[1].split(", ") if other_names else ())):
                section.insert(1, index_entry(name, section["ids"][0], definition=True))
        first = sections[0]
        first.parent.insert(first.parent.index(first), nodes.raw(text=letters(sections), format="html"))

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
    app.connect("build-finished", write_terms)
    return {"parallel_read_safe": True}
