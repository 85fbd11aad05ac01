"""Bug hunt of chapter 05: blocks that are free for a moment.

What holds the bug stands here word for word as in the chapter, so that an unchanged cell is recognised.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, SupportsIndex

from pagedattn_lab.exercises.boards import board
from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.grading import Exercise
from pagedattn_lab.exercises.values import same
from pagedattn_lab.viz import Picture

Tables = list[list[int]]


def _reorder(tables: Tables, parents: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    children = [list(tables[parent]) for parent in parents]
    for child in children:
        for block in child:
            ref_cnt[block] += 1
    for table in tables:
        for block in reversed(table):
            ref_cnt[block] -= 1
            if ref_cnt[block] == 0:
                free.append(block)
    tables[:] = children


def _reorder_buggy(tables, parents, ref_cnt, free):
    children = [list(tables[parent]) for parent in parents]
    for table in tables:
        for block in reversed(table):
            ref_cnt[block] -= 1
            if ref_cnt[block] == 0:
                free.append(block)
    for child in children:
        for block in child:
            ref_cnt[block] += 1
    tables[:] = children


def _reorder_never_frees(tables: Tables, parents: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    nothing: list[int] = []
    _reorder(tables, parents, ref_cnt, nothing)


def _reorder_keeps_parents(tables: Tables, parents: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    children = [list(tables[parent]) for parent in parents]
    for child in children:
        for block in child:
            ref_cnt[block] += 1
    tables[:] = children


def _reorder_dead_only(tables: Tables, parents: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    for number, table in enumerate(tables):
        for block in reversed(table if number not in parents else []):
            ref_cnt[block] -= 1
            if ref_cnt[block] == 0:
                free.append(block)
    tables[:] = [list(tables[parent]) for parent in parents]


def _reorder_first_first(tables: Tables, parents: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    before = len(free)
    _reorder(tables, parents, ref_cnt, free)
    free[before:] = sorted(free[before:])


def _reorder_takes_back(tables: Tables, parents: Sequence[int], ref_cnt: dict[int, int], free: list[int]) -> None:
    children = [list(tables[parent]) for parent in parents]
    for table in tables:
        for block in reversed(table):
            ref_cnt[block] -= 1
            if ref_cnt[block] == 0:
                free.append(block)
    for child in children:
        for block in child:
            if ref_cnt[block] == 0:
                free.remove(block)
            ref_cnt[block] += 1
    tables[:] = children


class _Queue(list[int]):
    """A free queue that notes what anybody puts into it, though it be taken out again."""

    def __init__(self, blocks: Iterable[int]) -> None:
        super().__init__(blocks)
        self.noted: set[int] = set()

    def __deepcopy__(self, memo: object) -> _Queue:
        return _Queue(self)

    def append(self, block: int) -> None:
        super().append(block)
        self.noted.update(self)

    def extend(self, blocks: Iterable[int]) -> None:
        super().extend(blocks)
        self.noted.update(self)

    def insert(self, place: SupportsIndex, block: int) -> None:
        super().insert(place, block)
        self.noted.update(self)

    def __setitem__(self, place: Any, blocks: Any) -> None:
        super().__setitem__(place, blocks)
        self.noted.update(self)

    def __iadd__(self, blocks: Iterable[int]) -> _Queue:  # type: ignore[override]
        self.extend(blocks)
        return self


def _watched(answer: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Call an answer, and look at what it puts into the free queue; what it returns does not matter."""
    free = arguments[-1]
    before = {*free}
    answer(*arguments)
    return {"put into free": free.noted - before}


def _reorder_cases() -> list[Case]:
    def given(tables: Tables, free: list[int]) -> tuple[Tables, dict[int, int], list[int]]:
        return tables, dict(Counter(block for table in tables for block in table)) | dict.fromkeys(free, 0), free

    def make(rng: random.Random) -> tuple[Tables, list[int], dict[int, int], list[int]]:
        ids = rng.sample(range(1, 20), 19)
        tables: Tables = [[ids.pop() for _ in range(rng.randint(1, 3))]]
        for _ in range(rng.randint(0, 3)):
            parent = rng.choice(tables)
            tables.append(parent[: rng.randint(0, len(parent))] + [ids.pop() for _ in range(rng.randint(1, 2))])
        tables, ref_cnt, free = given(tables, _Queue(ids[:1]))
        return tables, [rng.randrange(len(tables)) for _ in range(rng.randint(1, 4))], ref_cnt, free

    known = [
        (
            [[1, 2], [1, 3]],
            [0, 0],
            [4],
            "Beam 1 ends, and its block 3 with it. Blocks 1 and 2 stay in use all the time.",
        ),
        ([[1, 2], [1, 3]], [1, 0], [4], "Every beam goes on, in another place: nothing becomes free."),
        ([[1, 2, 3]], [0, 0, 0], [], "One beam becomes three."),
    ]
    cases = []
    for tables, parents, free, about in known:
        tables, ref_cnt, free = given(tables, _Queue(free))
        cases.append(Case((tables, parents, ref_cnt, free), about))
    return cases + random_cases(22, 40, make, "A block that a child goes on with must never be free, not for a moment.")


def _look_at_order(_: tuple[Any, ...], expected: Any, got: Any) -> str | None:
    """Say so where nothing is wrong but the order of the free queue."""
    if got is None or same(expected, got) or not same(expected | {"free": got["free"]}, got):
        return None
    if sorted(got["free"]) != sorted(expected["free"]):
        return None
    return "The right blocks are free, in another order: one table after the other, each gives its last block first."


def _draw_reorder(arguments: tuple[Any, ...], outcome: dict[str, Any]) -> Picture | None:
    return board(outcome["tables"], free=outcome["free"], block_size=1)


reorder = Exercise(
    "05.4",
    "reorder",
    "Bug hunt: free for a moment",
    cases=_reorder_cases,
    reference=_reorder,
    buggy=_reorder_buggy,
    returns="nothing; change tables, ref_cnt and free",
    in_place=("tables", "ref_cnt", "free"),
    run=_watched,
    look=_look_at_order,
    draw=_draw_reorder,
    wrong={
        "let go of the parents before the children hold anything": _reorder_buggy,
        "free blocks and take them back": _reorder_takes_back,
        "free nothing": _reorder_never_frees,
        "count the children and never let the parents go": _reorder_keeps_parents,
        "let go only of beams without children, and count no new owner": _reorder_dead_only,
        "free blocks in the order of their numbers": _reorder_first_first,
    },
    hints=(
        "Look at a block that a beam hands on to its only child. Which values does its count take, one after another?",
        "1, then 0, then 1. At 0 it is put into the free queue, and nobody takes it out again: the next request gets "
        "a block that a beam is reading.",
        "Let the children take hold first, then let the parents go. The counts are the same in the end, and none of "
        "them touches 0 on the way.",
    ),
    explanation="Counts that are right at the end are not enough, because 0 has an effect at once. Hence the rule: "
    "take hold of the new before you let go of the old. It is the same in every program that counts references.",
)
"""``reorder(tables, parents, ref_cnt, free)``: a step of beam search on counts and a free queue."""
