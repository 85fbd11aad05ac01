"""Print the built book through Chromium: every page in the order of the table of contents, as one PDF with an outline.

python tools/book.py build/book build/pagedattention.pdf
"""

import argparse
import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urldefrag

from playwright.sync_api import Error, Page, sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, DictionaryObject, NameObject

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


def printed(page: Page, addresses: list[str]) -> Iterator[bytes]:
    """Print pages one after another, each once its formulas are set."""
    for address in addresses:
        page.goto(address)
        page.evaluate(TYPESET)
        margin = dict.fromkeys(("top", "bottom"), "18mm") | dict.fromkeys(("left", "right"), "15mm")
        yield page.pdf(format="A4", print_background=True, margin=margin)


def turn_links_inwards(writer: PdfWriter, starts: dict[str, int]) -> None:
    """Point links between pages of the book at pages of the PDF, in place of files on the machine that printed it."""
    for sheet in writer.pages:
        for annotation in sheet.get("/Annots", ArrayObject()):
            link = annotation.get_object()
            action = link.get("/A", DictionaryObject()).get_object()
            start = starts.get(urldefrag(str(action.get("/URI", ""))).url)
            if start is not None:
                del link["/A"]
                target = writer.pages[start].indirect_reference
                link[NameObject("/Dest")] = ArrayObject([target, NameObject("/Fit")])


def print_book(book: Path, target: Path) -> int:
    """Write the PDF; return its number of pages."""
    if not (book / FRONT).exists():
        raise BookError(f"{book} holds no built book: run make book first.")
    writer = PdfWriter()
    starts: dict[str, int] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        page = browser.new_page(color_scheme="light")
        listed = contents(page, book)
        for (title, address), sheets in zip(listed, printed(page, [address for _, address in listed]), strict=True):
            starts[address] = len(writer.pages)
            writer.append(PdfReader(io.BytesIO(sheets)), import_outline=False)
            writer.add_outline_item(title=title, page_number=starts[address])
        browser.close()
    turn_links_inwards(writer, starts)
    writer.add_metadata({"/Title": listed[0][0]})
    target.parent.mkdir(parents=True, exist_ok=True)
    writer.write(target)
    return len(writer.pages)


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
