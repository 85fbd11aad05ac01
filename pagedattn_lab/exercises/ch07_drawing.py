"""A drawing of what a kernel loaded: slots of the caches and entries of the page tables, with those it needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises import marks
from pagedattn_lab.exercises.marks import CELL, GAP, LABEL, LOOKS, PAD, WIDTH
from pagedattn_lab.exercises.problems import Outcome
from pagedattn_lab.recorder.sentences import counted
from pagedattn_lab.viz import Picture

MOST_HEADS = 4
"""More of them in one place would not be read."""


class Row(NamedTuple):
    """A row of a tensor: query heads that need it, that load it, and that must not load it twice and do.

    Each has its sequence with it. Where a program computes a group, they are KV heads.
    """

    needed: set[tuple[int, int]]
    loaded: set[tuple[int, int]]
    again: set[tuple[int, int]]

    @property
    def look(self) -> str:
        """Its place in ``LOOKS``, the worst that can be said of it."""
        if self.loaded - self.needed:
            return "without need"
        if self.again:
            return "again"
        return "missing" if self.needed - self.loaded else "loaded" if self.loaded else "idle"

    @classmethod
    def empty(cls) -> Row:
        """A row that nobody needs or loads."""
        return cls(set(), set(), set())

    def text(self, with_heads: bool) -> str:
        """A mark, or the query heads with a mark at each that is wrong."""
        if not with_heads:
            return LOOKS[self.look][0]
        wrong = {program: "↻" for program in self.again} | {program: "✗" for program in self.loaded - self.needed}
        parts = [f"{program[1]}{wrong.get(program, '')}" for program in self.loaded]
        parts += [f"{head}○" for _, head in self.needed - self.loaded]
        return " ".join(sorted(parts)) if len(parts) <= MOST_HEADS else LOOKS[self.look][0]


def rows_of(outcome: Outcome, tensor: str) -> Mapping[int, Row]:
    """Give each row of a tensor that was needed or loaded; those outside of it have numbers that do not exist."""
    found: defaultdict[int, Row] = defaultdict(Row.empty)
    for program, rows in outcome.rows("load", tensor).items():
        for row in rows:
            found[row].loaded.add(outcome.problem.programs[program])
    for fault in outcome.faults:
        if (fault.kind, fault.tensor) == ("again", tensor):
            for element in fault.elements:
                found[element // outcome.problem.width(tensor)].again.add(outcome.problem.programs[fault.program])
    for (name, program), rows in outcome.problem.needed.items():
        for row in rows if name == tensor else ():
            found[row].needed.add(outcome.problem.programs[program])
    return found


def draw(outcome: Outcome) -> Picture:
    """Draw what was loaded, beside what was needed.

    Example:
        >>> from pagedattn_lab.exercises.ch07_problem import Problem
        >>> draw(Problem((3, 1), block_size=2, tile=4).specified)
        Page tables: sequence 0, entries 0, 1 needed and loaded; sequence 1, entry 0 needed and loaded. Keys and values: needed and loaded: slots 2, 4–6.
    """  # noqa: E501
    tables = rows_of(outcome, "page tables")
    keys, values = rows_of(outcome, "keys"), rows_of(outcome, "values")
    caches = {"Keys and values": keys} if keys == values else {"Keys": keys, "Values": values}
    parts, y = _tables(outcome, tables, 18)
    said = [_tables_said(outcome, tables)]
    for name, rows in caches.items():
        drawn, y = _cache(outcome, name, rows, y + 22)
        parts += drawn
        said.append(_cache_said(outcome, name, rows))
    outside = _outside(outcome)
    for line in outside:
        parts += marks.cell(PAD, y + 10, CELL, "outside", "!") + marks.text(line, PAD + CELL + 8, y + 25)
        y += CELL + 6
    said += [f"Out of bounds: {'; '.join(outside)}."] if outside else []
    y += 10
    seen = [look for look in LOOKS if look != "idle" and (look != "again" or outcome.problem.once)]
    legend = [f"{LOOKS[look][0]} {LOOKS[look][1]}" for look in seen]
    for line in (" · ".join(legend[:2]), " · ".join(legend[2:])):
        y += 16
        parts += marks.text(line, PAD, y, size=11)
    if outcome.problem.heads > 1:
        y += 16
        parts += marks.text(
            f"a line of a block per KV head, with the {outcome.problem.loaders} that load it", PAD, y, size=11
        )
    return marks.picture(parts, y + 10, " ".join(said))


def _width(text: str) -> int:
    """Pixels for bold letters of 12 and a margin; marks are wider than digits, spaces narrower."""
    return sum(4 if letter == " " else 9 if letter.isdigit() else 12 for letter in text) + 10


def _tables(outcome: Outcome, rows: Mapping[int, Row], y: int) -> tuple[list[str], int]:
    """Every page table: what its entries hold, and how they were loaded."""
    table = outcome.problem.tensors["page tables"]
    parts = marks.text("Page tables", PAD, y, 13, bold=True)
    y += 8
    for sequence, entries in enumerate(table.tolist()):
        tokens = counted(outcome.problem.lens[sequence], "token")
        parts += marks.text(f"seq {sequence}: {tokens}", PAD, y + 22)
        x = PAD + LABEL
        for column, block in enumerate(entries):
            row = rows.get(sequence * table.shape[1] + column, Row.empty())
            width = max(30, 8 * len(str(block)) + 10)
            if x + width > WIDTH - PAD:
                x, y = PAD + LABEL, y + CELL + 18
            parts += marks.cell(x, y, width, row.look, LOOKS[row.look][0], str(block))
            x += width + 4
        y += CELL + 18
    return parts, y


def _cache(outcome: Outcome, name: str, rows: Mapping[int, Row], y: int) -> tuple[list[str], int]:
    """Every block: a column for each slot, a line for each KV head."""
    problem = outcome.problem
    size, heads = problem.block_size, problem.kv_heads
    num_blocks = problem.tensors["keys"].shape[0]
    idle = Row.empty()
    with_heads = problem.heads > 1
    widest = max([CELL, *(_width(row.text(with_heads)) for row in rows.values())])
    cell = min(widest, (WIDTH - 2 * PAD) // size)  # a block must fit the picture
    letters = 12 if cell == widest else 10
    width = size * cell + GAP
    columns = max(1, (WIDTH - 2 * PAD + GAP) // width)
    parts = marks.text(name, PAD, y, 13, bold=True)
    for block in range(num_blocks):
        left = PAD + block % columns * width
        top = y + 8 + block // columns * (20 + heads * CELL)
        caption = "0 null" if block == 0 and size * cell > 44 else f"{block}"
        parts += marks.text(caption, left, top + 12)
        for offset in range(size):
            for kv_head in range(heads):
                row = rows.get((block * size + offset) * heads + kv_head, idle)
                x, line = left + offset * cell, top + 16 + kv_head * CELL
                parts += marks.cell(x, line, cell, row.look, row.text(with_heads), size=letters)
    return parts, y + 8 + cdiv(num_blocks, columns) * (20 + heads * CELL)


def _outside(outcome: Outcome) -> list[str]:
    """What was touched out of bounds, a line for each tensor."""
    found: defaultdict[str, set[int]] = defaultdict(set)
    for fault in outcome.faults:
        if fault.kind == "outside":
            found[fault.tensor].update(fault.elements)
    lines = []
    for tensor, elements in found.items():
        unit = {"keys": "slot", "values": "slot", "page tables": "entry"}.get(tensor, "element")
        each = outcome.problem.dim * outcome.problem.kv_heads if unit == "slot" else 1
        number = outcome.problem.tensors[tensor].numel() // each
        there = f"there are 0 to {number - 1}" if number > 1 else "there is only 0"
        lines.append(f"{tensor}: {marks.named(unit, {e // each for e in elements})} ({there})")
    return lines


def _cache_said(outcome: Outcome, name: str, rows: Mapping[int, Row]) -> str:
    """What a cache's picture shows, in words: what looks the same together."""
    heads, size = outcome.problem.kv_heads, outcome.problem.tensors["keys"][..., 0].numel()
    found: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for row in sorted(rows):
        if 0 <= row < size:
            slot, kv_head = divmod(row, heads)
            by = (
                f" of KV head {kv_head} by {outcome.problem.loaders} {rows[row].text(True)}"
                if outcome.problem.heads > 1
                else ""
            )
            found[rows[row].look, by].append(slot)
    parts = [f"{LOOKS[look][1]}: {marks.named('slot', slots)}{by}" for (look, by), slots in sorted(found.items())]
    return f"{name}: {'; '.join(parts) or 'nothing'}."


def _tables_said(outcome: Outcome, rows: Mapping[int, Row]) -> str:
    """What the picture of the page tables shows, in words."""
    parts = []
    for sequence, entries in enumerate(outcome.problem.tensors["page tables"].tolist()):
        found: defaultdict[str, list[int]] = defaultdict(list)
        for column in range(len(entries)):
            if row := rows.get(sequence * len(entries) + column):
                found[LOOKS[row.look][1]].append(column)
        parts += [
            f"sequence {sequence}, {marks.named('entry', which)} {words}" for words, which in sorted(found.items())
        ]
    return f"Page tables: {'; '.join(parts) or 'nothing'}."
