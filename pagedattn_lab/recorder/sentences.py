"""The sentences that say what an event did to blocks and queue (chapter 03)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pagedattn_lab.block_pool import KVCacheBlock
from pagedattn_lab.recorder.frame import count

MOST_NAMED = 8
"""Blocks that a sentence names one by one at most."""


def block_ids(blocks: Iterable[KVCacheBlock]) -> tuple[int, ...]:
    """Give the numbers of blocks."""
    return tuple(block.block_id for block in blocks)


def _list(block_ids: Sequence[int]) -> str:
    """Name blocks: "block 3", "blocks 3 and 5"; long lists keep their ends."""
    numbers = [str(block_id) for block_id in block_ids]
    if len(numbers) == 1:
        return f"block {numbers[0]}"
    if len(numbers) > MOST_NAMED:
        return f"blocks {', '.join(numbers[:3])} … {numbers[-1]} ({len(numbers)} of them)"
    return f"blocks {', '.join(numbers[:-1])} and {numbers[-1]}"


def _by_owners(blocks: Iterable[KVCacheBlock], verb: str) -> list[str]:
    """Say which blocks have how many owners now: "blocks 1 and 2 keep 1 owner"."""
    groups: dict[int, list[int]] = {}
    for block in blocks:
        groups.setdefault(block.ref_cnt, []).append(block.block_id)
    one = f"{verb}s" if verb == "keep" else "has"
    return [f"{_list(ids)} {one if len(ids) == 1 else verb} {count(owners, 'owner')}" for owners, ids in groups.items()]


def _allocated(blocks: Sequence[KVCacheBlock]) -> str:
    return f"The pool hands out {_list(block_ids(blocks))} from the head of the free queue; no table names them yet."


def _evicted(blocks: Sequence[KVCacheBlock]) -> str:
    return f"The pool forgets the cached contents of {_list(block_ids(blocks))}, to hand them out again."


def _touched(blocks: Sequence[KVCacheBlock]) -> str:
    once = list(dict.fromkeys(blocks))
    fetched = [block.block_id for block in once if block.ref_cnt == 1]
    parts = [f"{_list(fetched)} taken out of the free queue, contents kept"] if fetched else []
    return f"Touched: {'; '.join(parts + _by_owners((b for b in once if b.ref_cnt > 1), 'have'))}."


def _freed(blocks: Sequence[KVCacheBlock]) -> str:
    return f"One owner fewer: {_after_free(blocks)}."


def _after_free(blocks: Sequence[KVCacheBlock]) -> str:
    """Say where blocks went that lost an owner; each is named once."""
    once = list(dict.fromkeys(blocks))
    back = [block.block_id for block in once if block.ref_cnt == 0 and block.block_hash is None]
    cached = [block.block_id for block in once if block.ref_cnt == 0 and block.block_hash is not None]
    parts = []
    if back:
        parts.append(f"{_list(back)} {'returns' if len(back) == 1 else 'return'} to the head of the free queue")
    if cached:
        parts.append(f"{_list(cached)}, still cached, {'joins' if len(cached) == 1 else 'join'} the queue's tail")
    return "; ".join(parts + _by_owners((block for block in once if block.ref_cnt), "keep"))


POOL_SENTENCES: dict[str, Callable[[Sequence[KVCacheBlock]], str]] = {
    "allocate": _allocated,
    "evict": _evicted,
    "touch": _touched,
    "free": _freed,
}
"""What a pool did that no table asked for, by the kind of the event."""


def append_sentence(
    name: str, num_tokens: int, written: Sequence[int], new: Sequence[int], evicted: Sequence[int]
) -> str:
    """A table grew into ``written`` blocks, ``new`` of which it took from the pool."""
    start = f"{name} appends {count(num_tokens, 'token')}"
    if not new:
        return f"{start}: {'it fits' if num_tokens == 1 else 'they fit'} in {_list(written)}."
    lost = f", and the pool forgets what {_list(evicted)} held" if evicted else ""
    return f"{start} and takes {_list(new)} from the head of the free queue{lost}."


def copy_sentence(name: str, blocks: Sequence[KVCacheBlock], evicted: Sequence[int]) -> str:
    """A table got a private copy of a block: ``blocks`` are the shared one and the copy."""
    source, copy = blocks
    lost = ", whose old contents the pool forgets," if evicted else ""
    return (
        f"{name} must not write to {_list(block_ids([source]))}, which others read too: it copies it to "
        f"{_list(block_ids([copy]))}{lost} and lets go; {_by_owners([source], 'keep')[0]}."
    )


def fork_sentence(name: str, blocks: Sequence[KVCacheBlock]) -> str:
    """A new table shares all blocks of another."""
    return f"{name} is forked off and copies nothing: {'; '.join(_by_owners(blocks, 'have'))}."


def hit_sentence(name: str, blocks: Sequence[KVCacheBlock], num_tokens: int) -> str:
    """A table begins with blocks that the cache knew."""
    fetched = [block.block_id for block in blocks if block.ref_cnt == 1]
    parts = [f"{_list(fetched)} {'leaves' if len(fetched) == 1 else 'leave'} the free queue"] if fetched else []
    parts += _by_owners((block for block in blocks if block.ref_cnt > 1), "have")
    return f"{name} finds {count(num_tokens, 'token')} in the cache: {'; '.join(parts)}."


def release_sentence(name: str, blocks: Sequence[KVCacheBlock]) -> str:
    """A table let go of all its blocks."""
    return f"{name} gives back {count(len(blocks), 'block')}, last first: {_after_free(blocks)}."
