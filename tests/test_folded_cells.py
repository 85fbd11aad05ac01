"""Which cells the built book folds: what sets up, imports, draws or lays out, and nothing that a reader must read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from book._ext.folded_cells import folded
from tests.helpers.cells import FIGURE, cell
from tests.helpers.chapters import CHAPTERS

TABLE = "lines = ['|a|']\nfor row in rows:\n    lines.append(row)\nMarkdown('\\n'.join(lines))"
SENTENCE = "say(\n    '{n} blocks',\n    n=len(blocks),\n)"


def fold(source: str, *later: str, kind: str = "image/svg+xml") -> str | None:
    """Return what the first of these cells is folded as."""
    return folded([cell("it", source, kind), *(cell(f"later {n}", text) for n, text in enumerate(later))]).get("it")


def test_what_only_shows_is_folded() -> None:
    """Catches a cell that stays open though nothing in it is for the reader."""
    assert fold("import sys\nif 'google.colab' in sys.modules:\n    %pip install x") == "that sets up Colab"
    assert fold("import a\nimport b\nfrom c import d\n\nfrom e import f") == "that imports"
    assert fold(FIGURE) == "of this figure"
    assert fold(TABLE, kind="text/markdown") == "of this table"
    assert fold(SENTENCE, kind="text/markdown") == "of this sentence"


@pytest.mark.parametrize(
    ("source", "later"),
    [
        ("from c import d", ""),  # shorter than what would unfold it
        ("show(draw(1))", ""),
        (FIGURE, "print(figure)"),
        (FIGURE, "def again():\n    return axes"),
        (FIGURE, "[axes for a in b]"),
        (FIGURE, "for a in axes:\n    figure = a"),
        ("sizes.append(1)\n" + FIGURE, ""),  # changes what an earlier cell made
        ("sizes[0] = 1\n" + FIGURE, ""),
        ("for size in sizes:\n    pool.touch(size)\n" + FIGURE, ""),
        (FIGURE + "\nprint(axes)\npool", ""),
    ],
)
def test_what_a_reader_needs_stays_open(source: str, later: str) -> None:
    """Catches a fold over what later cells build on, over an effect, and over a line or two."""
    assert fold(source, later) is None


def test_what_plays_and_what_answers_stay_open() -> None:
    """Catches a fold over the code that a player plays, and over the comparison with a reader's guess."""
    assert fold(FIGURE, kind="application/vnd.pagedattn-lab.player+json") is None
    assert fold("a = 1\nb = 2\nc = 3\nreconcile(guess, a, 'blocks')", kind="text/markdown") is None


@pytest.mark.parametrize(
    "later",
    [
        "figure, axes = subplots()\naxes.plot()\nfigure",
        "for axes in []:\n    print(axes)",
        "with subplots() as axes:\n    axes.plot()",
        "print([axes for axes in b])",
        "def draw(axes):\n    return axes",
        "lambda axes: axes",
    ],
)
def test_names_used_anew_do_not_count(later: str) -> None:
    """Catches a figure that stays open because another one calls its axes by the same name."""
    assert fold(FIGURE, later) == "of this figure"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapters_fold_some(path: Any) -> None:
    """Catches a rule that no chapter meets, and one that hides what a reader came to read."""
    cells = [each for each in json.loads(path.read_text())["cells"] if each["cell_type"] == "code"]
    kinds = folded(cells)
    most = 1 / 4 if path.stem[0].isdigit() else 2 / 3  # an appendix is tables and figures, for the most part
    assert next(iter(kinds.values())) == "that sets up Colab" and len(kinds) <= most * len(cells)
    opened = [each["id"] for each in cells if "reconcile(" in "".join(each["source"])]
    assert not set(opened) & set(kinds)
