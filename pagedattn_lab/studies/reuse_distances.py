"""How long blocks lie in the cache before they are found again (chapter 06)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pagedattn_lab.block_pool import BlockPool, KVCacheBlock
from pagedattn_lab.block_table import BlockTable


class ReuseDistances:
    """Watches a pool, and counts how often a cached block was found again after how many others had been handed out.

    The distance of a hit is the number of blocks that the pool handed out since a table last gave the block back; 0
    while somebody holds it. A block that nobody holds is evicted once all that stood before it in the free queue have
    left, so the hit needed a cache of more blocks than this: others that were found in between moved behind it and are
    not counted.

    Args:
        pool: what to watch, from now on.

    Attributes:
        distances: how often each distance occurred.

    Example:
        >>> from pagedattn_lab.kv_manager import KVCacheManager
        >>> from pagedattn_lab.request import Request
        >>> manager = KVCacheManager(num_blocks=9, block_size=2)
        >>> reuse = ReuseDistances(manager.block_pool)
        >>> for name, tokens in (("Ada", [1, 2, 3]), ("Bo", [7, 7, 7]), ("Cy", [1, 2, 4])):
        ...     request = Request(name, tokens)
        ...     blocks, num_hit_tokens = manager.get_computed_blocks(request)
        ...     _ = manager.allocate_slots(request, request.num_tokens - num_hit_tokens, blocks)
        ...     manager.free(request)
        >>> reuse.distances, reuse.distance(0.5)
        (Counter({2: 1}), 2)
    """

    def __init__(self, pool: BlockPool) -> None:
        self.distances: Counter[int] = Counter()
        self._num_handed_out = 0
        self._last_use: dict[int, int] = {}  # by block: how many had been handed out when a table last let go of it
        pool.observers.append(self)

    def distance(self, part: float) -> int | None:
        """Give the distance that so large a part of all hits did not exceed, or ``None`` without any hit.

        Raises:
            ValueError: ``part`` is not above 0 and at most 1.
        """
        if not 0 < part <= 1:
            raise ValueError(f"part is {part}: give a number above 0 and at most 1")
        seen, total = 0, self.distances.total()
        for distance, times in sorted(self.distances.items()):
            seen += times
            if seen >= part * total:
                return distance
        return None

    # The observer's side: see :class:`pagedattn_lab.block_pool.Observer`.

    def begin(self, table: BlockTable) -> None:
        """Nothing to note: who caused an allocation does not matter."""

    def cancel(self, table: BlockTable) -> None:
        """Nothing to note either."""

    def pool_event(self, kind: str, blocks: Sequence[KVCacheBlock]) -> None:
        """Count what is handed out, and note when cached blocks are let go of."""
        if kind == "allocate":
            self._num_handed_out += len(blocks)
        elif kind == "free":
            self._last_use |= {block.block_id: self._num_handed_out for block in blocks if block.block_hash is not None}

    def end(self, kind: str, table: BlockTable, blocks: Sequence[KVCacheBlock], num_tokens: int = 0) -> None:
        """Count hits. A block that had no owner has one now."""
        if kind == "hit":
            for block in blocks:
                held = block.ref_cnt > 1
                self.distances[0 if held else self._num_handed_out - self._last_use.get(block.block_id, 0)] += 1
