"""The drawing of a frame: physical blocks, the page tables beside them, the free queue below (chapters 00, 03, 04, 07).

``board.js`` draws the same board, string for string, so that the picture without scripts and the one that moves cannot
part; a browser test compares them. Hence whole numbers only, no ids, and colours as attributes that a stylesheet may
override.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.recorder.frame import BlockState, Frame, TableState
from pagedattn_lab.recorder.sentences import counted
from pagedattn_lab.viz import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, Picture

WIDTH = 760
# A request's colour and that of letters on it: every pair has a contrast of at least 4.5 to 1 (WCAG 2.1, 1.4.3).
COLOURS = (
    (BLUE, "#fff"), (ORANGE, "#000"), (GREEN, "#000"), (PURPLE, "#000"), (SKY, "#000"), (VERMILION, "#000"),
    ("#F0E442", "#000"),
)  # fmt: skip
LEGEND = (
    "thick outline: what the sentence is about",
    "ticked edge and ×2: reference count 2",
    "!: not as many table entries as counted",
    "dashed: free",
    "#: cached contents",
)
# Stand-ins for what has no shape of its own, or none that XML allows: Unicode's pictures of control characters.
STAND_INS = {code: 0x2400 + code for code in range(32)} | {127: 0x2421, 0xFFFE: 0xFFFD, 0xFFFF: 0xFFFD}
STAND_INS |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)
_PAD, _GAP, _LINE = 8, 12, 22
_INK = 'class="pa-ink" fill="#222"'

Words = Mapping[str, Sequence[str]]
Owners = Mapping[str, TableState]


class _Tile(NamedTuple):
    """How one physical block is drawn: its size in pixels, and how many cells stand side by side (0: a bar)."""

    width: int
    height: int
    columns: int
    cell: int
    dense: bool


def draw(frame: Frame, words: Words | None = None, width: int = WIDTH) -> str:
    """Draw one frame as an SVG element.

    Args:
        frame: the state to draw.
        words: text of each token by request, to stand in the cells.
        width: pixels there are; a wide board has the tables beside the blocks, a narrow one below.

    Example:
        >>> from pagedattn_lab.block_pool import BlockPool
        >>> from pagedattn_lab.recorder.frame import snapshot
        >>> draw(snapshot(BlockPool(4, 4), {})).count("<title>slot")
        16
    """
    words = words or {}
    tile = _tile(len(frame.ref_cnt), frame.block_size, bool(words))
    beside = width >= 700 and not tile.dense and bool(frame.tables)
    tables_width = max(240, width * 38 // 100) if beside else width - 2 * _PAD
    blocks_width = width - 2 * _PAD - (tables_width + 2 * _GAP if beside else 0)
    gap = 6 if tile.dense else _GAP
    columns = max(1, (blocks_width + gap) // (tile.width + gap))
    groups = [_heading("Physical blocks", _PAD, 18)]
    free, owners = set(frame.free), {table.name: table for table in frame.tables}
    for block in frame.blocks:
        x = _PAD + block.block_id % columns * (tile.width + gap)
        y = 30 + block.block_id // columns * (tile.height + gap)
        groups.append(_block(block, frame, tile, words, owners, block.block_id in free, x, y))
    bottom = 30 + cdiv(len(frame.ref_cnt), columns) * (tile.height + gap)
    if frame.tables:
        left, top = (width - _PAD - tables_width, 18) if beside else (_PAD, bottom + 14)
        drawn, end = _tables(frame, tile.dense, left, top, tables_width)
        groups += drawn
        bottom = max(bottom, end)
    drawn, bottom = _free_queue(frame, tile.dense, bottom + 14, width - 2 * _PAD)
    groups += drawn
    lines = [LEGEND[0]]
    for item in LEGEND[1:]:
        if (len(lines[-1]) + 3 + len(item)) * 6 > width - 2 * _PAD:
            lines.append(item)
        else:
            lines[-1] += f" · {item}"
    for line in lines:
        bottom += 16
        groups.append(f'<text x="{_PAD}" y="{bottom}" font-size="11" class="pa-soft" fill="#5f5f5f">{line}</text>')
    height = bottom + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12"><rect class="pa-paper" width="{width}" height="{height}" '
        f'fill="#fff"/>{"".join(groups)}</svg>'
    )


def describe(frame: Frame) -> str:
    """Say in words what the board shows.

    Example:
        >>> from pagedattn_lab.block_pool import BlockPool
        >>> from pagedattn_lab.recorder.frame import snapshot
        >>> describe(snapshot(BlockPool(4, 4), {}))
        '3 usable blocks of 4 tokens. Free queue: 1, 2, 3.'
    """
    parts = [f"{frame.sentence} "] if frame.sentence else []
    parts.append(f"{counted(len(frame.ref_cnt) - 1, 'usable block')} of {counted(frame.block_size, 'token')}. ")
    for table in frame.tables:
        entries = [
            f"{block_id} ({frame.tokens_in(table, logical)}/{frame.block_size})"
            for logical, block_id in enumerate(table.block_ids)
        ]
        where = f"in block{'s' if len(entries) > 1 else ''} {', '.join(entries)}" if entries else "and no block"
        parts.append(f"{table.name}: {counted(table.num_tokens, 'token')} {where}. ")
    for block in frame.blocks:
        if block.ref_cnt > 1 or block.ref_cnt != len(block.owners):
            parts.append(f"Block {block.block_id} has reference count {block.ref_cnt}. ")
    if frame.hashes:
        parts.append(f"Cached contents in block{'s' if len(frame.hashes) > 1 else ''} ")
        parts.append(f"{', '.join(map(str, frame.hashes))}. ")
    free = ", ".join(text for text, _ in runs(frame.free, dense=True)) or "empty"
    return "".join(parts) + f"Free queue: {free}."


def visible(word: str) -> str:
    """Make a token's text one that can be seen in a cell, and that XML can hold.

    Example:
        >>> visible("\\n"), visible("  "), visible(" the")
        ('␊', '␣␣', ' the')
    """
    return (word if word.strip() or not word else word.replace(" ", "␣")).translate(STAND_INS)


def show_frame(frame: Frame, words: Words | None = None) -> Picture:
    """Make a still picture of a frame, with its text equivalent; ``words`` as for :func:`draw`."""
    return Picture(draw(frame, words), describe(frame))


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


def _tile(num_blocks: int, block_size: int, with_words: bool) -> _Tile:
    if num_blocks > 96 or block_size > 32:
        return _Tile(34 if num_blocks > 96 else 64, 30, 0, 0, num_blocks > 96)
    cell = 52 if with_words else 18
    columns = min(block_size, 4 if with_words else 8)
    return _Tile(max(columns * cell, 44), 16 + cdiv(block_size, columns) * 18 + 6, columns, cell, False)


def _heading(text: str, x: int, y: int) -> str:
    return f'<text x="{x}" y="{y}" font-size="13" font-weight="bold" {_INK}>{text}</text>'


def _halo(width: int, height: int, changed: bool) -> str:
    """The outline of a group: drawn for what an event has changed, and by the stylesheet for what is pointed at."""
    stroke = "#222" if changed else "none"
    kind = "pa-halo pa-changed" if changed else "pa-halo"
    return (
        f'<rect class="{kind}" x="-4" y="-4" width="{width + 8}" height="{height + 8}" rx="4" fill="none" '
        f'stroke="{stroke}" stroke-width="2" pointer-events="all"/>'
    )


def _title(block: BlockState, frame: Frame, free: bool) -> str:
    """What a block holds, for the pointer and for screen readers."""
    if block.block_id == 0:
        return "block 0, the null block: never handed out"
    held = ", ".join(f"{name}'s logical block {logical}" for name, logical in block.owners) or "no table names it"
    parts = [f"block {block.block_id}: {held}", f"reference count {block.ref_cnt}"]
    if block.owners:
        parts.append(f"{block.num_tokens} of {frame.block_size} slots filled")
    if free:
        parts.append("free")
    if block.block_hash is not None:
        parts.append(f"hash {block.block_hash}")
    return "; ".join(parts)


def _block(
    block: BlockState, frame: Frame, tile: _Tile, words: Words, owners: Owners, free: bool, x: int, y: int
) -> str:
    miscounted = block.block_id > 0 and block.ref_cnt != len(block.owners)
    badge = f"×{block.ref_cnt}{'!' if miscounted else ''}" if block.ref_cnt > 1 or miscounted else ""
    caption = str(block.block_id)
    if block.block_id == 0 and not tile.dense:
        caption = "0 null"
    if block.block_hash is not None:
        caption += f" #{block.block_hash[:4]}" if tile.width >= 72 else "#"
    parts = [
        f'<g data-block="{block.block_id}" class="pa-block" transform="translate({x},{y})">'
        f"<title>{escape(_title(block, frame, free))}</title>",
        _halo(tile.width, tile.height, block.block_id in frame.changed),
    ]
    if tile.dense:
        parts.append(_text(escape(caption), tile.width // 2, 10, "middle", "pa-ink", "#222", 10))
    else:
        parts.append(_text(escape(caption), 0, 11, "start", "pa-ink", "#222", 12))
    if badge and not tile.dense:
        parts.append(_text(f'<tspan font-weight="bold">{badge}</tspan>', tile.width, 11, "end", "pa-ink", "#222", 12))
    if tile.columns:
        parts.append(_cells(block, frame, tile, words, owners))
    else:
        parts.append(_bar(block, frame, tile, owners, badge if tile.dense else ""))
    if badge:
        ticks = "".join(f"M{left},{tile.height}l4,-4" for left in range(0, tile.width - 3, 6))
        parts.append(f'<path class="pa-line" d="{ticks}" stroke="#222" stroke-width="2" fill="none"/>')
    return "".join(parts) + "</g>"


def _text(body: str, x: int, y: int, anchor: str, kind: str, fill: str, size: int) -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" class="{kind}" fill="{fill}" '
        f'pointer-events="none">{body}</text>'
    )


def _slot_look(block: BlockState) -> str:
    """Class and colours of a slot without a token: in the null block, in a free or cached one, in one in use."""
    if block.block_id == 0:
        return 'class="pa-null" fill="#d6d6d6" stroke="#777"'
    if block.ref_cnt == 0:
        kind, fill = ("pa-cached", "#e4e4e4") if block.block_hash is not None else ("pa-free", "#fff")
        return f'class="{kind}" fill="{fill}" stroke="#777" stroke-dasharray="3 3"'
    return 'class="pa-empty" fill="#fff" stroke="#555"'


def _bar(block: BlockState, frame: Frame, tile: _Tile, owners: Owners, badge: str) -> str:
    """A block too small or too long for cells: a bar in its owner's colour, below it a line as long as it is full."""
    fill, ink = "", "#222"
    look, label, level = _slot_look(block), badge, ""
    if block.num_tokens:
        owner = owners[block.owners[0][0]]
        fill, ink = COLOURS[owner.colour % len(COLOURS)]
        look, label = f'class="pa-filled" fill="{fill}" stroke="#555"', owner.mark + badge
        part = max(1, tile.width * block.num_tokens // frame.block_size)
        level = f'<rect class="pa-level" x="0" y="25" width="{part}" height="2" fill="#222"/>'
    bar = f'<rect x="0" y="12" width="{tile.width}" height="12" {look}/>{level}'
    kind = "pa-mark" if fill else "pa-ink"
    return bar + (_text(escape(label), tile.width // 2, 22, "middle", kind, ink, 10) if label else "")


def _cells(block: BlockState, frame: Frame, tile: _Tile, words: Words, owners: Owners) -> str:
    """A block as its slots: filled ones in an owner's colour with its mark, or the token's text."""
    parts = []
    for offset in range(frame.block_size):
        x, y = offset % tile.columns * tile.cell, 16 + offset // tile.columns * 18
        look, text, ink = _slot_look(block), "", "#222"
        slot = block.block_id * frame.block_size + offset
        title = f"slot {slot}: empty"
        for name, logical in block.owners:
            owner, position = owners[name], logical * frame.block_size + offset
            if position < owner.num_tokens:  # the first owner that reaches this far
                fill, ink = COLOURS[owner.colour % len(COLOURS)]
                look = f'class="pa-filled" fill="{fill}" stroke="#555"'
                known = words.get(name, ())
                word = known[position] if position < len(known) else ""
                text = shorten(word, 6) if word else owner.mark
                title = f"slot {slot}: {name}, token {position}" + (f" “{word}”" if word else "")
                break
        parts.append(
            f'<rect x="{x}" y="{y}" width="{tile.cell}" height="18" {look}><title>{escape(title)}</title></rect>'
        )
        if text:
            parts.append(_text(escape(text), x + tile.cell // 2, y + 13, "middle", "pa-mark", ink, 11))
    return "".join(parts)


def shorten(text: str, letters: int) -> str:
    """Cut a text to so many letters, the last of them an ellipsis, if it has more."""
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _tables(frame: Frame, dense: bool, left: int, top: int, width: int) -> tuple[list[str], int]:
    """Every page table: a line with its name, then its entries. Returns the groups and where they end."""
    groups = [_heading("Page tables: logical → physical block", left, top)]
    columns = max(1, width // 300) if dense else 1
    column_width = width // columns
    chip, height = (36, 18) if dense else (50, 20)
    per_row = max(1, (column_width - _GAP) // (chip + 8))
    ends = [top + 12] * columns
    for index, table in enumerate(frame.tables):
        x, y = left + index % columns * column_width, ends[index % columns]
        fill, ink = COLOURS[table.colour % len(COLOURS)]
        name = f'<tspan font-weight="bold">{escape(shorten(table.name, 24))}</tspan>'
        groups.append(
            f'<g transform="translate({x},{y})"><rect width="22" height="16" fill="{fill}" stroke="#555"/>'
            + _text(escape(table.mark), 11, 12, "middle", "pa-mark", ink, 11)
            + _text(f"{name}: {counted(table.num_tokens, 'token')}", 28, 12, "start", "pa-ink", "#222", 12)
            + "</g>"
        )
        for logical, block_id in enumerate(table.block_ids):
            at = f"{x + logical % per_row * (chip + 8)},{y + 22 + logical // per_row * (height + 4)}"
            filled = frame.tokens_in(table, logical)
            title = f"{table.name}, logical block {logical} → block {block_id}: {filled} of {frame.block_size} slots"
            label = str(block_id) if dense else f"{logical}→{block_id}"
            groups.append(
                f'<g data-request="{escape(table.name)}" data-logical="{logical}" data-block-of="{block_id}" '
                f'class="pa-entry" transform="translate({at})"><title>{escape(title)}</title>'
                f"{_halo(chip, height, False)}"
                f'<rect width="{chip}" height="{height}" class="pa-empty" fill="#fff" stroke="#555"/>'
                f'<rect width="5" height="{height}" fill="{fill}"/>'
                f'<text x="{chip // 2 + 2}" y="{height - 6}" text-anchor="middle" {_INK}>{label}</text></g>'
            )
        rows = cdiv(len(table.block_ids), per_row)
        ends[index % columns] = y + _LINE + rows * (height + 4) + 8
    return groups, max(ends)


def _free_queue(frame: Frame, dense: bool, top: int, width: int) -> tuple[list[str], int]:
    """The free queue in order. Returns the groups and where they end."""
    groups = [_heading(f"Free queue: {counted(len(frame.free), 'block')}, next one first", _PAD, top)]
    x, y = _PAD, top + 12
    for text, number in runs(frame.free, dense):
        cached = number == 1 and int(text) in frame.hashes
        label = f"{text}#" if cached else text
        chip = max(32, len(label) * 7 + 12)
        if x > _PAD and x + chip > _PAD + width:
            x, y = _PAD, y + 26
        title = f"block {text}, free" if number == 1 else f"blocks {text}, free"
        groups.append(
            f'<g data-free="{text}" class="pa-entry" transform="translate({x},{y})"><title>{title}</title>'
            f"{_halo(chip, 20, False)}"
            f'<rect width="{chip}" height="20" class="pa-free" fill="#fff" stroke="#777" stroke-dasharray="3 3"/>'
            f'<text x="{chip // 2}" y="14" text-anchor="middle" {_INK}>{label}</text></g>'
        )
        x += chip + 6
    if not frame.free:
        groups.append(f'<text x="{_PAD}" y="{y + 14}" {_INK}>empty: the next request for a block is refused</text>')
    return groups, y + 24
