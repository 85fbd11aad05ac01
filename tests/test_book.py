"""What the book is made from: every term is defined and linked, every chapter on the map, every work to be found."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.helpers.chapters import CHAPTERS, markdown
from tools import notebooks

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
LINK = re.compile(r"\[([^\]]+)\]\(\.\./book/glossary\.md#([^)]+)\)")
OPEN, CLOSE = "\ue000", "\ue001"  # stand for the ends of a link; no text has these characters


# ---------------------------------------------------------------- the glossary


def glossary() -> dict[str, str]:
    """Return the glossary's entries, text by heading."""
    entries = re.split(r"^## (.+)\n", (BOOK / "glossary.md").read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(entries[::2], entries[1::2], strict=True))


def anchor(heading: str) -> str:
    """Return the fragment of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def names_of(heading: str) -> list[str]:
    """Return a term's heading and the other names that its entry lists."""
    also = re.search(r"\*Also:\* (.+?)\.", glossary()[heading])
    return [heading, *(also[1].split(", ") if also else [])]


def running_text(source: str) -> str:
    """Keep of Markdown what reads as sentences: no code, formulas, headings, addresses or lists of chapters."""
    text = re.sub(r"```.*?```|\$\$.*?\$\$|`[^`\n]*`|\$[^$\n]*\$", " ", source, flags=re.DOTALL)
    text = re.sub(r"^#.*$|^\| \[?\d\d .*$|^\*\*(?:The question|Next):.*$", "", text, flags=re.MULTILINE)
    return re.sub(r"\]\([^)]*\)|https?://\S+", "]", text)


def first_use(text: str, names: list[str]) -> re.Match[str] | None:
    """Find one of the names, in singular or plural, as words of its own; an end of a link may stand between words."""
    either = "|".join(rf"[\s{OPEN}{CLOSE}]+".join(map(re.escape, name.split())) for name in names)
    return re.search(rf"(?<![\w-])(?:{either})(?:s|es)?(?![\w-])", text, flags=re.IGNORECASE)


def missing_links(chapters: dict[str, str], terms: dict[str, list[str]]) -> dict[str, str]:
    """Name, for each term, the first chapter that uses it, if that first use is no link to the term's definition."""
    missing = {}
    for heading, names in terms.items():
        for stem, source in chapters.items():
            own = anchor(heading)
            marked = LINK.sub(lambda link, own=own: f"{OPEN}{link[1]}{CLOSE}" if link[2] == own else link[1], source)
            text = running_text(marked)
            if use := first_use(text, names):
                if text.count(OPEN, 0, use.end()) == text.count(CLOSE, 0, use.start()):
                    missing[heading] = stem
                break
    return missing


def test_terms_are_linked_where_first_used() -> None:
    """Catches a word that the first chapter to use it leaves without a link to its definition at that place."""
    chapters = {path.stem: markdown(notebooks.read(path).cells) for path in CHAPTERS}
    assert missing_links(chapters, {heading: names_of(heading) for heading in glossary()}) == {}


def test_missing_links_are_noticed() -> None:
    """Catches a search that overlooks plurals, other names and line breaks, reads code, or accepts any link."""
    terms = {"free queue": ["free queue", "free list"], "slot": ["slot"]}
    first = "# The free queue\n\n`slot` is code, $slot$ a formula, slots-free is no word, [x](slot)"
    second = "Two *slots* in a free\nlist."
    assert missing_links({"00": first, "01": second}, terms) == {"free queue": "01", "slot": "01"}
    linked = "[*Slots*](../book/glossary.md#slot) stand in a free [list](../book/glossary.md#free-queue)."
    assert missing_links({"00": first, "01": linked, "03": second}, terms) == {}
    late = "A slot is a [slot](../book/glossary.md#slot) in a [free list](../book/glossary.md#slot)."
    assert missing_links({"00": first, "01": late}, terms) == {"free queue": "01", "slot": "01"}


def test_glossary_is_sound() -> None:
    """Catches a term without definition or chapter, two terms with one anchor, and a link to a term that is gone."""
    entries = glossary()
    anchors = [anchor(heading) for heading in entries]
    assert len(entries) > 40 and len(set(anchors)) == len(anchors)
    assert list(entries) == sorted(entries, key=str.lower)
    stems = {path.stem[:2]: path.stem for path in CHAPTERS}
    for heading, text in entries.items():
        definition, _, origin = text.partition("*Introduced in* ")
        assert len(definition.split()) > 5, heading
        written = re.match(r"\[(\d\d) · [^]]+\]\(\.\./chapters/(\w+)\.ipynb\)\.\s*$", origin)
        planned = re.match(r"chapter (\d\d), .+ \(in preparation\)\.\s*$", origin)
        assert written or planned, f"{heading}: say where it is introduced"
        if written:
            assert stems[written[1]] == written[2], heading
            text_there = running_text(markdown(notebooks.read(ROOT / "chapters" / f"{written[2]}.ipynb").cells))
            assert first_use(text_there, names_of(heading)), heading
        elif planned:
            assert planned[1] not in stems, f"{heading}: chapter {planned[1]} is written"
        if anchor(heading) != heading.replace(" ", "-"):  # JupyterLab keeps capitals in anchors, others do not
            assert f'<span id="{anchor(heading)}"></span>' in text, heading
    linked = {target for path in CHAPTERS for _, target in LINK.findall(markdown(notebooks.read(path).cells))}
    assert linked <= set(anchors)


# ---------------------------------------------------------------- other sources


def test_map_shows_every_chapter() -> None:
    """Catches a chapter that the map forgets, or still calls unwritten, and a picture that lags behind the table."""
    text, picture = (BOOK / "map.md").read_text(), (BOOK / "_static" / "map.svg").read_text()
    rows = re.findall(r"^\| (\[?)(\d\d) ", text, flags=re.MULTILINE)
    assert [number for _, number in rows] == [f"{number:02}" for number in range(12)]
    written = {number for link, number in rows if link}
    assert written == {path.stem[:2] for path in CHAPTERS if path.stem[0].isdigit()}  # appendices have a table below
    assert {f"../chapters/{path.name}" for path in CHAPTERS} <= set(re.findall(r"\]\(([^)]+)\)", text))
    boxes = re.findall(r'<rect x=[^>]+?(stroke-dasharray="[^"]*")?/>\n<text [^>]*><tspan [^>]*>(\d\d)<', picture)
    assert {number: not dashed for dashed, number in boxes} == {number: number in written for _, number in rows}


def test_front_picture_has_its_text() -> None:
    """Catches an alternative text on the front page that describes an earlier picture."""
    (label,) = re.findall(r'aria-label="([^"]+)"', (BOOK / "_static" / "block-table.svg").read_text()[:2000])
    assert f"![{label}](_static/block-table.svg)" in (BOOK / "index.md").read_text()


def test_references_are_complete() -> None:
    """Catches a work that a reader could not find: no author, title or year, or nowhere to read it."""
    entries = re.findall(r"^@\w+\{(\w+),\n(.*?)^\}", (BOOK / "references.bib").read_text(), re.MULTILINE | re.DOTALL)
    assert len(entries) == (BOOK / "references.bib").read_text().count("\n@") + 1
    for key, body in entries:
        fields = dict(re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", body, flags=re.MULTILINE))
        assert {"author", "title", "year"} <= set(fields), key
        assert {"url", "doi", "eprint"} & set(fields), f"{key}: say where to read it"


def test_execution_times_name_every_chapter() -> None:
    """Catches a chapter without a time, and one that takes longer than the book promises."""
    records = json.loads((BOOK / "execution.json").read_text())
    assert list(records) == [path.stem for path in CHAPTERS]
    for stem, record in records.items():
        assert 0 < record["seconds"] <= 60, stem
        assert record["cores"] > 0 and record["python"].startswith("3.") and record["packages"]["torch"], stem


# ---------------------------------------------------------------- the library's layout


def test_layout_names_every_module_once() -> None:
    """Catches a module that the page on the library's layout forgets, names twice, or still names after it went."""
    text = (BOOK / "layout.md").read_text()
    named = [module for line in re.findall(r"^%modules (.*)$", text, flags=re.MULTILINE) for module in line.split()]
    package = ROOT / "pagedattn_lab"
    found = {
        ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")
        for path in package.rglob("*.py")
    }
    left_out = {"__init__", "__main__", "models.__main__", *(name for name in found if name.startswith("exercises.ch"))}
    assert sorted(named) == sorted(found - left_out)
