"""A second tier: what the prefix cache evicts moves to host memory, and comes back by a copy (chapter 11).

The device's prefix cache forgets a block when the block is handed out again. With a tier behind it the contents are
copied to a host block first, and stay known there by the same hash. A prompt that begins so is then looked up twice: in
the device's blocks as far as they reach, and from there on here. What is found here is copied to blocks of the device;
only what is found nowhere is computed again.

This module decides and remembers. The copies are made by whoever executes the step: see :meth:`HostTier.copies`.

A block that comes back keeps its place here, so its contents lie in both memories for a while. That costs host memory,
which is the cheap one, and saves two things: no second copy is needed when the device evicts the block again, and a
copy that fails on its way back loses nothing.

Source: vLLM's ``vllm/v1/kv_offload/cpu/manager.py``, release 0.33.0, for least recently used blocks by hash, pinned
while they are read. It stores blocks as they are computed; storing what is evicted, and nothing else, is what its
``lazy_offload`` comes close to (``vllm/v1/simple_kv_offload/manager.py``).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pagedattn_lab.arithmetic import at_least_one
from pagedattn_lab.kv_events import MEDIUM_CPU, BlockRemoved, BlockStored, KVCacheEvent, external_hash
from pagedattn_lab.swap_space import BlockCopies


class TierCopies(NamedTuple):
    """What a step copies before it writes anything: all stores first, then all loads.

    Attributes:
        stores: ``(block, host block)`` numbers, no host block twice.
        loads: ``(host block, block)`` numbers, no block of the device twice.
    """

    stores: BlockCopies
    loads: BlockCopies


class HostTier:
    """Host blocks by the hash of what they hold, the least recently used given up first.

    Args:
        num_offload_blocks: blocks that can hold something, numbered from 1, as if a null block stood before them.
        block_size: tokens per block, as on the device.
        on_event: told when contents become known here and when they are forgotten; ``None`` if nobody listens.

    Raises:
        ValueError: impossible sizes.

    Example:
        Two blocks are evicted, into a tier of two; then the first comes back while a third is evicted to make room:

        >>> tier = HostTier(num_offload_blocks=2, block_size=16)
        >>> tier.store(b"one", block_id=7); tier.store(b"two", block_id=8)
        >>> tier.copies()
        TierCopies(stores=[(7, 1), (8, 2)], loads=[])
        >>> tier.complete_stores()
        >>> tier.find([b"one", b"three", b"two"])                     # a run: behind the first miss nothing counts
        1
        >>> tier.pin([b"one"]); tier.store(b"three", block_id=9); tier.load(b"one", block_id=9)
        >>> tier.copies()                                             # block 9 is read before it is written
        TierCopies(stores=[(9, 2)], loads=[(1, 9)])
        >>> tier.complete_stores(); tier.complete_loads()
        >>> tier.contents
        {b'one': 1, b'three': 2}
    """

    def __init__(
        self, num_offload_blocks: int, block_size: int, on_event: Callable[[KVCacheEvent], None] | None = None
    ) -> None:
        self.num_blocks = at_least_one("num_offload_blocks", num_offload_blocks)
        self.block_size = at_least_one("block_size", block_size)
        self._on_event = on_event
        self._blocks: OrderedDict[bytes, int] = OrderedDict()  # hash: host block; the least recently used first
        self._free = list(range(num_offload_blocks, 0, -1))  # the last is taken next
        self._pins: Counter[bytes] = Counter()  # hashes that are about to be read
        self._stores: dict[bytes, int] = {}  # hash: block of the device that it is to be copied from
        self._loads: dict[int, bytes] = {}  # block of the device: hash of what is to be copied to it

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def contents(self) -> dict[bytes, int]:
        """Host block of each hash, the least recently used first. A copy of the books: for tests and pictures."""
        return dict(self._blocks)

    @property
    def has_copies(self) -> bool:
        """Whether copies are planned that have been neither completed nor given up."""
        return bool(self._stores or self._loads)

    def find(self, hashes: Sequence[bytes]) -> int:
        """Count how many of these hashes, from the first on, are known here. Nothing changes, not even who is oldest.

        What is stored in the step under way counts: a step makes its stores before its loads.
        """
        for place, block_hash in enumerate(hashes):
            if block_hash not in self._blocks:
                return place
        return len(hashes)

    def store(self, block_hash: bytes, block_id: int) -> None:
        """Take in what a block of the device holds, which is about to lose it.

        Nothing is copied if it is here already. If every host block is about to be read, there is no place for it, and
        it is forgotten, as it would be without a tier.

        Args:
            block_hash: of the contents.
            block_id: the block of the device. If its contents have not been copied to it yet, that copy is not needed
                any more.
        """
        self.cancel(block_id)
        if block_hash in self._blocks:
            self._blocks.move_to_end(block_hash)
            return
        if not self._free:
            oldest = next((other for other in self._blocks if other not in self._pins), None)
            if oldest is None:
                return
            self._forget(oldest)
        self._blocks[block_hash] = self._free.pop()
        self._stores[block_hash] = block_id
        self._tell(BlockStored([external_hash(block_hash)], None, [], self.block_size, MEDIUM_CPU))

    def pin(self, hashes: Sequence[bytes]) -> None:
        """Keep hashes, all of them known here, until each has been loaded; they are the most recently used now.

        Call it before blocks of the device are taken for them: what is evicted on the way must not take their place.
        The first hash becomes the most recent one, since the others cannot be found without it.
        """
        for block_hash in reversed(hashes):
            self._blocks.move_to_end(block_hash)
        self._pins.update(hashes)

    def load(self, block_hash: bytes, block_id: int) -> None:
        """Plan the copy of a pinned hash to a block of the device, whose own contents have been stored if need be."""
        self._loads[block_id] = block_hash

    def cancel(self, block_id: int) -> None:
        """Plan no copy to a block of the device, for nobody wants it any more; one without a copy loses nothing."""
        if block_id in self._loads:
            self._unpin(self._loads.pop(block_id))

    def copies(self) -> TierCopies:
        """Say which copies the step under way must make before it writes: every store, and after them every load.

        A block may be read by a store and written by a load, and a host block written by a store and read by a load.
        So no load may come before the last store.
        """
        return TierCopies(
            [(block_id, self._blocks[block_hash]) for block_hash, block_id in self._stores.items()],
            [(self._blocks[block_hash], block_id) for block_id, block_hash in self._loads.items()],
        )

    def complete_stores(self) -> None:
        """Note that the stores have been made."""
        self._stores.clear()

    def complete_loads(self) -> None:
        """Note that the loads have been made: what they read need not be kept any more."""
        for block_id in tuple(self._loads):
            self.cancel(block_id)

    def fail(self) -> list[int]:
        """Give up the copies that have not been completed; some of them may have been made, or half of one.

        What was to be stored is forgotten. What was to be loaded is still here, and right.

        Returns:
            Blocks of the device that may hold anything. Forget what they were to hold.
        """
        unwritten = list(self._loads)
        self.complete_loads()  # in so far as nothing is read any more
        for block_hash in tuple(self._stores):
            self._forget(block_hash)
        return unwritten

    def clear(self) -> None:
        """Forget everything, without telling: whoever empties the cache tells that of both memories at once."""
        self._free += reversed(self._blocks.values())
        self._blocks.clear()
        self._pins.clear()
        self._stores.clear()
        self._loads.clear()

    def _forget(self, block_hash: bytes) -> None:
        """Let a host block go, and the copy to it if that has not been made."""
        self._free.append(self._blocks.pop(block_hash))
        self._stores.pop(block_hash, None)
        self._tell(BlockRemoved([external_hash(block_hash)], MEDIUM_CPU))

    def _unpin(self, block_hash: bytes) -> None:
        self._pins[block_hash] -= 1
        if not self._pins[block_hash]:
            del self._pins[block_hash]

    def _tell(self, event: KVCacheEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)
