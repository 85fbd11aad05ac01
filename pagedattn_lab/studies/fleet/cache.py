"""The prefix cache of one replica: what ``hits`` measures, in less time (chapter 11)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, takewhile

from pagedattn_lab.arithmetic import at_least_one, cdiv

Key = int | tuple[int, int]
"""What a block goes by."""


def _exhaust(steps: Iterator[None]) -> None:
    """Take all steps, faster than a loop does."""
    deque(steps, maxlen=0)


class ReplicaCache:
    """Blocks by the ids of their contents, as many as fit, the least recently used going first.

    It finds, keeps and forgets exactly what :class:`pagedattn_lab.studies.hit_rates.BlockCache` does with ``"lru"``.
    A block goes by the id of its contents; only where an id is held by more than one block have the others names of
    their own. The blocks are the keys of a plain dict, in the order in which they were put there. In it ids that follow
    one another lie side by side, so a whole prompt is found nearly as fast as one block.

    Args:
        num_blocks: how many fit; ``None``: all.
        block_size: tokens per block.
        on_change: told after each change which ids can no longer be found and which can be from now on; ``None``:
            nobody wants to know.

    Raises:
        ValueError: a number below 1.

    Example:
        >>> cache = ReplicaCache(num_blocks=4, block_size=16, on_change=print)
        >>> cache.serve(40, (7, 8, 9))
        [] [8, 7]
        0
        >>> cache.serve(48, (7, 8, 4))
        [] [4]
        32
        >>> cache.num_hits((7, 8, 5), 3), len(cache)
        (2, 3)
    """

    def __init__(
        self, num_blocks: int | None, block_size: int, on_change: Callable[[list[int], list[int]], None] | None = None
    ) -> None:
        if num_blocks is not None:
            at_least_one("num_blocks", num_blocks)
        at_least_one("block_size", block_size)
        self.num_blocks, self.block_size = num_blocks, block_size
        self.evictions = 0
        self.on_change = on_change
        self._blocks: dict[Key, None] = {}  # next to go first
        self._several: dict[int, deque[Key]] = {}  # id -> its blocks, oldest first, unless it has one by its own name
        self._num_named = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def num_hits(self, hash_ids: Sequence[int], most: int) -> int:
        """Count the leading blocks that can be found, up to ``most``; nothing changes."""
        blocks, several, num_hits = self._blocks, self._several, 0
        for hash_id in hash_ids[:most]:
            if hash_id not in blocks and hash_id not in several:
                break
            num_hits += 1
        return num_hits

    def fits(self, num_tokens: int) -> bool:
        """Tell whether a prompt has no more blocks than there are."""
        return self.num_blocks is None or num_tokens <= self.num_blocks * self.block_size

    def serve(self, num_tokens: int, hash_ids: Sequence[int]) -> int:
        """Look a prompt up, make room for the rest of it, and keep its full blocks.

        Args:
            num_tokens: tokens in the prompt, of which the last is always computed. It must fit.
            hash_ids: one id per full block, and perhaps one for the rest, which is never looked up nor kept.

        Returns:
            How many tokens were found.
        """
        blocks, several, size = self._blocks, self._several, self.block_size
        looked_up = hash_ids[: (num_tokens - 1) // size]
        hits: list[Key]
        if several and not several.keys().isdisjoint(looked_up):
            hits = [self._oldest(hash_id) for hash_id in looked_up[: self.num_hits(looked_up, len(looked_up))]]
        else:
            hits = list(takewhile(blocks.__contains__, looked_up))
        num_hits, evicted = len(hits), []
        if self.num_blocks is not None:
            num_evictions = cdiv(num_tokens, size) - num_hits - self.num_blocks + len(blocks)
            if num_evictions > 0:
                evicted = self._evict(num_evictions, set(hits))
        stored = self._keep(hash_ids[num_hits : num_tokens // size])
        found = dict.fromkeys(hits)
        _exhaust(map(blocks.__delitem__, found))
        blocks.update(dict.fromkeys(reversed(found)))
        if self.on_change is not None and (evicted or stored):
            self.on_change(evicted, stored)
        return num_hits * size

    def _evict(self, num_evictions: int, kept: set[Key]) -> list[int]:
        """Forget blocks that are not among ``kept``, and return what can no longer be found."""
        blocks = self._blocks
        self.evictions += num_evictions
        gone = list(islice(blocks, num_evictions))
        if not kept.isdisjoint(gone):
            gone = list(islice((key for key in blocks if key not in kept), num_evictions))
        _exhaust(map(blocks.__delitem__, gone))
        if not self._several:
            return gone  # type: ignore[return-value]  # no block has a name of its own
        return [hash_id for key in gone if (hash_id := self._forget(key)) is not None]

    def _keep(self, hash_ids: Sequence[int]) -> list[int]:
        """Keep blocks, the last one to go first, and return what can be found from now on."""
        blocks, several = self._blocks, self._several
        new = dict.fromkeys(reversed(hash_ids))
        if len(new) == len(hash_ids) and blocks.keys().isdisjoint(new) and several.keys().isdisjoint(new):
            blocks.update(new)  # type: ignore[arg-type]  # a dict of int is one of keys, too
            return list(new)
        stored = []
        for hash_id in reversed(hash_ids):
            if hash_id in blocks or hash_id in several:
                self._keep_another(hash_id)
            else:
                blocks[hash_id] = None
                stored.append(hash_id)
        return stored

    def clear(self) -> None:
        """Forget every block."""
        self._blocks.clear()
        self._several.clear()

    def hash_ids(self) -> list[int]:
        """List the ids that can be found, in no order."""
        return [key for key in self._blocks if isinstance(key, int)] + [
            hash_id for hash_id in self._several if hash_id not in self._blocks
        ]

    def _oldest(self, hash_id: int) -> Key:
        return self._several[hash_id][0] if hash_id in self._several else hash_id

    def _keep_another(self, hash_id: int) -> None:
        name: Key = hash_id
        if hash_id in self._blocks:
            name = (hash_id, self._num_named)
            self._num_named += 1
        self._several.setdefault(hash_id, deque([hash_id])).append(name)
        self._blocks[name] = None

    def _forget(self, key: Key) -> int | None:
        """Note that a block is gone, and return the id of its contents if no other block holds them."""
        hash_id = key if isinstance(key, int) else key[0]
        holders = self._several.get(hash_id)
        if holders is None:
            return hash_id
        holders.remove(key)
        if not holders or list(holders) == [hash_id]:
            del self._several[hash_id]
        return None if holders else hash_id
