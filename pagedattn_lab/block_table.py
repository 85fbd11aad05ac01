"""The page table: where each of a sequence's tokens lives (chapter 04), and how tables share blocks (chapter 05).

Token ``i`` of a sequence lies in logical block ``i // block_size``. The table maps that to a physical block, and the
*slot* ``block_id * block_size + i % block_size`` names the token's place in the cache.

Any number of tables may name one block as long as none of them writes to it. So a table that is about to write to a
block that others name too takes a block of its own first: copy-on-write.

Layers with a window stop reading a sequence's first blocks. A table of such layers gives them back and names the null
block in their places, so that token ``i`` still stands at ``i // block_size``.

Source: Kwon et al. 2023, sections 4.3 and 4.4; slots as in vLLM's ``slot_mapping``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.block_pool import BlockPool, KVCacheBlock


class BlockTable:
    """The blocks of one sequence, in the order of its tokens.

    Args:
        pool: where blocks come from and return to.
        name: of the request, for pictures.

    Attributes:
        blocks: physical block of each logical block; another table may name them too. The list grows at its end, its
            last block may be replaced by a copy, and its first ones by the null block; where anything else changes, the
            table gets another list.
        num_tokens: length of the sequence.
        num_skipped_blocks: how many entries at the beginning name the null block, since nothing reads them any more.
        pending_copy: ``(source, destination)`` block numbers of a copy that :func:`take_copies` has not handed out yet.

    Example:
        >>> pool = BlockPool(num_blocks=8, block_size=4)
        >>> table = BlockTable(pool)
        >>> new_blocks = table.append_tokens(6)
        >>> table.block_ids, table.num_tokens
        ([1, 2], 6)
        >>> table.slot_mapping(3, 6)
        [7, 8, 9]
        >>> table.append_tokens(2)                # both fit in the second block
        []
        >>> table.release()
        >>> pool.num_free_blocks
        7
    """

    __slots__ = ("blocks", "name", "num_skipped_blocks", "num_tokens", "pending_copy", "pool")

    def __init__(self, pool: BlockPool, name: str | None = None) -> None:
        self.pool = pool
        self.name = name
        self.blocks: list[KVCacheBlock] = []
        self.num_tokens = 0
        self.num_skipped_blocks = 0
        self.pending_copy: tuple[int, int] | None = None

    @property
    def block_ids(self) -> list[int]:
        """Physical block of each logical block."""
        return [block.block_id for block in self.blocks]

    @property
    def num_empty_slots(self) -> int:
        """Slots of the last block that no token occupies: the only waste that paging leaves."""
        return len(self.blocks) * self.pool.block_size - self.num_tokens

    @property
    def must_copy(self) -> bool:
        """Whether the next token would go into a block that another table names too."""
        return self.num_empty_slots > 0 and self.blocks[-1].ref_cnt > 1

    def num_blocks_needed(self, num_tokens: int) -> int:
        """Count the blocks that appending so many tokens would take from the pool, a private copy included.

        Raises:
            ValueError: ``num_tokens`` is negative.
        """
        if num_tokens < 0:
            raise ValueError(f"cannot append {num_tokens} tokens: give 0 or more")
        missing = max(0, num_tokens - self.num_empty_slots)
        return cdiv(missing, self.pool.block_size) + (num_tokens > 0 and self.must_copy)

    def append_tokens(self, num_tokens: int) -> list[KVCacheBlock]:
        """Make room for more tokens; allocate only for those that the last block cannot hold.

        If the first of them goes into a block that another table names too, this table gets a copy of it in its place,
        and :attr:`pending_copy` tells which block must be copied where before anything is written. Whoever carries the
        next step out, as :meth:`pagedattn_lab.model_runner.ModelRunner.execute` does, copies it first.

        Returns:
            The blocks that were taken from the pool, often none; a private copy comes first.

        Raises:
            NoFreeBlocksError: the pool is short; the table is unchanged.
            ValueError: ``num_tokens`` is negative.
        """
        pool, blocks = self.pool, self.blocks
        room = len(blocks) * pool.block_size - self.num_tokens
        # Nearly every token goes this way, so num_empty_slots and must_copy are written out: calls cost more than sums.
        fits = 0 <= num_tokens <= room and not (num_tokens and blocks[-1].ref_cnt > 1)
        if fits and not pool.observers:
            self.num_tokens += num_tokens
            return []

        num_blocks = self.num_blocks_needed(num_tokens)
        pool.check_free(num_blocks)
        if not num_tokens:
            return []
        # Nothing can fail from here on. The copy comes first, and is told as an event of its own.
        copied = [self._copy_on_write()] if self.must_copy else []
        if pool.observers:
            self._begin()
        added = pool.get_new_blocks(num_blocks - len(copied))
        blocks += added
        self.num_tokens += num_tokens
        if pool.observers:
            self._end("append", added, num_tokens)
        return copied + added

    def check_rewrite(self, start: int) -> None:
        """Refuse to write tokens from ``start`` on once more, as after drafts that were rejected, if others read them.

        Blocks with a hash may be shared: whoever writes to them again writes what they hold.

        Raises:
            ValueError: another table names one of these blocks.
        """
        whose = "a table" if self.name is None else f"request {self.name!r}"
        for block in self.blocks[start // self.pool.block_size :]:
            if block.ref_cnt > 1 and block.block_hash is None:
                raise ValueError(
                    f"{whose} would write over tokens {start} to {self.num_tokens - 1} of its table, and another table "
                    f"shares block {block.block_id}: do not fork a table with tokens that may go"
                )

    def _copy_on_write(self) -> KVCacheBlock:
        """Put a new block in the place of the last one, which other tables name too."""
        source = self.blocks[-1]
        self._begin()
        [copy] = self.pool.get_new_blocks(1)
        self.blocks[-1] = copy
        self.pool.free_blocks([source])
        self.pending_copy = (source.block_id, copy.block_id)
        self._end("copy-on-write", [source, copy])
        return copy

    def adopt(self, blocks: Sequence[KVCacheBlock]) -> None:
        """Begin an empty table with full blocks that hold its first tokens already: a hit in the prefix cache.

        The first of them may be the null block, where layers with a window do not read that far back; the last may not.

        Raises:
            ValueError: the table is not empty, or the pool refuses a block.
        """
        if self.blocks:
            raise ValueError(f"a table of {self.num_tokens} tokens cannot adopt blocks: only an empty one can")
        num_skipped = 0
        while num_skipped < len(blocks) - 1 and blocks[num_skipped] is self.pool.null_block:
            num_skipped += 1
        found = blocks[num_skipped:]
        watched = self.pool.observers and blocks
        if watched:
            self.pool.check_own(found)
            self._begin()
        self.pool.touch(found)
        self.blocks, self.num_tokens = list(blocks), len(blocks) * self.pool.block_size
        self.num_skipped_blocks = num_skipped
        if watched:
            self._end("hit", found, self.num_tokens)

    def remove_skipped_blocks(self, num_blocks: int) -> list[KVCacheBlock]:
        """Give the first blocks back, last first, and name the null block in their places.

        Args:
            num_blocks: how many of the first blocks nothing reads any more; those given back before are among them.

        Returns:
            The blocks that went.

        Example:
            A window of 5 tokens, of which the last 4 have been computed: the next token reads tokens 6 to 10.

            >>> pool = BlockPool(num_blocks=8, block_size=4)
            >>> table = BlockTable(pool)
            >>> _ = table.append_tokens(10)
            >>> _ = table.remove_skipped_blocks((10 - 5 + 1) // 4)
            >>> table.block_ids, table.num_tokens, pool.num_free_blocks
            ([0, 2, 3], 10, 5)
        """
        freed = self.blocks[self.num_skipped_blocks : num_blocks][::-1]
        if not freed:
            return []
        watched = self.pool.observers
        if watched:
            self.pool.check_held(freed)
            self._begin()
        self.pool.free_blocks(freed)
        stop = self.num_skipped_blocks + len(freed)
        self.blocks[self.num_skipped_blocks : stop] = [self.pool.null_block] * len(freed)
        self.num_skipped_blocks = stop
        if watched:
            self._end("skip", freed)
        return freed

    def fork(self, name: str | None = None) -> BlockTable:
        """Make a second table of the same tokens: it shares every block, and no block is copied.

        Neither table may grow before the keys and values of their common tokens have been written: a step carries out
        its copies first, and would copy a block without them.

        Raises:
            ValueError: this table waits for a copy; take it with :func:`take_copies` and carry it out first, since
                its last block does not hold its tokens yet.

        Example:
            >>> pool = BlockPool(num_blocks=8, block_size=4)
            >>> parent = BlockTable(pool)
            >>> _ = parent.append_tokens(6)
            >>> child = parent.fork()
            >>> child.block_ids, [block.ref_cnt for block in child.blocks]
            ([1, 2], [2, 2])
            >>> child.append_tokens(1)            # goes into block 2, which both name: block 3 becomes its copy
            [KVCacheBlock(block_id=3, ref_cnt=1, block_hash=None)]
            >>> parent.block_ids, child.block_ids, take_copies([parent, child])
            ([1, 2], [1, 3], [(2, 3)])
            >>> parent.append_tokens(1)           # block 2 is its own again: nothing to copy
            []
        """
        if self.pending_copy is not None:
            source, copy = self.pending_copy
            raise ValueError(
                f"block {copy} is still to be copied from block {source}: carry out take_copies() before you fork"
            )
        child = BlockTable(self.pool, name)
        watched = self.pool.observers and self.blocks
        if watched:
            self.pool.check_own(self.blocks)
            child._begin()
        self.pool.touch(self.blocks)
        child.blocks, child.num_tokens = list(self.blocks), self.num_tokens
        if watched:
            child._end("fork", child.blocks)
        return child

    def slot_mapping(self, start: int = 0, stop: int | None = None) -> list[int]:
        """Slots of tokens ``start`` to ``stop - 1``; by default of all.

        Raises:
            IndexError: the range is not within the sequence.
        """
        stop = self.num_tokens if stop is None else stop
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start} to {stop} are not all in a sequence of {self.num_tokens} tokens")
        block_size = self.pool.block_size
        return [
            self.blocks[position // block_size].block_id * block_size + position % block_size
            for position in range(start, stop)
        ]

    def release(self) -> None:
        """Give every block back, last first, and become the empty table. On an empty table it does nothing."""
        freed = self.blocks[self.num_skipped_blocks :][::-1]
        watched = self.pool.observers and self.blocks
        if watched:
            self.pool.check_held(freed)
            self._begin()
        self.pool.free_blocks(freed)
        self.blocks, self.num_tokens, self.num_skipped_blocks, self.pending_copy = [], 0, 0, None
        if watched:
            self._end("free", freed)

    def _begin(self) -> None:
        """Tell whoever watches that the pool works for this table now. Whatever can be refused was checked before."""
        for observer in tuple(self.pool.observers):
            observer.begin(self)

    def _end(self, kind: str, blocks: Sequence[KVCacheBlock], num_tokens: int = 0) -> None:
        """Tell whoever watches what this table has done."""
        for observer in tuple(self.pool.observers):
            observer.end(kind, blocks, self, num_tokens)

    def __repr__(self) -> str:
        return f"BlockTable(num_tokens={self.num_tokens}, block_ids={self.block_ids})"


def take_copies(tables: Iterable[BlockTable]) -> list[tuple[int, int]]:
    """Collect the copies that tables are waiting for, for :meth:`pagedattn_lab.kv_cache.PagedKVCache.copy_blocks`.

    They must be carried out, all together, after the tables of a step have grown and before its keys and values are
    written. Forgetting one leaves a sequence with whatever the block held before; so a model runner takes them with the
    step.

    Returns:
        ``(source, destination)`` block numbers.
    """
    copies = []
    for table in tables:
        if table.pending_copy is not None:
            copies.append(table.pending_copy)
            table.pending_copy = None
    return copies


def reorder(tables: Sequence[BlockTable], parents: Sequence[int]) -> list[BlockTable]:
    """Continue some tables, some of them several times, and let the others go.

    The first child of a table takes it over; further ones fork it. Nothing is copied: that waits until they write.

    Args:
        tables: before the step; none of them may be used after it, except through the result.
        parents: for each table after the step, the index of the one that it continues.

    Raises:
        ValueError: an index without a table, or a table that waits for a copy; nothing has changed.

    Example:
        >>> pool = BlockPool(num_blocks=8, block_size=4)
        >>> tables = [BlockTable(pool), BlockTable(pool)]
        >>> for table in tables:
        ...     _ = table.append_tokens(3)
        >>> [table.block_ids for table in reorder(tables, [1, 1])], pool.num_used_blocks
        ([[2], [2]], 1)
    """
    for parent in parents:
        if not 0 <= parent < len(tables):
            raise ValueError(f"there is no table {parent} to continue: there are {len(tables)}")
        if tables[parent].pending_copy is not None:
            raise ValueError(f"table {parent} waits for a copy: carry out take_copies() before you continue it")
    taken: set[int] = set()
    children = []
    for parent in parents:
        children.append(tables[parent].fork() if parent in taken else tables[parent])
        taken.add(parent)
    for index, table in enumerate(tables):
        if index not in taken:
            table.release()
    return children
