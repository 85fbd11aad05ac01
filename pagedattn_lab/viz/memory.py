"""A still picture of paged memory as it is now (chapters 00, 03, 04)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.recorder.frame import snapshot
from pagedattn_lab.viz import MIME, Picture
from pagedattn_lab.viz.board import describe, draw
from pagedattn_lab.viz.tiles import Words, visible


@dataclass(frozen=True)
class Still(Picture):
    """A board that stands still. Where scripts run they draw it anew, as wide as the page is and in its colours.

    Args:
        recording: the one frame, in the form that a player plays.
    """

    recording: Mapping[str, Any] = field(default_factory=dict, repr=False)

    __repr__ = Picture.__repr__

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return super()._repr_mimebundle_(**options) | {MIME: {"label": self.alt, "step": 0, **self.recording}}


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
    frame = snapshot(pool, tables)
    recording = {"num_blocks": pool.num_blocks, "block_size": pool.block_size, "frames": [frame.to_dict()]}
    if shown:
        recording["words"] = shown
    return Still(draw(frame, shown), describe(frame), recording=recording)
