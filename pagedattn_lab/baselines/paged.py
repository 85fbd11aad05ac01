"""Paged memory behind the interface of the contiguous allocators, to serve the same load (chapter 03).

It is :class:`pagedattn_lab.block_pool.BlockPool` and :class:`pagedattn_lab.block_table.BlockTable` that do the work.
"""

from __future__ import annotations

from pagedattn_lab.arithmetic import at_least_one, cdiv
from pagedattn_lab.baselines.accounting import Account, num_kv_tokens
from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable


class Pages:
    """What one running request has of paged memory: its page table, and how long it will be in the end."""

    __slots__ = ("needed", "table")

    def __init__(self, table: BlockTable, needed: int) -> None:
        self.table, self.needed = table, needed

    @property
    def capacity(self) -> int:
        """Tokens that fit without asking for more memory."""
        return len(self.table.blocks) * self.table.pool.block_size


class PagedAllocator:
    """Blocks on demand: a prompt's when it is admitted, then one whenever the last is full.

    Args:
        num_slots: slots in all. The null block is one of the blocks that they make, as in vLLM; what is left over when
            they are divided into blocks belongs to none.
        block_size: tokens per block.

    Raises:
        ValueError: a number below 1, or less than two blocks.

    Example:
        >>> allocator = PagedAllocator(num_slots=64, block_size=16)
        >>> request = allocator.allocate(prompt_len=20, output_len=5)
        >>> allocator.account(num_tokens=20)     # 24 tokens in the end, in 2 blocks; the null block is waste
        Account(token_states=20, reservation=4, internal=8, external=16, free=16, rounding=0)
    """

    def __init__(self, num_slots: int, block_size: int) -> None:
        num_blocks = at_least_one("num_slots", num_slots) // at_least_one("block_size", block_size)
        if num_blocks < 2:
            raise ValueError(
                f"{num_slots} slots make {num_blocks} blocks of {block_size}, and the first is the null block: "
                "give more memory or smaller blocks"
            )
        self.num_slots = num_slots
        self.pool = BlockPool(num_blocks, block_size)
        self._useful = 0  # slots of blocks in use that will have held a token in the end

    def size(self, prompt_len: int, output_len: int) -> int:
        """How many slots the blocks of a request's prompt have.

        Raises:
            ValueError: a length below 1, or a request that would not fit into all blocks together.
        """
        block_size, usable = self.pool.block_size, self.pool.num_blocks - 1
        blocks = cdiv(num_kv_tokens(prompt_len, output_len), block_size)
        if blocks > usable:
            raise ValueError(
                f"a request of {prompt_len} + {output_len} tokens needs {blocks} blocks of {block_size}, and there are "
                f"{usable}: give more memory or shorten the request"
            )
        return cdiv(prompt_len, block_size) * block_size

    def allocate(self, prompt_len: int, output_len: int) -> Pages | None:
        """Take the blocks of a request's prompt, or return ``None``, and nothing has changed, if too few are free.

        Raises:
            ValueError: as for :meth:`size`.
        """
        if self.size(prompt_len, output_len) > self.pool.num_free_blocks * self.pool.block_size:
            return None
        pages = Pages(BlockTable(self.pool), num_kv_tokens(prompt_len, output_len))
        pages.table.append_tokens(prompt_len)
        self._useful += min(pages.capacity, pages.needed)
        return pages

    def grow(self, holding: Pages) -> bool:
        """Take one more block for a request whose blocks are full, unless none is free."""
        if not self.pool.num_free_blocks:
            return False
        table, before = holding.table, min(holding.capacity, holding.needed)
        table.append_tokens(
            holding.capacity - table.num_tokens + 1
        )  # those since the last time, and one that does not fit
        self._useful += min(holding.capacity, holding.needed) - before
        return True

    def free(self, holding: Pages) -> None:
        """Give a request's blocks back.

        Raises:
            ValueError: they were given back before, or another allocator handed them out.
        """
        if holding.table.pool is not self.pool or not holding.table.blocks:
            raise ValueError(f"{holding.table} is not in use: it was given back before, or another allocator made it")
        self._useful -= min(holding.capacity, holding.needed)
        holding.table.release()

    def account(self, num_tokens: int, next_size: int = 0) -> Account:
        """Say where every slot is. Any block serves any request, so only slots that nobody can ever have are external.

        Raises:
            AssertionError: the entries do not add up to the memory.
        """
        pool = self.pool
        return Account(
            token_states=num_tokens,
            reservation=self._useful - num_tokens,
            internal=pool.num_used_blocks * pool.block_size - self._useful,
            external=self.num_slots - (pool.num_blocks - 1) * pool.block_size,
            free=pool.num_free_blocks * pool.block_size,
        ).check(self.num_slots)
