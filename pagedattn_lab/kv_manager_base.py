"""What every manager of blocks does alike: it begins with a pool and a prefix cache, and it forgets (chapter 06).

How blocks are found and handed out depends on how many page tables a request has; that is told in
:mod:`pagedattn_lab.kv_manager`, for one, and in :mod:`pagedattn_lab.kv_groups`, for several. How contents are forgotten
does not: a block is handed out again, a step has failed, or all is void.

Source: vLLM's ``vllm/v1/core/block_pool.py``, release 0.33.0, where the pool itself forgets.
"""

from __future__ import annotations

from collections.abc import Iterable

from pagedattn_lab.block_pool import BlockPool, KVCacheBlock
from pagedattn_lab.host_tier import HostTier
from pagedattn_lab.kv_events import EventIndex, KVCacheEvent
from pagedattn_lab.prefix_cache import HashIndex, PrefixCacheStats, PrefixIndex
from pagedattn_lab.swap_space import SwapSpace


class KVCacheManagerBase:
    """A pool of blocks, what is remembered of their contents, and how that is forgotten.

    Args:
        num_blocks, block_size, enable_prefix_caching, index, enable_kv_cache_events: as for
            :class:`pagedattn_lab.kv_manager.KVCacheManager`.

    Attributes:
        block_pool: the physical memory.
        prefix_cache: the index; ``None`` without prefix caching.
        swap_space: the host's memory for requests that are swapped out; ``None`` unless a manager gives it one.
        tier: host memory behind the prefix cache; ``None`` unless a manager gives it one.
        stats: since the last :meth:`reset_prefix_cache`.

    Raises:
        ValueError: impossible sizes; an index that does not fit, or is not empty; events without a hash index.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool = True,
        index: PrefixIndex | None = None,
        enable_kv_cache_events: bool = False,
    ) -> None:
        self.block_pool = BlockPool(num_blocks, block_size)
        if index is not None and not enable_prefix_caching:
            raise ValueError("an index was given, but enable_prefix_caching is False: leave one of the two away")
        if index is not None and index.block_size != block_size:
            raise ValueError(f"the index has blocks of {index.block_size} tokens, not of {block_size}: make them equal")
        if index is not None and len(index):
            raise ValueError(f"the index knows {len(index)} blocks of another pool already: give an empty one")
        self.prefix_cache: PrefixIndex | None = None
        if enable_prefix_caching:
            self.prefix_cache = HashIndex(block_size) if index is None else index
            self.block_pool.on_evict = self._evicted
        if enable_kv_cache_events:
            self.prefix_cache = EventIndex(self.prefix_cache)
        self.swap_space: SwapSpace | None = None
        self.tier: HostTier | None = None
        self.stats = PrefixCacheStats()

    def is_swapped_out(self, request_id: str) -> bool:
        """Whether a request's blocks are in the host's memory."""
        return self.swap_space is not None and request_id in self.swap_space.tables

    def evict_blocks(self, block_ids: Iterable[int]) -> None:
        """Forget what blocks hold, whoever holds them: for blocks that were remembered and then not computed.

        A request that is freed before its step has run must have the blocks of that step evicted first, or the next one
        that begins alike reads what was never written.

        Example:
            >>> from pagedattn_lab.kv_manager import KVCacheManager
            >>> from pagedattn_lab.request import Request
            >>> manager, ada = KVCacheManager(num_blocks=4, block_size=4), Request("Ada", range(9))
            >>> _ = manager.allocate_slots(ada, 9)                    # and now something fails
            >>> manager.evict_blocks(manager.block_ids("Ada")); manager.free(ada)
            >>> manager.get_computed_blocks(Request("Bo", range(9)))
            ([], 0)
        """
        for block_id in block_ids:
            block = self.block_pool.blocks[block_id]
            if self.tier is not None:
                self.tier.cancel(block_id)
            if self.prefix_cache is not None and block.block_hash is not None:
                self.prefix_cache.forget(block)
                block.block_hash = None

    def reset_prefix_cache(self) -> bool:
        """Forget all cached contents, for instance because the model's weights changed.

        Returns:
            ``True`` if it happened; while any request holds blocks, or is swapped out, or a step is to copy blocks of
            the tier, it does not.
        """
        if self.block_pool.num_used_blocks or (self.swap_space is not None and self.swap_space.tables):
            return False
        if self.tier is not None and self.tier.has_copies:
            return False
        if self.prefix_cache is not None:
            self.prefix_cache.clear()
        if self.tier is not None:
            self.tier.clear()
        for block in self.block_pool.blocks:
            block.block_hash = None
        self.stats = PrefixCacheStats()
        return True

    def take_events(self) -> list[KVCacheEvent]:
        """Hand out what became known and was forgotten since the last time; nothing unless events were enabled."""
        return self.prefix_cache.take() if isinstance(self.prefix_cache, EventIndex) else []

    def _evicted(self, block: KVCacheBlock) -> None:
        """Called by the pool, and only if there is a prefix cache, just before a block loses its mark."""
        assert self.prefix_cache is not None
        if self.tier is not None and isinstance(block.block_hash, bytes):
            self.tier.store(block.block_hash, block.block_id)
        self.prefix_cache.forget(block)
        self.stats.evictions += 1
