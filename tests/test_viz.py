"""Pictures: the drawn state is the library's state, twice the same, with words that can stand in for it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import ipywidgets as widgets
import pytest

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.figures import show, subplots
from pagedattn_lab.viz.lesson import Lesson
from pagedattn_lab.viz.memory import show_memory


def drawn_owners(picture: Picture) -> dict[tuple[int, int], str]:
    """Read (block, slot) -> what lies there back from the drawing."""
    root = ElementTree.fromstring(picture.svg)
    hovers = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    matches = [re.fullmatch(r"block (\d+), slot (\d+): (.*)", hover) for hover in hovers]
    return {(int(match[1]), int(match[2])): match[3] for match in matches}


def test_memory_picture_equals_the_tables() -> None:
    """Catches a token drawn in the wrong slot, an empty slot drawn full, and alt text that tells another story."""
    pool = BlockPool(9, 4)
    tables = {name: BlockTable(pool) for name in ("Ada", "B<b>")}
    for name, count in (("Ada", 5), ("B<b>", 3), ("Ada", 6), ("B<b>", 2)):
        tables[name].append_tokens(count)
    picture = show_memory(pool, tables, words={"Ada": ["<s>", "Hi"]})
    expected = {(block, slot): "empty" for block in range(9) for slot in range(4)}
    for name, table in tables.items():
        for position, slot in enumerate(table.slot_mapping()):
            word = {("Ada", 0): " '<s>'", ("Ada", 1): " 'Hi'"}.get((name, position), "")
            expected[divmod(slot, 4)] = f"{name}, token {position}{word}"
    assert drawn_owners(picture) == expected
    assert "Ada: 11 tokens in blocks 1 (4/4), 2 (4/4), 4 (3/4)." in picture.alt
    assert picture.alt.endswith("Free queue: 6, 7, 8.")
    tables["Ada"].release()
    assert show_memory(pool, tables).alt.endswith("Free queue: 4, 2, 1, 6, 7, 8.")


def test_figures_are_deterministic_and_described() -> None:
    """Catches a date or a random id in the SVG, which would make an unchanged notebook fail."""

    def draw() -> Picture:
        figure, axes = subplots(1, 2, figsize=(5, 2))
        axes[0].plot([1, 2, 4], label="α")
        axes[1].bar(["a", "b"], [2, 1])
        axes[0].set_title("Doubling, twice")
        return show(figure, alt="One line and two bars.")

    first = draw()
    assert first.svg == draw().svg
    bundle = first._repr_mimebundle_()
    assert bundle["text/plain"] == "One line and two bars." and 'aria-label="One line' in bundle["image/svg+xml"]
    assert "Doubling, twice" in first.svg, "text must stay text"


def test_figures_without_words_are_refused() -> None:
    """Catches a picture that a blind reader would miss, and a figure that states no finding."""
    figure, axes = subplots()
    with pytest.raises(ValueError, match="no title"):
        show(figure, alt="something")
    axes.set_title("A finding")
    with pytest.raises(ValueError, match="alt text"):
        show(figure, alt=" ")
    with pytest.raises(ValueError, match="must be an <svg>"):
        Picture("<p>", alt="a paragraph")
    axes.plot([1, 2], label="waste")
    axes.legend()
    with pytest.raises(ValueError, match="beside what it names"):
        show(figure, alt="something")


def test_long_titles_wrap() -> None:
    """Catches a title that makes the picture wider, so that all else in it shrinks on a narrow screen."""
    widths = []
    for title in ("A finding", "A finding " * 12):
        for as_suptitle in (False, True):
            figure, axes = subplots(figsize=(5, 3))
            figure.suptitle(title) if as_suptitle else axes.set_title(title)
            root = ElementTree.fromstring(show(figure, alt="something").svg)
            widths.append(float(root.get("width").removesuffix("pt")))
    assert max(widths) - min(widths) < 5 and max(widths) < 5.2 * 72


def test_lesson_follows_its_controls() -> None:
    """Catches a control that is not wired, a stale picture, and an error in the drawing that nobody sees."""

    def draw(blocks: int, size: int) -> Picture:
        if blocks == 13:
            raise RuntimeError("no picture of 13 blocks")
        return show_memory(BlockPool(blocks, size), {})

    lesson = Lesson(
        draw,
        blocks=widgets.IntSlider(4, min=2, max=20, description="blocks"),
        size=widgets.IntSlider(2, min=1, max=8, description="block size"),
    )
    for blocks, size in ((2, 1), (20, 8), (7, 3)):
        lesson.set(blocks=blocks, size=size)
        expected = draw(blocks, size)
        assert lesson.children[-1].value == expected.svg
        bundle = lesson._repr_mimebundle_()
        assert bundle["image/svg+xml"] == expected.svg
        assert bundle["text/plain"] == f"Lesson(blocks={blocks}, size={size}): {expected.alt}"
        assert "application/vnd.jupyter.widget-view+json" in bundle
    assert lesson.at(blocks=2, size=8) == draw(2, 8)
    assert lesson.values == {"blocks": 7, "size": 3}, "a look at other values must leave the controls alone"
    with pytest.raises(RuntimeError, match="13 blocks"):
        lesson.at(blocks=13)
    assert lesson.values == {"blocks": 7, "size": 3}
    with pytest.raises(RuntimeError, match="13 blocks"):
        lesson.children[0].value = 13
    with pytest.raises(KeyError):
        lesson.set(colour=1)
