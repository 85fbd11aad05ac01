"""Exercise 1 of chapter 05: append with copy-on-write."""

from __future__ import annotations

import random
from typing import Any

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.exercises.boards import board
from pagedattn_lab.exercises.cases import Case, random_cases
from pagedattn_lab.exercises.grading import Exercise
from pagedattn_lab.viz import Picture

Tables = list[list[int]]

_APPENDS = [  # tables, lengths, who appends, free, block size, what the case is about
    ([[1, 2]], [6], 0, [5, 3], 4, "There is room, and nobody else names the block."),
    ([[1, 2]], [8], 0, [5, 3], 4, "A full last block means a new one."),
    ([[1, 2], [1, 2]], [6, 6], 1, [5, 3], 4, "A shared, partly filled block is copied."),
    ([[1, 2], [1, 2]], [6, 6], 0, [5, 3], 4, "It is copied for the first as for the last."),
    ([[1, 2], [1, 5]], [7, 7], 0, [3], 4, "Only the block to be written counts, not block 1."),
    ([[1, 2], [1, 2]], [8, 8], 0, [4, 6], 4, "A shared full block is not written to."),
    ([[7], [7], [7]], [1, 1, 1], 2, [9, 8], 3, "Two others name it."),
    ([[], [3]], [0, 2], 0, [6], 4, "An empty sequence takes its first block."),
]


def _reference_append(
    tables: Tables, lengths: list[int], i: int, free: list[int], block_size: int
) -> tuple[int, int] | None:
    table, copy = tables[i], None
    if lengths[i] == len(table) * block_size:
        table.append(free.pop(0))
    elif sum(table[-1] in other for other in tables) > 1:
        copy = (table[-1], free[0])
        table[-1] = free.pop(0)
    lengths[i] += 1
    return copy


def _append_cases() -> list[Case]:
    def make(rng: random.Random) -> tuple[Tables, list[int], int, list[int], int]:
        block_size = rng.choice([2, 3, 4])
        ids = rng.sample(range(1, 24), 23)
        tables: Tables = []
        lengths: list[int] = []
        for _ in range(rng.randint(1, 3)):  # a prompt, and what its forks have appended since
            prompt = rng.randint(1, 2 * block_size + 1)
            stem = [ids.pop() for _ in range(cdiv(prompt, block_size))]
            for _ in range(rng.randint(1, 3)):
                own = rng.choice([0, 0, rng.randint(1, block_size)])
                first = prompt // block_size if own else len(stem)
                lengths.append(prompt + own)
                tables.append(stem[:first] + [ids.pop() for _ in range(cdiv(prompt + own, block_size) - first)])
        tables, lengths = tables[:5], lengths[:5]
        return tables, lengths, rng.randrange(len(tables)), ids[: rng.randint(1, 3)], block_size

    about = "Is the last block full? If not, does another table name it?"
    return [Case(tuple(case), why) for *case, why in _APPENDS] + random_cases(14, 60, make, about)


def _draw_append(arguments: tuple[Any, ...], outcome: dict[str, Any]) -> Picture | None:
    touched = outcome["tables"][arguments[2]][-1:]
    return board(outcome["tables"], outcome["lengths"], outcome["free"], block_size=arguments[-1], changed=touched)


def _append_never_copies(
    tables: Tables, lengths: list[int], i: int, free: list[int], block_size: int
) -> tuple[int, int] | None:
    if lengths[i] == len(tables[i]) * block_size:
        tables[i].append(free.pop(0))
    lengths[i] += 1
    return None


def _append_copies_full_blocks(
    tables: Tables, lengths: list[int], i: int, free: list[int], block_size: int
) -> tuple[int, int] | None:
    table, copy = tables[i], None
    if table and sum(table[-1] in other for other in tables) > 1:
        copy = (table[-1], free[0])
        table[-1] = free.pop(0)
    elif lengths[i] == len(table) * block_size:
        table.append(free.pop(0))
    lengths[i] += 1
    return copy


def _append_copies_if_anything_is_shared(
    tables: Tables, lengths: list[int], i: int, free: list[int], block_size: int
) -> tuple[int, int] | None:
    table, copy = tables[i], None
    others = {block for number, other in enumerate(tables) if number != i for block in other}
    if lengths[i] == len(table) * block_size:
        table.append(free.pop(0))
    elif others & set(table):
        copy = (table[-1], free[0])
        table[-1] = free.pop(0)
    lengths[i] += 1
    return copy


def _append_keeps_the_first_owner(
    tables: Tables, lengths: list[int], i: int, free: list[int], block_size: int
) -> tuple[int, int] | None:
    table, copy = tables[i], None
    if lengths[i] == len(table) * block_size:
        table.append(free.pop(0))
    elif any(table[-1] in other for other in tables[:i]):
        copy = (table[-1], free[0])
        table[-1] = free.pop(0)
    lengths[i] += 1
    return copy


def _append_forgets_the_copy(
    tables: Tables, lengths: list[int], i: int, free: list[int], block_size: int
) -> tuple[int, int] | None:
    _reference_append(tables, lengths, i, free, block_size)
    return None


def _append_takes_the_last_free(
    tables: Tables, lengths: list[int], i: int, free: list[int], block_size: int
) -> tuple[int, int] | None:
    free.reverse()
    copy = _reference_append(tables, lengths, i, free, block_size)
    free.reverse()
    return copy


def _append_reverses_the_copy(
    tables: Tables, lengths: list[int], i: int, free: list[int], block_size: int
) -> tuple[int, int] | None:
    copy = _reference_append(tables, lengths, i, free, block_size)
    return None if copy is None else copy[::-1]


append_one = Exercise(
    "05.1",
    "append_one",
    "Append with copy-on-write",
    cases=_append_cases,
    reference=_reference_append,
    returns="the copy as (source, destination), or None",
    in_place=("tables", "lengths", "free"),
    draw=_draw_append,
    hints=(
        "There are three cases: no room in the last block, room in a block that others name too, room in a block of "
        "its own.",
        "`lengths[i] == len(tables[i]) * block_size` says that there is no room; it also covers an empty table. Then "
        "nothing is written to the old last block, and who shares it does not matter.",
        "With room, count the tables that name `tables[i][-1]`. If there are several, take `free.pop(0)` in its place "
        "and return the pair. Whatever happened, the length grows by one.",
    ),
    explanation="The question is always about the block that will be written, and about no other. If it is full, it "
    "is not written: a new one is. If it is shared, the writer gets a copy and the others keep the original, whoever "
    "they are. The last one left finds nobody beside it, and writes in place.",
    wrong={
        "write to shared blocks without a copy": _append_never_copies,
        "copy full blocks too": _append_copies_full_blocks,
        "copy if anything at all is shared": _append_copies_if_anything_is_shared,
        "let the first owner write": _append_keeps_the_first_owner,
        "copy the wrong way round": _append_reverses_the_copy,
        "take a new block, and tell nobody to copy": _append_forgets_the_copy,
        "take blocks from the back of the free queue": _append_takes_the_last_free,
    },
)
"""One token, with copy-on-write: ``append_one(tables, lengths, i, free, block_size)`` -> the copy, or ``None``."""
