"""Blocks for many requests: a pool, a page table each, and a prefix cache in front (chapter 06).

How blocks are found and handed out is told here; how what they hold is forgotten, in
:mod:`pagedattn_lab.kv_manager_base`.

Source: vLLM's ``vllm/v1/core/kv_cache_manager.py`` and ``single_type_kv_cache_manager.py``, release 0.33.0, for one
group of full-attention layers. ``tests/test_vllm_transcript.py`` replays what that release did, block by block.
"""

from __future__ import annotations

from collections.abc import Sequence

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.block_pool import KVCacheBlock
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.host_tier import HostTier
from pagedattn_lab.kv_events import EventIndex
from pagedattn_lab.kv_manager_base import KVCacheManagerBase
from pagedattn_lab.prefix_cache import HashIndex, PrefixIndex
from pagedattn_lab.request import Request
from pagedattn_lab.swap_space import BlockCopies, SwapSpace


class KVCacheManager(KVCacheManagerBase):
    """Decides which physical blocks each request gets, and lets requests that begin alike share theirs.

    Args:
        num_blocks: blocks in all, the null block included.
        block_size: tokens per block.
        enable_prefix_caching: whether full blocks are remembered after, and while, they are used.
        index: where cached blocks are looked up; by default a :class:`pagedattn_lab.prefix_cache.HashIndex`.
        num_host_blocks: blocks of host memory to swap requests out to, its null block included; 0 for none.
        enable_kv_cache_events: whether to keep what
            :meth:`~pagedattn_lab.kv_manager_base.KVCacheManagerBase.take_events` gives.
        num_offload_blocks: blocks of host memory for what the prefix cache evicts; 0 for none.

    Attributes:
        block_pool: the physical memory.
        tables: page table of each request that holds blocks, by request id.
        prefix_cache: the index; ``None`` without prefix caching.
        swap_space: the host's memory, and who is swapped out; ``None`` without host blocks.
        tier: what host memory holds of the prefix cache, and the copies that a step must make; ``None`` without blocks
            to offload to.
        stats: since the cache was last reset.

    Raises:
        ValueError: impossible sizes; an index that does not fit, or is not empty; events or a tier without a hash
            index; a tier beside a swap space.

    Example:
        >>> manager = KVCacheManager(num_blocks=11, block_size=16)
        >>> ada = Request("Ada", range(40))
        >>> manager.get_computed_blocks(ada)
        ([], 0)
        >>> [block.block_id for block in manager.allocate_slots(ada, 40)]
        [1, 2, 3]
        >>> bo = Request("Bo", [*range(32), 7])                   # begins as Ada does
        >>> blocks, num_hit_tokens = manager.get_computed_blocks(bo)
        >>> _ = manager.allocate_slots(bo, 33 - num_hit_tokens, computed_blocks=blocks)
        >>> num_hit_tokens, manager.block_ids("Bo")
        (32, [1, 2, 4])
        >>> manager.free(ada); manager.free(bo)
        >>> [block.block_id for block in manager.block_pool.free_block_queue.get_all_free_blocks()]
        [4, 3, 5, 6, 7, 8, 9, 10, 2, 1]
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool = True,
        index: PrefixIndex | None = None,
        num_host_blocks: int = 0,
        enable_kv_cache_events: bool = False,
        num_offload_blocks: int = 0,
    ) -> None:
        super().__init__(num_blocks, block_size, enable_prefix_caching, index, enable_kv_cache_events)
        if num_offload_blocks:
            self.tier = self._make_tier(num_offload_blocks, num_host_blocks)
        if num_host_blocks:
            self.swap_space = SwapSpace(num_host_blocks, block_size)
        self.tables: dict[str, BlockTable] = {}
        self._num_cached_blocks: dict[str, int] = {}  # of each request: blocks from the first on that are remembered

    def check_fits(self, request: Request) -> None:
        """Refuse a request that could not be served even alone: of its tokens, all but the last need a slot.

        Raises:
            ValueError: it needs more blocks than there are; the message says how many.
        """
        block_size, max_tokens = self.block_pool.block_size, request.max_tokens or 1
        num_slots = max(request.num_tokens, request.num_prompt_tokens + max_tokens - 1)
        num_blocks = cdiv(num_slots, block_size)
        if num_blocks > self.block_pool.num_blocks - 1:
            raise ValueError(
                f"request {request.request_id!r} needs {num_blocks} blocks of {block_size} tokens for "
                f"{request.num_prompt_tokens} tokens and up to {max_tokens} more, and there are "
                f"{self.block_pool.num_blocks - 1}: shorten it or give the cache more blocks"
            )

    def num_blocks_to_admit(
        self, request: Request, num_new_tokens: int = 1, computed_blocks: Sequence[KVCacheBlock] = ()
    ) -> int:
        """Count the free blocks that a request needs if all its tokens, not only the next, are to have a slot.

        Args:
            request: holds no blocks.
            num_new_tokens: those that it computes first; they are among its tokens.
            computed_blocks: what :meth:`get_computed_blocks` found; blocks that others hold are not needed again.
        """
        num_held = sum(block.ref_cnt > 0 for block in computed_blocks)
        return cdiv(request.num_tokens, self.block_pool.block_size) - num_held

    def get_computed_blocks(self, request: Request) -> tuple[list[KVCacheBlock], int]:
        """Find the full blocks that hold a request's first tokens already. Nothing changes.

        The last token is never taken from the cache, since only computing it gives the logits that follow it. Blocks
        are taken whole, so a prompt that fills its blocks exactly and is cached entirely has its last block computed
        once more.

        Returns:
            ``(blocks, num_hit_tokens)``, for :meth:`allocate_slots`. With a tier there may be more tokens than the
            blocks hold: host memory has those behind.
        """
        if self.prefix_cache is None:
            return [], 0
        block_size, num_blocks = self.block_pool.block_size, (request.num_tokens - 1) // self.block_pool.block_size
        blocks = self.prefix_cache.find(request, num_blocks)
        num_hits = len(blocks)
        if self.tier is not None:
            num_hits += self.tier.find(self._hashes(request)[num_hits:num_blocks])
        return blocks, num_hits * block_size

    def allocate_slots(
        self,
        request: Request,
        num_new_tokens: int,
        computed_blocks: Sequence[KVCacheBlock] = (),
        num_external_computed_tokens: int = 0,
    ) -> list[KVCacheBlock] | None:
        """Make room for the tokens that a request computes next; remember the blocks that they fill.

        A request's tokens up to the end of the step, and where each comes from::

            | computed in earlier steps | found in the cache  | computed in this step |
            |   num_computed_tokens     |  computed_blocks    |    num_new_tokens     |
            |---------------------------|---------------------|-----------------------|
              its table has them          whole blocks, only    new slots: the rest of
                                          when it is admitted   the last block, then
                                                                blocks from the pool

        When a request is admitted the first part is empty; afterwards the second is. Behind what is found in blocks of
        the device comes what the tier has, in whole blocks: these are new slots too, written by a copy.

        Blocks are remembered here, before they are computed: a request that is admitted in the same step can already
        share them, since every layer writes all keys and values of a step before anything reads them.

        Args:
            request: with ``num_computed_tokens`` as it is before this step; hits may be counted in it or not.
            num_new_tokens: how many tokens are computed, beyond those computed before and those found.
            computed_blocks: what :meth:`get_computed_blocks` found; only for a request that holds no blocks yet.
            num_external_computed_tokens: how many more tokens it found, beyond those that these blocks hold.

        Returns:
            The blocks taken from the pool, those that the tier's copies go to among them, other hits not; ``None`` if
            too few are free. Then nothing changed, and no hit was touched.

        Raises:
            ValueError: ``num_new_tokens`` below 1; hits for a request that holds blocks, or that are no longer those
                of the request; computed tokens of one that holds none, or more than have slots; a block that a fork
                shares would be written to once more. Nothing changed.
        """
        pool, block_size, name = self.block_pool, self.block_pool.block_size, request.request_id
        table = self.tables.get(name)
        if num_new_tokens < 1:
            raise ValueError(f"num_new_tokens is {num_new_tokens}: a request computes at least 1 token")
        self._check(request, table, computed_blocks, num_external_computed_tokens)

        # How many blocks does it take? Hits that nobody holds stand in the free queue, and leave it too.
        if table is None:
            num_tokens = len(computed_blocks) * block_size + num_external_computed_tokens + num_new_tokens
            num_needed = cdiv(num_external_computed_tokens + num_new_tokens, block_size)
        else:
            num_tokens = request.num_computed_tokens + num_new_tokens
            num_needed = table.num_blocks_needed(max(0, num_tokens - table.num_tokens))
        num_free_hits = sum(block.ref_cnt == 0 for block in computed_blocks)
        if num_needed + num_free_hits > pool.num_free_blocks:
            return None

        # Nothing can fail from here on. Hits first: once touched, they cannot be handed out as new blocks.
        if table is None:
            table = self._admit(request, computed_blocks, num_external_computed_tokens)
        if num_external_computed_tokens:
            num_hits = len(computed_blocks), num_external_computed_tokens // block_size
            new_blocks = self._append_and_load(request, table, num_tokens, *num_hits)
        else:
            new_blocks = table.append_tokens(max(0, num_tokens - table.num_tokens))

        # Remember what is full now. Speculative tokens, past the request's own, are not.
        if self.prefix_cache is not None:
            start, stop = self._num_cached_blocks[name], min(num_tokens, request.num_tokens) // block_size
            if start < stop:
                self.prefix_cache.insert(request, table.blocks, start, stop)
                self._num_cached_blocks[name] = stop
        return new_blocks

    def fork(self, request: Request, request_id: str) -> Request:
        """Let a second request go on from where one is: both hold the same blocks until one of them writes.

        Neither may grow before the step that computes their common tokens has been carried out: see
        :meth:`pagedattn_lab.block_table.BlockTable.fork`.

        Args:
            request: holds blocks.
            request_id: name of the second one.

        Raises:
            ValueError: a request without blocks, a name that is taken, or a table that waits for a copy.

        Example:
            >>> manager, ada = KVCacheManager(num_blocks=8, block_size=4), Request("Ada", range(6))
            >>> _ = manager.allocate_slots(ada, 6); ada.num_computed_tokens = 6
            >>> bo = manager.fork(ada, "Bo")
            >>> bo.append_token(9)
            >>> _ = manager.allocate_slots(bo, 1)                     # block 3 takes the place of one that Ada reads
            >>> manager.block_ids("Ada"), manager.block_ids("Bo")
            ([1, 2], [1, 3])
        """
        table = self.tables.get(request.request_id)
        if table is None:
            raise ValueError(f"request {request.request_id!r} holds no blocks that a fork could share")
        if request_id in self.tables or self.is_swapped_out(request_id):
            raise ValueError(f"request {request_id!r} holds blocks already: give the fork another name")
        self.tables[request_id] = table.fork(request_id)
        self._num_cached_blocks[request_id] = self._num_cached_blocks[request.request_id]
        return request.fork(request_id)

    def block_ids(self, request_id: str) -> list[int]:
        """Physical blocks of a request, in the order of its tokens; none if it holds none."""
        table = self.tables.get(request_id)
        return [] if table is None else table.block_ids

    def uncomputed_block_ids(self, request: Request) -> list[int]:
        """Physical blocks of a request with tokens that are not computed yet, as ``num_computed_tokens`` says."""
        return self.block_ids(request.request_id)[request.num_computed_tokens // self.block_pool.block_size :]

    def free(self, request: Request) -> None:
        """Let a request's blocks go, last first, so that the end of a sequence is evicted before its beginning.

        Cached blocks stay in the cache until they are handed out again. A request that is swapped out gives its host
        blocks back. One without blocks has nothing to free.
        """
        self._release(request.request_id)
        if self.swap_space is not None:
            self.swap_space.drop(request.request_id)

    def swap_out(self, request: Request) -> BlockCopies | None:
        """Let a request's blocks go once they have been copied to the host; its ``num_computed_tokens`` stays.

        A block that others hold is copied too, and stays theirs. Tokens of the step under way are dropped with what was
        remembered of them. Copies come before anything is written, so a step swaps out before it admits anybody: who is
        admitted may find blocks that this step writes. A step swaps out or in, not both: a copy out could go to a host
        block that a copy in has just given back.

        Returns:
            ``(block, host block)`` numbers, for :meth:`pagedattn_lab.kv_cache.PagedKVCache.copy_out`; ``None`` if the
            host has too few, and nothing has changed.

        Raises:
            ValueError: a request without blocks, or with more tokens computed than they hold.

        Example:
            >>> manager = KVCacheManager(num_blocks=4, block_size=4, num_host_blocks=4)
            >>> ada, bo = Request("Ada", range(6)), Request("Bo", [7])
            >>> _ = manager.allocate_slots(ada, 6); ada.num_computed_tokens = 6
            >>> manager.swap_out(ada), manager.allocate_slots(bo, 1)
            ([(1, 1), (2, 2)], [KVCacheBlock(block_id=2, ref_cnt=1, block_hash=None)])
            >>> manager.swap_in(ada), manager.block_ids("Ada")
            ([(1, 3), (2, 1)], [3, 1])
        """
        name, num_computed = request.request_id, request.num_computed_tokens
        table = self.tables.get(name)
        if table is None:
            raise ValueError(f"request {name!r} holds no blocks that could be swapped out")
        pairs = None if self.swap_space is None else self.swap_space.take(name, table, num_computed)
        if pairs is not None:
            self.evict_blocks(table.block_ids[num_computed // self.block_pool.block_size :])
            self._release(name)
        return pairs

    def swap_in(self, request: Request) -> BlockCopies | None:
        """Give a request that was swapped out new blocks for its computed tokens, to be copied from the host.

        Full ones are remembered again. Otherwise nobody could find what the request computes next: a look-up stops at
        the first block that is not known.

        Returns:
            ``(host block, block)`` numbers, for :meth:`pagedattn_lab.kv_cache.PagedKVCache.copy_in`; ``None`` if too
            few blocks are free, and nothing has changed.

        Raises:
            ValueError: a request that is not swapped out.
        """
        name = request.request_id
        if self.swap_space is None:
            raise ValueError(f"request {name!r} cannot be swapped in: there is no host memory, num_host_blocks is 0")
        table = BlockTable(self.block_pool, name)
        pairs = self.swap_space.give(name, table)
        if pairs is not None:
            self.tables[name] = table
            self._num_cached_blocks[name] = table.num_tokens // self.block_pool.block_size
            if self.prefix_cache is not None:
                self.prefix_cache.insert(request, table.blocks, 0, self._num_cached_blocks[name])
        return pairs

    def _check(
        self, request: Request, table: BlockTable | None, computed_blocks: Sequence[KVCacheBlock], num_external: int = 0
    ) -> None:
        """Refuse a count or hits that are out of date, and a second write to a block that a fork reads."""
        name, num_computed = f"request {request.request_id!r}", request.num_computed_tokens
        if table is not None:
            if computed_blocks or num_external:
                raise ValueError(f"{name} holds blocks already: hits are for requests without any")
            if num_computed == table.num_tokens:
                return
            if not 0 <= num_computed < table.num_tokens:
                raise ValueError(
                    f"{name} has num_computed_tokens = {num_computed}, and slots for {table.num_tokens} tokens: count "
                    "those that steps have computed"
                )
            table.check_rewrite(num_computed)
            return
        if self.is_swapped_out(request.request_id):
            raise ValueError(f"{name} is swapped out: call swap_in before it computes more")
        if num_computed not in (0, len(computed_blocks) * self.block_pool.block_size + num_external):
            raise ValueError(
                f"{name} holds no blocks, yet num_computed_tokens is {num_computed}: set it to 0 when blocks are freed"
            )
        if computed_blocks and (self.prefix_cache is None or not self.prefix_cache.holds(request, computed_blocks)):
            raise ValueError(f"the cache no longer holds these blocks for {name}: call get_computed_blocks again")
        if num_external:
            first, (num_blocks, rest) = len(computed_blocks), divmod(num_external, self.block_pool.block_size)
            wanted = [] if self.tier is None else self._hashes(request)[first : first + num_blocks]
            if rest or self.tier is None or len(wanted) != num_blocks or self.tier.find(wanted) < num_blocks:
                raise ValueError(
                    f"host memory does not hold {num_external} tokens for {name}, in whole blocks and behind "
                    f"{first} of the device: call get_computed_blocks again"
                )

    def _admit(self, request: Request, computed_blocks: Sequence[KVCacheBlock], num_external: int = 0) -> BlockTable:
        """Give a request a page table that begins with its hits, and count the look-up: a refused one looks again."""
        table = BlockTable(self.block_pool, request.request_id)
        table.adopt(computed_blocks)
        self._num_cached_blocks[request.request_id] = len(computed_blocks)
        self.tables[request.request_id] = table
        if self.prefix_cache is not None:
            self.stats.record(request.num_tokens, table.num_tokens, request.num_preemptions > 0, num_external)
        return table

    def _append_and_load(
        self, request: Request, table: BlockTable, num_tokens: int, num_hits: int, num_in_tier: int
    ) -> list[KVCacheBlock]:
        """Append blocks to a table that ends with its hits; plan the copies of what the tier has to the first of them.

        The tier's blocks are pinned first, so that what is evicted on the way does not take their place.
        """
        assert self.tier is not None  # _check has refused them otherwise
        in_tier = self._hashes(request)[num_hits : num_hits + num_in_tier]
        self.tier.pin(in_tier)
        new_blocks = table.append_tokens(num_tokens - table.num_tokens)
        for block_hash, block in zip(in_tier, new_blocks, strict=False):
            self.tier.load(block_hash, block.block_id)
        return new_blocks

    def _release(self, name: str) -> None:
        table = self.tables.pop(name, None)
        if table is not None:
            del self._num_cached_blocks[name]
            table.release()

    def _make_tier(self, num_offload_blocks: int, num_host_blocks: int) -> HostTier:
        """Build a tier behind the prefix cache; refuse one behind anything that does not find blocks by hash."""
        cache = self.prefix_cache
        if not isinstance(cache, HashIndex | EventIndex):
            there_is = "there is no prefix cache" if cache is None else f"{type(cache).__name__} has no hashes"
            raise ValueError(f"num_offload_blocks is {num_offload_blocks}, and {there_is}: a tier needs a HashIndex")
        if num_host_blocks:
            raise ValueError(
                f"num_offload_blocks is {num_offload_blocks} and num_host_blocks is {num_host_blocks}: give one of the "
                "two; the blocks of a preempted request move to a tier without being swapped"
            )
        return HostTier(num_offload_blocks, self.block_pool.block_size, getattr(cache, "record", None))

    def _hashes(self, request: Request) -> list[bytes]:
        """Hashes of a request's full blocks; only with a tier, whose index has them."""
        assert isinstance(self.prefix_cache, HashIndex | EventIndex)
        return self.prefix_cache.hashes(request)
