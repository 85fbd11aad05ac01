"""A picture of paged memory: the blocks, each request's page table, and the free queue (chapters 00, 03, 04)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.viz import BLUE, GREEN, PURPLE, SKY, VERMILION, Picture

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, "#8A6D00", SKY)  # a darker orange: white letters stand on it
CELL, GAP, LEFT, LINE = 20, 14, 16, 22
_TEXT = 'font-family="sans-serif" font-size="12" fill="#222"'


def show_memory(
    pool: BlockPool,
    tables: Mapping[str, BlockTable],
    words: Mapping[str, Sequence[str]] | None = None,
    blocks_per_row: int = 4,
) -> Picture:
    """Draw every block with its owner and fill, every page table, and the free queue in order.

    Args:
        pool: the physical memory; a picture of up to about 64 blocks can be read.
        tables: the page tables, by the name of their request. The first letter of a name marks its tokens.
        words: the tokens' text by request, to hover over in the drawn slots.
        blocks_per_row: how many blocks stand side by side.

    Returns:
        A picture whose alt text holds the same state.

    Example:
        >>> pool = BlockPool(num_blocks=4, block_size=4)
        >>> table = BlockTable(pool)
        >>> _ = table.append_tokens(5)
        >>> show_memory(pool, {"A": table})
        3 usable blocks of 4 tokens. A: 5 tokens in blocks 1 (4/4), 2 (1/4). Free queue: 3.
    """
    size = pool.block_size
    owners: dict[int, list[tuple[int, str, int]]] = {}  # block -> (index of the request, its name, logical block)
    for index, (name, table) in enumerate(tables.items()):
        for logical, block_id in enumerate(table.block_ids):
            owners.setdefault(block_id, []).append((index, name, logical))
    block_width = max(size * CELL, 46) + GAP  # wide enough for a caption, whatever the block size
    parts = []
    for block_id in range(pool.num_blocks):
        x = LEFT + (block_id % blocks_per_row) * block_width
        y = 34 + (block_id // blocks_per_row) * (CELL + 34)
        parts.append(_block(pool, tables, words or {}, owners.get(block_id, []), block_id, x, y))
    bottom = 34 + -(-pool.num_blocks // blocks_per_row) * (CELL + 34)
    width = max(LEFT * 2 + blocks_per_row * block_width, 420)
    columns = (width - 2 * LEFT - 20) // 6  # letters of 12 pixels are about 6 wide
    lines = [_heading("Page tables (logical block → physical block, tokens in it)", bottom + 10)]
    y = bottom + 10 + LINE
    for index, (name, table) in enumerate(tables.items()):
        entries = "; ".join(f"{logical} → {entry}" for logical, entry in enumerate(_entries(table))) or "empty"
        colour = COLOURS[index % len(COLOURS)]
        lines.append(f'<rect x="{LEFT}" y="{y - 11}" width="12" height="12" fill="{colour}"/>')
        for line in textwrap.wrap(f"{name}: {entries}", columns):
            lines.append(f'<text x="{LEFT + 20}" y="{y}" {_TEXT}>{escape(line)}</text>')
            y += LINE
    free = [block.block_id for block in pool.free_block_queue.get_all_free_blocks()]
    queue = ", ".join(map(str, free)) or "empty"
    lines += [_heading("Free queue (next to be handed out first)", y + 6)]
    for line in textwrap.wrap(queue, columns):
        y += LINE
        lines.append(f'<text x="{LEFT}" y="{y + 6}" {_TEXT}>{line}</text>')
    height = y + 20
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>'
        + _heading("Physical blocks", 20)
        + "".join(parts + lines)
        + "</svg>"
    )
    sequences = [
        f"{name}: {table.num_tokens} tokens in blocks {', '.join(_entries(table)) or 'none'}."
        for name, table in tables.items()
    ]
    alt = f"{pool.num_blocks - 1} usable blocks of {size} tokens. {' '.join(sequences)} Free queue: {queue}."
    return Picture(svg, alt)


def _heading(text: str, y: int) -> str:
    return f'<text x="{LEFT}" y="{y}" {_TEXT} font-weight="bold">{text}</text>'


def _entries(table: BlockTable) -> list[str]:
    """Each physical block of a table with how many of its slots hold tokens."""
    size = table.pool.block_size
    return [
        f"{block_id} ({min(size, table.num_tokens - logical * size)}/{size})"
        for logical, block_id in enumerate(table.block_ids)
    ]


def _block(
    pool: BlockPool,
    tables: Mapping[str, BlockTable],
    words: Mapping[str, Sequence[str]],
    owners: Sequence[tuple[int, str, int]],
    block_id: int,
    x: int,
    y: int,
) -> str:
    """Draw one block: its number above, one cell per slot, an initial in each slot that holds a token."""
    size = pool.block_size
    caption = "0 (null)" if block_id == 0 else str(block_id)
    if len(owners) > 1:
        caption += f" ×{pool.blocks[block_id].ref_cnt}"
    parts = [f'<text x="{x}" y="{y + 8}" {_TEXT}>{caption}</text>']
    for offset in range(size):
        fill, letter, hover = ("#ddd" if block_id == 0 else "#fff"), "", f"block {block_id}, slot {offset}: empty"
        if owners:
            index, name, logical = owners[0]
            position = logical * size + offset
            if position < tables[name].num_tokens:
                fill, letter = COLOURS[index % len(COLOURS)], escape(name[:1])
                word = f" {words[name][position]!r}" if position < len(words.get(name, ())) else ""
                hover = escape(f"block {block_id}, slot {offset}: {name}, token {position}{word}")
        left = x + offset * CELL
        parts.append(
            f'<rect x="{left}" y="{y + 13}" width="{CELL}" height="{CELL}" fill="{fill}" stroke="#555">'
            f"<title>{hover}</title></rect>"
        )
        if letter:
            parts.append(
                f'<text x="{left + CELL // 2}" y="{y + 27}" text-anchor="middle" font-family="sans-serif" '
                f'font-size="11" fill="#fff" pointer-events="none">{letter}</text>'
            )
    return "".join(parts)
