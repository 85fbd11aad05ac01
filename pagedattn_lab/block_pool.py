"""The physical memory: blocks, the queue of free ones, and who holds the rest (chapter 03).

The pool hands out block *numbers*; the tensors that the numbers index live in :mod:`pagedattn_lab.kv_cache`.
Names and free order follow vLLM's ``vllm/v1/core/block_pool.py`` and ``kv_cache_utils.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Protocol


class KVCacheBlock:
    """One physical block: its number, how many tables point at it, and its place in the free queue.

    Attributes:
        block_id: index into the cache tensors.
        ref_cnt: number of table entries that point here; 0 means free.
        block_hash: identity of the block's contents once it is full and cached, else ``None``.
        prev_free_block, next_free_block: neighbours in the free queue; ``None`` outside it.
    """

    __slots__ = ("block_hash", "block_id", "next_free_block", "prev_free_block", "ref_cnt")

    def __init__(self, block_id: int) -> None:
        self.block_id = block_id
        self.ref_cnt = 0
        self.block_hash: Hashable | None = None
        # A block, or None outside the queue. Typed Any: inside it is never None, and to assert that would cost time.
        self.prev_free_block: Any = None
        self.next_free_block: Any = None

    def __repr__(self) -> str:
        return f"KVCacheBlock(block_id={self.block_id}, ref_cnt={self.ref_cnt}, block_hash={self.block_hash!r})"


class NoFreeBlocksError(RuntimeError):
    """More blocks were asked for than are free. Nothing was allocated."""


class FreeBlockQueue:
    """The free blocks in the order in which they will be handed out: an intrusive doubly linked list.

    The links live inside the blocks, so a block leaves the middle of the queue in O(1), which a ``deque`` cannot do,
    and no node is allocated or thrown away. Two sentinels stand at the ends, so no operation has a special case.

    Example:
        >>> blocks = [KVCacheBlock(i) for i in range(4)]
        >>> queue = FreeBlockQueue(blocks)
        >>> queue.remove(blocks[2])
        >>> [block.block_id for block in queue.get_all_free_blocks()]
        [0, 1, 3]
    """

    __slots__ = ("_head", "_tail", "num_free_blocks")

    def __init__(self, blocks: Iterable[KVCacheBlock] = ()) -> None:
        self._head, self._tail = KVCacheBlock(-1), KVCacheBlock(-1)
        self._head.next_free_block, self._tail.prev_free_block = self._tail, self._head
        self.num_free_blocks = 0
        self.append_n(blocks)

    def popleft(self) -> KVCacheBlock:
        """Take the first block.

        Raises:
            NoFreeBlocksError: the queue is empty.
        """
        if not self.num_free_blocks:
            raise NoFreeBlocksError("the free queue is empty")
        block = self._head.next_free_block
        self.remove(block)
        return block

    def remove(self, block: KVCacheBlock) -> None:
        """Take one block out, wherever it stands.

        Raises:
            ValueError: the block is not in the queue.
        """
        before, after = block.prev_free_block, block.next_free_block
        if before is None or after is None:
            raise ValueError(f"block {block.block_id} is not in the free queue")
        before.next_free_block, after.prev_free_block = after, before
        block.prev_free_block = block.next_free_block = None
        self.num_free_blocks -= 1

    def append_n(self, blocks: Iterable[KVCacheBlock]) -> None:
        """Put blocks at the tail, the first of them first: they will be handed out last."""
        self._insert_after(self._tail.prev_free_block, blocks)

    def prepend_n(self, blocks: Iterable[KVCacheBlock]) -> None:
        """Put blocks at the head, the first of them first: they will be handed out next."""
        self._insert_after(self._head, blocks)

    def _insert_after(self, before: KVCacheBlock, blocks: Iterable[KVCacheBlock]) -> None:
        after = before.next_free_block
        for block in blocks:
            before.next_free_block, block.prev_free_block = block, before
            before = block
            self.num_free_blocks += 1
        before.next_free_block, after.prev_free_block = after, before

    def get_all_free_blocks(self) -> list[KVCacheBlock]:
        """List the free blocks in the order in which they will be handed out. O(n): for tests and pictures."""
        blocks, block = [], self._head.next_free_block
        while block is not self._tail:
            blocks.append(block)
            block = block.next_free_block
        return blocks


class BlockPool:
    """All physical blocks, of which block 0, the null block, is never handed out.

    Every operation costs O(1) per block named in the call, whatever the size of the pool. A call that raises has
    changed nothing.

    Args:
        num_blocks: blocks in all, the null block included: ``num_blocks - 1`` can be used.
        block_size: tokens per block.

    Attributes:
        observers: told of every change, by this pool and by the tables on it; empty while nobody watches. Each is an
            :class:`Observer`.
        on_evict: called with each block that is handed out again while it still has a hash, just before it loses it:
            a prefix cache must forget it. ``None`` if there is none.

    Raises:
        ValueError: ``num_blocks`` below 2, ``block_size`` below 1, or either not a whole number.

    Example:
        >>> pool = BlockPool(num_blocks=5, block_size=16)
        >>> first, second = pool.get_new_blocks(2)
        >>> first.block_id, second.block_id, pool.num_free_blocks
        (1, 2, 2)
        >>> pool.touch([first])                   # a second table points at it
        >>> pool.free_blocks([second, first])     # the first table lets go of both
        >>> first.ref_cnt, pool.num_free_blocks
        (1, 3)
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        for name, value in (("num_blocks", num_blocks), ("block_size", block_size)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}: give a whole number")
        if num_blocks < 2:
            raise ValueError(f"num_blocks is {num_blocks}: a pool needs at least 2, since block 0 is the null block")
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}: a block holds at least 1 token")
        self.block_size = block_size
        self.blocks = [KVCacheBlock(block_id) for block_id in range(num_blocks)]
        self.null_block = self.blocks[0]
        self.free_block_queue = FreeBlockQueue(self.blocks[1:])
        self.observers: list[Observer] = []
        self.on_evict: Callable[[KVCacheBlock], None] | None = None

    @property
    def num_blocks(self) -> int:
        """Blocks in all, the null block included."""
        return len(self.blocks)

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be handed out now."""
        return self.free_block_queue.num_free_blocks

    @property
    def num_used_blocks(self) -> int:
        """Blocks that at least one table points at."""
        return len(self.blocks) - 1 - self.free_block_queue.num_free_blocks

    def check_free(self, num_blocks: int) -> None:
        """Raise what :meth:`get_new_blocks` would raise, and change nothing."""
        if num_blocks < 0:
            raise ValueError(f"cannot allocate {num_blocks} blocks: ask for 0 or more")
        num_free_blocks = self.free_block_queue.num_free_blocks
        if num_blocks > num_free_blocks:
            raise NoFreeBlocksError(
                f"cannot allocate {num_blocks} blocks: {num_free_blocks} of {len(self.blocks) - 1} are free"
            )

    def get_new_blocks(self, num_blocks: int) -> list[KVCacheBlock]:
        """Hand out blocks from the head of the free queue, all of them or none.

        A block that still carried the hash of its old contents loses it here, and not before.

        Raises:
            NoFreeBlocksError: fewer than ``num_blocks`` are free.
            ValueError: ``num_blocks`` is negative.
        """
        self.check_free(num_blocks)
        queue = self.free_block_queue
        new_blocks = [queue.popleft() for _ in range(num_blocks)]
        watched = self.observers and new_blocks
        evicted = [block for block in new_blocks if block.block_hash is not None] if watched else []
        for block in new_blocks:
            block.ref_cnt = 1
            if block.block_hash is not None:
                if self.on_evict is not None:
                    self.on_evict(block)
                block.block_hash = None
        if watched:
            if evicted:
                self._tell("evict", evicted)
            self._tell("allocate", new_blocks)
        return new_blocks

    def touch(self, blocks: Iterable[KVCacheBlock]) -> None:
        """Add one owner to each block; a free block leaves the free queue with its contents.

        Raises:
            ValueError: a block of another pool, or the null block.
        """
        blocks = list(blocks)
        self.check_own(blocks)
        for block in blocks:
            if block.ref_cnt == 0:
                self.free_block_queue.remove(block)
            block.ref_cnt += 1
        if self.observers and blocks:
            self._tell("touch", blocks)

    def free_blocks(self, ordered_blocks: Iterable[KVCacheBlock]) -> None:
        """Take one owner from each block; those without any left return to the free queue.

        Blocks with a hash may be hit again, so they join the tail; blocks without one join the head. Within each
        group the order given is the order of reuse.

        Raises:
            ValueError: a block freed more often than it is held, a block of another pool, or the null block.
        """
        ordered_blocks = list(ordered_blocks)
        self.check_held(ordered_blocks)
        reusable: list[KVCacheBlock] = []
        cached: list[KVCacheBlock] = []
        for block in ordered_blocks:
            block.ref_cnt -= 1
            if block.ref_cnt == 0:
                (reusable if block.block_hash is None else cached).append(block)
        self.free_block_queue.prepend_n(reusable)
        self.free_block_queue.append_n(cached)
        if self.observers and ordered_blocks:
            self._tell("free", ordered_blocks)

    def check_own(self, blocks: Sequence[KVCacheBlock]) -> None:
        """Raise what :meth:`touch` would raise, and change nothing."""
        for block in blocks:
            if block is self.null_block:
                raise ValueError("block 0 is the null block: it has no owners, so it cannot be touched or freed")
            if not 0 < block.block_id < len(self.blocks) or self.blocks[block.block_id] is not block:
                raise ValueError(
                    f"block {block.block_id} belongs to another pool: give it back to the pool it came from"
                )

    def check_held(self, blocks: Sequence[KVCacheBlock]) -> None:
        """Raise what :meth:`free_blocks` would raise, and change nothing."""
        self.check_own(blocks)
        for block, times in Counter(blocks).items():
            if times > block.ref_cnt:
                raise ValueError(
                    f"double free of block {block.block_id}: freed {times} time(s), held by {block.ref_cnt} owner(s)"
                )

    def _tell(self, kind: str, blocks: Sequence[KVCacheBlock]) -> None:
        for observer in tuple(self.observers):  # one that is told may stop watching
            observer.pool_event(kind, blocks)


class Observer(Protocol):
    """Whoever wants to know what happens to a pool and to the tables on it: one of :attr:`BlockPool.observers`.

    A table that takes blocks or lets them go brackets what it does, so that everybody can tell its own event from the
    steps that the pool takes for it. Forking a table of two blocks, for instance, is told as::

        begin(child)                            from here on the child acts
            pool_event("touch", [1, 2])         what the pool does for it
        end("fork", [1, 2], child, 0)           done: the child's entries have changed too

    What the pool reports outside a bracket was asked for by hand. Brackets do not nest: an append that needs a private
    copy is two of them, one after the other. Whatever a table may be refused is checked before its bracket begins.

    Blocks are shown in their new state. An observer must neither change what it watches nor raise: what it is told of
    has happened and is not undone.
    """

    def begin(self, table: Any) -> None:
        """A :class:`~pagedattn_lab.block_table.BlockTable` begins: until it ends, it is the one that uses the pool."""

    def pool_event(self, kind: str, blocks: Sequence[KVCacheBlock]) -> None:
        """The pool has done something.

        Args:
            kind: ``"allocate"``; ``"evict"``, just before it: these of the blocks lose the hash of their old contents;
                ``"touch"``; or ``"free"``.
            blocks: as they are now.
        """

    def end(self, kind: str, blocks: Sequence[KVCacheBlock], table: Any, num_tokens: int) -> None:
        """The table that began is done.

        Args:
            kind: ``"append"``, ``"copy-on-write"``, ``"fork"``, ``"hit"``, ``"skip"`` or ``"free"``.
            blocks: those taken (append), the shared one and its private copy (copy-on-write), those that are shared
                now (fork, hit), or those given back (skip: the first ones, which nothing reads any more; free: all).
            table: the same as at the beginning, after its event.
            num_tokens: how many were appended or found; 0 for the other kinds.
        """
