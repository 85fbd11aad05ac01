"""Print the built book through Chromium: every page in the order of the table of contents, as one PDF with an outline.

python tools/book.py build/book build/pagedattention.pdf
"""

import argparse
import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urldefrag

from playwright.sync_api import Error, Page, sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, DictionaryObject, FloatObject, NameObject, NullObject

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FRONT = "book/index.html"
# Chromium's sandbox refuses to work for root, which is who a container runs as.
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
TYPESET = "() => window.MathJax?.startup?.promise?.then(() => true)"
CONTENTS = "links => links.map(link => [link.textContent.trim(), link.href])"


class BookError(Exception):
    """One sentence for the reader: why the book cannot be printed."""


def find_browser() -> str:
    """Return the path of a Chromium or Chrome on PATH."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise BookError("no Chromium or Chrome on PATH: install one (Debian, Ubuntu: sudo apt install chromium).")
    return found


def contents(page: Page, book: Path) -> list[tuple[str, str]]:
    """Return title and address of every page that the front page's navigation lists, itself included, in that order."""
    page.goto((book / FRONT).as_uri())
    listed = page.eval_on_selector_all("nav.bd-docs-nav a.reference.internal", CONTENTS)
    return [(title, urldefrag(address).url) for title, address in listed]


def printed(page: Page, address: str) -> bytes:
    """Print one page, once its formulas are set."""
    page.goto(address)
    page.evaluate(TYPESET)
    margin = dict.fromkeys(("top", "bottom"), "18mm") | dict.fromkeys(("left", "right"), "15mm")
    return page.pdf(format="A4", print_background=True, margin=margin)


def places(address: str, printed: PdfReader, start: int) -> Iterator[tuple[str, tuple[int, object]]]:
    """Name every place in one printed page of the book that a link may lead to: which sheet, and how far up on it."""
    yield address, (start, NullObject())
    for name, place in printed.named_destinations.items():
        sheet = printed.get_destination_page_number(place)
        if sheet is not None:
            yield f"{address}#{name.removeprefix('/')}", (start + sheet, FloatObject(place.top))


def turn_links_inwards(writer: PdfWriter, homes: list[str], known: dict[str, tuple[int, object]]) -> None:
    """Point links at sheets of the PDF, in place of files on the machine that printed it.

    A link within a page leads to a bare name, and several pages have a heading called "Exercises". So each link is
    looked up by its full address, for which ``homes`` says to which page a sheet belongs.
    """
    for sheet, home in zip(writer.pages, homes, strict=True):
        for annotation in sheet.get("/Annots", ArrayObject()):
            link = annotation.get_object()
            name = link.get("/Dest")
            action = link.get("/A", DictionaryObject()).get_object()
            address = f"{home}#{name.removeprefix('/')}" if isinstance(name, str) else str(action.get("/URI", ""))
            place = known.get(unquote(address), known.get(urldefrag(address).url))
            if place is not None:
                number, top = place
                link.pop("/A", None)
                target = [writer.pages[number].indirect_reference, NameObject("/XYZ"), NullObject(), top, NullObject()]
                link[NameObject("/Dest")] = ArrayObject(target)


def print_book(book: Path, target: Path) -> int:
    """Write the PDF; return its number of pages."""
    if not (book / FRONT).exists():
        raise BookError(f"{book} holds no built book: run make book first.")
    writer = PdfWriter()
    homes: list[str] = []
    known: dict[str, tuple[int, object]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        page = browser.new_page(color_scheme="light")
        listed = contents(page, book)
        for title, address in listed:
            sheets = PdfReader(io.BytesIO(printed(page, address)))
            known |= places(address, sheets, start=len(homes))
            writer.append(sheets, import_outline=False)
            writer.add_outline_item(title=title, page_number=len(homes))
            homes += [address] * len(sheets.pages)
        browser.close()
    turn_links_inwards(writer, homes, known)
    writer.add_metadata({"/Title": listed[0][0]})
    target.parent.mkdir(parents=True, exist_ok=True)
    writer.write(target)
    return len(homes)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Print the built book as one PDF.")
    parser.add_argument("book", type=Path, help="the folder into which make book built")
    parser.add_argument("target", type=Path, help="the PDF to write")
    options = parser.parse_args(arguments)
    try:
        count = print_book(options.book.resolve(), options.target)
    except BookError as error:
        print(f"pdf: {error}", file=sys.stderr)
        return 1
    except Error as error:
        print(f"pdf: Chromium failed: {error.message.splitlines()[0]}", file=sys.stderr)
        return 1
    print(f"{options.target}: {count} pages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
