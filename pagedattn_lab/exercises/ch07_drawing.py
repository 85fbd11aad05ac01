"""A drawing of what a kernel loaded: slots of the caches and entries of the page tables, with those it needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from html import escape
from typing import NamedTuple

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises.ch07_problem import Outcome
from pagedattn_lab.recorder.sentences import counted
from pagedattn_lab.viz import SKY, VERMILION, Picture

WIDTH = 400
"""Pixels: two of them stand side by side in a notebook, and one fits a phone."""
LOOKS = {  # of a cell: its mark, what it means, and how it is drawn
    "loaded": ("✓", "needed and loaded", f'fill="{SKY}" stroke="#555"'),
    "missing": ("○", "needed, not loaded", 'fill="#fff" stroke="#222" stroke-width="2" stroke-dasharray="4 3"'),
    "without need": ("✗", "loaded, not needed", f'fill="{VERMILION}" stroke="#222" stroke-width="2"'),
    "outside": ("!", "out of bounds", f'fill="#fff" stroke="{VERMILION}" stroke-width="3"'),
    "idle": ("", "neither", 'fill="#f4f4f4" stroke="#aaa"'),
}
PAD, CELL, GAP, LABEL = 10, 22, 12, 98
MOST_HEADS, MOST_NUMBERS = 4, 6
"""More of them in one place would not be read."""


class Row(NamedTuple):
    """A row of a tensor: query heads that need it and query heads that load it, each with its sequence."""

    needed: set[tuple[int, int]]
    loaded: set[tuple[int, int]]

    @property
    def look(self) -> str:
        """Its place in ``LOOKS``, the worst that can be said of it."""
        if self.loaded - self.needed:
            return "without need"
        return "missing" if self.needed - self.loaded else "loaded" if self.loaded else "idle"

    def text(self, with_heads: bool) -> str:
        """A mark, or the query heads with a mark at each that is wrong."""
        if not with_heads:
            return LOOKS[self.look][0]
        parts = [f"{head}✗" if (row, head) not in self.needed else str(head) for row, head in self.loaded]
        parts += [f"{head}○" for _, head in self.needed - self.loaded]
        return " ".join(sorted(parts)) if len(parts) <= MOST_HEADS else LOOKS[self.look][0]


def rows_of(outcome: Outcome, tensor: str) -> Mapping[int, Row]:
    """Give each row of a tensor that was needed or loaded; those outside of it have numbers that do not exist."""
    found: defaultdict[int, Row] = defaultdict(lambda: Row(set(), set()))
    for program, rows in outcome.rows("load", tensor).items():
        for row in rows:
            found[row].loaded.add(outcome.problem.programs[program])
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
        parts += _cell(PAD, y + 10, CELL, "outside", "!") + _text(line, PAD + CELL + 8, y + 25)
        y += CELL + 6
    said += [f"Out of bounds: {'; '.join(outside)}."] if outside else []
    y += 10
    legend = [f"{mark} {words}" for mark, words, _ in LOOKS.values() if mark]
    for line in (" · ".join(legend[:2]), " · ".join(legend[2:])):
        y += 16
        parts += _text(line, PAD, y, size=11)
    if outcome.problem.heads > 1:
        y += 16
        parts += _text("a line of a block per KV head, with the query heads that load it", PAD, y, size=11)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 10}" width="{WIDTH}" height="{y + 10}" '
        f'font-family="sans-serif"><rect width="{WIDTH}" height="{y + 10}" fill="#fff"/>{"".join(parts)}</svg>'
    )
    return Picture(svg, " ".join(said))


def _text(
    text: str, x: float, y: float, size: int = 12, anchor: str = "start", bold: bool = False, ink: str = "#222"
) -> list[str]:
    weight = ' font-weight="bold"' if bold else ""
    return [
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}"{weight} fill="{ink}">{escape(text)}</text>'
    ]


def _cell(x: float, y: float, width: float, look: str, text: str, above: str = "", size: int = 12) -> list[str]:
    """A cell with a mark; a value above the mark makes it higher."""
    height = CELL + 14 if above else CELL
    drawn = [f'<rect x="{x}" y="{y}" width="{width}" height="{height}" {LOOKS[look][2]}/>']
    ink = "#000" if look in ("loaded", "without need") else "#222"  # on a colour it stays dark on a dark page
    if above:
        drawn += _text(above, x + width / 2, y + 14, anchor="middle", ink=ink)
    return drawn + _text(text, x + width / 2, y + height - 7, size, anchor="middle", bold=True, ink=ink)


def _width(text: str) -> int:
    """Pixels for bold letters of 12 and a margin; marks are wider than digits, spaces narrower."""
    return sum(4 if letter == " " else 9 if letter.isdigit() else 12 for letter in text) + 10


def _tables(outcome: Outcome, rows: Mapping[int, Row], y: int) -> tuple[list[str], int]:
    """Every page table: what its entries hold, and how they were loaded."""
    table = outcome.problem.tensors["page tables"]
    parts = _text("Page tables", PAD, y, 13, bold=True)
    y += 8
    for sequence, entries in enumerate(table.tolist()):
        tokens = counted(outcome.problem.lens[sequence], "token")
        parts += _text(f"seq {sequence}: {tokens}", PAD, y + 22)
        x = PAD + LABEL
        for column, block in enumerate(entries):
            row = rows.get(sequence * table.shape[1] + column, Row(set(), set()))
            width = max(30, 8 * len(str(block)) + 10)
            if x + width > WIDTH - PAD:
                x, y = PAD + LABEL, y + CELL + 18
            parts += _cell(x, y, width, row.look, LOOKS[row.look][0], str(block))
            x += width + 4
        y += CELL + 18
    return parts, y


def _cache(outcome: Outcome, name: str, rows: Mapping[int, Row], y: int) -> tuple[list[str], int]:
    """Every block: a column for each slot, a line for each KV head."""
    problem = outcome.problem
    size, heads = problem.block_size, problem.kv_heads
    num_blocks = problem.tensors["keys"].shape[0]
    idle = Row(set(), set())
    with_heads = problem.heads > 1
    widest = max([CELL, *(_width(row.text(with_heads)) for row in rows.values())])
    cell = min(widest, (WIDTH - 2 * PAD) // size)  # a block must fit the picture
    letters = 12 if cell == widest else 10
    width = size * cell + GAP
    columns = max(1, (WIDTH - 2 * PAD + GAP) // width)
    parts = _text(name, PAD, y, 13, bold=True)
    for block in range(num_blocks):
        left = PAD + block % columns * width
        top = y + 8 + block // columns * (20 + heads * CELL)
        caption = "0 null" if block == 0 and size * cell > 44 else f"{block}"
        parts += _text(caption, left, top + 12)
        for offset in range(size):
            for kv_head in range(heads):
                row = rows.get((block * size + offset) * heads + kv_head, idle)
                x, line = left + offset * cell, top + 16 + kv_head * CELL
                parts += _cell(x, line, cell, row.look, row.text(with_heads), size=letters)
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
        lines.append(f"{tensor}: {_named(unit, {e // each for e in elements})} ({there})")
    return lines


def _named(noun: str, numbers: Collection[int]) -> str:
    """Write numbers in order with what they count, three or more in a row as a range, many of them cut."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    parts = [
        text for run in found for text in ([f"{run[0]}–{run[-1]}"] if len(run) > 2 else [str(number) for number in run])
    ]
    words = noun if len(numbers) == 1 else f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{words} {', '.join(parts[:MOST_NUMBERS])}{' and more' if len(parts) > MOST_NUMBERS else ''}"


def _cache_said(outcome: Outcome, name: str, rows: Mapping[int, Row]) -> str:
    """What a cache's picture shows, in words: what looks the same together."""
    heads, size = outcome.problem.kv_heads, outcome.problem.tensors["keys"][..., 0].numel()
    found: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for row in sorted(rows):
        if 0 <= row < size:
            slot, kv_head = divmod(row, heads)
            by = f" of KV head {kv_head} by query heads {rows[row].text(True)}" if outcome.problem.heads > 1 else ""
            found[rows[row].look, by].append(slot)
    parts = [f"{LOOKS[look][1]}: {_named('slot', slots)}{by}" for (look, by), slots in sorted(found.items())]
    return f"{name}: {'; '.join(parts) or 'nothing'}."


def _tables_said(outcome: Outcome, rows: Mapping[int, Row]) -> str:
    """What the picture of the page tables shows, in words."""
    parts = []
    for sequence, entries in enumerate(outcome.problem.tensors["page tables"].tolist()):
        found: defaultdict[str, list[int]] = defaultdict(list)
        for column in range(len(entries)):
            if row := rows.get(sequence * len(entries) + column):
                found[LOOKS[row.look][1]].append(column)
        parts += [f"sequence {sequence}, {_named('entry', which)} {words}" for words, which in sorted(found.items())]
    return f"Page tables: {'; '.join(parts) or 'nothing'}."
