"""Exercises of chapter 03, Blocks: one step of admission, the order of the free queue, and choosing a block size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.exercises import Exercise

# ---------------------------------------------------------------------------------------------------------------------
# 1. One step of admission
# ---------------------------------------------------------------------------------------------------------------------

Admission = Callable[[Sequence[int], Sequence[int], int, int], list[int]]

_STEPS = [  # held, new tokens, free blocks, block size, blocks granted, what the case is about
    ([15, 16, 17, 0], [1, 1, 1, 16], 9, 16, [0, 1, 0, 1], "one token may fill the last block or open a new one"),
    ([0, 0], [33, 5], 4, 16, [3, 1], "the last free block may be used"),
    ([0, 0, 0], [20, 40, 3], 4, 8, [3], "the second needs 5 blocks and 1 is left, so the third waits behind it"),
    ([6, 30], [7, 12], 3, 8, [1, 2], "a chunk of several tokens first fills the last block"),
    ([0, 3, 9], [17, 1, 40], 6, 4, [5, 0], "a request that needs no block is served from a nearly empty pool"),
    ([4, 8], [1, 1], 1, 4, [1], "two requests may not be promised the same free block"),
    ([2, 7, 1], [2, 1, 6], 0, 4, [0, 0], "with no block free, those whose tokens still fit are served"),
]


def _reference_admit(held: Sequence[int], new: Sequence[int], num_free_blocks: int, block_size: int) -> list[int]:
    granted = []
    for tokens, more in zip(held, new, strict=True):
        needed = cdiv(tokens + more, block_size) - cdiv(tokens, block_size)
        if needed > num_free_blocks:
            break
        num_free_blocks -= needed
        granted.append(needed)
    return granted


def _check_admit(answer: Admission) -> None:
    for held, new, free, block_size, expected, about in _STEPS:
        case = f"held={held}, new={new}, num_free_blocks={free}, block_size={block_size}"
        result = answer(list(held), list(new), free, block_size)
        assert isinstance(result, list), f"return a list of blocks granted, not {type(result).__name__}"
        assert sum(result) <= free, f"for {case} you hand out {sum(result)} blocks, and only {free} are free"
        assert len(result) <= len(expected), (
            f"for {case} you serve {len(result)} requests: the one after number {len(expected)} does not get "
            "all of its blocks, so neither it nor anyone behind it is served"
        )
        assert result == expected, f"for {case} the answer is {expected}, not {result}: {about}"


def _admit_forgets_last_block(held: Sequence[int], new: Sequence[int], free: int, block_size: int) -> list[int]:
    return _reference_admit([0] * len(held), new, free, block_size)


def _admit_rounds_down(held: Sequence[int], new: Sequence[int], free: int, block_size: int) -> list[int]:
    granted = []
    for tokens, more in zip(held, new, strict=True):
        needed = (tokens + more) // block_size - tokens // block_size
        if needed > free:
            break
        free -= needed
        granted.append(needed)
    return granted


def _admit_half(held: Sequence[int], new: Sequence[int], free: int, block_size: int) -> list[int]:
    granted = _reference_admit(held, new, free, block_size)
    left = free - sum(granted)
    return [*granted, left] if left and len(granted) < len(held) else granted


def _admit_overtakes(held: Sequence[int], new: Sequence[int], free: int, block_size: int) -> list[int]:
    granted = []
    for tokens, more in zip(held, new, strict=True):
        needed = _reference_admit([tokens], [more], 10**9, block_size)[0]
        if needed <= free:
            free -= needed
            granted.append(needed)
    return granted


def _admit_never_deducts(held: Sequence[int], new: Sequence[int], free: int, block_size: int) -> list[int]:
    granted = []
    for tokens, more in zip(held, new, strict=True):
        needed = _reference_admit([tokens], [more], 10**9, block_size)[0]
        if needed > free:
            break
        granted.append(needed)
    return granted


def _admit_stops_when_empty(held: Sequence[int], new: Sequence[int], free: int, block_size: int) -> list[int]:
    granted = []
    for tokens, more in zip(held, new, strict=True):
        needed = _reference_admit([tokens], [more], 10**9, block_size)[0]
        if not free or needed > free:
            break
        free -= needed
        granted.append(needed)
    return granted


admit = Exercise(
    _check_admit,
    reference=_reference_admit,
    wrong={
        "forgets the room in the last block": _admit_forgets_last_block,
        "rounds down": _admit_rounds_down,
        "hands out what is left": _admit_half,
        "lets a small request overtake": _admit_overtakes,
        "compares each with the whole pool": _admit_never_deducts,
        "stops as soon as the pool is empty": _admit_stops_when_empty,
    },
)
"""Serve requests in order, all-or-nothing: ``admit(held, new, num_free_blocks, block_size)`` -> blocks granted."""

# ---------------------------------------------------------------------------------------------------------------------
# 2. The order of the free queue
# ---------------------------------------------------------------------------------------------------------------------

Order = Callable[[Sequence[int], Sequence[Sequence[int]], Collection[int]], list[int]]

_ENDINGS = [  # free queue, tables in the order in which they end, blocks with a hash
    ([5], [[1, 2, 3]], set()),
    ([7, 2], [[4, 6], [1, 5, 3]], {4, 1}),
    ([9], [[3, 8, 1], [3, 8, 6], [2, 4]], {3, 8, 2}),
    ([], [[5, 2, 7], [5, 9], [5, 2, 1, 4]], {5, 2, 1}),
    ([6, 3], [[1, 4], [], [2, 4]], {2}),
]


def _library_order(free: Sequence[int], tables: Sequence[Sequence[int]], cached: Collection[int]) -> list[int]:
    """Let the library's pool play the case through."""
    held = Counter(block_id for table in tables for block_id in table)
    pool = BlockPool(num_blocks=1 + max([*free, *held]), block_size=1)
    for block in pool.get_new_blocks(pool.num_free_blocks):
        for _ in range(held[block.block_id] - 1):
            pool.touch([block])
        block.block_hash = block.block_id if block.block_id in cached else None
    pool.free_blocks(pool.blocks[block_id] for block_id in free)
    for table in tables:
        pool.free_blocks(pool.blocks[block_id] for block_id in reversed(table))
    return [block.block_id for block in pool.free_block_queue.get_all_free_blocks()]


def _order(
    free: Sequence[int],
    tables: Sequence[Sequence[int]],
    cached: Collection[int],
    *,
    last_first: bool = True,
    last_owner: bool = True,
    hashed_to_tail: bool = True,
    unhashed_to_head: bool = True,
    one_by_one: bool = False,
) -> list[int]:
    """Play the case through with plain lists; each option, switched, is a mistake."""
    owners = Counter(block_id for table in tables for block_id in table)
    queue = list(free)
    for table in tables:
        returned = []
        for block_id in reversed(table) if last_first else table:
            owners[block_id] -= 1
            if owners[block_id] == 0 if last_owner else block_id not in queue:
                returned.append(block_id)
        to_tail = [b for b in returned if (hashed_to_tail if b in cached else not unhashed_to_head)]
        to_head = [b for b in returned if b not in to_tail]
        queue = (to_head[::-1] if one_by_one else to_head) + queue + to_tail
    return queue


def _reference_free_order(free: Sequence[int], tables: Sequence[Sequence[int]], cached: Collection[int]) -> list[int]:
    owners = Counter(block_id for table in tables for block_id in table)
    queue = list(free)
    for table in tables:
        head, tail = [], []
        for block_id in reversed(table):
            owners[block_id] -= 1
            if owners[block_id] == 0:
                (tail if block_id in cached else head).append(block_id)
        queue = head + queue + tail
    return queue


def _check_free_order(answer: Order) -> None:
    for free, tables, cached in _ENDINGS:
        expected = _library_order(free, tables, cached)
        result = answer(list(free), [list(table) for table in tables], set(cached))
        case = f"free={free}, tables={tables}, cached={cached or 'set()'}"
        assert isinstance(result, list), f"return the queue as a list of block numbers, not {type(result).__name__}"
        twice = sorted(block_id for block_id, times in Counter(result).items() if times > 1)
        assert not twice, (
            f"for {case} block {twice[0]} stands in your queue twice: the next two requests would share it"
        )
        lost = sorted(set(expected) - set(result))
        assert not lost, f"for {case} block {lost[0]} is in no table and not in your queue: it has leaked"
        assert result == expected, f"for {case} the queue is {expected}, not {result}: {_first_slip(result, expected)}"


def _first_slip(result: Sequence[int], expected: Sequence[int]) -> str:
    """Say at which place two orders of the same blocks part, and what decides that place."""
    if sorted(result) != sorted(expected):
        return "it must hold each block that no table names any more, and no other"
    place = next(i for i, pair in enumerate(zip(result, expected, strict=True)) if pair[0] != pair[1])
    return (
        f"place {place} belongs to block {expected[place]}. Ask of each block: when did its last owner leave, has it "
        "a hash (then it joins the tail), and in which order does a table give its blocks back?"
    )


free_order = Exercise(
    _check_free_order,
    reference=_reference_free_order,
    wrong={
        "gives the first block back first": lambda *case: _order(*case, last_first=False),
        "frees a shared block with its first owner": lambda *case: _order(*case, last_owner=False),
        "sends every block to the tail": lambda *case: _order(*case, unhashed_to_head=False),
        "sends every block to the head": lambda *case: _order(*case, hashed_to_tail=False),
        "pushes onto the head one by one": lambda *case: _order(*case, one_by_one=True),
        "puts a shared block in once per owner": lambda free, tables, cached: [
            *(b for table in reversed(tables) for b in reversed(table) if b not in cached),
            *free,
            *(b for table in tables for b in reversed(table) if b in cached),
        ],
    },
)
"""Predict the free queue after requests end: ``free_order(free, tables, cached)`` -> block numbers in order."""

# ---------------------------------------------------------------------------------------------------------------------
# 3. Choosing a block size
# ---------------------------------------------------------------------------------------------------------------------

Choice = Callable[[Sequence[int], Sequence[int], float], int | None]

_LOADS = [  # lengths, supported block sizes, target
    ([19, 23, 18, 31, 7], [1, 2, 4, 8, 16, 32], 0.9),
    ([5, 900, 3, 700, 4], [16, 32, 64, 128], 0.9),
    ([64, 128, 192, 64], [16, 48, 64, 96], 0.95),
    ([300, 411, 257, 980], [64, 16, 32], 0.95),
    ([6, 9, 11], [32, 64], 0.5),
    ([100, 100, 100, 100, 28], [16, 32, 128], 0.8),
    ([40, 80, 120], [16, 40, 64], 1.0),
]


def _utilisation(lengths: Sequence[int], block_size: int) -> float:
    return sum(lengths) / sum(cdiv(length, block_size) * block_size for length in lengths)


def _reference_choose(lengths: Sequence[int], supported: Sequence[int], target: float) -> int | None:
    good = [block_size for block_size in supported if _utilisation(lengths, block_size) >= target]
    return max(good, default=None)


def _choose_by(utilisation: Callable[[Sequence[int], int], float]) -> Choice:
    def choose(lengths: Sequence[int], supported: Sequence[int], target: float) -> int | None:
        return max((size for size in supported if utilisation(lengths, size) >= target), default=None)

    return choose


def _choose_until_first_failure(lengths: Sequence[int], supported: Sequence[int], target: float) -> int | None:
    best = None
    for block_size in sorted(supported):
        if _utilisation(lengths, block_size) < target:
            break
        best = block_size
    return best


def _check_choose(answer: Choice) -> None:
    for lengths, supported, target in _LOADS:
        expected = _reference_choose(lengths, supported, target)
        result = answer(list(lengths), list(supported), target)
        case = f"lengths={lengths}, supported={supported}, target={target}"
        if expected is None:
            assert result is None, f"for {case} no supported size reaches the target: return None, not {result}"
            continue
        assert result is not None, f"for {case} you return None, but {expected} reaches the target"
        assert result in supported, f"for {case} you return {result}, which the backend does not support"
        reached = f"{sum(lengths)} tokens lie in {sum(cdiv(n, result) * result for n in lengths)} slots"
        assert _utilisation(lengths, result) >= target, f"for {case} block size {result} falls short: {reached}"
        assert result == expected, (
            f"for {case} block size {result} reaches the target, and so does {expected}: look at every supported size, "
            "and count tokens over slots for the load as a whole"
        )


choose_block_size = Exercise(
    _check_choose,
    reference=_reference_choose,
    wrong={
        "averages the sequences' own ratios": _choose_by(
            lambda lengths, size: sum(_utilisation([length], size) for length in lengths) / len(lengths)
        ),
        "uses the rule of thumb": _choose_by(
            lambda lengths, size: sum(lengths) / (sum(lengths) + len(lengths) * (size - 1) / 2)
        ),
        "looks at the mean length only": _choose_by(
            lambda lengths, size: _utilisation([round(sum(lengths) / len(lengths))], size)
        ),
        "stops at the first size that falls short": _choose_until_first_failure,
        "returns the smallest": lambda lengths, supported, target: min(
            (size for size in supported if _utilisation(lengths, size) >= target), default=None
        ),
        "falls back on the smallest size": lambda lengths, supported, target: (
            _reference_choose(lengths, supported, target) or min(supported)
        ),
    },
)
"""Pick the largest size that wastes little enough: ``choose_block_size(lengths, supported, target)``."""
