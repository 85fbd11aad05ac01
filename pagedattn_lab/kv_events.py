"""What a prefix cache tells the world: which blocks can be found now, and which no longer (chapter 11).

A router in front of several servers sends a request where most of its prompt is cached. It learns who caches what from
these events, in the order in which they happened.

Source: vLLM's ``vllm/distributed/kv_events.py``, release 0.33.0, whose names and fields these are, without
adapters. ``tests/test_vllm_transcript.py`` and ``tests/test_vllm_groups.py`` compare them with those of that release.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pagedattn_lab.block_pool import KVCacheBlock
from pagedattn_lab.prefix_cache import HashIndex, PrefixIndex, hash_and_group
from pagedattn_lab.request import Request

MEDIUM_GPU = "GPU"
"""The memory that attention reads. vLLM calls it so on every device."""

MEDIUM_CPU = "CPU"
"""The host's memory, a second tier: see :mod:`pagedattn_lab.host_tier`."""


@dataclass(frozen=True)
class BlockStored:
    """Blocks of one request, one behind the other, can be found from now on.

    A block that was computed twice is stored twice, and removed twice.

    What moves to host memory is known by its hash alone: there is no parent then, and there are no tokens, as in vLLM
    by default. Whoever wants them remembers them from the event of the device.

    Attributes:
        block_hashes: one for each block, as :func:`external_hash` gives it.
        parent_block_hash: of the block before the first; ``None`` if there is none.
        token_ids: of all these blocks, and of those between them that a group with a window does not remember.
        block_size: tokens per block.
        medium: where they lie: :data:`MEDIUM_GPU` or :data:`MEDIUM_CPU`.
        extra_keys: for each block, what beside tokens decides what it holds, a salt for instance; ``None`` for nothing.
        group_idx: of the layers whose blocks these are.
    """

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    medium: str | None = MEDIUM_GPU
    extra_keys: list[tuple[str | int, ...] | None] | None = None
    group_idx: int | None = 0


@dataclass(frozen=True)
class BlockRemoved:
    """Blocks can no longer be found, each in as many places as it is named here; fields as in :class:`BlockStored`."""

    block_hashes: list[int]
    medium: str | None = MEDIUM_GPU
    group_idx: int | None = 0


@dataclass(frozen=True)
class AllBlocksCleared:
    """No block can be found any more, in no memory."""


KVCacheEvent = BlockStored | BlockRemoved | AllBlocksCleared


def external_hash(block_hash: bytes) -> int:
    """Shorten a hash to the 64 bits that events carry: its last eight bytes, the most significant first.

    Example:
        >>> external_hash(bytes(30) + bytes([1, 2]))
        258
    """
    return int.from_bytes(block_hash[-8:], "big")


class EventIndex:
    """An index of cached blocks that keeps an event of each change; all else it leaves to the index behind it.

    Args:
        index: where blocks are looked up. Events name blocks by hash, so it must be one of hashes.

    Raises:
        ValueError: another kind of index, or none.

    Example:
        >>> index = EventIndex(HashIndex(block_size=2))
        >>> block = KVCacheBlock(1)
        >>> index.insert(Request("Ada", [5, 6, 7]), [block], 0, 1)
        >>> index.forget(block)
        >>> stored, removed = index.take()
        >>> stored.token_ids, stored.parent_block_hash, stored.block_hashes == removed.block_hashes
        ([5, 6], None, True)
        >>> index.take()
        []
    """

    def __init__(self, index: PrefixIndex | None) -> None:
        if not isinstance(index, HashIndex):
            raise ValueError(f"events name blocks by hash, and {type(index).__name__} has none: use a HashIndex")
        self.index, self.block_size = index, index.block_size
        self._events: list[KVCacheEvent] = []

    def take(self) -> list[KVCacheEvent]:
        """Hand the events out that have happened since the last time."""
        events, self._events = self._events, []
        return events

    def record(self, event: KVCacheEvent) -> None:
        """Keep an event of what another part of the cache does."""
        self._events.append(event)

    def hashes(self, request: Request) -> list[bytes]:
        """As :class:`pagedattn_lab.prefix_cache.HashIndex` does."""
        return self.index.hashes(request)

    def find(self, request: Request, num_blocks: int, group_idx: int = 0) -> list[KVCacheBlock]:
        """As :class:`pagedattn_lab.prefix_cache.HashIndex` does."""
        return self.index.find(request, num_blocks, group_idx)

    def find_one(self, request: Request, index: int, group_idx: int = 0) -> KVCacheBlock | None:
        """As :class:`pagedattn_lab.prefix_cache.HashIndex` does."""
        return self.index.find_one(request, index, group_idx)

    def holds(self, request: Request, blocks: Sequence[KVCacheBlock], start: int = 0, group_idx: int = 0) -> bool:
        """As :class:`pagedattn_lab.prefix_cache.HashIndex` does."""
        return self.index.holds(request, blocks, start, group_idx)

    def insert(
        self,
        request: Request,
        blocks: Sequence[KVCacheBlock],
        start: int,
        stop: int,
        group_idx: int = 0,
        only: Collection[int] | None = None,
    ) -> None:
        """Make blocks known, and tell it in one event, even if it is about ``only`` some of them, or none.

        Raises:
            ValueError: as for :class:`pagedattn_lab.prefix_cache.HashIndex`; nothing is told then.
        """
        self.index.insert(request, blocks, start, stop, group_idx, only)
        if start == stop:
            return
        hashes, size = [external_hash(block_hash) for block_hash in self.index.hashes(request)[:stop]], self.block_size
        stored = range(start, stop) if only is None else only
        keys = [request.extra_keys(index * size, (index + 1) * size) for index in stored]
        self.record(
            BlockStored(
                block_hashes=[hashes[index] for index in stored],
                parent_block_hash=hashes[start - 1] if start else None,
                token_ids=request.token_ids[start * size : stop * size],
                block_size=size,
                extra_keys=[tuple(value for _, value in of_block) or None for of_block in keys] or None,
                group_idx=group_idx,
            )
        )

    def forget(self, block: KVCacheBlock) -> None:
        """Drop a block, and tell it."""
        self.index.forget(block)
        known = hash_and_group(block.block_hash)
        if known is not None:
            block_hash, group_idx = known
            self.record(BlockRemoved([external_hash(block_hash)], group_idx=group_idx))

    def clear(self) -> None:
        """Drop every block, and tell it in one event."""
        self.index.clear()
        self.record(AllBlocksCleared())

    def __len__(self) -> int:
        return len(self.index)
