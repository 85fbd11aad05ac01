"""The sentence that says what happened: one for each kind of event, with the blocks in their new state (chapter 03)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pagedattn_lab.block_pool import KVCacheBlock

MOST_NAMED = 8


def counted(number: int, thing: str) -> str:
    """Put a number before what it counts, with an s unless it is 1.

    Example:
        >>> counted(1, "block"), counted(2, "block")
        ('1 block', '2 blocks')
    """
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def block_numbers(blocks: Iterable[KVCacheBlock]) -> tuple[int, ...]:
    """The numbers of blocks, in their order."""
    return tuple(block.block_id for block in blocks)


# What somebody did with the pool by hand.


def pool_sentence(kind: str, blocks: Sequence[KVCacheBlock]) -> str:
    """Say what the pool did, and to which blocks."""
    names = _list(block_numbers(blocks))
    if kind == "allocate":
        return f"The pool hands out {names} from the head of the free queue; no table names them yet."
    if kind == "evict":
        return f"The pool forgets the cached contents of {names}, to hand them out again."
    if kind == "touch":
        once = list(dict.fromkeys(blocks))
        fetched = [block.block_id for block in once if block.ref_cnt == 1]
        parts = [f"{_list(fetched)} taken out of the free queue, contents kept"] if fetched else []
        return f"Touched: {'; '.join(parts + _by_owners((b for b in once if b.ref_cnt > 1), 'have'))}."
    return f"One owner fewer: {_after_free(blocks)}."


# What a table did.


def append_sentence(
    name: str, num_tokens: int, written: Sequence[int], new: Sequence[int], evicted: Sequence[int]
) -> str:
    """Say where appended tokens went: into blocks that the table had, or into new ones."""
    start = f"{name} appends {counted(num_tokens, 'token')}"
    if not new:
        return f"{start}: {'it fits' if num_tokens == 1 else 'they fit'} in {_list(written)}."
    lost = f", and the pool forgets what {_list(evicted)} held" if evicted else ""
    return f"{start} and takes {_list(new)} from the head of the free queue{lost}."


def copy_sentence(name: str, source: KVCacheBlock, copy: KVCacheBlock, evicted: Sequence[int]) -> str:
    """Say which shared block a table left, and which one it has instead."""
    lost = ", whose old contents the pool forgets," if evicted else ""
    return (
        f"{name} must not write to block {source.block_id}, which others read too: it copies it to "
        f"block {copy.block_id}{lost} and lets go; {_by_owners([source], 'keep')[0]}."
    )


def fork_sentence(name: str, blocks: Sequence[KVCacheBlock]) -> str:
    """Say what a fork shares."""
    return f"{name} is forked off and copies nothing: {'; '.join(_by_owners(blocks, 'have'))}."


def hit_sentence(name: str, blocks: Sequence[KVCacheBlock], num_tokens: int) -> str:
    """Say what was found in the cache, and whether it waited in the free queue or was in use."""
    fetched = [block.block_id for block in blocks if block.ref_cnt == 1]
    parts = [f"{_list(fetched)} {'leaves' if len(fetched) == 1 else 'leave'} the free queue"] if fetched else []
    parts += _by_owners((block for block in blocks if block.ref_cnt > 1), "have")
    return f"{name} finds {counted(num_tokens, 'token')} in the cache: {'; '.join(parts)}."


def skip_sentence(name: str, blocks: Sequence[KVCacheBlock]) -> str:
    """Say where the blocks went that nothing reads any more."""
    return f"{name} no longer reads {_list(block_numbers(blocks[::-1]))} and gives back: {_after_free(blocks)}."


def release_sentence(name: str, blocks: Sequence[KVCacheBlock]) -> str:
    """Say where the blocks of a table that ended went."""
    return f"{name} gives back {counted(len(blocks), 'block')}, last first: {_after_free(blocks)}."


# Parts of sentences.


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
    return [
        f"{_list(ids)} {one if len(ids) == 1 else verb} {counted(owners, 'owner')}" for owners, ids in groups.items()
    ]


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
