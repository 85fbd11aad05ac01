"""How large a cache the hits needed: reuse distances, counted beside a pool that is at work (chapter 06)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pagedattn_lab.block_pool import BlockPool, KVCacheBlock
from pagedattn_lab.block_table import BlockTable


class ReuseDistances:
    """Watches a pool, and counts for each block found again how many blocks were handed out since its last use.

    The distance of a hit is the number of blocks that the pool handed out, to whomever, since the last owner of the
    block gave it back; 0 while somebody holds it. A block that nobody holds is evicted once all that stood before it in
    the free queue have left, so the hit needed a cache of more blocks than this: others that were found in between
    moved behind it and are not counted. A block given back before the watch began counts from its beginning.

    Args:
        pool: what to watch, from now on.

    Attributes:
        distances: how many hits had which distance.

    Example:
        >>> from pagedattn_lab.kv_manager import KVCacheManager
        >>> from pagedattn_lab.request import Request
        >>> manager = KVCacheManager(num_blocks=9, block_size=2)
        >>> reuse = ReuseDistances(manager.block_pool)
        >>> for name, token_ids in (("Ada", [1, 2, 3]), ("Bo", [7, 7, 7, 7, 7]), ("Cy", [1, 2, 3])):
        ...     request = Request(name, token_ids)
        ...     blocks, num_hit_tokens = manager.get_computed_blocks(request)
        ...     _ = manager.allocate_slots(request, request.num_tokens - num_hit_tokens, computed_blocks=blocks)
        ...     manager.free(request)
        >>> reuse.distances, reuse.distance(0.9)      # Bo took three between Ada and Cy
        (Counter({3: 1}), 3)
    """

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.distances: Counter[int] = Counter()
        self._num_handed_out = 0
        self._last_use: dict[int, int] = {}  # by block: how many had been handed out when nobody held it any more
        pool.observers.append(self)

    def stop(self) -> None:
        """Stop watching; the distances stay."""
        if self in self.pool.observers:
            self.pool.observers.remove(self)

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

    def begin(self, table: BlockTable) -> None:
        """Nothing to note: blocks count whoever takes them."""

    def pool_event(self, kind: str, blocks: Sequence[KVCacheBlock]) -> None:
        """Count what is handed out, and note when a block loses its last owner."""
        if kind == "allocate":
            self._num_handed_out += len(blocks)
        elif kind == "free":
            for block in blocks:
                if block.ref_cnt == 0:
                    self._last_use[block.block_id] = self._num_handed_out

    def end(self, kind: str, blocks: Sequence[KVCacheBlock], table: BlockTable, num_tokens: int) -> None:
        """Count the distance of each block that a table found in the cache."""
        if kind != "hit":
            return
        times_found = Counter(blocks)  # a weak hash finds one block for two places
        for block in blocks:
            held_before = block.ref_cnt > times_found[block]
            distance = 0 if held_before else self._num_handed_out - self._last_use.get(block.block_id, 0)
            self.distances[distance] += 1
