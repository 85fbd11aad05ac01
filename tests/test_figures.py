"""Every stored figure and every image in a text can be read by those who do not see it, and compared by nbval."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.figures import show, subplots
from tests.helpers.chapters import CHAPTERS, REPO
from tools import notebooks

PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "book").glob("*.md"))]
TITLE = re.compile(r'<text style="font-weight: 700; font-size: 12px;[^>]*>\s*[^<\s]')
DEFAULT_REPR = re.compile(r"<[^<>]*(?: object\b| at 0x)[^<>]*>|<Figure\b")


def faults(data: Mapping[str, str]) -> list[str]:
    """Say what keeps an output's picture from being read or compared; an empty list is good."""
    found = [f"{kind}: nbval would not compare it, use SVG" for kind in ("image/png", "image/jpeg") if kind in data]
    svg, words = data.get("image/svg+xml"), data.get("text/plain", "").strip()
    if (found or svg) and (not words or DEFAULT_REPR.search(words)):
        found.append(f"no text equivalent: {words!r}")
    if svg:
        try:
            root = ElementTree.fromstring(svg)
        except ElementTree.ParseError as error:
            return [*found, f"no browser draws this svg: {error}"]
        if root.get("role") != "img" or not root.get("aria-label", "").strip():
            found.append("the svg names no role and label")
        if 'id="figure_1"' in svg and not TITLE.search(svg):  # drawn by matplotlib
            found.append("no title")
    return found


def images_without_text(markdown: str) -> list[str]:
    """List the images of a Markdown text that have no alternative text."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", markdown, flags=re.DOTALL)
    tags = [tag for tag in re.findall(r"<img\b[^>]*>", text) if not re.search(r"""\balt=(["'])\s*[^"'\s]""", tag)]
    return tags + re.findall(r"!\[\s*\]\([^)]*\)", text)


def figures() -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield every stored output that holds a picture, with where it stands."""
    for path in CHAPTERS:
        for cell in notebooks.code_cells(notebooks.read(path)):
            for output in cell.outputs:
                if any(kind.startswith("image/") for kind in output.get("data", {})):
                    yield f"{path.name}, cell {cell.id}", output.data


@pytest.mark.parametrize(("where", "data"), [pytest.param(*figure, id=figure[0]) for figure in figures()])
def test_stored_figures_can_be_read_and_compared(where: str, data: Mapping[str, str]) -> None:
    """Catches a figure without a text equivalent or a title, and a PNG, whose change would pass unseen."""
    assert faults(data) == [], where


def test_every_chapter_shows_something() -> None:
    """Catches a search that finds no figures, and a chapter that has none."""
    assert {where.split(",")[0] for where, _ in figures()} == {path.name for path in CHAPTERS}


@pytest.mark.parametrize("page", [*CHAPTERS, *PAGES], ids=lambda page: page.name)
def test_images_in_texts_have_alternative_text(page: Path) -> None:
    """Catches an image in a chapter, the README or the book's own pages that a screen reader passes over."""
    if page.suffix == ".ipynb":
        texts = [cell.source for cell in notebooks.read(page).cells if cell.cell_type == "markdown"]
    else:
        texts = [page.read_text(encoding="utf-8")]
    assert [image for text in texts for image in images_without_text(text)] == []


def drawing() -> dict[str, str]:
    """Draw a faultless figure."""
    figure, axes = subplots(figsize=(3, 2))
    axes.set_title("A finding")
    return show(figure, alt="An empty pair of axes.")._repr_mimebundle_()


def test_faultless_figures_pass() -> None:
    """Catches a check that refuses what the library makes."""
    assert faults(drawing()) == []
    assert faults(Picture("<svg></svg>", alt="nothing")._repr_mimebundle_()) == []
    assert faults({"text/plain": "<object object at 0x7f>"}) == [], "words only: not a picture"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"text/plain": ""}, "no text equivalent"),
        ({"text/plain": "<Figure size 640x480 with 1 Axes>"}, "no text equivalent"),
        ({"text/plain": "<IPython.core.display.SVG object>"}, "no text equivalent"),
        ({"text/plain": "Lesson(step=1): <Player at 0x7f0b>"}, "no text equivalent"),
        ({"image/png": "iVBORw0KGgo="}, "image/png"),
        ({"image/svg+xml": '<svg role="img" role="img" aria-label="twice"></svg>'}, "duplicate attribute"),
        ({"image/svg+xml": "<svg></svg>"}, "role and label"),
        ({"image/svg+xml": '<svg role="img" aria-label=" "></svg>'}, "role and label"),
        ({"image/svg+xml": drawing()["image/svg+xml"].replace("A finding", "")}, "no title"),
    ],
)
def test_faults_are_found(change: dict[str, str], fault: str) -> None:
    """Catches a check that would pass a figure of which a blind reader, or nbval, learns nothing."""
    assert [found for found in faults(drawing() | change) if fault in found] != []


def test_images_without_text_are_found() -> None:
    """Catches a check that would pass an image without alternative text."""
    good = '![a table](a.svg) <img alt="words" src="b.svg"> `![](c.svg)`'
    assert images_without_text(good) == []
    assert images_without_text('![ ](a.svg) <img src="b.svg" alt="">') == ['<img src="b.svg" alt="">', "![ ](a.svg)"]


def drawn(left: float, points: list[int]) -> str:
    """Draw something with a clip path, a marker and a hatch, whose axes begin at ``left``."""
    figure, axes = subplots(figsize=(4, 2))
    figure.set_layout_engine("none")
    axes.set_position((left, 0.1, 0.8, 0.8))
    axes.plot(points, "o-")
    axes.bar([1], [2], hatch="//")
    axes.set_title("A finding")
    return show(figure, "a line and a bar").svg


def test_the_last_bit_changes_no_figure() -> None:
    """Catches names inside a figure that hash coordinates to the last bit: another processor, and nbval is red."""
    bits = [drawn(left, [1, 2, 3]) for left in (0.1, 0.1 + 2**-50)]
    assert bits[0] == bits[1]


def test_names_inside_a_figure_are_its_own() -> None:
    """Catches two figures of one page that share a clip path's name: the browser takes the first for both."""
    first, second = (set(re.findall(r'id="(part-[^"]+)"', drawn(0.1, points))) for points in ([1, 2, 3], [1, 3, 2]))
    assert len(first) == len(second) >= 3 and not first & second
    for name in first:
        assert f"#{name}" in drawn(0.1, [1, 2, 3])
