"""A still picture of paged memory as it is now (chapters 00, 03, 04)."""

from __future__ import annotations

from collections.abc import Mapping

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.recorder.frame import snapshot
from pagedattn_lab.viz.board import Still, show_frame
from pagedattn_lab.viz.tiles import Words, visible


def show_memory(pool: BlockPool, tables: Mapping[str, BlockTable], words: Words | None = None) -> Still:
    """Draw every block with its owner and fill, every page table, and the free queue in order.

    Args:
        pool: the physical memory.
        tables: the page tables, by the name of their request. The first letter of a name marks its tokens.
        words: the tokens' text by request, to stand in the cells.

    Returns:
        A picture whose alt text holds the same state.

    Example:
        >>> pool = BlockPool(num_blocks=4, block_size=4)
        >>> table = BlockTable(pool)
        >>> _ = table.append_tokens(5)
        >>> show_memory(pool, {"A": table})
        3 usable blocks of 4 tokens. A: 5 tokens in blocks 1 (4/4), 2 (1/4). Free queue: 3.
    """
    shown = {name: [visible(word) for word in row] for name, row in (words or {}).items()}
    return show_frame(snapshot(pool, tables), shown)
