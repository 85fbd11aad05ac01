"""Page tables, the arrows from their entries to blocks, and the free queue. The same in ``tables.js``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.recorder.frame import Frame, TableState
from pagedattn_lab.recorder.sentences import counted
from pagedattn_lab.viz.looks import COLOURS, INK, halo, heading, label, paint, shorten, text_at
from pagedattn_lab.viz.tiles import GAP, GHOST, Tile

MOST_ARROWS = 4
"""More would hide what they point at: where a sentence is about more entries, none has one."""

_LINE, _ROW_GAP = 22, 6


class Entry(NamedTuple):
    """One entry of a page table, and where it is drawn."""

    table: TableState
    logical: int
    block_id: int
    x: int
    y: int


class PlacedTable(NamedTuple):
    """One page table: where the line with its name stands, and its entries."""

    table: TableState
    x: int
    y: int
    entries: list[Entry]


class TablesLayout(NamedTuple):
    """Where the page tables of a frame stand, the size of an entry, and where it all begins and ends."""

    tables: list[PlacedTable]
    chip: tuple[int, int]
    left: int
    end: int


def place_tables(frame: Frame, dense: bool, left: int, top: int, width: int) -> TablesLayout:
    """Give every page table a line for its name and rows for its entries."""
    columns = max(1, width // 300) if dense else 1
    column_width = width // columns
    chip, height = (36, 18) if dense else (50, 20)
    per_row = max(1, (column_width - GAP) // (chip + 8))
    placed, ends = [], [top + 12] * columns
    for index, table in enumerate(frame.tables):
        x, y = left + index % columns * column_width, ends[index % columns]
        entries = []
        for logical, block_id in enumerate(table.block_ids):
            at = x + logical % per_row * (chip + 8), y + 22 + logical // per_row * (height + _ROW_GAP)
            entries.append(Entry(table, logical, block_id, *at))
        placed.append(PlacedTable(table, x, y, entries))
        ends[index % columns] = y + _LINE + cdiv(len(table.block_ids), per_row) * (height + _ROW_GAP) + 8
    return TablesLayout(placed, (chip, height), left, max(ends))


def draw_tables(frame: Frame, dense: bool, layout: TablesLayout) -> Iterator[str]:
    """Draw every page table: a line with its name, then its entries."""
    chip, height = layout.chip
    for table, x, y, entries in layout.tables:
        looks = [(table.colour, table.mark)]
        name = f'<tspan font-weight="bold">{escape(shorten(table.name, 24))}</tspan>'
        yield (
            f'<g transform="translate({x},{y})">{paint(looks, 0, 0, 22, 16)}{label(table.mark, looks, 11, 12, 11)}'
            + text_at(f"{name}: {counted(table.num_tokens, 'token')}", 28, 12, "start", "pa-ink", "#222", 12)
            + "</g>"
        )
        for _, logical, block_id, left, top in entries:
            filled = frame.tokens_in(table, logical)
            title = f"{table.name}, logical block {logical} → block {block_id}: {filled} of {frame.block_size} slots"
            shown = str(block_id) if dense else f"{logical}→{block_id}"
            yield (
                f'<g data-request="{escape(table.name)}" data-logical="{logical}" data-block-of="{block_id}" '
                f'class="pa-entry" transform="translate({left},{top})"><title>{escape(title)}</title>'
                f"{halo(chip, height, False)}"
                f'<rect width="{chip}" height="{height}" class="pa-empty" fill="#fff" stroke="#555"/>'
                f'<rect width="5" height="{height}" fill="{COLOURS[table.colour % len(COLOURS)][0]}"/>'
                f'<text x="{chip // 2 + 2}" y="{height - 6}" text-anchor="middle" {INK}>{shown}</text></g>'
            )


def in_question(frame: Frame) -> list[tuple[str, int]]:
    """Choose the entries that arrows start from, by name and logical block: those whose block has changed of the table
    that the sentence begins with, or if it names none that has such an entry, of all tables. None if they are many."""
    changed = [
        (table.name, logical)
        for table in frame.tables
        for logical, block_id in enumerate(table.block_ids)
        if block_id in frame.changed
    ]
    names = [table.name for table in frame.tables if frame.sentence.startswith(f"{table.name} ")]
    subject = max(names, key=len, default=None)  # "Ada 2 appends" is not about Ada
    chosen = [entry for entry in changed if entry[0] == subject] or changed
    return chosen if len(chosen) <= MOST_ARROWS else []


def arrow(entry: Entry, layout: TablesLayout, block: tuple[int, int], tile: Tile, right: int | None) -> str:
    """Draw an arrow from a table entry to its block that crosses neither other entries nor other blocks.

    Where the tables stand beside the blocks, which end at ``right``, it leaves between two rows of entries; where they
    stand below (``None``), it goes round by the margin. Either way it comes in between two rows of blocks. Arrows
    from one row share that way, and part where their blocks are; each starts with a foot of its own.
    """
    chip, height = layout.chip
    x, to_x, bottom = entry.x + chip // 2, block[0] + tile.width // 2, block[1] + tile.height
    below = bottom + (3 if tile.dense else 6)
    if right is None:
        way = f"M{x},{entry.y + 3}v-6H3V{below}"
    else:
        row, left = entry.y + height + 3, layout.left - 4
        middle = (left + right) // 2
        way = f"M{x},{entry.y + height - 4}V{row}H{left}C{middle},{row} {middle},{below} {right},{below}"
    line = f"{way}H{to_x}V{bottom + 2}"
    head = f"M{to_x},{bottom - 5}l-4,8h8z"
    return (
        f'<g class="pa-arrow" fill="none" stroke-linejoin="round" pointer-events="none">'
        f'<path class="pa-arrow-edge" d="{line}" stroke="#fff" stroke-width="4" stroke-opacity="0.8"/>'
        f'<path class="pa-arrow-line" d="{line}" stroke="#b3004b" stroke-width="2"/>'
        f'<path class="pa-arrow-head" d="{head}" fill="#b3004b"/></g>'
    )


class Chip(NamedTuple):
    """One entry of the free queue, or a run of blocks in one, and where it is drawn."""

    text: str
    number: int
    cached: bool
    x: int
    y: int
    width: int


def runs(block_ids: Sequence[int], dense: bool) -> list[tuple[str, int]]:
    """Name the entries of a queue and how many blocks each stands for; a dense board joins four or more in a row.

    Example:
        >>> runs([7, 1, 2, 3, 4, 9], dense=True)
        [('7', 1), ('1–4', 4), ('9', 1)]
    """
    found, start = [], 0
    for end in range(1, len(block_ids) + 1):
        if end < len(block_ids) and block_ids[end] == block_ids[end - 1] + 1:
            continue
        if dense and end - start >= 4:
            found.append((f"{block_ids[start]}–{block_ids[end - 1]}", end - start))
        else:
            found += [(str(block_id), 1) for block_id in block_ids[start:end]]
        start = end
    return found


def place_free(frame: Frame, dense: bool, left: int, top: int, width: int) -> tuple[list[Chip], int]:
    """Stand the free queue in rows. Returns its entries and where they end."""
    chips, x, y = [], left, top + 12
    for text, number in runs(frame.free, dense):
        cached = number == 1 and int(text) in frame.hashes
        chip = max(32, (len(text) + cached) * 7 + 12)
        if x > left and x + chip > left + width:
            x, y = left, y + 26
        chips.append(Chip(text, number, cached, x, y, chip))
        x += chip + 6
    return chips, y + 24


def draw_free(frame: Frame, chips: Sequence[Chip], left: int, top: int) -> Iterator[str]:
    """Draw the free queue in order; who waits with contents has their colour."""
    yield heading(f"Free queue: {counted(len(frame.free), 'block')}, next one first", left, top)
    for chip in chips:
        title = f"block {chip.text}, free" if chip.number == 1 else f"blocks {chip.text}, free"
        held = frame.contents.get(int(chip.text)) if chip.cached else None
        fill = "" if held is None else COLOURS[held.colour % len(COLOURS)][0]
        tint = f'<rect width="{chip.width}" height="20" fill="{fill}" {GHOST}/>' if fill else ""
        yield (
            f'<g data-free="{chip.text}" class="pa-entry" transform="translate({chip.x},{chip.y})">'
            f"<title>{title}</title>{halo(chip.width, 20, False)}"
            f'<rect width="{chip.width}" height="20" class="pa-free" fill="#fff" stroke="#777" '
            f'stroke-dasharray="3 3"/>{tint}<text x="{chip.width // 2}" y="14" text-anchor="middle" {INK}>'
            f"{chip.text}{'#' if chip.cached else ''}</text></g>"
        )
    if not frame.free:
        yield f'<text x="{left}" y="{top + 26}" {INK}>empty: the next request for a block is refused</text>'
