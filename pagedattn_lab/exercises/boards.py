"""Page tables and a free queue that an answer returned, drawn as a board."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from pagedattn_lab.recorder.frame import Frame, TableState, mark_for
from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.board import describe, draw

WIDTH = 400
"""Pixels: two of them stand side by side in a notebook, and one fits a phone."""
MOST_BLOCKS = 48
"""A larger board would not be read beside another."""


def board(
    tables: Sequence[Sequence[int]],
    lengths: Sequence[int] | None = None,
    free: Sequence[int] = (),
    *,
    block_size: int,
    cached: Collection[int] = (),
    changed: Collection[int] = (),
) -> Picture | None:
    """Draw page tables and a free queue; requests are called A, B, C and so on.

    Args:
        tables: block numbers of each request.
        lengths: tokens of each request; as many as the blocks hold if left out.
        free: the free queue, next to be handed out first.
        block_size: tokens per block.
        cached: free blocks that carry a hash.
        changed: blocks to point at.

    Returns:
        The picture, or ``None`` if what was returned cannot be drawn: a number that is no block's, or too many blocks.

    Example:
        >>> board([[1, 2], [1]], [6, 4], [3], block_size=4)
        3 usable blocks of 4 tokens. A: 6 tokens in blocks 1 (4/4), 2 (2/4). B: 4 tokens in block 1 (4/4). Block 1 has reference count 2. Free queue: 3.
        >>> board([[-1]], block_size=4) is None
        True
    """  # noqa: E501
    named = [block for table in tables for block in table] + list(free)
    if not all(isinstance(block, int) and 0 <= block < MOST_BLOCKS for block in named) or len(tables) > 26:
        return None
    owners = Counter(block for table in tables for block in table)
    states: list[TableState] = []
    for index, table in enumerate(tables):
        name = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[index]
        length = len(table) * block_size if lengths is None else lengths[index]
        mark = mark_for(name, [state.mark for state in states])
        states.append(TableState(name, index, mark, length, tuple(table)))
    ref_cnt = tuple(owners[block] for block in range(max([0, *named, *cached]) + 1))
    hashes = {block: f"h{block}" for block in sorted(cached)}
    frame = Frame("note", "", tuple(changed), block_size, tuple(states), ref_cnt, hashes, tuple(free))
    return Picture(draw(frame, width=WIDTH), describe(frame))
