"""A name keeps one kind of thing: a cell that draws may be run again, and what stands after it still works."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from book._ext.folded_cells import folded, leaves, mentions
from tests.helpers.cells import FIGURE, cell
from tests.helpers.chapters import CHAPTERS


def reads_first(tree: ast.Module) -> set[str]:
    """Return the names that a cell reads before it binds them, and so takes from other cells."""
    first: dict[str, bool] = {}
    for name, reads in mentions(tree.body):
        first.setdefault(name, reads)
    return {name for name, reads in first.items() if reads}


def taken_over(cells: list[dict[str, Any]]) -> list[str]:
    """Name what folded cells leave under a name that another cell binds and a third one takes for that other's.

    Whoever runs the folded cell again, for its picture, hands the third one something else.

    Args:
        cells: a notebook's code cells, as they stand in its file.
    """
    trees = {each["id"]: ast.parse(TransformerManager().transform_cell("".join(each["source"]))) for each in cells}
    left = {name: leaves(tree) for name, tree in trees.items()}
    needed = {name: reads_first(tree) for name, tree in trees.items()}
    tagged = [each["id"] for each in cells if "hide-input" in each.get("metadata", {}).get("tags", [])]
    found = []
    for drawing in dict.fromkeys([*folded(cells), *tagged]):
        others = [name for name in trees if name != drawing]
        for word in sorted(left[drawing]):
            binders = [name for name in others if word in left[name]]
            readers = [name for name in others if word in needed[name]]
            if binders and readers:
                found.append(f"{drawing} binds {word} anew: {binders} bind it, and {readers} read it")
    return found


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_drawing_takes_no_name_over(path: Path) -> None:
    """Catches a loop of a folded picture that turns the chapter's words into a number, as one did."""
    cells = [each for each in json.loads(path.read_text())["cells"] if each["cell_type"] == "code"]
    assert taken_over(cells) == []


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ("words = ['a']", "for word in words:\n    print(word)"),
        ("def words():\n    return 1", "words()"),
        ("for words in [1]:\n    pass", "count = 1\ncount += words"),
        ("with open('a') as words:\n    pass", "[word for word in words]"),
        ("words = 1", "def count():\n    return len(words)"),
    ],
)
def test_sees_a_name_taken_over(first: str, later: str) -> None:
    """Catches a check that overlooks how a name is bound or read; wherever the folded cell stands."""
    drawing = cell("draws", "for row, words in enumerate(pieces):\n    row\n" + FIGURE, "image/svg+xml")
    binds, reads = cell("binds", first), cell("reads", later)
    expected = ["draws binds words anew: ['binds'] bind it, and ['reads'] read it"]
    for cells in ([drawing, binds, reads], [binds, reads, drawing]):
        assert taken_over(cells) == expected


@pytest.mark.parametrize(
    "later",
    [
        "words = 2\nprint(words)",
        "for words in [1]:\n    print(words)",
        "print([words for words in [1]])",
        "rows += [words for words in [1]]",
        "def words():\n    return 1\n\n\nwords()",
        "from a import words\nwords()",
        "def count(words):\n    return len(words)",
    ],
)
def test_a_name_of_its_own_is_left_alone(later: str) -> None:
    """Catches a complaint about a cell that makes what it reads, which nothing before it can spoil."""
    drawing = cell("draws", "for words in pieces:\n    words\n" + FIGURE, "image/svg+xml")
    assert taken_over([drawing, cell("binds", "words = 1"), cell("reads", later)]) == []


def test_what_a_folded_cell_alone_binds_may_be_read() -> None:
    """Catches a complaint about a folded cell whose labels later cells use: they come from nowhere else."""
    labels = cell("labels", "labels = {'a': 1}\n" + FIGURE, "image/svg+xml") | {"metadata": {"tags": ["hide-input"]}}
    assert taken_over([labels, cell("reads", "print(labels)")]) == []
