"""A guess is compared at any time: what a comparison shows, no later cell binds anew or changes.

Readers choose "Run All" and guess afterwards. Two things hold that up: these tests, which read the chapters' code, and
tests/conftest.py, which has each comparison run once more after all other cells of its chapter.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbval.plugin import IPyNbFile

from book._ext.folded_cells import leaves, reads
from tests.helpers.chapters import CHAPTERS
from tests.helpers.comparisons import with_comparisons_again
from tools import notebooks

each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
COMPARES = "reconcile(guess_"
DEFINES = ast.FunctionDef | ast.ClassDef


def depends_on(tree: ast.Module, defined: dict[str, ast.stmt]) -> set[str]:
    """Return the names of other cells that a cell reads, itself or in the functions that it calls."""
    found: set[str] = set()
    waiting = reads(tree) - leaves(tree)
    while waiting:
        name = waiting.pop()
        found.add(name)
        if name in defined:
            waiting |= reads(defined[name]) - found
    return found


def outside_functions(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes that run when the cell runs."""
    waiting: list[ast.AST] = [statement for statement in tree.body if not isinstance(statement, DEFINES)]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [inner for inner in ast.iter_child_nodes(node) if not isinstance(inner, DEFINES)]


def changes(tree: ast.Module) -> set[str]:
    """Return the names whose objects a cell stores into, or calls a method of and drops what it returns."""
    found = set()
    for node in outside_functions(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            node = node.value.func
        elif not isinstance(node, ast.Subscript | ast.Attribute) or isinstance(node.ctx, ast.Load):
            continue
        inner = node
        while isinstance(inner, ast.Subscript | ast.Attribute | ast.Call):
            inner = inner.func if isinstance(inner, ast.Call) else inner.value
        if isinstance(inner, ast.Name) and inner is not node:
            found.add(inner.id)
    return found


def lost(sources: list[str]) -> list[str]:
    """Say what the comparisons among some cells read that is not what it was once all cells have run."""
    trees = [ast.parse(TransformerManager().transform_cell(source)) for source in sources]
    defined = {statement.name: statement for tree in trees for statement in tree.body if isinstance(statement, DEFINES)}
    left, changed = [leaves(tree) for tree in trees], [changes(tree) for tree in trees]
    found = []
    for number, tree in enumerate(trees):
        if COMPARES not in sources[number]:
            continue
        for name in sorted(depends_on(tree, defined)):
            binding = [at for at, names in enumerate(left) if name in names]
            changing = [at for at, names in enumerate(changed) if at >= number and binding and name in names]
            if len(binding) > 1:
                found.append(f"cell {number} reads {name}, which cells {binding} bind")
            if changing:
                found.append(f"cell {number} reads {name}, which cells {changing} change")
    return found


@each_chapter
def test_a_guess_may_come_last(path: Path) -> None:
    """Catches a right guess that is called wrong, one that raises, and another section's evidence, after "Run All"."""
    assert lost([cell.source for cell in notebooks.code_cells(notebooks.read(path))]) == []


COMPARE = "reconcile(guess_blocks, count, 'blocks', shown_by=lines)"


@pytest.mark.parametrize(
    "cells",
    [
        ["count, lines = 9, []", COMPARE, "count = 8"],
        ["count, lines = 9, []", COMPARE, "for count, line in pairs: print(count)"],
        ["count, lines = 9, []", COMPARE, "def count(): pass"],
        ["count, lines = 9, []", COMPARE, "lines += ['a']"],
        ["count, lines = 9, []", COMPARE, "lines.append('a')"],
        ["count, lines = 9, []", COMPARE, "if count: lines[0] = 'a'"],
        ["count, lines = 9, []", "lines.append('a')\n" + COMPARE],
        ["count, table = 9, []", "lines = [str(table)]\n" + COMPARE, "table.blocks.pop()"],
        ["count, size = 9, 4", "def read(): return size", "lines = [read()]\n" + COMPARE, "size = 8"],
        ["guess_blocks = None", "count, lines = 9, []", COMPARE, "guess_blocks = None"],
    ],
)
def test_what_is_lost_is_found(cells: list[str]) -> None:
    """Catches a check that passes a name bound anew, or an object that has changed since."""
    assert len(lost(cells)) == 1


@pytest.mark.parametrize(
    "cells",
    [
        ["count, lines = 9, []\nlines.append('a')", COMPARE, "print(count, lines)"],
        ["count = 9", "lines = [str(line) for line in range(count)]\n" + COMPARE, "lines = []"],
        ["count, lines = 9, []", COMPARE, "def again(count):\n    lines = []\n    lines.append(count)"],
        ["import torch\ncount, lines = torch.ones(9), []", COMPARE, "import torch\ntorch.manual_seed(4)"],
        ["%pip install it", "count, lines = 9, []", COMPARE, "%pip install it"],
    ],
)
def test_what_stays_is_not_called_lost(cells: list[str]) -> None:
    """Catches a check that forbids a comparison's own variables, a function's, and imports."""
    assert lost(cells) == []


def test_comparisons_run_again(request: pytest.FixtureRequest) -> None:
    """Catches comparisons that nbval does not run again at the end, or compares with other outputs than the first."""
    file = IPyNbFile.from_parent(request.session, path=CHAPTERS[0])
    once = list(file.collect())
    items = with_comparisons_again([*once, request.node])
    assert items[: len(once)] == once and items[-1] == request.node
    again = items[len(once) : -1]
    compared = [cell.name for cell in once if COMPARES in cell.cell.source]
    assert compared and [item.name for item in again] == [f"{name} again" for name in compared]
    for item in again:
        [first] = [cell for cell in once if cell.cell_num == item.cell_num]
        assert item.cell is first.cell and item.options == first.options
