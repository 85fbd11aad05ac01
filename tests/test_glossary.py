"""Chapters link each term of the glossary once. That it is where the book first uses it, test_book.py checks."""

from __future__ import annotations

import re

from tests.helpers.chapters import CHAPTERS
from tools import notebooks

LINK = re.compile(r"\]\(\.\./book/glossary\.md#([\w-]+)\)")


def links() -> dict[str, list[str]]:
    """Return the cells that link to the glossary, by anchor."""
    found: dict[str, list[str]] = {}
    for path in CHAPTERS:
        for cell in notebooks.read(path).cells:
            if cell.cell_type == "markdown":
                for target in LINK.findall(cell.source):
                    found.setdefault(target, []).append(f"{path.name}, cell {cell.id}")
    return found


def test_a_term_is_linked_once() -> None:
    """Catches a text that links a term again and again, or links so little that the glossary is out of sight."""
    assert {target: cells for target, cells in links().items() if len(cells) > 1} == {}
    assert len(links()) > 40


def test_headings_hold_no_links() -> None:
    """Catches a link in a heading, which would stand in every table of contents too."""
    for path in CHAPTERS:
        for cell in notebooks.read(path).cells:
            if cell.cell_type == "markdown":
                assert not re.search(r"^#.*glossary\.md#", cell.source, re.MULTILINE), f"{path.name}, cell {cell.id}"
