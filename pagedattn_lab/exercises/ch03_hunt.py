"""Bug hunt of chapter 03: a block that is found again and stays in the free queue.

What holds the bug stands here word for word as in the chapter, so that an unchanged cell is recognised.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.grading import Exercise


def _find_again(blocks: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    for block in blocks:
        if ref_cnt[block] == 0:
            free.remove(block)
        ref_cnt[block] += 1


def _find_buggy(blocks, ref_cnt, free):
    for block in blocks:
        ref_cnt[block] += 1
        if ref_cnt[block] == 0:
            free.remove(block)


def _find_once(blocks: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    for block in blocks:
        if block in free:
            free.remove(block)
            ref_cnt[block] = 1


def _find_sets(blocks: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    for block in blocks:
        if block in free:
            free.remove(block)
        ref_cnt[block] = 1


def _find_head(blocks: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    for block in blocks:
        if ref_cnt[block] == 0:
            free.pop(0)
        ref_cnt[block] += 1


def _find_uncounted(blocks: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    for block in blocks:
        if ref_cnt[block] == 0:
            free.remove(block)


def _effect_only(answer: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Call an answer that is asked for what it changes: it may return what it likes."""
    answer(*arguments)
    return {}


def _find_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[list[int], dict[int, int], list[int]]:
        ids = list(range(1, rng.randint(3, 9)))
        ref_cnt = {block: rng.choice([0, 0, 1, 2]) for block in ids}
        free = [block for block in rng.sample(ids, len(ids)) if ref_cnt[block] == 0]
        return rng.sample(ids, rng.randint(1, min(4, len(ids)))), ref_cnt, free

    known = [
        Case(([2], {1: 1, 2: 1, 3: 0}, [3]), "Block 2 is in use already: one owner more."),
        Case(
            ([3], {1: 1, 2: 1, 3: 0}, [3]), "Block 3 waits in the free queue, and is found again before it is reused."
        ),
        Case(
            ([2, 4], {1: 0, 2: 0, 3: 1, 4: 0}, [4, 1, 2]), "Blocks 2 and 4 leave the queue, from wherever they stand."
        ),
    ]
    return known + random_cases(20, 40, make, "A block that is in use must not stand in the free queue.")


find_again = Exercise(
    "03.4",
    "find_again",
    "Bug hunt: found again, and given away",
    cases=_find_cases,
    reference=_find_again,
    buggy=_find_buggy,
    returns="nothing; change ref_cnt and free",
    in_place=("ref_cnt", "free"),
    run=_effect_only,
    wrong={
        "count new owners, and take no block out of the free queue": _find_buggy,
        "count only those that were free": _find_once,
        "set the count to 1 for whoever comes": _find_sets,
        "take the head of the queue, whichever block that is": _find_head,
        "take blocks out of the queue without counting": _find_uncounted,
    },
    hints=(
        "Try a block that nobody holds, by hand: which values has its count when the function looks at it?",
        "The question is whether the block was free *before*. By the time it is asked, the count is 1 or more, so "
        "nothing ever leaves the queue.",
        "Ask first, count afterwards. Until then, the next request is handed a block that somebody else has just "
        "found: two users in one block, and no error.",
    ),
    explanation="A count of 0 means that the block stands in the free queue. It must leave the queue before anybody "
    "can be handed it, so the count is looked at before it grows. With the two lines exchanged, the condition is "
    "never true.",
)
"""``find_again(blocks, ref_cnt, free)``: one owner more for blocks that were found in the cache."""
