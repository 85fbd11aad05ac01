"""What was done to a pool, as a list from which its recording can be made again (``viz/recorder.js`` does so).

Frames tell the whole state after each event, operations only what was done: a hundred times less to store, so a lesson
can store them for every position of its controls. Each is a list, its kind first, in JSON values:

======================================  ==============================================================================
``start, num_blocks, block_size, ...``  always the first: a pool; then, unless all is empty, the tables on it as
                                        ``[name, num_tokens, block_ids]`` and the ``ref_cnt``, ``hashes`` and ``free``
                                        of blocks in use
``add, name, num_tokens, block_ids``    a table gets its name, before it does anything or while it holds blocks
``append, name, num_tokens``            :meth:`~pagedattn_lab.block_table.BlockTable.append_tokens`, with its
                                        copy-on-write
``fork, parent, child``                 a parent that was never shown as ``[num_tokens, block_ids]``
``hit, name, block_ids``                a table begins with cached blocks
``skip, name, num_blocks``              a table gives its first blocks back, and names the null block there
``free, name``                          a table gives all back
``get_new_blocks, num_blocks``          the pool by hand; likewise ``touch, block_ids`` and ``free_blocks, block_ids``
``hash, [[block_id, text], ...]``       blocks that have got another hash since the last frame, or lost it (``null``)
``note, sentence, block_ids``           nothing has changed
======================================  ==============================================================================

What somebody did to a block or a table past the pool's methods, a count set by hand for instance, is not among them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from pagedattn_lab.block_pool import BlockPool, KVCacheBlock
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.recorder.frame import Frame, short_hashes

Operation = list[Any]


def start_operation(pool: BlockPool, tables: Mapping[str, BlockTable], first: Frame) -> Operation:
    """Say in which state a recording begins.

    Example:
        >>> from pagedattn_lab.recorder.frame import snapshot
        >>> pool = BlockPool(num_blocks=4, block_size=2)
        >>> ada = BlockTable(pool)
        >>> start_operation(pool, {"Ada": ada}, snapshot(pool, {"Ada": ada}))
        ['start', 4, 2, [['Ada', 0, []]]]
    """
    operation: Operation = ["start", pool.num_blocks, pool.block_size]
    operation.append([[name, table.num_tokens, table.block_ids] for name, table in tables.items()])
    if any(first.ref_cnt) or first.hashes or first.free != tuple(range(1, pool.num_blocks)):
        hashes = [[block_id, text] for block_id, text in first.hashes.items()]
        operation.append({"ref_cnt": list(first.ref_cnt), "hashes": hashes, "free": list(first.free)})
    return operation


def pool_operations(kind: str, blocks: Sequence[KVCacheBlock]) -> list[Operation]:
    """Say what somebody did with the pool by hand. That it evicts follows from what it hands out next."""
    if kind == "evict":
        return []
    if kind == "allocate":
        return [["get_new_blocks", len(blocks)]]
    return [["touch" if kind == "touch" else "free_blocks", [block.block_id for block in blocks]]]


def table_operations(
    kind: str, name: str, table: BlockTable, num_tokens: int, known: Iterable[tuple[BlockTable, str]]
) -> list[Operation]:
    """Say what a table did; ``known`` are the tables that have a name, one of which a fork came from."""
    if kind == "append":
        return [["append", name, num_tokens]]
    if kind == "copy-on-write":  # follows from the append that comes next
        return []
    if kind == "hit":
        return [["hit", name, table.block_ids]]
    if kind == "skip":
        return [["skip", name, table.num_skipped_blocks]]
    if kind == "free":
        return [["free", name]]
    held = (table.num_tokens, table.blocks)
    alike = (its for one, its in known if one is not table and (one.num_tokens, one.blocks) == held)
    return [["fork", next(alike, [table.num_tokens, table.block_ids]), name]]


def hash_operations(pool: BlockPool, before: Mapping[int, str], evicted: Collection[int] = ()) -> list[Operation]:
    """Say which blocks have another hash than before; ``evicted`` ones have lost theirs to what is told next."""
    now = short_hashes(pool)
    changed = [
        [block_id, now.get(block_id)]
        for block_id in sorted({*before, *now})
        if now.get(block_id) != before.get(block_id) and block_id not in evicted
    ]
    changed += [[block_id, "?"] for block_id in evicted if block_id not in before]  # given and lost between two frames
    return [["hash", changed]] if changed else []
