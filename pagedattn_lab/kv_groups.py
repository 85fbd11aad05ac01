"""Blocks for several groups of layers out of one pool: windows beside full attention (chapter 11).

A model whose layers do not all read the same tokens keeps them in groups (:mod:`pagedattn_lab.kv_cache_groups`). A
request has a page table in each. All tables count the same tokens, and all blocks come from one pool, so memory that
windows give back serves full attention. How the kinds of layers differ is told in
:mod:`pagedattn_lab.kv_group_managers`.

A beginning that is cached for one group is of no use while another lacks it. So a hit is as long as *all* groups allow.

Source: vLLM's ``vllm/v1/core/kv_cache_coordinator.py`` and ``kv_cache_manager.py``, release 0.33.0, with the manager of
hybrid models on. ``tests/test_vllm_groups.py`` replays what that release did, block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NoReturn

from pagedattn_lab.arithmetic import at_least_one, cdiv, count
from pagedattn_lab.block_pool import KVCacheBlock
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.kv_cache_groups import KVCacheGroup
from pagedattn_lab.kv_cache_specs import SlidingWindowSpec
from pagedattn_lab.kv_events import EventIndex
from pagedattn_lab.kv_group_managers import Hits, find_longest_cache_hit, single_type_managers
from pagedattn_lab.kv_manager_base import KVCacheManagerBase
from pagedattn_lab.prefix_cache import HashIndex
from pagedattn_lab.request import Request


class GroupedKVCacheManager(KVCacheManagerBase):
    """Decides which physical blocks each request gets in each group of layers.

    Takes the place of :class:`pagedattn_lab.kv_manager.KVCacheManager`; where that one gives a list of blocks, this one
    gives a tuple with a list for each group. With one group of full attention it hands out the same blocks. It does not
    fork, swap or keep a tier, whatever the groups.

    Blocks behind a window are given back at the beginning of the next :meth:`allocate_slots`, once the step that read
    them last is over; their entries name the null block from then on.

    Args:
        groups: of layers, as :func:`pagedattn_lab.kv_cache_groups.kv_cache_groups` forms them.
        num_blocks: blocks in all, the null block included. A block holds one page of each layer of one group.
        enable_prefix_caching: whether full blocks are remembered after, and while, they are used.
        max_num_batched_tokens: how many tokens of one request are computed in one step at most. Then a request that is
            admitted needs no more blocks in a windowed group than the window and one step; ``None``: as many as tokens.
        prefix_cache_retention_interval: tokens between places at which windows are remembered, beside the ends of
            prompts and junctions; 0 for those alone, as vLLM does unless told otherwise, ``None`` for every block.
        enable_kv_cache_events: whether to keep what
            :meth:`~pagedattn_lab.kv_manager_base.KVCacheManagerBase.take_events` gives.

    Attributes:
        groups: as given.
        block_pool: the physical memory.
        tables: for each request that holds blocks, by request id, a page table for each group.
        prefix_cache: the index; ``None`` without prefix caching.
        tier: none: what one group has evicted is of no use while another lacks it, and a tier knows one kind of block.
        stats: since the cache was last reset.

    Raises:
        ValueError: no group, different block sizes, a kind of layers without rules, impossible sizes, an interval that
            is no multiple of a block or that no group looks at, or events or an interval without prefix caching.

    Example:
        A window of 5 tokens beside full attention, blocks of 2 tokens:

        >>> from pagedattn_lab.kv_cache_specs import FullAttentionSpec, SlidingWindowSpec
        >>> full = FullAttentionSpec(2, num_kv_heads=1, head_size=8, dtype="float32")
        >>> window = SlidingWindowSpec(2, num_kv_heads=1, head_size=8, dtype="float32", sliding_window=5)
        >>> groups = [KVCacheGroup(("layers.0",), (full,)), KVCacheGroup(("layers.1",), (window,))]
        >>> manager = GroupedKVCacheManager(groups, num_blocks=12)
        >>> ada = Request("Ada", range(9))
        >>> blocks, num_hit_tokens = manager.get_computed_blocks(ada)
        >>> _ = manager.allocate_slots(ada, 9, computed_blocks=blocks)
        >>> manager.block_ids("Ada")
        ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10])
        >>> ada.num_computed_tokens = 9
        >>> ada.append_token(9)
        >>> _ = manager.allocate_slots(ada, 1)
        >>> manager.block_ids("Ada")
        ([1, 2, 3, 4, 5], [0, 0, 8, 9, 10])
        >>> blocks, num_hit_tokens = manager.get_computed_blocks(Request("Bo", range(9)))
        >>> [[block.block_id for block in of_group] for of_group in blocks], num_hit_tokens
        ([[1, 2, 3, 4], [0, 0, 8, 9]], 8)
    """

    prefix_cache: HashIndex | EventIndex | None  # which know a block by its group too

    def __init__(
        self,
        groups: Sequence[KVCacheGroup],
        num_blocks: int,
        enable_prefix_caching: bool = True,
        *,
        max_num_batched_tokens: int | None = None,
        prefix_cache_retention_interval: int | None = 0,
        enable_kv_cache_events: bool = False,
    ) -> None:
        block_sizes = sorted({group.block_size for group in groups})
        if not block_sizes:
            raise ValueError("there is no group of layers: give at least one")
        if len(block_sizes) > 1:
            sizes = " and ".join(map(str, block_sizes))
            raise ValueError(f"groups have blocks of {sizes} tokens: give all layers one block size")
        [block_size] = block_sizes
        self._managers = single_type_managers([group.spec for group in groups], prefix_cache_retention_interval)
        interval = prefix_cache_retention_interval or 0
        if interval < 0 or interval % block_size:
            raise ValueError(
                f"prefix_cache_retention_interval is {interval}: give a multiple of the block size, {block_size}, or "
                "None for every block"
            )
        if interval and not any(isinstance(group.spec, SlidingWindowSpec) for group in groups):
            raise ValueError(f"prefix_cache_retention_interval is {interval}, and no layer has a window: leave it at 0")
        if interval and not enable_prefix_caching:
            raise ValueError(
                f"prefix_cache_retention_interval is {interval}, and enable_prefix_caching is False: nothing is "
                "remembered; leave it at 0"
            )
        if max_num_batched_tokens is not None:
            at_least_one("max_num_batched_tokens", max_num_batched_tokens)
        self.groups = tuple(groups)
        self.max_num_batched_tokens = max_num_batched_tokens
        by_group = {group_idx: manager for manager in self._managers for group_idx in manager.group_ids}
        self._manager_of = [by_group[group_idx] for group_idx in range(len(self.groups))]
        super().__init__(num_blocks, block_size, enable_prefix_caching, enable_kv_cache_events=enable_kv_cache_events)
        self.tables: dict[str, tuple[BlockTable, ...]] = {}
        self._num_cached_blocks: dict[str, int] = {}  # of each request: blocks from the first on that were dealt with

    @property
    def num_groups(self) -> int:
        """How many page tables a request has."""
        return len(self.groups)

    def check_fits(self, request: Request) -> None:
        """Refuse a request that could not be served even alone: of its tokens, all but the last need a slot.

        Raises:
            ValueError: it needs more blocks than there are; the message says how many.
        """
        max_tokens = request.max_tokens or 1
        num_slots = max(request.num_tokens, request.num_prompt_tokens + max_tokens - 1)
        num_blocks = sum(self._num_required_blocks(num_slots))
        if num_blocks > self.block_pool.num_blocks - 1:
            raise ValueError(
                f"request {request.request_id!r} needs {num_blocks} blocks of {self.block_pool.block_size} tokens in "
                f"{count(self.num_groups, 'group')} for {request.num_prompt_tokens} tokens and up to {max_tokens} "
                f"more, and there are {self.block_pool.num_blocks - 1}: shorten it or give the cache more blocks"
            )

    def num_blocks_to_admit(
        self, request: Request, num_new_tokens: int = 1, computed_blocks: Sequence[Sequence[KVCacheBlock]] = ()
    ) -> int:
        """Count the free blocks that a request needs if all its tokens, not only the next, are to have a slot.

        Windowed groups count what they hold at once. Long hits make that little, so it is at least what the next
        tokens take.

        Args:
            request: holds no blocks.
            num_new_tokens: those that it computes first.
            computed_blocks: what :meth:`get_computed_blocks` found; blocks that others hold are not needed again.
        """
        num_hit_tokens = len(computed_blocks[0]) * self.block_pool.block_size if computed_blocks else 0
        return max(
            self._num_blocks_beside(computed_blocks, self._num_required_blocks(request.num_tokens)),
            self._num_blocks_beside(computed_blocks, self._num_blocks(num_hit_tokens + num_new_tokens)),
        )

    def get_computed_blocks(self, request: Request) -> tuple[Hits, int]:
        """Find the blocks behind which all groups can go on with a request; the last token is always computed.

        Nothing changes but the request's ``shared_prefix_boundary``: if full attention knows more of its beginning than
        windows do, that is worth remembering this time.

        Returns:
            ``(blocks, num_hit_tokens)``, for :meth:`allocate_slots`: a list for each group, equally long, with the null
            block where a window does not reach.
        """
        request.shared_prefix_boundary = 0
        if self.prefix_cache is None:
            return tuple([] for _ in self.groups), 0
        block_size, null_block = self.block_pool.block_size, self.block_pool.null_block
        num_blocks = (request.num_tokens - 1) // block_size
        hits, num_longest = find_longest_cache_hit(self._managers, self.prefix_cache, request, num_blocks, null_block)
        if num_longest > len(hits[0]):
            request.shared_prefix_boundary = num_longest * block_size
        return hits, len(hits[0]) * block_size

    def allocate_slots(
        self, request: Request, num_new_tokens: int, computed_blocks: Sequence[Sequence[KVCacheBlock]] = ()
    ) -> Hits | None:
        """Make room in every group for the tokens that a request computes next; remember the blocks that they fill.

        First, blocks behind the windows are given back. They stay given back if too few are free all the same.

        Args:
            request: with ``num_computed_tokens`` as it is before this step; hits may be counted in it or not.
            num_new_tokens: how many tokens are computed, beyond those computed before and those found.
            computed_blocks: what :meth:`get_computed_blocks` found; only for a request that holds no blocks yet.

        Returns:
            For each group the blocks taken from the pool, hits not among them; ``None`` if too few are free. Then none
            was taken, and no hit was touched.

        Raises:
            ValueError: ``num_new_tokens`` below 1; hits for a request that holds blocks, or that are no longer those
                of the request; computed tokens of one that holds none, or more than have slots; or tokens to be
                computed again whose window has been given back. Nothing changed.
        """
        pool, name = self.block_pool, request.request_id
        tables = self.tables.get(name)
        if num_new_tokens < 1:
            raise ValueError(f"num_new_tokens is {num_new_tokens}: a request computes at least 1 token")
        self._check(request, tables, computed_blocks)

        if tables is None:
            num_tokens = (len(computed_blocks[0]) * pool.block_size if computed_blocks else 0) + num_new_tokens
            num_needed = self._num_blocks_beside(computed_blocks, self._num_blocks(num_tokens))
        else:
            num_tokens = request.num_computed_tokens + num_new_tokens
            for manager, table in zip(self._manager_of, tables, strict=True):
                table.remove_skipped_blocks(manager.num_skipped_blocks(request.num_computed_tokens))
            num_needed = sum(table.num_blocks_needed(max(0, num_tokens - table.num_tokens)) for table in tables)
        if num_needed > pool.num_free_blocks:
            return None

        # Nothing can fail from here on. Hits of all groups first: once touched, they are not handed out as new blocks.
        if tables is None:
            tables = self._admit(request, computed_blocks)
        new_blocks = tuple(table.append_tokens(max(0, num_tokens - table.num_tokens)) for table in tables)
        self._remember(request, tables, min(num_tokens, request.num_tokens) // pool.block_size)
        return new_blocks

    def block_ids(self, request_id: str) -> tuple[list[int], ...]:
        """Physical blocks of a request in each group, in the order of its tokens; none if it holds none.

        0, the null block, stands for those behind a window.
        """
        tables = self.tables.get(request_id)
        return tuple([] for _ in self.groups) if tables is None else tuple(table.block_ids for table in tables)

    def uncomputed_block_ids(self, request: Request) -> list[int]:
        """Physical blocks of a request, all groups together, with tokens that are not computed yet."""
        first = request.num_computed_tokens // self.block_pool.block_size
        return list(chain.from_iterable(ids[first:] for ids in self.block_ids(request.request_id)))

    def free(self, request: Request) -> None:
        """Let a request's blocks go, one group after the other, last first; a request without blocks has none to free.

        Cached blocks stay in the cache until they are handed out again.
        """
        for table in self.tables.pop(request.request_id, ()):
            table.release()
        self._num_cached_blocks.pop(request.request_id, None)

    def fork(self, request: Request, request_id: str) -> NoReturn:
        """Refuse: whoever shares a block that goes on being written must copy it, which is known for one group only.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"request {request.request_id!r} cannot be forked: only a KVCacheManager, with one group of layers, copies "
            "blocks on write"
        )

    def swap_out(self, request: Request) -> NoReturn:
        """Refuse: vLLM has no swapping, and never had it for groups.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"request {request.request_id!r} cannot be swapped out: groups of layers have no host blocks; let it be "
            "computed again"
        )

    def swap_in(self, request: Request) -> NoReturn:
        """Refuse, as :meth:`swap_out` does.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"request {request.request_id!r} cannot be swapped in: groups of layers have no host blocks")

    def _num_blocks(self, num_tokens: int) -> list[int]:
        return [cdiv(num_tokens, self.block_pool.block_size)] * self.num_groups

    def _num_required_blocks(self, num_tokens: int) -> list[int]:
        """In each group, what a request holds at most at one time."""
        return [manager.num_required_blocks(num_tokens, self.max_num_batched_tokens) for manager in self._manager_of]

    def _num_blocks_beside(self, computed_blocks: Sequence[Sequence[KVCacheBlock]], required: list[int]) -> int:
        """Free blocks that it takes to have so many in each group; hits that nobody holds stand in the free queue."""
        null_block = self.block_pool.null_block
        hits = computed_blocks or [()] * self.num_groups
        num_missing = sum(max(0, num - len(blocks)) for num, blocks in zip(required, hits, strict=True))
        return num_missing + sum(block.ref_cnt == 0 and block is not null_block for block in chain(*hits))

    def _check(
        self,
        request: Request,
        tables: tuple[BlockTable, ...] | None,
        computed_blocks: Sequence[Sequence[KVCacheBlock]],
    ) -> None:
        """Refuse a count or hits that are out of date, and tokens whose window is gone."""
        name, num_computed = f"request {request.request_id!r}", request.num_computed_tokens
        if tables is not None:
            if any(computed_blocks):
                raise ValueError(f"{name} holds blocks already: hits are for requests without any")
            if not 0 <= num_computed <= tables[0].num_tokens:
                raise ValueError(
                    f"{name} has num_computed_tokens = {num_computed}, and slots for {tables[0].num_tokens} tokens: "
                    "count those that steps have computed"
                )
            for manager, table in zip(self._manager_of, tables, strict=True):
                if table.num_skipped_blocks > manager.num_unread_blocks(num_computed):
                    raise ValueError(
                        f"{name} has {num_computed} computed tokens, and blocks that the next one reads have been "
                        "given back: free it and compute it again"
                    )
            return
        if computed_blocks and isinstance(computed_blocks[0], KVCacheBlock):
            raise ValueError(f"computed_blocks of {name} is a list of blocks: give a list for each of the groups")
        num_hits = len(computed_blocks[0]) if computed_blocks else 0
        if num_computed not in (0, num_hits * self.block_pool.block_size):
            raise ValueError(
                f"{name} holds no blocks, yet num_computed_tokens is {num_computed}: set it to 0 when blocks are freed"
            )
        if computed_blocks and not self._holds(request, computed_blocks):
            raise ValueError(f"the cache no longer holds these blocks for {name}: call get_computed_blocks again")

    def _holds(self, request: Request, computed_blocks: Sequence[Sequence[KVCacheBlock]]) -> bool:
        """Whether hits have everything that the next token reads, under the request's hashes."""
        num_hits = len(computed_blocks[0])
        if len(computed_blocks) != self.num_groups or any(len(blocks) != num_hits for blocks in computed_blocks):
            return False
        if num_hits == 0:
            return True
        for group_idx, (manager, blocks) in enumerate(zip(self._manager_of, computed_blocks, strict=True)):
            num_unread = manager.num_unread_blocks(num_hits * self.block_pool.block_size)
            if self.prefix_cache is None or any(
                block is not self.block_pool.null_block for block in blocks[:num_unread]
            ):
                return False
            if not self.prefix_cache.holds(request, blocks[num_unread:], num_unread, group_idx):
                return False
        return True

    def _admit(self, request: Request, computed_blocks: Sequence[Sequence[KVCacheBlock]]) -> tuple[BlockTable, ...]:
        """Give a request its page tables, which begin with its hits, and count the look-up."""
        name = request.request_id
        names = [name] if self.num_groups == 1 else [f"{name} ({group_idx})" for group_idx in range(self.num_groups)]
        tables = tuple(BlockTable(self.block_pool, each) for each in names)
        for table, blocks in zip(tables, computed_blocks or [()] * self.num_groups, strict=True):
            table.adopt(blocks)
        self._num_cached_blocks[name] = len(tables[0].blocks)
        self.tables[name] = tables
        if self.prefix_cache is not None:
            self.stats.record(request.num_tokens, tables[0].num_tokens, preempted=request.num_preemptions > 0)
        return tables

    def _remember(self, request: Request, tables: tuple[BlockTable, ...], stop: int) -> None:
        """Remember what is full now, group by group. Speculative tokens, past the request's own, are not."""
        start = self._num_cached_blocks[request.request_id]
        if self.prefix_cache is None or start >= stop:
            return
        for group_idx, (manager, table) in enumerate(zip(self._manager_of, tables, strict=True)):
            wanted = manager.blocks_to_remember(request, start, stop)
            kept = [place for place in wanted if place >= table.num_skipped_blocks]
            self.prefix_cache.insert(request, table.blocks, start, stop, group_idx, kept)
        self._num_cached_blocks[request.request_id] = stop
