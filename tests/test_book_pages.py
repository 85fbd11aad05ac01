"""The built book: its pages lead nowhere that does not exist and ask no other host for anything."""

from __future__ import annotations

import json
import pkgutil
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup, Tag

import pagedattn_lab
from tests.helpers.chapters import CHAPTERS, REPOSITORY_URL
from tools import notebooks

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
LOADING = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}
STYLE_ADDRESS = re.compile(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""")


def pages(site: Path) -> dict[Path, BeautifulSoup]:
    """Parse every page, leaving out the theme's templates."""
    found = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    return {path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in found}


@pytest.fixture(scope="module")
def parsed(site: Path) -> dict[Path, BeautifulSoup]:
    """Parse the built book once for all tests."""
    return pages(site)


def loads_from_elsewhere(page: BeautifulSoup) -> list[str]:
    """List what a page asks another host for as soon as it opens."""
    addresses = [tag.get(LOADING[tag.name], "") for tag in page.find_all(list(LOADING))]
    addresses += [part.split()[0] for tag in page.find_all(srcset=True) for part in tag["srcset"].split(",")]
    addresses += [tag["href"] for svg in page.find_all("svg") for tag in svg.find_all(["image", "use"], href=True)]
    styles = [tag.get_text() for tag in page.find_all("style")] + [tag["style"] for tag in page.find_all(style=True)]
    addresses += [address for style in styles for address in style_addresses(style)]
    return [address for address in addresses if urlsplit(address).netloc]


def style_addresses(style: str) -> list[str]:
    """List the addresses that a style sheet loads."""
    return [first or second for first, second in STYLE_ADDRESS.findall(style)]


def test_no_page_asks_another_host(site: Path, parsed: dict[Path, BeautifulSoup]) -> None:
    """Catches a script, style, font or picture from a content delivery network."""
    assert {str(path): found for path, page in parsed.items() if (found := loads_from_elsewhere(page))} == {}
    sheets = list(site.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        found = [address for address in style_addresses(sheet.read_text(encoding="utf-8")) if urlsplit(address).netloc]
        assert found == [], sheet


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://cdn.jsdelivr.net/npm/mathjax@4/tex-mml-chtml.js"></script>',
        '<script src="//cdnjs.cloudflare.com/ajax/libs/require.js/2.3.4/require.min.js"></script>',
        '<link rel="stylesheet" href="https://fonts.googleapis.com/css2?family=Inter">',
        '<img src="http://example.org/a.png" alt="a">',
        '<style>@import "https://example.org/a.css";</style>',
        '<p style="background: url(https://example.org/a.png)"></p>',
    ],
)
def test_another_host_is_noticed(tag: str) -> None:
    """Catches a search for other hosts that finds none whatever the page holds."""
    page = BeautifulSoup(f'<html><head><link href="_static/a.css">{tag}</head></html>', "html.parser")
    assert len(loads_from_elsewhere(page)) == 1


def broken_links(parsed: dict[Path, BeautifulSoup]) -> list[str]:
    """List links and sources inside the book that lead to no file, or to no place in the page."""
    ids = {path: {tag["id"] for tag in page.find_all(id=True)} for path, page in parsed.items()}
    broken = []
    for path, page in parsed.items():
        for tag in page.find_all(lambda tag: tag.has_attr("href") or tag.has_attr("src")):
            address = tag.get("href", tag.get("src"))
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or inside_svg(tag):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            fragment = unquote(parts.fragment)
            absolute = parts.path.startswith("/")  # would not work from a file, or under a project's address
            if absolute or not target.is_file() or (fragment and fragment not in ids.get(target, {fragment})):
                broken.append(f"{path.name}: {address}")
    return broken


def inside_svg(tag: Tag) -> bool:
    """Tell whether a tag belongs to a drawing."""
    return tag.find_parent("svg") is not None


def test_links_resolve(parsed: dict[Path, BeautifulSoup]) -> None:
    """Catches a link to a page, file or heading that the book does not have."""
    assert broken_links(parsed) == []


def test_broken_links_are_noticed(tmp_path: Path) -> None:
    """Catches a search for broken links that finds none whatever the pages hold."""
    (tmp_path / "b.html").write_text('<h1 id="here">b</h1>')
    links = ["b.html", "b.html#here", "#own", "b.html#gone", "c.html", "/b.html", "https://example.org/x"]
    (tmp_path / "a.html").write_text('<p id="own"></p>' + "".join(f'<a href="{link}">x</a>' for link in links))
    assert broken_links(pages(tmp_path)) == ["a.html: b.html#gone", "a.html: c.html", "a.html: /b.html"]


def test_root_leads_to_the_front_page(site: Path, parsed: dict[Path, BeautifulSoup]) -> None:
    """Catches a site whose bare address shows nothing."""
    root = parsed[site / "index.html"]
    assert root.find("meta", attrs={"http-equiv": "refresh"})["content"] == "0; url=book/index.html"
    assert root.find("a")["href"] == "book/index.html"


def test_contents_list_every_page(site: Path, parsed: dict[Path, BeautifulSoup]) -> None:
    """Catches a chapter or page that a reader could not find from the front page."""
    front = site / "book" / "index.html"
    listed = {(front.parent / link["href"]).resolve() for link in parsed[front].select(".toctree-wrapper a")}
    written = {site / "chapters" / f"{path.stem}.html" for path in CHAPTERS}
    reference = {path for path in parsed if path.parent.name == "book"} - {front}
    assert listed == written | reference | {site / "genindex.html"}
    library = site / "book" / "api.html"
    listed = {(library.parent / link["href"]).resolve() for link in parsed[library].select("article table a")}
    assert listed == {path for path in parsed if path.parent.name == "api"}


def test_every_page_has_one_title(parsed: dict[Path, BeautifulSoup]) -> None:
    """Catches a page without a first-level heading, or with several."""
    for path, page in parsed.items():
        titles = [title for title in page.find_all("h1") if not title.find_parent(class_="onlyprint")]
        assert len(titles) == 1, path.name


def test_pictures_have_texts(parsed: dict[Path, BeautifulSoup]) -> None:
    """Catches a picture that a screen reader passes over, and a chapter that lost a picture or shows it as a file."""
    for path, page in parsed.items():
        assert [str(image) for image in page.find_all("img") if not image.get("alt", "").strip()] == [], path.name
        drawings = [svg for svg in page.find_all("svg") if not inside_svg(svg)]
        silent = [svg for svg in drawings if not svg.get("aria-label", "").strip() and svg.get("aria-hidden") != "true"]
        assert [str(svg)[:200] for svg in silent] == [], path.name
        if path.parent.name == "chapters":
            source = notebooks.read(ROOT / "chapters" / f"{path.stem}.ipynb")
            outputs = [output.get("data", {}) for cell in notebooks.code_cells(source) for output in cell.outputs]
            alone = sum("image/svg+xml" in data for data in outputs)
            in_answers = sum(data.get("text/markdown", "").count("data:image/svg+xml") for data in outputs)
            assert len(drawings) == alone + in_answers, path.name


def test_drawings_do_not_share_parts(parsed: dict[Path, BeautifulSoup]) -> None:
    """Catches figures whose parts have the same names, so that one is drawn with another's shapes or clipping."""
    for path, page in parsed.items():
        stills = [svg for svg in page.find_all("svg") if not svg.find_parent(class_="pa-mount")]
        names = [tag["id"] for svg in stills for tag in svg.find_all(id=True)]
        assert len(set(names)) == len(names), path.name
        parts: dict[str, str] = {}
        for reference in set(re.findall(r'(?:url\(|href=")#([^)"]+)', "".join(map(str, page.find_all("svg"))))):
            for tag in page.find_all(id=reference):
                assert parts.setdefault(reference, str(tag)) == str(tag), f"{path.name}: {reference}"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapters_can_be_taken_away(site: Path, parsed: dict[Path, BeautifulSoup], chapter: Path) -> None:
    """Catches a download button that gives something else, and a Colab button that differs from the chapter's badge."""
    path = site / "chapters" / f"{chapter.stem}.html"
    buttons = parsed[path].select_one(".article-header-buttons")
    addresses = [link["href"] for link in buttons.find_all("a")]
    (download,) = [address for address in addresses if not urlsplit(address).netloc]
    assert (path.parent / download).read_bytes() == chapter.read_bytes()
    where = REPOSITORY_URL.removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{where}/blob/main/chapters/{chapter.name}"
    assert colab in addresses
    assert f'href="{colab}"' in str(parsed[path].article)


def test_markdown_outputs_are_rendered(site: Path, parsed: dict[Path, BeautifulSoup]) -> None:
    """Catches tables in outputs that arrive as rows of bars."""
    outputs = parsed[site / "chapters" / "00_start_here.html"].select(".cell_output")
    assert any(output.table for output in outputs)
    assert [output.get_text() for output in outputs if "|---|" in output.get_text()] == []


def test_the_library_is_described(site: Path, parsed: dict[Path, BeautifulSoup]) -> None:
    """Catches a public module that is left out, stands twice or on a wrong page, and a value from the machine."""
    found = pkgutil.walk_packages(pagedattn_lab.__path__, "pagedattn_lab.")
    modules = ["pagedattn_lab", *(info.name for info in found if "._" not in info.name)]
    packages = {info.name for info in pkgutil.iter_modules(pagedattn_lab.__path__) if info.ispkg}
    expected = {package: [name for name in modules if name.split(".")[1:2] == [package]] for package in packages}
    expected["pagedattn_lab"] = [name for name in modules if not packages & set(name.split(".")[1:2])]
    described = {}
    for path in (site / "book" / "api").iterdir():
        here = [tag["id"].removeprefix("module-") for tag in parsed[path].find_all(id=re.compile("^module-"))]
        described[path.stem] = sorted(here)
        summary = parsed[path].select_one("article ul").select("li > p:first-child > a:first-child")
        assert [link["href"] for link in summary] == [f"#module-{name}" for name in here], path.name
        assert re.findall(rf" at 0x|{re.escape(str(ROOT))}", parsed[path].get_text()) == [], path.name
    assert described == {package: sorted(names) for package, names in expected.items() if names}
    block_pool = parsed[site / "book" / "api" / "pagedattn_lab.html"]
    assert block_pool.select_one("article ul a[href='#pagedattn_lab.block_pool.BlockPool']")
    assert block_pool.find(id="pagedattn_lab.block_pool.BlockPool.get_new_blocks")


def test_general_index_holds_the_glossary(site: Path, parsed: dict[Path, BeautifulSoup]) -> None:
    """Catches terms that the index leaves out, and links into the glossary that it does not list."""
    entries = {item.a.get_text(): item for item in parsed[site / "genindex.html"].select(".indextable li") if item.a}
    terms = re.findall(r"^## (.+)$", (BOOK / "glossary.md").read_text(), flags=re.MULTILINE)
    assert terms and set(terms) <= set(entries)
    assert entries["block table"].a["href"] == "book/glossary.html#block-table"
    assert "book/index.html#" in str(entries["block table"])
    assert entries["LRU"].a["href"] == "book/glossary.html#least-recently-used"  # another name of a term


def test_cards_have_every_definition(site: Path) -> None:
    """Catches a term whose links would show nothing, or where it is introduced instead of what it means."""
    script = (site / "_static" / "glossary_terms.js").read_text(encoding="utf-8")
    cards = json.loads(script.removeprefix("window.glossaryTerms = ").removesuffix(";\n"))
    terms = re.findall(r"^## (.+)$", (BOOK / "glossary.md").read_text(), flags=re.MULTILINE)
    assert [name.replace("’", "'") for name, _ in cards.values()] == terms
    assert [name for name, text in cards.values() if len(text.split()) < 5 or "Introduced in" in text] == []


def test_bibliography_holds_every_reference(site: Path, parsed: dict[Path, BeautifulSoup]) -> None:
    """Catches a work that is in the file and not on the page."""
    works = parsed[site / "book" / "bibliography.html"].select(".citation")
    assert len(works) == len(re.findall(r"^@", (BOOK / "references.bib").read_text(), flags=re.MULTILINE))


def test_the_player_is_there(site: Path, parsed: dict[Path, BeautifulSoup]) -> None:
    """Catches a book whose players stay still pictures, or do so when its pages are opened as files."""
    page = parsed[site / "chapters" / "00_start_here.html"]
    script = page.find("script", src=re.compile(r"player\.book\.js"))
    assert script.has_attr("defer") and script.get("type") != "module"
    assert page.find("link", href=re.compile(r"player\.css"))
    source = (site / "_static" / "player.book.js").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|export)\b", source, flags=re.MULTILINE) and "pa-mount" in source
