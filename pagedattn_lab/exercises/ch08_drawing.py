"""Drawings of what the kernels of chapter 08 touched where no page table is walked: splits, and slots written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pagedattn_lab.exercises import marks
from pagedattn_lab.exercises.marks import CELL, LABEL, LOOKS, PAD, WIDTH
from pagedattn_lab.exercises.problems import Outcome
from pagedattn_lab.viz import Picture

if TYPE_CHECKING:
    from pagedattn_lab.exercises.touched import Program

COLUMN = 34
"""Pixels."""


def looks_of(outcome: Outcome, tensor: str) -> Mapping[int, str]:
    """Say of each row of a tensor that was needed or touched how it looks; see ``LOOKS``.

    Example:
        >>> from pagedattn_lab.exercises.ch08_write_problem import WriteProblem
        >>> looks_of(WriteProblem((2, -1, 0)).specified, "cache")
        {0: 'loaded', 2: 'loaded'}
    """
    problem = outcome.problem
    access = "store" if tensor in problem.written else "load"
    touched: defaultdict[int, set[Program]] = defaultdict(set)
    needed: defaultdict[int, set[Program]] = defaultdict(set)
    for program, rows in outcome.rows(access, tensor).items():
        for row in rows:
            touched[row].add(program)
    for (name, program), rows in problem.needed.items():
        for row in rows if name == tensor else ():
            needed[row].add(program)
    size = problem.tensors[tensor].numel() // problem.width(tensor)
    found = {}
    for row in sorted({*touched, *needed}):
        inside = "without need" if touched[row] - needed[row] else "missing" if needed[row] - touched[row] else "loaded"
        found[row] = inside if 0 <= row < size else "outside"
    return found


def draw_lines(
    title: str,
    heads: Sequence[str],
    lines: Mapping[str, Sequence[str]],
    above: Sequence[Sequence[str]] | None,
    words: Mapping[str, str],
    unit: str,
    outside: bool,
) -> Picture:
    """Draw lines of cells, wrapped where the picture ends.

    Args:
        title: above all.
        heads: of the columns.
        lines: how each cell of a line looks, by the name of the line.
        above: for each line, what stands in each cell above its mark.
        words: what a look means here.
        unit: what a column is.
        outside: whether rows were touched that do not exist.
    """
    parts, y, said = marks.text(title, PAD, 18, 13, bold=True), 24, []
    fit = (WIDTH - 2 * PAD - LABEL) // COLUMN
    for first in range(0, len(heads), fit):
        columns = range(first, min(first + fit, len(heads)))
        for column in columns:
            parts += marks.text(heads[column], PAD + LABEL + (column - first + 0.5) * COLUMN, y + 14, 11, "middle")
        y += 20
        for number, (name, looks) in enumerate(lines.items()):
            value = above[number] if above else [""] * len(looks)
            high = CELL + 14 if above else CELL
            parts += marks.text(name, PAD, y + high - 7)
            for column in columns:
                look, x = looks[column], PAD + LABEL + (column - first) * COLUMN
                parts += marks.cell(x, y, COLUMN - 2, look, LOOKS[look][0], value[column])
            y += high + 2
        y += 6
    for name, looks in lines.items():
        found: defaultdict[str, list[int]] = defaultdict(list)
        for column, look in enumerate(looks):
            if look != "idle":
                found[look].append(column)
        each = [f"{words[look]} {marks.named(unit, columns)}" for look, columns in sorted(found.items())]
        said.append(f"{name}: {', '.join(each) or 'nothing'}")
    if outside:
        parts += marks.cell(PAD, y, CELL, "outside", "!")
        parts += marks.text(words["outside"], PAD + CELL + 8, y + 15)
        y += CELL + 6
        said.append(words["outside"])
    legend = [f"{LOOKS[look][0]} {words[look]}" for look in words if LOOKS[look][0] != "!"]
    for start in range(0, len(legend), 2):
        y += 16
        parts += marks.text(" · ".join(legend[start : start + 2]), PAD, y, size=11)
    return marks.picture(parts, y + 10, f"{title}. {'; '.join(said)}.")
