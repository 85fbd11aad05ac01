"""What each kind of layers asks of its groups' blocks: which are needed, which are found, which are remembered.

Layers with full attention read every token before, so their blocks are needed for as long as the request lives, and a
hit needs all blocks from the first on. Layers with a window read the last ``sliding_window`` tokens, and all three
answers change::

    window of 5 tokens, blocks of 2, 9 tokens computed; the next token, number 9, reads tokens 5 to 9

    block            0       1       2       3       4
    tokens          0 1     2 3     4 5     6 7     8 9
    needed                           x       x       x
    hit of 8 tokens                  x       x              token 8 reads tokens 4 to 8: two blocks are enough

:mod:`pagedattn_lab.kv_groups` asks them. Latents of MLA are kept for every token, so they count as full attention.

Source: vLLM's ``vllm/v1/core/single_type_kv_cache_manager.py``, release 0.33.0, without drafters, context parallelism
and hits inside a block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.block_pool import KVCacheBlock
from pagedattn_lab.kv_cache_specs import (
    FullAttentionSpec,
    KVCacheSpec,
    MLAAttentionSpec,
    RequestLimits,
    SlidingWindowSpec,
)
from pagedattn_lab.kv_events import EventIndex
from pagedattn_lab.prefix_cache import HashIndex
from pagedattn_lab.request import Request

Hits = tuple[list[KVCacheBlock], ...]
"""Blocks that were found, one list for each group."""


class SingleTypeKVCacheManager(ABC):
    """The rules for all groups of one spec.

    Args:
        spec: how their layers keep the cache.
        group_ids: which groups they are. They are looked up together: a block is found if all of them have it.
    """

    hits_can_be_cut: ClassVar[bool]
    """Whether every beginning of a hit is a hit too."""

    def __init__(self, spec: KVCacheSpec, group_ids: Sequence[int]) -> None:
        self.block_size = spec.block_size
        self.group_ids = tuple(group_ids)

    @abstractmethod
    def num_skipped_blocks(self, num_computed_tokens: int) -> int:
        """How many of the first blocks go back once so many tokens are computed."""

    @abstractmethod
    def num_unread_blocks(self, num_computed_tokens: int) -> int:
        """How many of the first blocks the next token does not read, whether they are kept or not."""

    @abstractmethod
    def num_required_blocks(self, num_tokens: int, max_num_batched_tokens: int | None) -> int:
        """Blocks that a request holds at most, in one group, until so many tokens have a slot.

        Args:
            num_tokens: of the request.
            max_num_batched_tokens: how many it may compute in one step; ``None`` for any number.
        """

    @abstractmethod
    def find_longest_cache_hit(
        self, index: HashIndex | EventIndex, request: Request, num_blocks: int, null_block: KVCacheBlock
    ) -> Hits:
        """Find the longest beginning of a request, up to ``num_blocks``, behind which these layers can go on.

        Returns:
            A list for each of ``group_ids``, equally long; the null block where no block is needed.
        """

    @abstractmethod
    def blocks_to_remember(self, request: Request, start: int, stop: int) -> Collection[int]:
        """Choose among full blocks ``start`` to ``stop - 1``."""


class FullAttentionManager(SingleTypeKVCacheManager):
    """Every block is needed, every block is remembered, and a hit ends before the first block that is missing."""

    hits_can_be_cut = True

    def num_skipped_blocks(self, num_computed_tokens: int) -> int:
        """None: the next token reads every token before."""
        return 0

    def num_unread_blocks(self, num_computed_tokens: int) -> int:
        """None: the next token reads every token before."""
        return 0

    def num_required_blocks(self, num_tokens: int, max_num_batched_tokens: int | None) -> int:
        """Blocks for all tokens."""
        return cdiv(num_tokens, self.block_size)

    def find_longest_cache_hit(
        self, index: HashIndex | EventIndex, request: Request, num_blocks: int, null_block: KVCacheBlock
    ) -> Hits:
        """Look blocks up from the first on."""
        found = [index.find(request, num_blocks, group_idx) for group_idx in self.group_ids]
        num_found = min(map(len, found))
        return tuple(blocks[:num_found] for blocks in found)

    def blocks_to_remember(self, request: Request, start: int, stop: int) -> Collection[int]:
        """All of them."""
        return range(start, stop)


class SlidingWindowManager(SingleTypeKVCacheManager):
    """Blocks behind the window go back, and a hit needs the last blocks only: those that the next token reads.

    So most blocks of a long request can never be of use to another one, and are not remembered. Kept are the blocks
    before the places where another request may go on: the end of the prompt, in case the same prompt comes again, and a
    *junction*, up to which full attention knows a beginning that windows have forgotten.

    Args:
        spec: of layers with a window.
        group_ids: as in :class:`SingleTypeKVCacheManager`.
        retention_interval: tokens between further places at which windows are remembered; 0 for no further ones,
            ``None`` for every block.
    """

    hits_can_be_cut = False

    def __init__(self, spec: SlidingWindowSpec, group_ids: Sequence[int], retention_interval: int | None) -> None:
        super().__init__(spec, group_ids)
        self.spec, self.retention_interval = spec, retention_interval
        self.num_blocks_for_hit = cdiv(spec.sliding_window - 1, spec.block_size)

    def num_skipped_blocks(self, num_computed_tokens: int) -> int:
        """Blocks of which no token is in the window of the next one, nor kept for a drafter."""
        spec = self.spec
        return max(0, num_computed_tokens - spec.sliding_window + 1 - spec.extra_retained_tokens) // self.block_size

    def num_unread_blocks(self, num_computed_tokens: int) -> int:
        """Blocks of which no token is in the window of the next one."""
        return max(0, num_computed_tokens - self.spec.sliding_window + 1) // self.block_size

    def num_required_blocks(self, num_tokens: int, max_num_batched_tokens: int | None) -> int:
        """Blocks for the window and what one step computes, or for all tokens if these are fewer."""
        num_blocks = cdiv(num_tokens, self.block_size)
        if max_num_batched_tokens is None:
            return num_blocks
        return min(num_blocks, self.spec.max_blocks_per_request(RequestLimits(num_tokens, max_num_batched_tokens)))

    def find_longest_cache_hit(
        self, index: HashIndex | EventIndex, request: Request, num_blocks: int, null_block: KVCacheBlock
    ) -> Hits:
        """Look blocks up from the last on, until as many follow each other as the window needs, or reach the first."""
        found: list[list[KVCacheBlock]] = []  # the row that ends at block stop - 1, last first
        stop = num_blocks
        for place in range(num_blocks - 1, -1, -1):
            blocks = [index.find_one(request, place, group_idx) for group_idx in self.group_ids]
            known = [block for block in blocks if block is not None]
            if len(known) < len(blocks):
                found, stop = [], place
                continue
            found.append(known)
            if len(found) >= self.num_blocks_for_hit:
                break
        first = stop - len(found)
        return tuple(
            [null_block] * first + [blocks[number] for blocks in reversed(found)]
            for number in range(len(self.group_ids))
        )

    def blocks_to_remember(self, request: Request, start: int, stop: int) -> Collection[int]:
        """Those of a window that ends where another request may go on."""
        need, block_size = self.num_blocks_for_hit, self.block_size
        interval = block_size if self.retention_interval is None else self.retention_interval
        per_segment = interval // block_size
        if 0 < per_segment <= need:
            return range(start, stop)
        ends = [(request.num_prompt_tokens - 1) // block_size, request.shared_prefix_boundary // block_size]
        return [
            place
            for place in range(start, stop)
            if (per_segment and place % per_segment >= per_segment - need)
            or any(end - need <= place < end for end in ends)
        ]


def single_type_managers(
    specs: Sequence[KVCacheSpec], retention_interval: int | None
) -> list[SingleTypeKVCacheManager]:
    """Choose the rules for each group, groups of equal specs together, full attention first.

    Raises:
        ValueError: a kind of layers that has no rules here.

    Example:
        >>> full = FullAttentionSpec(16, 1, 64, "float16")
        >>> window = SlidingWindowSpec(16, 1, 64, "float16", sliding_window=64)
        >>> [(type(each).__name__, each.group_ids) for each in single_type_managers([window, window, full], 0)]
        [('FullAttentionManager', (2,)), ('SlidingWindowManager', (0, 1))]
    """
    by_spec: dict[Any, list[int]] = {}
    for group_idx, spec in enumerate(specs):
        if not isinstance(spec, (FullAttentionSpec, MLAAttentionSpec, SlidingWindowSpec)):
            raise ValueError(
                f"group {group_idx} keeps {spec.kind} layers, and blocks are managed for full attention, latents and "
                "sliding windows only"
            )
        by_spec.setdefault(spec, []).append(group_idx)
    managers: list[SingleTypeKVCacheManager] = [
        SlidingWindowManager(spec, group_ids, retention_interval)
        if isinstance(spec, SlidingWindowSpec)
        else FullAttentionManager(spec, group_ids)
        for spec, group_ids in by_spec.items()
    ]
    return sorted(managers, key=lambda manager: not manager.hits_can_be_cut)


def find_longest_cache_hit(
    managers: Sequence[SingleTypeKVCacheManager],
    index: HashIndex | EventIndex,
    request: Request,
    num_blocks: int,
    null_block: KVCacheBlock,
) -> tuple[Hits, int]:
    """Find the longest beginning of a request, up to ``num_blocks``, behind which *all* groups can go on.

    Each kind of layers is asked in turn for its longest hit up to what the ones before it found, again and again until
    none shortens it any more. Windows must be asked again, since a window further to the left is another window.

    Returns:
        ``(hits, num_longest)``: a list for each group, equally long, and how many blocks the first kind found alone.

    Source: the fixed point of vLLM's ``HybridKVCacheCoordinator``.
    """
    found: dict[SingleTypeKVCacheManager, Hits] = {}
    num_before, num_longest = -1, 0
    while num_blocks != num_before:
        num_before = num_blocks
        for manager in managers:
            if manager in found and manager.hits_can_be_cut:
                continue  # what it found is as long as num_blocks, or longer
            found[manager] = manager.find_longest_cache_hit(index, request, num_blocks, null_block)
            num_blocks = len(found[manager][0])
            num_longest = max(num_longest, num_blocks)
    by_group: dict[int, list[KVCacheBlock]] = {}
    for manager, hits in found.items():
        by_group |= zip(manager.group_ids, hits, strict=True)
    return tuple(by_group[group_idx][:num_blocks] for group_idx in sorted(by_group)), num_longest
