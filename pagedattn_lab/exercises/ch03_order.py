"""Exercise 2 of chapter 03: the order of the free queue."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Sequence

from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.exercises.boards import board
from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.grading import Exercise
from pagedattn_lab.viz import Picture

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


def _order_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[list[int], list[list[int]], set[int]]:
        ids = rng.sample(range(1, 20), 19)
        free = [ids.pop() for _ in range(rng.randint(1, 3))]
        shared = [ids.pop() for _ in range(rng.randint(0, 3))]
        tables = [
            shared[: rng.randint(0, len(shared))] + [ids.pop() for _ in range(rng.randint(0, 3))]
            for _ in range(rng.randint(1, 4))
        ]
        held = sorted({block_id for table in tables for block_id in table})
        return free, tables, set(rng.sample(held, rng.randint(0, len(held))))

    about = (
        "Ask of each block: when did its last owner leave, has it a hash (then it joins the tail), and in which order "
        "does a table give its blocks back?"
    )
    return [Case(case, about) for case in _ENDINGS] + random_cases(9, 50, make, about)


def _look_at_queue(arguments: tuple, expected: list[int], got: list[int]) -> str | None:
    if got is None or list(got) == expected:
        return None
    twice = sorted(block_id for block_id, times in Counter(got).items() if times > 1)
    if twice:
        return f"Block {twice[0]} stands in your queue twice: the next two requests would share it."
    lost = sorted(set(expected) - set(got))
    if lost:
        return f"Block {lost[0]} is in no table any more and not in your queue: it has leaked."
    early = sorted(set(got) - set(expected))
    return f"Block {early[0]} should not be in the queue." if early else None


def _draw_queue(arguments: tuple, outcome: list[int]) -> Picture | None:
    return board([], free=outcome, block_size=4, cached=arguments[2])


predict_free_order = Exercise(
    "03.2",
    "predict_free_order",
    "Who is evicted next?",
    cases=_order_cases,
    reference=_reference_free_order,
    oracle=_library_order,
    returns="the free queue, a list of block numbers",
    look=_look_at_queue,
    draw=_draw_queue,
    hints=(
        "When does a block become free? Count its owners, and take one away for each table that ends.",
        "A table gives its blocks back from the last to the first. Of those that nobody holds any more, which join "
        "the head of the queue, and which the tail?",
        "For each table collect two lists in the order in which blocks come back, `head` for those without a hash and "
        "`tail` for those with one. The new queue is `head + queue + tail`.",
    ),
    explanation="A block comes back with its last owner, so owners are counted first. Blocks of one table come back "
    "together: those without a hash stand in front in the order in which they came, those with one at the back. Last "
    "blocks come first, because a beginning is worth more than an end: others may share it.",
    wrong={
        "give the first block back first": lambda *case: _order(*case, last_first=False),
        "free a shared block with its first owner": lambda *case: _order(*case, last_owner=False),
        "send every block to the tail": lambda *case: _order(*case, unhashed_to_head=False),
        "send every block to the head": lambda *case: _order(*case, hashed_to_tail=False),
        "push blocks onto the head one by one": lambda *case: _order(*case, one_by_one=True),
        "put a shared block in once per owner": lambda free, tables, cached: [
            *(b for table in reversed(tables) for b in reversed(table) if b not in cached),
            *free,
            *(b for table in tables for b in reversed(table) if b in cached),
        ],
    },
)
"""Predict the free queue after requests end: ``predict_free_order(free, tables, cached)`` -> block numbers."""
