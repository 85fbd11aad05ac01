"""How much of its prompts a cache of a given size would find: prefix hits over a trace (chapter 10).

Requests are served one after the other and let go at once, so what is measured is the cache and not the load. What a
request generates is not cached: traces with hashed blocks do not tell it.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from pagedattn_lab.arithmetic import at_least_one, cdiv
from pagedattn_lab.workloads import TraceRequest

Policy = Literal["lru", "fifo", "random"]
POLICIES: dict[str, str] = {
    "lru": "least recently used first, as vLLM does",
    "fifo": "oldest first, used or not",
    "random": "by chance",
}
MOONCAKE_BLOCK_SIZE = 512
"""Tokens per hashed block in Mooncake's traces."""


@dataclass(frozen=True)
class HitReport:
    """What a cache found.

    Attributes:
        policy: which block goes when one must.
        num_blocks: blocks in the cache, or ``None`` for as many as it takes.
        block_size: tokens per block.
        num_requests: requests in the trace.
        refused: those with more blocks than the cache has; their tokens count as looked for and not found.
        prompt_tokens: tokens looked for.
        hit_tokens: tokens found in full blocks.
        evictions: blocks that lost their contents to make room.
        most_cached: most blocks that held cached contents at once.
    """

    policy: str
    num_blocks: int | None
    block_size: int
    num_requests: int
    refused: int
    prompt_tokens: int
    hit_tokens: int
    evictions: int
    most_cached: int

    @property
    def hit_rate(self) -> float:
        """Tokens found over tokens looked for."""
        return self.hit_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


class BlockCache:
    """Blocks by the ids of their contents, as many as fit.

    With ``"lru"`` it does what a :class:`pagedattn_lab.kv_manager.KVCacheManager` does if each request is freed before
    the next arrives, duplicates included, but needs no tokens. The other policies change which block goes, and nothing
    else.

    Args:
        num_blocks: how many fit; ``None``: all.
        block_size: tokens per block.
        policy: ``"lru"``, ``"fifo"`` or ``"random"``.
        seed: of ``"random"``.

    Raises:
        ValueError: a number below 1, or an unknown policy.

    Example:
        >>> cache = BlockCache(num_blocks=4, block_size=16)
        >>> cache.serve(40, (7, 8, 9))            # two full blocks and a part
        0
        >>> cache.serve(48, (7, 8, 4)), cache.serve(80, (1, 2, 3, 4, 5))
        (32, None)
    """

    def __init__(self, num_blocks: int | None, block_size: int, policy: Policy = "lru", seed: int = 0) -> None:
        if num_blocks is not None:
            at_least_one("num_blocks", num_blocks)
        at_least_one("block_size", block_size)
        if policy not in POLICIES:
            raise ValueError(f"policy {policy!r} is unknown: use one of {', '.join(POLICIES)}")
        self.num_blocks, self.block_size, self.policy = num_blocks, block_size, policy
        self.evictions = 0
        self._rng = random.Random(f"evict {seed}")
        self._contents: OrderedDict[int, int] = OrderedDict()  # block -> id of its contents, next to go first
        self._holders: dict[int, OrderedDict[int, None]] = {}  # id -> blocks that hold it, oldest first
        self._order: list[int] = []  # for "random": the blocks in any order
        self._place: dict[int, int] = {}  # and where each of them stands
        self._num_made = 0

    def __len__(self) -> int:
        return len(self._contents)

    def serve(self, num_tokens: int, hash_ids: Sequence[int]) -> int | None:
        """Look a prompt up, make room for the rest of it, and keep its full blocks.

        Args:
            num_tokens: tokens in the prompt, of which the last is always computed.
            hash_ids: one id per full block, and perhaps one for the rest, which is never looked up nor kept.

        Returns:
            How many tokens were found; ``None`` if the prompt does not fit at all, and nothing changed.

        Raises:
            ValueError: neither one id for each block nor one for each full block.
        """
        num_blocks = cdiv(num_tokens, self.block_size)
        if num_tokens < 1 or len(hash_ids) not in (num_tokens // self.block_size, num_blocks):
            raise ValueError(
                f"{len(hash_ids)} hash_ids for {num_tokens} tokens in blocks of {self.block_size}: there must be one "
                "for each block, or for each full block"
            )
        hits: list[int] = []
        for hash_id in hash_ids[: (num_tokens - 1) // self.block_size]:
            if hash_id not in self._holders:
                break
            hits.append(next(iter(self._holders[hash_id])))
        if self.num_blocks is not None:
            if num_blocks > self.num_blocks:
                return None
            self._evict(num_blocks - len(hits) - (self.num_blocks - len(self._contents)), kept=set(hits))
        for hash_id in reversed(hash_ids[len(hits) : num_tokens // self.block_size]):
            self._keep(hash_id)
        if self.policy == "lru":
            for block in reversed(hits):
                self._contents.move_to_end(block)
        return len(hits) * self.block_size

    def _keep(self, hash_id: int) -> None:
        block = self._num_made
        self._num_made += 1
        self._contents[block] = hash_id
        self._holders.setdefault(hash_id, OrderedDict())[block] = None
        self._place[block] = len(self._order)
        self._order.append(block)

    def _evict(self, num_blocks: int, kept: set[int]) -> None:
        """Forget blocks that are not among ``kept``; none if ``num_blocks`` is not above 0."""
        if self.policy == "random":
            for _ in range(num_blocks):
                block = self._rng.choice(self._order)
                while block in kept:
                    block = self._rng.choice(self._order)
                self._forget(block)
        else:  # one pass, however many there are to step over
            for block in list(islice((block for block in self._contents if block not in kept), max(0, num_blocks))):
                self._forget(block)

    def _forget(self, block: int) -> None:
        hash_id = self._contents.pop(block)
        del self._holders[hash_id][block]
        if not self._holders[hash_id]:
            del self._holders[hash_id]
        last = self._order.pop()
        place = self._place.pop(block)
        if last != block:
            self._order[place], self._place[last] = last, place
        self.evictions += 1


def measure(
    requests: Iterable[TraceRequest],
    num_blocks: int | None,
    block_size: int = MOONCAKE_BLOCK_SIZE,
    policy: Policy = "lru",
    seed: int = 0,
) -> HitReport:
    """Serve a trace from an empty cache.

    Whoever writes a trace gives an id to a last block that is not full, as Mooncake does, or gives it none, as a cache
    of full blocks does. Both are right, for such a block is never found. A trace that does both was hashed in blocks of
    another size, and would be measured wrong.

    Args:
        requests: with ``hash_ids``.
        num_blocks: blocks in the cache; ``None``: as many as it takes.
        block_size: tokens per hashed block.
        policy: see :class:`BlockCache`.
        seed: of ``"random"``.

    Raises:
        ValueError: a request with too few ids or too many, a trace with ids for some of the last blocks that are not
            full but not for all, or what :class:`BlockCache` refuses. Requests count from 1.

    Example:
        >>> from itertools import islice
        >>> from pagedattn_lab.workloads.conversations import chat, hashed
        >>> report = measure(hashed(islice(chat(), 500), 16), num_blocks=None, block_size=16)
        >>> round(report.hit_rate, 2)
        0.7
    """
    cache = BlockCache(num_blocks, block_size, policy, seed)
    num_requests = refused = prompt_tokens = hit_tokens = most_cached = 0
    first_with: dict[bool, int] = {}  # whether a last block that is not full has an id -> the first request to tell
    for request in requests:
        try:
            found = cache.serve(request.prompt_len, request.hash_ids)
        except ValueError as error:
            raise ValueError(f"request {num_requests + 1}: {error}") from None
        num_requests += 1
        num_full, rest = divmod(request.prompt_len, block_size)
        if rest:
            first_with.setdefault(len(request.hash_ids) > num_full, num_requests)
        if len(first_with) == 2:
            raise ValueError(
                f"request {first_with[True]} has an id for its last block, which is not full in blocks of "
                f"{block_size}, and request {first_with[False]} has none: all such blocks must have ids, or none"
            )
        refused += found is None
        prompt_tokens += request.prompt_len
        hit_tokens += found or 0
        most_cached = max(most_cached, len(cache))
    return HitReport(
        policy, num_blocks, block_size, num_requests, refused, prompt_tokens, hit_tokens, cache.evictions, most_cached
    )
