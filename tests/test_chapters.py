"""The notebook contract, as far as it shows without executing anything; nbval executes the chapters themselves."""

import ast
import re
import statistics
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from book._ext.folded_cells import folded
from tests.helpers.chapters import CHAPTERS, REPOSITORY_URL, markdown
from tools import notebooks

EXPECTED = (
    "00_start_here", "01_the_kv_cache", "02_contiguous_caches", "03_blocks", "04_page_tables",
    "05_fork_and_copy_on_write", "06_prefix_caching",
    "07_a_kernel_that_walks_the_page_table", "08_making_it_fast", "09_continuous_batching",
    "10_tuning_vllm", "11_past_one_gpu", "A1_against_the_paper", "A2_how_exact_is_exact",
)  # fmt: skip
ON_COLAB = "'google.colab' in sys.modules"
INTERACT = re.compile(r"\binteract(_manual|ive|ive_output)?\s*\(|@(\w+\.)?interact\b|\bimport\b[^\n]*\binteract\b")

needs_chapters = pytest.mark.skipif(not CHAPTERS, reason="no chapters yet")
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def code_lines(source: str) -> int:
    """Count the lines of a cell that are neither empty nor a comment."""
    lines = [line.strip() for line in source.splitlines()]
    return sum(1 for line in lines if line and not line.startswith("#"))


def prose(cells: list[NotebookNode]) -> list[str]:
    """Keep the words of Markdown cells: a formula counts as one, code blocks, comments and addresses as none."""
    text = re.sub(r"<!--.*?-->|```.*?```|\]\([^)]*\)", " ", markdown(cells), flags=re.DOTALL)
    text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$", " formula ", text, flags=re.DOTALL)
    return [word for word in text.split() if re.search(r"\w", word)]


def pictures(cell: NotebookNode) -> int:
    """Count what a cell draws: figures and players."""
    return sum("image/svg+xml" in output.get("data", {}) for output in cell.get("outputs", []))


@needs_chapters
def test_chapters_are_there() -> None:
    """Catches a chapter that was renamed or lost: links, and readers' bookmarks, use these names."""
    assert {path.stem for path in CHAPTERS} >= set(EXPECTED)


@each_chapter
def test_stored_as_executed(path: Path) -> None:
    """Catches a chapter committed with an unexecuted cell, whose output nbval would not compare, or an error."""
    assert notebooks.problems(path) == []


@each_chapter
def test_opens_on_colab(path: Path) -> None:
    """Catches a badge that is missing or opens another chapter."""
    where = REPOSITORY_URL.removeprefix("https://github.com/")
    target = f"https://colab.research.google.com/github/{where}/blob/main/chapters/{path.name}"
    first = notebooks.read(path).cells[0]
    assert first.cell_type == "markdown"
    assert f"]({target})" in first.source or f'href="{target}"' in first.source


@each_chapter
def test_installs_on_colab_only(path: Path) -> None:
    """Catches a first code cell that installs nothing on Colab, or does anything at all elsewhere."""
    cell = notebooks.code_cells(notebooks.read(path))[0]
    imports: list[ast.stmt] = []
    others: list[ast.stmt] = []
    for statement in ast.parse(TransformerManager().transform_cell(cell.source)).body:
        (imports if isinstance(statement, ast.Import) else others).append(statement)
    assert [ast.unparse(statement) for statement in imports] == ["import sys"]
    assert len(others) == 1 and isinstance(others[0], ast.If) and ast.unparse(others[0].test) == ON_COLAB
    assert not others[0].orelse and f"git+{REPOSITORY_URL}" in cell.source
    assert cell.outputs == []


@each_chapter
def test_cells_are_short(path: Path) -> None:
    """Catches a chapter whose code must be scrolled through instead of read."""
    lengths = [code_lines(cell.source) for cell in notebooks.code_cells(notebooks.read(path))]
    assert statistics.median(lengths) <= 5
    assert max(lengths) <= 25


@each_chapter
def test_fits_the_budget(path: Path) -> None:
    """Catches a chapter that takes longer than half an hour to read, and a fourth guess."""
    notebook = notebooks.read(path)
    cells, code = notebook.cells, notebooks.code_cells(notebook)
    hidden = folded(code)
    visible = [cell for cell in code if cell.id not in hidden and "hide-input" not in cell.metadata.get("tags", [])]
    guesses = [cell for cell in code if re.search(r"^guess_\w+ = None", cell.source, flags=re.MULTILINE)]
    num_cells, num_words = len(cells), len(prose(cells))
    assert num_cells <= 90 and num_words <= 3000
    assert sum(code_lines(cell.source) for cell in visible) <= 250
    assert sum(map(pictures, cells)) <= 9
    assert len(guesses) <= 3


@each_chapter
def test_opens_with_the_question_and_a_picture(path: Path) -> None:
    """Catches an opening that makes the reader wait for what the chapter is about."""
    cells = notebooks.read(path).cells
    first = next(number for number, cell in enumerate(cells) if pictures(cell))
    assert "**The question:**" in cells[0].source
    opening = "\n".join(cell.source for cell in cells[: first + 2])
    num_words = len(prose(cells[:first]))
    assert "**The answer" in opening and num_words <= 300


@each_chapter
def test_nothing_escapes_the_comparison(path: Path) -> None:
    """Catches interact, whose output nbval cannot compare, and marks that let nbval skip a cell or expect an error."""
    for cell in notebooks.code_cells(notebooks.read(path)):
        assert not INTERACT.search(cell.source), cell.id
        assert not re.search(r"#\s*(NBVAL|PYTEST_VALIDATE)_", cell.source), f"{cell.id}: use a tag"
        assert not {"nbval-skip", "raises-exception", "nbval-raises-exception"} & set(cell.metadata.get("tags", []))
