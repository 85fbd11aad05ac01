"""Every number in a chapter's text is accounted for, so that none can go stale unseen.

A number (:func:`pagedattn_lab.viz.sentence.bare_numbers` says what counts as one) is accounted for if

* the code of its section, or what that code printed, holds it (a section goes from one ``##`` heading to the next);
  what a timing cell printed does not count, for it differs on every machine; or
* a link beside it, in the same paragraph, list item or table row, leads to a source in book/references.bib; or
* the Markdown cell holds a mark: ``<!-- numbers: 16, 32 from vLLM 0.33.0, attention backends -->``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from pagedattn_lab.viz.sentence import NUMBER, bare_numbers
from tests.helpers.chapters import CHAPTERS, REPO
from tools import notebooks

SECTION = re.compile(r"^(?=## )", re.MULTILINE)
BESIDE = re.compile(r"\n\s*\n|\n(?=[ \t]*(?:[*-]|\d+\.)[ \t])|\n(?=[ \t]*\|)")  # paragraph, list item, table row
LINK = re.compile(r"\]\(([^)\s]+)\)|<(https?://[^>]+)>")
MARK = re.compile(r"<!--\s*numbers\b(.*?)-->", re.DOTALL)
MARKED = re.compile(rf":\s*((?:{NUMBER})(?:,\s+(?:{NUMBER}))*)\s+from\s+(.*[^\W\d].*)", re.DOTALL)

each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def plain(number: str) -> str:
    """Return a number without its thousands separators."""
    return re.sub("[,_]", "", number)


def cited_urls(bibliography: str) -> set[str]:
    """Return the addresses of a bibliography's entries."""
    arxiv = re.findall(r"^\s*eprint\s*=\s*\{(.+?)\}", bibliography, re.MULTILINE)
    urls = re.findall(r"^\s*url\s*=\s*\{(.+?)\}", bibliography, re.MULTILINE)
    return {f"https://arxiv.org/abs/{number}" for number in arxiv} | set(urls)


def printed(output: NotebookNode) -> str:
    """Return what an output says in words."""
    if output.output_type == "stream":
        return output.text
    data = output.get("data", {})
    return "\n".join(data.get(kind, "") for kind in ("text/plain", "text/markdown"))


def numbers_of(cell: NotebookNode) -> set[str]:
    """Return the numbers in a code cell's source and, unless they are timings, in its outputs."""
    timing = notebooks.TIMING_TAG in cell.metadata.get("tags", [])
    text = "\n".join([cell.source, *(printed(output) for output in cell.outputs if not timing)])
    return {plain(number) for number in re.findall(rf"(?<![\w.])(?:\d+(?:_\d+)+|{NUMBER})", text)}


def sections(notebook: NotebookNode) -> Iterator[tuple[list[tuple[str, str]], set[str]]]:
    """Yield each section: its pieces of text with their cells' ids, and the numbers that its code accounts for."""
    texts: list[tuple[str, str]] = []
    known: set[str] = set()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            known |= numbers_of(cell)
        elif cell.cell_type == "markdown":
            for index, part in enumerate(SECTION.split(cell.source)):
                if index or part.startswith("## "):
                    yield texts, known
                    texts, known = [], set()
                texts.append((cell.id, part))
    yield texts, known


def marks(text: str) -> tuple[set[str], list[str]]:
    """Return the numbers that a text's marks account for, and what is wrong with the marks."""
    marked: set[str] = set()
    wrong = []
    for body in MARK.findall(text):
        match = MARKED.fullmatch(body.strip())
        if match is None:
            wrong.append(f"a mark must read <!-- numbers: 16, 32 from SOURCE -->, not <!-- numbers{body}-->")
            continue
        named = re.findall(NUMBER, match[1])
        absent = [number for number in named if number not in bare_numbers(text)]
        wrong += [f"the mark names {number}, which the cell does not hold" for number in absent]
        marked.update(map(plain, named))
    return marked, wrong


def complaints(notebook: NotebookNode, urls: set[str]) -> list[str]:
    """List the numbers that nothing accounts for, and marks that are stale or name no source."""
    marked = {cell.id: marks(cell.source) for cell in notebook.cells if cell.cell_type == "markdown"}
    found = [f"{cell}: {wrong}" for cell, (_, wrongs) in marked.items() for wrong in wrongs]
    for texts, known in sections(notebook):
        for cell, text in texts:
            for beside in BESIDE.split(re.sub("<!--.*?-->", "", text, flags=re.DOTALL)):
                links = {link for pair in LINK.findall(beside) for link in pair if link}
                if any(link == url or link.startswith(f"{url}/") for link in links for url in urls):
                    continue
                loose = [n for n in bare_numbers(beside) if plain(n) not in known | marked[cell][0]]
                found += [f"{cell}: {number} in {' '.join(beside.split())[:80]!r}" for number in loose]
    return found


@each_chapter
def test_every_number_is_accounted_for(path: Path) -> None:
    """Catches a figure in the text that no cell prints any more, a figure without a source, and a stale mark."""
    urls = cited_urls((REPO / "book" / "references.bib").read_text())
    assert complaints(notebooks.read(path), urls) == []


URLS = {"https://arxiv.org/abs/1", "https://github.com/a/b"}


def chapter(text: str, *code: str | NotebookNode) -> NotebookNode:
    """Make a notebook of one text and code cells after it."""
    cells = [cell if isinstance(cell, NotebookNode) else new_code_cell(cell) for cell in code]
    return new_notebook(cells=[new_markdown_cell(text, id="text"), *cells])


def prints(text: str, kind: str = "stream", **options: object) -> NotebookNode:
    """Make a code cell with one output."""
    output = new_output(kind, text=text) if kind == "stream" else new_output("display_data", {kind: text})
    return new_code_cell("f()", outputs=[output], **options)


@pytest.mark.parametrize("kind", ["stream", "text/plain", "text/markdown"])
def test_a_number_that_went_stale_is_found(kind: str) -> None:
    """Catches a check that reads something else than the outputs: the text stays, the output changes."""
    text = "The cache takes 11,676 bytes."
    assert complaints(chapter(text, prints("11676 bytes", kind)), URLS) == []
    assert complaints(chapter(text, prints("11677 bytes", kind)), URLS) == [f"text: 11,676 in {text!r}"]


@pytest.mark.parametrize(
    "cell",
    [
        "x = 'gfx120'",
        "x = 1200 + 0.120 + 12.0 + 3.120",
        prints("120", "image/svg+xml"),
        prints("120 ms", metadata={"tags": ["nbval-ignore-output"]}),
        new_markdown_cell("## 2 · Next"),
    ],
)
def test_what_accounts_for_nothing(cell: str | NotebookNode) -> None:
    """Catches an excuse that is none: a digit of a name, of another number, of a drawing, of a timing."""
    assert complaints(chapter("It took 120 steps.", cell), URLS) != []


@pytest.mark.parametrize("source", ["steps = 120", "steps = 1_20", "f(step=120)  # or more"])
def test_a_constant_in_the_code_accounts_for_its_number(source: str) -> None:
    """Catches a check that asks for a mark where the number stands in the code beside it."""
    assert complaints(chapter("It took 120 steps.", source), URLS) == []


def test_a_section_speaks_for_itself_only() -> None:
    """Catches a number that is excused by the code of another section, before or after its own."""
    parts = [new_markdown_cell("## 1 · One\n\nIt took 120 steps.", id="one"), new_code_cell("steps = 120")]
    other = new_markdown_cell(
        "It ends with 120.\n\n## 2 · Two\n\nAnd with 120 more.\n\n### Three\n\n120 again.", id="two"
    )
    assert complaints(new_notebook(cells=[*parts, other]), URLS) == [
        "two: 120 in 'And with 120 more.'",
        "two: 120 in '120 again.'",
    ]


@pytest.mark.parametrize(
    ("text", "ok"),
    [
        ("Only 20.4 % held tokens\n([Kwon et al.](https://arxiv.org/abs/1), Fig. 2).", True),
        ("A pool of 127,626 blocks: [issue 3](https://github.com/a/b/issues/3).", True),
        ("* 20.4 % held tokens ([Kwon](https://arxiv.org/abs/1))\n* at equal latency", True),
        ("| Orca | 20.4 | [Kwon](https://arxiv.org/abs/1) |\n| vLLM | many | – |", True),
        ("Only 20.4 % held tokens (<https://arxiv.org/abs/1>).", True),
        ("Only 20.4 % held tokens ([Kwon et al.](https://arxiv.org/abs/12)).", False),
        ("Only 20.4 % held tokens ([a blog](https://example.org)).", False),
        ("Only 20.4 % held tokens.\n\nSee [Kwon et al.](https://arxiv.org/abs/1).", False),
        ("* 20.4 % held tokens\n* [Kwon et al.](https://arxiv.org/abs/1)", False),
        ("| Orca | 20.4 |\n| vLLM | [Kwon](https://arxiv.org/abs/1) |", False),
    ],
)
def test_a_citation_speaks_for_what_stands_beside_it(text: str, ok: bool) -> None:
    """Catches a figure excused by a source further off, or by one that the bibliography does not have."""
    assert (complaints(chapter(text), URLS) == []) is ok


@pytest.mark.parametrize(
    ("mark", "complaint"),
    [
        ("<!-- numbers: 16, 12,288 from vLLM 0.33.0, attention backends -->", None),
        ("<!-- numbers: 16 from vLLM -->\n<!-- numbers: 12,288\nfrom the definition\nabove -->", None),
        ("<!-- numbers: 16 from vLLM -->", "text: 12,288 in"),
        ("<!-- numbers: 16, 32, 12,288 from vLLM -->", "text: the mark names 32, which the cell does not hold"),
        ("<!-- numbers: 16, 12,288 -->", "text: a mark must read"),
        ("<!-- numbers: 16, 12,288 from 7 -->", "text: a mark must read"),
        ("<!-- numbers 16, 12,288 from vLLM -->", "text: a mark must read"),
        ("<!-- numbers: sixteen from vLLM -->", "text: a mark must read"),
    ],
)
def test_a_mark_names_its_numbers_and_their_source(mark: str, complaint: str | None) -> None:
    """Catches a mark that excuses everything, outlives its number, names no source, or would not be read."""
    found = complaints(chapter(f"Blocks of 16 tokens\nand 12,288 of them.\n\n{mark}"), URLS)
    assert found == [] if complaint is None else any(line.startswith(complaint) for line in found)


def test_the_bibliography_is_read() -> None:
    """Catches a source that a chapter cites and the test does not know."""
    entries = "@misc{a,\n  eprint = {2309.06180},\n  url    = {https://example.org/a}\n}\n"
    assert cited_urls(entries) == {"https://arxiv.org/abs/2309.06180", "https://example.org/a"}
    assert "https://arxiv.org/abs/2309.06180" in cited_urls((REPO / "book" / "references.bib").read_text())


def test_the_chapters_are_read() -> None:
    """Catches a check that passes because it finds nothing to check."""
    for path in CHAPTERS:
        notebook = notebooks.read(path)
        for cell in notebooks.code_cells(notebook):
            cell.source, cell.outputs = "", []
        assert complaints(notebook, set()) != [], path.name
