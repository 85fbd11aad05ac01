"""Printing the book: every page once and in order, with an outline, and links that stay inside the file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pypdf import PdfReader
from pypdf.generic import IndirectObject

from tools import book

needs_browser = pytest.mark.skipif(
    not any(map(shutil.which, book.BROWSERS)), reason="no Chromium or Chrome on PATH to print with"
)
NAVIGATION = (
    '<nav class="bd-docs-nav"><a class="reference internal" href="#">Front</a>'
    '<a class="reference internal" href="../chapters/b.html">Second</a>'
    '<a class="reference internal" href="a.html">Third</a></nav>'
)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Write a book of three pages, the second of them long."""
    for folder in ("book", "chapters"):
        (tmp_path / folder).mkdir()
    (tmp_path / "book" / "index.html").write_text(f"{NAVIGATION}<h1>alpha</h1><a href='a.html#x'>see gamma</a>")
    (tmp_path / "chapters" / "b.html").write_text(
        "<a href='#x'>down</a> beta <p style='break-before:page' id='x'>more</p>"
    )
    (tmp_path / "book" / "a.html").write_text("<h1 id='x'>gamma</h1><a href='https://example.org/'>out</a>")
    return tmp_path


@needs_browser
def test_prints_every_page_in_order(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches pages lost or out of order, an outline that points elsewhere, and links to files on this machine."""
    target = site / "out" / "book.pdf"
    assert book.main([str(site), str(target)]) == 0
    assert capsys.readouterr().out == f"{target}: 4 pages\n"
    printed = PdfReader(target)
    for word, page in zip(("alpha", "beta", "more", "gamma"), printed.pages, strict=True):
        assert word in page.extract_text()
    outline = [(item.title, printed.get_destination_page_number(item)) for item in printed.outline]
    assert outline == [("Front", 0), ("Second", 1), ("Third", 3)]
    places = [target_of(link, printed) for page in printed.pages for link in page.get("/Annots", [])]
    assert places == [0, 1, 3, 3, 2, "https://example.org/"]


def target_of(annotation: IndirectObject, printed: PdfReader) -> int | str:
    """Return the page to which a link in a PDF leads, or the address."""
    link = annotation.get_object()
    if "/A" in link:
        return link["/A"]["/URI"]
    return printed.get_page_number(link["/Dest"][0].get_object())


def test_a_book_that_was_not_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a stack trace in place of the sentence that says what to run first."""
    assert book.main([str(tmp_path), str(tmp_path / "book.pdf")]) == 1
    assert capsys.readouterr().err == f"pdf: {tmp_path} holds no built book: run make book first.\n"


def test_no_browser(site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a stack trace in place of the sentence that says what to install."""
    monkeypatch.setenv("PATH", str(site))
    assert book.main([str(site), str(site / "book.pdf")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pdf: no Chromium or Chrome on PATH")
